"""What a set of timings says: percentiles, and how well its median is known."""

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MEDIAN_TARGET = 0.02  # a median is known once its interval reaches no further than this share
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5% quantile by number of values
EXACT_UP_TO = 1000  # samples; above, the binomial ranks are approximated


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed (nearest rank).

    Raises:
        ValueError: there are no samples, or `share` lies outside (0, 1].
    """
    if not samples or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(samples)} samples")
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def median_interval(
    samples: Sequence[float], rounds: Sequence[int] = ()
) -> tuple[float, float] | None:
    """A 95% confidence interval of the median from order statistics.

    Each sample falls below the true median with probability 1/2, whatever the distribution, so
    the ranks follow from the binomial distribution alone. None below six samples: even their
    whole range covers the median less often than that.

    `rounds` says how many successive samples were taken at a stretch. A machine that is slow for
    a while makes the calls of one round resemble each other, and then they say less than as many
    independent ones: the interval also holds that of the median of the rounds' own medians, each
    of which counts as one observation (Student's t below six of them, order statistics above).
    """
    rank = _lower_rank(len(samples))
    if rank == 0:
        return None
    ordered = sorted(samples)
    low, high = ordered[rank - 1], ordered[-rank]
    if len(rounds) > 1:
        of_rounds = _interval_of_few([statistics.median(x) for x in by_round(samples, rounds)])
        low, high = min(low, of_rounds[0]), max(high, of_rounds[1])
    return low, high


def relative_half_width(samples: Sequence[float], rounds: Sequence[int] = ()) -> float | None:
    """The wider half of the median's 95% interval, as a share of it; None where there is none."""
    interval = median_interval(samples, rounds)
    if interval is None:
        return None
    middle = statistics.median(samples)
    return max(interval[1] - middle, middle - interval[0]) / middle


def is_known(samples: Sequence[float], rounds: Sequence[int] = ()) -> bool:
    """Whether the median is known to within MEDIAN_TARGET."""
    width = relative_half_width(samples, rounds)
    return width is not None and width <= MEDIAN_TARGET


def by_round(samples: Sequence[float], rounds: Sequence[int]) -> Iterator[Sequence[float]]:
    """The samples of each round."""
    start = 0
    for calls in rounds:
        yield samples[start : start + calls]
        start += calls


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long as the reference kernel of the same moments something takes."""

    value: float
    interval: tuple[float, float] | None  # 95%; None below six rounds


def paired(
    samples: Sequence[float],
    rounds: Sequence[int],
    references: Sequence[Sequence[float]],
    *,
    middle: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """Of each round, the `middle` of its samples by that of its references.

    What slows the machine down for a while slows both sides of a pair, so this drifts less than a
    time.
    """
    pairs = zip(by_round(samples, rounds), references, strict=True)
    return [middle(taken) / middle(reference) for taken, reference in pairs]


def ratio_of_rounds(ratios: Sequence[float]) -> Ratio | None:
    """The median of what `paired` gives; each round is one observation. None without rounds."""
    return Ratio(statistics.median(ratios), median_interval(ratios)) if ratios else None


def paired_ratio(
    samples: Sequence[float], rounds: Sequence[int], references: Sequence[Sequence[float]]
) -> Ratio | None:
    """The median over the rounds of their medians by those of their references."""
    return ratio_of_rounds(paired(samples, rounds, references))


def _interval_of_few(values: Sequence[float]) -> tuple[float, float]:
    """A 95% interval of the median of two values or more."""
    interval = median_interval(values)
    if interval is not None:
        return interval
    middle = statistics.median(values)
    reach = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return middle - reach, middle + reach


@functools.lru_cache(maxsize=1024)
def _lower_rank(count: int) -> int:
    """The largest k such that fewer than k of `count` fair coins show heads in at most 1 of 40."""
    if count > EXACT_UP_TO:  # the normal approximation, rounded towards the wider interval
        return int((count - 1.96 * math.sqrt(count)) / 2)
    ways, total, rank = 1, 0, 0  # ways: binomial coefficient of `count` over `rank`
    while 40 * (total + ways) <= 2**count:
        total += ways
        ways = ways * (count - rank) // (rank + 1)
        rank += 1
    return rank
