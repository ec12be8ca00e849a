"""Lookups against the whole table, on a disk and through copies of objects; damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from s3_servers import moto_port, new_store, use_credentials

from pipeline.errors import AccessDenied, ArtifactError
from pipeline.layout import local_copy, lookups
from pipeline.layout.local_copy import cache_store, mapped
from pipeline.layout.lookups import lookup_name, open_lookup, read_between, take_rows, write_lookup
from pipeline.storage import Store, open_store

ROWS = 100
TABLE = pa.table(
    {
        "uri": [None if n % 11 == 0 else "é" * (n % 7) + f"{n}.jpg" for n in range(ROWS)],
        "size": pa.array([n * n for n in range(ROWS)], pa.int64()),
        "shares": [[0.5] * (n % 3) for n in range(ROWS)],
    }
)
BOUNDS = [(0, 40), (40, 41), (41, 100)]


@pytest.fixture(params=["disk", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    if request.param == "disk":
        return open_store(tmp_path / "root")
    use_credentials(monkeypatch)
    return new_store(moto_port(), f"lookups-{tmp_path.name}")


def write_all(store: Store) -> None:
    for lo, hi in BOUNDS:
        write_lookup(store, f"f/{lookup_name('names', lo, hi)}", TABLE.slice(lo, hi - lo))


def test_rows_by_id_and_by_range(store: Store) -> None:
    write_all(store)
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 300):
        ids = rng.integers(0, ROWS, count)
        assert take_rows(store, "f", "names", ids).to_pylist() == TABLE.take(pa.array(ids)).to_pylist()
        assert take_rows(store, "f", "names", ids, ["size"]).column_names == ["size"]
    for lo, hi in [(0, ROWS), (39, 42), (17, 17), (41, 90)]:
        assert read_between(store, "f", "names", lo, hi).to_pylist() == TABLE.slice(lo, hi - lo).to_pylist()


def test_offsets_without_a_file_are_refused(store: Store) -> None:
    """Rows behind them would take their places."""
    write_all(store)
    store.delete(f"f/{lookup_name('names', 40, 41)}")
    for read in (
        lambda: take_rows(store, "f", "names", np.array([3, 40])),
        lambda: read_between(store, "f", "names", 39, 42),
    ):
        with pytest.raises(ArtifactError, match="offsets of names are gone"):
            read()
    assert take_rows(store, "f", "names", np.array([99, 3])).num_rows == 2


@pytest.mark.parametrize("change", ["cut", "flipped", "lost", "empty"])
def test_damage_is_named(store: Store, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    write_all(store)
    key = f"f/{lookup_name('names', 0, 40)}"
    data = store.read(key)
    at = len(data) // 2
    damaged = {"cut": data[:at], "flipped": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "empty": b""}
    store.delete(key)
    if change != "lost":
        store.put(key, damaged[change])
    monkeypatch.setattr(lookups, "_CHECKED", type(lookups._CHECKED)())
    with pytest.raises(ArtifactError, match=key) as raised:
        open_lookup(store, key)
    assert raised.value.exit_code == 3


def test_a_damaged_copy_is_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is whole: only this machine's copy of it is not."""
    write_all(store)
    key = f"f/{lookup_name('names', 0, 40)}"
    assert open_lookup(store, key).num_rows == 40
    path = mapped(store, key)
    if store.local_path(key) is not None:
        assert path == store.local_path(key)
        return
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    monkeypatch.setattr(lookups, "_CHECKED", type(lookups._CHECKED)())
    assert open_lookup(store, key).to_pylist() == TABLE.slice(0, 40).to_pylist()


def test_copies_stay_within_their_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(local_copy, "CACHE_BYTES", 2500)
    store = new_store(moto_port(), "copies")
    for number in range(5):
        store.put(str(number), bytes([number]) * 1000)
        assert mapped(store, str(number)).read_bytes() == bytes([number]) * 1000
    assert sum(info.size for info in cache_store().list()) == 2000
    store.put("4", b"new")
    assert mapped(store, "4").read_bytes() == b"new"


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 4711)
    (tmp_path / "image-audit-4711").mkdir()
    with pytest.raises(AccessDenied, match="want 4711"):
        cache_store()
