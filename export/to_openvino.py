"""OpenVINO: the ONNX graph as OpenVINO's own format, for CPUs."""

import errno
import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.batch import check_batch
from export.target import FLOATS, INT8, ExportOptions, Tolerance, require
from zoo.errors import ArtifactError, MachineError, OtherDeviceError, ZooError, first_line

if TYPE_CHECKING:
    import onnx
    import openvino

SECTION = "cifar_zoo"  # of the file's runtime information: our metadata
# What the runtime is told to compute in. Left to itself it takes bf16 wherever the CPU has units
# for it, and calls that fp32.
HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"}
HEAVY = frozenset({"Convolution", "FullyConnected", "MatMul"})  # layers that do the work
INTEGERS = frozenset({"u8", "i8"})
MOST_SHAPES = 4  # that a session compiles its network for


class OpenVinoTarget:
    """One .xml file, the graph, and one .bin file beside it, the weights.

    fp16 halves the .bin: weights are stored in fp16, and a CPU computes with them in fp32, as fast
    as before. bf16 stores fp32 weights and computes in bf16: only on CPUs with units for it. int8
    is the same quantised graph as in ONNX, from which OpenVINO makes integer kernels.
    """

    name = "openvino"
    suffix = ".xml"
    tolerance: Mapping[str, Tolerance] = {**FLOATS, "int8": INT8}

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        precision: str,
        metadata: Mapping[str, str],
        options: ExportOptions,
    ) -> Mapping[str, Any]:
        """Write both files; return how many operations the graph holds, and how it was quantised.

        Raises:
            MissingPackageError: openvino or an ONNX package is not installed.
            ZooError: the opset has an operator for attention, whose products cannot be split, or
                it is to be written for a GPU.
            MachineError: the model cannot be expressed in ONNX, or OpenVINO cannot read that, or in
                int8 the model loses too much or OpenVINO computes it in float all the same.
        """
        require("openvino", extra="openvino", needed_by="--to openvino")
        from export.to_onnx import onnx_graph, refuse_one_attention

        if options.device != "cpu":
            raise ZooError(_not_on(options.device))
        refuse_one_attention(options.opset, target=self.name)
        proto = onnx_graph(model, example, metadata=metadata, opset=options.opset)
        facts: dict[str, Any] = {}
        if precision == "int8":
            from export.quantize import CPU, quantise

            assert options.calibration is not None
            proto, facts["int8"] = quantise(proto, CPU, options.calibration, _opened)
        network = read_graph(proto.SerializeToString(), fold=precision != "int8")
        save_network(network, path, precision=precision, metadata=metadata)
        if precision == "int8":
            facts["computed_in"] = verified_int8(OpenVinoSession(path))
        return {"operations": len(network.get_ops()), **facts}

    def open(self, path: Path, *, device: str) -> "OpenVinoSession":
        """Run a file, which is data: a graph of OpenVINO's own operations."""
        return OpenVinoSession(path, device=device)

    def pending(self, path: Path, *, device: str) -> str | None:
        """What keeps this machine from running the file."""
        return _obstacle(_precision(_read(path)), device)

    def proxy(self, path: Path) -> "OpenVinoSession":
        """Compute with the numbers in the file, which are fp32 where it is bf16, in fp32."""
        return OpenVinoSession(path, precision="fp32")

    def versions(self) -> dict[str, str]:
        """Of the exporter, the format in between and the runtime."""
        return {name: version(name) for name in ("torch", "onnx", "onnxscript", "openvino")}


