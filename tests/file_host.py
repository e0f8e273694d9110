"""A file server on this machine, which publishes the data sets and can fail as real ones do."""

import functools
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cifar_files import official_archive, parquet_of, small_arrays
from torchvision import datasets

from zoo import download
from zoo.data_sources import LAYOUTS

ARCHIVE = "/cifar-100-python.tar.gz"
TRAIN = "/mirror/cifar100/train-00000-of-00001.parquet"
TEST = "/mirror/cifar100/test-00000-of-00001.parquet"
COLUMNS = ("img", "fine_label", "coarse_label")


@dataclass
class Host:
    """What is served, how it fails, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # send that many bytes of the next answers
    refused: dict[str, int] = field(default_factory=dict)  # path -> HTTP status
    moved: dict[str, str] = field(default_factory=dict)  # path -> path to redirect to
    knows_ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, asked = handler.path, handler.headers["Range"]
        self.requests.append((path, asked))
        if path in self.moved:
            handler.send_response(302)
            handler.send_header("Location", self.url + self.moved[path])
            handler.end_headers()
            return
        status = self.refused.get(path, 200 if path in self.files else 404)
        content = self.files.get(path, b"")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if status == 200 and asked and self.knows_ranges:
            status = 206 if start < len(content) else 416
        else:
            start = 0
        handler.send_response(status)
        if status == 206:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", span)
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{len(content)}")
        body = content[start:] if status in (200, 206) else b""
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: self.cuts.pop(0)] if self.cuts and body else body)


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Serve the 400 images of CIFAR-100 in both formats, as the host of all sources."""
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.url = f"http://127.0.0.1:{server.server_port}"
    host.files.update(published())
    for name, layout in tuple(LAYOUTS.items()):
        monkeypatch.setitem(LAYOUTS, name, replace(layout, mirror=f"{host.url}/mirror"))
        known = getattr(datasets, layout.torchvision_class)
        monkeypatch.setattr(known, "url", f"{host.url}/{known.filename}")
    monkeypatch.setattr(download, "RETRY_WAIT_S", 0.0)
    promise_md5_of(host.files[ARCHIVE], monkeypatch)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield host
    server.shutdown()
    server.server_close()
    thread.join()


@functools.cache
def published() -> dict[str, bytes]:
    """The files of both sources of CIFAR-100."""
    arrays = small_arrays()
    return {
        ARCHIVE: official_archive(arrays, LAYOUTS["cifar100"]),
        TRAIN: parquet_of(arrays, "train", COLUMNS),
        TEST: parquet_of(arrays, "test", COLUMNS),
    }


def promise_md5_of(archive: bytes, monkeypatch: pytest.MonkeyPatch, name: str = "CIFAR100") -> None:
    """Let torchvision know this MD5."""
    monkeypatch.setattr(getattr(datasets, name), "tgz_md5", hashlib.md5(archive).hexdigest())
