"""What every store promises, on disk, on moto, on ministack and, with IMAGE_AUDIT_RGW and --slow, on Ceph RGW."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_servers import RGW_VARIABLE, ministack_port, moto_port, new_store, quick, rgw_port, use_credentials

from pipeline.errors import NotFound, ObjectChanged, StorageError, UsageError
from pipeline.storage import TEMPORARY_PREFIX, ObjectInfo, Store, open_store, request_counts

Opener = Callable[[str], Store]
SERVERS = {"moto": moto_port, "ministack": ministack_port}
BACKENDS = [pytest.param(name, id=name) for name in ("disk", *SERVERS)]
if os.environ.get(RGW_VARIABLE):
    SERVERS["rgw"] = rgw_port
    BACKENDS.append(pytest.param("rgw", id="rgw", marks=pytest.mark.slow))

ODD_KEYS = [
    "with space.jpg",
    "quote'\".jpg",
    "comma,semi;.jpg",
    "<script>alert(1)</script>.jpg",
    "per%20cent+plus?query#hash&.jpg",
    "umlaut-ä/e\u0301-decomposed/日本/😀.jpg",
    "back\\slash.jpg",
    "-dash",
    "a.b",
    "a/b",
    "a-b",
    "a0b",
    "~",
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Return a function that opens a new, empty store, given a prefix."""
    use_credentials(monkeypatch)
    if request.param != "disk":
        return functools.partial(new_store, SERVERS[request.param]())

    def on_disk(prefix: str = "") -> Store:
        folder = tmp_path / uuid.uuid4().hex / prefix
        folder.mkdir(parents=True)
        return open_store(folder)

    return on_disk


@pytest.fixture
def store(backend: Opener) -> Store:
    return backend("some/prefix")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_what_is_put_is_read(store: Store) -> None:
    data = bytes(range(256)) * 300
    store.put("a/b.bin", data)
    store.put("empty", b"")
    assert store.read("a/b.bin") == data
    assert store.read("empty") == b""
    store.put("a/b.bin", b"other")
    assert store.read("a/b.bin") == b"other"


def test_ranges_are_slices(store: Store) -> None:
    data = bytes(range(100))
    store.put_pieces("x", [data[:3], b"", data[3:]])
    for start, length in [(0, 1), (0, 100), (0, 1000), (10, 20), (99, 1), (95, 50), (100, 1), (500, 10), (5, 0)]:
        assert store.read_range("x", start, length) == data[start : start + length], (start, length)
    with pytest.raises(UsageError):
        store.read_range("x", -1, 5)
    with pytest.raises(NotFound, match="nothing-here"):
        store.read_range("nothing-here", 0, 0)


def test_missing_keys(store: Store) -> None:
    assert not store.exists("none")
    for ask in (store.read, store.stat, lambda key: store.read_range(key, 0, 1), store.open):
        with pytest.raises(NotFound, match="none/such"):
            ask("none/such")
    store.delete("none")
    assert keys(store, "none") == []


def test_stat_agrees_with_the_listing(store: Store) -> None:
    store.put("x", b"12345")
    listed = next(iter(store.list()))
    assert listed == store.stat("x")
    assert (listed.key, listed.size) == ("x", 5)
    assert listed.mtime_ns > 1_600_000_000 * 10**9
    store.delete("x")
    assert not store.exists("x")
    assert keys(store) == []


def test_listing_is_sorted_by_bytes_whatever_the_characters(store: Store) -> None:
    for number, key in enumerate(reversed(ODD_KEYS)):
        store.put(key, key.encode() + b"!" * number)
    assert keys(store) == sorted(ODD_KEYS, key=os.fsencode)
    for number, key in enumerate(reversed(ODD_KEYS)):
        assert store.read(key) == key.encode() + b"!" * number
        assert store.exists(key)
    assert keys(store, "a") == ["a-b", "a.b", "a/b", "a0b"]
    assert keys(store, "a/") == ["a/b"]
    assert keys(store, "a/b/") == []
    assert keys(store, "umlaut-ä/e") == [key for key in ODD_KEYS if key.startswith("umlaut")]


