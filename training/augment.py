"""Augmentation of a batch: random numbers drawn on the host, images changed on their device."""

import hashlib
import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from training import trivial
from zoo.preprocess import Preprocessing

ERASE_ATTEMPTS = 10  # rectangles tried before an image is left whole
UNIFORMS = 9 + 2 * ERASE_ATTEMPTS  # random numbers for an image, used or not


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What may happen to a training image, in this order.

    Source:
        TrivialAugmentWide: Mueller and Hutter 2021, arXiv:2103.10158. Random erasing: Zhong et
        al. 2017, arXiv:1708.04896. Both with the details of `torchvision.transforms.v2`.
    """

    crop_padding: int = 4  # pixels of black border that a crop may take in; 0: no crop
    flip_p: float = 0.5  # chance of swapping left and right
    trivial: bool = True  # one operation of TrivialAugmentWide for each image
    erase_p: float = 0.5  # chance of a rectangle of zeros, after normalisation
    erase_scale: tuple[float, float] = (0.02, 0.33)  # its share of the area, uniform
    erase_ratio: tuple[float, float] = (0.3, 3.3)  # its height by its width, log-uniform

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be at least 0, got {self.crop_padding}")
        for name in ("flip_p", "erase_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.erase_scale[0] <= self.erase_scale[1] <= 1:
            raise ValueError(f"erase_scale must be (low, high) in [0, 1], got {self.erase_scale}")
        if not 0 < self.erase_ratio[0] <= self.erase_ratio[1]:
            raise ValueError(f"erase_ratio must be (low, high) above 0, got {self.erase_ratio}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draw:
    """The random choices for each image of a batch, on the CPU, whatever device the images use.

    Shapes:
        (B,) each, int64; `is_flipped` is bool and `erase` (B, 4).
    """

    top: Tensor  # row of the padded image where the crop starts
    left: Tensor  # its column
    is_flipped: Tensor
    operation: Tensor  # position in trivial.OPERATIONS
    level: Tensor  # strength of the operation, from -30 to 30
    erase: Tensor  # top, left, height and width; no height erases nothing

    def rows(self, rows: slice | Tensor) -> "Draw":
        """The choices for some of the images, such as those of one process."""
        return Draw(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw(policy: Policy, batch: int, generator: torch.Generator, *, image_size: int = 32) -> Draw:
    """Choose what happens to each image of a batch: the global one, over all processes.

    An image takes the same count of random numbers whatever comes out, so the choices for image i
    follow from the generator and i: neither the batch nor a part that is switched off moves them.
    """
    u = torch.rand(batch, UNIFORMS, generator=generator, dtype=torch.float64)  # in [0, 1)
    shift = (u[:, 0:2] * (2 * policy.crop_padding + 1)).long()  # (B, 2)
    operation = (u[:, 3] * (len(trivial.OPERATIONS) if policy.trivial else 1)).long()
    level = (u[:, 4] * trivial.LEVELS).long()
    is_signed = torch.tensor([operation.is_signed for operation in trivial.OPERATIONS])
    return Draw(
        top=shift[:, 0],
        left=shift[:, 1],
        is_flipped=u[:, 2] < policy.flip_p,
        operation=operation,
        level=torch.where(is_signed[operation] & (u[:, 5] < 0.5), -level, level),
        erase=_rectangles(policy, u[:, 6:], image_size),
    )


def _rectangles(policy: Policy, u: Tensor, size: int) -> Tensor:
    """Rectangles to erase: of ten random ones, the first that is smaller than the image.

    Shapes:
        (B, 23) -> (B, 4), top, left, height and width, all zero where nothing is erased.
    """
    low, high = policy.erase_scale
    flat, tall = (math.log(ratio) for ratio in policy.erase_ratio)
    is_chosen, corner, scale, shape = torch.split(u, [1, 2, ERASE_ATTEMPTS, ERASE_ATTEMPTS], dim=1)
    area = (low + (high - low) * scale) * size * size
    ratio = (flat + (tall - flat) * shape).exp()
    sides = torch.stack((area * ratio, area / ratio), dim=2).sqrt().round()  # (B, 10, 2)
    fits = (sides < size).all(dim=2)  # (B, 10)
    first = fits.byte().argmax(dim=1)
    sides = sides[torch.arange(len(u)), first]  # (B, 2)
    corner = (corner * (size - sides + 1)).floor()
    is_erased = (is_chosen < policy.erase_p) & fits.any(dim=1, keepdim=True)  # (B, 1)
    return (torch.cat((corner, sides), dim=1) * is_erased).long()


def apply(
    policy: Policy,
    images: Tensor,
    drawn: Draw,
    preprocessing: Preprocessing,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Augment a batch of stored images as drawn, normalise it, and bring it to the model's size.

    Shapes:
        (B, 3, H, H) uint8 -> (B, 3, S, S) float32, on the same device.

    Note:
        Never waits for the device: groups are formed on the host, from `drawn`. On the way the
        images are sorted by operation, so that a group is a slice.
    """
    device, size = images.device, images.shape[-1]
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise ValueError(f"expected (B, 3, S, S) uint8, got {tuple(images.shape)} {images.dtype}")
    order = drawn.operation.argsort(stable=True)
    place = order.argsort()  # where each image went
    drawn, rectangles = drawn.rows(order), drawn.erase.to(device, non_blocking=True)
    counts: list[int] = drawn.operation.bincount(minlength=len(trivial.OPERATIONS)).tolist()
    column = drawn.level + trivial.LEVELS - 1
    strength = trivial.magnitudes()[drawn.operation, column].to(device, non_blocking=True)
    order, place, top, left, is_flipped, operation, column = torch.stack(
        (order, place, drawn.top, drawn.left, drawn.is_flipped, drawn.operation, column)
    ).to(device, non_blocking=True)

    pixels = _crop(top, left, is_flipped, padding=policy.crop_padding, size=size)
    moving = slice(sum(counts[: trivial.MOVES.start]), sum(counts[: trivial.MOVES.stop]))
    moves = trivial.sources(size, device)[operation[moving] - trivial.MOVES.start, column[moving]]
    pixels[moving] = F.pad(pixels[moving], (0, 1)).gather(1, moves)  # position 0 is black
    x = _take(images.index_select(0, order), pixels, policy.crop_padding)
    x = trivial.retouch(x, counts, strength).index_select(0, place)
    x = _erase(_normalise(x, preprocessing), rectangles)
    # Last, because the arithmetic above is 8x slower on three interleaved channels (AMD EPYC).
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return preprocessing.fit(x)


