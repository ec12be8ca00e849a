"""Arrow tables and arrays at rest: Parquet with page checksums, .npy without pickle, JSON."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ArtifactError, NotFound
from pipeline.storage import Store

T = TypeVar("T")

_HEADER_BYTES = 128  # of every array that np.save writes here
_WHOLE_SHARE = 0.05
"""Of the rows of an object: where more are wanted, one read of all costs less than a read of each."""
_GAP_BYTES = 65_536  # less costs less to read than another request

ROW_GROUP = 8192
_DAMAGE = (
    OSError, ValueError, KeyError, EOFError, NotImplementedError, struct.error, zlib.error, zipfile.BadZipFile,
    pa.ArrowException,
)  # fmt: skip
"""What readers of Parquet, npy and npz raise on bytes that are not what was written."""


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as Parquet: the same bytes for the same rows and the same pyarrow."""
    sink = io.BytesIO()
    pq.write_table(
        table, sink, compression="zstd", compression_level=3, row_group_size=ROW_GROUP, write_page_checksum=True
    )
    return sink.getvalue()


def write_table(store: Store, key: str, table: pa.Table) -> None:
    """Commits a part. An equal part that is there already stays; another one is an ArtifactError.

    Two attempts of one part may race (a twin of a straggler, a resumed driver): the first stays, and both hold
    the same rows on one type of CPU.
    """
    if store.put_if_absent(key, parquet_bytes(table)):
        return
    present = read_table(store, key)
    if not _hold_same_rows(present, table):
        raise ArtifactError(
            f"{store.uri}/{key}: two attempts of one part differ ({present.num_rows} rows there, {table.num_rows} "
            "now, or other values). Parts of one artifact must come from one type of CPU and one version; "
            "delete that folder and run again."
        )


def _hold_same_rows(present: pa.Table, table: pa.Table) -> bool:
    """Whether names and values are equal, NaN to NaN; types that read back differently are cast first."""
    if present.column_names != table.column_names or present.num_rows != table.num_rows:
        return False
    try:
        cast = table.cast(present.schema).replace_schema_metadata(None)
    except pa.ArrowInvalid:
        return False
    return present.equals(cast) or parquet_bytes(present.replace_schema_metadata(None)) == parquet_bytes(cast)