class OpenVinoSession:
    """OpenVINO on the CPU, with as many threads as torch has.

    It is set up for latency: all threads work on the one batch at hand. What OpenVINO calls
    throughput splits them over batches that are under way at once, and one caller has just one.

    A network of a fixed shape is faster than one for any number of images: it is compiled for one
    image when it is opened, and for each of the first MOST_SHAPES numbers when it meets them. All
    others share one that takes any.

    With `precision` it computes in that, whatever the file is for.

    Shapes:
        run: (B, 3, H, W) float32 of the size it was written for -> (B, K) float32.

    Raises:
        MissingPackageError: openvino is not installed.
        ArtifactError: the file is damaged, lacks its .bin, or takes no batch of images.
        MachineError: it does not run on `device`, or not in its precision.
    """

    backend = "openvino"

    def __init__(self, path: Path, *, device: str = "cpu", precision: str | None = None) -> None:
        network = _read(path)
        self.precision, self.device, self._path = precision or _precision(network), device, path
        obstacle = _obstacle(self.precision, device)
        if obstacle is not None:
            kind = MachineError if device == "cpu" else OtherDeviceError
            raise kind(f"{path} does not run here: {obstacle}")
        self.input_shape = _input_shape(network, path)  # (batch, C, H, W)
        self._network, self._threads = network, torch.get_num_threads()  # the same for all backends
        self._requests: dict[int | None, _Request] = {}  # by images; None: any number of them
        self._compiled = self._compile(1)
        self._requests[1] = _Request(self._compiled)
        self._last: _Request | None = None
        self.runtime = f"openvino {version('openvino')} CPU"

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch.

        Raises:
            MachineError: the file does not take this shape.
        """
        check_batch(images, self.input_shape, self._path)
        self._last = self._request(len(images))
        return self._last.run(images.contiguous())

    def _request(self, count: int) -> "_Request":
        """The one for so many images."""
        key = count if count in self._requests or len(self._requests) < MOST_SHAPES else None
        if key not in self._requests:
            self._requests[key] = _Request(self._compile(key))
        return self._requests[key]

    def _compile(self, count: int | None) -> "openvino.CompiledModel":
        network = self._network
        if count is not None:
            network = network.clone()
            network.reshape([count, *self.input_shape[1:]])
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS.get(self.precision, "f32"),
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several processes would be tied to the same cores
        }
        try:
            return _core().compile_model(network, "CPU", settings)
        except RuntimeError as reason:
            raise ArtifactError(f"OpenVINO cannot run {self._path}: {_last_line(reason)}") from None

    def synchronize(self) -> None:
        """Nothing to wait for: `run` returns finished logits."""

    @property
    def inner_ms(self) -> float | None:
        """What OpenVINO's own clock says of the last call, in milliseconds; None before any.

        Its benchmark_app tells this time. What a caller waits for is longer by the way from a torch
        tensor to OpenVINO and back.
        """
        return self._last.latency_ms if self._last else None

    @property
    def computed_in(self) -> Mapping[str, int]:
        """How many convolutions and products run in which of OpenVINO's types, such as u8."""
        counts: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            if "layerType" in facts and facts["layerType"].astype(str) in HEAVY:
                counts[facts["runtimePrecision"].astype(str)] += 1
        return dict(sorted(counts.items()))


class _Request:
    """A compiled network on images that lie where OpenVINO is told.

    All around its own work counts: it takes half a millisecond for a small network and one image.
    """

    def __init__(self, compiled: "openvino.CompiledModel") -> None:
        self._request = compiled.create_infer_request()
        self._bound: tuple[int, int] | None = None  # address and number of the images
        self._logits: Tensor | None = None  # what the request writes to

    def run(self, images: Tensor) -> Tensor:
        """Logits of contiguous images."""
        place = images.data_ptr(), len(images)
        if place != self._bound:  # images that come again, or others in their place, are bound
            import openvino

            self._request.set_input_tensor(openvino.Tensor(images.numpy(), shared_memory=True))
            self._bound, self._logits = place, None
        self._request.infer(share_outputs=True, decode_strings=False)
        if self._logits is None:
            self._logits = torch.from_numpy(self._request.get_output_tensor().data)
        return self._logits.clone()

    @property
    def latency_ms(self) -> float:
        """Of the last call, by OpenVINO's own clock."""
        return float(self._request.latency)


def read_graph(onnx_file: bytes, *, fold: bool = True) -> "openvino.Model":
    """An ONNX graph as OpenVINO's network.

    Without `fold` constants stay as they are. Integer weights have to: folded, they become float,
    and so does all that is computed with them.

    From ONNX and not from torch: the networks come out equal or smaller and as fast, and the
    converter for torch reports each use to OpenVINO's makers over the network.

    Raises:
        MachineError: it holds an operator that OpenVINO does not know.
    """
    from openvino.passes import ConstantFolding, Manager

    try:
        network = _core().read_model(onnx_file)
    except RuntimeError as reason:
        raise MachineError(
            f"OpenVINO cannot read the ONNX graph of this model: {_last_line(reason)}"
        ) from None
    if fold:
        passes = Manager()
        passes.register_pass(ConstantFolding())  # else each bias keeps how ONNX lines it up
        passes.run_passes(network)
    _split_attention(network)
    return network


