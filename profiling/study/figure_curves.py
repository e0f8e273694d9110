"""Loss and accuracy during training, their end enlarged."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from profiling.figure_style import GRID, SMALL, WIDTH, Look, grid, looks
from profiling.study.data import Arm, Comparison, Epoch
from profiling.study.figure_facts import Heading, heading, top1_of
from profiling.study.figure_sheet import Sheet, legend_height, line_key, sheets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 7  # that can be told apart in one panel
LAST = 5  # the enlarged end is so manieth a part of the training
LEAST_EPOCHS = 15  # shorter trainings have no end worth enlarging
MOST_DRAWN = 75  # epochs of a whole training; its end has all of them
PANEL, AXIS = 1.5, 0.4  # inches
LEFT = 0.54  # inches of ticks and words at the left of axes
HELD_OUT, TRAINING = "validation top-1, %", "training top-1, %"


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Means over the seeds of one arm, and their standard deviations where there are several."""

    label: str
    epochs: tuple[int, ...]
    loss: tuple[float, ...]
    loss_sd: tuple[float, ...]  # empty of a single seed
    top1: tuple[float, ...]
    top1_sd: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePanel:
    """One comparison: as many of its arms as can be told apart."""

    heading: Heading
    accuracy: str  # HELD_OUT, or TRAINING where any of them held nothing out
    curves: tuple[Curve, ...]
    end: int | None  # first epoch of the enlarged end


def curves_data(comparisons: Sequence[Comparison]) -> list[CurvePanel]:
    """A panel for each comparison with a curve, surveys first."""
    panels = []
    for comparison in sorted(comparisons, key=lambda one: one.baseline is not None):
        arms = [arm for arm in comparison.arms if _lines(arm)]
        if not arms:
            continue
        shown = _shown(arms)
        some = f", the {len(shown)} most accurate of {len(arms)}" if len(shown) < len(arms) else ""
        lines = [line for arm in shown for seed in _lines(arm) for line in seed]
        accuracy = TRAINING if any(line.val_top1 is None for line in lines) else HELD_OUT
        last = max(line.epoch for line in lines)
        panels.append(
            CurvePanel(
                heading=heading(comparison, comparisons, part=some),
                accuracy=accuracy,
                curves=tuple(_curve(arm, accuracy) for arm in shown),
                end=last - last // LAST if last >= LEAST_EPOCHS else None,
            )
        )
    return panels


def _lines(arm: Arm) -> list[tuple[Epoch, ...]]:
    return [trial.curve for trial in arm.trials if trial.curve]


def _shown(arms: Sequence[Arm]) -> list[Arm]:
    """The most accurate, in the order of the comparison; those without an accuracy come last."""

    def rank(arm: Arm) -> float:
        top1 = top1_of(arm)
        return 1.0 if top1 is None else -top1.value

    best = {id(arm) for arm in sorted(arms, key=rank)[:MOST_CURVES]}
    return [arm for arm in arms if id(arm) in best]


def _curve(arm: Arm, accuracy: str) -> Curve:
    """As far as every seed came."""
    seeds = [{line.epoch: line for line in curve} for curve in _lines(arm)]
    common = sorted(set.intersection(*(set(seed) for seed in seeds)))

    def of(epoch: int, value: Callable[[Epoch], float]) -> list[float]:
        return [value(seed[epoch]) for seed in seeds]

    def loss(line: Epoch) -> float:
        return line.train_loss

    def top1(line: Epoch) -> float:
        return line.train_top1 if accuracy == TRAINING else line.val_top1 or 0.0

    several = common if len(seeds) > 1 else []
    return Curve(
        label=arm.label,
        epochs=tuple(common),
        loss=tuple(statistics.fmean(of(epoch, loss)) for epoch in common),
        loss_sd=tuple(_sd(of(epoch, loss)) for epoch in several),
        top1=tuple(statistics.fmean(of(epoch, top1)) for epoch in common),
        top1_sd=tuple(_sd(of(epoch, top1)) for epoch in several),
    )


