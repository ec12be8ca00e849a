"""Servers that answer a range with 200: the range itself, named or not, or the whole object."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives_made import archive
from audited import assert_equal_tables, run, small_set
from fault_proxy import FaultProxy, Rule
from s3_servers import moto_port, new_store, quick, use_credentials

from pipeline.errors import CorruptObject, ObjectChanged, StorageUnavailable
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


def test_a_range_of_a_whole_object_that_nothing_is_known_of(direct: Store, proxy: FaultProxy) -> None:
    """Its MD5 says whether it came whole; a range behind its end is empty."""
    direct.put("x", DATA)
    direct.put("empty", b"")
    store = opened(proxy, direct)
    proxy.inject(Rule("strip:Range", "GET", count=99))
    assert store.read_range("x", 100, 200) == DATA[100:300]
    assert store.read_range("x", 20_000, 5) == store.read_range("empty", 0, 5) == b""
    proxy.inject(Rule("code:200:Content-Range", "GET", count=99))
    with pytest.raises(CorruptObject, match="MD5"):
        store.read_range("x", 100, 200)


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
    monkeypatch.setattr("pipeline.storage.s3_answers.LARGEST_WHOLE", 10_000)
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
