"""Lookups: columns that are read at random by row, as uncompressed Arrow that is mapped and never read whole.

One file per range of offsets, `<stem>-<lo>-<hi>.arrow`: an Arrow stream of one batch whose row i is offset lo + i, then
the CRC-32 of the stream, which is checked when a process first opens the file.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, NotFound
from pipeline.layout.local_copy import forget, mapped
from pipeline.layout.parts import Part, cover, list_parts, missing, part_name
from pipeline.layout.tables import damaged, way_out
from pipeline.storage import Store

FORM = "arrow"
_CRC = struct.Struct("<I")
_CHECKED: OrderedDict[tuple[Store, str], int] = OrderedDict()
"""Files that this process has found whole -> their size: checking 13 MB takes 10 ms, opening them 0.2."""
_MOST_CHECKED = 65_536


def lookup_name(stem: str, lo: int, hi: int) -> str:
    """File name of the lookup of offsets [lo, hi)."""
    return f"{part_name(stem, lo, hi).rpartition('.')[0]}.{FORM}"


def write_lookup(store: Store, key: str, table: pa.Table) -> None:
    """Commits the rows of one file. What is there already stays: attempts of one task hold the same rows."""
    sink = pa.BufferOutputStream()
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    store.put_if_absent(key, b"".join([memoryview(data), _CRC.pack(zlib.crc32(data))]))


def open_lookup(store: Store, key: str) -> pa.RecordBatch:
    """The rows of one file, mapped: pages are read as they are touched.

    Raises ArtifactError for a file that is gone or damaged.
    """
    try:
        try:
            return _opened(store, key)
        except (FileNotFoundError, ValueError):  # a copy that was removed between two steps, or is damaged
            if not forget(store, key):
                raise
            return _opened(store, key)
    except (NotFound, FileNotFoundError) as error:
        raise ArtifactError(f"{store.uri}/{key}: it is gone. {way_out(key, is_there=False)}") from error
    except (ValueError, OSError, StopIteration, pa.ArrowException) as error:
        raise damaged(store, key, error) from error


def take_rows(
    store: Store, folder: str, stem: str, ids: NDArray[np.int64], columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of some offsets (any order, repeats allowed), row-aligned with `ids`; costs by how many, not by all.

    Raises ArtifactError where one is in no file.
    """
    wanted, inverse = np.unique(ids, return_inverse=True)
    parts = list_parts(store, folder, stem, FORM)
    pieces = [_rows(store, parts[0], columns).slice(0, 0)] if parts else []
    # cover, for the file of an offset is decided by the names alone
    slices = cover(parts, int(wanted[0]), int(wanted[-1]) + 1) if len(wanted) else []
    found = 0
    for piece in slices:
        lo, hi = np.searchsorted(wanted, [piece.lo, piece.hi])
        if lo < hi:
            pieces.append(_rows(store, piece.part, columns).take(pa.array(wanted[lo:hi] - piece.part.lo)))
            found += int(hi - lo)
    if found < len(wanted) or not pieces:
        raise _gap(store, folder, stem)
    return pa.Table.from_batches(pieces).combine_chunks().take(pa.array(inverse.ravel()))


def read_between(
    store: Store, folder: str, stem: str, lo: int, hi: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of offsets [lo, hi), in order. Raises ArtifactError where one is in no file."""
    parts = list_parts(store, folder, stem, FORM)
    if not parts or missing(parts, lo, hi):
        raise _gap(store, folder, stem)
    pieces = [
        _rows(store, piece.part, columns).slice(piece.lo - piece.part.lo, piece.hi - piece.lo)
        for piece in cover(parts, lo, hi)
    ]
    return pa.Table.from_batches(pieces or [_rows(store, parts[0], columns).slice(0, 0)])


def _rows(store: Store, part: Part, columns: Sequence[str] | None) -> pa.RecordBatch:
    batch = open_lookup(store, part.key)
    return batch if columns is None else batch.select(list(columns))


def _opened(store: Store, key: str) -> pa.RecordBatch:
    with pa.memory_map(str(mapped(store, key))) as file:
        data = file.read_buffer()
    name = (store, key)
    if _CHECKED.get(name) != data.size:
        crc = data.slice(max(0, data.size - _CRC.size))
        if data.size < _CRC.size or zlib.crc32(data.slice(0, data.size - _CRC.size)) != _CRC.unpack(crc)[0]:
            raise ValueError("its checksum is not the one that was written")
        _CHECKED[name] = data.size
        if len(_CHECKED) > _MOST_CHECKED:
            _CHECKED.popitem(last=False)
    with pa.ipc.open_stream(data.slice(0, data.size - _CRC.size)) as reader:
        return reader.read_next_batch()


def _gap(store: Store, folder: str, stem: str) -> ArtifactError:
    return ArtifactError(f"{store.uri}/{folder}: offsets of {stem} are gone. {way_out(folder, is_there=False)}")
