"""Run a TensorRT engine on torch tensors, each batch size as one CUDA graph."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.artifact import command_again
from export.tensorrt_api import (
    Flavor,
    MessageLog,
    check_gpu,
    installed,
    load_flavor,
    message_log,
    one_line,
)
from export.tensorrt_inspect import LayerTypes, engine_layer_types
from zoo import machine
from zoo.doctor import require_kernels
from zoo.errors import ArtifactError, MachineError, OtherDeviceError, first_line
from zoo.machine import Gpu

KEPT = 16  # graphs of as many batch sizes
WARMUP = 2  # calls before a capture: TensorRT settles what depends on the shape in the first


@dataclass(frozen=True, slots=True)
class _Captured:
    """One batch size: its graph, and what must live as long as that."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    logits: Tensor
    context: Any
    memory: Tensor  # of the context, and of others


class TensorRtSession:
    """A TensorRT or TensorRT-RTX engine on one NVIDIA GPU.

    Shapes:
        run: (B, 3, H, W) float32 -> (B, K) float32, B up to the largest of the engine's profile.

    Note:
        The first call of a batch size captures its graph, which takes a while. A graph keeps its
        buffers: its copies in and out, on the GPU, are part of each call.

    Raises:
        MissingPackageError: no TensorRT is installed.
        MachineError: `device` is no GPU, or one that TensorRT has no code for.
        ArtifactError: the file is no engine, or is one of another GPU or TensorRT.
    """

    backend = "trt"

    def __init__(self, path: Path, *, device: str) -> None:
        if not device.startswith("cuda"):
            raise OtherDeviceError(
                f"{path} is a TensorRT engine and runs on a GPU only: --device cuda"
            )
        require_kernels(device)
        self.device = device
        self._device = torch.device(device)
        self._path = path
        gpu = machine.torch_facts(self._device.index or 0).gpu
        with torch.cuda.device(self._device):
            self._open = deserialize(path, device=device, gpu=gpu)
        self._engine, self._trt = self._open.engine, self._open.flavor.trt
        self.runtime = str(self._open.flavor)
        self.precision = self._engine.name.rpartition(" ")[2] or "unknown"  # see `build_engine`
        self._input, self._output = self._tensor_names()
        self._captured: dict[tuple[int, ...], _Captured] = {}

    @property
    def layer_types(self) -> LayerTypes:
        """How many layers of the engine compute in which number format."""
        with torch.cuda.device(self._device):
            context = self._idle_context()
            _, tuned_for, _ = self._engine.get_tensor_profile_shape(self._input, 0)
            if context is not None and not context.set_input_shape(self._input, tuple(tuned_for)):
                context = None
            return engine_layer_types(self._engine, self._trt, context)

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch.

        Raises:
            MachineError: the engine does not take this shape, or TensorRT fails.
        """
        shape = tuple(images.shape)
        with torch.inference_mode(), torch.cuda.device(self._device):
            captured = self._captured.get(shape) or self._capture(shape)
            captured.images.copy_(images)
            captured.graph.replay()
            return captured.logits.clone()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self._device)

    def _capture(self, shape: tuple[int, ...]) -> _Captured:
        self._open.log.clear()
        context = self._new_context()
        if context is None or not context.set_input_shape(self._input, shape):
            raise MachineError(f"{self._path} does not take images of shape {shape}: {self._why()}")
        # A graph holds on to its context, so each has one. Their memory, of this shape alone and
        # before TensorRT 10.10 of the largest batch, is shared: one graph runs at a time.
        size = max(context.update_device_memory_size_for_shapes(), 1)
        memory = self._kept_memory(size)
        if memory is None:
            memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        context.set_device_memory(memory.data_ptr(), size)
        images = torch.zeros(shape, device=self._device)
        logits = torch.empty(tuple(context.get_tensor_shape(self._output)), device=self._device)
        for name, buffer in ((self._input, images), (self._output, logits)):
            context.set_tensor_address(name, buffer.data_ptr())
        # Not the default stream, to which TensorRT adds synchronisation.
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        for _ in range(WARMUP):
            self._enqueue(context, stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._enqueue(context, stream)
        except RuntimeError as reason:  # of CUDA: how the capture ended, not what TensorRT met
            why = self._why() if self._open.log.errors else first_line(reason)
            raise MachineError(f"{self._path} cannot be captured as a CUDA graph: {why}") from None
        if len(self._captured) == KEPT:  # the oldest goes, once nothing of it is under way
            self.synchronize()
            del self._captured[next(iter(self._captured))]
        self._captured[shape] = _Captured(graph, images, logits, context, memory)
        return self._captured[shape]

    def _kept_memory(self, size: int) -> Tensor | None:
        """The smallest of the graphs' that holds so many bytes; None where none does."""
        kept = (one.memory for one in self._captured.values() if one.memory.numel() >= size)
        return min(kept, key=Tensor.numel, default=None)

    def _new_context(self) -> Any:
        if self._open.flavor.name == "rtx":
            return _rtx_context(self._engine, self._trt)
        return self._idle_context()

    def _idle_context(self) -> Any:
        """A context without memory, which compiles nothing for the shapes that it is told."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._engine.create_execution_context(strategy)

    def _enqueue(self, context: Any, stream: torch.cuda.Stream) -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise MachineError(f"{self._path} did not run: {self._why()}")

    def _why(self) -> str:
        return self._open.log.reason()

    def _tensor_names(self) -> tuple[str, str]:
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        kinds = {engine.get_tensor_dtype(name) for name in names}
        if len(inputs) != 1 or len(outputs) != 1 or kinds != {trt.DataType.FLOAT}:
            raise ArtifactError(
                f"{self._path} should take one float32 batch of images and give float32 logits; "
                f"it has {len(inputs)} inputs and {len(outputs)} outputs"
            )
        return inputs[0], outputs[0]


def _rtx_context(engine: Any, trt: Any) -> Any:
    """A context that compiles the kernels of a shape at once: a graph would keep the slow ones."""
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    settings.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return engine.create_execution_context(settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenEngine:
    """A deserialised engine; its runtime has to live as long."""

    engine: Any
    flavor: Flavor
    log: MessageLog
    runtime: Any


def deserialize(path: Path, *, device: str, gpu: Gpu | None) -> OpenEngine:
    """Read an engine with whichever installed flavour wrote it.

    Raises:
        MissingPackageError: none is installed.
        MachineError: the GPU is too old, or a flavour does not start.
        ArtifactError: the file is no engine, or is one of another GPU or TensorRT.
    """
    plan = path.read_bytes()
    refusals, unusable = [], []
    for name in installed(device=device) or (None,):
        try:
            flavor = load_flavor(name, device=device)
            check_gpu(flavor, gpu)
        except MachineError as error:  # it lacks its libraries, or code that another flavour has
            unusable.append(error)
            continue
        log = message_log(flavor.trt)
        log.clear()
        try:
            runtime = flavor.trt.Runtime(log.logger)
        except Exception as reason:  # a null pointer in C++
            raise MachineError(f"{flavor} does not start: {first_line(reason)}") from None
        runtime.engine_host_code_allowed = True  # a version-compatible engine brings its own
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return OpenEngine(engine=engine, flavor=flavor, log=log, runtime=runtime)
        fault = _rtx_header_fault(runtime, plan, log) if name == "rtx" else None
        refusals.append(f"{flavor}: {fault or log.reason()}")
    if not refusals:
        raise unusable[0]
    raise ArtifactError(
        f"{path} is no engine for this GPU and this TensorRT ({'; '.join(refusals)}): "
        f"write it here with {command_again(path, 'trt', device=device)}"
    )


def _rtx_header_fault(runtime: Any, plan: bytes, log: MessageLog) -> str | None:
    """What is wrong with the header of an engine; reading it alone logs that in plain words."""
    log.notes.clear()
    runtime.get_engine_validity(plan)
    return one_line(log.notes[0]) if log.notes else None
