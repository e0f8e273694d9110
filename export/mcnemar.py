"""Does an artifact answer worse than eager on the same images, by more than chance?"""

import math
from dataclasses import dataclass

from torch import Tensor

SIGNIFICANT = 0.05  # a p-value below it
FULL_TEST = 10_000  # images; on fewer, accuracy is compared but decides nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Accuracy beside eager's, image by image."""

    images: int
    eager_top1: float  # in [0, 1]
    top1: float
    only_eager_right: int  # images
    only_artifact_right: int
    p_value: float  # McNemar, exact and two-sided
    max_drop: float  # of top-1 that is allowed, in [0, 1]
    is_gate: bool  # whether it decides: there were enough images, or chance is allowed for
    is_lossy: bool = False  # whether only a drop beyond max_drop and beyond chance is a fault

    @property
    def fault(self) -> str | None:
        """Why the artifact is too inaccurate; None where it is not."""
        lost = self.only_eager_right - self.only_artifact_right
        fell = f"top-1 fell from {self.eager_top1:.2%} to {self.top1:.2%}"
        is_chance = lost <= 0 or self.p_value >= SIGNIFICANT
        if lost > most_lost(self.max_drop, self.images) and not (self.is_lossy and is_chance):
            return f"{fell}, more than the {100 * self.max_drop:.2f} points allowed"
        if not (self.is_lossy or is_chance):
            return (
                f"{fell} by more than chance: "
                f"{self.only_eager_right} images were right in eager only, "
                f"{self.only_artifact_right} in the artifact only (McNemar p = {self.p_value:.2g})"
            )
        return None


def most_lost(max_drop: float, images: int) -> int:
    """How many of these images a drop of top-1 by `max_drop`, and no more, may cost."""
    return math.floor(max_drop * images + 1e-9)  # 0.29 * 100 lies below 29


def compare_answers(
    eager: Tensor, artifact: Tensor, truth: Tensor, max_drop: float, *, is_lossy: bool = False
) -> Comparison:
    """Hold the first guesses of an artifact against eager's.

    One of full precision may neither fall by more than `max_drop` nor by more than chance, on
    enough images to tell. A lossy one may use its `max_drop`, and beyond that what chance explains;
    that needs no number of images.

    Shapes:
        (N,), (N,), (N,) of class numbers -> counts.
    """
    right, found = eager == truth, artifact == truth
    only_eager, only_artifact = int((right & ~found).sum()), int((found & ~right).sum())
    count = len(truth)
    return Comparison(
        images=count,
        eager_top1=int(right.sum()) / count,
        top1=int(found.sum()) / count,
        only_eager_right=only_eager,
        only_artifact_right=only_artifact,
        p_value=exact_p_value(only_eager, only_artifact),
        max_drop=max_drop,
        is_gate=is_lossy or count >= FULL_TEST,
        is_lossy=is_lossy,
    )


def exact_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p-value of counts of images that only the first, or only the second, gets right.

    Where neither is better, each of these images is a fair coin; images that both get right or
    wrong say nothing.

    Source:
        McNemar 1947, Psychometrika 12; the binomial in place of chi-squared, as few images differ.
    """
    flips, fewer = only_first + only_second, min(only_first, only_second)
    tail = ways = 1  # of 2 ** flips: those with 0 heads, then with 1 and so on up to `fewer`
    for heads in range(fewer):
        ways = ways * (flips - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << flips))
