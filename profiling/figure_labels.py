"""Names beside points, each at the nearest place where it covers nothing."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiling.figure_style import FRONT, SMALL, TEXT, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Boxes = NDArray[np.float64]  # (n, 4): left, low, right, high, in pixels
MARK = 3.2  # pt: half of what a point takes
DISTANCES = (4.0, 7.0, 11.0, 16.0, 22.0, 30.0, 40.0, 52.0, 66.0)  # pt from a point to its name
NEAR = 8.0  # pt: beyond, a line leads from the name to its point
ANGLES = tuple(math.pi / 8 * step for step in range(1, 17))  # the upper right first
COVERING = 10.0  # what covering costs beside crossing, area for area
LEAD = np.linspace(0.15, 1.0, 12)  # where along that line is looked for what it crosses


class Label(NamedTuple):
    """A name beside a point, in data coordinates."""

    text: str
    x: float
    y: float
    colour: str = TEXT


def place_labels(
    axes: "Axes",
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]],
    *,
    lines: Iterable[Sequence[tuple[float, float]]] = (),
    avoid: Sequence[Sequence[float]] = (),
) -> None:
    """Write each label as near to its point as is free, with a line to it where that is far.

    Labels keep off `points`, off `lines` through such points, off each other, and off the boxes to
    `avoid` (left, low, right, high, in pixels). The limits of the axes must be final.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixel = figure.dpi / 72  # pixels in a point
    whole = axes.get_window_extent()
    marks = _around(axes.transData.transform(np.asarray(points)), MARK * pixel)
    taken = np.concatenate([marks, *_boxes_along(axes, lines, pixel), np.reshape(avoid, (-1, 4))])
    inside = np.array([whole.x0, whole.y0, whole.x1, whole.y1])
    for label in labels:
        at = axes.transData.transform((label.x, label.y))
        size = np.array([text_width(label.text, SMALL) * pixel, 1.2 * SMALL * pixel])
        box, is_far = _free_place(at, size, pixel, taken, inside)
        nearest = np.clip((at - box[:2]) / size, 0.0, 1.0)
        lead = {"arrowstyle": "-", "color": FRONT, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2.5}
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=tuple((box[:2] - at) / pixel),
            textcoords="offset points",
            color=label.colour,
            fontsize=SMALL,
            va="bottom",
            arrowprops={**lead, "relpos": tuple(nearest)} if is_far else None,
            zorder=4,
        )
        taken = np.concatenate([taken, box[None]])
        if is_far:
            taken = np.concatenate([taken, _around(_lead(at, box), 0.5 * pixel)])


def _free_place(
    at: Boxes, size: Boxes, pixel: float, taken: Boxes, inside: Boxes
) -> tuple[Boxes, bool]:
    """The place that covers least, of equals the nearest, and whether it is far from the point."""
    best: tuple[float, Boxes, bool] | None = None
    for distance in DISTANCES:
        for angle in ANGLES:
            side = np.array([math.cos(angle), math.sin(angle)])
            corner = at + side * distance * pixel - size * (1 - side) / 2
            box = np.concatenate([corner, corner + size])
            outside = size.prod() - _shared(box, inside[None]).sum()
            cost = float(COVERING * _shared(box, taken).sum() + 20 * max(0.0, outside - 1e-6))
            is_far = distance > NEAR
            if best is not None and cost >= best[0]:
                continue
            if is_far:
                cost += size.prod() / 8 * _crossed(at, box, taken)
            if best is None or cost < best[0]:
                best = cost, box, is_far
            if cost == 0:
                return box, is_far
    assert best is not None
    return best[1], best[2]


def _shared(box: Boxes, others: Boxes) -> Boxes:
    """Area that a box shares with each of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared: Boxes = np.clip(sides, 0.0, None).prod(axis=1)
    return shared


def _lead(at: Boxes, box: Boxes) -> Boxes:
    """Points along the line from a point to the nearest of a box."""
    end = np.clip(at, box[:2], box[2:])
    return at + (end - at) * LEAD[:, None]


def _crossed(at: Boxes, box: Boxes, taken: Boxes) -> int:
    """How many of these points lie in a box that is taken, the point's own mark aside."""
    points = _lead(at, box)[:, None]
    in_box = (points >= taken[:, :2]) & (points <= taken[:, 2:])
    is_own = ((at >= taken[:, :2]) & (at <= taken[:, 2:])).all(axis=1)
    return int((in_box.all(axis=2) & ~is_own).sum())


def _around(centres: Boxes, reach: float) -> Boxes:
    return np.concatenate([centres - reach, centres + reach], axis=1)


def _boxes_along(
    axes: "Axes", lines: Iterable[Sequence[tuple[float, float]]], pixel: float
) -> list[Boxes]:
    """Small boxes, one after the other, along each line."""
    found = []
    for line in lines:
        corners = axes.transData.transform(np.asarray(line))
        for start, end in zip(corners[:-1], corners[1:], strict=True):
            many = int(np.hypot(*(end - start)) / (4 * pixel)) + 2
            along = start + (end - start) * np.linspace(0.0, 1.0, many)[:, None]
            found.append(_around(along, pixel))
    return found
