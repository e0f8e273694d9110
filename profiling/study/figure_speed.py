"""Times: images a second against the batch, and how single calls are spread, for each runtime."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from profiling.figure_style import SMALL, WIDTH, Look, grid, log_scale, looks
from profiling.samples import percentile
from profiling.study.data import Comparison
from profiling.study.figure_facts import (
    Heading,
    Timed,
    batches_of,
    heading,
    timed,
    timed_comparisons,
)
from profiling.study.figure_sheet import (
    Sheet,
    chunks,
    legend_height,
    line_key,
    part_name,
    point_key,
    sheets,
    shortened,
    widest,
)
from zoo.text import counted

COLUMNS, MOST_CELLS = 4, 24  # small panels side by side, and on a sheet
MOST_TICKS = 5  # batches that are named one by one
CELL, NAME, AXIS = 1.18, 0.17, 0.45  # inches
BOX, BETWEEN, MOST_BOXES = 0.085, 0.07, 72
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the calls: whiskers, box and median


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """One network with one runtime: (batch, images a second), by batch."""

    label: str
    runtime: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPanel:
    """One comparison on one machine."""

    heading: Heading
    lines: tuple[Scaling, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """The calls of one network with one runtime: their times in ms at SHARES, and their number."""

    label: str
    runtime: str
    batch: int
    at_shares_ms: tuple[float, ...]
    calls: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CallsPanel:
    """One comparison on one machine, at its smallest and its largest batch."""

    heading: Heading
    batches: tuple[int, ...]
    boxes: tuple[Calls, ...]


def scaling_data(comparisons: Sequence[Comparison]) -> list[ScalingPanel]:
    """A panel for each comparison and machine where a file was timed at two batches or more."""
    panels = []
    for comparison in timed_comparisons(comparisons):
        for machine, ran in timed(comparison.arms):
            lines = [line for one in ran if len((line := _scaling(one)).points) > 1]
            parts = chunks(list(dict.fromkeys(line.label for line in lines)), MOST_CELLS)
            for index, part in enumerate(parts):
                name = part_name(index, len(parts))
                words = heading(comparison, comparisons, timed_on=machine, part=name)
                shown = tuple(line for line in lines if line.label in part)
                panels.append(ScalingPanel(heading=words, lines=shown))
    return panels


def _scaling(one: Timed) -> Scaling:
    points = [
        (batch, 1e3 * batch / p50_ms)
        for batch in sorted(one.batches)
        if (p50_ms := one.p50_ms(batch)) is not None
    ]
    return Scaling(label=one.arm, runtime=one.runtime, points=tuple(points))


def calls_data(comparisons: Sequence[Comparison]) -> list[CallsPanel]:
    """A panel for each comparison and machine."""
    panels = []
    for comparison in timed_comparisons(comparisons):
        for machine, ran in timed(comparison.arms):
            batches = batches_of(ran)
            boxes = [_calls(one, batch) for batch in batches for one in ran if one.records(batch)]
            runtimes = len({box.runtime for box in boxes})
            labels = list(dict.fromkeys(box.label for box in boxes))
            parts = chunks(labels, max(1, MOST_BOXES // max(1, runtimes)))
            for index, part in enumerate(parts):
                name = part_name(index, len(parts))
                words = heading(comparison, comparisons, timed_on=machine, part=name)
                shown = tuple(box for box in boxes if box.label in part)
                panels.append(CallsPanel(heading=words, batches=batches, boxes=shown))
    return panels


def _calls(one: Timed, batch: int) -> Calls:
    """Of all seeds together."""
    samples = sorted(ms for record in one.records(batch) for ms in record.samples_ms)
    return Calls(
        label=one.arm,
        runtime=one.runtime,
        batch=batch,
        at_shares_ms=tuple(percentile(samples, share) for share in SHARES),
        calls=len(samples),
    )


# Drawing: batch scaling ---------------------------------------------------------------------


def draw_scaling(panels: Sequence[ScalingPanel]) -> Iterator[Figure]:
    """The panels on sheets, a small one for each network; all of a panel share their axes."""
    styles = looks(line.runtime for panel in panels for line in panel.lines)

    def draw(sheet: Sheet, panel: ScalingPanel, top: float) -> None:
        _draw_scaling(sheet, panel, top, styles)

    return sheets(panels, _scaling_height, draw)


def _scaling_height(panel: ScalingPanel) -> float:
    rows = -(-len({line.label for line in panel.lines}) // COLUMNS)
    keys = legend_height(sorted({line.runtime for line in panel.lines}), WIDTH - 0.7)
    return rows * (CELL + NAME) + AXIS + keys


def _draw_scaling(sheet: Sheet, panel: ScalingPanel, top: float, styles: dict[str, Look]) -> None:
    labels = list(dict.fromkeys(line.label for line in panel.lines))
    ticks = sorted({batch for line in panel.lines for batch, _ in line.points})
    rates = [rate for line in panel.lines for _, rate in line.points]
    width = (WIDTH - 0.65) / COLUMNS
    rows = -(-len(labels) // COLUMNS)
    for place, label in enumerate(labels):
        row, column = divmod(place, COLUMNS)
        cell_top = top + row * (CELL + NAME)
        axes = sheet.axes(0.55 + column * width, cell_top + NAME, width - 0.12, CELL - 0.08)
        log_scale(axes, "x", ticks[0] / 1.4, ticks[-1] * 1.4)
        log_scale(axes, "y", min(rates) / 1.6, max(rates) * 1.6)
        grid(axes)
        for line in panel.lines:
            if line.label == label:
                look = styles[line.runtime]
                axes.plot(
                    *zip(*line.points, strict=True),
                    color=look.colour,
                    marker=look.marker,
                    linestyle=look.line,
                    linewidth=1.0,
                    markersize=3.5,
                )
        sheet.write(
            shortened(label, width - 0.14, SMALL),
            0.57 + column * width,
            cell_top + 0.1,
            size=SMALL,
        )
        if column:
            axes.tick_params(axis="y", labelleft=False)
        else:
            axes.set_ylabel("images/s", fontsize=SMALL, labelpad=1.0)
        is_lowest = place + COLUMNS >= len(labels)
        if len(ticks) <= MOST_TICKS:
            axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.tick_params(axis="both", labelsize=SMALL, pad=1.5, length=2)
        axes.tick_params(axis="x", labelbottom=is_lowest)
    below = top + rows * (CELL + NAME)
    sheet.write("images in one call (log scale)", 0.55, below + 0.21, size=SMALL)
    runtimes = sorted({line.runtime for line in panel.lines})
    keys = [line_key(runtime, styles[runtime]) for runtime in runtimes]
    sheet.legend(keys, 0.55, below + AXIS - 0.08, WIDTH - 0.7)


# Drawing: latency distributions -------------------------------------------------------------


def draw_calls(panels: Sequence[CallsPanel]) -> Iterator[Figure]:
    """The panels on sheets: a box for each runtime of a network."""
    styles = looks(box.runtime for panel in panels for box in panel.boxes)

    def draw(sheet: Sheet, panel: CallsPanel, top: float) -> None:
        _draw_calls(sheet, panel, top, styles)

    return sheets(panels, _calls_height, draw)


def _positions(panel: CallsPanel) -> tuple[dict[tuple[str, str], float], dict[str, float], float]:
    """Inches from the top to each box and to each name, and to the end."""
    boxes: dict[tuple[str, str], float] = {}
    names: dict[str, float] = {}
    reached = BETWEEN / 2
    for label in dict.fromkeys(box.label for box in panel.boxes):
        runtimes = sorted({box.runtime for box in panel.boxes if box.label == label})
        size = max(0.15, BOX * len(runtimes))  # no less than a line of text
        names[label] = reached + size / 2
        for number, runtime in enumerate(runtimes):
            boxes[label, runtime] = reached + size * (number + 0.5) / len(runtimes)
        reached += size + BETWEEN
    return boxes, names, reached - BETWEEN / 2


def _calls_height(panel: CallsPanel) -> float:
    keys = legend_height(sorted({box.runtime for box in panel.boxes}), WIDTH - 0.7)
    return _positions(panel)[2] + AXIS + keys


def _draw_calls(sheet: Sheet, panel: CallsPanel, top: float, styles: dict[str, Look]) -> None:
    at, names, height = _positions(panel)
    left = min(2.2, widest(list(names)) + 0.2)
    width = (WIDTH - left - 0.1) / len(panel.batches)
    for column, batch in enumerate(panel.batches):
        boxes = [box for box in panel.boxes if box.batch == batch]
        axes = sheet.axes(left + column * width, top, width - 0.15, height)
        least = min(box.at_shares_ms[0] for box in boxes)
        most = max(box.at_shares_ms[-1] for box in boxes)
        log_scale(axes, "x", least / 1.3, most * 1.3)
        axes.set_ylim(height, 0)
        for runtime in sorted({box.runtime for box in boxes}):
            look = styles[runtime]
            own = [box for box in boxes if box.runtime == runtime]
            rows = [at[box.label, runtime] for box in own]
            low, start, middle, end, high = zip(*(box.at_shares_ms for box in own), strict=True)
            axes.hlines(rows, low, high, color=look.colour, linewidth=0.8, zorder=2)
            axes.barh(
                rows,
                [stop - first for first, stop in zip(start, end, strict=True)],
                left=start,
                height=BOX * 0.72,
                facecolor="white",
                edgecolor=look.colour,
                linewidth=0.8,
                zorder=3,
            )
            axes.plot(
                middle,
                rows,
                linestyle="none",
                marker=look.marker,
                markersize=BOX * 72 * 0.6,
                color=look.colour,
                zorder=4,
            )
        labels = [shortened(name, left - 0.15) for name in names]
        axes.set_yticks(list(names.values()), labels if column == 0 else [])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"ms for {counted(batch, 'image')} (log scale)", fontsize=SMALL)
        grid(axes, "x")
    runtimes = sorted({box.runtime for box in panel.boxes})
    keys = [point_key(runtime, styles[runtime]) for runtime in runtimes]
    sheet.legend(keys, 0.55, top + height + AXIS - 0.04, WIDTH - 0.7)