def _split_attention(network: "openvino.Model") -> None:
    """Multiply the matrices of attention with as many tokens as heads in three dimensions.

    For a fixed number of images OpenVINO's CPU plugin fuses attention with the transpositions
    around it, and takes heads and tokens for one another where there are as many: wrong logits
    (2026.4). In three dimensions nothing can be confused, whoever runs the file.
    """
    from openvino import opset13 as ops

    for node in network.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        sides = node.input_values()
        left, right, product = map(_lengths, (*sides, node.output(0)))
        if len(product) != 4 or not left[:2] == right[:2] == product[:2]:
            continue
        batch, heads, tokens, _ = product
        if batch == -1 and heads == tokens:
            flat = [ops.reshape(side, [-1, *_lengths(side)[2:]], False) for side in sides]
            found = ops.reshape(ops.matmul(*flat, **node.get_attributes()), product, False)
            node.output(0).replace(found.output(0))
    network.validate_nodes_and_infer_types()


def _lengths(values: "openvino.Output") -> list[int]:
    """Of their axes, -1 where any is allowed."""
    return [axis.get_length() if axis.is_static else -1 for axis in values.get_partial_shape()]


def save_network(
    network: "openvino.Model", path: Path, *, precision: str, metadata: Mapping[str, str]
) -> None:
    """Write the .xml to `path` and the .bin beside it.

    Raises:
        OSError: the disk does not take them.
    """
    import openvino

    for key, value in {**metadata, "precision": precision}.items():
        network.set_rt_info(value, [SECTION, key])
    try:
        openvino.save_model(network, path, compress_to_fp16=precision == "fp16")
    except RuntimeError as reason:
        why = f"OpenVINO cannot write it, is the disk full? ({_last_line(reason)})"
        raise OSError(errno.EIO, why, str(path)) from None


def _opened(proto: "onnx.ModelProto") -> "OpenVinoSession":
    """Run a graph that is no file yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        network = read_graph(proto.SerializeToString(), fold=False)
        save_network(network, path, precision="int8", metadata={})
        return OpenVinoSession(path)


def verified_int8(session: OpenVinoSession) -> Mapping[str, int]:
    """What the layers are computed in.

    Raises:
        MachineError: none of them in integers.
    """
    found = session.computed_in
    if not INTEGERS & found.keys():
        kinds = ", ".join(found) or "nothing"
        raise MachineError(f"OpenVINO computes the int8 network in {kinds} here, not in integers")
    return found


@cache
def _core() -> "openvino.Core":
    """The one of this process.

    Its CPU plugin sets a signal stack for the thread that loads it, and takes it away with the
    last user: a signal that Python handles after that would write to freed memory.
    """
    import openvino

    return openvino.Core()


def _read(path: Path) -> "openvino.Model":
    require("openvino", extra="openvino", needed_by=f"running {path.name}")
    with path.open("rb") as file:
        is_xml = file.read(5) == b"<?xml"  # else OpenVINO tries all that it knows, and is loud
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ArtifactError(f"{path} lacks its weights, {weights.name}, beside it")
    try:
        if is_xml:
            return _core().read_model(path, weights)
        reason = "it is no XML file"
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = _last_line(error)
    raise ArtifactError(f"{path} is no network of OpenVINO, or it is damaged: {reason}")


def _precision(network: "openvino.Model") -> str:
    key = [SECTION, "precision"]
    return network.get_rt_info(key).astype(str) if network.has_rt_info(key) else "fp32"


def _obstacle(precision: str, device: str) -> str | None:
    """Why a file of this precision does not run on `device`."""
    if device != "cpu":
        return _not_on(device)
    abilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in abilities:
        return "this CPU has no units for bf16, and OpenVINO would compute in fp32 instead"
    return None


def _not_on(device: str) -> str:
    return f"OpenVINO runs on CPUs here, not on {device}: use --device cpu"


def _input_shape(network: "openvino.Model", path: Path) -> tuple[str, int, int, int]:
    shapes = [node.partial_shape for node in network.inputs]
    found = ", ".join(f"{node.element_type} {node.partial_shape}" for node in network.inputs)
    is_image = len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][0].is_dynamic
    if not is_image or any(axis.is_dynamic for axis in list(shapes[0])[1:]):
        raise ArtifactError(
            f"{path} should take one batch of images, f32 [?,C,H,W]; its inputs are {found}"
        )
    channels, height, width = (axis.get_length() for axis in list(shapes[0])[1:])
    return ("batch", channels, height, width)


def _last_line(reason: Exception) -> str:
    """What OpenVINO has to say comes after where in its source it says so."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(reason)
