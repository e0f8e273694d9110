"""The published tables as they were printed: rows of text, and which numbers a text stands for.

Beside them lies what the zoo knows of its variants without any measurement: their counts, and which
names belong to one network.
"""

import functools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from zoo.reported import TABLE_1, read_table

TABLE_1_FILE = "table1_models.csv"
SECOND_FILE = "second_report_models.csv"
ABLATIONS_FILE = "ablations.csv"
VALUES_FILE = "other_values.csv"
EARNERS_FILE = "earned_by.csv"
COUNTS_FILE = "our_counts.csv"
CATALOGUE = "the zoo's catalogue"  # in place of a file


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure where it is printed."""

    table: str  # a file of zoo/reported, or CATALOGUE
    line: int | None  # of the file, whose heading is line 1
    row: str  # what the figure is about
    column: str
    value: str  # as printed
    source: str  # the publication


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table."""

    table: str
    line: int
    name: str  # the variant or group that it is about
    source: str
    texts: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.texts[column]

    def cell(self, column: str) -> Cell:
        """One of its figures; of a table of values, with what kind of figure it is."""
        kind = self.texts.get("what")
        return Cell(
            table=self.table,
            line=self.line,
            row=self.name if kind is None else f"{self.name}, {kind}",
            column=column,
            value=self.texts[column],
            source=self.source,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What one image costs in a variant of the zoo; counted, not published."""

    params: int
    macs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """All tables, and what the zoo knows of the variants in them."""

    models: Sequence[Row] = ()  # table 1 of the first study
    second: Sequence[Row] = ()  # the tables of the second
    ablations: Sequence[Row] = ()  # of both
    values: Sequence[Row] = ()
    earners: Sequence[Row] = ()
    counts: Mapping[str, Counts]
    same: Sequence[tuple[str, ...]] = ()  # names of one network, for each that has several


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers that a text can stand for."""

    low: Decimal
    high: Decimal

    def meets(self, other: "Interval") -> bool:
        """Whether both can be the same number."""
        return self.low <= other.high and other.low <= self.high

    def __truediv__(self, other: "Interval") -> "Interval":
        return Interval(self.low / other.high, self.high / other.low)

    def __contains__(self, value: Decimal) -> bool:
        return self.low <= value <= self.high


def printed(text: str) -> Interval:
    """What is rounded to this text: half a unit of its last digit to either side."""
    value = Decimal(text)
    half = Decimal(5).scaleb(int(value.as_tuple().exponent) - 1)
    return Interval(value - half, value + half)


def mean(intervals: Sequence[Interval]) -> Interval:
    """What the mean of numbers can be."""
    lows, highs = ([i.low for i in intervals], [i.high for i in intervals])
    return Interval(statistics.mean(lows), statistics.mean(highs))


@functools.cache
def read_published() -> Published:
    """The tables of `zoo.reported`, and our counts of the variants in them."""

    def rows(table: str, name: str, source: str | None) -> tuple[Row, ...]:
        return tuple(
            Row(
                table=table,
                line=line,
                name=texts[name],
                source=texts["source"] if source is None else source,
                texts=texts,
            )
            for line, texts in enumerate(read_table(table), start=2)
        )

    ours = read_table(COUNTS_FILE)
    same: dict[str, list[str]] = defaultdict(list)
    for row in ours:
        same[row["same_as"] or row["model"]].append(row["model"])
    return Published(
        models=rows(TABLE_1_FILE, "model", TABLE_1),
        second=rows(SECOND_FILE, "registry_name", "second report"),
        ablations=rows(ABLATIONS_FILE, "registry_name", None),
        values=rows(VALUES_FILE, "model", None),
        earners=rows(EARNERS_FILE, "model", None),
        counts={
            row["model"]: Counts(params=int(row["params"]), macs=int(row["macs"])) for row in ours
        },
        same=tuple(tuple(names) for names in same.values() if len(names) > 1),
    )
