"""What was found inside of files that hold images: a packed Arrow stream for each, kept while the file is the same."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.errors import ArtifactError, NotFound
from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.schemas import TRANSIENT
from pipeline.sources.folder import LeftOut
from pipeline.sources.fragments import ARCHIVES, Fragment
from pipeline.storage import ObjectInfo, Store, read_ahead

VERSION = 4
FOLDER = f"{CATALOG}/fragments"
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), False),
        pa.field("position", pa.int64(), False),
        pa.field("length", pa.int64(), False),
        pa.field("size", pa.int64(), False),
        pa.field("problem", pa.string(), False),
        pa.field("label", pa.string(), False),
    ]
)
FOUND, AGAIN, INDEX = ".found.arrow", ".again.arrow", ".index"
"""Endings of what was found, of what an attempt could not read and the next run tries again, and of the points from
which a tar.gz can be unpacked."""
BLOCK = 65_536
INSTALL = "; then run again"
"""End of a problem that is over once a library is installed."""
_LEFT_OUT, _KIND = b"left_out", b"kind"
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Parent:
    """A file that holds images: the uri of the store that it is in, what was listed of it, and its kind.

    params: how its images are chosen, as text; "" where all are, as of an archive.
    """

    place: str
    info: ObjectInfo
    kind: str
    params: str = ""

    @property
    def stem(self) -> str:
        """Name of what was found in it, by all that tells it from another file or from another state of it.

        Archives share one kind here: that by their bytes is known to who reads them, and not yet to who lists them.
        """
        info, kind = self.info, "" if self.kind in ARCHIVES else self.kind
        told = [self.place, info.key, info.size, info.etag, 0 if info.etag else info.mtime_ns, kind, VERSION]
        told += [self.params] * bool(self.params)
        text = json.dumps(told).encode()  # ASCII, whatever bytes the key has
        return f"{FOLDER}/{hashlib.blake2b(text, digest_size=16).hexdigest()}"


def write_fragments(store: Store, parent: Parent, kind: str, found: Iterable[Fragment], left_out: LeftOut) -> int:
    """Stores what is found in a file of a kind; returns how many. `left_out` is read last: `found` counts in it.

    What broke the listing off is found last; it is of the file itself, and stored first. What is wrong with the attempt
    and not with the file does not stand: the next run tries again.
    """
    batches: list[pa.RecordBatch] = []
    count, is_final = 0, True
    fragments = iter(found)
    while block := list(islice(fragments, BLOCK)):
        count += len(block)
        is_final &= not any(map(_is_transient, block))
        if block[-1].position < 0:
            batches.insert(0, _batch([block.pop()]))
        batches += [_batch(block)] if block else []
    told = {_LEFT_OUT: json.dumps({"hidden": left_out.hidden, "suffixes": dict(left_out.suffixes)}), _KIND: kind}
    store.put(parent.stem + (FOUND if is_final else AGAIN), _packed(batches, SCHEMA.with_metadata(told)))
    return count


def _batch(block: list[Fragment]) -> pa.RecordBatch:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*block, strict=True), SCHEMA, strict=True)]
    return pa.record_batch(columns, schema=SCHEMA)


def _packed(batches: list[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """An Arrow stream and its CRC-32: of 290 members 6 kB that are read in 0.16 ms, as Parquet 8 kB and 0.4 ms."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data = sink.getvalue()
    return b"".join([memoryview(data), _CRC.pack(zlib.crc32(data))])


def _is_transient(fragment: Fragment) -> bool:
    """Whether the problem of a file is one of the attempt to read it, such as a library that is not installed."""
    return fragment.problem.partition(":")[0] in TRANSIENT or fragment.problem.endswith(INSTALL)


class Found:
    """What was found in a file: its kind by its bytes, what it holds beside images, and its fragments."""

    def __init__(self, data: bytes) -> None:
        """data: as `write_fragments` stores it. Raises ValueError or ArrowException where it is damaged."""
        stream, crc = memoryview(data)[: -_CRC.size], data[-_CRC.size :]
        if _CRC.pack(zlib.crc32(stream)) != crc:
            raise ValueError("its checksum is not the one that was written")
        self._stream = stream
        told = self._reader().schema.metadata
        counts = json.loads(told[_LEFT_OUT])
        self.kind = told[_KIND].decode()
        self.left_out = LeftOut(hidden=counts["hidden"], suffixes=Counter(counts["suffixes"]))

    def _reader(self) -> pa.RecordBatchReader:
        return pa.ipc.open_stream(pa.py_buffer(self._stream))

    def __iter__(self) -> Iterator[Fragment]:
        """The fragments by their position. They are unpacked a block at a time."""
        for batch in self._reader():
            yield from map(Fragment, *(column.to_pylist() for column in batch.columns))


class KnownFragments:
    """What is stored in a root of the files that hold images; those of which nothing is are collected.

    What an attempt could not read is tried once in each session.
    """

    def __init__(self, store: Store, is_tried: bool) -> None:
        """`is_tried`: what could not be read was tried in this session, so its problem stands."""
        self._store = store
        endings = (FOUND, AGAIN) if is_tried else (FOUND,)
        self._sizes = {info.key: info.size for info in store.list(f"{FOLDER}/") if info.key.endswith(endings)}
        self.missing: list[Parent] = []

    def of(self, parents: Sequence[Parent]) -> Iterator[Found]:
        """What was found in each file of which something is stored, in order; the others are noted as missing.

        The stored bytes are read ahead of who asks, within the bounds of `read_ahead`; one at a time is unpacked.
        Raises ArtifactError for what is damaged or gone.
        """
        keys = [self._key(parent) for parent in parents]
        self.missing += [parent for parent, key in zip(parents, keys, strict=True) if not key]
        known = [key for key in keys if key]
        return map(self._found, known, read_ahead(known, self._read, self._sizes.__getitem__))

    def _key(self, parent: Parent) -> str:
        stem = parent.stem
        return next((key for ending in (FOUND, AGAIN) if (key := stem + ending) in self._sizes), "")

    def _read(self, key: str) -> bytes:
        try:
            return self._store.read(key)
        except NotFound as error:
            raise ArtifactError(f"{self._store.uri}/{key}: it is gone. Run again to make it anew.") from error

    def _found(self, key: str, data: bytes) -> Found:
        try:
            return Found(data)
        except (ValueError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{self._store.uri}/{key}: it is damaged ({error}). Delete that file and run again: what it was made "
                "of is looked into anew."
            ) from error
