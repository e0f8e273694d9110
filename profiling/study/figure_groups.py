"""The groups of the first study: its networks' accuracies, sizes and times, and their means."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from profiling.figure_style import COLOURS, FILL, SMALL, WIDTH, Look, grid, log_scale
from profiling.study.data import Arm, Comparison
from profiling.study.derived import mean_of_all, mean_value
from profiling.study.figure_accuracy import is_like_reported
from profiling.study.figure_facts import Heading, heading, places, surveys, top1_of, trained
from profiling.study.figure_sheet import Sheet, point_key, sheets
from zoo.reported import read_table, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, AXIS, KEYS = 0.3, 0.5, 0.2  # inches
MEMBER = Look(COLOURS[0], "o", "none")
REPORTED = Look(COLOURS[6], "D", "none")
MEMBER_NAME, REPORTED_NAME, MEAN_NAME = "one network", "mean, reported", "mean, measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupValues:
    """One group: what its networks have, and their mean where each of them has it."""

    group: str
    members: tuple[float, ...]
    mean: float | None
    reported_mean: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One panel's axis."""

    name: str
    is_log: bool
    groups: tuple[GroupValues, ...]  # those that have it


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPanel:
    """One comparison; `names` holds every group of which anything is known, top to bottom."""

    heading: Heading
    names: tuple[str, ...]
    quantities: tuple[Quantity, ...]


def groups_data(comparisons: Sequence[Comparison]) -> list[GroupPanel]:
    """A panel for each survey in which networks of two groups or more were measured."""
    group_of = {row["model"]: row["group"] for row in read_table("table1_models.csv")}
    panels = []
    for comparison in surveys(comparisons):
        by_group: dict[str, list[Arm]] = {group: [] for group in group_of.values()}
        for arm in comparison.arms:
            group = group_of.get(arm.trials[0].model) if arm.trials else None
            if group is not None and top1_of(arm) is not None:
                by_group[group].append(arm)
        known = {group: arms for group, arms in by_group.items() if arms}
        if len(known) < 2:
            continue
        reports_top1 = is_like_reported(comparison)
        found = [
            _quantity("test top-1, %", known, _percent, "group_mean_top1" if reports_top1 else ""),
            _quantity("trainable parameters, M", known, _params, "group_mean_params"),
            _quantity("MACs of one image, M", known, _macs, "group_mean_flops"),
        ]
        if len(places(trained(comparison))) == 1:  # times of several machines are no mean
            found.append(_quantity("training, minutes", known, _minutes, ""))
        panels.append(
            GroupPanel(
                heading=heading(comparison, comparisons, part=", by group"),
                names=tuple(known),
                quantities=tuple(quantity for quantity in found if quantity.groups),
            )
        )
    return panels


def _quantity(
    name: str,
    groups: Mapping[str, Sequence[Arm]],
    value: Callable[[Arm], float | None],
    reported: str,
) -> Quantity:
    rows = []
    for group, arms in groups.items():
        amounts = [value(arm) for arm in arms]
        members = [known for known in amounts if known is not None]
        if members:
            published = [one.value for one in values(group) if one.what == reported]
            rows.append(
                GroupValues(
                    group=group,
                    members=tuple(members),
                    mean=mean_of_all(amounts),
                    reported_mean=published[0] if published else None,
                )
            )
    return Quantity(name=name, is_log=not name.endswith("%"), groups=tuple(rows))


def _percent(arm: Arm) -> float | None:
    top1 = top1_of(arm)
    return None if top1 is None else 100 * top1.value


def _params(arm: Arm) -> float | None:
    return next((t.params / 1e6 for t in arm.trials if t.params is not None), None)


def _macs(arm: Arm) -> float | None:
    return next((t.macs / 1e6 for t in arm.trials if t.macs is not None), None)


def _minutes(arm: Arm) -> float | None:
    seconds = mean_value(trial.train_seconds for trial in arm.trials)
    return None if seconds is None else seconds / 60


# Drawing ------------------------------------------------------------------------------------


def draw_groups(panels: Sequence[GroupPanel]) -> Iterator[Figure]:
    """The panels on sheets."""
    return sheets(panels, _height, _draw)


def _height(panel: GroupPanel) -> float:
    return ROW * len(panel.names) + AXIS + KEYS


def _draw(sheet: Sheet, panel: GroupPanel, top: float) -> None:
    left, height = 0.95, ROW * len(panel.names)
    width = (WIDTH - left - 0.15) / len(panel.quantities)
    for column, quantity in enumerate(panel.quantities):
        axes = sheet.axes(left + column * width, top, width - 0.18, height)
        rows = [panel.names.index(one.group) for one in quantity.groups]
        low = min(min(one.members) for one in quantity.groups)
        high = max(max(*one.members, one.reported_mean or 0.0) for one in quantity.groups)
        if quantity.is_log:
            low = min(low, *(one.reported_mean or low for one in quantity.groups))
            log_scale(axes, "x", low / 2, high * 2)
        else:
            axes.set_xlim(0, high * 1.1)
        whole = [
            row for row, one in zip(rows, quantity.groups, strict=True) if one.mean is not None
        ]
        means = [one.mean for one in quantity.groups if one.mean is not None]
        if not quantity.is_log:  # the length of a bar means nothing on a logarithmic axis
            axes.barh(whole, means, height=0.66, color=FILL, zorder=1)
        axes.vlines(
            means,
            [row - 0.33 for row in whole],
            [row + 0.33 for row in whole],
            color=COLOURS[0],
            linewidth=2.0,
            zorder=2,
        )
        points = [
            (v, row - 0.12)
            for row, one in zip(rows, quantity.groups, strict=True)
            for v in one.members
        ]
        _dots(axes, points, MEMBER, size=2.8)
        published = [
            (one.reported_mean, row + 0.2)
            for row, one in zip(rows, quantity.groups, strict=True)
            if one.reported_mean is not None
        ]
        _dots(axes, published, REPORTED, size=4.2)
        axes.set_ylim(len(panel.names) - 0.5, -0.5)
        axes.set_yticks(range(len(panel.names)), panel.names if column == 0 else [])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(quantity.name, fontsize=SMALL)
        grid(axes, "x")
    keys = [
        Line2D(
            [],
            [],
            color=COLOURS[0],
            marker="|",
            markersize=7,
            markeredgewidth=2,
            linestyle="none",
            label=MEAN_NAME,
        ),
        point_key(MEMBER_NAME, MEMBER),
        point_key(REPORTED_NAME, REPORTED, filled=False),
    ]
    sheet.legend(keys, left, top + height + AXIS - 0.04, WIDTH - left)


def _dots(axes: "Axes", points: Sequence[tuple[float, float]], look: Look, *, size: float) -> None:
    if points:
        axes.plot(
            *zip(*points, strict=True),
            linestyle="none",
            marker=look.marker,
            markersize=size,
            color=look.colour,
            markerfacecolor="none" if look is REPORTED else look.colour,
            zorder=3,
        )
