"""Rows as figures; the same rows give the same bytes."""

import io
from collections.abc import Sequence
from itertools import cycle, product
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

from profiling.roofline import attainable_flops, reached_flops
from profiling.tables import Point, Table, latency_points, pareto_front, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, told apart with any colour vision; markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Styles = dict[str, tuple[str, str]]  # series -> colour and marker
FRONT, TEXT, GRID = "#888888", "#333333", "#E5E5E5"
PANEL_INCHES = (8.0, 4.8)
MOST_NAMES = 24  # of models in a plot of the roof, which would cover each other
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cifar-zoo",  # ids of an SVG are random without one
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def pareto_plot(tables: Sequence[Table]) -> dict[str, bytes] | None:
    """Accuracy against latency with the Pareto front, one panel a table, as PNG and SVG.

    None where no table has a row with both numbers.
    """
    drawn = [table for table in tables if latency_points(table)]
    if not drawn:
        return None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own settings would make another figure
        matplotlib.rcParams.update(STYLE)
        width, height = PANEL_INCHES
        figure = Figure(figsize=(width, height * len(drawn)), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = figure.subplots(len(drawn), squeeze=False)
        styles = _styles(drawn)
        for panel, table in zip(panels[:, 0], drawn, strict=True):
            _draw(panel, table, styles)
        figure.draw_without_rendering()  # fixes the axes, so that labels can be placed
        figure.set_layout_engine("none")
        for panel, table in zip(panels[:, 0], drawn, strict=True):
            _label(panel, latency_points(table), styles, canvas)
        return {kind: _bytes(figure, kind) for kind in ("png", "svg")}


class Height(NamedTuple):
    """A measurement under the roof."""

    model: str
    intensity: float  # FLOPs a byte
    flops: float  # a second
    series: str  # backend, precision and batch


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


def roofline_plot(tables: Sequence[Table]) -> dict[str, bytes] | None:
    """Speed against FLOPs a byte, under the roof, one panel an environment, as PNG and SVG.

    None where no measurement has a roof.
    """
    by_key: dict[str, list[Table]] = {}
    for table in tables:
        if heights(table):
            by_key.setdefault(table.environment.key, []).append(table)
    if not by_key:
        return None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        width, height = PANEL_INCHES
        figure = Figure(figsize=(width, height * len(by_key)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(by_key), squeeze=False)
        for panel, same in zip(panels[:, 0], by_key.values(), strict=True):
            _draw_roof(panel, same)
        return {kind: _bytes(figure, kind) for kind in ("png", "svg")}


def _draw_roof(axes: "Axes", tables: Sequence[Table]) -> None:
    """A roof for each precision that was measured under it; points of all tables."""
    points = [point for table in tables for point in heights(table)]
    roof = tables[0].roof
    assert roof is not None
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = min(p.intensity for p in points) / 2, max(p.intensity for p in points) * 2
    memory = roof.copies[-1][1]
    records = [r for t in tables for row in t.rows for r in row.by_batch.values()]
    for precision, line in zip(sorted({r.precision for r in records}), cycle(("-", "--", ":"))):
        rate = roof.matrix_rate(precision)
        if rate is not None:
            bend = rate / memory
            along = sorted({*ends, min(max(bend, ends[0]), ends[1])})
            allowed = [min(rate, x * memory) / 1e9 for x in along]
            axes.plot(along, allowed, line, color=TEXT, linewidth=1.2, label=f"roof {precision}")
    top = max(roof.matrix_rate(r.precision) or 0.0 for r in records)
    fastest = max(rate for _, rate in roof.copies)
    along = sorted({*ends, min(max(top / fastest, ends[0]), ends[1])})
    cached = [min(top, x * fastest) / 1e9 for x in along]
    axes.plot(along, cached, "-.", color=FRONT, linewidth=1.0, label="with data in the caches")
    styles = zip(COLOURS, MARKERS, strict=True)
    for series, (colour, marker) in zip(sorted({p.series for p in points}), cycle(styles)):
        chosen = [point for point in points if point.series == series]
        axes.scatter(
            [point.intensity for point in chosen],
            [point.flops / 1e9 for point in chosen],
            color=colour,
            marker=marker,
            s=26,
            label=series,
            zorder=2,
        )
    names = {point.model: point for point in sorted(points, key=lambda point: point.flops)}
    for model, best in names.items() if len(names) <= MOST_NAMES else ():
        where = (best.intensity, best.flops / 1e9)
        axes.annotate(
            model, where, (3, 5), textcoords="offset points", fontsize=6, rotation=30, color=TEXT
        )
    axes.set_ylim(
        min(p.flops for p in points) / 2e9, 2 * max(top, *(p.flops for p in points)) / 1e9
    )
    axes.set_xlim(*ends)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOPs for each byte moved (log scale)")
    axes.set_ylabel("GFLOPs a second (log scale)")
    axes.set_title(f"Roof of {place_of(tables[0])}", loc="left", color=TEXT, fontsize=10)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _styles(tables: Sequence[Table]) -> Styles:
    """A colour and a marker for each series, the same in every panel."""
    series = sorted({point.series for table in tables for point in latency_points(table)})
    return dict(zip(series, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))


def _draw(axes: "Axes", table: Table, styles: Styles) -> None:
    points = latency_points(table)
    front = pareto_front(points)
    axes.step(
        [point.cost for point in front],
        [100 * point.accuracy for point in front],
        where="post",
        color=FRONT,
        linewidth=1.2,
        linestyle="--",
        label="Pareto front",
        zorder=1,
    )
    for series in sorted({point.series for point in points}):
        chosen = [point for point in points if point.series == series]
        colour, marker = styles[series]
        axes.scatter(
            [point.cost for point in chosen],
            [100 * point.accuracy for point in chosen],
            color=colour,
            marker=marker,
            s=42,
            label=series,
            zorder=2,
        )
    _limits(axes, points)
    batch = table.batches[0]
    images = "1 image" if batch == 1 else f"{batch} images"
    axes.set_xlabel(f"median latency of {images} in one call, ms (log scale)")
    axes.set_ylabel("test top-1, %")
    axes.set_title(f"{table.dataset} on {place_of(table)}", loc="left", color=TEXT, fontsize=10)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right")


def place_of(table: Table) -> str:
    """The environment of a table in a few words."""
    return place(table.environment)


def _limits(axes: "Axes", points: Sequence[Point]) -> None:
    """Room around the points: a factor on the log axis, at least some percent on the other."""
    costs = [point.cost for point in points]
    shares = [100 * point.accuracy for point in points]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.6, max(costs) * 2.2)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    margin = max(2.0, 0.15 * (max(shares) - min(shares)))
    axes.set_ylim(max(0.0, min(shares) - margin), min(100.0, max(shares) + margin))


def _label(axes: "Axes", points: Sequence[Point], styles: Styles, canvas: FigureCanvasAgg) -> None:
    """Write each point's name beside it, in the first place that is still free."""
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    taken: list[Bbox] = []
    for point in points:
        x, y = axes.transData.transform((point.cost, 100 * point.accuracy))
        taken.append(Bbox.from_extents(x - 4, y - 4, x + 4, y + 4))
    legend = axes.get_legend()
    if legend is not None:
        taken.append(legend.get_window_extent(renderer))
    whole = axes.get_window_extent(renderer)
    for point in points:
        text = axes.annotate(
            point.label,
            (point.cost, 100 * point.accuracy),
            xytext=(7, 0),
            textcoords="offset points",
            color=styles[point.series][0],
            fontsize=8,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # over lines
        )
        # Above or below the point, where the front does not run, then ever further away.
        for step, (side, direction) in product(range(1, 9), ((1, 1), (1, -1), (-1, 1), (-1, -1))):
            text.set_horizontalalignment("left" if side > 0 else "right")
            text.set_position((4 * side, 9 * step * direction))
            box = text.get_window_extent(renderer)
            inside = whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0
            if inside and box.y1 <= whole.y1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent(renderer))


def _bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file without a date or a version inside."""
    file = io.BytesIO()
    blank = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    figure.savefig(file, format=kind, dpi=160, metadata=blank)
    return file.getvalue()
