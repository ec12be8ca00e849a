"""Audits of a bucket through copies on this machine: the same tables, each object asked for once, a budget kept."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from archives_made import tar_of
from audited import LOCAL, assert_equal_tables, run, small_set, write_files
from fault_proxy import FaultProxy
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.errors import UsageError
from pipeline.storage import Store, SyncParams, begin_run

FILES = small_set(10)


@pytest.fixture
def photos(monkeypatch: pytest.MonkeyPatch) -> Store:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "synced")
    for uri, data in FILES.items():
        store.put(uri, data)
    store.put("set.tar", tar_of([("train/c/x.jpg", FILES["train/a/a00.jpg"])]))
    return store


def storage(folder: Path, **more: Any) -> dict[str, Any]:
    return {"region": "us-east-1", "backoff": 0.0, "sync_to_local": str(folder), **more}


def sizes(folder: Path, kind: str) -> list[int]:
    """Of the copies of a kind, sorted."""
    return sorted(path.stat().st_size for path in (folder / kind).rglob("*.*") if path.is_file())


def test_each_object_is_fetched_once(photos: Store, tmp_path: Path) -> None:
    """By extraction, the comparison of pixels, and another root; what is deleted are copies, and only when asked."""
    plain = run(photos.uri, root=tmp_path / "plain", storage={"region": "us-east-1"})
    copies = tmp_path / "copies"
    with FaultProxy(moto_port()) as proxy:
        uri = f"minio://127.0.0.1:{proxy.port}/{photos.uri.split('/', 3)[3]}"
        first = run(uri, root=tmp_path / "one", storage=storage(copies))
        second = run(uri, root=tmp_path / "two", storage=storage(copies), delete_tar=True)
        fetched = [
            path.rpartition("/")[2] for method, path, _ in proxy.log if method == "GET" and "list-type" not in path
        ]
    assert_equal_tables(first, plain)
    assert_equal_tables(second, plain)
    assert sorted(name for name in fetched if name.endswith(".jpg")) == sorted(uri.rpartition("/")[2] for uri in FILES)
    assert sizes(copies, "files") == sorted(map(len, FILES.values()))
    assert sizes(copies, "archives") == []
    assert photos.exists("set.tar")
    run(photos.uri, root=tmp_path / "three", storage=storage(copies), delete_img=True)
    assert sizes(copies, "files") == []
    assert len(sizes(copies, "archives")) == 1
    assert all(photos.exists(uri) for uri in FILES)
    part: dict[str, Any] = {"storage": storage(copies), "where": LOCAL, "until": "features"}
    assert pipeline.run(photos.uri, root=tmp_path / "four", delete_tar=True, **part) is None
    assert (len(sizes(copies, "files")), sizes(copies, "archives")) == (len(FILES), [])


def test_what_has_no_room_is_read_from_its_store(photos: Store, tmp_path: Path) -> None:
    budget = sum(map(len, FILES.values())) // 2
    plain = run(photos.uri, root=tmp_path / "plain", storage={"region": "us-east-1"})
    copies = tmp_path / "copies"
    audit = run(photos.uri, root=tmp_path / "one", storage=storage(copies, sync_budget=budget))
    assert_equal_tables(audit, plain)
    held = sum(sizes(copies, "files")) + sum(sizes(copies, "archives"))
    assert 0 < held <= budget


def test_what_cannot_be_is_said_at_once(photos: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sync_to_local 'copies' must be an absolute path"):
        pipeline.run(photos.uri, root=tmp_path / "x", where=LOCAL, storage={"sync_to_local": "copies"})
    with pytest.raises(UsageError, match=r"they go with storage\.sync_to_local"):
        pipeline.run(photos.uri, root=tmp_path / "x", where=LOCAL, delete_img=True)
    full = write_files(tmp_path / "full", {"mine.txt": b""})
    folders = {
        "not copies of ours": full,
        "is no folder": full / "mine.txt" / "copies",
        "is where the root": tmp_path / "x",
        "is where the root .* writes": tmp_path / "x/features",
        "choose another one": tmp_path,
        r"cannot be made or written \((No such file|Operation not permitted|Permission denied)": Path("/proc/copies"),
        r"cannot be made or written \(File name too long": tmp_path / "copies" / ("x" * 300),
    }
    for said, folder in folders.items():
        with pytest.raises(UsageError, match=said):
            pipeline.run(photos.uri, root=tmp_path / "x", where=LOCAL, storage=storage(folder))
    assert not (tmp_path / "x").exists()
    assert [path.name for path in full.iterdir()] == ["mine.txt"]


def test_a_full_disk_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.storage.copy_folder.os.utime", full)
    params = SyncParams(str(tmp_path / "copies"), 1000)
    begin_run(params)
    assert ["No space left on device; what is not there yet is read" in line for line in caplog.messages] == [True]


def test_a_folder_that_breaks_meanwhile_harms_no_image(photos: Store, tmp_path: Path) -> None:
    plain = run(photos.uri, root=tmp_path / "plain", storage={"region": "us-east-1"})
    copies = tmp_path / "copies"
    run(photos.uri, root=tmp_path / "one", storage=storage(copies))
    for kind in ("files", "archives"):
        shutil.rmtree(copies / kind)
        (copies / kind).write_bytes(b"")
    assert_equal_tables(run(photos.uri, root=tmp_path / "two", storage=storage(copies)), plain)