def _crop(top: Tensor, left: Tensor, is_flipped: Tensor, *, padding: int, size: int) -> Tensor:
    """Where the pixels of each crop lie in the image, flattened after padding: (B,) -> (B, S * S).

    The border is one pixel wider than the crop needs, so position 0 is always black.
    """
    line = torch.arange(size, device=top.device)
    columns = torch.where(is_flipped[:, None] == 1, size - 1 - line, line) + left[:, None] + 1
    rows = line + top[:, None] + 1  # (B, S)
    return (rows[:, :, None] * (size + 2 * padding + 2) + columns[:, None, :]).flatten(1)


def _take(images: Tensor, pixels: Tensor, padding: int) -> Tensor:
    """Build images from pixels of the padded ones: (B, C, S, S), (B, S * S) -> (B, C, S, S)."""
    padded = F.pad(images, (padding + 1,) * 4).flatten(2)
    # One gather for each channel: 7x faster than one for all with expanded positions, or than
    # advanced indexing (0.15 against 1.0 ms at B=128, 2 threads of an AMD EPYC, torch 2.14).
    planes = [plane.gather(1, pixels) for plane in padded.unbind(1)]
    return torch.stack(planes, dim=1).view_as(images)


def _normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bring bytes to mean 0 and deviation 1, to the last bit as `Preprocessing.to_batch` does."""
    shift, scale = (
        torch.tensor(figures).mul(255).view(1, 3, 1, 1).to(images.device, non_blocking=True)
        for figures in (preprocessing.mean, preprocessing.std)
    )
    return images.float().sub_(shift).div_(scale)


def _erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Zero a rectangle of each image, in place: (B, C, S, S), (B, 4) -> (B, C, S, S)."""
    line = torch.arange(images.shape[-1], device=images.device)
    top, left, height, width = rectangles[:, :, None].unbind(1)  # (B, 1) each
    rows = (line >= top) & (line < top + height)  # (B, S)
    columns = (line >= left) & (line < left + width)
    is_kept = ~(rows[:, None, :, None] & columns[:, None, None, :])  # (B, 1, S, S)
    return images.mul_(is_kept.to(images.dtype))


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch, a function of the seed and the epoch alone.

    Shapes:
        -> (count,) int64, a permutation.
    """
    return torch.randperm(count, generator=_generator("shuffle", seed, epoch))


def step_generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """A fresh generator for one step, a function of these numbers alone, so a resume repeats it."""
    return _generator("step", seed, epoch, step)


def _generator(*key: str | int) -> torch.Generator:
    """A CPU generator seeded with 64 bits of the BLAKE2 digest of the key.

    Neighbouring keys give unrelated seeds. Note that the Mersenne twister of PyTorch starts from
    the lower 32 bits of them.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
