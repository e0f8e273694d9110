"""ONNX: written by torch's dynamo exporter, run by ONNX Runtime."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from export.target import MAX_BATCH, require
from zoo.errors import ArtifactError, MachineError, first_line
from zoo.session import InferenceSession

if TYPE_CHECKING:
    import onnx

OPSET = 20  # TensorRT 10.4 and ONNX Runtime 1.20, the last for compute capability 7.0, read it
IR_VERSION = 10  # likewise
INPUT, OUTPUT = "images", "logits"


class OnnxTarget:
    """One .onnx file: free batch axis, batch norm folded, weights inside."""

    name = "onnx"
    suffix = ".onnx"
    tolerance: Mapping[str, float] = {"fp32": 1e-4}

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        precision: str,
        metadata: Mapping[str, str],
    ) -> None:
        """Write and check the file.

        What the exporter notes about each node, source lines and folders of this machine among it,
        is left out: it is private, makes files differ between machines, and costs 80 kB.

        Raises:
            MissingPackageError: onnx, onnxscript or ONNX Runtime is not installed.
            MachineError: the model cannot be expressed in ONNX.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="cpu", needed_by="--to onnx")
        import onnx

        proto = _without_notes(_trace(model, example))
        proto.ir_version = IR_VERSION
        proto.producer_name, proto.producer_version = "cifar-zoo", metadata["cifar_zoo_version"]
        onnx.helper.set_model_props(proto, dict(metadata))
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as reason:
            raise MachineError(
                f"the ONNX checker refused the model: {first_line(reason)}"
            ) from None
        path.write_bytes(proto.SerializeToString(deterministic=True))

    def open(self, path: Path, *, device: str) -> InferenceSession:
        """Run a file with ONNX Runtime."""
        return OnnxSession(path, device=device)

    def versions(self) -> dict[str, str]:
        """Of the exporter, the format and the runtime."""
        import onnxruntime

        names = ("torch", "onnx", "onnxscript")
        return {name: version(name) for name in names} | {
            "onnxruntime": onnxruntime.__version__,
            "opset": str(OPSET),
        }


class OnnxSession:
    """ONNX Runtime on the CPU, or on one NVIDIA GPU with TF32 off.

    Shapes:
        run: (B, 3, H, W) float32, C-contiguous or copied -> (B, K) float32.

    Note:
        The GPU path is not verified: no machine with a GPU has run it yet.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        ArtifactError: the file is damaged, keeps tensors in other files, or does not take one
            float32 batch of images.
        MachineError: ONNX Runtime does not run on `device`; it would fall back to the CPU silently.
    """

    backend = "onnx"

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        extra = "gpu" if device.startswith("cuda") else "cpu"
        for package in ("onnx", "onnxruntime"):
            require(package, extra=extra, needed_by=f"running {path.name}")
        import onnxruntime  # after torch, whose CUDA libraries it then finds

        self.precision = _inspect(path)
        self.device = device
        self._path = path
        self._session = _open(path, device)
        self.runtime = f"onnxruntime {onnxruntime.__version__} {self._session.get_providers()[0]}"
        # (B, C, H, W); a name or None where the axis is free
        self.input_shape = self._input_shape()

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch.

        Raises:
            MachineError: the file does not take this shape, such as another batch than its own.
        """
        images = images.contiguous()
        if self.device.startswith("cuda"):
            return self._run_on_gpu(images)
        feed = {self._input: images.numpy()}
        try:
            (logits,) = self._session.run([self._output], feed)
        except Exception as reason:  # ONNX Runtime's own classes share no other base
            raise MachineError(
                f"{self._path}, whose input is {self.input_shape}, did not run on images of shape "
                f"{tuple(images.shape)}: {first_line(reason)}"
            ) from None
        return torch.from_numpy(logits)

    def synchronize(self) -> None:
        """Nothing to wait for: `run` returns finished logits."""

    def _run_on_gpu(self, images: Tensor) -> Tensor:
        classes = self._session.get_outputs()[0].shape[-1]
        logits = torch.empty(len(images), classes, device=images.device)
        binding = self._session.io_binding()
        index = images.device.index or 0
        for bind, name, tensor in (
            (binding.bind_input, self._input, images),
            (binding.bind_output, self._output, logits),
        ):
            bind(name, "cuda", index, np.float32, tuple(tensor.shape), tensor.data_ptr())
        torch.cuda.current_stream(images.device).synchronize()  # ONNX Runtime has its own stream
        self._session.run_with_iobinding(binding)  # waits for the result
        return logits

    def _input_shape(self) -> tuple[int | str | None, ...]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = ", ".join(f"{node.type} {node.shape}" for node in inputs) or "none"
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise ArtifactError(
                f"{self._path} should take one batch of images, tensor(float) [B, C, H, W]; "
                f"its inputs are {found}"
            )
        if outputs[0].type != "tensor(float)":
            raise ArtifactError(
                f"{self._path} should give tensor(float) logits; it gives {outputs[0].type}"
            )
        self._input, self._output = inputs[0].name, outputs[0].name
        return tuple(inputs[0].shape)


def _trace(model: nn.Module, example: Tensor) -> "onnx.ModelProto":
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        # The exporter's hints are for its developers: a model that it gets wrong fails parity.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as reason:
        raise MachineError(f"torch cannot write this model as ONNX: {first_line(reason)}") from None
    assert program is not None  # None only for dynamo=False
    return program.model_proto


def _without_notes(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in graph.value_info:
            del value.metadata_props[:]
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del item.metadata_props[:]
    return proto


def _open(path: Path, device: str) -> Any:
    import onnxruntime

    wanted, options = _provider(device)
    if wanted not in onnxruntime.get_available_providers():
        raise _no_provider(path, wanted)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()  # the same for every backend
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what matters is raised
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=[wanted], provider_options=[options]
        )
    except Exception as reason:  # ONNX Runtime's own classes share no other base
        raise ArtifactError(f"ONNX Runtime cannot open {path}: {first_line(reason)}") from None
    if session.get_providers()[0] != wanted:
        raise _no_provider(path, wanted)
    return session


def _provider(device: str) -> tuple[str, dict[str, str]]:
    if not device.startswith("cuda"):
        return "CPUExecutionProvider", {}
    index = device.partition(":")[2] or "0"
    return "CUDAExecutionProvider", {"device_id": index, "use_tf32": "0"}  # fp32 means fp32


def _no_provider(path: Path, wanted: str) -> MachineError:
    return MachineError(
        f"ONNX Runtime offers no {wanted} here, and {path.name} does not run on the CPU in its "
        "place: install the extra `gpu` on a machine with a GPU, or use --device cpu"
    )


def _inspect(path: Path) -> str:
    """Refuse a file that is not one whole ONNX model; return the precision of its weights."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise ArtifactError(f"{path} is not an ONNX model, or it is truncated") from None
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX model: it holds no graph")
    tensors = list(_tensors(model.graph))
    for function in model.functions:
        tensors += _node_tensors(function.node)
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in tensors):
        raise ArtifactError(
            f"{path} keeps tensors in other files, which is refused as unsafe: "
            "save it again as a single file"
        )
    operators = {node.op_type.lower() for node in model.graph.node}
    if any(word in name for name in operators for word in ("quantizelinear", "qlinear", "integer")):
        return "int8"
    kinds = {tensor.data_type for tensor in tensors}
    if onnx.TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in kinds else "fp32"


def _tensors(graph: "onnx.GraphProto") -> Iterator["onnx.TensorProto"]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator["onnx.TensorProto"]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)
