"""Rows as figures; the same rows give the same bytes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from profiling.figure_labels import Label, place_labels
from profiling.figure_style import (
    FRONT,
    LARGE,
    TEXT,
    Look,
    around,
    drawing,
    files,
    grid,
    log_scale,
    looks,
    new_figure,
)
from profiling.roof_panel import draw_roof, heights, under_roof
from profiling.tables import Table, latency_points, pareto_front, place
from zoo.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = 4.2
MOST_NAMES = 30  # rows of a panel that are all named; of more, only those on the front


def pareto_plot(tables: Sequence[Table]) -> dict[str, bytes] | None:
    """Accuracy against latency with the Pareto front, one panel a table, as PNG and SVG.

    None where no table has a row with both numbers.
    """
    drawn = [table for table in tables if latency_points(table)]
    if not drawn:
        return None
    with drawing():
        figure = new_figure(PANEL_INCHES * len(drawn), layout="constrained")
        panels = figure.subplots(len(drawn), squeeze=False)
        styles = looks(point.series for table in drawn for point in latency_points(table))
        for panel, table in zip(panels[:, 0], drawn, strict=True):
            _draw(panel, table, styles)
        figure.draw_without_rendering()  # fixes the axes, so that labels can be placed
        figure.set_layout_engine("none")
        for panel, table in zip(panels[:, 0], drawn, strict=True):
            _label(panel, table, styles)
        return files(figure)


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
    with drawing():
        figure = new_figure(PANEL_INCHES * len(by_key))
        panels = figure.subplots(len(by_key), squeeze=False)
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=0.08, right=0.73, top=1 - 0.3 / height, bottom=0.5 / height, hspace=0.25
        )
        measured = [
            height for same in by_key.values() for table in same for height in heights(table)
        ]
        styles = looks(point.series for point in measured)
        for panel, same in zip(panels[:, 0], by_key.values(), strict=True):
            roof = same[0].roof
            assert roof is not None  # what has heights has a roof
            records = (r for t in same for row in t.rows for r in row.by_batch.values())
            points = [point for table in same for point in heights(table)]
            shown = under_roof(roof, points, sorted({record.precision for record in records}))
            handles = draw_roof(panel, shown, styles)
            panel.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
            panel.set_title(f"Roof of {place_of(same[0])}", loc="left", color=TEXT, fontsize=LARGE)
        return files(figure)


def place_of(table: Table) -> str:
    """The environment of a table in a few words."""
    return place(table.environment)


def _draw(axes: "Axes", table: Table, styles: dict[str, Look]) -> None:
    points = latency_points(table)
    costs = [point.cost for point in points]
    log_scale(axes, "x", min(costs) / 1.6, max(costs) * 2.2)
    low, high = around([100 * point.accuracy for point in points], share=0.15, least=2.0)
    axes.set_ylim(max(0.0, low), min(100.0, high))
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
        axes.plot(
            [point.cost for point in chosen],
            [100 * point.accuracy for point in chosen],
            color=styles[series].colour,
            marker=styles[series].marker,
            linestyle="none",
            label=series,
            zorder=2,
        )
    batch = table.batches[0]
    axes.set_xlabel(f"median latency of {counted(batch, 'image')} in one call, ms (log scale)")
    axes.set_ylabel("test top-1, %")
    axes.set_title(f"{table.dataset} on {place_of(table)}", loc="left", color=TEXT, fontsize=LARGE)
    grid(axes)
    axes.legend(loc="lower right")


def _label(axes: "Axes", table: Table, styles: dict[str, Look]) -> None:
    """The name of every row beside its point; of many, of those on the front."""
    points = latency_points(table)
    named = points if len(points) <= MOST_NAMES else pareto_front(points)
    legend = axes.get_legend()
    figure = axes.get_figure(root=True)
    assert legend is not None
    assert figure is not None
    place_labels(
        axes,
        [Label(p.label, p.cost, 100 * p.accuracy, styles[p.series].colour) for p in named],
        [(point.cost, 100 * point.accuracy) for point in points],
        avoid=[legend.get_window_extent().extents],
    )
