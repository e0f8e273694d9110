"""ONNX Runtime: one file on one provider, and never on another in its place."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from export.onnx_file import load_onnx, precision_of
from export.raw import LAYOUT, RAW, Bytes
from export.target import require
from zoo.errors import ArtifactError, MachineError, ZooError, first_line, nearest

if TYPE_CHECKING:
    import onnx

# What --provider calls them; the first is what runs on that kind of device unless told otherwise.
PROVIDERS = {
    "cpu": {"cpu": "CPUExecutionProvider"},
    "cuda": {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"},
}
NUMPY = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class OnnxSession:
    """ONNX Runtime on the CPU, or on one NVIDIA GPU with TF32 off.

    A raw file of ours, which takes bytes, is fed with them or with normalised images, whose bytes
    are restored first.

    Shapes:
        run: (B, 3, H, W) float32, C-contiguous or copied -> (B, K) float32.

    Note:
        The GPU path is not verified: no machine with a GPU has run it yet.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        ArtifactError: the file is damaged, keeps tensors in other files, or does not take one
            float32 batch of images.
        MachineError: ONNX Runtime does not run there; it would fall back to the CPU silently.
        ZooError: the provider does not go with `device`.
    """

    def __init__(self, path: Path, *, device: str = "cpu", provider: str | None = None) -> None:
        wanted = check_provider(provider, device)
        extra = "gpu" if device.startswith("cuda") else "cpu"
        for package in ("onnx", "onnxruntime"):
            require(package, extra=extra, needed_by=f"running {path.name}")
        import onnxruntime  # after torch, whose CUDA libraries it then finds

        model = load_onnx(path)
        self.precision = precision_of(model)
        self.device = device
        self._path = path
        providers = _providers(wanted, device, self.precision)
        self._session = _open(path, wanted, providers, without=_harmful_optimisers(model))
        self.runtime = f"onnxruntime {onnxruntime.__version__} {self._session.get_providers()[0]}"
        self._bytes = self._raw_input()
        self.backend = f"onnx-{RAW}" if self._bytes else "onnx"
        # (B, C, H, W), or (B, H, W, C) of a raw file; a name or None where the axis is free
        self.input_shape = self._input_shape()

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch; a raw file's probabilities.

        Raises:
            MachineError: the file does not take this shape, such as another batch than its own.
        """
        images = self.feed(images)
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

    def feed(self, images: Tensor) -> Tensor:
        """What `run` hands to the file; it passes such a batch on as it is."""
        if self._bytes is not None and images.dtype != torch.uint8:
            images = self._bytes.restore(images)
        return images.contiguous()

    def synchronize(self) -> None:
        """Nothing to wait for: `run` returns finished logits."""

    def _run_on_gpu(self, images: Tensor) -> Tensor:
        classes = self._session.get_outputs()[0].shape[-1]
        logits = torch.empty(len(images), classes, device=images.device)
        binding = self._session.io_binding()
        index = images.device.index or 0
        kind = NUMPY[self._session.get_inputs()[0].type]
        for bind, name, tensor, element in (
            (binding.bind_input, self._input, images, kind),
            (binding.bind_output, self._output, logits, np.float32),
        ):
            bind(name, "cuda", index, element, tuple(tensor.shape), tensor.data_ptr())
        torch.cuda.current_stream(images.device).synchronize()  # ONNX Runtime has its own stream
        self._session.run_with_iobinding(binding)  # waits for the result
        return logits

    def _raw_input(self) -> Bytes | None:
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("input_layout") != LAYOUT:
            return None
        try:
            return Bytes.of_metadata(metadata)
        except (KeyError, TypeError, ValueError) as reason:
            raise ArtifactError(
                f"{self._path} takes bytes, but its metadata do not say of which images ({reason})"
            ) from None

    def _input_shape(self) -> tuple[int | str | None, ...]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = ", ".join(f"{node.type} {node.shape}" for node in inputs) or "none"
        wanted = "tensor(float)" if self._bytes is None else "tensor(uint8)"
        if len(inputs) != 1 or inputs[0].type != wanted or len(inputs[0].shape) != 4:
            axes = "[B, C, H, W]" if self._bytes is None else "[B, H, W, C]"
            raise ArtifactError(
                f"{self._path} should take one batch of images, {wanted} {axes}; "
                f"its inputs are {found}"
            )
        if outputs[0].type != "tensor(float)":
            raise ArtifactError(
                f"{self._path} should give tensor(float) logits; it gives {outputs[0].type}"
            )
        self._input, self._output = inputs[0].name, outputs[0].name
        return tuple(inputs[0].shape)


def check_provider(name: str | None, device: str) -> str:
    """What ONNX Runtime calls a provider; None is the usual one of the device.

    Raises:
        ZooError: there is none of this name, or it does not go with `device`.
    """
    here = PROVIDERS[device.partition(":")[0]]
    if name is None:
        return next(iter(here.values()))
    if name not in here:
        for kind, names in PROVIDERS.items():
            if name in names:
                raise ZooError(f"--provider {name} needs --device {kind}, got {device}")
        known = [key for names in PROVIDERS.values() for key in names]
        raise ZooError(f"no provider named {name!r}: {nearest(name, known)}")
    return here[name]


def _providers(wanted: str, device: str, precision: str) -> list[tuple[str, dict[str, str]]]:
    """The wanted one first, and what takes the operators that TensorRT leaves."""
    if wanted == "CPUExecutionProvider":
        return [(wanted, {})]
    index = device.partition(":")[2] or "0"
    cuda = ("CUDAExecutionProvider", {"device_id": index, "use_tf32": "0"})  # fp32 means fp32
    if wanted == "CUDAExecutionProvider":
        return [cuda]
    options = {"device_id": index}
    if precision != "fp32":
        options[f"trt_{precision}_enable"] = "1"
    return [(wanted, options), cuda]


def _open(
    path: Path, wanted: str, providers: list[tuple[str, dict[str, str]]], *, without: list[str]
) -> Any:
    import onnxruntime

    if wanted not in onnxruntime.get_available_providers():
        raise _no_provider(path, wanted)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()  # the same for every backend
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what matters is raised
    names, options = zip(*providers, strict=True)
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=list(names),
            provider_options=list(options),
            disabled_optimizers=without,
        )
    except Exception as reason:  # ONNX Runtime's own classes share no other base
        raise ArtifactError(f"ONNX Runtime cannot open {path}: {first_line(reason)}") from None
    if session.get_providers()[0] != wanted:
        raise _no_provider(path, wanted)
    return session


def _harmful_optimisers(model: "onnx.ModelProto") -> list[str]:
    """Those that break the graph: one quantises biases by a product of scales, too small for fp16.

    With it, ONNX Runtime 1.31 gives resnet_20 in int8 and fp16 logits that are off by 44%.
    """
    import onnx

    scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    half = onnx.TensorProto.FLOAT16
    is_half = any(one.name in scales and one.data_type == half for one in model.graph.initializer)
    return ["WeightBiasQuantization"] if is_half else []


def _no_provider(path: Path, wanted: str) -> MachineError:
    return MachineError(
        f"ONNX Runtime offers no {wanted} here, and {path.name} does not run on the CPU in its "
        "place: install the extra `gpu` on a machine with a GPU, or use --device cpu"
    )
