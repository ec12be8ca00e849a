"""A user's own vectors: .npy files of (n, d), and Parquet files with a column of names and one of vectors."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.storage import ObjectInfo, Store
from pipeline.storage.blocks import open_blocks

HEADER_BYTES = 4096
BLOCK_BYTES = 2**26
NAMES_AT_ONCE = 131_072
LEAST_DIMENSION = 2
LARGEST = 15  # the largest number of a vector is stored as 2^14 to 2^15: small ones keep all of their bits
SHOWN = 5
_WANTED = (
    "want a .npy of float16, float32 or float64 (n, d), d from 2 on, or a Parquet with a column of names and one of "
    "vectors"
)
_BAD_NPY = (ValueError, SyntaxError, EOFError, TypeError, KeyError)


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors that was opened: n and d, and where they are in it.

    info: the version that was opened; of any other nothing is read: ObjectChanged. names: None for a .npy, whose rows
    follow the listing. column: of a Parquet file, "" for a .npy.
    """

    store: Store
    info: ObjectInfo
    address: str
    count: int
    dimension: int
    dtype: np.dtype[Any]
    start: int
    column: str
    names: pa.Array | None

    def blocks(self) -> Iterator[NDArray[np.float16]]:
        """The vectors as they are stored, in order, some at a time; see `stored_vectors`. Raises UsageError for NaN."""
        at = 0
        for block in _parquet_blocks(self) if self.column else _npy_blocks(self):
            yield stored_vectors(block, at, self.address)
            at += len(block)


def open_vectors(store: Store, key: str, address: str) -> VectorFile:
    """The vectors at a key. Raises UsageError for a file that is neither, or holds something else."""
    info = store.stat(key)
    head = store.read_range(key, 0, HEADER_BYTES, expect=info)
    if head[:4] == b"PAR1":
        return _open_parquet(store, info, address)
    if head[:6] == b"\x93NUMPY":
        return _open_npy(store, info, address, head)
    raise UsageError(f"vectors {address}: neither .npy nor Parquet; {_WANTED}")


def stored_vectors(block: NDArray[Any], first: int, address: str) -> NDArray[np.float16]:
    """Vectors as they are stored, float16 (n, d): wider ones are scaled, row by row, by a power of two.

    A cosine does not change under it, and no value is too large or small for float16. `first` is the number of the
    first row, for messages. Raises UsageError for NaN or infinity.
    """
    if block.dtype not in (np.float16, np.float32, np.float64):
        raise UsageError(f"vectors {address}: they are {block.dtype}; {_WANTED}")
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        shown = ", ".join(str(first + row) for row in bad[:SHOWN].tolist())
        more = f" (+{len(bad) - SHOWN} more of this block)" if len(bad) > SHOWN else ""
        raise UsageError(f"vectors {address}: NaN or infinity in row {shown}{more}. Mend them, or give zeros instead.")
    if block.dtype == np.float16:
        return np.ascontiguousarray(block)
    _, exponent = np.frexp(np.abs(block).max(axis=1, initial=0.0))
    scaled: NDArray[np.float16] = np.ldexp(block, LARGEST - exponent[:, None]).astype(np.float16)
    return scaled


def _open_npy(store: Store, info: ObjectInfo, address: str, head: bytes) -> VectorFile:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except _BAD_NPY as error:
        raise UsageError(f"vectors {address}: not a .npy of numbers ({error}); {_WANTED}") from error
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8 or is_fortran or shape[1] < LEAST_DIMENSION:
        order = ", column by column" if is_fortran else ""
        raise UsageError(f"vectors {address}: {dtype} {shape}{order}; {_WANTED}, row by row (numpy.ascontiguousarray)")
    wanted = stream.tell() + shape[0] * shape[1] * dtype.itemsize
    if info.size != wanted:
        raise UsageError(
            f"vectors {address}: {info.size:,} bytes, its header says {wanted:,}: it was cut off; write it anew"
        )
    return VectorFile(store, info, address, shape[0], shape[1], dtype, stream.tell(), "", None)


