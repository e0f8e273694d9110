"""What a GPU adds to a measurement, with fakes: no GPU is needed, and none has verified it."""

import sys
import types
from itertools import count
from typing import Any

import pytest
import torch

from profiling.gpu import CudaClock, Nvml, open_nvml
from profiling.lane import Trial
from profiling.latency import time_calls
from profiling.record import GpuState
from profiling.subject import Subject
from profiling.worker import Worker

GIB = 2**30


class FakeGpuSession:
    """Notes in which order it is called; its work takes no time."""

    backend, precision, runtime, device = "fake", "fp32", "torch fake", "cuda"

    def __init__(self) -> None:
        self.log: list[str] = []

    def run(self, images: torch.Tensor) -> torch.Tensor:
        self.log.append("run")
        return images

    def synchronize(self) -> None:
        self.log.append("synchronize")


class FakeCudaClock:
    """Says 1, 2, 3... ms in turn."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.times = log, count(1)

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")

    def elapsed_ms(self) -> float:
        return float(next(self.times))


class FakeNvmlError(Exception):
    """What NVML raises where a device does not tell."""


def fake_pynvml(**answers: Any) -> types.SimpleNamespace:
    """The package with some of its functions: a list is answered one by one; None raises."""

    def function(answer: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            if answer is None:
                raise FakeNvmlError
            return answer.pop(0) if isinstance(answer, list) else answer

        return ask

    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    functions = {name: function(answer) for name, answer in answers.items()}
    return types.SimpleNamespace(NVMLError=FakeNvmlError, **constants, **functions)


def test_device_and_enqueue_times_of_each_call() -> None:
    session = FakeGpuSession()
    clock = FakeCudaClock(session.log)

    calls = time_calls(
        session,
        torch.zeros(1),
        seconds=0,
        least=2,
        device_clock=clock,
        before_each=lambda: session.log.append("flush"),
    )

    assert calls.device_ms == (1.0, 2.0)
    assert len(calls.wall_ms) == len(calls.cpu_ms) == len(calls.enqueue_ms) == 2
    for enqueued, whole in zip(calls.enqueue_ms, calls.wall_ms, strict=True):
        assert 0 <= enqueued <= whole
    one = ["flush", "start", "run", "stop", "synchronize"]
    assert session.log == ["synchronize", *one, *one]


class EventWithoutGpu:
    """Stands in for an event of CUDA that has been recorded and lies a moment ahead."""

    def __init__(self, enable_timing: bool) -> None:
        self.is_reached = not enable_timing

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"

    def synchronize(self) -> None:
        self.is_reached = True

    def elapsed_time(self, end: "EventWithoutGpu") -> float:
        if not end.is_reached:
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 1.5


def test_the_clock_waits_for_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime waits for its stream within a call, and its session has nothing to wait for."""
    monkeypatch.setattr(torch.cuda, "Event", EventWithoutGpu)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")

    calls = time_calls(
        FakeGpuSession(), torch.zeros(1), seconds=0, device_clock=CudaClock("cuda:1")
    )

    assert calls.device_ms == (1.5,)


def test_nvml_tells_clocks_temperature_throttling_and_memory() -> None:
    library = fake_pynvml(
        nvmlDeviceGetCurrentClocksEventReasons=0x01 | 0x04 | 0x20,  # idle is no reason
        nvmlDeviceGetClockInfo=1755,
        nvmlDeviceGetTemperature=61,
        nvmlDeviceGetMemoryInfo=types.SimpleNamespace(used=3 * GIB),
        nvmlDeviceGetTotalEnergyConsumption=123_456,
    )
    nvml = Nvml(library, "handle")

    assert nvml.energy_mj == 123_456
    assert nvml.state() == {
        "clock_mhz": 1755,
        "memory_clock_mhz": 1755,
        "temperature_c": 61,
        "throttled_by": ["power cap", "temperature"],
    }
    assert nvml.used_mib == 3072.0


def test_an_older_driver_calls_the_reasons_otherwise() -> None:
    library = fake_pynvml(nvmlDeviceGetCurrentClocksThrottleReasons=0x80)

    assert Nvml(library, "handle").state()["throttled_by"] == ["power brake"]


def test_what_nvml_does_not_tell_is_absent_and_never_zero() -> None:
    library = fake_pynvml(nvmlDeviceGetTotalEnergyConsumption=None, nvmlDeviceGetTemperature=None)
    nvml = Nvml(library, "handle")

    assert nvml.energy_mj is None
    assert set(nvml.state().values()) == {None}


