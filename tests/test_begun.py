"""Reads that are begun from the thread that uses them: all of them, right, in order, and failing ones as any other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pycurl
import pytest
from fault_proxy import FaultProxy, Rule
from s3_servers import moto_port, new_store, quick, use_credentials

import pipeline.storage.ahead
from pipeline.errors import BadCredentials, NotFound, ObjectChanged, StorageUnavailable
from pipeline.storage import Begun, LocalStore, ObjectInfo, Store, open_store, read_ahead, request_counts
from pipeline.storage.ahead import READS_IN_FLIGHT
from pipeline.storage.curl_handle import CurlParams
from pipeline.storage.s3_client import forget_clients
from pipeline.storage.transfers import Transfers

COUNT = 5 * READS_IN_FLIGHT
FAULTS = ["status:503:SlowDown", "status:500:InternalError", "err200", "reset", "drop_after", "truncate:60", "flip:10"]


def content(number: int) -> bytes:
    return f"{number:05d}".encode() * 500


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(moto_port()) as running:
        yield running


@pytest.fixture(scope="module")
def filled() -> Store:
    with pytest.MonkeyPatch.context() as patch:
        use_credentials(patch)
        store = new_store(moto_port(), "begun")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store.put(f"{number:05d}", content(number)), range(COUNT)))
    return store


@pytest.fixture
def store(filled: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The objects through the proxy, which has seen one GET: how they are sent is known from it.

    Whatever uses a result takes no time, also on a busy machine: what is used for long is left to threads.
    """
    monkeypatch.setattr(pipeline.storage.ahead, "perf_counter", lambda: 0.0)
    use_credentials(monkeypatch)
    forget_clients()
    proxy.inject()
    store = through(proxy, filled)
    store.read("00000")
    proxy.inject()
    return store


def through(proxy: FaultProxy, store: Store, **changes: object) -> Store:
    path = store.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
    return open_store(f"minio://127.0.0.1:{proxy.port}/{path}", quick(**changes))


