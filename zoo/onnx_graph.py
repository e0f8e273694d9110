"""What an ONNX graph says of itself; onnx is imported where it is needed."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message


def precision_of(model: "onnx.ModelProto") -> str:
    """The number format of its weights: the narrowest that occurs."""
    import onnx

    operators = {node.op_type.lower() for node in model.graph.node}
    if any(word in name for name in operators for word in ("quantizelinear", "qlinear", "integer")):
        return "int8"
    kinds = {tensor.data_type for tensor in tensors_of(model)}
    if onnx.TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in kinds else "fp32"


def tensors_of(message: "Message") -> Iterator["onnx.TensorProto"]:
    """Every tensor that a model, or a part of it, stores: wherever the format lets one be."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if isinstance(value, Sequence) else (value,):
            if field.message_type.name == "TensorProto":
                yield item
            yield from tensors_of(item)
