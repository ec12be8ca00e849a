"""Servers that answer a range with the whole object: of a small one it is cut, a larger one is refused unread."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Rule
from s3_servers import moto_port, new_store, put_in_parts, quick, use_credentials

from pipeline.errors import StorageUnavailable
from pipeline.storage import Store, open_store
from pipeline.storage.s3_client import forget_clients

DATA = bytes(range(256)) * 40
SPANS = [(0, 1), (100, 200), (9_000, 5_000), (0, len(DATA))]


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Store:
    """An object of each kind; over 1,000 bytes are too many to come for less."""
    use_credentials(monkeypatch)
    monkeypatch.setattr("pipeline.storage.s3_whole.LARGEST_WHOLE", 1_000)
    forget_clients()
    store = new_store(moto_port(), "whole")
    store.put("at once", DATA)
    put_in_parts(store, "in parts", DATA)
    return store


@pytest.fixture
def proxies() -> Iterator[tuple[FaultProxy, FaultProxy]]:
    """One before the server, which strips `Range`, and one before that, which has faults of its own."""
    with FaultProxy(moto_port()) as inner, FaultProxy(inner.port) as outer:
        inner.inject(Rule("strip:Range", "GET", count=9999))
        yield inner, outer


def through(proxy: FaultProxy, store: Store) -> Store:
    return open_store(f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}", quick())


@pytest.mark.usefixtures("senders")
def test_small_ones_come_beside_others(direct: Store, proxies: tuple[FaultProxy, FaultProxy]) -> None:
    direct.put("small", DATA[:1000])
    store, info = through(proxies[1], direct), direct.stat("small")
    for start in range(0, 1000, 100):
        assert store.read_range("small", start, 10, expect=info) == DATA[start : start + 10]
    assert proxies[1].requests() == 10
    assert store.begin("small", 0, 10, expect=info) is not None


@pytest.mark.usefixtures("senders")
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("key", ["at once", "in parts"])
def test_a_larger_one_is_refused_before_its_bytes(
    key: str, is_known: bool, direct: Store, proxies: tuple[FaultProxy, FaultProxy]
) -> None:
    """The server tells its length and sends nothing more: whoever waits for more does not come to this message."""
    store, info = through(proxies[1], direct), direct.stat(key)
    if is_known:
        assert store.read(key) == DATA
    for expect in (info, None):
        proxies[1].inject(Rule("stall_body:0", "GET", count=99))
        with pytest.raises(StorageUnavailable, match=rf"bytes=5-14 with all {info.size:,} bytes; wanted that range"):
            store.read_range(key, 5, 10, expect=expect)
        assert proxies[1].requests() == 1


@pytest.mark.usefixtures("senders")
@pytest.mark.parametrize("is_known", [False, True])
def test_a_larger_one_that_tells_no_length(
    is_known: bool, direct: Store, proxies: tuple[FaultProxy, FaultProxy]
) -> None:
    store = through(proxies[1], direct)
    if is_known:
        store.read("at once")
    proxies[1].inject(Rule("unsized:1100", "GET", count=99))
    with pytest.raises(StorageUnavailable, match="bytes=5-14 with all of an object whose length it does not tell"):
        store.read_range("at once", 5, 10)
    assert proxies[1].requests() == 1
    assert proxies[1].requests("HEAD") == 0


def test_one_that_was_begun_is_refused_likewise(direct: Store, proxies: tuple[FaultProxy, FaultProxy]) -> None:
    store, info = through(proxies[1], direct), direct.stat("at once")
    store.read("at once")
    begun = store.begin("at once", 5, 10, expect=info)
    assert begun is not None
    begun.wait()
    with pytest.raises(StorageUnavailable, match="bytes=5-14 with all 10,240 bytes"):
        begun.answering(lambda: store.read_range("at once", 5, 10, expect=info))


SIZE = 30 * 2**20


class HeedsNoRange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = 10 if self.path.endswith("small") else SIZE
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", '"parts-2"')
        self.end_headers()
        try:
            for at in range(0, size, 2**20):
                self.wfile.write(bytes(min(2**20, size - at)))
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients hang up."""


CLIENT = """
import sys
from pathlib import Path
from pipeline.errors import StorageUnavailable
from pipeline.runner import peak_resident_bytes
from pipeline.storage import ObjectInfo, StorageConfig, open_store, read_ahead

store = open_store(sys.argv[1], StorageConfig(region="us-east-1", backoff=0.0))
size = int(sys.argv[2])
infos = [ObjectInfo(f"{number}.tar", size, "parts-2", 0) for number in range(60)]
store.read("small")
Path("/proc/self/clear_refs").write_text("5")
before = peak_resident_bytes()
spans = read_ahead(
    infos,
    lambda info: store.read_range(info.key, 10**7, 50_000, expect=info),
    lambda info: 50_000,
    lambda info: store.begin(info.key, 10**7, 50_000, expect=info),
)
try:
    next(iter(spans))
except StorageUnavailable:
    print((peak_resident_bytes() - before) // 2**20)
"""


def test_reading_ahead_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 spans of as many archives of 30 MB, of which 64 at once took 2.2 GB: they end at the headers of a few."""
    use_credentials(monkeypatch)
    with Server(("127.0.0.1", 0), HeedsNoRange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"minio://127.0.0.1:{server.server_port}/bucket/prefix"
        command = [sys.executable, "-c", CLIENT, place, str(SIZE)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
        server.shutdown()
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < SIZE / 2**20
