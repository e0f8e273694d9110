"""How far a ratio of two times is known, from rounds of calls that follow one another.

Calls of one moment resemble each other, so an interval that counts each call as one observation is
too narrow. The rounds of a measurement lie further apart: their medians are the observations here,
as batch means are in the analysis of simulations.

Source:
    Schmeiser 1982, Batch size effects in the analysis of simulation output, Operations Research
    30(3); Welch 1947, Biometrika 34(1-2), for two sides of unequal variance; the distribution of t
    by Abramowitz and Stegun 1964, formulas 26.7.3 and 26.7.4.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
LEAST_ROUNDS = 2  # of each side; one says nothing about how rounds differ


@dataclass(frozen=True, slots=True)
class Ratio:
    """One time as a multiple of another, with its 95% confidence interval."""

    value: float
    low: float | None  # None of both: too few rounds to tell
    high: float | None

    @property
    def is_above_one(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low is not None and self.low > 1

    @property
    def is_below_one(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high is not None and self.high < 1


def ratio_of(before: Sequence[float], after: Sequence[float]) -> Ratio:
    """The geometric mean of `after` as a multiple of that of `before`.

    Logarithms make a ratio a difference, to which Welch's interval applies; its degrees of freedom
    are rounded down.
    """
    sides = [[math.log(value) for value in side] for side in (before, after)]
    gap = statistics.fmean(sides[1]) - statistics.fmean(sides[0])
    if min(map(len, sides)) < LEAST_ROUNDS:
        return Ratio(math.exp(gap), None, None)
    errors = [statistics.variance(side) / len(side) for side in sides]  # squared, of each mean
    width = math.sqrt(sum(errors))
    if width > 0:
        freedom = sum(errors) ** 2 / sum(
            error**2 / (len(side) - 1) for error, side in zip(errors, sides, strict=True)
        )
        width *= student_quantile(CONFIDENCE, math.floor(freedom + 1e-9))
    return Ratio(math.exp(gap), math.exp(gap - width), math.exp(gap + width))


@cache
def student_quantile(share: float, freedom: int) -> float:
    """The t that Student's t with so many degrees of freedom stays within, on either side of 0.

    Raises:
        ValueError: `share` lies outside (0, 1), or `freedom` is below 1.
    """
    if not 0 < share < 1 or freedom < 1:
        raise ValueError(f"no quantile {share} of t with {freedom} degrees of freedom")
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t over the root of `freedom`
    for _ in range(60):  # halvings: all that a float holds
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < share else (low, angle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """The share of t inside plus and minus tan(angle) * sqrt(freedom)."""
    cosine, is_odd = math.cos(angle), freedom % 2
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + is_odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
