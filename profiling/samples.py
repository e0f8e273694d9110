"""What a set of timings says: percentiles, and how well its median is known."""

import functools
import math
import statistics
from collections.abc import Sequence

MEDIAN_TARGET = 0.02  # a median is known once its interval reaches no further than this share
EXACT_UP_TO = 1000  # samples; above, the binomial ranks are approximated


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed (nearest rank).

    Raises:
        ValueError: there are no samples, or `share` lies outside (0, 1].
    """
    if not samples or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(samples)} samples")
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """A 95% confidence interval of the median from order statistics.

    Each sample falls below the true median with probability 1/2, whatever the distribution, so
    the ranks follow from the binomial distribution alone. None below six samples: even their
    whole range covers the median less often than that.
    """
    rank = _lower_rank(len(samples))
    if rank == 0:
        return None
    ordered = sorted(samples)
    return ordered[rank - 1], ordered[-rank]


def relative_half_width(samples: Sequence[float]) -> float | None:
    """Half the 95% interval of the median, as a share of the median; None below six samples."""
    interval = median_interval(samples)
    if interval is None:
        return None
    return (interval[1] - interval[0]) / 2 / statistics.median(samples)


def is_known(samples: Sequence[float]) -> bool:
    """Whether the median is known to within MEDIAN_TARGET."""
    width = relative_half_width(samples)
    return width is not None and width <= MEDIAN_TARGET


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
