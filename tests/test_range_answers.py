"""Servers that answer a range with 200: the range itself, named or not, or the whole object."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives_made import archive
from audited import assert_equal_tables, rows, run, small_set
from fault_proxy import FaultProxy, Rule
from s3_servers import moto_port, new_store, put_in_parts, quick, use_credentials

from pipeline.errors import AccessDenied, ObjectChanged, StorageUnavailable
from pipeline.layout.own_vectors import own_model
from pipeline.sources.vectors import open_vectors
from pipeline.storage import Store, open_store

FILES = small_set(10)
DATA = bytes(range(256)) * 40
ANSWERS = {"range with its name": "code:200:", "range alone": "code:200:Content-Range", "whole": "strip:Range"}
STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Store:
    use_credentials(monkeypatch)
    return new_store(moto_port(), "ranges")


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(moto_port()) as running:
        yield running


def through(proxy: FaultProxy, store: Store) -> str:
    return f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}"


def opened(proxy: FaultProxy, store: Store, **changes: object) -> Store:
    return open_store(through(proxy, store), quick(**changes))


@pytest.mark.usefixtures("senders")
@pytest.mark.parametrize("answer", ANSWERS)
def test_ranges_and_streams(answer: str, direct: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, in the middle, over the end and of all of it; a stream in pieces, from its end on."""
    monkeypatch.setattr("pipeline.storage.s3.STREAM_CHUNK", 3000)
    direct.put("x", DATA)
    store, info = opened(proxy, direct), direct.stat("x")
    store.read("x")
    proxy.inject(Rule(ANSWERS[answer], "GET", count=999))
    for start, length in ((0, 1), (100, 200), (10_000, 999), (0, len(DATA)), (0, 99_999)):
        assert store.read_range("x", start, length, expect=info) == DATA[start : start + length]
    assert proxy.requests() == 5
    with store.open("x") as stream:
        assert stream.seek(-500, io.SEEK_END) == len(DATA) - 500
        assert stream.read() == DATA[-500:]
        stream.seek(123)
        assert stream.read() == DATA[123:]


@pytest.mark.usefixtures("senders")
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("key", ["at once", "in parts"])
def test_ranges_of_an_object_that_nothing_is_known_of(key: str, answer: str, direct: Store, proxy: FaultProxy) -> None:
    """No ETag tells a range from an object where it was put in parts: one HEAD tells how long the object is."""
    direct.put("at once", DATA)
    put_in_parts(direct, "in parts", DATA)
    store = opened(proxy, direct)
    store.read(key)
    for start, length in ((0, 100), (10, 1000), (999, 1000), (5000, 1000), (10_000, 999), (0, 99_999)):
        proxy.inject(Rule(ANSWERS[answer], "GET", count=99))
        assert store.read_range(key, start, length) == DATA[start : start + length]
        is_told = answer == "range with its name" or (key == "at once" and (answer == "whole" or length > len(DATA)))
        assert [method for method, _, _ in proxy.log] == (["GET"] if is_told else ["GET", "HEAD"])


def test_a_range_behind_a_whole_object_is_empty(direct: Store, proxy: FaultProxy) -> None:
    store = opened(proxy, direct)
    proxy.inject(Rule("strip:Range", "GET", count=99))
    for data, start in ((b"", 0), (DATA, 20_000)):
        direct.put("at once", data)
        put_in_parts(direct, "in parts", data)
        assert store.read_range("at once", start, 5) == store.read_range("in parts", start, 5) == b""


def test_a_head_of_another_version_is_no_measure(direct: Store, proxy: FaultProxy) -> None:
    """An object that is replaced between the two is asked for again; one that no HEAD may see ends as such."""
    put_in_parts(direct, "x", DATA)
    store = opened(proxy, direct)
    ranges = Rule("code:200:Content-Range", "GET", count=99)
    proxy.inject(ranges, Rule('header:ETag:"another-1"', "HEAD"))
    assert store.read_range("x", 100, 200) == DATA[100:300]
    assert [method for method, _, _ in proxy.log] == ["GET", "HEAD"] * 2
    proxy.inject(ranges, Rule("status:403:AccessDenied", "HEAD", count=99))
    for ask in (lambda: store.read_range("x", 100, 200), lambda: store.stat("x")):
        with pytest.raises(AccessDenied):
            ask()


def test_another_object_is_no_range(direct: Store, proxy: FaultProxy) -> None:
    """One that was replaced by as many bytes as were asked for, on a server that heeds neither Range nor If-Match."""
    direct.put("x", DATA)
    info = direct.stat("x")
    direct.put("x", DATA[:200])
    with FaultProxy(proxy.port) as outer:
        store = open_store(f"minio://127.0.0.1:{outer.port}/{direct.uri.split('/', 3)[3]}", quick())
        proxy.inject(Rule("strip:Range", "GET", count=9))
        outer.inject(Rule("strip:If-Match", "GET", count=9))
        with pytest.raises(ObjectChanged, match="200 bytes"):
            store.read_range("x", 100, 200, expect=info)


