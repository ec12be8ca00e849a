"""Faults between client and server: right results, bounded requests, one typed error per cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fault_proxy import FaultProxy, Rule
from s3_servers import free_port, ministack_port, moto_port, new_store, put_in_parts, quick, use_credentials

from pipeline.errors import (
    AccessDenied,
    BadCredentials,
    CorruptObject,
    NotFound,
    ObjectChanged,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from pipeline.storage import Store, open_store, request_counts
from pipeline.storage.retry import MAX_WAIT, RetryPolicy, Transient, _wait

DATA = bytes(range(256)) * 40
KEY = "folder/x.bin"

pytestmark = pytest.mark.usefixtures("senders")


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(moto_port()) as running:
        yield running


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store without the proxy, holding KEY and nothing else."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "p")
    store.put(KEY, DATA)
    return store


@pytest.fixture
def store(direct: Store, proxy: FaultProxy) -> Store:
    """The same bucket, through the proxy; it has answered the probe for If-None-Match already."""
    proxy.inject()
    proxied = through(proxy, direct)
    proxied.put_if_absent(KEY, DATA)
    proxy.inject()
    return proxied


def through(proxy: FaultProxy, store: Store, **changes: object) -> Store:
    path = store.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
    return open_store(f"minio://127.0.0.1:{proxy.port}/{path}", quick(**changes))


PASSING = [
    "status:503:SlowDown",
    "status:500:InternalError",
    "status:502:",
    "status:504:",
    "status:429:",
    "reset",
    "err200",
]


@pytest.mark.parametrize("fault", [*PASSING, "truncate:100", "flip:10", "drop_after"])
def test_get_survives_two_faults_with_three_requests(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.inject(Rule(fault, "GET", count=2))
    assert store.read(KEY) == DATA
    assert proxy.requests() == 3


def test_a_bucket_that_moved_is_asked_the_long_way(store: Store, proxy: FaultProxy) -> None:
    """botocore follows a bucket to its region, so a redirect is its business: one request more, then as before."""
    assert store.read(KEY) == DATA
    for status in (301, 307):
        proxy.inject(Rule(f"status:{status}:PermanentRedirect", "GET"))
        assert store.read(KEY) == DATA
        assert proxy.requests() == 2
        assert store.read_range(KEY, 5, 5) == DATA[5:10]
        assert proxy.requests() == 3


@pytest.mark.parametrize("checksum", ["crc32:AAAAAA==", "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="])
def test_a_checksum_that_the_server_tells_is_compared(store: Store, proxy: FaultProxy, checksum: str) -> None:
    """Of a range too, whose bytes no MD5 covers; one of the parts of an upload is of something else."""
    wrong = f"header:x-amz-checksum-{checksum}"
    proxy.inject(Rule(wrong, "GET", count=2))
    assert store.read_range(KEY, 5, 500) == DATA[5:505]
    assert proxy.requests() == 3
    proxy.inject(Rule(wrong, "GET", count=99))
    with pytest.raises(CorruptObject, match="6 attempts"):
        store.read_range(KEY, 5, 500)
    proxy.inject(Rule("header:x-amz-checksum-crc32:AAAAAA==-3", "GET"))
    assert store.read(KEY) == DATA
    assert proxy.requests() == 1


@pytest.mark.parametrize("fault", [*PASSING, "truncate:60", "drop_after"])
def test_range_survives_two_faults_with_three_requests(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.inject(Rule(fault, "GET", count=2))
    assert store.read_range(KEY, 100, 200) == DATA[100:300]
    assert proxy.requests() == 3


@pytest.mark.parametrize("fault", [*PASSING, "truncate:100", "flip:10", "drop_after"])
def test_list_survives_two_faults_with_three_requests(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.inject(Rule(fault, "GET", count=2))
    assert [(info.key, info.size) for info in store.list()] == [(KEY, len(DATA))]
    assert proxy.requests() == 3


def test_list_survives_a_fault_on_its_second_page(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.PAGE_KEYS", 2)
    for number in range(3):
        store.put(f"n{number}", b"1")
    proxy.inject(Rule("truncate:200", "GET", "continuation-token"))
    assert [info.key for info in store.list()] == [KEY, "n0", "n1", "n2"]
    assert proxy.requests() == 3


@pytest.mark.parametrize(
    "fault", [*PASSING, "drop_after", "flip_upload:7", "cut_upload:700", "status:409:OperationAborted"]
)
def test_put_survives_two_faults_with_three_requests(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.inject(Rule(fault, "PUT", count=2))
    store.put("new", DATA)
    assert proxy.requests() == 3
    proxy.inject()
    assert store.read("new") == DATA


@pytest.mark.parametrize("fault", [*PASSING, "cut_upload:2", "status:409:ConditionalRequestConflict"])
def test_put_if_absent_survives_two_faults(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.inject(Rule(fault, "PUT", count=2))
    assert store.put_if_absent("commit", b"mine")
    assert proxy.requests() == 3
    proxy.inject(Rule(fault, "PUT", count=2))
    assert not store.put_if_absent("commit", b"theirs")
    assert (proxy.requests("PUT"), proxy.requests("GET")) == (3, 1)
    assert store.read("commit") == b"mine"


@pytest.mark.parametrize("port", [moto_port, ministack_port])
@pytest.mark.parametrize("sent", [0, 700, len(DATA) - 1])
def test_a_write_that_dies_in_its_middle_leaves_nothing(
    port: Callable[[], int], sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an object cut short nor a commit: the server never saw the end of the body. The next writer wins."""
    use_credentials(monkeypatch)
    direct = new_store(port(), "p")
    with FaultProxy(port()) as dying:
        path = direct.uri.removeprefix(f"minio://127.0.0.1:{port()}/")
        store = open_store(f"minio://127.0.0.1:{dying.port}/{path}", quick(max_attempts=2))
        store.put_if_absent("probed", b"1")
        dying.inject(Rule(f"cut_upload:{sent}", "PUT", count=99))
        for write in (store.put, store.put_if_absent):
            with pytest.raises(StorageUnavailable, match="gave up after 2 attempts"):
                write("part", DATA)
    assert [info.key for info in direct.list()] == ["probed"]
    assert direct.put_if_absent("part", DATA)


