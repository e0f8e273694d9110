"""The range of each value in a graph that int8 is to cover, from what real images make of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
    for name, values in _run(proto, names, feeds):
        low, high = limits[name]
        limits[name] = min(low, float(values.min())), max(high, float(values.max()))
    if method == "minmax":
        return limits
    found = {
        name: _Magnitudes(max(abs(low), abs(high)), np.zeros(BINS, np.int64))
        for name, (low, high) in limits.items()
    }
    for name, values in _run(proto, names, feeds):
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


def _run(proto: "onnx.ModelProto", names: Sequence[str], feeds: Feeds) -> Iterator[tuple[str, Any]]:
    """Each value by its name, batch after batch."""
    import onnx
    import onnxruntime
    import torch

    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    present = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in present
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        opened.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    source = proto.graph.input[0].name
    for batch in feeds():
        yield from zip(names, session.run(list(names), {source: batch}), strict=True)
