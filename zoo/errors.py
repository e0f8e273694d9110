"""Errors that a user meets: one line each, with the exit code of the command."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|failed to) allocate memory|not enough memory|bad_alloc"
    "|could not create a (memory|primitive)"
    r"|CU(BLAS|DNN)_STATUS_\w*ALLOC\w*_FAILED",  # where cuBLAS or cuDNN ask for memory themselves
    re.IGNORECASE,
)


class ZooError(Exception):
    """A user's mistake: what was given, what was expected, the next command."""

    exit_code: ClassVar[int] = 2


class MachineError(ZooError):
    """A check or the machine failed: input, output, memory, parity."""

    exit_code: ClassVar[int] = 1


class OtherDeviceError(MachineError):
    """A file is for another kind of device, CPU or GPU, than the one that was asked for."""


class DataError(ZooError):
    """A data set is unknown, missing, damaged or not what it claims to be."""


class CheckpointError(ZooError):
    """A folder is no run, or its weights are not those that its meta.json promises."""


class ArtifactError(ZooError):
    """A file is no artifact of ours, or not the one that its manifest describes."""


class RecordError(ZooError):
    """A measurement record cannot be read."""


class UnknownModelError(ZooError):
    """No variant has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        close = closest(name, known)
        super().__init__(f"no model named {name!r}: {close or 'zoo-list shows all'}")


class MissingPackageError(ZooError):
    """An optional package is not installed."""

    def __init__(self, package: str, *, extra: str, needed_by: str) -> None:
        super().__init__(
            f"{needed_by} needs the package {package}, which is not installed: "
            f"in a clone of cifar-zoo run pip install '.[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the closest of `known`, or all of them where none is close."""
    names = sorted(known)
    return closest(name, names) or f"choose one of {', '.join(names)}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Ask whether the closest of `known` was meant; None where none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=3)
    return f"did you mean {' or '.join(close)}?" if close else None


def first_line(reason: BaseException) -> str:
    """The first line of an error that may have many; its class where it says nothing."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return lines[0] if lines else type(reason).__name__


@contextmanager
def one_line(
    subject: object,
    *,
    end: str = "",
    where_full: str = "",
    kinds: tuple[type[Exception], ...] = (RuntimeError, MemoryError),
) -> Iterator[None]:
    """Turn what torch or a runtime raises into a line: the subject, the reason, and `end`.

    Where memory ran out `where_full` stands in the place of `end`, if there is one.

    Raises:
        MachineError: the block raised one of `kinds`, which is none of ours and not of the system.
    """
    try:
        yield
    except (ZooError, OSError):
        raise
    except kinds as reason:
        last = where_full if where_full and is_out_of_memory(reason) else end
        name = "" if isinstance(reason, RuntimeError) else type(reason).__name__
        said = first_line(reason)
        parts = (str(subject), name if name != said else "", said, last)
        raise MachineError(": ".join(filter(None, parts))) from reason


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, torch or a runtime raise where memory runs out."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))
