"""Look into an ONNX file before anything runs it: is it whole, and alone."""

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
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors_of(model)):
        raise ArtifactError(
            f"{path} keeps tensors in other files, which is refused as unsafe: "
            "save it again as a single file"
        )
    return model
