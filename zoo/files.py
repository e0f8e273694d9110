"""Files that are whole or absent: a temporary name, fsync, rename."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import ZooError

YOUNG_S = 60.0  # of a temporary folder whose maker may not have locked it yet


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`; rename it to `path` if the block succeeds.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=".part-", suffix="".join(path.suffixes)
        )
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):  # not the user's name
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_files(main: Path, *, last: Path) -> Iterator[Path]:
    """Yield `main` in an empty temporary folder; if the block succeeds, move out what lies there.

    The files take the place of older ones in the folder of `main`, one by one, `last` in the end:
    a reader that finds `last` as it was or not at all knows that the others are not its own.

    Of two processes that end at once one moves all of its files before the other.

    Raises:
        OSError: the folder cannot be written or the disk is full; all files are as they were.
    """
    with _part_folder(main.parent) as folder:
        try:
            yield folder / main.name
            parts = sorted(folder.iterdir(), key=lambda part: part.name == last.name)
            for part in parts:
                part.chmod(0o666 & ~_umask())
                _sync(part)
            with locked(main.parent):
                for part in parts:
                    part.replace(main.with_name(part.name))
            _sync(main.parent)
        except OSError as error:
            inside = error.filename is not None and Path(error.filename).parent == folder
            if error.errno is not None and (inside or error.filename is None):
                error.filename = str(main.with_name(Path(error.filename or main).name))
            raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; rename it to `path` if the block succeeds.

    Raises:
        OSError: there is a file or a filled folder at `path`, or it cannot be written; all is as
            it was.
    """
    with _part_folder(path.parent) as part:
        try:
            yield part
            for file in part.rglob("*"):
                _sync(file)
            part.chmod(0o777 & ~_umask())
            _sync(part)
            part.rename(path)
            _sync(path.parent)
        except OSError as error:
            names = [name for name in (error.filename, error.filename2) if name is not None]
            inside = [name for name in names if Path(name).is_relative_to(part)]
            if error.errno is not None and (inside or not names):  # not the user's name
                error.filename, error.filename2 = str(path), None
            raise


@contextmanager
def _part_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder; those that processes left there which were killed are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    _drop_left(parent)
    with naming(parent):
        part = Path(tempfile.mkdtemp(dir=parent, prefix=".part-"))
    try:
        with locked(part):
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in place of a temporary file that could not be made for it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process; where there are no locks, do nothing."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _drop_left(folder: Path) -> None:
    """Remove temporary folders that no process holds any more."""
    for part in folder.glob(".part-*"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime < YOUNG_S:
                continue
            handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
            finally:
                os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or leave what was there."""
    with atomic_file(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: indented, in the order given, NaN refused."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, error: type[ZooError] = ZooError) -> Any:
    """Read a JSON file.

    NaN and infinity, which Python would read, are not JSON, and neither is half a character.

    Raises:
        ZooError: (or the class given) the file is missing, cannot be read or is not JSON.
    """
    try:
        data = path.read_bytes()
        value = json.loads(data, parse_constant=_no_number)
        if b"\\ud" in data.lower():  # perhaps half of a surrogate pair, which nothing can print
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}") from None
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not valid JSON ({reason}): is it damaged?") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