def test_a_large_object_does_not_come_for_each_range(
    direct: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.s3_whole.LARGEST_WHOLE", 1_000)
    direct.put("x", DATA)
    store = opened(proxy, direct)
    proxy.inject(Rule("strip:Range", "GET", count=9))
    with pytest.raises(StorageUnavailable, match=r"bytes=0-9 with all 10,240 bytes; wanted that range"):
        store.read_range("x", 0, 10)
    assert proxy.requests() == 1
    assert store.read_range("x", 0, 20_000) == DATA


@pytest.mark.parametrize("answer", ANSWERS)
def test_archives_of_such_a_server(answer: str, direct: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    """A tar, a tar.gz and a zip: every member, and the tables of a server that answers with 206."""
    for ending in (".tar", ".tgz", ".zip"):
        direct.put(f"set{ending}", archive(ending, FILES.items()))
    plain = run(direct.uri, root=tmp_path / "plain", storage=STORAGE, shard_size=7)
    store = opened(proxy, direct)
    proxy.inject(Rule(ANSWERS[answer], "GET", r"/set\.", count=999))
    for ending in (".tar", ".tgz"):
        with store.open(f"set{ending}") as stream, tarfile.open(fileobj=stream) as members:
            assert {one.name: members.extractfile(one).read() for one in members} == FILES  # type: ignore[union-attr]
    with store.open("set.zip") as stream, zipfile.ZipFile(stream) as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == FILES
    audit = run(through(proxy, direct), root=tmp_path / "audit", storage=STORAGE, shard_size=7)
    assert_equal_tables(audit, plain)
    images = audit.table("images").to_pylist()
    names = [f"set{ending}#{name}" for ending in (".tar", ".tgz", ".zip") for name in FILES]
    assert sorted(row["uri"] for row in images) == sorted(names)
    bad = {row["uri"].partition("#")[2]: row["status"] for row in images if row["status"] != "ok"}
    assert bad == {"train/b/cut.jpg": "truncated"}, bad


def file_of_vectors(ending: str, vectors: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    if ending == ".npy":
        np.save(sink, vectors)
    else:
        names = [f"{number:03d}.jpg" for number in range(len(vectors))]
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        table = pa.table({"filename": names, "vector": column})
        pq.write_table(table, sink, row_group_size=50, use_dictionary=False, compression="none")
    return sink.getvalue()


@pytest.mark.parametrize("answer", ANSWERS)
def test_vectors_of_such_a_server(
    answer: str, direct: Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is read in pieces, and another one by its name the next night: its own pairs, both times."""
    monkeypatch.setattr("pipeline.layout.own_vectors.BLOCK_BYTES", 5000)
    vectors = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    proxy.inject(Rule(ANSWERS[answer], "GET", r"own\.parquet", count=9999))
    for twins in ({}, {190: 20, 191: 21}):
        for copy, of in twins.items():
            vectors[copy] = vectors[of]
        put_in_parts(direct, "own.parquet", file_of_vectors(".parquet", vectors))
        audit = run(root=tmp_path / "audit", embeddings=f"{through(proxy, direct)}/own.parquet", storage=STORAGE)
        pairs = {(row["uri"], row["match_uri"]) for row in rows(audit, "duplicates") if row["similarity"] == 1}
        assert pairs == {(f"{of:03d}.jpg", f"{copy:03d}.jpg") for copy, of in twins.items()}
        stored = audit.search(vectors, k=1)
        assert stored["image_id"].to_pylist() == [twins.get(row, row) for row in range(len(vectors))]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_array_of_such_a_server(
    answer: str, direct: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.vectors.BLOCK_BYTES", 5000)
    vectors = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float16)
    put_in_parts(direct, "own.npy", file_of_vectors(".npy", vectors))
    proxy.inject(Rule(ANSWERS[answer], "GET", count=999))
    file = open_vectors(opened(proxy, direct), "own.npy", "own.npy")
    assert np.array_equal(np.concatenate([*file.blocks()]), vectors)


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_vectors_that_are_replaced_after_they_were_opened(
    place: str, ending: str, direct: Store, tmp_path: Path
) -> None:
    """Neither their hash nor their rows are those of the other file, though its size and names are the same."""
    store = direct if place == "bucket" else open_store(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    store.put(f"own{ending}", file_of_vectors(ending, vectors))
    file = open_vectors(store, f"own{ending}", "own")
    own_model(file, is_alone=False)
    store.put(f"own{ending}", file_of_vectors(ending, vectors[::-1]))
    for read in (lambda: [*file.blocks()], lambda: own_model(file, is_alone=False)):
        with pytest.raises(ObjectChanged):
            read()
