"""What a rule about published figures is, and how it words what it finds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from profiling.study.published import Cell, Interval, Published, Row

Found = tuple[str, Sequence[Cell]]  # a sentence, and the cells that it is about

TOP1, TOP5, BEST = "top1_percent", "top5_percent", "best_percent"
VALUE = "value"  # of other_values.csv
PARAMS, MACS, HOURS = "params_m", "macs_m", "train_hours_8xv100_300ep"


@dataclass(frozen=True, slots=True)
class Rule:
    """What must not be. It looks at rows alone and knows no model by its name."""

    name: str
    means: str  # why not, in a sentence or two
    find: Callable[[Published], Iterator[Found]]
    doubts: tuple[str, ...] = ()  # columns whose figures a finding makes doubtful on their own


def differ(intervals: Sequence[Interval]) -> bool:
    """Whether two of them cannot be the same number."""
    return bool(intervals) and max(i.low for i in intervals) > min(i.high for i in intervals)


def publication(row: Row) -> str:
    """Which study: all that one study states comes from one recipe, unless it says otherwise."""
    return row.source.split()[0]


def all_names(network: str, published: Published) -> str:
    """All names of a network, joined."""
    return next((" = ".join(names) for names in published.same if network in names), network)


def named(rows: Sequence[Row]) -> str:
    """What the rows are about."""
    return listed(list(dict.fromkeys(row.name for row in rows)))


def listed(names: Sequence[str]) -> str:
    """Names as part of a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
