"""Who works on which job of a sweep: one claim file for each job under way.

A claim is made by a link to a complete file, which either is there or is not, and names host and
process. Its file is locked as long as the process that made it or the child that works for it
lives. On one host the lock tells whether a claim is of a dead process; a claim of another host,
whose lock may not be seen here, is dead when nobody has touched it for STALE_SECONDS.
"""

import fcntl
import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BEAT_SECONDS = 30.0  # between two touches of a claim
STALE_SECONDS = 600.0  # of a claim of another host without a touch


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a claim names."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


class Claim:
    """A claim of this process. A child that inherits `handle` holds it too."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle

    def beat(self) -> bool:
        """Say that this process lives; whether the claim is still its own."""
        os.utime(self.handle)
        return _is_at(self.path, self.handle)

    def release(self) -> None:
        """Give the job up or, after its outcome was written, end the claim."""
        if _is_at(self.path, self.handle):
            self.path.unlink()
        os.close(self.handle)


def claim(path: Path) -> Claim | None:
    """Claim what `path` stands for; None where somebody alive holds it.

    Raises:
        OSError: the folder cannot be written, or its file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f".claim-{uuid.uuid4().hex}")
    value = {"host": socket.gethostname(), "pid": os.getpid()}
    handle = os.open(mine, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        os.write(handle, (json.dumps(value) + "\n").encode())
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        now = os.fstat(handle).st_mtime  # by the clock of the file system, as that of a claim is
        if _linked(mine, path) or _taken_over(mine, path, now=now):
            return Claim(path, handle)
    except BaseException:
        os.close(handle)
        raise
    finally:
        mine.unlink(missing_ok=True)
    os.close(handle)
    return None


def holder(path: Path) -> Holder | None:
    """Whom the claim at `path` names; None where there is none."""
    try:
        value = json.loads(path.read_bytes())
        return Holder(str(value["host"]), int(value["pid"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # damaged: held by nobody who can be named
        return Holder("unknown", 0)


def is_alive(path: Path) -> bool:
    """Whether somebody works on what `path` stands for, as far as this host can tell."""
    try:
        other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _locked_if_dead(other, path, now=time.time())
    finally:
        os.close(other)


def _linked(mine: Path, path: Path) -> bool:
    with suppress(FileExistsError):
        os.link(mine, path)
        return True
    return False


def _taken_over(mine: Path, path: Path, *, now: float) -> bool:
    """Put `mine` in the place of a claim of the dead; its lock keeps others from doing the same."""
    try:
        other = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # released a moment ago
        return _linked(mine, path)
    try:
        if not _locked_if_dead(other, path, now=now) or not _is_at(path, other):
            return False
        mine.replace(path)
        return True
    finally:
        os.close(other)


def _locked_if_dead(other: int, path: Path, *, now: float) -> bool:
    """Lock the claim of the dead that `other` is open on; whether it was one."""
    found = holder(path)
    is_here = found is not None and found.host == socket.gethostname()
    if not is_here and now - os.fstat(other).st_mtime < STALE_SECONDS:
        return False
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is still the one that lies at `path`."""
    try:
        there, own = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
