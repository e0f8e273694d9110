"""The list of all variants: chosen, ordered, and as a table, JSON or CSV.

It prints what the registry promises; nothing is built or counted.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError, nearest
from zoo.text import columns

if TYPE_CHECKING:
    from rich.console import Console

    from zoo.registry import ModelSpec

SORTS = ("name", "params", "macs")
NEAREST = 3  # variants that are named where none fits

LEFT, RIGHT = "left", "right"
# title, side, and whether a cell stays on one line
COLUMNS: tuple[tuple[str, str, bool], ...] = (
    ("name", LEFT, True),
    ("group", LEFT, True),
    ("family", LEFT, True),
    ("parameters", RIGHT, True),
    ("MACs M", RIGHT, True),
    ("own design", LEFT, False),
    ("reported top-1 %", RIGHT, False),
    ("state", LEFT, False),
    ("weights", LEFT, True),
    ("paper", LEFT, False),
)
GAP = 3  # between two columns on a terminal
PAPER_WIDTH = 40  # at least, there
# What a narrow terminal goes without, the first first; a card tells all of it.
OPTIONAL = ("paper", "family", "own design", "weights", "group")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which variants, and in which order; by group and parameters where `sort` is None."""

    groups: tuple[str, ...] = ()  # any of them; empty: all
    families: tuple[str, ...] = ()
    min_params: int | None = None
    max_params: int | None = None
    sort: str | None = None  # one of SORTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the list. Accuracies are fractions in [0, 1], and not ours."""

    name: str
    group: str
    family: str
    params: int
    macs: int
    flops: int
    own_design: bool
    reported_top1: float | None
    reported_top1_is_best: bool | None  # of all epochs; None where nothing was published
    reported_state: str | None
    reported_earned_by: str | None  # the variant that earned it, where it is another one
    reported_source: str | None
    has_weights: bool  # inside the package
    paper: str


def select(specs: Iterable["ModelSpec"], choice: Choice) -> list["ModelSpec"]:
    """The variants of a choice, in its order.

    Raises:
        ZooError: a group or family is unknown, the bounds exclude each other, or no variant fits.
    """
    from zoo.registry import GROUPS

    listed = list(specs)
    for word, wanted, known in (
        ("group", choice.groups, GROUPS),
        ("family", choice.families, {spec.family for spec in listed}),
    ):
        for name in wanted:
            if name not in known:
                raise ZooError(f"no {word} named {name!r}: {nearest(name, known)}")
    least, most = choice.min_params or 0, _most(choice)
    if least > most:
        raise ZooError(f"--min-params {least:,} is above --max-params {most:,}: nothing can fit")
    found = [spec for spec in listed if not any(_misses(spec, choice))]
    if not found:
        raise ZooError(_nothing_fits(listed, choice))
    orders: dict[str | None, Callable[[ModelSpec], Any]] = {
        None: lambda spec: (GROUPS.index(spec.group), spec.params, spec.name),
        "name": lambda spec: spec.name,
        "params": lambda spec: (spec.params, spec.name),
        "macs": lambda spec: (spec.macs, spec.name),
    }
    return sorted(found, key=orders[choice.sort])


def entries(specs: Iterable["ModelSpec"]) -> list[Entry]:
    """What the list says about each variant."""
    from zoo import pretrained

    shipped = pretrained.available()
    return [_entry(spec, has_weights=spec.name in shipped) for spec in specs]


def to_json(listed: Sequence[Entry]) -> str:
    """The list for programs."""
    return json.dumps([asdict(entry) for entry in listed], indent=1)


def to_csv(listed: Sequence[Entry]) -> str:
    """The list for spreadsheets; absent values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Entry)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(entry) for entry in listed)
    return text.getvalue()


def to_text(listed: Sequence[Entry]) -> str:
    """The list as plain text: a heading and one line for each variant."""
    rows = [[title for title, _, _ in COLUMNS], *map(cells, listed)]
    right = [index for index, (_, side, _) in enumerate(COLUMNS) if side == RIGHT]
    return "\n".join(columns(rows, right=right))


def print_table(listed: Sequence[Entry], console: "Console") -> None:
    """Draw the list on a terminal, without the `OPTIONAL` columns that it has no room for."""
    from rich import box
    from rich.table import Table

    rows = [cells(entry) for entry in listed]
    titles = [title for title, _, _ in COLUMNS]
    kept = list(range(len(COLUMNS)))
    for title in OPTIONAL:
        if sum(_width(rows, index) + GAP for index in kept) <= console.width:
            break
        kept.remove(titles.index(title))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index in kept:
        title, side, is_whole = COLUMNS[index]
        table.add_column(title, justify="right" if side == RIGHT else "left", no_wrap=is_whole)
    for row in rows:
        table.add_row(*(row[index] for index in kept))
    console.print(table)


def cells(entry: Entry) -> list[str]:
    """A line of the table, one text for each of `COLUMNS`."""
    state = entry.reported_state or ""
    return [
        entry.name,
        entry.group,
        entry.family,
        f"{entry.params:,}",
        f"{entry.macs / 1e6:,.1f}",
        "own" if entry.own_design else "",
        percent(entry.reported_top1),
        f"{state}, best epoch" if entry.reported_top1_is_best else state,
        "yes" if entry.has_weights else "",
        entry.paper,
    ]


def percent(share: float | None) -> str:
    """A fraction as percent; nothing where there is none."""
    return "" if share is None else f"{100 * share:.2f}"


def _entry(spec: "ModelSpec", *, has_weights: bool) -> Entry:
    reported = spec.reported
    return Entry(
        name=spec.name,
        group=spec.group,
        family=spec.family,
        params=spec.params,
        macs=spec.macs,
        flops=2 * spec.macs,
        own_design=spec.own_design,
        reported_top1=None if reported is None else reported.shown_top1,
        reported_top1_is_best=None if reported is None else reported.top1 is None,
        reported_state=None if reported is None else reported.top1_state,
        reported_earned_by=None if reported is None else reported.earned_by,
        reported_source=None if reported is None else reported.source,
        has_weights=has_weights,
        paper=spec.paper,
    )


def _most(choice: Choice) -> float:
    return math.inf if choice.max_params is None else choice.max_params


def _misses(spec: "ModelSpec", choice: Choice) -> tuple[bool, bool, bool]:
    """Which of a choice's conditions a variant fails: group, family, number of parameters."""
    return (
        bool(choice.groups) and spec.group not in choice.groups,
        bool(choice.families) and spec.family not in choice.families,
        not (choice.min_params or 0) <= spec.params <= _most(choice),
    )


def _nothing_fits(specs: Sequence["ModelSpec"], choice: Choice) -> str:
    def distance(spec: "ModelSpec") -> tuple[int, float, str]:
        factor = max((choice.min_params or 0) / spec.params, spec.params / max(_most(choice), 1))
        group, family, _ = _misses(spec, choice)
        return group + family, max(factor, 1.0), spec.name

    close = sorted(specs, key=distance)[:NEAREST]
    named = ", ".join(f"{spec.name} ({spec.group}, {spec.params:,} parameters)" for spec in close)
    return f"no variant fits all of these options: the nearest are {named}"


def _width(rows: Sequence[Sequence[str]], index: int) -> int:
    title, _, is_whole = COLUMNS[index]
    texts = (title, *(row[index] for row in rows))
    if is_whole:
        return max(map(len, texts))
    longest = max(len(word) for text in texts for word in text.split())  # wraps between words
    return max(longest, PAPER_WIDTH) if title == "paper" else longest