class Reader:
    """Reads objects of a store ahead; notes in which threads and which were begun."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.infos = [*store.list()]
        self.begun = dict[str, Begun]()
        self.threads = dict[str, str]()

    def __iter__(self) -> Iterator[bytes]:
        return read_ahead(self.infos, self._read, lambda info: info.size, self._begin)

    def elsewhere(self) -> list[str]:
        """Keys that another thread than this one read."""
        here = threading.current_thread().name
        return [key for key, thread in self.threads.items() if thread != here]

    def _read(self, info: ObjectInfo) -> bytes:
        self.threads[info.key] = threading.current_thread().name
        return self._store.read(info.key, expect=info)

    def _begin(self, info: ObjectInfo) -> Begun | None:
        begun = self._store.begin(info.key, expect=info)
        if begun is not None:
            self.begun[info.key] = begun
        return begun


def test_each_is_asked_for_once_and_by_no_thread(store: Store, proxy: FaultProxy) -> None:
    reader, before = Reader(store), request_counts()
    assert [*reader] == [content(number) for number in range(COUNT)]
    assert reader.elsewhere() == []
    assert len(reader.begun) == COUNT
    spent = request_counts() - before
    assert spent.requests == {"s3.get": COUNT}
    assert spent.bytes_read == sum(info.size for info in reader.infos)
    assert sum("?list-type" not in path for _, path, _ in proxy.log) == COUNT


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_is_read_by_a_thread(store: Store, proxy: FaultProxy, fault: str) -> None:
    """Every twentieth object fails twice: all come in their order, and each failure is an attempt that is counted.

    But for those that libcurl mends, where a kept connection dies before a byte of the answer.
    """
    reader, before = Reader(store), request_counts()
    failing = [info.key for info in reader.infos[::20]]
    proxy.inject(*(Rule(fault, "GET", f"/{key}$", count=2) for key in failing))
    assert [*reader] == [content(number) for number in range(COUNT)]
    spent = request_counts() - before
    assert proxy.requests("GET") == COUNT + 2 * len(failing)
    retries = sum(spent.retries.values())
    if fault in ("reset", "drop_after"):
        assert set(reader.elsewhere()) <= set(failing)
        assert retries <= 2 * len(failing)
    elif fault in ("flip:10", "err200"):  # seen when it is read: by its status all is well
        assert reader.elsewhere() == []
        assert retries == 2 * len(failing)
    else:
        assert set(reader.elsewhere()) == set(failing)
        assert retries == 2 * len(failing)


def test_one_that_brings_nothing_is_asked_for_anew(filled: Store, proxy: FaultProxy, store: Store) -> None:
    silent = through(proxy, filled, read_timeout=2)
    silent.read("00000")
    reader, before = Reader(silent), request_counts()
    proxy.inject(Rule("stall_body:10", "GET", "/00040$"), Rule("stall", "GET", "/00100$"))
    assert [*reader] == [content(number) for number in range(COUNT)]
    assert sum((request_counts() - before).retries.values()) == 2
    assert set(reader.elsewhere()) == {"00040", "00100"}


@pytest.mark.parametrize(("change", "error"), [("delete", NotFound), ("replace", ObjectChanged)])
def test_one_that_is_gone_or_another_says_so_in_its_turn(
    filled: Store, store: Store, change: str, error: type[Exception]
) -> None:
    reader, found = Reader(store), list[bytes]()
    if change == "delete":
        filled.delete("00070")
    else:
        filled.put("00070", b"another")
    try:
        with pytest.raises(error):
            found.extend(reader)
        assert found == [content(number) for number in range(70)]
    finally:
        filled.put("00070", content(70))


def test_a_store_that_is_gone(store: Store, proxy: FaultProxy) -> None:
    reader, found = Reader(store), list[bytes]()
    proxy.inject(Rule("status:503:SlowDown", "GET", "/000[4-9]", count=10_000))
    with pytest.raises(StorageUnavailable, match="gave up after 6 attempts"):
        found.extend(reader)
    assert found == [content(number) for number in range(40)]
    assert max(sum(path.endswith(info.key) for _, path, _ in proxy.log) for info in reader.infos) <= 6


def test_what_nobody_reads_is_given_up_and_counted(store: Store) -> None:
    """Whoever stops early leaves nothing under way; the next one to want the same objects asks anew."""
    reader, before = Reader(store), request_counts()
    reading = iter(reader)
    assert [next(reading) for _ in range(10)] == [content(number) for number in range(10)]
    reading.close()  # type: ignore[attr-defined]
    begun = len(reader.begun)
    assert begun > 10
    assert (request_counts() - before).requests == {"s3.get": begun}
    again = Reader(store)
    assert [*again] == [content(number) for number in range(COUNT)]
    assert len(again.begun) == COUNT
    assert (request_counts() - before).requests == {"s3.get": begun + COUNT, "s3.list": 1}


def test_two_readers_of_the_same_in_one_thread(store: Store, proxy: FaultProxy) -> None:
    """Each takes what it asked for, also where one reader has an object twice."""
    readers = Reader(store), Reader(store)
    readers[0].infos = readers[1].infos = [info for info in readers[0].infos for _ in range(2)]
    proxy.inject()
    before = request_counts()
    for number, (one, other) in enumerate(zip(*readers, strict=True)):
        assert one == other == content(number // 2)
    assert proxy.requests() == 4 * COUNT
    assert (request_counts() - before).requests == {"s3.get": 4 * COUNT}
    assert readers[0].elsewhere() == readers[1].elsewhere() == []


def test_many_silent_ones_are_given_up_at_once(
    filled: Store, store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that drops connections drops many: one time without a byte is waited for, not one for each."""
    silent = through(proxy, filled, read_timeout=2)
    silent.read("00000")
    reader, before = Reader(silent), request_counts()
    rounds = list[int]()
    end_silent = Transfers._end_silent

    def counted(transfers: Transfers) -> None:
        rounds.append(len(transfers._under_way))
        end_silent(transfers)

    monkeypatch.setattr(Transfers, "_end_silent", counted)
    proxy.inject(*(Rule("stall", "GET", f"/{number:05d}$") for number in range(64)))
    assert [*reader] == [content(number) for number in range(COUNT)]
    assert rounds == [64]
    assert sum((request_counts() - before).retries.values()) == 64


