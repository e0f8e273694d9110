"""Look into an ONNX file before anything runs it: is it whole, and alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ArtifactError
from zoo.onnx_graph import tensors_of

if TYPE_CHECKING:
    import onnx


def load_onnx(path: Path) -> "onnx.ModelProto":
    """Read one whole ONNX model; no other file is touched.

    Raises:
        ArtifactError: it is damaged, or keeps tensors in other files.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ArtifactError(f"{path} is not an ONNX model, or it is truncated") from None
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX model: it holds no graph")
    if not all(isinstance(text, str) for text in _texts(model)):
        raise ArtifactError(f"{path} is damaged: it holds a name that is no text")
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors_of(model)):
        raise ArtifactError(
            f"{path} keeps tensors in other files, which is refused as unsafe: "
            "save it again as a single file"
        )
    return model


def _texts(model: "onnx.ModelProto") -> Iterator[str]:
    """What ONNX Runtime and we read as text; damaged, it comes back as bytes."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for item in model.metadata_props:
        yield from (item.key, item.value)
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
