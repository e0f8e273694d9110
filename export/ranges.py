"""The range of each value in a graph that int8 is to cover, from what real images make of it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from export.inner import inner_values
from zoo.errors import MachineError

if TYPE_CHECKING:
    import onnx

Feeds = Callable[[], Iterable[np.ndarray]]  # the same batches in each call
Range = tuple[float, float]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what a layer is counted by
METHODS = ("minmax", "percentile", "entropy")
BINS = 2048
PERCENTILE = 99.999
LEVELS = 128  # magnitudes of a signed byte
STEP = 8  # bins between two thresholds that `entropy` tries


def value_ranges(
    proto: "onnx.ModelProto", operators: Sequence[str], feeds: Feeds, *, methods: Sequence[str]
) -> dict[str, Mapping[str, Range]]:
    """For each method: the lowest and highest number to keep of what these operators take and make.

    `minmax` keeps all; `percentile` cuts off the largest 0.001% of magnitudes; `entropy` cuts where
    the rounded magnitudes are distributed most like the real ones. Constants have no range. That of
    a value between the layers that holds an infinity, such as masked attention, is infinite.

    Source:
        entropy: Migacz, "8-bit inference with TensorRT", GTC 2017, slides 37 to 41. Exact zeros,
        which ReLU makes and rounding keeps, do not count.

    Raises:
        MachineError: a value is NaN for an image, or infinite where a layer takes or makes it, or
            the graph does not run.
    """
    every = _limits(proto, _values(proto, operators), feeds())
    limits = {name: limit for name, limit in every.items() if is_finite(limit)}
    infinite = {name: limit for name, limit in every.items() if not is_finite(limit)}
    found: dict[str, Mapping[str, Range]] = {"minmax": limits}
    cutting = {"percentile": percentile_bins, "entropy": entropy_bins}
    if not cutting.keys().isdisjoint(methods):
        histograms = _histograms(proto, limits, feeds())
        for method in cutting.keys() & set(methods):
            kept = {name: cutting[method](counts) / BINS for name, counts in histograms.items()}
            found[method] = {
                name: (max(low, -kept[name] * largest), min(high, kept[name] * largest))
                for name, (low, high) in limits.items()
                for largest in [max(-low, high)]
            }
    return {method: {**found[method], **infinite} for method in methods}


def is_finite(found: Range) -> bool:
    """Whether numbers of this range can be rounded to integers."""
    return all(map(math.isfinite, found))


def _limits(
    proto: "onnx.ModelProto", names: Sequence[str], batches: Iterable[np.ndarray]
) -> dict[str, Range]:
    """The lowest and highest number of each value.

    Raises:
        MachineError: a number is none, or infinite at a layer: it has no place in a range.
    """
    of_layers = set(_values(proto, WEIGHTED))
    limits = {name: (np.inf, -np.inf) for name in names}
    for batch in inner_values(proto, names, batches):
        for name, values in batch.items():
            low, high = float(values.min()), float(values.max())
            is_nan = math.isnan(low) or math.isnan(high)
            if is_nan or (name in of_layers and not is_finite((low, high))):
                raise MachineError(
                    f"int8: the value {name} inside the graph is infinite or NaN for a training "
                    "image, and rounding to integers needs a range: export in another precision"
                )
            limits[name] = min(limits[name][0], low), max(limits[name][1], high)
    return limits


def _histograms(
    proto: "onnx.ModelProto", limits: Mapping[str, Range], batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """How many magnitudes of each value lie in each of BINS bins from zero to the largest."""
    histograms = {name: np.zeros(BINS, np.int64) for name in limits}
    for batch in inner_values(proto, [*limits], batches):
        for name, values in batch.items():
            low, high = limits[name]
            largest = max(-low, high)
            if largest > 0:
                bins = (np.abs(values).ravel() * (BINS / largest)).astype(np.int32)
                histograms[name] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    return histograms


def percentile_bins(counts: np.ndarray) -> int:
    """How many bins of a histogram hold PERCENTILE percent of its values."""
    share = np.cumsum(counts) / max(1, counts.sum())
    return int(np.searchsorted(share, PERCENTILE / 100)) + 1


def entropy_bins(counts: np.ndarray) -> int:
    """How many bins to spread LEVELS over, for the least divergence from the histogram."""
    counts = counts.astype(np.float64)
    counts[0] = min(counts[0], counts[1])  # zeros
    total = counts.sum()
    if total == 0:
        return len(counts)
    divergences = {}
    for bins in range(LEVELS, len(counts) + 1, STEP):
        inside = counts[:bins]
        if np.count_nonzero(inside) < 2:
            continue  # all is cut off, or one number: that is like itself
        real = inside.copy()
        real[-1] += total - inside.sum()  # what is cut off is rounded to the largest
        level = np.arange(bins) * LEVELS // bins
        is_used = inside > 0
        used = np.bincount(level, is_used, minlength=LEVELS)
        mean = np.bincount(level, inside, minlength=LEVELS) / np.maximum(used, 1)
        rounded = np.where(is_used, mean[level], 0.0)
        rounded[-1] = max(1.0, rounded[-1])  # none of its own there: as if it were one
        p, q = real[real > 0] / total, rounded[real > 0] / rounded.sum()
        divergences[bins] = float((p * np.log(p / q)).sum())
    return min(divergences, key=divergences.__getitem__, default=len(counts))


def _values(proto: "onnx.ModelProto", operators: Sequence[str]) -> list[str]:
    """Names of the float values, constants aside, that go into these operators or come out."""
    import onnx

    constants = {tensor.name for tensor in proto.graph.initializer}
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    floats = {
        value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    names = {
        name
        for node in proto.graph.node
        if node.op_type in operators
        for name in (*node.input, *node.output)
    }
    return sorted((names & floats) - constants)
