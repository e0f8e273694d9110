"""How an engine is run, which takes a GPU: what TensorRT and torch are told."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from export.tensorrt_run import WARMUP, TensorRtSession
from zoo.errors import MachineError

CLASSES, LARGEST = 10, 8
UNKNOWN = "N/A due to dynamic shapes"  # what an inspector says without a shape


class LogWithoutGpu:
    def __init__(self) -> None:
        self.errors: list[str] = []

    def clear(self) -> None:
        self.errors.clear()

    def reason(self) -> str:
        return self.errors[0]


class ContextWithoutGpu:
    """Stands in for an execution context: it notes what it is told, and computes nothing."""

    def __init__(self, machine: "GpuThatIsNotThere") -> None:
        self.machine, self.told = machine, []
        self.batch = self.memory = self.size = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.told.append("shape")
        self.batch = shape[0]
        return self.batch <= LARGEST

    def update_device_memory_size_for_shapes(self) -> int:
        self.told.append("size")
        return 1000 * self.batch

    def set_device_memory(self, memory: int, size: int) -> None:
        self.told.append("memory")
        self.memory, self.size = memory, size

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return self.batch, CLASSES

    def set_tensor_address(self, name: str, address: int) -> None:
        self.told.append(name)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7  # never the default one
        self.told.append("captured" if self.machine.is_capturing else "run")
        if self.machine.is_capturing and self.machine.fault:
            self.machine.log.errors.append(self.machine.fault)
            return False
        return True


class GpuThatIsNotThere:
    """Stands in for torch's streams and graphs, and for an engine: nothing is computed."""

    def __init__(self, patch: Callable[[str, Any], None]) -> None:
        self.is_capturing, self.fault = False, ""
        self.log, self.contexts = LogWithoutGpu(), []
        stream = SimpleNamespace(
            cuda_stream=7, wait_stream=lambda other: None, synchronize=lambda: None
        )
        patch("torch.cuda.device", lambda device: nullcontext())
        patch("torch.cuda.Stream", lambda device: stream)
        patch("torch.cuda.current_stream", lambda device: None)
        patch("torch.cuda.synchronize", lambda device: None)
        patch("torch.cuda.CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        patch("torch.cuda.graph", self.capture)

    @contextmanager
    def capture(self, graph: object, **_: object) -> Iterator[None]:
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False
            if self.log.errors:  # as ending a capture does that something broke
                raise RuntimeError("CUDA error: operation failed due to a previous error")

    def create_execution_context(self, strategy: str) -> ContextWithoutGpu:
        assert strategy == "user managed"
        self.contexts.append(ContextWithoutGpu(self))
        return self.contexts[-1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("images", 0)
        return [(batch, 3, 4, 4) for batch in (1, 5, LARGEST)]

    def create_engine_inspector(self) -> Any:
        def told(form: str) -> str:
            kind = "Half" if inspector.execution_context.batch == 5 else UNKNOWN
            tensors = [{"Format/Datatype": kind}]
            return json.dumps({"Layers": [{"LayerType": "kgen", "Outputs": tensors}]})

        inspector = SimpleNamespace(get_engine_information=told)
        return inspector

    def session(self) -> TensorRtSession:
        session = object.__new__(TensorRtSession)
        session._device, session._path = torch.device("cpu"), Path("x.engine")
        session._engine, session._input, session._output = self, "images", "logits"
        session._open = SimpleNamespace(log=self.log, flavor=SimpleNamespace(name="tensorrt"))
        strategies = SimpleNamespace(USER_MANAGED="user managed")
        session._trt = SimpleNamespace(
            ExecutionContextAllocationStrategy=strategies,
            LayerInformationFormat=SimpleNamespace(JSON="json"),
        )
        session._captured = {}
        return session


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GpuThatIsNotThere:
    return GpuThatIsNotThere(monkeypatch.setattr)


def test_the_layers_are_told_for_the_batch_that_the_engine_is_tuned_for(
    gpu: GpuThatIsNotThere,
) -> None:
    """For a batch that is free TensorRT does not tell the types of most tensors."""
    assert gpu.session().layer_types == {"kgen": {"fp16": 1}}


def images(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 3, 4, 4)


def test_each_batch_size_has_a_context_that_is_told_all_before_it_runs(
    gpu: GpuThatIsNotThere,
) -> None:
    session = gpu.session()

    logits = [session.run(images(batch)) for batch in (1, 4, 1)]

    assert [tuple(one.shape) for one in logits] == [(1, CLASSES), (4, CLASSES), (1, CLASSES)]
    assert len({one.data_ptr() for one in logits}) == 3  # nobody's answer is written over
    setting = ["shape", "size", "memory", "images", "logits"]
    assert [context.told for context in gpu.contexts] == [
        [*setting, *["run"] * WARMUP, "captured"]
    ] * 2


def test_graphs_share_memory_that_is_large_enough(gpu: GpuThatIsNotThere) -> None:
    """Before TensorRT 10.10 each takes that of the largest batch, which a GPU may hold once."""
    session = gpu.session()

    for batch in (1, 4, 8, 3, 8, 2):
        session.run(images(batch))

    one, four, eight, three, two = gpu.contexts
    assert len({one.memory, four.memory, eight.memory}) == 3
    assert three.memory == two.memory == four.memory
    assert (two.size, four.size) == (2000, 4000)


def test_a_batch_beyond_the_profile_is_refused(gpu: GpuThatIsNotThere) -> None:
    gpu.log.errors = ["satisfyProfile Runtime dimension does not satisfy any profile"]
    gpu.log.clear = lambda: None

    with pytest.raises(MachineError) as caught:
        gpu.session().run(images(LARGEST + 1))

    assert str(caught.value) == (
        "x.engine does not take images of shape (9, 3, 4, 4): satisfyProfile Runtime dimension "
        "does not satisfy any profile"
    )


def test_what_tensorrt_met_in_a_capture_is_told_and_not_how_the_capture_ended(
    gpu: GpuThatIsNotThere,
) -> None:
    gpu.fault = "IExecutionContext::enqueueV3: operation not permitted when stream is capturing"

    with pytest.raises(MachineError) as caught:
        gpu.session().run(images(2))

    assert str(caught.value) == f"x.engine cannot be captured as a CUDA graph: {gpu.fault}"
