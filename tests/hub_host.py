"""A Hub on this machine: what the client asks of the real one, with real bytes over HTTP."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO, COMMIT = "somebody/weights", "0123456789abcdef" * 2 + "01234567"
PLACE = f"hub:{REPO}@{COMMIT}"
MISSING = {"EntryNotFound": 404, "RevisionNotFound": 404, "RepoNotFound": 401}


@dataclass
class Hub:
    """What is served, how it fails, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)  # name -> content, in REPO at COMMIT
    error: str | None = None  # the Hub's code for every answer
    status: int = 200  # another one for every answer
    cut: bool = False  # half of each file, then silence
    commit: str = COMMIT  # that the answers claim
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, name of the file
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        place, _, name = handler.path.rpartition("/")
        if not place.startswith("/api"):  # the client asks for more than files
            self.requests.append((handler.command, name))
        error = self.error
        if place not in (f"/{REPO}/resolve/{COMMIT}", f"/{REPO}/resolve/main"):
            error = error or "RevisionNotFound"
        elif name not in self.files:
            error = error or "EntryNotFound"
        content = self.files.get(name, b"") if not error and self.status == 200 else b""
        handler.send_response(MISSING[error] if error else self.status)
        if error:
            handler.send_header("X-Error-Code", error)
        handler.send_header("X-Repo-Commit", self.commit)
        handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content[: len(content) // 2] if self.cut else content)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.answer(self)

        def do_GET(self) -> None:
            hub.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