def test_a_lost_reply_is_not_taken_for_another_writer(store: Store, proxy: FaultProxy) -> None:
    proxy.inject(Rule("drop_after", "PUT"))
    assert store.put_if_absent("commit", b"mine")
    assert [method for method, _, _ in proxy.log] == ["PUT", "PUT", "GET"]
    assert store.read("commit") == b"mine"


def test_an_object_that_vanishes_before_it_is_compared_is_written(
    store: Store, direct: Store, proxy: FaultProxy
) -> None:
    direct.put("commit", b"theirs")
    proxy.inject(Rule("status:404:NoSuchKey", "GET"), Rule("status:412:PreconditionFailed", "PUT"))
    direct.delete("commit")
    assert store.put_if_absent("commit", b"mine")
    assert [method for method, _, _ in proxy.log] == ["PUT", "GET", "PUT"]


@pytest.mark.parametrize(
    "fault", ["status:503:SlowDown", "status:503:", "reset", "drop_after", "status:500:InternalError"]
)
def test_giving_up_takes_exactly_max_attempts(direct: Store, proxy: FaultProxy, fault: str, senders: str) -> None:
    store = through(proxy, direct, max_attempts=4)
    before = request_counts()
    for method, call in [
        ("GET", lambda: store.read(KEY)),
        ("GET", lambda: list(store.list())),
        ("PUT", lambda: store.put("new", b"1")),
        ("HEAD", lambda: store.stat(KEY)),
        ("DELETE", lambda: store.delete("new")),
    ]:
        proxy.inject(Rule(fault, method, count=99))
        with pytest.raises(StorageUnavailable, match=r"gave up after 4 attempts"):
            call()
        is_get_of_curl = senders != "session" and method == "GET" and KEY in proxy.log[-1][1]
        assert proxy.requests() in ((4, 5) if is_get_of_curl and fault in ("reset", "drop_after") else (4,))
    spent = request_counts() - before
    assert sum(spent.requests.values()) == 20
    assert sum(spent.retries.values()) == 15


