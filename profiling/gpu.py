"""What a GPU tells beside the time of a call: its own clock, its state and its energy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
THROTTLE_REASONS = {  # bits of NVML's clocks event reasons that slow work down
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}


class CudaClock:
    """CUDA events on torch's current stream of a device.

    Note:
        Work on another stream counts as far as a call waits for it, as ONNX Runtime's does.
        Not verified: no machine with a GPU has run it yet.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._stream = torch.cuda.current_stream(device)
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def start(self) -> None:
        """Mark the first moment."""
        self._start.record(self._stream)

    def stop(self) -> None:
        """Mark the second."""
        self._stop.record(self._stream)

    def elapsed_ms(self) -> float:
        """Time between them, once the device has passed both.

        A session whose calls wait for its own stream, as ONNX Runtime's do, has not waited for this
        one, and torch refuses to read an event that is still to come.
        """
        self._stop.synchronize()
        return float(self._start.elapsed_time(self._stop))


def l2_flush(device: str) -> "Callable[[], None]":
    """A function that overwrites twice as much memory as the GPU's L2 cache holds, and waits."""
    import torch

    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(size, dtype=torch.uint8, device=device)

    def flush() -> None:
        buffer.zero_()
        torch.cuda.synchronize(device)

    return flush


class Nvml:
    """NVIDIA's management library on one GPU; each answer is None where it does not tell.

    Note:
        Not verified: no machine with a GPU has run it yet.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._nvml, self._handle = library, handle

    @property
    def energy_mj(self) -> int | None:
        """Energy of the whole device since its driver was loaded."""
        found: int | None = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return found

    @property
    def used_mib(self) -> float | None:
        """Memory of the whole device that is taken."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else round(memory.used / MIB, 2)

    def state(self) -> dict[str, Any]:
        """Clocks, temperature and what slows the device down at this moment."""
        nvml = self._nvml
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # its name before driver 535
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        reasons = THROTTLE_REASONS.items()
        return {
            "clock_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "throttled_by": None if bits is None else [name for b, name in reasons if bits & b],
        }

    def _ask(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (AttributeError, self._nvml.NVMLError):
            return None


def open_nvml(device: str) -> Nvml | None:
    """NVML on a CUDA device of torch; None without the package nvidia-ml-py or its driver."""
    try:
        import pynvml
    except ImportError:
        return None
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        pynvml.nvmlInit()
        return Nvml(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError:
        return None