def _sd(values: Sequence[float]) -> float:
    """As statistics.stdev, whose exact fractions take ten times as long for so many epochs."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


# Drawing ------------------------------------------------------------------------------------


def draw_curves(panels: Sequence[CurvePanel]) -> Iterator[Figure]:
    """The panels on sheets."""
    return sheets(panels, _height, _draw)


def _height(panel: CurvePanel) -> float:
    return PANEL + AXIS + legend_height([curve.label for curve in panel.curves], WIDTH - 0.6)


def _draw(sheet: Sheet, panel: CurvePanel, top: float) -> None:
    styles = looks(curve.label for curve in panel.curves)
    percent = [tuple(100 * share for share in curve.top1) for curve in panel.curves]
    percent_sd = [tuple(100 * share for share in curve.top1_sd) for curve in panel.curves]
    sides = (
        ("training loss", [c.loss for c in panel.curves], [c.loss_sd for c in panel.curves]),
        (panel.accuracy, percent, percent_sd),
    )
    for side, (name, values, sds) in enumerate(sides):
        lines = [_Line(*line) for line in zip(panel.curves, values, sds, strict=True)]
        left = LEFT + side * (WIDTH / 2)
        width = 1.65 if panel.end is not None else 2.78
        axes = sheet.axes(left, top, width, PANEL)
        _whole(axes, lines, styles)
        axes.set_ylabel(name, fontsize=SMALL)
        if panel.end is not None:
            axes.axvspan(panel.end, axes.get_xlim()[1], color=GRID, linewidth=0, zorder=0)
            end = sheet.axes(left + width + 0.38, top, 0.78, PANEL)
            _end(end, lines, styles, panel.end)
    keys = [line_key(curve.label, styles[curve.label]) for curve in panel.curves]
    sheet.legend(keys, LEFT, top + PANEL + AXIS - 0.04, WIDTH - 0.6)


class _Line(NamedTuple):
    curve: Curve
    values: tuple[float, ...]
    sds: tuple[float, ...]


def _whole(axes: "Axes", lines: Sequence[_Line], styles: dict[str, Look]) -> None:
    """Means alone, of no more epochs than can be seen."""
    for number, (curve, values, _) in enumerate(lines):
        look = styles[curve.label]
        step = -(-len(curve.epochs) // MOST_DRAWN)
        kept = [*range(0, len(curve.epochs) - 1, step), len(curve.epochs) - 1]
        every = max(1, len(kept) // 6)
        axes.plot(
            [curve.epochs[index] for index in kept],
            [values[index] for index in kept],
            color=look.colour,
            linestyle=look.line,
            linewidth=1.0,
            marker=look.marker,
            markersize=3.0,
            markevery=(number * every // MOST_CURVES, every),
        )
    _finish(axes, "epoch", 4)


def _end(axes: "Axes", lines: Sequence[_Line], styles: dict[str, Look], first: int) -> None:
    """Means of the last epochs, with bands of one standard deviation."""
    for curve, values, sds in lines:
        look = styles[curve.label]
        start = sum(epoch < first for epoch in curve.epochs)
        if start == len(curve.epochs):
            continue
        epochs, shown = curve.epochs[start:], values[start:]
        axes.plot(
            epochs,
            shown,
            color=look.colour,
            linestyle=look.line,
            linewidth=1.0,
            marker=look.marker,
            markersize=3.0,
            markevery=[len(shown) - 1],
        )
        if sds:
            axes.fill_between(
                epochs,
                [value - sd for value, sd in zip(shown, sds[start:], strict=True)],
                [value + sd for value, sd in zip(shown, sds[start:], strict=True)],
                color=look.colour,
                alpha=0.12,
                linewidth=0,
            )
    axes.set_facecolor("#F6F6F6")
    _finish(axes, "end, enlarged", 3)


def _finish(axes: "Axes", name: str, ticks: int) -> None:
    axes.set_xlabel(name, fontsize=SMALL, labelpad=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelsize=SMALL, length=2, pad=1.5)
    grid(axes)
