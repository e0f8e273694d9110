"""Panels on sheets of paper: placed in inches, a new sheet where one is full."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from profiling.figure_style import (
    LARGE,
    NORMAL,
    QUIET,
    SMALL,
    TEXT,
    WIDTH,
    Look,
    new_figure,
    text_width,
)
from profiling.study.figure_facts import Heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TALLEST = 9.8  # inches: an A4 page less its margins and a caption
TITLE, LINE, GAP = 0.24, 0.14, 0.12  # inches: of a title, of a line of notes, below a panel
LETTERS = 118  # in a line of notes


class HasHeading(Protocol):
    """A panel of any figure."""

    @property
    def heading(self) -> Heading:
        """What stands over it."""


Panel = TypeVar("Panel", bound=HasHeading)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A figure whose parts are placed in inches from its upper left corner."""

    figure: Figure
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """New axes of that size."""
        low = 1 - (top + height) / self.height
        axes: Axes = self.figure.add_axes((left / WIDTH, low, width / WIDTH, height / self.height))
        return axes

    def write(
        self, text: str, left: float, top: float, *, size: float = NORMAL, colour: str = TEXT
    ) -> None:
        """A line of text that begins there, its middle at that height."""
        weight = "bold" if size >= LARGE else "normal"
        self.figure.text(
            left / WIDTH,
            1 - top / self.height,
            text,
            fontsize=size,
            color=colour,
            weight=weight,
            va="center_baseline",
        )

    def legend(self, handles: Sequence[Artist], left: float, top: float, width: float) -> None:
        """Keys of a panel in as few lines as `width` allows, with their upper left corner there."""
        labels = [str(handle.get_label()) for handle in handles]
        columns, _ = _legend_shape(labels, width)
        self.figure.legend(
            handles=handles,
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=(left / WIDTH, 1 - top / self.height),
            fontsize=SMALL,
            borderaxespad=0.0,
            borderpad=0.0,
            labelspacing=0.35,
            columnspacing=1.4,
            handlelength=2.2,
            handletextpad=0.5,
        )


def sheets(
    panels: Sequence[Panel],
    height: Callable[[Panel], float],
    draw: Callable[[Sheet, Panel, float], None],
    *,
    foot: Sequence[Artist] = (),
) -> Iterator[Figure]:
    """Figures that hold the panels in their order; `draw` gets the top of a panel's own space.

    Notes stand over the first of successive panels that share them; `foot` is the key below the
    last panel of each figure.
    """
    page: list[tuple[Panel, list[str]]] = []
    used, last = 0.0, None
    for panel in panels:
        notes = _wrapped(panel.heading) if panel.heading.notes != last else []
        needed = _head(notes) + height(panel) + GAP
        if page and used + needed > TALLEST:
            yield _sheet(page, used, height, draw, foot)
            page, used, notes = [], 0.0, _wrapped(panel.heading)
            needed = _head(notes) + height(panel) + GAP
        page.append((panel, notes))
        used += needed
        last = panel.heading.notes
    if page:
        yield _sheet(page, used, height, draw, foot)


def _sheet(
    page: Sequence[tuple[Panel, list[str]]],
    used: float,
    height: Callable[[Panel], float],
    draw: Callable[[Sheet, Panel, float], None],
    foot: Sequence[Artist],
) -> Figure:
    full = used + (LINE + GAP if foot else 0.0)
    sheet = Sheet(new_figure(full), full)
    top = 0.06
    for panel, notes in page:
        sheet.write(panel.heading.title, 0.1, top + TITLE / 3, size=LARGE)
        for line, note in enumerate(notes):
            sheet.write(note, 0.1, top + TITLE + line * LINE + 0.01, size=SMALL, colour=QUIET)
        draw(sheet, panel, top + _head(notes))
        top += _head(notes) + height(panel) + GAP
    if foot:
        sheet.legend(foot, 0.1, top, WIDTH - 0.2)
    return sheet.figure


def _head(notes: Sequence[str]) -> float:
    return TITLE + LINE * len(notes)


def _wrapped(heading: Heading) -> list[str]:
    return [line for note in heading.notes for line in textwrap.wrap(note, LETTERS)]


def chunks(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    """As few parts as hold at most so many, of nearly equal length."""
    parts = -(-len(items) // most)
    size = -(-len(items) // max(1, parts)) or 1
    return [items[start : start + size] for start in range(0, len(items), size)]


def part_name(index: int, parts: int) -> str:
    """What tells parts of one panel apart; empty where there is one."""
    return f", part {index + 1} of {parts}" if parts > 1 else ""


def widest(texts: Sequence[str], size: float = NORMAL) -> float:
    """Inches that the longest of these lines takes."""
    return max((text_width(text, size) for text in texts), default=0.0) / 72


def shortened(text: str, inches: float, size: float = NORMAL) -> str:
    """The text, or as much of its beginning as fits."""
    if widest([text], size) <= inches:
        return text
    kept = text
    while kept and widest([kept + "..."], size) > inches:
        kept = kept[:-1]
    return kept + "..."


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches of `Sheet.legend`."""
    return _legend_shape(labels, width)[1]


def _legend_shape(labels: Sequence[str], width: float) -> tuple[int, float]:
    columns = max(1, min(len(labels), int(width / (widest(labels, SMALL) + 0.5))))
    return columns, LINE * -(-len(labels) // columns)


def point_key(label: str, look: Look, *, filled: bool = True) -> Line2D:
    """A marker in a legend."""
    face = look.colour if filled else "none"
    return Line2D(
        [],
        [],
        color=look.colour,
        marker=look.marker,
        markerfacecolor=face,
        markersize=4.5,
        linestyle="none",
        label=label,
    )


def line_key(label: str, look: Look) -> Line2D:
    """A line with its marker in a legend."""
    return Line2D(
        [],
        [],
        color=look.colour,
        marker=look.marker,
        markersize=3.5,
        linestyle=look.line,
        linewidth=1.1,
        label=label,
    )
