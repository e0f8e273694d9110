"""Peak memory of the process that runs a session, or of its GPU."""

import re
from pathlib import Path

from zoo.allocator import release_memory

RESIDENT = "peak resident memory of the process less that before opening"
RESIDENT_EVER = "peak resident memory since the process began less that before opening"
ALLOCATOR = "peak of torch's CUDA allocator less its use before opening"
METHODS = (RESIDENT, RESIDENT_EVER, ALLOCATOR)

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what proc(5) has one write to clear_refs to set VmHWM back to VmRSS
MIB = 2**20


class PeakMemory:
    """Peak memory between two `reset`s, as growth over the moment of construction.

    Construct it when torch is loaded and the session is not: what is counted then are the weights,
    the input, the activations and the runtime's own code, a compiler that it keeps included.

    On Linux without a GPU it is the resident set: `reset` gives back what was freed and sets the
    kernel's high-water mark to what is resident then, so memory that a runtime keeps from an
    earlier batch size still counts. Where the mark cannot be set back (some sandboxes), the peak
    is that of the whole process and the method says so. On CUDA it is torch's caching allocator,
    and nothing for runtimes that allocate on their own.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = device.startswith("cuda")
        self._device = device
        self._can_reset = False
        release_memory()
        self._before = self._now()

    def reset(self) -> None:
        """Begin a new peak."""
        if self._is_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
            return
        release_memory()
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
            self._can_reset = True
        except OSError:
            self._can_reset = False

    def read(self, runtime: str) -> tuple[float, str] | tuple[None, None]:
        """Peak in MiB and the method, for a session of this runtime; None where unknown."""
        if self._is_cuda:
            import torch

            if not runtime.startswith("torch"):
                return None, None
            peak = torch.cuda.max_memory_allocated(self._device)
            return round((peak - (self._before or 0)) / MIB, 2), ALLOCATOR
        peak_bytes = _status_bytes("VmHWM")
        if peak_bytes is None or self._before is None:
            return None, None
        method = RESIDENT if self._can_reset else RESIDENT_EVER
        return round(max(0, peak_bytes - self._before) / MIB, 2), method

    def _now(self) -> int | None:
        if self._is_cuda:
            import torch

            return torch.cuda.memory_allocated(self._device)
        return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    """A line of /proc/self/status such as `VmRSS:    1234 kB`; None where there is none."""
    try:
        text = STATUS.read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return None if found is None else 1024 * int(found[1])
