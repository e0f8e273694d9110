"""Operations that move pixels: tables that say which pixel each pixel is taken from."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def source(name: str, magnitude: float, size: int) -> Tensor:
    """The table of one move at one magnitude, for the nearest pixel, on the CPU.

    Decided on the host, so it is the same on every device and in every batch: that of
    `torchvision.transforms.v2`.

    Shapes:
        -> (S * S,) int64: positions in an image of S * S pixels, where S * S itself stands for the
        black around it.
    """
    ruler = torch.linspace((1.0 - size) * 0.5, (size - 1.0) * 0.5, size)
    y, x = torch.meshgrid(ruler, ruler, indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), dim=-1).view(1, -1, 3)  # (1, S * S, 3)
    numbers = torch.arange(1.0, size * size + 1).view(1, 1, size, size)  # 0 is found outside
    matrix = torch.tensor(_inverse_matrix(name, magnitude, size)).view(1, 2, 3)
    # A product for each, as in torchvision: a batched one might round differently.
    grid = points.bmm(matrix.transpose(1, 2) / (0.5 * size)).view(1, size, size, 2)
    found = F.grid_sample(numbers, grid, mode="nearest", align_corners=False)
    return torch.where(found == 0, size * size, found - 1).flatten().long()


def stay(size: int) -> Tensor:
    """The table of an image that does not move."""
    return torch.arange(size * size)


def after(first: Tensor, then: Tensor, black: int) -> Tensor:
    """The table of two moves, of which the first has `black` for the black around its images.

    Shapes:
        (B, S * S), (B, S * S) -> (B, S * S) int64.
    """
    return F.pad(first, (0, 1), value=black).gather(1, then)


def move(images: Tensor, pixels: Tensor) -> Tensor:
    """Build images from pixels of theirs, where position H * W is black.

    Shapes:
        (B, C, H, W), (B, S * S) int64 -> (B, C, S, S).
    """
    size = math.isqrt(pixels.shape[1])
    padded = F.pad(images.flatten(2), (0, 1))
    # One gather for each channel: 7x faster on a CPU than one for all with expanded positions.
    planes = [plane.gather(1, pixels) for plane in padded.unbind(1)]
    return torch.stack(planes, dim=1).view(*images.shape[:2], size, size)


def _inverse_matrix(name: str, magnitude: float, size: int) -> tuple[float, ...]:
    """The six numbers that send a pixel of the result to its source, seen from the centre."""
    match name:
        case "ShearX":  # the top row stays in its place
            return (1.0, magnitude, magnitude * 0.5 * size, 0.0, 1.0, 0.0)
        case "ShearY":  # the left column stays in its place
            return (1.0, 0.0, 0.0, magnitude, 1.0, magnitude * 0.5 * size)
        case "TranslateX":
            return (1.0, 0.0, -math.trunc(magnitude), 0.0, 1.0, 0.0)
        case "TranslateY":
            return (1.0, 0.0, 0.0, 0.0, 1.0, -math.trunc(magnitude))
        case "Rotate":
            cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
            return (cos, -sin, 0.0, sin, cos, 0.0)
        case _:
            raise ValueError(f"{name!r} moves no pixels: expected one of {', '.join(MOVES)}")
