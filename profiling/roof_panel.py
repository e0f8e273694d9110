"""Measurements under the roof of their device: what is drawn, and the drawing of one panel."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from profiling.figure_labels import Label, place_labels
from profiling.figure_style import (
    FRONT,
    LINES,
    TEXT,
    Look,
    grid,
    log_scale,
)
from profiling.roofline import Roof, attainable_flops, reached_flops
from profiling.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MOST_NAMES = 30  # of models in a panel, which would cover each other
CACHED = "with data in the caches"


class Height(NamedTuple):
    """A measurement under the roof."""

    model: str
    intensity: float  # FLOPs a byte
    flops: float  # a second
    series: str  # backend, precision and batch


class RoofLine(NamedTuple):
    """A roof as a line."""

    name: str
    points: tuple[tuple[float, float], ...]  # FLOPs a byte, FLOPs a second


@dataclass(frozen=True, kw_only=True, slots=True)
class UnderRoof:
    """One device: its roofs, and what was measured under them."""

    lines: tuple[RoofLine, ...]  # one for each precision, then that of the caches
    heights: tuple[Height, ...]


def heights(table: Table) -> list[Height]:
    """Every measurement of which it is known what the table's roof allows it."""
    found = []
    for row in table.rows:
        for batch, record in row.by_batch.items():
            reached = reached_flops(record)
            if attainable_flops(record, table.roof) and record.intensity and reached:
                series = f"{record.backend} {record.precision} b{batch}"
                found.append(Height(record.model, record.intensity, reached, series))
    return found


def under_roof(roof: Roof, measured: Sequence[Height], precisions: Iterable[str]) -> UnderRoof:
    """The roof as far as the measurements reach, for the precisions that were measured."""
    ends = min(p.intensity for p in measured) / 2, max(p.intensity for p in measured) * 2
    rates = {name: rate for name in precisions if (rate := roof.matrix_rate(name)) is not None}
    memory, cache = roof.copies[-1][1], max(rate for _, rate in roof.copies)
    lines = [_line(f"roof {name}", rate, memory, ends) for name, rate in sorted(rates.items())]
    lines.append(_line(CACHED, max(rates.values()), cache, ends))
    return UnderRoof(lines=tuple(lines), heights=tuple(measured))


def _line(name: str, rate: float, bandwidth: float, ends: tuple[float, float]) -> RoofLine:
    bend = min(max(rate / bandwidth, ends[0]), ends[1])
    along = sorted({*ends, bend})
    return RoofLine(name, tuple((x, min(rate, x * bandwidth)) for x in along))


def draw_roof(axes: "Axes", panel: UnderRoof, styles: Mapping[str, Look]) -> "list[Line2D]":
    """Draw into axes whose place is final; the handles of the legend, which is not drawn."""
    points, roofs = panel.heights, panel.lines
    highest = max(flops for line in roofs for _, flops in line.points)
    lowest = min(point.flops for point in points)
    most = max(highest, *(point.flops for point in points))
    log_scale(axes, "x", roofs[0].points[0][0], roofs[0].points[-1][0])
    log_scale(axes, "y", lowest / 2e9, most * 2 / 1e9)
    grid(axes)
    handles = []
    for number, line in enumerate(roofs):
        is_cached = line.name == CACHED
        handles += axes.plot(
            [x for x, _ in line.points],
            [flops / 1e9 for _, flops in line.points],
            linestyle="-." if is_cached else LINES[number % 2],
            color=FRONT if is_cached else TEXT,
            linewidth=1.0 if is_cached else 1.2,
            label=line.name,
        )
    for series in sorted({point.series for point in points}):
        chosen = [point for point in points if point.series == series]
        handles += axes.plot(
            [point.intensity for point in chosen],
            [point.flops / 1e9 for point in chosen],
            linestyle="none",
            color=styles[series].colour,
            marker=styles[series].marker,
            markersize=4.0,
            label=series,
        )
    highest_of = {p.model: p for p in sorted(points, key=lambda p: (p.flops, p.series))}
    named = highest_of.values() if len(highest_of) <= MOST_NAMES else ()
    place_labels(
        axes,
        [Label(p.model, p.intensity, p.flops / 1e9) for p in named],
        [(p.intensity, p.flops / 1e9) for p in points],
        lines=[[(x, flops / 1e9) for x, flops in line.points] for line in roofs],
    )
    axes.set_xlabel("FLOPs for each byte moved (log scale)")
    axes.set_ylabel("GFLOPs a second (log scale)")
    return handles
