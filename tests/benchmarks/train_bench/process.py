"""A worker that holds still while another is measured."""

import ctypes
import os
import signal
from contextlib import suppress
from types import TracebackType

from profiling.process import WorkerProcess

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"
PR_SET_PDEATHSIG = 1  # of prctl(2)


class Stoppable(WorkerProcess):
    """A worker whose processes, those of its data loader included, stop between its turns.

    A loader left alone would go on to fill its queue in the time of another contender, and begin
    its own turn with batches that nobody had waited for.
    """

    def __init__(self, *, threads: int | None) -> None:
        super().__init__(threads=threads, module=f"{__package__}.worker")

    def stop(self) -> None:
        """Stop the process and its children where they are."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()  # stopped as it is; to end by itself would take it seconds
        super().__exit__(kind, error, trace)

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def die_with_parent() -> None:
    """Have Linux end this process with its parent: one that is stopped would not notice."""
    with suppress(OSError, AttributeError):  # another system
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
