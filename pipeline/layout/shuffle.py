"""Shuffle files: what one task has for each reader of the next stage, as record batches of one object.

One object per writer and not one per writer and reader: 89 ranges times 30 partitions would be 2,670 small objects.
Layout: magic, length and CRC-32 of the index, the index (JSON: schema, size and CRC-32 of each batch), Arrow messages.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.errors import ArtifactError, NotFound
from pipeline.layout.tables import damaged, way_out
from pipeline.storage import Store, is_remote, read_ahead

MAGIC = b"IMAUDSH1"
_LENGTH = 8
_FIRST_READ = 65_536  # holds the index of about a thousand batches: a batch then costs two reads
_SHUFFLED_AHEAD = 2**22  # taken as the size of a batch that is read ahead: eight are


@dataclass(frozen=True)
class _Index:
    """Where the batches of a shuffle file are, counted from the start of the object; raw: their sizes unpacked."""

    schema: pa.Schema
    start: tuple[int, ...]
    size: tuple[int, ...]
    crc: tuple[int, ...]
    raw: tuple[int, ...]
    codec: str | None


def write_batches(store: Store, key: str, batches: Sequence[pa.RecordBatch], codec: str | None = None) -> None:
    """Commits one object with a batch per reader, in order; all of one schema, empty ones welcome.

    codec: as `pyarrow.compress` names it; None for what is to be memory-mapped, or is noise, such as vectors.

    Where it is there already it stays: two attempts of one task hold the same rows on one type of CPU.
    """
    nothing = pa.RecordBatch.from_pylist([], batches[0].schema)
    # a slice of no rows would be written with all of its lists' offsets
    messages = [(batch if batch.num_rows else nothing).serialize() for batch in batches]
    raw = [message.size for message in messages]
    if codec is not None:
        messages = [pa.compress(message, codec) for message in messages]
    sizes = [message.size for message in messages]
    schema = base64.b64encode(batches[0].schema.serialize().to_pybytes()).decode()
    crcs = [zlib.crc32(message) for message in messages]
    index = {"schema": schema, "size": sizes, "crc": crcs, "raw": raw, "codec": codec}
    text = json.dumps(index).encode()
    text += b" " * (-len(text) % 64)  # messages stay aligned
    head = MAGIC + len(text).to_bytes(_LENGTH, "little") + zlib.crc32(text).to_bytes(_LENGTH, "little")
    store.put_if_absent(key, b"".join([head, text, *(memoryview(message) for message in messages)]))


def read_batch(store: Store, key: str, number: int) -> pa.RecordBatch:
    """One batch of a shuffle file, memory-mapped where the store is a disk.

    Raises ArtifactError for a file that is gone or damaged.
    """
    path = store.local_path(key)
    try:
        data = _Stored(store, key) if path is None else _Mapped(pa.memory_map(str(path)).read_buffer())
        index = _read_index(data)
        message = data.between(index.start[number], index.size[number])
        if message.size != index.size[number] or zlib.crc32(message) != index.crc[number]:
            raise ValueError(f"batch {number} does not have the checksum in the index")
        if index.codec is not None:
            message = pa.decompress(message, index.raw[number], index.codec)
        return pa.ipc.read_record_batch(message, index.schema)
    except (NotFound, FileNotFoundError) as error:
        raise ArtifactError(f"{store.uri}/{key}: it is gone. {way_out(key, is_there=False)}") from error
    except (ValueError, KeyError, IndexError, pa.ArrowException) as error:
        raise damaged(store, key, error) from error


def read_column(store: Store, keys: Sequence[str], number: int) -> Iterator[pa.RecordBatch]:
    """The batches of one reader from several shuffle files, in the order of the files; objects are read ahead."""

    def read(key: str) -> pa.RecordBatch:
        return read_batch(store, key, number)

    return read_ahead(keys, read, lambda _: _SHUFFLED_AHEAD) if is_remote(store.uri) else map(read, keys)


class _Mapped:
    """The bytes of a file on disk."""

    def __init__(self, data: pa.Buffer) -> None:
        self._data = data

    def between(self, start: int, length: int) -> pa.Buffer:
        """Bytes [start, start + length)."""
        return self._data.slice(start, max(0, min(length, self._data.size - start)))


class _Stored:
    """The bytes of an object, of which the first are read once."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._first = store.read_range(key, 0, _FIRST_READ)

    def between(self, start: int, length: int) -> pa.Buffer:
        """Bytes [start, start + length)."""
        if start + length <= len(self._first):
            return pa.py_buffer(self._first[start : start + length])
        return pa.py_buffer(self._store.read_range(self._key, start, length))


def _read_index(data: _Mapped | _Stored) -> _Index:
    head = len(MAGIC) + 2 * _LENGTH
    first = data.between(0, head).to_pybytes()
    length, crc = (int.from_bytes(first[at : at + _LENGTH], "little") for at in (len(MAGIC), len(MAGIC) + _LENGTH))
    text = data.between(head, length).to_pybytes()
    if first[: len(MAGIC)] != MAGIC or zlib.crc32(text) != crc:
        raise ValueError("its index is not the one that was written")
    value = json.loads(text)
    ends = np.cumsum([head + length, *value["size"]])
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value["schema"])))
    return _Index(
        schema,
        tuple(ends[:-1].tolist()),
        tuple(value["size"]),
        tuple(value["crc"]),
        tuple(value["raw"]),
        value["codec"],
    )
