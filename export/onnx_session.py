"""ONNX Runtime: one file on one provider, and never on another in its place."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from export.onnx_file import load_onnx
from export.raw import LAYOUT, RAW, Bytes
from export.target import require
from export.tensorrt_api import load_flavor
from zoo import machine
from zoo.doctor import stack_for
from zoo.errors import ArtifactError, MachineError, ZooError, first_line, is_out_of_memory, nearest
from zoo.onnx_graph import precision_of

if TYPE_CHECKING:
    import onnx

CPU, TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"
# What --provider calls them; the first is what runs on that kind of device unless told otherwise.
PROVIDERS = {"cpu": {"cpu": CPU}, "cuda": {"cuda": "CUDAExecutionProvider", "tensorrt": TENSORRT}}
# Operators that do the work; shapes are computed on the CPU on purpose, whatever the provider.
HEAVY = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "FusedConv", "Gemm", "MatMul"})
RECORD_PLACES = "session.record_ep_graph_assignment_info"
NO_TENSORRT = "Please install TensorRT libraries"  # what ONNX Runtime says where it finds none
NUMPY = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class OnnxSession:
    """ONNX Runtime on the CPU, or on one NVIDIA GPU with TF32 off: fp32 means fp32.

    A raw file of ours, which takes bytes, is fed with them or with normalised images, whose bytes
    are restored first.

    Shapes:
        run: (B, 3, H, W) float32, C-contiguous or copied -> (B, K) float32.

    Note:
        The GPU path is not verified: no machine with a GPU has run it yet. The TensorRT provider
        has no option for TF32 (microsoft/onnxruntime#26029): with it TF32 is off in all libraries
        of NVIDIA that the process has not used before.

    Raises:
        MissingPackageError: ONNX Runtime is not installed.
        ArtifactError: the file is damaged, keeps tensors in other files, or does not take one
            float32 batch of images.
        MachineError: ONNX Runtime does not run there, or runs a convolution or matrix product on
            the CPU in its place (which ONNX Runtime tells from 1.24 on); or TensorRT does not take
            this int8.
        ZooError: the provider does not go with `device`.
    """

    def __init__(self, path: Path, *, device: str = "cpu", provider: str | None = None) -> None:
        wanted = check_provider(provider, device)
        for package in ("onnx", "onnxruntime"):
            require(package, extra=_extra(device), needed_by=f"running {path.name}")
        import onnxruntime  # after torch, whose CUDA libraries it then finds

        model = load_onnx(path)
        self.precision = precision_of(model)
        self.device = device
        self._path = path
        if wanted == TENSORRT and self.precision == "int8":
            _check_symmetric(model, path)
        providers = _providers(wanted, device, self.precision)
        if wanted == TENSORRT:  # found only where it is loaded already, if pip has installed it
            with suppress(ZooError):
                load_flavor("tensorrt", device=device)
        self._session = _open(path, wanted, providers, without=_harmful_optimisers(model))
        if wanted != CPU:
            check_placement(path, wanted, operators_by_provider(self._session))
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
        try:
            if self.device.startswith("cuda"):
                return self._run_in_place(images)
            (logits,) = self._session.run([self._output], {self._input: images.numpy()})
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

    def _run_in_place(self, images: Tensor) -> Tensor:
        """Run where the images lie, without a copy to the CPU and back."""
        where, index = images.device.type, images.device.index or 0
        shape = self._session.get_outputs()[0].shape
        logits = None
        if len(shape) == 2 and isinstance(shape[1], int):
            logits = torch.empty(len(images), shape[1], device=images.device)
        binding = self._session.io_binding()
        kind = NUMPY[self._session.get_inputs()[0].type]
        binding.bind_input(self._input, where, index, kind, tuple(images.shape), images.data_ptr())
        if logits is None:  # a file of others that does not say how many classes it knows
            binding.bind_output(self._output, where, index)
        else:
            place = tuple(logits.shape), logits.data_ptr()
            binding.bind_output(self._output, where, index, np.float32, *place)
        if where == "cuda":
            torch.cuda.current_stream(images.device).synchronize()  # ONNX Runtime has its own
        self._session.run_with_iobinding(binding)  # waits for the result
        if logits is None:
            return torch.from_numpy(binding.copy_outputs_to_cpu()[0]).to(images.device)
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


def check_runnable(path: Path, wanted: str, precision: str) -> None:
    """Refuse a file before it is written, where this provider will not run it.

    Raises:
        MachineError: ONNX Runtime does not offer the provider, or it is TensorRT and this is int8.
    """
    if wanted == TENSORRT and precision == "int8":
        raise _not_symmetric(path)
    _check_offered(path, wanted)


def _check_offered(path: Path, wanted: str) -> None:
    import onnxruntime

    if wanted not in onnxruntime.get_available_providers():
        raise _no_provider(path, wanted)


def _providers(wanted: str, device: str, precision: str) -> list[tuple[str, dict[str, str]]]:
    """The wanted one first, and what takes the operators that TensorRT leaves."""
    if wanted == CPU:
        return [(wanted, {})]
    index = device.partition(":")[2] or "0"
    cuda = ("CUDAExecutionProvider", {"device_id": index, "use_tf32": "0"})
    if wanted == "CUDAExecutionProvider":
        return [cuda]
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    options = {"device_id": index}
    if precision != "fp32":
        options[f"trt_{precision}_enable"] = "1"
    return [(wanted, options), cuda]


def _open(
    path: Path, wanted: str, providers: list[tuple[str, dict[str, str]]], *, without: list[str]
) -> Any:
    import onnxruntime

    _check_offered(path, wanted)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()  # the same for every backend
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4  # what matters is raised
    settings.add_session_config_entry(RECORD_PLACES, "1")
    names, options = zip(*providers, strict=True)
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=list(names),
            provider_options=list(options),
            disabled_optimizers=without,
            enable_fallback=0,  # else it prints, and opens on the CPU without these options
        )
    except Exception as reason:  # ONNX Runtime's own classes share no other base
        if NO_TENSORRT in str(reason):
            raise _no_provider(path, wanted) from None
        if is_out_of_memory(reason):
            raise MachineError(f"{path} does not run here: {first_line(reason)}") from None
        raise ArtifactError(f"ONNX Runtime cannot open {path}: {first_line(reason)}") from None
    if session.get_providers()[0] != wanted:
        raise _no_provider(path, wanted)
    return session


def operators_by_provider(session: Any) -> Mapping[str, frozenset[str]] | None:
    """Which operators run on which provider; None where ONNX Runtime, before 1.24, does not tell.

    Being registered says little: ONNX Runtime gives each node to the first provider that takes it,
    and to the CPU what none does.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    found: dict[str, set[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, set()).update(node.op_type for node in part.get_nodes())
    return {name: frozenset(operators) for name, operators in found.items()}


def check_placement(path: Path, wanted: str, found: Mapping[str, frozenset[str]] | None) -> None:
    """Refuse a session whose work is done elsewhere than asked for.

    Raises:
        MachineError: a convolution or matrix product runs on the CPU, or nothing runs on `wanted`.
    """
    if not found:
        return
    strays = sorted(HEAVY & found.get(CPU, frozenset()))
    if strays or wanted not in found:
        what = f"{', '.join(strays)} on the CPU" if strays else "nothing on it"
        raise MachineError(
            f"ONNX Runtime was told to run {path} on {wanted} and runs {what}: "
            "use --device cpu, or another --provider"
        )


def _check_symmetric(model: "onnx.ModelProto", path: Path) -> None:
    """Refuse int8 that was made for CPUs: TensorRT has neither integer biases nor offsets."""
    import onnx

    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        operands = {kinds.get(name) for name in (node.input[0], *node.input[2:])}
        if operands & {onnx.TensorProto.INT32, onnx.TensorProto.UINT8}:
            raise _not_symmetric(path)


def _not_symmetric(path: Path) -> MachineError:
    return MachineError(
        f"{path} is int8 for CPUs, which TensorRT does not take: use --provider cuda, or write it "
        "with zoo-export --to trt --precision int8"
    )


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
    if wanted == TENSORRT:
        return MachineError(
            f"ONNX Runtime offers no {wanted} here, and {path.name} does not run on another in its "
            "place: it takes the libraries of the TensorRT that ONNX Runtime was built with, 10 "
            "for 1.31; use --provider cuda, or write the model with zoo-export --to trt"
        )
    return MachineError(
        f"ONNX Runtime offers no {wanted} here, and {path.name} does not run on the CPU in its "
        f"place: install the extra `{_extra('cuda')}` on a machine with a GPU, or use --device cpu"
    )


def _extra(device: str) -> str:
    """The one that holds the ONNX Runtime for a device."""
    if not device.startswith("cuda"):
        return "cpu"
    gpu = machine.torch_facts(int(device.partition(":")[2] or 0)).gpu
    return "gpu" if gpu is None else stack_for(gpu)