@pytest.mark.parametrize("fault", ["flip:10", "header:ETag:", "err200"])
def test_damage_that_stays_is_a_corrupt_object(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.inject(Rule(fault, "GET", count=99))
    with pytest.raises(CorruptObject, match=r"read minio://.*/p/folder/x.bin: .*6 attempts"):
        store.read(KEY)
    assert proxy.requests() == 6


def test_an_error_document_is_never_an_empty_listing(store: Store, proxy: FaultProxy) -> None:
    proxy.inject(Rule("err200", "GET", count=99))
    with pytest.raises(StorageError):
        list(store.list())


def test_a_server_that_ignores_ranges_is_found_out(store: Store, proxy: FaultProxy) -> None:
    proxy.inject(Rule("header:Content-Range:bytes 0-199/10240", "GET", count=99))
    with pytest.raises(CorruptObject, match="range"):
        store.read_range(KEY, 100, 200)


def test_a_stalled_server_times_out(direct: Store, proxy: FaultProxy) -> None:
    store = through(proxy, direct, read_timeout=1, max_attempts=2)
    proxy.inject(Rule("stall", "GET"))
    assert store.read(KEY) == DATA
    proxy.inject(Rule("stall", "GET", count=9))
    with pytest.raises(StorageUnavailable, match="2 attempts"):
        store.read(KEY)


def test_nobody_listens(direct: Store) -> None:
    store = open_store(f"minio://127.0.0.1:{free_port()}/bucket", quick(max_attempts=2))
    with pytest.raises(StorageUnavailable, match="Check that the endpoint is right"):
        store.read("x")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", NotFound),
        (403, "AccessDenied", AccessDenied),
        (403, "SomethingNew", AccessDenied),
        (403, "InvalidObjectState", AccessDenied),
        (403, "InvalidAccessKeyId", BadCredentials),
        (403, "SignatureDoesNotMatch", BadCredentials),
        (400, "ExpiredToken", BadCredentials),
        (403, "RequestTimeTooSkewed", BadCredentials),
        (403, "QuotaExceeded", StorageFull),
        (507, "XMinioStorageFull", StorageFull),
        (412, "PreconditionFailed", ObjectChanged),
        (400, "InvalidRequest", StorageError),
    ],
)
def test_one_error_per_cause_and_no_retry(
    store: Store, proxy: FaultProxy, status: int, code: str, error: type[StorageError]
) -> None:
    proxy.inject(Rule(f"status:{status}:{code}", count=99))
    with pytest.raises(error) as caught:
        store.read(KEY)
    assert type(caught.value) is error
    assert store.uri in str(caught.value)
    assert proxy.requests() == 1
    if status != 412:
        with pytest.raises(error) as caught:
            store.put("new", b"1")
        assert type(caught.value) is error
        with pytest.raises(error) as caught:
            list(store.list())
        assert proxy.requests() == 3


@pytest.mark.parametrize("status", [403, 400])
def test_the_cause_of_a_refused_head_is_asked_by_a_get(store: Store, proxy: FaultProxy, status: int) -> None:
    proxy.inject(Rule(f"status:{status}:", "HEAD", count=9), Rule("status:400:ExpiredToken", "GET"))
    with pytest.raises(BadCredentials):
        store.exists(KEY)
    proxy.inject(Rule("status:403:", "HEAD", count=9), Rule("status:403:AccessDenied", "GET", count=9))
    with pytest.raises(AccessDenied):
        store.exists(KEY)


def test_a_refused_head_of_an_empty_object_ends(store: Store, direct: Store, proxy: FaultProxy) -> None:
    """A GET of its first byte is a range past its end: that asks for no other HEAD."""
    direct.put("empty", b"")
    for ask in (store.stat, store.exists, lambda key: store.read_range(key, 0, 0)):
        proxy.inject(Rule("status:403:", "HEAD", count=99), Rule("status:416:InvalidRange", "GET", count=99))
        with pytest.raises(AccessDenied):
            ask("empty")
        assert (proxy.requests("HEAD"), proxy.requests("GET")) == (1, 1)


def test_what_lies_in_glacier_is_to_be_restored(store: Store, proxy: FaultProxy) -> None:
    proxy.inject(Rule("status:403:InvalidObjectState", "GET"))
    with pytest.raises(AccessDenied, match="restore it"):
        store.read(KEY)


