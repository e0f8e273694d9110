"""TrivialAugmentWide, RandAugment and AutoAugment: which operations an image meets, how strong.

A policy turns random numbers into stages; a stage is one operation and one strength for each image
of a batch, given as a column of the policy's tables. `training.stage` carries a stage out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training import geometry, trivial


def invert(images: Tensor, _: Tensor) -> Tensor:
    """Turn black to white and white to black."""
    return 255 - images


# Every policy uses these; an image that is left alone gets the first.
OPERATIONS = (*trivial.OPERATIONS, trivial.Operation("Invert", retouch=invert))
PLACE: Mapping[str, int] = {operation.name: row for row, operation in enumerate(OPERATIONS)}
AUTO_LEVELS = 10  # strengths of AutoAugment

# AutoAugment's policy for CIFAR-10: two operations, each with its chance and its level.
# Source: Cubuk et al. 2018, arXiv:1805.09501, table 7.
CIFAR10_POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tables:
    """Strengths of the operations by column, on the device of the images.

    Shapes:
        magnitudes (O, L) float32, of the first O of OPERATIONS; sources (6, L, S * S) int64, of no
        move and of those of `geometry.MOVES`, as `geometry.source` gives them.
    """

    magnitudes: Tensor
    sources: Tensor


Stage = tuple[Tensor, Tensor]  # of each image the row of its operation and a column: (B,), (B,)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trivial:
    """One operation with one of 31 strengths, and a sign where it has one.

    Source:
        Mueller and Hutter 2021, arXiv:2103.10158, as `torchvision.transforms.v2` has it.
    """

    tables: Tables
    is_signed: Tensor  # (14,) bool

    uniforms = 3

    @classmethod
    def of(cls, size: int, device: torch.device) -> "Trivial":
        """For images of `size` pixels on `device`."""
        tables = _tables(trivial.magnitudes(), size, device)
        return cls(tables=tables, is_signed=_is_signed(device))

    def stages(self, u: Tensor) -> tuple[Stage, ...]:
        """Choose by random numbers in [0, 1): (B, 3) -> one stage."""
        operation = (u[:, 0] * len(self.is_signed)).long()
        level = (u[:, 1] * trivial.LEVELS).long()
        is_negative = self.is_signed[operation] & (u[:, 2] < 0.5)
        return ((operation, trivial.LEVELS - 1 + torch.where(is_negative, -level, level)),)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rand:
    """Some operations one after another, all of one strength, and a sign where they have one.

    Source:
        Cubuk et al. 2019, arXiv:1909.13719, as `torchvision.transforms.v2` has it: strengths 0 to
        30, an operation may come twice.
    """

    tables: Tables
    is_signed: Tensor  # (14,) bool
    operations: int

    @classmethod
    def of(cls, operations: int, magnitude: int, size: int, device: torch.device) -> "Rand":
        """For images of `size` pixels on `device`."""
        strengths = _magnitudes(trivial.LEVELS, size)[: len(trivial.OPERATIONS)]
        ends = (trivial.LEVELS - 1 - magnitude, trivial.LEVELS - 1 + magnitude)
        tables = _tables(strengths[:, ends], size, device)  # columns 0 and 1: minus and plus
        return cls(tables=tables, is_signed=_is_signed(device), operations=operations)

    @property
    def uniforms(self) -> int:
        """Random numbers for an image."""
        return 2 * self.operations

    def stages(self, u: Tensor) -> tuple[Stage, ...]:
        """Choose by random numbers in [0, 1): (B, uniforms) -> a stage for each operation."""
        chosen = (u[:, 0::2] * len(self.is_signed)).long()  # (B, operations)
        column = (u[:, 1::2] >= 0.5).long()
        return tuple(zip(chosen.unbind(1), column.unbind(1), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Auto:
    """One of the 25 pairs of CIFAR10_POLICY, each half at its chance."""

    tables: Tables
    pairs: Tensor  # (25, 2, 2): operation and level
    chances: Tensor  # (25, 2)
    is_signed: Tensor  # (O,) bool

    uniforms = 5

    @classmethod
    def of(cls, size: int, device: torch.device) -> "Auto":
        """For images of `size` pixels on `device`."""
        pairs = [[(PLACE[name], level) for name, _, level in pair] for pair in CIFAR10_POLICY]
        chances = [[chance for _, chance, _ in pair] for pair in CIFAR10_POLICY]
        return cls(
            tables=_tables(_magnitudes(AUTO_LEVELS, size), size, device),
            pairs=torch.tensor(pairs, device=device),
            chances=torch.tensor(chances, device=device),
            is_signed=_is_signed(device, OPERATIONS),
        )

    def stages(self, u: Tensor) -> tuple[Stage, ...]:
        """Choose by random numbers in [0, 1): (B, 5) -> two stages."""
        pair = (u[:, 0] * len(self.pairs)).long()
        is_used = u[:, 1:3] < self.chances[pair]  # (B, 2)
        operation, level = self.pairs[pair].unbind(2)  # (B, 2) each
        is_negative = self.is_signed[operation] & (u[:, 3:5] < 0.5)
        column = AUTO_LEVELS - 1 + torch.where(is_negative, -level, level)
        return tuple(
            zip(torch.where(is_used, operation, 0).unbind(1), column.unbind(1), strict=True)
        )


Policy = Trivial | Rand | Auto


def make_policy(
    name: str, *, rand_ops: int, rand_magnitude: int, size: int, device: torch.device
) -> Policy | None:
    """The policy that a recipe names in `augment`, with its tables; None for "none"."""
    match name:
        case "trivial":
            return Trivial.of(size, device)
        case "rand":
            return Rand.of(rand_ops, rand_magnitude, size, device)
        case "auto":
            return Auto.of(size, device)
        case _:
            return None


def _is_signed(
    device: torch.device, operations: tuple[trivial.Operation, ...] = trivial.OPERATIONS
) -> Tensor:
    return torch.tensor([operation.is_signed for operation in operations], device=device)


def _magnitudes(levels: int, size: int) -> Tensor:
    """Strengths of RandAugment and AutoAugment at the levels 1 - levels to levels - 1.

    Shapes:
        -> (O, 2 * levels - 1) float32. An operation without a sign has its strengths twice.
    """
    last = {
        **dict.fromkeys(("ShearX", "ShearY"), 0.3),
        **dict.fromkeys(("TranslateX", "TranslateY"), 150.0 / 331.0 * size),
        "Rotate": 30.0,
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9),
    }
    rows = []
    for operation in OPERATIONS:
        match operation.name:
            case "Posterize":  # bits that stay: 8 to 4
                rising = (8 - torch.arange(levels) / ((levels - 1) / 4)).round()
            case "Solarize":
                rising = torch.linspace(1.0, 0.0, levels)
            case name:
                rising = torch.linspace(0.0, last.get(name, 0.0), levels)
        negative = -rising if operation.is_signed else rising
        rows.append(torch.cat((negative.flip(0), rising[1:])))
    return torch.stack(rows)


def _tables(magnitudes: Tensor, size: int, device: torch.device) -> Tables:
    """The tables of these strengths: (O, L), on the CPU."""
    stay = geometry.stay(size).expand(magnitudes.shape[1], -1)
    moved = [
        torch.stack([geometry.source(name, magnitude, size) for magnitude in row.tolist()])
        for name, row in zip(geometry.MOVES, magnitudes[trivial.MOVES], strict=True)
    ]
    sources = torch.stack((stay, *moved))
    return Tables(magnitudes=magnitudes.to(device), sources=sources.to(device))