def _npy_blocks(file: VectorFile) -> Iterator[NDArray[Any]]:
    row_bytes = file.dimension * file.dtype.itemsize
    step = max(1, BLOCK_BYTES // row_bytes)
    for at in range(0, file.count, step):
        rows = min(step, file.count - at)
        data = file.store.read_range(file.info.key, file.start + at * row_bytes, rows * row_bytes, expect=file.info)
        native = np.frombuffer(data, file.dtype).reshape(rows, file.dimension)
        yield native.astype(file.dtype.newbyteorder("="), copy=False)


def _open_parquet(store: Store, info: ObjectInfo, address: str) -> VectorFile:
    try:
        with pq.ParquetFile(_opened(store, info)) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
            column, names = _only(schema, _is_vector, "vectors", address), _only(schema, _is_name, "names", address)
            listed = pc.cast(file.read([names])[names], pa.string()).combine_chunks()
            first = next(iter(file.iter_batches(1, columns=[column])), None)
            dimension = 0 if first is None else len(first.column(0)[0].as_py() or ())
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"vectors {address}: not a Parquet file ({error}); {_WANTED}") from error
    listed = pc.if_else(pc.starts_with(listed, "./"), pc.utf8_slice_codeunits(listed, 2), listed)
    if listed.null_count or len(pc.unique(listed)) < count:
        counts = pc.value_counts(listed).to_pylist()
        twice = [item["values"] for item in counts if item["counts"] > 1 or item["values"] is None]
        raise UsageError(f"vectors {address}: {len(twice)} names occur twice or are empty, such as {twice[0]!r}")
    if dimension < LEAST_DIMENSION:
        raise UsageError(f"vectors {address}: {count:,} rows of {dimension} numbers; {_WANTED}")
    dtype = schema.field(column).type.value_type.to_pandas_dtype()
    return VectorFile(store, info, address, count, dimension, np.dtype(dtype), 0, column, listed)


def holds_vectors(store: Store, key: str) -> bool:
    """Whether a file is a Parquet with a column of vectors."""
    try:
        with pq.ParquetFile(store.open(key)) as file:
            return any(_is_vector(field.type) for field in file.schema_arrow)
    except (pa.ArrowException, OSError):
        return False


class NameIndex:
    """The row of each name: 16 bytes a name and the names, where a dict of 11.6 million takes 1.6 GB."""

    def __init__(self, names: pa.StringArray | None) -> None:
        self._names = pa.array([], pa.string()) if names is None else names
        blocks = range(0, len(self._names), NAMES_AT_ONCE)
        hashes = [_hashes(self._names.slice(at, NAMES_AT_ONCE).to_pylist()) for at in blocks]
        whole = np.concatenate([np.empty(0, np.int64), *hashes])
        self._order = np.argsort(whole, kind="stable")
        self._sorted = whole[self._order]

    def rows_of(self, wanted: list[str]) -> NDArray[np.int64]:
        """Row of each name, -1 for one that is not there; int64 (n,)."""
        rows = np.full(len(wanted), -1, np.int64)
        hashes = _hashes(wanted)
        at = np.searchsorted(self._sorted, hashes)
        left = np.flatnonzero(self._holds(at, hashes))
        names = pa.array(wanted, pa.string())
        while len(left):  # twice where two names have one hash
            found = self._order[at[left]]
            is_equal = pc.equal(self._names.take(pa.array(found)), names.take(pa.array(left))).to_numpy(False)
            rows[left[is_equal]] = found[is_equal]
            left = left[~is_equal]
            at[left] += 1
            left = left[self._holds(at[left], hashes[left])]
        return rows

    def _holds(self, at: NDArray[np.int64], hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        is_there = at < len(self._sorted)
        is_there[is_there] = self._sorted[at[is_there]] == hashes[is_there]
        return is_there


def _hashes(names: list[str]) -> NDArray[np.int64]:
    """Python's own hash, which is another in every process."""
    return np.fromiter(map(hash, names), np.int64, len(names))


def _only(schema: pa.Schema, is_wanted: Any, what: str, address: str) -> str:
    found = [field.name for field in schema if is_wanted(field.type)]
    preferred = [name for name in found if name in ("uri", "filename", "path", "name", "embedding", "vector")]
    if len(found) != 1 and len(preferred) != 1:
        had = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise UsageError(f"vectors {address}: {len(found)} columns of {what}, want one; it has {had}. {_WANTED}")
    return str(preferred[0] if len(preferred) == 1 else found[0])


def _is_name(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _opened(store: Store, info: ObjectInfo) -> BinaryIO:
    """The version that was opened, to read here and there."""
    store.read_range(info.key, 0, 1, expect=info)
    return open_blocks(store, info)


def _parquet_blocks(file: VectorFile) -> Iterator[NDArray[Any]]:
    rows = max(1, BLOCK_BYTES // (file.dimension * file.dtype.itemsize))
    at = 0
    with pq.ParquetFile(_opened(file.store, file.info)) as parquet:
        for batch in parquet.iter_batches(rows, columns=[file.column]):
            column = batch.column(0)
            values = column.flatten()
            if column.null_count or values.null_count or len(values) != len(column) * file.dimension:
                lengths = [len(item or ()) for item in column.to_pylist()]
                bad = next((n for n, length in enumerate(lengths) if length != file.dimension), 0)
                raise UsageError(
                    f"vectors {file.address}: row {at + bad} has {lengths[bad]} numbers or nulls, want {file.dimension}"
                )
            yield values.to_numpy(zero_copy_only=False).reshape(len(column), file.dimension)
            at += len(column)


def names_or_rows(file: VectorFile) -> Sequence[str]:
    """The names of a file, or the numbers of its rows."""
    if file.names is not None:
        listed: list[str] = file.names.to_pylist()
        return listed
    return [f"row {number}" for number in range(file.count)]