def test_neighbours_of_the_prefix_are_not_listed(backend: Opener) -> None:
    outer = backend("")
    for key in ("in/x", "inside/x", "in.x", "other"):
        outer.put(key, b"1")
    inner = open_store(f"{outer.uri}/in", quick())
    assert keys(inner) == ["x"]
    inner.put("y/z", b"2")
    assert outer.read("in/y/z") == b"2"
    assert keys(outer) == ["in.x", "in/x", "in/y/z", "inside/x", "other"]


def test_keys_that_a_disk_cannot_hold(backend: Opener) -> None:
    store = backend("p")
    for key in ("a//b", "../x", "./x", "x/", "/x", ""):
        if store.local_path("ok") is not None:
            with pytest.raises(UsageError, match="cannot hold"):
                store.put(key, b"1")
    if store.local_path("ok") is None:
        store.put("a//b", b"1")
        store.put("a", b"2")
        store.put("folder/", b"")  # the marker that consoles make
        assert keys(store) == ["a", "a//b"]
        assert store.read("a//b") == b"1"
    with pytest.raises(UsageError):
        store.put("nul\0", b"1")


@pytest.mark.parametrize(("count", "page"), [(250, 100), pytest.param(2500, 1000, marks=pytest.mark.slow)])
def test_a_long_listing_comes_in_pages(backend: Opener, count: int, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3.PAGE_KEYS", page)
    store = backend("many")
    wanted = [f"{number * 7919 % count:05d}.jpg" for number in range(count)]
    before = request_counts()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), wanted))
    assert keys(store) == sorted(wanted)
    assert keys(store, f"{count - 10:05d}"[:4]) == [f"{number:05d}.jpg" for number in range(count - 10, count)]
    spent = request_counts() - before
    assert spent.bytes_written == count
    if store.local_path("x") is None:
        assert spent.requests == {"s3.put": count, "s3.list": 4}


