"""Copies whose bytes are not those that were written: they are noticed where they are read, and fetched anew."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from archives_made import archive
from audited import assert_equal_tables, run, small_set
from s3_servers import moto_port, new_store, use_credentials
from videos_made import KINDS, counting

from pipeline.storage import ObjectInfo, Store, request_counts
from pipeline.storage.copies import _remove_damaged, bytes_held, copy_names, read_copy
from pipeline.storage.copy_folder import SyncParams
from pipeline.storage.synced import SyncedStore

FILES = small_set(10)
DATA = random.Random(5).randbytes(10_000)
BLOCK = 1000
SAID = "was damaged there; it is fetched anew. Check the disk"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Store:
    use_credentials(monkeypatch)
    return new_store(moto_port(), "damaged")


@pytest.fixture
def synced(remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SyncedStore:
    """A store with a copy of a.tar in ten blocks."""
    monkeypatch.setattr("pipeline.storage.copy_sums.SUM_BLOCK", BLOCK)
    remote.put("a.tar", DATA)
    store = SyncedStore(remote, SyncParams(str(tmp_path / "copies"), 100_000))
    assert store.read_range("a.tar", 0, 1, expect=remote.stat("a.tar")) == DATA[:1]
    return store


def copy_of(store: SyncedStore) -> Path:
    (found,) = Path(store.copies.folder).rglob("*.sums")
    return found


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0xFF
    path.write_bytes(data)


def fetched() -> int:
    return request_counts().requests.get("s3.get", 0)


def test_only_what_is_read_is_compared(synced: SyncedStore, caplog: pytest.LogCaptureFixture) -> None:
    info, whole = synced.stat("a.tar"), copy_of(synced).read_bytes()
    assert whole[: len(DATA)] == DATA
    flip(copy_of(synced), 4500)
    before = fetched()
    for start, length in ((0, 4000), (5000, 5000), (5000, 99_999), (4500, 0), (10_000, 5)):
        assert synced.read_range("a.tar", start, length, expect=info) == DATA[start : start + length]
    assert (fetched() - before, caplog.messages) == (0, [])
    assert synced.read_range("a.tar", 3999, 2, expect=info) == DATA[3999:4001]
    assert fetched() > before
    assert copy_of(synced).read_bytes() == whole
    assert [SAID in line for line in caplog.messages] == [True]
    assert bytes_held(synced.copies) == len(whole) == 10_040
    ledger = Path(synced.copies.folder, "image-audit-copies").read_text()
    assert int(ledger) == len(whole)


@pytest.mark.parametrize("place", [0, 999, 1000, 9_999, 10_000, 10_039])
@pytest.mark.parametrize("way", ["range", "stream", "whole"])
def test_a_flipped_byte(synced: SyncedStore, place: int, way: str) -> None:
    """The first and last of blocks, and of the checksums."""
    info, whole = synced.stat("a.tar"), copy_of(synced).read_bytes()
    flip(copy_of(synced), place)
    if way == "range":
        assert synced.read_range("a.tar", 0, 10_000, expect=info) == DATA
    elif way == "stream":
        with synced.open("a.tar") as stream:
            stream.seek(9_000)
            assert stream.read() + (stream.seek(0), stream.read(9_000))[1] == DATA[9_000:] + DATA[:9_000]
    else:
        assert synced.read("a.tar", expect=info) == DATA
        assert synced.read_range("a.tar", 0, 10_000, expect=info) == DATA
    found = [path.read_bytes() for path in Path(synced.copies.folder).rglob("*.sums")]
    assert found == [whole]


@pytest.mark.parametrize("left", [b"", bytes(10_040), DATA, DATA + bytes(40), DATA[:5000] + bytes(5040)])
def test_what_a_power_cut_leaves(synced: SyncedStore, left: bytes) -> None:
    """Nothing, zeros, or a copy as it was kept before there were checksums."""
    whole = copy_of(synced).read_bytes()
    copy_of(synced).write_bytes(left)
    with synced.open("a.tar") as stream:
        assert stream.read() == DATA
    assert copy_of(synced).read_bytes() == whole


def test_a_copy_that_another_process_made_anew_stays(synced: SyncedStore) -> None:
    """Both had read the damaged one."""
    info, name = synced.stat("a.tar"), copy_names(synced.copies, synced.uri, synced.stat("a.tar"))[-1]
    flip(name.path, 5)
    descriptor = os.open(name.path, os.O_RDONLY)
    assert synced.read_range("a.tar", 0, 10, expect=info) == DATA[:10]
    _remove_damaged(synced.copies, name, descriptor)
    os.close(descriptor)
    assert read_copy(synced.copies, name, 0, 10) == DATA[:10]
    assert bytes_held(synced.copies) == 10_040


def test_an_image_of_parts(synced: SyncedStore, remote: Store) -> None:
    """An ETag that is no MD5: the copy is read whole, and compared."""
    remote.put("b.jpg", DATA[:50])
    listed = remote.stat("b.jpg")
    names = copy_names(synced.copies, synced.uri, ObjectInfo("b.jpg", 50, f"{listed.etag}-2", 0))
    assert [name.path.suffix for name in names] == [".sums"]
    assert synced.read_range("b.jpg", 0, 9, expect=listed) == DATA[:9]
    kept = copy_names(synced.copies, synced.uri, listed)[-1].path
    flip(kept, 49)
    assert synced.read("b.jpg", expect=listed) == DATA[:50]
    assert not kept.exists()


@pytest.mark.parametrize("harm", ["first", "every"])
def test_an_audit_of_damaged_copies(harm: str, remote: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Archives of all kinds, a video and an image: on a new root, the rows of a run without copies."""
    for ending in (".tar", ".tgz", ".zip"):
        remote.put(f"set{ending}", archive(ending, FILES.items()))
    remote.put("clips/v.mp4", counting(KINDS["mp4 h264"], 20))
    remote.put("one.jpg", FILES["train/a/a00.jpg"])
    plain = run(remote.uri, root=tmp_path / "plain", storage={"region": "us-east-1"})
    copies = tmp_path / "copies"
    storage: dict[str, Any] = {"region": "us-east-1", "sync_to_local": str(copies)}
    assert_equal_tables(run(remote.uri, root=tmp_path / "one", storage=storage), plain)
    kept = {path: path.read_bytes() for path in copies.rglob("*/*/*") if path.is_file()}
    assert sorted(path.suffix for path in kept) == [".md5", *[".sums"] * 4]
    for path, data in kept.items():
        flip(path, *range(0, len(data), 1 if harm == "every" else len(data)))
    assert_equal_tables(run(remote.uri, root=tmp_path / "two", storage=storage), plain)
    assert {path: path.read_bytes() for path in copies.rglob("*/*/*") if path.is_file()} == kept
    assert sum(SAID in line for line in caplog.messages) == 1
