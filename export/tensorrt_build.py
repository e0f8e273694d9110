"""Build a TensorRT engine from a typed ONNX graph: strongly typed, one profile over the batch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.target import MAX_BATCH, ExportOptions
from export.tensorrt_api import TURING, Flavor, MessageLog, message_log
from export.tensorrt_inspect import LayerTypes, network_layer_types
from export.to_onnx import refuse_one_attention
from zoo.errors import ArtifactError, MachineError, ZooError
from zoo.files import write_atomic
from zoo.machine import RTX_CAPABILITIES, RTX_FROM, Gpu

RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"  # a feature of TensorRT from 10.10 on
MOST_ELEMENTS = 2**31 - 1  # of one value, for any batch of the profile (NVIDIA/TensorRT#4408)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """A serialised engine, and what the network had in it before it was compiled."""

    plan: bytes
    network: LayerTypes
    profile: tuple[int, int, int]  # images: the smallest batch, that it is tuned for, the largest
    runs_on: str  # a GPU, or compute capabilities


def check_options(flavor: Flavor, options: ExportOptions) -> None:
    """Refuse options that a flavour does not have, before anything is built.

    Raises:
        ZooError: an option is out of range, or has no meaning for the flavour.
    """
    if not 1 <= options.trt_opt_batch <= MAX_BATCH:
        raise ZooError(
            f"--trt-opt-batch takes 1 to {MAX_BATCH} images, got {options.trt_opt_batch}"
        )
    if options.trt_workspace_mib is not None and options.trt_workspace_mib < 1:
        raise ZooError(f"--trt-workspace takes MiB, 1 or more, got {options.trt_workspace_mib}")
    refuse_one_attention(options.opset, target="trt")
    if flavor.name != "rtx":
        if options.trt_timing_cache is not None and options.trt_timing_cache.is_dir():
            raise ZooError(
                f"--trt-timing-cache takes a file, got the folder {options.trt_timing_cache}"
            )
        return
    if options.trt_timing_cache is not None:
        raise ZooError("TensorRT-RTX has no timing cache: leave out --trt-timing-cache")
    if options.trt_version_compatible:
        raise ZooError(
            "a TensorRT-RTX engine runs on the version that built it alone: "
            "leave out --trt-version-compatible"
        )


def build_engine(
    graph: bytes,
    flavor: Flavor,
    options: ExportOptions,
    *,
    name: str,
    gpu: Gpu | None = None,
) -> BuiltEngine:
    """Compile a serialised ONNX model whose one input has a free batch axis.

    The types are those of the graph and nothing else: TF32 is off. `name` is kept in the engine.
    `gpu` is the one that builds; TensorRT-RTX needs none, and its engines suit every GPU that it
    has code for, from compute capability 8.0 on, or 7.5 alone where that builds.

    Raises:
        ZooError: see `check_options`.
        MachineError: TensorRT cannot parse the graph or build the engine.
    """
    check_options(flavor, options)
    trt, log = flavor.trt, message_log(flavor.trt)
    log.clear()
    try:
        builder = trt.Builder(log.logger)
    except Exception:  # a null pointer in C++, whatever the reason was
        raise MachineError(
            f"{flavor} does not start here ({log.reason()}): it builds on the GPU that the engine "
            "is for; --trt-flavor rtx builds without one"
        ) from None
    # No effect from TensorRT 11 on, where every network is strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = name
    parser = _parse(graph, network, flavor, log)
    types = network_layer_types(network)
    config = builder.create_builder_config()
    profile = _add_profile(builder, network, config, options.trt_opt_batch)
    runs_on = _configure(config, flavor, options, gpu)
    cache = _timing_cache(config, flavor, log, options.trt_timing_cache)
    plan = builder.build_serialized_network(network, config)
    del parser  # the network reads its weights up to here
    if plan is None:
        raise MachineError(f"{flavor} could not build the engine: {log.reason()}")
    if cache is not None and options.trt_timing_cache is not None:
        write_atomic(options.trt_timing_cache, bytes(cache.serialize()))
    return BuiltEngine(plan=bytes(plan), network=types, profile=profile, runs_on=runs_on)


def _parse(graph: bytes, network: Any, flavor: Flavor, log: MessageLog) -> Any:
    parser = flavor.trt.OnnxParser(network, log.logger)
    if parser.parse(graph):
        return parser
    if not parser.num_errors:
        raise MachineError(f"{flavor} cannot parse the ONNX graph: {log.reason()}")
    error = parser.get_error(0)
    where = f" at the {error.node_operator()} {error.node_name()}" if error.node_name() else ""
    text = " ".join(error.desc().split())
    raise MachineError(f"{flavor} cannot parse the ONNX graph{where}: {text}")


def _add_profile(builder: Any, network: Any, config: Any, opt_batch: int) -> tuple[int, int, int]:
    tensor = network.get_input(0)
    rest = tuple(tensor.shape)[1:]
    largest = _largest_batch(network)
    batches = (1, min(opt_batch, largest), largest)
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *[(batch, *rest) for batch in batches])
    config.add_optimization_profile(profile)
    return batches


def _largest_batch(network: Any) -> int:
    """MAX_BATCH, or fewer images where a value would have more elements than TensorRT takes.

    A free axis has length -1. Where another than the batch is free, a value was reshaped from one
    that counts, and has a product of 0 or less, or too small a one.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    shapes = [
        tuple(layer.get_output(index).shape)
        for layer in layers
        for index in range(layer.num_outputs)
    ]
    most = max((math.prod(shape[1:]) for shape in shapes if shape[:1] == (-1,)), default=1)
    return min(MAX_BATCH, MOST_ELEMENTS // max(most, 1))


def _configure(config: Any, flavor: Flavor, options: ExportOptions, gpu: Gpu | None) -> str:
    """Set everything but the profile and the timing cache; say what the engine runs on."""
    trt = flavor.trt
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else it names no types
    if hasattr(trt.PreviewFeature, RESIZE):  # else every batch takes the memory of the largest
        config.set_preview_feature(getattr(trt.PreviewFeature, RESIZE), True)
    if options.trt_workspace_mib is not None:
        bytes_ = options.trt_workspace_mib << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, bytes_)
    if flavor.name == "rtx":
        return _rtx_configure(config, trt, gpu)
    if options.trt_version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.trt_hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return "compute capability 8.0 and later"
    return str(gpu)


def _rtx_configure(config: Any, trt: Any, gpu: Gpu | None) -> str:
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # else it cannot be captured
    if gpu is None or gpu.capability != TURING:
        names = [f"{major}.{minor}" for major, minor in RTX_CAPABILITIES if major > TURING[0]]
        return f"compute capability {', '.join(names)}, {RTX_FROM[0]}.{RTX_FROM[1]} and later"
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    return "compute capability 7.5"


def _timing_cache(config: Any, flavor: Flavor, log: MessageLog, path: Path | None) -> Any:
    """Attach the file's timings; None where none are wanted."""
    if path is None:
        return None
    stored = path.read_bytes() if path.is_file() else b""
    log.clear()
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False) or log.errors:
        raise ArtifactError(
            f"{path} is no timing cache of {flavor} on this GPU: delete it or name another file"
        )
    return cache
