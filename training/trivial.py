"""TrivialAugmentWide on a batch: one random operation of random strength for each image.

Every operation gives the bytes of `torchvision.transforms.v2.functional` for that image alone on a
CPU with a fused multiply-add (x86 with AVX2); the tests compare all of them at every magnitude.
Without one, torchvision itself rounds color, contrast and sharpness otherwise, by one level.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LEVELS = 31  # strengths of an operation; a negated one has level -1 to -30


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation and the range of its magnitude, in LEVELS equal steps."""

    name: str
    first: float = 0.0
    last: float = 0.0
    is_signed: bool = False  # half of the draws negate the magnitude
    retouch: Callable[[Tensor, Tensor], Tensor] | None = None  # None: it only moves pixels


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Multiply by 1 + magnitude."""
    return _to_bytes(images * (1 + magnitude))


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move away from the grey image, or towards it where the magnitude is negative."""
    return _to_bytes(_add_scaled(images * (1 + magnitude), _grey(images), -magnitude))


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move away from the mean grey, or towards it where the magnitude is negative."""
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return _to_bytes(_add_scaled(images * (1 + magnitude), mean, -magnitude))


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move away from a blurred image, or towards it where the magnitude is negative.

    The blur weighs a pixel by 5/13 and each of its eight neighbours by 1/13. The outermost pixels,
    which lack neighbours, stay as they are.
    """
    values = images.float()
    inner = values[..., 1:-1, 1:-1]  # a view: what is written there lands in `values`
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = ((box + 4 * inner) / 13).round_()
    inner.copy_(_add_scaled(inner, blurred - inner, -magnitude))
    return _to_bytes(values)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the highest `magnitude` bits of each value."""
    return images & (256 - 2 ** (8 - magnitude)).to(torch.uint8)


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the values from 255 * magnitude on."""
    return torch.where(images >= 255 * magnitude, 255 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range; a channel of one value stays."""
    values = images.float()
    low, high = values.amin(dim=(2, 3), keepdim=True), values.amax(dim=(2, 3), keepdim=True)
    is_flat = low == high  # (B, C, 1, 1)
    step = torch.where(is_flat, 1.0, (high - low) * (1 / 255))
    return _to_bytes((values - torch.where(is_flat, 0.0, low)) / step)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Even out the histogram of each channel; a channel with too few values below its top stays.

    Source:
        The integer scheme of `ImageOps.equalize` in Pillow.
    """
    values = images.flatten(2).long()  # (B, C, N)
    histogram = values.new_zeros((*values.shape[:2], 256))
    histogram.scatter_add_(2, values, torch.ones_like(values))
    brightest = histogram.gather(2, values.amax(dim=2, keepdim=True))  # (B, C, 1)
    step = (values.shape[2] - brightest) // 255  # pixels for each level of the result
    darker = histogram.cumsum(2) - histogram
    lookup = ((darker + step // 2) // step.clamp(min=1)).clamp_(max=255)
    equalized = lookup.gather(2, values).to(torch.uint8).view_as(images)
    return torch.where(step[..., None] == 0, images, equalized)


def _to_bytes(values: Tensor) -> Tensor:
    """Clamp to the range of a byte, in place, and cut the fraction off."""
    return values.clamp_(0, 255).to(torch.uint8)


def _add_scaled(values: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Compute values + factor * other, rounded to float32 once, like a fused multiply-add.

    The sum of these operands is exact in float64. A second rounding would show: the blend of a
    grey pixel with its own grey lies right between two bytes.
    """
    return torch.addcmul(values.double(), other.double(), factor.double()).float()


def _grey(images: Tensor) -> Tensor:
    """Whole grey levels, with the weights of ITU-R BT.601: (B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = torch.split(images.float(), 1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


OPERATIONS: tuple[Operation, ...] = (
    Operation("Identity"),
    Operation("ShearX", 0.0, 0.99, is_signed=True),
    Operation("ShearY", 0.0, 0.99, is_signed=True),
    Operation("TranslateX", 0.0, 32.0, is_signed=True),  # pixels, cut to whole ones
    Operation("TranslateY", 0.0, 32.0, is_signed=True),
    Operation("Rotate", 0.0, 135.0, is_signed=True),  # degrees, counter-clockwise
    Operation("Brightness", 0.0, 0.99, is_signed=True, retouch=brightness),
    Operation("Color", 0.0, 0.99, is_signed=True, retouch=color),
    Operation("Contrast", 0.0, 0.99, is_signed=True, retouch=contrast),
    Operation("Sharpness", 0.0, 0.99, is_signed=True, retouch=sharpness),
    Operation("Posterize", 8.0, 2.0, retouch=posterize),  # bits, rounded to whole ones
    Operation("Solarize", 1.0, 0.0, retouch=solarize),  # share of full scale
    Operation("AutoContrast", retouch=autocontrast),
    Operation("Equalize", retouch=equalize),
)
MOVES = slice(1, 6)  # the operations that move pixels: they stand side by side


@cache
def magnitudes() -> Tensor:
    """Magnitude of each operation at the levels -30 to 30, on the CPU.

    Shapes:
        -> (14, 61), float32. An operation without a sign has its magnitudes twice.

    Note:
        Taken from `torch.linspace` in float32, as in torchvision, whose rounding depends on the
        instruction set: with AVX2 and AVX-512 level 15 translates by 15 pixels, elsewhere by 16.
    """
    rows = []
    for operation in OPERATIONS:
        rising = torch.linspace(operation.first, operation.last, LEVELS)
        if operation.name == "Posterize":
            rising = rising.round()
        negative = -rising if operation.is_signed else rising
        rows.append(torch.cat((negative.flip(0), rising[1:])))
    return torch.stack(rows)
