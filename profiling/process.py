"""The parent's end of a worker process: ask, wait, and clean up whatever happens."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any

from zoo.errors import OUT_OF_MEMORY

START_LIMIT_S = 600.0  # to import torch, on a loaded machine with a cold disk
GOODBYE_S = 5.0  # how long an idle worker may take to end by itself
OPEN_MP = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerError(Exception):
    """A worker said no, died, or did not answer; str(error) is the reason for the record."""

    def __init__(self, reason: str, *, is_missing: bool = False, is_hung: bool = False) -> None:
        super().__init__(reason)
        self.is_missing = is_missing  # a package or the device, rather than something broken
        self.is_hung = is_hung


class WorkerProcess:
    """A worker in a process group of its own: Ctrl-C reaches the parent alone, which then ends it.

    Its children, such as a compiler's, belong to the same group and end with it.
    """

    def __init__(self, *, threads: int | None = None, module: str = "profiling.worker") -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(threads),
            encoding="utf-8",
            process_group=0,  # not a session: the priority of the parent stays
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.is_alive = True

    @property
    def pid(self) -> int:
        """Its number, and that of its process group."""
        return self._process.pid

    def ask(self, do: str, *, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            WorkerError: the worker refused, died, or gave no answer within `limit_s`.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._answers.get(timeout=limit_s)
        except OSError:  # it died before it could read
            line = None
        except queue.Empty:
            self.kill()
            reason = f"no answer to {do!r} within {limit_s:g} s: stopped"
            raise WorkerError(reason, is_hung=True) from None
        if line is None:
            raise WorkerError(self._cause_of_death())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"], is_missing=answer["is_missing"])
        result: dict[str, Any] = answer["result"]
        return result

    def kill(self) -> None:
        """End the worker and its children at once."""
        if not self.is_alive:
            return
        self.is_alive = False
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in the group
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # a request that nobody read
                stream.close()

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.is_alive:
            self._say_goodbye()
        self.kill()
        self._errors.close()

    def _say_goodbye(self) -> None:
        """Let the worker end by itself, so that its libraries remove their temporary files."""
        assert self._process.stdin is not None
        with suppress(OSError, queue.Empty):
            self._process.stdin.close()
            self._answers.get(timeout=GOODBYE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _cause_of_death(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # it may still be writing a core file
            self._process.wait(GOODBYE_S)
        self.kill()
        code = self._process.returncode
        if code < 0:
            is_named = -code in set(signal.Signals)  # those of real time are not
            name = signal.Signals(-code).name if is_named else f"signal {-code}"
            words = self._last_words()
            starved = name == "SIGKILL" or OUT_OF_MEMORY.search(words)
            hint = " (out of memory?)" if starved else ""
            return f"the process was ended by {name}{hint}"
        return f"the process ended with exit code {code}: {self._last_words()}"

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def _environment(threads: int | None) -> dict[str, str]:
    """The parent's, with its import path, so that the worker finds what the parent would."""
    path = (entry or os.getcwd() for entry in sys.path)
    found = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    if threads is not None:
        found |= dict.fromkeys(OPEN_MP, str(threads))
    return found
