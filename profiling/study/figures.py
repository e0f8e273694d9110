"""The figures of the study: from comparisons to data, and from data to PNG and SVG."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from profiling.roofline import Roof
from profiling.study.data import Comparison

FIGURES: Mapping[str, str] = {
    "accuracy": (
        "Test top-1 of each network: mean over the seeds, its standard deviation and their number. "
        "Hollow marks are what the studies report, with the state of each figure; they were never "
        "measured here."
    ),
    "accuracy_parameters": (
        "Test top-1 against trainable parameters. No network on the dashed front is beaten on both."
    ),
    "accuracy_macs": (
        "Test top-1 against multiply-accumulates of one image. No network on the dashed front is "
        "beaten on both."
    ),
    "accuracy_latency": (
        "Test top-1 of each file against its own median latency, both means over the seeds. A "
        "network is named at a file that nothing beats, else at its fastest."
    ),
    "curves": (
        "Training loss and accuracy after each epoch, means over the seeds: of held-out images, or "
        "where nothing was held out of the augmented training images. The last fifth of a longer "
        "training is enlarged, with bands of one standard deviation."
    ),
    "groups": (
        "The groups of the first study: bars are means over the networks of a group, dots its "
        "networks, hollow marks the means that the study reports."
    ),
    "ablations": (
        "Difference of each arm to its baseline in points of test top-1, with a 95% interval, "
        "paired over the seeds where they pair. Solid: the interval excludes 0. Pale: it does not. "
        "Hatched: a single seed, of which no interval is known."
    ),
    "batch_scaling": (
        "Images a second against the images in one call, for each runtime; the axes are shared."
    ),
    "latency": (
        "Time of single calls, all seeds together: boxes hold the middle half and the median, "
        "lines reach from 5% to 95% of the calls."
    ),
    "roofline": (
        "FLOPs a second against FLOPs for each byte moved, under the roofs that the machine's own "
        "matrix products and copies reached. A network is named at its highest mark."
    ),
}
PAGE = "-"  # between a name and the number of its second and later pages


def figures(
    comparisons: Sequence[Comparison], roofs: Mapping[str, Roof]
) -> dict[str, dict[str, bytes]]:
    """Each figure that has data, as its PNG and its SVG; pages are "name", "name-2" and so on."""
    from profiling.figure_style import drawing, files

    drawn = {}
    with drawing():
        for name, (data, draw) in _kinds(roofs).items():
            panels = data(comparisons)
            for number, figure in enumerate(draw(panels) if panels else (), start=1):
                drawn[name if number == 1 else f"{name}{PAGE}{number}"] = files(figure)
    return drawn


def figure_data(
    comparisons: Sequence[Comparison], roofs: Mapping[str, Roof]
) -> dict[str, list[dict[str, Any]]]:
    """What is drawn, as plain values: the panels of each figure that has data."""
    found = {}
    for name, (data, _) in _kinds(roofs).items():
        panels = data(comparisons)
        if panels:
            found[name] = [asdict(panel) for panel in panels]
    return found


def captions(names: Iterable[str]) -> dict[str, str]:
    """What to write below each figure and each of its pages."""
    found = {}
    for name in names:
        base, _, page = name.partition(PAGE)
        found[name] = FIGURES[base] + (f" Page {page}." if page else "")
    return found


_Data = Callable[[Sequence[Comparison]], Sequence[Any]]
_Draw = Callable[[Any], Iterable[Any]]


def _kinds(roofs: Mapping[str, Roof]) -> dict[str, tuple[_Data, _Draw]]:
    """How each figure is made; matplotlib is loaded here and not by `--help`."""
    from profiling.study import (
        figure_ablations,
        figure_accuracy,
        figure_costs,
        figure_curves,
        figure_groups,
        figure_roof,
        figure_speed,
    )

    kinds: dict[str, tuple[_Data, _Draw]] = {
        "accuracy": (figure_accuracy.accuracy_data, figure_accuracy.draw_accuracy),
        "accuracy_parameters": (figure_costs.parameters_data, figure_costs.draw_costs),
        "accuracy_macs": (figure_costs.macs_data, figure_costs.draw_costs),
        "accuracy_latency": (figure_costs.latency_data, figure_costs.draw_costs),
        "curves": (figure_curves.curves_data, figure_curves.draw_curves),
        "groups": (figure_groups.groups_data, figure_groups.draw_groups),
        "ablations": (figure_ablations.ablations_data, figure_ablations.draw_ablations),
        "batch_scaling": (figure_speed.scaling_data, figure_speed.draw_scaling),
        "latency": (figure_speed.calls_data, figure_speed.draw_calls),
        "roofline": (
            lambda comparisons: figure_roof.roof_data(comparisons, roofs),
            figure_roof.draw_roofs,
        ),
    }
    assert tuple(kinds) == tuple(FIGURES)
    return kinds
