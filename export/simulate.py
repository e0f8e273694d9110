"""What a quantised graph computes, whatever integer kernels the machine has."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from export.raw import LAYOUT, Bytes
from zoo.errors import MachineError, first_line

if TYPE_CHECKING:
    import onnx


class SimulatedSession:
    """ONNX Runtime on the CPU: numbers are rounded where the graph says so, and computed in float.

    That is what TensorRT's integers amount to, and several times as fast here as ONNX Runtime's
    own int8 kernels for symmetric activations.

    Shapes:
        run: (B, 3, H, W) float32 -> (B, K) float32.

    Raises:
        MachineError: ONNX Runtime does not run the graph.
    """

    backend, precision, device = "onnx", "int8", "cpu"

    def __init__(self, proto: "onnx.ModelProto") -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 4  # what matters is raised
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
        self.runtime = f"onnxruntime {onnxruntime.__version__}, simulated int8"
        try:
            self._session = onnxruntime.InferenceSession(
                rounded_in_fp32(proto).SerializeToString(),
                settings,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except Exception as reason:  # ONNX Runtime's own classes share no other base
            raise MachineError(f"ONNX Runtime refuses the graph: {first_line(reason)}") from None
        metadata = {item.key: item.value for item in proto.metadata_props}
        self._bytes = (
            Bytes.of_metadata(metadata) if metadata.get("input_layout") == LAYOUT else None
        )
        self._input = proto.graph.input[0].name

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch; a raw graph's probabilities.

        Raises:
            MachineError: ONNX Runtime does not run the graph.
        """
        if self._bytes is not None:
            images = self._bytes.restore(images)
        try:
            (logits,) = self._session.run(None, {self._input: images.contiguous().numpy()})
        except Exception as reason:  # ONNX Runtime's own classes share no other base
            raise MachineError(
                f"ONNX Runtime does not run the graph: {first_line(reason)}"
            ) from None
        return torch.from_numpy(logits)

    def synchronize(self) -> None:
        """Nothing to wait for: `run` returns finished logits."""


def rounded_in_fp32(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy whose quantisers take fp32: given fp16, ONNX Runtime 1.23 cuts off and does not round.

    Every number and every scale of fp16 is one of fp32 too.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes = list(copy.graph.node)
    copy.graph.ClearField("node")
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            for index in (0, 1):  # what is rounded, and its scale
                name = f"{node.output[0]}_fp32_{index}"
                kind = onnx.TensorProto.FLOAT
                cast = onnx.helper.make_node("Cast", [node.input[index]], [name], to=kind)
                copy.graph.node.append(cast)
                node.input[index] = name
        copy.graph.node.append(node)
    return copy
