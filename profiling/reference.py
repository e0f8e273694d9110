"""The worker of the reference kernel, which everything that is measured has need of."""

from collections.abc import Callable, Mapping
from typing import Any

from profiling.process import START_LIMIT_S, WorkerError, WorkerProcess


class ReferenceWorker:
    """Asks its worker; one that died or hung is replaced once, a second death is final."""

    def __init__(self, start: Callable[[], WorkerProcess], greeting: Mapping[str, Any]) -> None:
        self._start, self._greeting = start, greeting
        self._worker = start()
        self._starts = 1
        self._error: WorkerError | None = None

    @property
    def pid(self) -> int:
        """The process of the worker."""
        return self._worker.pid

    def hello(self) -> dict[str, Any]:
        """Wait until it has loaded torch; what it says of the machine."""
        return self._worker.ask("hello", limit_s=START_LIMIT_S, **self._greeting)

    def ask(self, do: str, *, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            WorkerError: two workers in succession refused, died or gave no answer.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._worker.ask(do, limit_s=limit_s, **arguments)
        except WorkerError as error:
            if self._starts == 2:
                self._error = error
                raise
        self._worker.kill()
        self._worker, self._starts = self._start(), 2
        try:
            self.hello()
        except WorkerError as error:
            self._error = error
            raise
        return self.ask(do, limit_s=limit_s, **arguments)