def test_an_interrupt_leaves_nothing_under_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it comes, the next reader of the process finds nothing of the interrupted one."""
    for step in ("_look", "_run", "_end"):
        for count in (1, 3, 20):
            reader, met = Reader(store), [0]

            def interrupted(*given: Any, step: str = step, count: int = count, met: list[int] = met) -> Any:
                met[0] += 1
                if met[0] == count:
                    raise KeyboardInterrupt
                return STEPS[step](*given)

            with monkeypatch.context() as patch:
                patch.setattr(Transfers, step, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    [*reader, *Reader(store), *Reader(store)]
            again, before = Reader(store), request_counts()
            assert [*again] == [content(number) for number in range(COUNT)]
            assert (request_counts() - before).requests == {"s3.get": COUNT}
            assert again.elsewhere() == []


class Failing:
    """A multi handle of which one call fails, the `count`-th of its name."""

    def __init__(self, multi: Any, step: str, count: int) -> None:
        self._multi, self._step, self.left = multi, step, count

    def __getattr__(self, name: str) -> Any:
        if name == self._step:
            self.left -= 1
            if not self.left:
                raise pycurl.error(11, "refused")
        return getattr(self._multi, name)


@pytest.mark.parametrize(
    ("step", "count"), [("add_handle", 1), ("add_handle", 40), ("perform", 1), ("perform", 2), ("fdset", 1)]
)
def test_what_libcurl_cannot_do_threads_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str, count: int
) -> None:
    """Whatever it refuses, and whenever: all are read, and the next reader begins again."""
    make, made = Transfers.__init__, list[Failing]()

    def failing(transfers: Transfers, params: CurlParams) -> None:
        make(transfers, params)
        transfers._multi = Failing(transfers._multi, step, count)
        made.append(transfers._multi)

    with monkeypatch.context() as patch:
        patch.setattr(Transfers, "__init__", failing)
        reader = Reader(store)
        assert [*reader] == [content(number) for number in range(COUNT)]
        assert made[0].left <= 0
        assert reader.elsewhere()
    again = Reader(store)
    assert [*again] == [content(number) for number in range(COUNT)]
    assert again.elsewhere() == []


STEPS = {name: getattr(Transfers, name) for name in ("_look", "_run", "_end")}


def test_a_process_that_was_stopped_signs_anew(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server takes a signature for a quarter of an hour; what it refuses at once is refused."""
    now = time.time()
    monkeypatch.setattr("pipeline.storage.s3_get.time.time", lambda: now)
    for slept in (0, 1200):
        proxy.inject(Rule("status:403:RequestTimeTooSkewed", "GET"))
        before, begun = request_counts(), store.begin("00003")
        assert begun is not None
        assert not begun.wait()
        now += slept
        if slept:
            assert begun.answering(lambda: store.read("00003")) == content(3)
        else:
            with pytest.raises(BadCredentials):
                begun.answering(lambda: store.read("00003"))
        assert (request_counts() - before).requests == {"s3.get": proxy.requests()} == {"s3.get": 2 if slept else 1}


@pytest.mark.parametrize("seconds", [0.021, 1.1])
def test_what_is_used_for_long_is_left_to_threads(
    store: Store, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """On average over 20 ms, or once over a second: connections would stand still meanwhile."""
    now = 0.0
    monkeypatch.setattr(pipeline.storage.ahead, "perf_counter", lambda: now)
    reader = Reader(store)
    for number, data in enumerate(reader):
        assert data == content(number)
        now += seconds if seconds < 1 or number == 10 else 0.001
    begun = sorted(reader.begun)
    assert begun == [info.key for info in reader.infos[: 2 * READS_IN_FLIGHT]]
    assert reader.elsewhere() == [info.key for info in reader.infos if info.key not in reader.begun]


def test_a_forked_child_leaves_them_to_its_parent(store: Store) -> None:
    """The child reads for itself, and closes nothing when it drops what it inherited."""
    reader = Reader(store)
    reading = iter(reader)
    assert next(reading) == content(0)
    child = os.fork()
    if child == 0:  # pragma: no cover
        mine = Reader(store)
        reading.close()  # type: ignore[attr-defined]
        os._exit(0 if [*mine] == [content(number) for number in range(COUNT)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [*reading] == [content(number) for number in range(1, COUNT)]
    assert not set(reader.begun) & set(reader.elsewhere())


def test_ranges_are_begun_as_they_are_read(store: Store, proxy: FaultProxy) -> None:
    """Also those at the end and behind it; one of no bytes is not asked for."""
    info = store.stat("00007")
    proxy.inject()
    for start, length in ((5, 10), (info.size - 3, 10), (0, info.size)):
        begun = store.begin("00007", start, length, expect=info)
        assert begun is not None
        assert begun.wait()
        read = partial(store.read_range, "00007", start, length, expect=info)
        assert begun.answering(read) == content(7)[start : start + length]
    assert proxy.requests() == 3
    assert store.begin("00007", 0, 0, expect=info) is None
    assert store.begin("00007", info.size, 5, expect=info) is None
    behind = store.begin("00007", info.size, 5)
    assert behind is not None
    assert not behind.wait()
    assert behind.answering(lambda: store.read_range("00007", info.size, 5)) == b""


def test_where_nothing_can_be_begun(filled: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that nothing is known of, a proxy in between, a key that no bucket has, a disk."""
    use_credentials(monkeypatch)
    forget_clients()
    store = through(proxy, filled)
    assert store.begin("00000") is None
    store.read("00000")
    assert store.begin("a\0b") is None
    assert store.begin("a\udce9") is None
    assert LocalStore("/").begin("etc") is None
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    forget_clients()
    store.read("00000")
    assert store.begin("00000") is None
    forget_clients()
