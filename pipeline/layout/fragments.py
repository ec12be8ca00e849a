"""What was found inside of files that hold images: one Parquet per file, kept while the file is the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.layout.tables import parquet_bytes, read_table
from pipeline.schemas import TRANSIENT
from pipeline.sources.folder import LeftOut
from pipeline.sources.fragments import Fragment
from pipeline.storage import ObjectInfo, Store

VERSION = 1
FOLDER = f"{CATALOG}/fragments"
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), False),
        pa.field("position", pa.int64(), False),
        pa.field("length", pa.int64(), False),
        pa.field("size", pa.int64(), False),
        pa.field("problem", pa.string(), False),
    ]
)
FOUND, AGAIN, INDEX = ".found.parquet", ".again.parquet", ".index"
"""Endings of what was found, of what an attempt could not read and the next run tries again, and of the points from
which a tar.gz can be unpacked."""
BLOCK = 65_536
INSTALL = "; then run again"
"""End of a problem that is over once a library is installed."""
_LEFT_OUT, _KIND = b"left_out", b"kind"


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
        """Name of what was found in it, by all that tells it from another file or from another state of it."""
        info = self.info
        told = [self.place, info.key, info.size, info.etag, 0 if info.etag else info.mtime_ns, self.kind, VERSION]
        told += [self.params] * bool(self.params)
        text = json.dumps(told).encode()  # ASCII, whatever bytes the key has
        return f"{FOLDER}/{hashlib.blake2b(text, digest_size=16).hexdigest()}"


def write_fragments(store: Store, parent: Parent, kind: str, found: Iterable[Fragment], left_out: LeftOut) -> int:
    """Stores what is found in a file of a kind; returns how many. `left_out` is read last: `found` counts in it.

    What is wrong with the attempt and not with the file does not stand: the next run tries again.
    """
    batches, is_final = [], True
    fragments = iter(found)
    while block := list(islice(fragments, BLOCK)):
        is_final &= not any(map(_is_transient, block))
        columns = [pa.array(column, field.type) for column, field in zip(zip(*block, strict=True), SCHEMA, strict=True)]
        batches.append(pa.record_batch(columns, schema=SCHEMA))
    counts = json.dumps({"hidden": left_out.hidden, "suffixes": dict(left_out.suffixes)})
    table = pa.Table.from_batches(batches, SCHEMA).replace_schema_metadata({_LEFT_OUT: counts, _KIND: kind})
    store.put(parent.stem + (FOUND if is_final else AGAIN), parquet_bytes(table))
    return int(table.num_rows)


def _is_transient(fragment: Fragment) -> bool:
    """Whether the problem of a file is one of the attempt to read it, such as a library that is not installed."""
    return fragment.problem.partition(":")[0] in TRANSIENT or fragment.problem.endswith(INSTALL)


@dataclass(frozen=True)
class Found:
    """What was found in a file: its kind by its bytes, a table of SCHEMA, and what it holds beside images."""

    kind: str
    table: pa.Table
    left_out: LeftOut

    def __iter__(self) -> Iterator[Fragment]:
        """The fragments by their position: what broke the listing off, which was found last, is of the file itself and
        comes first. Objects are made of a block at a time.
        """
        last = self.table.num_rows - 1
        if last > 0 and self.table["position"][last].as_py() < 0:
            yield from _fragments(self.table.slice(last))
            yield from _fragments(self.table.slice(0, last))
        else:
            yield from _fragments(self.table)


def _fragments(table: pa.Table) -> Iterator[Fragment]:
    for batch in table.to_batches(BLOCK):
        yield from map(Fragment, *(batch[name].to_pylist() for name in Fragment._fields))


def read_fragments(store: Store, key: str) -> Found:
    """What is stored under a key."""
    table = read_table(store, key)
    counts = json.loads(table.schema.metadata[_LEFT_OUT])
    kind = table.schema.metadata[_KIND].decode()
    return Found(kind, table, LeftOut(hidden=counts["hidden"], suffixes=Counter(counts["suffixes"])))


class KnownFragments:
    """What is stored in a root of the files that hold images; those of which nothing is are collected.

    What an attempt could not read is tried once in each session.
    """

    def __init__(self, store: Store, is_tried: bool) -> None:
        """`is_tried`: what could not be read was tried in this session, so its problem stands."""
        self._store = store
        endings = (FOUND, AGAIN) if is_tried else (FOUND,)
        self._keys = {info.key for info in store.list(f"{FOLDER}/") if info.key.endswith(endings)}
        self.missing: list[Parent] = []

    def of(self, parent: Parent) -> Found | None:
        """What was found in a file; None, once it is noted as missing, where nothing is stored of it."""
        for ending in (FOUND, AGAIN):
            if parent.stem + ending in self._keys:
                return read_fragments(self._store, parent.stem + ending)
        self.missing.append(parent)
        return None
