"""Faults in pinned ranges, streams, slow bodies and listings in ranges: nothing lost, nothing wrong, all counted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_proxy import FaultProxy, Rule
from s3_servers import moto_port, new_store, quick, use_credentials

from pipeline.errors import AccessDenied, BadCredentials, NotFound, ObjectChanged, StorageError, StorageUnavailable
from pipeline.storage import ObjectInfo, RequestCounts, Store, open_store, request_counts

DATA = bytes(range(256)) * 40
KEY = "folder/x.bin"
PASSING = ["status:503:SlowDown", "status:500:InternalError", "reset", "err200", "drop_after", "truncate:60"]
FOLDERS = ["", "a/", "a-", "b/c/", "b/日本/", "per%20cent+&?#/", "z/z/"]
KEYS = sorted((f"{folder}{number:03d}" for folder in FOLDERS for number in range(30)), key=str.encode)

of_objects = pytest.mark.usefixtures("senders")


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(moto_port()) as running:
        yield running


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Store:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "p")
    store.put(KEY, DATA)
    return store


@pytest.fixture
def store(direct: Store, proxy: FaultProxy) -> Store:
    proxy.inject()
    return through(proxy, direct)


@pytest.fixture(scope="module")
def many() -> Store:
    """KEYS, in pages of four."""
    with pytest.MonkeyPatch.context() as patch:
        use_credentials(patch)
        store = new_store(moto_port(), "many")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b"1"), KEYS))
    return store


@pytest.fixture
def in_ranges(many: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    use_credentials(monkeypatch)
    monkeypatch.setattr("pipeline.storage.s3.PAGE_KEYS", 4)
    monkeypatch.setattr("pipeline.storage.s3_cuts._MIN_SAMPLE", 3)
    return through(proxy, many)


def through(proxy: FaultProxy, store: Store, **changes: object) -> Store:
    path = store.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
    return open_store(f"minio://127.0.0.1:{proxy.port}/{path}", quick(**changes))


def since(before: RequestCounts) -> tuple[int, int]:
    """Requests and retries."""
    spent = request_counts() - before
    return sum(spent.requests.values()), sum(spent.retries.values())


@pytest.mark.parametrize("fault", [*PASSING, "header:Content-Range:bytes 0-199/10240"])
def test_a_pinned_range_survives_two_faults(
    store: Store, direct: Store, proxy: FaultProxy, fault: str, senders: str
) -> None:
    info = direct.stat(KEY)
    proxy.inject(Rule(fault, "GET", count=2))
    before = request_counts()
    assert store.read_range(KEY, 100, 200, expect=info) == DATA[100:300]
    dies_kept = senders != "session" and fault in ("reset", "drop_after")
    assert since(before) == ((2, 1) if dies_kept else (3, 2))
    assert proxy.requests() == 3


@of_objects
def test_what_no_retry_mends_takes_one_request(store: Store, direct: Store, proxy: FaultProxy) -> None:
    """Replaced, deleted, expired: a whole read, a pinned range and the next chunk of a stream say so at once."""
    info = direct.stat(KEY)

    def refused(error: type[StorageError], *rules: Rule) -> None:
        for read in (
            lambda: store.read(KEY, expect=info),
            lambda: store.read_range(KEY, 5, 5, expect=info),
        ):
            proxy.inject(*rules)
            with pytest.raises(error) as caught:
                read()
            assert type(caught.value) is error
            assert proxy.requests() == 1

    refused(BadCredentials, Rule("status:400:ExpiredToken", count=9))
    refused(AccessDenied, Rule("status:403:AccessDenied", count=9))
    direct.put(KEY, DATA[::-1])
    refused(ObjectChanged)
    direct.delete(KEY)
    refused(NotFound)


@of_objects
@pytest.mark.parametrize(
    ("change", "error"),
    [("replace", ObjectChanged), ("delete", NotFound), ("expire", BadCredentials), ("throttle", StorageUnavailable)],
)
def test_a_stream_ends_with_the_cause(
    store: Store, direct: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, change: str, error: type[Exception]
) -> None:
    """Never with fewer bytes as if it were the end."""
    monkeypatch.setattr("pipeline.storage.s3.STREAM_CHUNK", 100_000)
    long = DATA * 40  # longer than the stream's buffer
    direct.put(KEY, long)
    with store.open(KEY) as stream:
        assert stream.read(10) == long[:10]
        proxy.inject()
        if change == "replace":
            direct.put(KEY, long[::-1])
        if change == "delete":
            direct.delete(KEY)
        if change == "expire":
            proxy.inject(Rule("status:400:ExpiredToken", "GET", count=99))
        if change == "throttle":
            proxy.inject(Rule("status:503:SlowDown", "GET", count=99))
        with pytest.raises(error):
            stream.read()
    assert proxy.requests("GET") == (6 if change == "throttle" else 1)


def test_a_slow_body_is_whole_and_a_stalled_one_is_asked_again(direct: Store, proxy: FaultProxy, senders: str) -> None:
    """A body may come as slowly as it likes while it comes; without a byte for read_timeout it is a new attempt."""
    proxy.inject()
    store = through(proxy, direct, read_timeout=1, max_attempts=3)
    store.read(KEY)
    info = direct.stat(KEY)
    reads = {
        "whole": lambda: store.read(KEY, expect=info),
        "range": lambda: store.read_range(KEY, 10, 9000, expect=info),
        "stream": lambda: store.open(KEY).read(),
    }
    wanted = {"whole": DATA, "range": DATA[10:9010], "stream": DATA}
    for kind, read in reads.items():
        proxy.inject(Rule("drip:1000", "GET"))
        before = request_counts()
        assert read() == wanted[kind]
        assert since(before)[1] == 0
        if senders == "curl" and kind != "range":
            continue
        proxy.inject(Rule("stall_body:1000", "GET", count=1))
        before = request_counts()
        assert read() == wanted[kind]
        assert since(before)[1] == 1
    if senders == "curl":
        return
    proxy.inject(Rule("stall_body:0", "GET", count=9))
    with pytest.raises(StorageUnavailable, match="3 attempts"):
        reads["range"]()


@pytest.mark.parametrize("fault", [*PASSING, "flip:10", "status:503:"])
def test_faults_in_a_listing_in_ranges(in_ranges: Store, proxy: FaultProxy, fault: str) -> None:
    """Twenty of them, wherever they fall: every key once, and each fault is one retry."""
    proxy.inject(Rule("", "GET", count=10), Rule(fault, "GET", count=20))
    # eight requests may meet the faults at once, so one of them may meet several
    store = open_store(in_ranges.uri, quick(max_attempts=30))
    before = request_counts()
    assert [info.key for info in store.list()] == KEYS
    requests, retries = since(before)
    injected = sum(seen == fault for _, _, seen in proxy.log)
    assert injected == retries == 20
    assert requests == proxy.requests() < 3 * len(KEYS) / 4 + 20


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("status:400:ExpiredToken", BadCredentials),
        ("status:403:AccessDenied", AccessDenied),
        ("reset", StorageUnavailable),
    ],
)
@pytest.mark.parametrize("served", [12, 30])
def test_a_listing_in_ranges_that_fails_gave_no_wrong_key(
    in_ranges: Store, proxy: FaultProxy, fault: str, error: type[Exception], served: int
) -> None:
    """What came before is the start of the listing; the requests are bounded by those in flight."""
    proxy.inject(Rule("", "GET", count=served), Rule(fault, "GET", count=10**6))
    store = open_store(in_ranges.uri, quick(max_attempts=2))
    found: list[ObjectInfo] = []
    with pytest.raises(error):
        found.extend(store.list())
    assert [info.key for info in found] == KEYS[: len(found)]
    assert proxy.requests() <= served + 2 * 16


def test_folders_that_a_server_cannot_tell(in_ranges: Store, proxy: FaultProxy) -> None:
    """Only the hints for where to cut are gone."""
    proxy.inject(Rule("status:501:NotImplemented", "GET", "delimiter", count=10**6))
    assert [info.key for info in in_ranges.list()] == KEYS
    assert any(seen for _, _, seen in proxy.log)
