from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.transforms import Bbox

from profiling.figure_labels import Label, place_labels
from profiling.figure_style import drawing, looks, new_figure, plain_tick


def test_no_two_series_look_alike() -> None:
    found = looks(f"runtime {number}" for number in range(20))

    assert len({(look.colour, look.marker) for look in found.values()}) == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.02, "0.02"), (5.0, "5"), (2000.0, "2000"), (2e4, "20k"), (5e6, "5M"), (1e9, "1G")],
)
def test_ticks_are_plain(value: float, text: str) -> None:
    assert plain_tick(value) == text


def test_labels_cover_neither_points_nor_each_other() -> None:
    points = [(x / 10, y / 10) for x in range(2, 9, 2) for y in range(2, 9, 2)]
    with drawing():
        figure = new_figure(4.0)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)

        place_labels(axes, [Label("resnet_20", x, y) for x, y in points], points)

        boxes = [text.get_window_extent() for text in axes.texts]
        marks = axes.transData.transform(np.array(points))
    assert len(boxes) == 16
    assert not any(overlap(boxes))
    assert not any(box.contains(*mark) for box in boxes for mark in marks)


def test_labels_keep_off_lines_and_other_boxes() -> None:
    with drawing():
        figure = new_figure(4.0)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        x, y = axes.transData.transform((0.5, 0.5))
        right = (x, y - 50, x + 100, y + 50)
        line = [(0.0, 0.52), (0.5, 0.52)]

        place_labels(axes, [Label("a", 0.5, 0.5)], [(0.5, 0.5)], lines=[line], avoid=[right])

        box = axes.texts[0].get_window_extent()
        height = axes.transData.transform((0.0, 0.52))[1]
    assert box.x1 <= x
    assert not box.y0 < height < box.y1


def overlap(boxes: Sequence[Bbox]) -> list[bool]:
    return [one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n]]
