"""A command under way in a process group of its own, with a time at which it has to end."""

import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO

GRACE_S = 15.0  # between the request to stop and the end by force
KEPT_LINES = 60  # of stderr
PREDICTED = re.compile(r"predicted: ([\d:]+) .*?(\d+) img/s")  # zoo-train, before its first step
TOLERANCE = 1.3  # by which a prediction may be wrong, before one epoch is done
LEFT = re.compile(r"([\d:]+) left\b")  # zoo-train, after each epoch


class Child:
    """A started command; both its streams are read while it runs."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, limit_s: float
    ) -> None:
        self.started = time.monotonic()
        self.must_end = self.started + limit_s
        self.ends: float | None = None  # when it says that it will be done
        self.tolerance = 1.0
        self.images_per_s: float | None = None  # that it predicts
        self.stdout: list[str] = []
        self.stderr: deque[str] = deque(maxlen=KEPT_LINES)
        self.stopped_for: str | None = None  # why it was told to stop
        self._asked: float | None = None
        self.process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            Thread(target=self._read, args=(self.process.stdout, self.stdout), daemon=True),
            Thread(target=self._read, args=(self.process.stderr, self.stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float | None:
        """Until it will be done, by its own account, and at the least."""
        return None if self.ends is None else (self.ends - time.monotonic()) / self.tolerance

    @property
    def error(self) -> str:
        """Its last words, in one line."""
        said = [line.strip() for line in self.stderr if line.strip()]
        code = self.process.returncode
        return said[-1] if said else f"exit code {code}, and nothing was said"

    def poll(self) -> int | None:
        """Its exit code once it has ended; stops it where its time is up."""
        if self.process.poll() is None:
            now = time.monotonic()
            if self._asked is None and now >= self.must_end:
                self.stop(f"its {self.must_end - self.started:.0f} s were over")
            if self._asked is not None and now >= self._asked + GRACE_S:
                self.kill()
            return None
        self._signal(signal.SIGKILL)  # what it left behind
        for reader in self._readers:
            reader.join(timeout=5)
        return self.process.returncode

    def stop(self, reason: str) -> None:
        """Ask it to save what it can and end."""
        if self._asked is None:
            self.stopped_for, self._asked = reason, time.monotonic()
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, with all that it began, in whatever process groups."""
        for pid in descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _read(self, stream: IO[str], kept: "list[str] | deque[str]") -> None:
        with stream:
            for line in stream:
                kept.append(line.rstrip("\n"))
                self._note(line)

    def _note(self, line: str) -> None:
        """Read what a training says of its end."""
        if found := PREDICTED.search(line):
            self.ends = time.monotonic() + seconds(found[1])
            self.images_per_s, self.tolerance = float(found[2]), TOLERANCE
        elif found := LEFT.search(line):
            self.ends, self.tolerance = time.monotonic() + seconds(found[1]), 1.0


def descendants(pid: int) -> list[int]:
    """The children of a process, their children and so on, where /proc tells."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, ()))
    for one in found:  # grows while it is walked through
        found.extend(children.get(one, ()))
    return found


def seconds(text: str) -> float:
    """Read 1:02:03 or 2:03."""
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part or 0)
    return float(total)
