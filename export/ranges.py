"""The range of each value in a graph that int8 is to cover, from what real images make of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.inner import inner_values

if TYPE_CHECKING:
    import onnx

Feeds = Callable[[], Iterable[np.ndarray]]  # the same batches in each call
Range = tuple[float, float]

METHODS = ("minmax", "percentile", "entropy")
BINS = 2048
PERCENTILE = 99.999
LEVELS = 128  # magnitudes of a signed byte
STEP = 8  # bins between two thresholds that `entropy` tries


@dataclass(slots=True)
class _Magnitudes:
    """A histogram of absolute values up to the largest."""

    largest: float
    counts: np.ndarray


def value_ranges(
    proto: "onnx.ModelProto", operators: Sequence[str], feeds: Feeds, *, method: str
) -> Mapping[str, Range]:
    """Lowest and highest number to keep, for each float input and output of these operators.

    `minmax` keeps all; `percentile` cuts off the largest 0.001% of magnitudes; `entropy` cuts where
    the rounded magnitudes are distributed most like the real ones.

    Source:
        entropy: Migacz, "8-bit inference with TensorRT", GTC 2017, slides 37 to 41. Exact zeros,
        which ReLU makes and rounding keeps, do not count.
    """
    names = _values(proto, operators)
    limits = {name: (np.inf, -np.inf) for name in names}
    for batch in inner_values(proto, names, feeds()):
        for name, values in batch.items():
            low, high = limits[name]
            limits[name] = min(low, float(values.min())), max(high, float(values.max()))
    if method == "minmax":
        return limits
    found = {
        name: _Magnitudes(max(abs(low), abs(high)), np.zeros(BINS, np.int64))
        for name, (low, high) in limits.items()
    }
    for batch in inner_values(proto, names, feeds()):
        for name, values in batch.items():
            histogram = found[name]
            if histogram.largest > 0:
                bins = (np.abs(values).ravel() * (BINS / histogram.largest)).astype(np.int32)
                histogram.counts += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)
    kept = percentile_bins if method == "percentile" else entropy_bins
    ranges = {}
    for name, (low, high) in limits.items():
        threshold = found[name].largest * kept(found[name].counts) / BINS
        ranges[name] = max(low, -threshold), min(high, threshold)
    return ranges


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
    return min(divergences, key=divergences.__getitem__)


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
