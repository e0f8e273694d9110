"""Accuracy against what it costs: parameters, MACs, and latency on each machine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from profiling.figure_labels import Label, place_labels
from profiling.figure_style import (
    FRONT,
    WIDTH,
    Look,
    around,
    grid,
    log_scale,
    looks,
)
from profiling.study.data import Comparison, Trial
from profiling.study.derived import Mean
from profiling.study.figure_facts import (
    Heading,
    batches_of,
    heading,
    surveys,
    timed,
    top1_of,
)
from profiling.study.figure_sheet import Sheet, legend_height, point_key, sheets
from profiling.tables import Point, pareto_front
from zoo.text import counted

PANEL, AXIS = 3.55, 0.48  # inches: of the axes, and of what stands below
MOST_NAMES = 30  # points of a panel that are all named; of more, only those on the front
MEASURED, FRONT_NAME = "mean over the seeds", "Pareto front"


@dataclass(frozen=True, kw_only=True, slots=True)
class CostPoint:
    """A network, or one file of it on one runtime."""

    label: str
    series: str
    cost: float
    top1: Mean
    is_named: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CostPanel:
    """One comparison; times of one machine."""

    heading: Heading
    cost: str  # what the axis says
    points: tuple[CostPoint, ...]
    front: tuple[tuple[float, float], ...]  # cost and accuracy, cheapest first


def parameters_data(comparisons: Sequence[Comparison]) -> list[CostPanel]:
    """Accuracy against trainable parameters."""
    return _counted(comparisons, "trainable parameters", lambda trial: trial.params)


def macs_data(comparisons: Sequence[Comparison]) -> list[CostPanel]:
    """Accuracy against multiply-accumulates."""
    return _counted(comparisons, "MACs of one image", lambda trial: trial.macs)


def _counted(
    comparisons: Sequence[Comparison], cost: str, count: Callable[[Trial], int | None]
) -> list[CostPanel]:
    panels = []
    for comparison in surveys(comparisons):
        points = []
        for arm in comparison.arms:
            top1 = top1_of(arm)
            known = [n for trial in arm.trials if (n := count(trial)) is not None]
            if top1 is not None and known:
                points.append((arm.label, MEASURED, float(known[0]), top1))
        if points:
            panels.append(_panel(heading(comparison, comparisons), cost, points))
    return panels


def latency_data(comparisons: Sequence[Comparison]) -> list[CostPanel]:
    """Accuracy of each file against its own latency at the smallest batch."""
    panels = []
    for comparison in surveys(comparisons):
        for machine, ran in timed(comparison.arms):
            batch = batches_of(ran)[0]
            points = []
            for one in ran:
                top1, cost = one.top1(batch), one.p50_ms(batch)
                if top1 is not None and cost is not None:
                    points.append((one.arm, one.runtime, cost, top1))
            if points:
                words = heading(comparison, comparisons, timed_on=machine)
                what = f"median latency of {counted(batch, 'image')} in one call, ms"
                panels.append(_panel(words, what, points))
    return panels


def _panel(words: Heading, cost: str, points: Sequence[tuple[str, str, float, Mean]]) -> CostPanel:
    front = pareto_front(
        Point(label, amount, top1.value, series) for label, series, amount, top1 in points
    )
    on_front = {(point.label, point.series) for point in front}
    cheapest: dict[str, tuple[float, str]] = {}
    for label, series, amount, _ in points:
        cheapest[label] = min(cheapest.get(label, (amount, series)), (amount, series))
    # Of a network's several files, that which nothing beats has the name, else its fastest.
    is_crowded = len(cheapest) > MOST_NAMES
    fronted = {label for label, _ in on_front}
    made = [
        CostPoint(
            label=label,
            series=series,
            cost=amount,
            top1=top1,
            is_named=(label, series) in on_front
            or not is_crowded
            and label not in fronted
            and cheapest[label] == (amount, series),
        )
        for label, series, amount, top1 in points
    ]
    return CostPanel(
        heading=words,
        cost=cost,
        points=tuple(made),
        front=tuple((point.cost, point.accuracy) for point in front),
    )


# Drawing ------------------------------------------------------------------------------------


def draw_costs(panels: Sequence[CostPanel]) -> Iterator[Figure]:
    """The panels on sheets; a runtime looks the same in each."""
    styles = looks(point.series for panel in panels for point in panel.points)

    def height(panel: CostPanel) -> float:
        return PANEL + AXIS + legend_height(_keys(panel), WIDTH - 0.8)

    def draw(sheet: Sheet, panel: CostPanel, top: float) -> None:
        _draw(sheet, panel, top, styles)

    return sheets(panels, height, draw)


def _keys(panel: CostPanel) -> list[str]:
    return [*sorted({point.series for point in panel.points}), FRONT_NAME]


def _steps(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the front as it is drawn."""
    corners = [(end, low) for (_, low), (end, _) in pairwise(front)]
    return [corner for pair in zip_longest(front, corners) for corner in pair if corner]


def _error_bars(panel: CostPanel) -> list[list[tuple[float, float]]]:
    return [
        [(one.cost, 100 * (one.top1.value + side * one.top1.sd)) for side in (-1, 1)]
        for one in panel.points
        if one.top1.sd is not None
    ]


def _draw(sheet: Sheet, panel: CostPanel, top: float, styles: dict[str, Look]) -> None:
    axes = sheet.axes(0.55, top, WIDTH - 0.7, PANEL)
    costs = [point.cost for point in panel.points]
    log_scale(axes, "x", min(costs) / 1.5, max(costs) * 1.9)
    reach = [100 * (p.top1.value + s * (p.top1.sd or 0.0)) for p in panel.points for s in (-1, 1)]
    low, high = around(reach, share=0.08, least=0.2)
    axes.set_ylim(max(0.0, low), min(100.0, high))
    grid(axes)
    front = [(cost, 100 * share) for cost, share in panel.front]
    front.append((axes.get_xlim()[1], front[-1][1]))
    axes.step(*zip(*front, strict=True), where="post", color=FRONT, linewidth=1.0, linestyle="--")
    for series in sorted({point.series for point in panel.points}):
        chosen = [point for point in panel.points if point.series == series]
        look = styles[series]
        axes.errorbar(
            [point.cost for point in chosen],
            [100 * point.top1.value for point in chosen],
            yerr=[100 * (point.top1.sd or 0.0) for point in chosen],
            fmt=look.marker,
            color=look.colour,
            markersize=4.5,
            elinewidth=0.6,
            zorder=2,
        )
    place_labels(
        axes,
        [
            Label(point.label, point.cost, 100 * point.top1.value)
            for point in panel.points
            if point.is_named
        ],
        [(point.cost, 100 * point.top1.value) for point in panel.points],
        lines=[_steps(front), *_error_bars(panel)],
    )
    axes.set_xlabel(f"{panel.cost} (log scale)")
    axes.set_ylabel("test top-1, %")
    keys: list[Any] = [
        point_key(series, styles[series])
        for series in sorted({point.series for point in panel.points})
    ]
    keys.append(Line2D([], [], color=FRONT, linewidth=1.0, linestyle="--", label=FRONT_NAME))
    sheet.legend(keys, 0.6, top + PANEL + AXIS - 0.04, WIDTH - 0.8)
