"""Shuffle files: every reader gets its rows, on disk and from an object store, and damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ArtifactError
from pipeline.layout.shuffle import read_batch, read_column, write_batches
from pipeline.storage import StorageConfig, Store, open_store

SCHEMA = pa.schema(
    [("image_id", pa.int64()), ("lists", pa.list_(pa.int32())), ("vector", pa.binary(8))],
)


def _batch(seed: int, rows: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    columns = [
        rng.integers(0, 1 << 40, rows),
        [rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(rows)],
        [rng.bytes(8) for _ in range(rows)],
    ]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return open_store(str(tmp_path), StorageConfig())


class _Remote:
    """The same bytes behind a store without paths, as an object store answers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def local_path(self, key: str) -> None:
        return None

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.reads.append((start, length))
        return self._store.read_range(key, start, length)


@pytest.mark.parametrize("is_remote", [False, True])
def test_each_reader_gets_its_rows(disk: Store, is_remote: bool) -> None:
    batches = [_batch(0, 5), _batch(1, 0), _batch(2, 70_000), _batch(3, 1)]
    write_batches(disk, "visits/a.shuffle", batches)
    store = _Remote(disk) if is_remote else disk
    for number, batch in enumerate(batches):
        found = read_batch(store, "visits/a.shuffle", number)  # type: ignore[arg-type]
        assert found.equals(batch)


def test_a_packed_file_is_smaller_and_reads_alike(disk: Store) -> None:
    even = pa.record_batch(
        [pa.array([7] * 5000), pa.array([[1, 2]] * 5000), pa.array([b"8 bytes."] * 5000)], SCHEMA.names
    )
    even = even.cast(SCHEMA)
    write_batches(disk, "v", [even.slice(0, 0), even, even.slice(3, 1)], "zstd")
    assert disk.stat("v").size < even.nbytes / 10
    assert [read_batch(disk, "v", number).to_pylist() for number in range(3)] == [
        [],
        even.to_pylist(),
        even.to_pylist()[3:4],
    ]


def test_a_slice_is_written_without_the_rows_beside_it(disk: Store) -> None:
    whole = _batch(5, 10_000)
    write_batches(disk, "v", [whole.slice(10, 3), whole.slice(0, 0)])
    assert read_batch(disk, "v", 0).equals(whole.slice(10, 3))
    assert read_batch(disk, "v", 1).num_rows == 0
    assert disk.stat("v").size < 4096


def test_a_batch_of_a_remote_file_costs_two_reads(disk: Store) -> None:
    write_batches(disk, "v", [_batch(number, 20_000) for number in range(8)])
    remote = _Remote(disk)
    read_batch(remote, "v", 6)  # type: ignore[arg-type]
    assert len(remote.reads) == 2


def test_one_reader_reads_its_batch_of_every_file_in_order(disk: Store) -> None:
    keys = [f"v/{name}" for name in "cab"]
    for at, key in enumerate(keys):
        write_batches(disk, key, [_batch(10 * at + number, 4) for number in range(3)])
    found = list(read_column(disk, keys, 2))
    assert [batch.equals(_batch(10 * at + 2, 4)) for at, batch in enumerate(found)] == [True] * 3


def test_the_first_of_two_attempts_stays(disk: Store) -> None:
    write_batches(disk, "v", [_batch(1, 4)])
    write_batches(disk, "v", [_batch(2, 4)])
    assert read_batch(disk, "v", 0).equals(_batch(1, 4))


@pytest.mark.parametrize("place", ["magic", "index", "rows", "end"])
def test_damage_is_named(disk: Store, place: str) -> None:
    write_batches(disk, "v", [_batch(1, 50), _batch(2, 50)])
    data = bytearray(disk.read("v"))
    at = {"magic": 1, "index": 30, "rows": len(data) - 40, "end": 0}[place]
    if place == "end":
        del data[-1000:]
    else:
        data[at] ^= 0x55
    disk.put("v", bytes(data))
    with pytest.raises(ArtifactError, match=r"damaged.*run again"):
        read_batch(disk, "v", 1)


def test_a_file_that_is_gone_is_named(disk: Store) -> None:
    with pytest.raises(ArtifactError, match=r"gone.*[Rr]un again"):
        read_batch(disk, "visits/none", 0)
