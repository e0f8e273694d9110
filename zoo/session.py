"""Running a model for inference: the protocol of all backends, and torch's own two."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zoo.checkpoint import Checkpoint
from zoo.doctor import require_kernels
from zoo.errors import MachineError
from zoo.machine import compiler, has_python_headers

UNTRAINED_SEED = 0
UNTRAINED_CLASSES = 100
CPP_LOGGER = "torch.utils.cpp_extension"
NO_GPU = "No CUDA runtime is found"  # what it says where a CUDA toolkit is installed all the same


class InferenceSession(Protocol):
    """What measures and evaluates a model, whatever runs it.

    Shapes:
        run: (B, 3, H, W) float32, normalised, on `device` -> (B, K) float32 logits on `device`.
    """

    backend: str  # "eager", "compile", "onnx"
    precision: str  # "fp32"
    runtime: str  # with its version: "torch 2.14.1"
    device: str

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch; on a GPU the work may still be under way on return."""
        ...

    def synchronize(self) -> None:
        """Wait until all work of this session is done."""
        ...


class EagerSession:
    """torch, operation by operation, in channels-last memory format or the one that is named.

    The model is changed in place: one in another format moves, one in this format stays.

    Raises:
        MachineError: `device` is a GPU that torch cannot use.
    """

    backend = "eager"
    precision = "fp32"

    def __init__(
        self, model: nn.Module, *, device: str = "cpu", channels_last: bool = True
    ) -> None:
        require_kernels(device)
        self.device = device
        self.runtime = f"torch {torch.__version__}"
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model: nn.Module = model.eval().to(device)
        if not _lies_in(self.format, self.model):
            self.model.to(memory_format=self.format)

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch."""
        exact = tf32(allowed=False) if self.device.startswith("cuda") else nullcontext()
        with torch.inference_mode(), exact:
            return self._forward(images.contiguous(memory_format=self.format))

    def synchronize(self) -> None:
        """Wait for the GPU, where there is one."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def _forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.float()


def _lies_in(memory_format: torch.memory_format, model: nn.Module) -> bool:
    """Whether nothing needs to move; asked to, torch moves weights of one pixel and channel too."""
    maps = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.ndim == 4)
    return all(tensor.is_contiguous(memory_format=memory_format) for tensor in maps)


class CompiledSession(EagerSession):
    """torch.compile with static shapes: the first call at each batch size compiles."""

    backend = "compile"

    def __init__(self, model: nn.Module, *, device: str = "cpu") -> None:
        super().__init__(model, device=device)
        require_compiler(device)
        self.model.compile(dynamic=False)


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Let a GPU round fp32 products to TF32, or keep it from that, within the block."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


@contextmanager
def cudnn_benchmark(wanted: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms on shapes that it meets for the first time, within the block."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads within the block; None: as many as before."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_compiler(device: str) -> None:
    """Check what torch.compile needs on `device`; on a CPU it does not miss a GPU aloud.

    Raises:
        MachineError: torch.compile on a CPU finds no C++ compiler, or no Python.h.
    """
    if device.startswith("cuda"):
        return
    if compiler() is None:
        raise MachineError(
            "torch.compile on a CPU needs a C++ compiler and none was found: install g++ "
            "(or point CXX at one), or go on with --no-compile"
        )
    if not has_python_headers():
        raise MachineError(
            "torch.compile on a CPU needs Python.h and it was not found: install your system's "
            "python3-dev, or go on with --no-compile"
        )
    logging.getLogger(CPP_LOGGER).addFilter(_misses_no_gpu)


def _misses_no_gpu(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(NO_GPU)


def open_eager(run: str, device: str, *, allow: str | None = None) -> InferenceSession:
    """Open a run folder for eager inference; `allow` as in `Checkpoint.model`."""
    return EagerSession(Checkpoint.open(run).model(allow=allow), device=device)


def open_compiled(run: str, device: str, *, allow: str | None = None) -> InferenceSession:
    """Open a run folder for compiled inference; `allow` as in `Checkpoint.model`."""
    return CompiledSession(Checkpoint.open(run).model(allow=allow), device=device)


def open_untrained(name_and_size: str, device: str) -> InferenceSession:
    """Build NAME@SIZE for eager inference, as it is initialised.

    Normalisation layers then pass their input on almost as it is. That changes no time: in none of
    the catalogue's networks does an activation fall among the denormal numbers, which are slow.
    """
    return EagerSession(_untrained(name_and_size), device=device)


def open_untrained_compiled(name_and_size: str, device: str) -> InferenceSession:
    """Build NAME@SIZE for compiled inference, as it is initialised."""
    return CompiledSession(_untrained(name_and_size), device=device)


def _untrained(name_and_size: str) -> nn.Module:
    from zoo.models import create_model

    name, _, size = name_and_size.rpartition("@")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        return create_model(name, num_classes=UNTRAINED_CLASSES, image_size=int(size))
