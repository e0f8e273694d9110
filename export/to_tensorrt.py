"""TensorRT engines, of TensorRT 10.4 and later or of TensorRT-RTX, each beside its typed ONNX."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.onnx_file import load_onnx
from export.onnx_session import OnnxSession
from export.simulate import SimulatedSession
from export.target import FLOATS, INT8, ExportOptions, Tolerance
from export.tensorrt_api import AMPERE, Flavor, check_gpu, load_flavor
from export.tensorrt_build import build_engine, check_options
from export.tensorrt_inspect import (
    graph_layer_types,
    summarise,
    verify_engine,
    verify_types,
)
from export.tensorrt_run import TensorRtSession
from export.to_onnx import onnx_graph
from export.typed import typed_fp16
from zoo import machine
from zoo.errors import MachineError, ZooError
from zoo.machine import Gpu
from zoo.onnx_graph import precision_of
from zoo.session import InferenceSession

if TYPE_CHECKING:
    import onnx

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu")
TENSORRT = (  # those with the bindings, whichever is there
    *("tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"),
    *("tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings"),
)


class TensorRtTarget:
    """One .engine file for NVIDIA GPUs, and the .onnx file it was built from.

    int8 is explicit quantisation, symmetric, with all that is not rounded in fp16.

    Note:
        Built, not run on hardware: no record of an engine's run is committed yet. TensorRT-RTX 1.7
        builds, but runs nothing, on compute capability 9.0 (tried on an H200).
    """

    name = "trt"
    suffix = ".engine"
    tolerance: Mapping[str, Tolerance] = {
        "fp32": Tolerance(logits=1e-3),
        "fp16": FLOATS["fp16"],
        "int8": INT8,
    }

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
        """Write the engine; return what it is tied to and its layers by kind and number format.

        For int8 also how it was quantised; accuracy is simulated on the CPU for that.

        The layers of the parsed network are counted and verified everywhere; those of the engine,
        which are fewer after fusion, only on a GPU.

        Raises:
            MissingPackageError: no TensorRT, or no onnx, is installed.
            ZooError: an option does not go with the flavour or the GPU.
            MachineError: TensorRT cannot build the engine, or not in the precision asked for, or
                the model loses too much in int8.
        """
        flavor = load_flavor(options.trt_flavor, device=options.device)
        gpu = _gpu(options.device)
        if gpu is None and flavor.name == "tensorrt":  # it would take the first GPU and not say so
            raise MachineError(
                f"{flavor} builds on the GPU that the engine is for, not for --device "
                f"{options.device}: use --device cuda, or --trt-flavor rtx, which builds without"
            )
        check_gpu(flavor, gpu)
        check_options(flavor, options)
        if options.trt_hardware_compatible and gpu and gpu.capability < AMPERE:
            raise ZooError(
                f"--trt-hardware-compatible starts at compute capability 8.0, this is the {gpu}"
            )
        graph = onnx_graph(model, example, metadata=metadata, opset=options.opset)
        facts: dict[str, Any] = {}
        if precision == "int8":
            from export.quantize import TENSORRT, quantise

            assert options.calibration is not None
            graph, facts["int8"] = quantise(
                graph,
                TENSORRT,
                options.calibration,
                lambda proto: SimulatedSession(typed_fp16(proto)),  # what is built, fp16 and all
            )
        if precision in ("fp16", "int8"):
            graph = typed_fp16(graph)
        # TensorRT builds on the GPU that is the current one.
        with torch.cuda.device(options.device) if gpu else nullcontext():
            torch.cuda.empty_cache()  # of what earlier proofs left, which TensorRT cannot use
            written = write_engine(
                graph, path, flavor, precision=precision, options=options, gpu=gpu
            )
        return {**written, **facts}

    def open(self, path: Path, *, device: str) -> InferenceSession:
        """Run an engine with the flavour that wrote it.

        Raises:
            MachineError: its layers compute in other formats than those of its graph.
        """
        session = TensorRtSession(path, device=device)
        has_graph = path.with_suffix(".onnx").is_file()
        expected = graph_layer_types(self.graph(path)) if has_graph else None
        verify_engine(session.layer_types, expected, precision=session.precision)
        return session

    def pending(self, path: Path, *, device: str) -> str | None:
        """An engine runs on a GPU alone, also one that was built without."""
        if device.startswith("cuda"):
            return None
        return "an engine runs on an NVIDIA GPU only; --prove it there with --device cuda"

    def proxy(self, path: Path) -> InferenceSession:
        """Run the typed graph that the engine was built from on the CPU.

        int8 is simulated: a CPU without VNNI clips the sums of weights that have 8 bits.
        """
        graph = self.graph(path)
        if precision_of(graph) == "int8":
            return SimulatedSession(graph)
        return OnnxSession(path.with_suffix(".onnx"))

    def graph(self, path: Path) -> "onnx.ModelProto":
        """The typed graph that the engine was built from."""
        return load_onnx(path.with_suffix(".onnx"))

    def versions(self) -> dict[str, str]:
        """Of the exporter, the format, its runtime on a CPU, and TensorRT."""
        return machine.installed_versions((*PACKAGES, *TENSORRT))


def write_engine(
    graph: "onnx.ModelProto",
    path: Path,
    flavor: Flavor,
    *,
    precision: str,
    options: ExportOptions,
    gpu: Gpu | None = None,
) -> Mapping[str, Any]:
    """Build a typed graph, verify the types of its layers, and write both files.

    `precision` is what convolutions and matrix products of the graph have to compute in; int8 means
    explicit quantisation: symmetric, per channel for weights, with float biases.

    Raises:
        MachineError: TensorRT cannot build the engine, or not in that precision.
    """
    source = graph.SerializeToString(deterministic=True)
    model = next((item.value for item in graph.metadata_props if item.key == "model"), "model")
    built = build_engine(source, flavor, options, name=f"{model} {precision}", gpu=gpu)
    expected = graph_layer_types(graph)
    verify_types(built.network, expected, precision=precision)
    path.write_bytes(built.plan)
    path.with_suffix(".onnx").write_bytes(source)
    facts = {
        "flavor": flavor.name,
        "tensorrt": flavor.version,
        "built_on": str(gpu) if gpu else "cpu",
        "runs_on": built.runs_on,
        "batch_min_opt_max": list(built.profile),
        "version_compatible": options.trt_version_compatible,
        "network_layers": built.network,
        "engine_bytes": len(built.plan),
        "layers": f"network: {summarise(built.network)}",
    }
    if gpu is None:
        return facts
    engine = TensorRtSession(path, device=options.device).layer_types
    verify_engine(engine, expected, precision=precision)
    return facts | {
        "engine_layers": engine,
        "layers": f"{facts['layers']}; engine: {summarise(engine)}",
    }


def _gpu(device: str) -> Gpu | None:
    if not device.startswith("cuda"):
        return None
    return machine.torch_facts(int(device.partition(":")[2] or 0)).gpu
