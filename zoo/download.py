"""Fetch a published data set: the official archive first, a mirror second, both resumable.

Untested against the live hosts. The tests run this code against a local server that cuts
connections, ignores ranges and serves both formats.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from zoo import __version__
from zoo.data_formats import SPLITS, Arrays, Layout, Progress, read_archive, read_parquet
from zoo.errors import DataError, MachineError

T = TypeVar("T")

TIMEOUT_S = 30.0  # without a byte; then the connection counts as cut
RETRY_WAIT_S = 2.0
FRUITLESS_TRIES = 3  # in a row, once a connection has brought something
CHUNK_BYTES = 1 << 16


def download(
    layout: Layout,
    folder: Path,
    *,
    accept: Callable[[Arrays, str], T],
    on_progress: Progress | None = None,
) -> T:
    """Fetch the files of one source into `folder` and return what `accept` makes of them.

    `accept` gets the arrays and the host they came from, and raises DataError if they are not the
    published ones; the files are then removed and the next source is tried. A transfer that was
    cut stays in `folder` and goes on at the next call.

    Raises:
        DataError: no source gave the data; the reasons of all stand in one line.
    """
    reasons = []
    for source in (_official, _mirror):
        try:
            return source(layout, folder, accept, on_progress)
        except DataError as reason:
            reasons.append(str(reason))
    raise DataError("; ".join(reasons))


def fetch(url: str, path: Path, *, on_progress: Progress | None = None) -> None:
    """Download `url` to `path`, going on where an earlier call stopped; nothing if it is there.

    What has arrived lies in `path` + ".part". A cut connection is taken up again as long as each
    try brings bytes; a server that ignores the range is read from the start.

    Raises:
        DataError: the server cannot be reached, refuses, or stopped sending.
        MachineError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    brought, fruitless = False, 0
    while not path.exists():
        before = _size(part)
        try:
            _transfer(url, part, path.name, on_progress)
        except HTTPError as reason:
            raise DataError(f"{_host(url)}: HTTP {reason.code} {reason.reason}") from None
        except (OSError, HTTPException) as reason:
            gained = _size(part) > before
            brought, fruitless = brought or gained, 0 if gained else fruitless + 1
            if not brought or fruitless >= FRUITLESS_TRIES:
                raise DataError(f"{_host(url)}: {_why(reason)}") from None
            time.sleep(RETRY_WAIT_S)
        else:
            part.replace(path)


@contextmanager
def one_at_a_time(path: Path, on_progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock file `path`, so that two processes do not append to one file.

    Where the file system has no locks, both go on: their mixed file fails its check, is removed
    and fetched again.
    """
    with path.open("w") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_progress is not None:
                    on_progress("waiting for another process's download", 0, None)
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def _transfer(url: str, part: Path, label: str, on_progress: Progress | None) -> None:
    """Append what is missing to `part`; return when the file is whole."""
    start = _size(part)
    request = Request(url, headers={"User-Agent": f"cifar-zoo/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT_S)
    except HTTPError as reason:
        if reason.code != 416 or not start:
            raise
        if reason.headers.get("Content-Range") == f"bytes */{start}":
            return  # it was whole already
        part.unlink()  # longer than the file: not a part of it
        return _transfer(url, part, label, on_progress)
    with response:
        if response.status != 206:  # the whole file, asked for or not
            start = 0
        elif not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise HTTPException("the server sent another range than the one asked for")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        with _writing(part):
            file = part.open("ab" if start else "wb")
        with file:
            done = start
            while chunk := response.read(CHUNK_BYTES):
                with _writing(part):
                    file.write(chunk)
                    file.flush()
                done += len(chunk)
                if on_progress is not None:
                    on_progress(label, done, total)
    if total is not None and done < total:
        raise HTTPException(f"the connection was cut after {done} of {total} bytes")


def _official(
    layout: Layout,
    folder: Path,
    accept: Callable[[Arrays, str], T],
    on_progress: Progress | None,
) -> T:
    """Use the archive that torchvision knows: its URL, file name and MD5."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as reason:  # RuntimeError: built for another torch
        raise DataError(f"torchvision, which knows the official URL: {_why(reason)}") from None
    known = getattr(datasets, layout.torchvision_class)
    archive = folder / known.filename
    fetch(known.url, archive, on_progress=on_progress)
    with _removed_if_refused(archive):
        with archive.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 != known.tgz_md5:
            raise DataError(
                f"{known.url} has MD5 {md5}, expected {known.tgz_md5}: damaged on its way"
            )
        return accept(read_archive(archive, layout), known.url)


def _mirror(
    layout: Layout,
    folder: Path,
    accept: Callable[[Arrays, str], T],
    on_progress: Progress | None,
) -> T:
    """Use the parquet files of the Hugging Face mirror."""
    try:
        import pyarrow  # noqa: F401  # before 140 MB are fetched for it
    except ImportError as reason:
        raise DataError(f"pyarrow, which reads the mirror: {_why(reason)}") from None
    paths = {split: folder / f"{layout.name}-{split}.parquet" for split in SPLITS}
    for split, path in paths.items():
        fetch(f"{layout.mirror}/{layout.mirror_files[split]}", path, on_progress=on_progress)
    with _removed_if_refused(*paths.values()):
        return accept(read_parquet(paths, layout), layout.mirror)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a full disk from a lost connection: both are an OSError."""
    try:
        yield
    except OSError as reason:
        raise MachineError(f"cannot write {path}: {reason.strerror}") from None


@contextmanager
def _removed_if_refused(*files: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _why(reason: Exception) -> str:
    if isinstance(reason, URLError) and isinstance(reason.reason, Exception):
        reason = reason.reason
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return str(text).splitlines()[0]
