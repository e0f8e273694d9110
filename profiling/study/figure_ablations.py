"""Ablation bars: what each arm gives over its baseline, with a 95% interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from profiling.figure_style import COLOURS, QUIET, SMALL, TEXT, WIDTH, grid
from profiling.study.data import Arm, Comparison
from profiling.study.derived import Difference, Mean, difference, top1_by_seed
from profiling.study.figure_facts import Heading, heading, top1_of
from profiling.study.figure_sheet import Sheet, sheets, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, AXIS, QUESTION = 0.21, 0.26, 0.17  # inches
NAMES, WORDS = 2.0, 1.95  # inches: of the arms' names at most, of the numbers at the right
CLEAR: dict[str, Any] = {"facecolor": "#5B9BC8", "edgecolor": COLOURS[0]}
UNCLEAR: dict[str, Any] = {"facecolor": "#E3EEF5", "edgecolor": COLOURS[0]}
UNKNOWN: dict[str, Any] = {"facecolor": "white", "edgecolor": COLOURS[0], "hatch": "/////"}
KINDS = (
    ("interval without 0", CLEAR),
    ("interval with 0", UNCLEAR),
    ("one seed: no interval", UNKNOWN),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmRow:
    """One arm less the baseline, in shares of 1."""

    label: str
    difference: Difference | None  # None: not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationPanel:
    """One question."""

    heading: Heading
    question: str | None
    baseline: str
    baseline_top1: Mean
    rows: tuple[ArmRow, ...]


def ablations_data(comparisons: Sequence[Comparison]) -> list[AblationPanel]:
    """A panel for each comparison with a baseline of which a difference is known."""
    panels = []
    for comparison in comparisons:
        by_label = {arm.label: arm for arm in comparison.arms}
        baseline = by_label.get(comparison.baseline or "")
        top1 = None if baseline is None else top1_of(baseline)
        if baseline is None or top1 is None:
            continue
        rows = tuple(_row(baseline, arm) for arm in comparison.arms if arm is not baseline)
        if any(row.difference for row in rows):
            panels.append(
                AblationPanel(
                    heading=heading(comparison, comparisons),
                    question=comparison.question,
                    baseline=baseline.label,
                    baseline_top1=top1,
                    rows=rows,
                )
            )
    return panels


def _row(baseline: Arm, arm: Arm) -> ArmRow:
    return ArmRow(label=arm.label, difference=difference(top1_by_seed(baseline), top1_by_seed(arm)))


# Drawing ------------------------------------------------------------------------------------


def draw_ablations(panels: Sequence[AblationPanel]) -> Iterator[Figure]:
    """The panels on sheets, with their key below the last of a sheet."""
    return sheets(
        panels,
        _height,
        _draw,
        foot=[Patch(linewidth=0.6, label=name, **look) for name, look in KINDS],
    )


def _height(panel: AblationPanel) -> float:
    return QUESTION + ROW * (1 + len(panel.rows)) + AXIS


def _draw(sheet: Sheet, panel: AblationPanel, top: float) -> None:
    names = [panel.baseline, *(row.label for row in panel.rows)]
    at_right = WIDTH - WORDS + 0.12
    if panel.question:
        sheet.write(panel.question, 0.1, top + 0.05, size=SMALL)
    sheet.write("points of top-1 [95% interval]", at_right, top + 0.05, size=SMALL, colour=QUIET)
    top += QUESTION
    axes = sheet.axes(NAMES, top, WIDTH - NAMES - WORDS, ROW * len(names))
    sheet.write(_percent(panel.baseline_top1), at_right, top + ROW / 2, size=SMALL)
    known = [(n, row.difference) for n, row in enumerate(panel.rows, start=1) if row.difference]
    for row, one in known:
        sheet.write(_words(one), at_right, top + ROW * (row + 0.5), size=SMALL)
    _bars(axes, known)
    axes.axvline(0, color=TEXT, linewidth=0.8)
    axes.plot(0, 0, marker="o", markersize=3.5, color=TEXT)
    reach = max(abs(number) for number in axes.get_xlim())
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [shortened(name, NAMES - 0.1) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", pad=1.5, length=2, labelsize=SMALL)
    axes.spines["left"].set_visible(False)
    grid(axes, "x")


def _bars(axes: "Axes", known: Sequence[tuple[int, Difference]]) -> None:
    for kind in KINDS:
        own = [(row, 100 * one.value) for row, one in known if _kind(one) is kind]
        if own:
            rows, values = zip(*own, strict=True)
            axes.barh(rows, values, height=0.62, linewidth=0.6, **kind[1])
    intervals = [
        (row, 100 * one.value, 100 * (one.value - one.low), 100 * (one.high - one.value))
        for row, one in known
        if one.low is not None and one.high is not None
    ]
    if intervals:
        rows, values, below, above = zip(*intervals, strict=True)
        axes.errorbar(
            values,
            rows,
            xerr=(below, above),
            fmt="none",
            ecolor=TEXT,
            elinewidth=0.9,
            capsize=2.0,
            capthick=0.9,
        )


def _kind(known: Difference) -> tuple[str, dict[str, Any]]:
    if known.low is None or known.high is None:
        return KINDS[2]
    return KINDS[1] if known.low <= 0 <= known.high else KINDS[0]


def _percent(top1: Mean) -> str:
    """As in: at 67.24 +- 0.27%, 3 seeds."""
    sd = "" if top1.sd is None else f" \N{PLUS-MINUS SIGN} {100 * top1.sd:.2f}"
    return f"at {100 * top1.value:.2f}{sd}%, {_many(top1.n, 'seed')}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _words(known: Difference) -> str:
    """As in: +1.20 [+0.31, +2.09], 3 pairs."""
    interval = ""
    if known.low is not None and known.high is not None:
        interval = f" [{_points(known.low)}, {_points(known.high)}]"
    many = _many(known.n, "pair" if known.is_paired else "seed")
    return f"{_points(known.value)}{interval}, {many}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}".replace("-", "\N{MINUS SIGN}")
