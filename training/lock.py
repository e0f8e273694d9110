"""Which runs are under way: a lock that ends with the process that holds it."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from zoo.errors import CheckpointError

LOCK = ".lock"  # in a run, while it is trained


class UnderWay(CheckpointError):
    """Another process trains the run."""


class Lock:
    """Keeps others from training a run; where a file system knows no locks, it does nothing."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: TextIO | None = None

    def take(self) -> None:
        """Hold it until `release`, or the end of this process.

        Raises:
            UnderWay: another process trains the run.
        """
        while True:
            file = (self._run / LOCK).open("a")
            if not _locked(file):
                file.close()
                raise UnderWay(f"{self._run} is under way in another process: wait for its end")
            if _is_at(file, self._run / LOCK):
                self._file = file
                return
            file.close()  # it was given back, and its name removed, after it was opened

    def release(self) -> None:
        """Let others train it."""
        if self._file is not None:
            (self._run / LOCK).unlink(missing_ok=True)
            self._file.close()
            self._file = None


def is_under_way(run: Path) -> bool:
    """Whether a process, this one too, trains the run now."""
    try:
        with (run / LOCK).open() as file:
            return not _locked(file)
    except FileNotFoundError:
        return False


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file has this name still."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(file: TextIO) -> bool:
    """Take the lock, which closing the file gives back; whether nobody else had it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