def read_table(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A committed table, or some of its columns; checksums are verified.

    Raises ArtifactError for a part that cannot be read.
    """
    path = store.local_path(key)
    source: Any = str(path) if path is not None else io.BytesIO(store.read(key))
    try:
        with pq.ParquetFile(source, page_checksum_verification=True, memory_map=path is not None) as file:
            return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{store.uri}/{key}: the part is gone. {way_out(key, is_there=False)}") from error
    except _DAMAGE as error:
        raise damaged(store, key, error) from error


def read_rows(store: Store, key: str, lo: int, hi: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows [lo, hi) of a committed table, reading only the row groups that hold them."""
    path = store.local_path(key)
    source: Any = str(path) if path is not None else store.open(key)
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            first, last = lo // ROW_GROUP, max(lo, hi - 1) // ROW_GROUP
            groups = [g for g in range(first, last + 1) if g < file.num_row_groups]
            table = file.read_row_groups(groups, columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{store.uri}/{key}: the part is gone. {way_out(key, is_there=False)}") from error
    except _DAMAGE as error:
        raise damaged(store, key, error) from error
    return table.slice(lo - first * ROW_GROUP, hi - lo)


def read_batches(store: Store, key: str, rows: int) -> Iterator[pa.RecordBatch]:
    """A committed table, so many rows at a time; checksums are verified. Raises ArtifactError as `read_table` does."""
    path = store.local_path(key)
    source: Any = str(path) if path is not None else store.open(key)
    try:
        with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file:
            yield from file.iter_batches(rows, use_threads=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{store.uri}/{key}: the part is gone. {way_out(key, is_there=False)}") from error
    except _DAMAGE as error:
        raise damaged(store, key, error) from error


def count_rows(store: Store, key: str) -> int:
    """The number of rows of a committed table; only its footer is read."""
    path = store.local_path(key)
    source: Any = str(path) if path is not None else store.open(key)
    try:
        return int(pq.read_metadata(source).num_rows)
    except FileNotFoundError as error:
        raise ArtifactError(f"{store.uri}/{key}: the part is gone. {way_out(key, is_there=False)}") from error
    except _DAMAGE as error:
        raise damaged(store, key, error) from error


def read_metadata(store: Store, key: str) -> dict[bytes, bytes]:
    """What a committed table says of itself; only its footer is read."""
    path = store.local_path(key)
    source: Any = str(path) if path is not None else store.open(key)
    try:
        return dict(pq.read_metadata(source).metadata or {})
    except FileNotFoundError as error:
        raise ArtifactError(f"{store.uri}/{key}: the part is gone. {way_out(key, is_there=False)}") from error
    except _DAMAGE as error:
        raise damaged(store, key, error) from error


def write_array(store: Store, folder: str, stem: str, array: np.ndarray[Any, Any]) -> str:
    """Commits an array under a name that holds its hash; returns that name."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    data = buffer.getvalue()
    name = f"{stem}-{_digest(data)}.npy"
    store.put(f"{folder}/{name}", data)
    return name


def read_array(store: Store, folder: str, name: str) -> np.ndarray[Any, Any]:
    """A committed array, memory-mapped where the store is a disk; its hash is checked where bytes travel.

    Raises ArtifactError, without a way out: who reads it knows which part names it.
    """
    key = f"{folder}/{name}"
    path = store.local_path(key)
    try:
        if path is not None:
            return _mapped_array(path)
        data = store.read(key)
        if not _is_named(data, name):
            raise ValueError("its hash is not the one in its name")
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
        return array
    except (NotFound, *_DAMAGE) as error:
        raise ArtifactError(f"{store.uri}/{key}: the array is gone or damaged ({error}).") from error


def has_array(store: Store, folder: str, name: str) -> bool:
    """Whether a committed array is there, as it was written: also on a disk all of it is read and compared."""
    try:
        return _is_named(store.read(f"{folder}/{name}"), name)
    except NotFound:
        return False


def read_array_rows(store: Store, folder: str, name: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Some rows (ascending) of a committed array of two dimensions; of an object, the ranges that hold them.

    Rows read by themselves are not checked against the hash. Raises ArtifactError as `read_array` does.
    """
    key = f"{folder}/{name}"
    if store.local_path(key) is not None:
        return np.asarray(read_array(store, folder, name)[rows])
    try:
        start, (count, width), dtype = _array_header(store.read_range(key, 0, _HEADER_BYTES))
        if len(rows) > _WHOLE_SHARE * count:
            return np.asarray(read_array(store, folder, name)[rows])
        found = np.empty((len(rows), width), dtype)
        for first, last in _runs(rows, max(1, _GAP_BYTES // found.itemsize // width)):
            lo, hi = int(rows[first]), int(rows[last - 1]) + 1
            size = width * found.itemsize
            data = np.frombuffer(store.read_range(key, start + lo * size, (hi - lo) * size), dtype)
            found[first:last] = data.reshape(hi - lo, width)[rows[first:last] - lo]
        return found
    except (NotFound, *_DAMAGE) as error:
        raise ArtifactError(f"{store.uri}/{key}: the array is gone or damaged ({error}).") from error


def _mapped_array(path: Path) -> np.ndarray[Any, Any]:
    """An array on disk, mapped: 40 us, of which np.load needs 300."""
    with pa.memory_map(str(path)) as file:
        data = file.read_buffer()
    start, shape, dtype = _array_header(data.slice(0, _HEADER_BYTES).to_pybytes())
    array: np.ndarray[Any, Any] = np.frombuffer(data.slice(start), dtype).reshape(shape)
    return array


@lru_cache(maxsize=1024)
def _array_header(first: bytes) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Where the numbers of a .npy start, its shape and type; those of parts of one size are the same bytes."""
    head = io.BytesIO(first)
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return head.tell(), shape, dtype


def _runs(rows: np.ndarray[Any, Any], gap: int) -> list[tuple[int, int]]:
    """Where ascending rows fall into runs with less than `gap` rows between two of them."""
    cuts = np.flatnonzero(np.diff(rows) > gap) + 1
    return [*pairwise([0, *cuts.tolist(), len(rows)])]


def read_object(store: Store, key: str, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a committed object (npz, npy). Raises ArtifactError where it is gone or damaged."""
    try:
        return parse(store.read(key))
    except NotFound as error:
        raise ArtifactError(f"{store.uri}/{key}: it is gone. {way_out(key, is_there=False)}") from error
    except (ArtifactError, *_DAMAGE) as error:
        raise damaged(store, key, error) from error


def write_json(store: Store, key: str, value: Any) -> None:
    """Writes (or overwrites) a JSON document."""
    store.put(key, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Sorted, indented JSON with a final newline."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_json(store: Store, key: str) -> Any:
    """A JSON document. Raises NotFound, or ArtifactError where it is not JSON."""
    try:
        return json.loads(store.read(key))
    except ValueError as error:
        raise damaged(store, key, error) from error


def damaged(store: Store, key: str, cause: Exception) -> ArtifactError:
    """The error of a committed file that cannot be read, with the way out."""
    return ArtifactError(f"{store.uri}/{key}: it is damaged ({cause}). {way_out(key)}")


def way_out(key: str, *, is_there: bool = True) -> str:
    """What makes a file anew. Ids come from the catalog alone, so a lost piece of it cannot be made from anything."""
    if key.startswith("catalog/"):
        return "Ids hang on the catalog: restore that file from a backup, or audit into another --root."
    if is_there:
        return "Delete that file and run again: only it is made anew."
    return "Run again to make it anew; where another run works on this root, when that is done."


def _is_named(data: bytes, name: str) -> bool:
    return _digest(data) == name.rsplit("-", 1)[-1].removesuffix(".npy")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
