"""Columns that are computed from measured ones: pure functions, each with its formula."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from profiling.compare_stats import CONFIDENCE, student_quantile
from profiling.study.data import Arm, Trial

LEAST = 2  # values without which nothing is known of how they differ
LEAST_STEPS = 20  # of a bounded training, as zoo-sweep has it


@dataclass(frozen=True, slots=True)
class Mean:
    """An arithmetic mean of `n` values with their standard deviation, which divides by n - 1."""

    value: float
    sd: float | None  # None of a single value
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm less its baseline, with a 95% confidence interval."""

    value: float
    low: float | None  # None of both: too few seeds to tell
    high: float | None
    n: int  # pairs; without pairs, seeds of the side that has fewer
    is_paired: bool


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) >= LEAST else None
    return Mean(statistics.fmean(known), sd, len(known))


def mean_value(values: Iterable[float | None]) -> float | None:
    """The mean of what is known, where its spread says nothing."""
    mean = mean_of(values)
    return None if mean is None else mean.value


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean of a group's members; None where one is not known, or there is none."""
    listed = list(values)
    return None if None in listed else mean_value(listed)


def parameter_efficiency(top1: float | None, params: float | None) -> float | None:
    """Top-1 in percent for each million parameters.

    Source:
        first study, report, section 4.2.1 and table 1.
    """
    return None if top1 is None or not params else 100 * top1 / (params / 1e6)


def compute_efficiency(top1: float | None, macs: float | None) -> float | None:
    """Top-1 in percent for each million multiply-accumulates of one image.

    Source:
        first study, slides: "percent per MFLOP", where a FLOP is a multiply-accumulate.
    """
    return None if top1 is None or not macs else 100 * top1 / (macs / 1e6)


def top1_by_seed(arm: Arm) -> dict[int, float]:
    """The accuracy of each seed that has one."""
    return {trial.seed: trial.top1 for trial in arm.trials if trial.top1 is not None}


def difference(baseline: Mapping[int, float], arm: Mapping[int, float]) -> Difference | None:
    """How much better an arm is, from the accuracies of its seeds and of the baseline's.

    Over the seeds that both have: the mean of the differences, plus and minus t with n - 1 degrees
    of freedom times their standard deviation by the root of n. Where fewer than two seeds pair but
    each side has two: the difference of the means with Welch's interval, its degrees of freedom
    rounded down. None where a side has nothing.

    Source:
        Student 1908, Biometrika 6(1), for pairs; Welch 1947, Biometrika 34(1-2).
    """
    pairs = [arm[seed] - baseline[seed] for seed in sorted(baseline.keys() & arm.keys())]
    sides = [list(side.values()) for side in (baseline, arm)]
    fewest = min(map(len, sides))
    if fewest == 0:
        return None
    if len(pairs) < LEAST <= fewest or not pairs:
        return _welch(sides[0], sides[1])
    value = statistics.fmean(pairs)
    if len(pairs) < LEAST:
        return Difference(value, None, None, len(pairs), True)
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    reach = student_quantile(CONFIDENCE, len(pairs) - 1) * error
    return Difference(value, value - reach, value + reach, len(pairs), True)


def _welch(baseline: Sequence[float], arm: Sequence[float]) -> Difference:
    value = statistics.fmean(arm) - statistics.fmean(baseline)
    fewest = min(len(baseline), len(arm))
    if fewest < LEAST:
        return Difference(value, None, None, fewest, False)
    errors = [statistics.variance(side) / len(side) for side in (baseline, arm)]
    reach = 0.0
    if sum(errors) > 0:
        freedom = sum(errors) ** 2 / sum(
            error**2 / (len(side) - 1) for error, side in zip(errors, (baseline, arm), strict=True)
        )
        reach = student_quantile(CONFIDENCE, math.floor(freedom + 1e-9)) * math.sqrt(sum(errors))
    return Difference(value, value - reach, value + reach, fewest, False)


def bounds(trials: Iterable[Trial]) -> str | None:
    """How far the bounded ones of these trainings went; None where all took the whole recipe."""
    listed = list(trials)
    bounded = [trial for trial in listed if trial.is_bounded]
    if not bounded:
        return None
    limits = sorted({trial.max_macs for trial in bounded if trial.max_macs is not None})
    amount = ""
    if limits:
        first = any(trial.pretraining for trial in bounded)
        amount = (
            f", each training{' and each pre-training' if first else ''} to "
            f"{' or '.join(f'{limit / 1e9:,.0f}' for limit in limits)} GMACs or {LEAST_STEPS} "
            "steps, whichever is more"
        )
    rest = len(listed) - len(bounded)
    whole = f"; {rest} of {len(listed)} trainings are whole" if rest else ""
    return f"bounded runs{amount}, not the recipe's full length{whole}"
