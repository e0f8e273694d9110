"""Accuracy bars: what was measured with its spread over seeds, and beside it what is reported."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from profiling.figure_style import COLOURS, FILL, SMALL, TEXT, WIDTH, Look, grid
from profiling.study.data import Arm, Comparison
from profiling.study.derived import Mean
from profiling.study.figure_facts import Heading, heading, surveys, top1_of, trained
from profiling.study.figure_sheet import (
    Sheet,
    chunks,
    legend_height,
    part_name,
    point_key,
    sheets,
    shortened,
    widest,
)
from profiling.study.second_study import reported_of
from zoo.reported import (
    DOUBTFUL,
    OTHER_NETWORK,
    REPORTED,
    SIMULATED,
    STATES,
    headline,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FULL_DATASET = "cifar100"  # on which the reported accuracies were reached
ROW, AXIS, MOST_ROWS = 0.2, 0.42, 42  # inches of a bar and of the axis below; rows of a panel
INK = COLOURS[6]
STATE_LOOKS = {
    state: Look(INK, marker, "none")
    for state, marker in zip(
        (REPORTED, SIMULATED, DOUBTFUL, OTHER_NETWORK), ("o", "^", "D", "s"), strict=True
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A published accuracy."""

    top1: float
    state: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One network."""

    label: str
    top1: Mean | None  # None: not measured
    reported: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BarPanel:
    """One comparison, the best network first.

    Accuracies of bounded runs, or of other images than the studies', have an axis of their own.
    """

    heading: Heading
    shares_axis: bool
    bars: tuple[Bar, ...]


def accuracy_data(comparisons: Sequence[Comparison]) -> list[BarPanel]:
    """A panel for each survey of which anything was measured."""
    panels = []
    for comparison in surveys(comparisons):
        bars = [_bar(comparison, arm) for arm in comparison.arms]
        if not any(bar.top1 for bar in bars):
            continue
        bars.sort(key=lambda bar: (-bar.top1.value if bar.top1 else 1.0, bar.label))
        parts = chunks(bars, MOST_ROWS)
        panels += [
            BarPanel(
                heading=heading(comparison, comparisons, part=part_name(index, len(parts))),
                shares_axis=is_like_reported(comparison),
                bars=tuple(part),
            )
            for index, part in enumerate(parts)
        ]
    return panels


def _bar(comparison: Comparison, arm: Arm) -> Bar:
    # What the study in question says of a network; elsewhere its one best known figure.
    is_second = comparison.name == "second-study"
    row = reported_of(arm) if is_second else headline(arm.trials[0].model)
    marks: tuple[Mark, ...] = ()
    if row is not None and row.shown_top1 is not None:
        marks = (Mark(top1=row.shown_top1, state=row.top1_state, source=row.source),)
    return Bar(label=arm.label, top1=top1_of(arm), reported=marks)


def is_like_reported(comparison: Comparison) -> bool:
    """Whether accuracies may share an axis with reported ones: whole trainings, all images."""
    trials = trained(comparison)
    return comparison.dataset == FULL_DATASET and not any(trial.is_bounded for trial in trials)


# Drawing ------------------------------------------------------------------------------------


def draw_accuracy(panels: Sequence[BarPanel]) -> Iterator[Figure]:
    """The panels on sheets."""
    return sheets(panels, _height, _draw)


def _height(panel: BarPanel) -> float:
    keys = legend_height([_state_name(state) for state in _states(panel)], WIDTH - 0.3)
    return ROW * len(panel.bars) + AXIS + keys


def _states(panel: BarPanel) -> list[str]:
    met = {mark.state for bar in panel.bars for mark in bar.reported}
    return [state for state in STATES if state in met]


def _state_name(state: str) -> str:
    return "reported" if state == REPORTED else f"reported: {state}"


def _draw(sheet: Sheet, panel: BarPanel, top: float) -> None:
    height = ROW * len(panel.bars)
    left = min(2.6, widest([bar.label for bar in panel.bars]) + 0.25)
    values = 0.95  # inches for the numbers at the right
    width = WIDTH - left - values - 0.1
    has_own_axis = bool(_states(panel)) and not panel.shares_axis
    share = 0.6 if has_own_axis else 1.0
    axes = sheet.axes(left, top, width * share - (0.1 if has_own_axis else 0.0), height)
    _draw_bars(axes, panel, left)
    beside = axes
    if has_own_axis:
        beside = sheet.axes(left + width * share + 0.1, top, width * (1 - share) - 0.1, height)
        beside.set_ylim(axes.get_ylim())
        beside.set_yticks([])
        beside.set_xlabel("reported top-1, %", fontsize=SMALL)
        grid(beside, "x")
    for state in _states(panel):
        points = [
            (100 * mark.top1, row)
            for row, bar in enumerate(panel.bars)
            for mark in bar.reported
            if mark.state == state
        ]
        beside.plot(
            *zip(*points, strict=True),
            linestyle="none",
            marker=STATE_LOOKS[state].marker,
            markersize=4.5,
            color=INK,
            markerfacecolor="none",
            markeredgewidth=0.9,
            zorder=3,
        )
    for row, bar in enumerate(panel.bars):
        words = _words(bar.top1)
        sheet.write(words, WIDTH - values, top + ROW * (row + 0.5), size=SMALL)
    keys = [point_key(_state_name(s), STATE_LOOKS[s], filled=False) for s in _states(panel)]
    if keys:
        sheet.legend(keys, left, top + height + AXIS - 0.02, WIDTH - left - 0.1)


def _draw_bars(axes: "Axes", panel: BarPanel, left: float) -> None:
    rows = [row for row, bar in enumerate(panel.bars) if bar.top1]
    spreads = [bar.top1 for bar in panel.bars if bar.top1]
    axes.barh(
        rows,
        [100 * s.value for s in spreads],
        height=0.66,
        color=FILL,
        edgecolor=COLOURS[0],
        linewidth=0.6,
        zorder=1,
    )
    known = [(row, s) for row, s in zip(rows, spreads, strict=True) if s.sd is not None]
    if known:
        axes.errorbar(
            [100 * s.value for _, s in known],
            [row for row, _ in known],
            xerr=[100 * (s.sd or 0.0) for _, s in known],
            fmt="none",
            ecolor=TEXT,
            elinewidth=0.9,
            capsize=2.0,
            capthick=0.9,
            zorder=2,
        )
    reach = max(100 * (s.value + (s.sd or 0.0)) for s in spreads)
    if panel.shares_axis:
        reach = max(reach, *(100 * m.top1 for bar in panel.bars for m in bar.reported), 0.0)
    axes.set_xlim(0, reach * 1.05)
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    axes.set_yticks(range(len(panel.bars)), [shortened(b.label, left - 0.2) for b in panel.bars])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("test top-1, %: mean and sd over the seeds", fontsize=SMALL)
    grid(axes, "x")


def _words(top1: Mean | None) -> str:
    if top1 is None:
        return ""
    sd = "" if top1.sd is None else f" \N{PLUS-MINUS SIGN} {100 * top1.sd:.2f}"
    return f"{100 * top1.value:.2f}{sd} ({top1.n})"
