"""A table of a study: typed columns over raw values, whatever it is written as."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiling.study.derived import Difference, Mean
from profiling.tables import millions, number, percent
from zoo.reported import REPORTED as NO_DOUBT

REPORTED, MEASURED, COMPUTED = "reported", "measured", "computed"  # where a column comes from


@dataclass(frozen=True, slots=True)
class Kind:
    """What a raw value is, and how it is printed."""

    name: str
    unit: str  # of the raw value
    shown: str  # of the printed one
    text: Callable[[Any], str]


def _exact(value: float) -> str:
    """Every digit that a source gave."""
    return f"{value:,.10f}".rstrip("0").rstrip(".")


TEXT = Kind("text", "", "", str)
COUNT = Kind("count", "", "", lambda value: f"{value:,}")
SHARE = Kind("share", "fraction", "%", percent)
POINTS = Kind("points", "fraction", "points", lambda value: f"{100 * value:+.2f}")
MILLIONS = Kind("millions", "", "M", millions)
EXACT_MILLIONS = Kind("exact_millions", "millions", "M", _exact)
EXACT_HOURS = Kind("exact_hours", "h", "h", _exact)
NUMBER = Kind("number", "", "", number)
SECONDS = Kind("seconds", "s", "s", number)
MILLISECONDS = Kind("milliseconds", "ms", "ms", number)
RATE = Kind("rate", "images/s", "images/s", number)
MIB = Kind("mib", "MiB", "MiB", number)
BYTES = Kind("bytes", "bytes", "MiB", lambda value: number(value / 2**20))


@dataclass(frozen=True, slots=True)
class Stated:
    """A published value with what is known of it: one of zoo.reported.STATES, or more words."""

    value: float
    state: str


@dataclass(frozen=True, slots=True)
class Median:
    """A median time with the wider half of its 95% confidence interval, as a share of it."""

    value: float
    half_width: float | None  # None: too few calls to tell


# What a cell may hold beside a plain value: suffixes of its parts in a CSV.
PARTS: dict[type, tuple[tuple[str, str], ...]] = {
    Mean: (("", "value"), ("_sd", "sd"), ("_n", "n")),
    Median: (("", "value"), ("_ci_half_width", "half_width")),
    Stated: (("", "value"), ("_state", "state")),
    Difference: (
        *(("", "value"), ("_low", "low"), ("_high", "high")),
        *(("_n", "n"), ("_is_paired", "is_paired")),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column: its values are plain, or of the class `holds`."""

    key: str  # with the unit of the raw values, where they have one
    heading: str  # without the unit
    kind: Kind = TEXT
    source: str = MEASURED
    holds: type | None = None  # one of PARTS
    part: str = ""  # the name of a part of a wide table; "" is in every part

    @property
    def title(self) -> str:
        """The heading with the unit of what is printed."""
        return " ".join(filter(None, (self.heading, self.kind.shown)))

    @property
    def is_text(self) -> bool:
        """Whether it holds words."""
        return self.kind is TEXT and self.holds is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of one data set, and where times were measured, of one environment."""

    name: str  # safe in a path
    title: str
    dataset: str
    place: str = ""  # empty where nothing was timed
    notes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = field(default=())  # column key -> value; absent: empty

    def parts(self) -> list[tuple[str, list[Column]]]:
        """What is printed side by side; parts without any value are left out."""
        common = [column for column in self.columns if not column.part]
        names = list(dict.fromkeys(column.part for column in self.columns if column.part))
        found = []
        for name in names or [""]:
            own = [column for column in self.columns if column.part == name and name]
            if not own or any(
                row.get(column.key) is not None for row in self.rows for column in own
            ):
                found.append((name, [*common, *own]))
        return found or [("", common)]


def shown(column: Column, value: Any) -> str:
    """A cell as text: "61.23 +-0.45 (3)", "2.70 +-1.4%", "97.50 (doubtful)", or empty."""
    text = column.kind.text
    match value:
        case None:
            return ""
        case Mean():
            spread = "" if value.sd is None else f" +-{_plain(column, value.sd)}"
            return f"{text(value.value)}{spread} ({value.n})"
        case Median():
            known = "" if value.half_width is None else f" +-{percent(value.half_width, 1)}%"
            return f"{text(value.value)}{known}"
        case Stated():
            doubt = "" if value.state == NO_DOUBT else f" ({value.state})"
            return f"{text(value.value)}{doubt}"
        case Difference():
            if value.low is None:
                return text(value.value)
            star = "" if value.is_paired else " unpaired"
            return f"{text(value.value)} [{text(value.low)}, {text(value.high)}]{star}"
        case _:
            return text(value)


def _plain(column: Column, value: float) -> str:
    return percent(value) if column.kind is SHARE else column.kind.text(value)


def grid(table: Table, columns: Sequence[Column]) -> list[list[str]]:
    """The printed cells of these columns, header first."""
    header = [column.title for column in columns]
    rows = [[shown(column, row.get(column.key)) for column in columns] for row in table.rows]
    return [header, *rows]
