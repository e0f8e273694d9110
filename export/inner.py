"""What ONNX Runtime computes for values inside a graph."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from zoo.errors import MachineError, first_line

if TYPE_CHECKING:
    import onnx


def inner_values(
    proto: "onnx.ModelProto", names: Sequence[str], batches: Iterable[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """The values of these names on the CPU, for one batch of the graph's input after another.

    Raises:
        MachineError: ONNX Runtime does not run the graph.
    """
    import onnx
    import onnxruntime

    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    present = {output.name for output in opened.graph.output}
    opened.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in present
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # what matters is raised
    source = proto.graph.input[0].name
    try:
        session = onnxruntime.InferenceSession(
            opened.SerializeToString(),
            settings,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
        for batch in batches:
            found = session.run(list(names), {source: batch})
            yield dict(zip(names, found, strict=True))
    except Exception as reason:  # ONNX Runtime's own classes share no other base
        raise MachineError(f"ONNX Runtime does not run the graph: {first_line(reason)}") from None