def test_without_the_package_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert open_nvml("cuda") is None


def test_a_round_meters_the_energy_of_its_calls() -> None:
    worker = Worker()
    worker._session, worker._images = FakeGpuSession(), torch.zeros(4)
    worker._nvml = Nvml(fake_pynvml(nvmlDeviceGetTotalEnergyConsumption=[1000, 1600]), "handle")

    taken = worker.time(seconds=0, least=3, most=9, settle=False)

    assert len(taken["wall_ms"]) == 3
    assert taken["gpu"]["energy_mj"] == 600


def open_fake(path: str, device: str) -> FakeGpuSession:
    return FakeGpuSession()


def test_memory_that_other_workers_take_meanwhile_is_not_the_session_s() -> None:
    """NVML tells of the whole GPU, and each backend of a benchmark is a process of its own."""
    used_mib = [
        *(1000, 1100),  # before and after opening
        *(1700, 1740),  # others have opened theirs by the first call
        *(2500, 2500),  # and called them by the warm-up
        *(2500, 2530),  # the round
    ]
    readings = [types.SimpleNamespace(used=mib * 2**20) for mib in used_mib]
    worker = Worker()
    worker._nvml = Nvml(fake_pynvml(nvmlDeviceGetMemoryInfo=readings), "handle")

    worker.open(f"{__name__}:open_fake", "path")
    worker.first_call(2, [3, 8, 8], stored=None)
    worker.warm_up(seconds=0)
    taken = worker.time(seconds=0, least=1, most=9, settle=False)

    assert taken["gpu"]["grown_mib"] == 100 + 40 + 30


def test_the_energy_of_flushes_is_not_told_as_that_of_calls() -> None:
    worker = Worker()
    worker._session, worker._images = FakeGpuSession(), torch.zeros(4)
    worker._flush = lambda: None
    worker._nvml = Nvml(fake_pynvml(nvmlDeviceGetTotalEnergyConsumption=[1000, 1600]), "handle")

    taken = worker.time(seconds=0, least=3, most=9, settle=False)

    assert taken["gpu"]["energy_mj"] is None


def round_of(**gpu: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(("clock_mhz", "memory_clock_mhz", "temperature_c", "throttled_by"))
    state = unknown | {"energy_mj": None, "grown_mib": None} | gpu
    times = {"wall_ms": [2.0, 2.0], "cpu_ms": [1.0, 1.0], "enqueue_ms": [], "device_ms": []}
    return times | {"untimed": 3, "gpu": state}


def trial() -> Trial:
    subject = Subject(
        model="m",
        backend="b",
        precision="fp32",
        opener="o",
        path="p",
        artifact_sha256="ab",
        file_bytes=1,
    )
    return Trial(subject, batch=4, budget_s=1.0)


REFERENCE = {"wall_ms": [1.0], "cpu_ms": [1.0]}


def test_rounds_add_up_to_energy_per_image_and_a_peak() -> None:
    one = trial()

    first = round_of(energy_mj=600, grown_mib=512.0, throttled_by=[], clock_mhz=1980)
    one.keep([first], [REFERENCE])
    later = round_of(energy_mj=200, grown_mib=640.0, throttled_by=["power cap"], clock_mhz=1700)
    one.keep([later], [REFERENCE])

    assert one.gpu == GpuState(
        clock_mhz=(1980, 1700),
        throttled_by=("power cap",),
        peak_memory_mib=640.0,
        energy_mj_per_image=800 / (4 * (4 + 6)),  # calls that were not timed took some too
    )


def test_an_energy_that_one_round_lacks_is_absent() -> None:
    one = trial()

    one.keep([round_of(energy_mj=600)], [REFERENCE])
    one.keep([round_of()], [REFERENCE])

    assert one.gpu == GpuState()


@pytest.mark.gpu
def test_a_real_gpu_times_itself() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    from profiling.gpu import l2_flush
    from zoo.models import create_model
    from zoo.session import EagerSession

    session = EagerSession(create_model("resnet_20"), device="cuda")
    images = torch.zeros(64, 3, 32, 32, device="cuda")

    calls = time_calls(
        session,
        images,
        seconds=0.2,
        device_clock=CudaClock("cuda"),
        before_each=l2_flush("cuda"),
    )

    for enqueued, device, whole in zip(
        calls.enqueue_ms, calls.device_ms, calls.wall_ms, strict=True
    ):
        assert 0 < device <= whole
        assert 0 < enqueued <= whole