def test_a_listing_in_ranges_is_whole(backend: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, flat names, `a.jpg` beside `a/` and `a-`, odd signs: cut at many places, and each key comes once."""
    monkeypatch.setattr("pipeline.storage.s3.PAGE_KEYS", 4)
    monkeypatch.setattr("pipeline.storage.s3_cuts._MIN_SAMPLE", 3)
    store = backend("many")
    folders = ["", "a/", "a-/", "a.", "b/c/", "b/日本 😀/", "per%20cent+&?#/", "z/z/z/z/"]
    wanted = [f"{folder}{number:03d}" for folder in folders for number in range(25)]
    if store.local_path("x") is None:
        wanted += ["a//1", "a/../2", "/3", "trailing/"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), wanted))
    before = request_counts()
    assert keys(store) == sorted(wanted, key=os.fsencode)
    assert keys(store, "b/") == sorted((key for key in wanted if key.startswith("b/")), key=os.fsencode)
    if store.local_path("x") is None:
        assert (request_counts() - before).requests["s3.list"] > 70  # more than the pages: it was cut


def test_put_if_absent_keeps_the_first(store: Store) -> None:
    assert store.put_if_absent("commit", b"mine")
    assert store.put_if_absent("commit", b"mine")
    assert not store.put_if_absent("commit", b"theirs")
    assert store.read("commit") == b"mine"
    assert store.put_if_absent("empty", b"")
    assert keys(store) == ["commit", "empty"]


def test_sixteen_threads_one_winner(backend: Opener) -> None:
    store = backend("race")
    store.put_if_absent("warm", b"")
    for number in range(3):
        contents = [f"writer {writer}".encode() for writer in range(16)]
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(functools.partial(store.put_if_absent, f"key-{number}"), contents))
        assert sum(won) == 1
        assert store.read(f"key-{number}") == contents[won.index(True)]
    assert [key for key in keys(store) if key.startswith("key-")] == ["key-0", "key-1", "key-2"]


def test_an_object_that_changed_is_not_taken_for_the_listed_one(store: Store) -> None:
    store.put("x", b"12345")
    listed = next(iter(store.list()))
    assert store.read("x", expect=listed) == b"12345"
    store.put("x", b"123456")
    with pytest.raises(ObjectChanged, match="/x"):
        store.read("x", expect=listed)
    store.delete("x")
    with pytest.raises(NotFound, match="/x"):
        store.read("x", expect=listed)


def test_objects_of_one_size_are_told_apart(store: Store) -> None:
    """By their etag, on a disk by their time."""
    store.put("x", b"12345")
    listed = store.stat("x")
    store.put("x", b"54321")
    path = store.local_path("x")
    if path is not None:
        os.utime(path, ns=(1, 1))  # two writes may fall into one tick of the clock
    with pytest.raises(ObjectChanged):
        store.read("x", expect=listed)
    if path is not None:
        assert store.read("x", expect=ObjectInfo("x", 5, "", 0)) == b"54321"
    with pytest.raises(ObjectChanged):
        store.read("x", expect=ObjectInfo("x", 4, "", 0))


def test_a_range_of_an_object_that_changed_is_not_served(store: Store) -> None:
    """By its size, and with the same size by etag or time; empty ranges and ranges past the end as well."""
    store.put("x", b"0123456789")
    listed = next(iter(store.list()))
    ranges = [(0, 4), (3, 100), (0, 10), (9, 1), (10, 5), (5, 0)]
    for start, length in ranges:
        assert store.read_range("x", start, length, expect=listed) == b"0123456789"[start : start + length]
    for changed in (b"01234567890", b"012345678", b"9876543210"):
        store.put("x", changed)
        path = store.local_path("x")
        if path is not None:
            os.utime(path, ns=(1, 1))  # two writes may fall into one tick of the clock
        for start, length in ranges:
            with pytest.raises(ObjectChanged, match="/x"):
                store.read_range("x", start, length, expect=listed)
    assert store.read_range("x", 1, 3, expect=ObjectInfo("x", 10, "", 0)) == b"876"
    with pytest.raises(ObjectChanged, match="/x"):
        store.read_range("x", 1, 3, expect=ObjectInfo("x", 9, "", 0))
    store.delete("x")
    for start, length in ranges:
        with pytest.raises(NotFound, match="/x"):
            store.read_range("x", start, length, expect=listed)


def test_streams_seek_and_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3.STREAM_CHUNK", 1000)
    data = os.urandom(3500)
    store.put("x", data)
    store.put("empty", b"")
    with store.open("x") as stream:
        assert stream.read(10) == data[:10]
        assert stream.seek(-20, os.SEEK_END) == 3480
        assert stream.read() == data[-20:]
        assert stream.seek(990) == 990
        assert stream.read(2000) == data[990:2990]
        assert stream.seek(0) == 0
        assert stream.read() == data
    with store.open("empty") as stream:
        assert stream.read() == b""


def test_a_missing_place_is_named(backend: Opener) -> None:
    store = backend("")
    server = store.uri.split("/image-audit-tests/")[0]
    nowhere = open_store(f"{server}/missing-place/x", quick())
    with pytest.raises(NotFound, match="missing-place"):
        list(nowhere.list())
    with pytest.raises(NotFound, match="missing-place"):
        nowhere.read("x")


def test_stores_pickle(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"
    assert pickle.loads(pickle.dumps(store)).uri == store.uri


def test_another_process_reads_a_pickled_store(store: Store) -> None:
    store.put("x", b"over there")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read('x').decode())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, check=True, env=environment
    )
    assert done.stdout.decode().strip() == "over there"


def test_a_forked_child_uses_its_own_client(store: Store) -> None:
    store.put("x", b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read("x") == b"1" and request_counts().requests else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.read("x") == b"1"


def test_temporary_keys_are_not_listed(store: Store) -> None:
    store.put(f"a/{TEMPORARY_PREFIX}1", b"half")
    store.put("a/b", b"whole")
    assert keys(store) == ["a/b"]


def test_too_large_for_one_put(backend: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3.MAX_PUT_BYTES", 10)
    store = backend("")
    if store.local_path("x") is None:
        with pytest.raises(StorageError, match="11 bytes; wanted at most 10"):
            store.put("x", b"1" * 11)
        assert not store.exists("x")
    store.put("x", b"1" * 10)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\r\n"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.sets(st.lists(names, min_size=1, max_size=3).map("/".join), max_size=12), prefix=names)
def test_a_disk_lists_as_an_object_store_would(tmp_path: Path, wanted: set[str], prefix: str) -> None:
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    store = open_store(folder)
    held = {key for key in wanted if not any(other.startswith(key + "/") for other in wanted)}
    for key in held:
        store.put(key, key.encode())
    order = sorted(held, key=os.fsencode)
    assert keys(store) == order
    for start in [prefix, *(key[: len(key) // 2] for key in order)]:
        assert keys(store, start) == [key for key in order if key.startswith(start)]
