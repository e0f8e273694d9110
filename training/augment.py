"""Augmentation of a batch on the device of its images, without a look at a value."""

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training import auto_augment, geometry, jitter, mix
from training.auto_augment import Stage
from training.philox import Numbers
from training.recipe import Recipe
from training.stage import apply_stage
from zoo.preprocess import Preprocessing, levels

ERASE_ATTEMPTS = 10  # rectangles tried before an image is left whole

# Which random numbers a part draws: each has its own, so that none moves those of another.
CROP, POLICY, ERASE, JITTER, MIX = range(5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What may happen to a training image, in this order.

    Raises:
        ValueError: a field lies outside what its comment allows.

    Source:
        TrivialAugmentWide: Mueller and Hutter 2021, arXiv:2103.10158. Random erasing: Zhong et
        al. 2017, arXiv:1708.04896. Both with the details of `torchvision.transforms.v2`.
    """

    crop_padding: int = 4  # pixels of black border that a crop may take in; 0: no crop
    flip_p: float = 0.5  # chance of swapping left and right
    vertical_flip_p: float = 0.0  # chance of swapping top and bottom
    augment: str = "trivial"  # as in `Recipe`
    rand_ops: int = 2
    rand_magnitude: int = 9
    jitter: float = 0.0  # as in `Recipe`
    erase_p: float = 0.5  # chance of a rectangle of zeros, after normalisation
    erase_scale: tuple[float, float] = (0.02, 0.33)  # its share of the area, uniform
    erase_ratio: tuple[float, float] = (0.3, 3.3)  # its height by its width, log-uniform
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_p: float = 1.0
    alternates_plain: bool = False  # epochs 1, 3, 5... see the images as they are stored

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be at least 0, got {self.crop_padding}")
        for name in ("flip_p", "vertical_flip_p", "erase_p", "mix_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.erase_scale[0] <= self.erase_scale[1] <= 1:
            raise ValueError(f"erase_scale must be (low, high) in [0, 1], got {self.erase_scale}")
        if not 0 < self.erase_ratio[0] <= self.erase_ratio[1]:
            raise ValueError(f"erase_ratio must be (low, high) above 0, got {self.erase_ratio}")

    @classmethod
    def of(cls, recipe: Recipe) -> "Policy":
        """What a recipe asks for."""
        own = {field.name for field in fields(recipe)}
        return cls(**{f.name: getattr(recipe, f.name) for f in fields(cls) if f.name in own})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draw:
    """The random choices for each image of a batch, on its device.

    Shapes:
        (B,) int64 each; the flips are bool, `erase` is (B, 4), `jitter` and `mix` are (B, n) in
        [0, 1).
    """

    top: Tensor  # row of the padded image where the crop starts
    left: Tensor  # its column
    is_flipped: Tensor
    is_upside_down: Tensor
    stages: tuple[Stage, ...]
    erase: Tensor  # top, left, height and width; no height erases nothing
    jitter: Tensor | None
    mix: Tensor | None

    def of_rows(self, rows: slice) -> "Draw":
        """The choices for some of the images."""
        return Draw(**{f.name: _rows_of(getattr(self, f.name), rows) for f in fields(self)})


class Augmentation:
    """A policy with its tables on the device of the images.

    Every step has static shapes and stays on the device; on a CPU the images are grouped by their
    operation, so that each is done to its own images only. Both ways give the same bytes.
    """

    def __init__(
        self,
        policy: Policy,
        preprocessing: Preprocessing,
        *,
        size: int,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.policy, self.preprocessing, self.size = policy, preprocessing, size
        self.channels_last = channels_last
        self.operations = auto_augment.make_policy(
            policy.augment,
            rand_ops=policy.rand_ops,
            rand_magnitude=policy.rand_magnitude,
            size=size,
            device=device,
        )
        self.mixing = mix.Mixing.of(
            mixup_alpha=policy.mixup_alpha,
            cutmix_alpha=policy.cutmix_alpha,
            p=policy.mix_p,
            device=device,
        )
        self.line = torch.arange(size, device=device)
        self.shift, self.scale = (
            levels(preprocessing.mean, device),
            levels(preprocessing.std, device),
        )

    def __call__(
        self, stored: Tensor, labels: Tensor, numbers: Numbers, drawn: Draw | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Augment, normalise and mix a batch of stored images, as `draw` says or has said before.

        Shapes:
            (B, 3, H, H) uint8, (B,) -> (B, 3, S, S) float32, (B,) labels, and where images are
            mixed the labels of the others and the share of the own ones, (B,) each.
        """
        drawn = drawn or self.draw(numbers)
        images = self.apply(stored, drawn)
        if self.policy.alternates_plain:
            images = torch.where(numbers.epoch % 2 == 1, self.plain(stored), images)
        if self.mixing is None:
            return images, labels, None, None
        assert drawn.mix is not None
        images, others, share = mix.mix(self.mixing, images, labels, drawn.mix)
        return images, labels, others, share

    def draw(self, numbers: Numbers) -> Draw:
        """Choose what happens to each image."""
        policy = self.policy
        counts = {CROP: 4, ERASE: 3 + 2 * ERASE_ATTEMPTS}
        if self.operations is not None:
            counts[POLICY] = self.operations.uniforms
        if policy.jitter:
            counts[JITTER] = jitter.UNIFORMS
        if self.mixing is not None:
            counts[MIX] = mix.UNIFORMS
        u = numbers.uniforms_of(counts)
        shift = (u[CROP][:, 0:2] * (2 * policy.crop_padding + 1)).long()  # (B, 2)
        return Draw(
            top=shift[:, 0],
            left=shift[:, 1],
            is_flipped=u[CROP][:, 2] < policy.flip_p,
            is_upside_down=u[CROP][:, 3] < policy.vertical_flip_p,
            stages=() if self.operations is None else self.operations.stages(u[POLICY]),
            erase=_rectangles(policy, u[ERASE], self.size),
            jitter=u.get(JITTER),
            mix=u.get(MIX),
        )

    def apply(self, stored: Tensor, drawn: Draw) -> Tensor:
        """Change stored images as drawn, normalise them, and bring them to the model's size.

        Shapes:
            (B, 3, H, H) uint8 -> (B, 3, S, S) float32, on the same device.
        """
        if stored.dtype != torch.uint8 or stored.shape[1:] != (3, self.size, self.size):
            expected = f"(B, 3, {self.size}, {self.size}) uint8"
            raise ValueError(f"expected {expected}, got {tuple(stored.shape)} {stored.dtype}")
        images = F.pad(stored, (self.policy.crop_padding,) * 4)
        crop: Tensor | None = self._crop(drawn)
        for operation, column in drawn.stages:
            assert self.operations is not None
            images = apply_stage(self.operations.tables, images, operation, column, crop=crop)
            crop = None
        if crop is not None:
            images = geometry.move(images, crop)
        if drawn.jitter is not None:
            images = jitter.color_jitter(images, self.policy.jitter, drawn.jitter)
        x = self._normalise(images)
        return self._finish(self._erase(x, drawn.erase) if self.policy.erase_p else x)

    def plain(self, stored: Tensor) -> Tensor:
        """Only normalise the images and bring them to the model's size."""
        return self._finish(self._normalise(stored))

    def _crop(self, drawn: Draw) -> Tensor:
        """Which pixel of the padded image each pixel is, mirrored where drawn: -> (B, S * S)."""
        size, line = self.size, self.line
        columns = torch.where(drawn.is_flipped[:, None], size - 1 - line, line)
        rows = torch.where(drawn.is_upside_down[:, None], size - 1 - line, line)
        rows, columns = rows + drawn.top[:, None], columns + drawn.left[:, None]  # (B, S) each
        width = size + 2 * self.policy.crop_padding
        return (rows[:, :, None] * width + columns[:, None, :]).flatten(1)

    def _normalise(self, images: Tensor) -> Tensor:
        """Bring bytes to mean 0 and deviation 1, to the last bit as `Preprocessing.to_batch`."""
        return images.float().sub_(self.shift).div_(self.scale)

    def _erase(self, images: Tensor, rectangles: Tensor) -> Tensor:
        """Zero a rectangle of each image: (B, C, S, S), (B, 4) -> (B, C, S, S)."""
        top, left, height, width = rectangles[:, :, None].unbind(1)  # (B, 1) each
        rows = (self.line >= top) & (self.line < top + height)  # (B, S)
        columns = (self.line >= left) & (self.line < left + width)
        is_kept = ~(rows[:, None, :, None] & columns[:, None, None, :])  # (B, 1, S, S)
        return images.mul_(is_kept.to(images.dtype))

    def _finish(self, images: Tensor) -> Tensor:
        # Last, because the arithmetic above is 8x slower on three interleaved channels (AMD EPYC).
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        images = self.preprocessing.fit(images, self.shift, self.scale)
        return images if self.channels_last else images.contiguous()


def _rows_of(value: Any, rows: slice) -> Any:
    """Rows of a tensor, or of every one in a tuple."""
    if isinstance(value, tuple):
        return tuple(_rows_of(one, rows) for one in value)
    return None if value is None else value[rows]


def _rectangles(policy: Policy, u: Tensor, size: int) -> Tensor:
    """Rectangles to erase: of ten random ones, the first that is smaller than the image.

    Shapes:
        (B, 23) -> (B, 4) int64, top, left, height and width, all zero where nothing is erased.
    """
    low, high = policy.erase_scale
    flat, tall = (math.log(ratio) for ratio in policy.erase_ratio)
    is_chosen, corner, scale, shape = torch.split(
        u.double(), [1, 2, ERASE_ATTEMPTS, ERASE_ATTEMPTS], dim=1
    )
    area = (low + (high - low) * scale) * size * size
    ratio = (flat + (tall - flat) * shape).exp()
    sides = torch.stack((area * ratio, area / ratio), dim=2).sqrt().round()  # (B, 10, 2)
    sides, fits = first_that_fits(sides, (sides < size).all(dim=2))
    corner = (corner * (size - sides + 1)).floor()
    is_erased = (is_chosen < policy.erase_p) & fits  # (B, 1)
    return torch.where(is_erased, torch.cat((corner, sides), dim=1), 0).long()


def first_that_fits(sides: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
    """Of several tries for each image the first that fits, and whether any does.

    Shapes:
        (B, tries, 2), (B, tries) bool -> (B, 2), (B, 1) bool.
    """
    first = fits.byte().argmax(dim=1)
    chosen = sides.gather(1, first[:, None, None].expand(-1, 1, 2)).squeeze(1)
    return chosen, fits.any(dim=1, keepdim=True)


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch, a function of the seed and the epoch alone.

    Shapes:
        -> (count,) int64, a permutation, on the CPU.
    """
    return torch.randperm(count, generator=_generator("shuffle", seed, epoch))


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """The seed of what a network draws itself in an epoch, such as dropout, in one process."""
    return _generator("network", seed, epoch, rank).initial_seed()


def _generator(*key: str | int) -> torch.Generator:
    """A CPU generator seeded with 64 bits of the BLAKE2 digest of the key.

    Neighbouring keys give unrelated seeds. Note that the Mersenne twister of PyTorch starts from
    the lower 32 bits of them.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
