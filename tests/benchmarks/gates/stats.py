"""Whether a hot path became slower: an exact test of paired ratios, and Holm's correction.

Sources:
    Wilcoxon 1945, Biometrics Bulletin 1(6), signed ranks; Hodges and Lehmann 1963, Annals of
    Mathematical Statistics 34(2), the median of the means of all pairs as the estimate that belongs
    to that test; Holm 1979, Scandinavian Journal of Statistics 6(2), for many tests at once.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

SIGNIFICANCE = 0.05  # chance of a false alarm of all tests together, where nothing changed


def log_ratios(
    base: Sequence[Sequence[float]], change: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """For each pair of processes, the logarithm of change over base: the median over its blocks.

    The sides take blocks in turns, and a core changes its speed from one moment to the next: the
    two blocks of a turn mostly share one, the fastest of either side need not.
    """
    return tuple(
        statistics.median(math.log(b / a) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(base, change, strict=True)
    )


def ratio(logs: Sequence[float]) -> float:
    """The Hodges-Lehmann estimate, as a ratio."""
    means = [(one + other) / 2 for one, other in combinations_with_replacement(logs, 2)]
    return math.exp(statistics.median(means))


def p_slower(logs: Sequence[float]) -> float:
    """The chance of signed ranks as large as these where neither side is slower.

    Exact for any number of pairs; of tied ones the ranks are taken as they are ordered by value,
    and zeros count against a slowdown.
    """
    ordered = sorted(logs, key=lambda value: (abs(value), value))
    found = sum(rank for rank, value in enumerate(ordered, start=1) if value > 0)
    ways = [1]  # by sum of ranks: how many of the 2**n choices of signs give it
    for rank in range(1, len(logs) + 1):
        longer = ways + [0] * rank
        for total, count in enumerate(ways):
            longer[total + rank] += count
        ways = longer
    return sum(ways[found:]) / 2 ** len(logs)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: each is significant where it lies below the significance of all."""
    adjusted, largest = {}, 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for place, (name, p) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - place)))
        adjusted[name] = largest
    return adjusted


def least_pairs(tests: int) -> int:
    """How many pairs it takes until one slowdown among `tests` can be significant at all."""
    return math.ceil(math.log2(tests / SIGNIFICANCE))
