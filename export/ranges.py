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

METHODS = ("minmax", "percentile")
BINS = 2048
PERCENTILE = 99.999


@dataclass(slots=True)
class _Magnitudes:
    """A histogram of absolute values up to the largest."""

    largest: float
    counts: np.ndarray


def value_ranges(
    proto: "onnx.ModelProto", operators: Sequence[str], feeds: Feeds, *, method: str
) -> Mapping[str, Range]:
    """Lowest and highest number to keep, for each float input and output of these operators.

    `minmax` keeps all; `percentile` cuts off the largest 0.001% of magnitudes.
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
    ranges = {}
    for name, (low, high) in limits.items():
        threshold = found[name].largest * percentile_bins(found[name].counts) / BINS
        ranges[name] = max(low, -threshold), min(high, threshold)
    return ranges


def percentile_bins(counts: np.ndarray) -> int:
    """How many bins of a histogram hold PERCENTILE percent of its values."""
    share = np.cumsum(counts) / max(1, counts.sum())
    return int(np.searchsorted(share, PERCENTILE / 100)) + 1


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
