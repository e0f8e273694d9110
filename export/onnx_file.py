"""Look into an ONNX file before anything runs it: is it whole, alone, and of which precision."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ArtifactError

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
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in _tensors(model)):
        raise ArtifactError(
            f"{path} keeps tensors in other files, which is refused as unsafe: "
            "save it again as a single file"
        )
    return model


def precision_of(model: "onnx.ModelProto") -> str:
    """The number format of its weights: the narrowest that occurs."""
    import onnx

    operators = {node.op_type.lower() for node in model.graph.node}
    if any(word in name for name in operators for word in ("quantizelinear", "qlinear", "integer")):
        return "int8"
    kinds = {tensor.data_type for tensor in _tensors(model)}
    if onnx.TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in kinds else "fp32"


def _tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable["onnx.NodeProto"]) -> Iterator["onnx.TensorProto"]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)