def test_a_server_that_tells_no_length(store: Store, direct: Store, proxy: FaultProxy) -> None:
    """The MD5 of the whole, or the range that is named, says that all came; else the missing length is the error."""
    expect = direct.stat(KEY)
    proxy.inject(Rule("unsized:100", "GET", count=2), Rule("unsized:", "GET", count=99))
    assert store.read(KEY, expect=expect) == DATA
    assert proxy.requests() == 3
    proxy.inject(Rule("unsized:5", "GET"), Rule("unsized:", "GET", count=99))
    assert store.read_range(KEY, 10, 20, expect=expect) == DATA[10:30]
    assert proxy.requests() == 2
    put_in_parts(direct, "parts", DATA)
    proxy.inject(Rule("unsized:", count=99))
    for ask in (store.read, store.stat):
        with pytest.raises(StorageError, match="tells no Content-Length") as caught:
            ask("parts")
        assert type(caught.value) is StorageError
        assert "damaged" not in str(caught.value)
    assert proxy.requests() == 2


def test_a_server_that_overwrites_is_refused(direct: Store, proxy: FaultProxy) -> None:
    with FaultProxy(moto_port()) as lax:
        store = through(lax, direct)
        lax.inject(Rule("strip:If-None-Match", "PUT", count=99))
        with pytest.raises(StorageError, match="If-None-Match") as caught:
            store.put_if_absent("commit", b"1")
        assert type(caught.value) is StorageError
        assert lax.requests("PUT") == 2
        with pytest.raises(StorageError, match="If-None-Match"):
            store.put_if_absent("other", b"1")
        assert lax.requests("PUT") == 2
        store.put("plain", b"1")
    assert [info.key for info in direct.list()] == [KEY, "plain"]


def test_the_probe_is_made_once_and_leaves_nothing(direct: Store) -> None:
    with FaultProxy(moto_port()) as counted:
        store = through(counted, direct)
        for number in range(3):
            assert store.put_if_absent(f"commit-{number}", b"1")
        assert (counted.requests("PUT"), counted.requests("DELETE"), counted.requests("GET")) == (5, 1, 0)
    assert [info.key for info in direct.list()] == ["commit-0", "commit-1", "commit-2", KEY]


def test_a_server_that_lists_out_of_order_is_refused(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("zz", b"1")
    store.put("aa", b"1")
    answer = "<IsTruncated>false</IsTruncated>"
    contents = "".join(f"<Contents><Key>p/{key}</Key><Size>1</Size></Contents>" for key in ("zz", "aa"))
    monkeypatch.setattr(
        "fault_proxy._error_reply",
        lambda *_: _reply(f"<ListBucketResult>{answer}{contents}</ListBucketResult>"),
    )
    proxy.inject(Rule("err200", "GET"))
    with pytest.raises(StorageError, match="byte order"):
        list(store.list())


def _reply(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


@pytest.mark.parametrize("fault", [*PASSING, "truncate:100", "drop_after"])
def test_streams_survive_faults(store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr("pipeline.storage.s3.STREAM_CHUNK", 4000)
    proxy.inject(Rule(fault, "GET", count=2))
    with store.open(KEY) as stream:
        assert stream.read() == DATA
    assert proxy.requests("GET") == 5


def test_a_stream_never_mixes_two_versions(store: Store, direct: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3.STREAM_CHUNK", 100_000)
    long = DATA * 40
    direct.put(KEY, long)
    with store.open(KEY) as stream:
        assert stream.read(10) == long[:10]
        direct.put(KEY, long[::-1])
        with pytest.raises(ObjectChanged):
            stream.seek(300_000)


def test_retry_after_is_heeded_within_bounds() -> None:
    policy = RetryPolicy(6, 0.25)
    assert _wait(policy, 1, Transient("throttled", "", wait=7.0)) == 7.0
    assert _wait(policy, 1, Transient("throttled", "", wait=700.0)) == MAX_WAIT
    waits = [_wait(policy, number, Transient("connection", "")) for number in range(1, 6)]
    assert all(0.5 <= wait / (0.25 * 2 ** (number - 1)) <= 1.0 for number, wait in enumerate(waits, 1))
