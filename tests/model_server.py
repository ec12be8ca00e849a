"""A file server on loopback for tests of downloads: it serves one file, or fails in the way that a test asks for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from pipeline.models import named
from pipeline.models.cache import resolve_model
from pipeline.models.named import NamedModel


@dataclass
class Served:
    """What the server does.

    status: of every answer, 200 gives the file; cut: bytes after which the next answers end, one each; has_ranges:
    whether `Range` is honoured; is_sized: whether the length is said; is_stuck: it answers and sends nothing; together:
    requests wait here for each other; ranges: the `Range` of each request, in order, "" for none.
    """

    data: bytes
    status: int = 200
    cut: list[int] = field(default_factory=list)
    has_ranges: bool = True
    is_sized: bool = True
    is_stuck: bool = False
    together: threading.Barrier | None = None
    url: str = ""
    ranges: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        served: Served = self.server.served  # type: ignore[attr-defined]
        asked = self.headers.get("Range", "")
        served.ranges.append(asked)
        if served.together is not None:
            served.together.wait(60)
        if served.status != 200:
            self.send_error(served.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and served.has_ranges else 0
        self.send_response(206 if start else 200)
        if served.is_sized:
            self.send_header("Content-Length", str(len(served.data) - start))
        self.end_headers()
        if served.is_stuck:
            self.wfile.flush()
            served.over.wait(60)
            return
        stop = start + served.cut.pop(0) if served.cut else len(served.data)
        self.wfile.write(served.data[start:stop])

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve at `served.url` until the body ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.served = served  # type: ignore[attr-defined]
    served.url = f"http://127.0.0.1:{server.server_port}/model.onnx"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def resolve_in_child(table: dict[str, NamedModel], name: str, cache: str) -> str:
    """In a process of its own: the sha256 of the model that this name gives there."""
    named.NAMED = MappingProxyType(table)  # type: ignore[misc]
    return resolve_model(name, cache).model.sha256
