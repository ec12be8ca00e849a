"""Prepared lists: the rows of a list sorted, kept while the list is the same, and the splits and labels it gives."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout.fragments import Parent
from pipeline.layout.lookups import open_lookup, write_lookup
from pipeline.layout.root import kept
from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.layout.tables import read_batches, read_metadata
from pipeline.sources.sorted_list import Given
from pipeline.storage import Store

VERSION = 2
FOLDER = f"{CATALOG}/lists"
_GIVEN_LIST, _GIVEN_COCO = f"{CATALOG}/given", f"{CATALOG}/coco-"
"""How the lists and COCO dicts begin that a Python caller gives, each under the hash of its text: all lists are one
source, and so are all dicts that come first in a call, or second."""
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(), False),
        pa.field("box", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("row", pa.int64(), False),
    ]
)
"""key: raw bytes, relative to the list's folder or a whole path or URL; box: null for the whole image; size: null where
the list does not tell; row: where it stands in the list."""
BLOCK = 65_536
ENDING = ".parquet"
_GIVEN, _WARNINGS, _COUNT = b"given", b"warnings", b"count"


@dataclass(frozen=True)
class PreparedList:
    """A prepared list: its rows, the key of what it gives, and what to say of it."""

    store: Store
    key: str
    given: str
    warnings: tuple[str, ...]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of SCHEMA, sorted, some at a time."""
        return read_batches(self.store, self.key, BLOCK)


def given_list_key(data: bytes) -> str:
    """Key of a list that a Python caller gives."""
    return f"{_GIVEN_LIST}-{hashlib.sha256(data).hexdigest()[:20]}.txt"


def given_coco_key(data: bytes, number: int) -> str:
    """Key of a COCO dict that a Python caller gives, the `number`-th of the call."""
    return f"{_GIVEN_COCO}{number}-{hashlib.sha256(data).hexdigest()[:20]}.json"


def source_name(root_uri: str, uri: str) -> str:
    """What tells a source of a root from the others: its uri, and one name for all lists that Python callers give, or
    for all COCO dicts of one number.
    """
    if uri.startswith(f"{root_uri}/{_GIVEN_COCO}"):
        return uri.rpartition("-")[0]
    return f"{root_uri}/{_GIVEN_LIST}" if is_given_list(root_uri, uri) else uri


def is_given_list(root_uri: str, uri: str) -> bool:
    """Whether a source is the list of the files that a Python caller gives: whole images and archives."""
    given = f"{root_uri}/{_GIVEN_LIST}"
    return uri.startswith((f"{given}-", f"{given}."))


def shown_source(root_uri: str, uri: str) -> str:
    """What messages call a source: its uri, or what a Python caller gave, whose key nobody knows."""
    if is_given_list(root_uri, uri):
        return "the files that pipeline.run([...]) listed"
    given = f"{root_uri}/{_GIVEN_COCO}"
    if uri.startswith(given):
        return f"the COCO dict (number {uri.removeprefix(given).partition('-')[0]}) that pipeline.run was given"
    return uri


def list_key(parent: Parent) -> str:
    """Key of what is prepared of a list, by all that tells it from another list or another state of it."""
    return f"{FOLDER}/{parent.stem.rpartition('/')[2]}-{VERSION}{ENDING}"


class ListWriter:
    """Collects the rows of a list as Parquet in memory, and stores them as one object."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, SCHEMA, compression="zstd", write_page_checksum=True)
        self.count = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds rows of SCHEMA."""
        self._writer.write_batch(batch)
        self.count += batch.num_rows

    def store(self, store: Store, parent: Parent, given: Given, warnings: Sequence[str]) -> None:
        """Stores what the list gives, and then the rows."""
        told = {_GIVEN: store_given(store, given), _WARNINGS: json.dumps(list(warnings)), _COUNT: str(self.count)}
        self._writer.add_key_value_metadata(told)
        self._writer.close()
        store.put(list_key(parent), self._sink.getvalue())


class KnownLists:
    """What is stored in a root of prepared lists; those of which nothing is are added to `missing`."""

    def __init__(self, store: Store, missing: list[Parent]) -> None:
        self._store, self._missing = store, missing

    def of(self, parent: Parent) -> PreparedList | None:
        """The prepared list; None, once it is noted as missing, where nothing is stored of it."""
        key = list_key(parent)
        if not self._store.exists(key):
            self._missing.append(parent)
            return None
        told = read_metadata(self._store, key)
        return PreparedList(self._store, key, told[_GIVEN].decode(), tuple(json.loads(told[_WARNINGS])))


def store_given(store: Store, given: Given) -> str:
    """Stores the splits and labels of a list under a key with their hash, and returns it."""
    told = json.dumps({"splits": given.split_texts, "labels": given.label_texts, "folder": given.folder})
    columns: list[np.ndarray[tuple[int], np.dtype[np.uint64 | np.int32]]] = [given.names, given.splits, given.labels]
    hashed = hashlib.blake2b(told.encode(), digest_size=16)
    for column in columns:
        hashed.update(column.tobytes())
    key = f"{FOLDER}/given-{hashed.hexdigest()}.arrow"
    table = pa.table(columns, ["name", "split", "label"], metadata={_GIVEN: told})
    write_lookup(store, key, table)
    return key


def load_given(store: Store, key: str) -> Given:
    """What a list gives, mapped: a task reads what it looks up. Raises ArtifactError where it is gone or damaged."""
    return kept(store, key, lambda: _read_given(store, key))


def _read_given(store: Store, key: str) -> Given:
    rows = open_lookup(store, key)
    told = json.loads(rows.schema.metadata[_GIVEN])
    names, splits, labels = (rows[name].to_numpy() for name in ("name", "split", "label"))
    return Given(names, splits, labels, tuple(told["splits"]), tuple(told["labels"]), told["folder"])


def listed_batch(rows: pa.RecordBatch, keys: pa.Array) -> pa.RecordBatch:
    """Rows of SCHEMA of rows of LISTED."""
    columns: Iterable[pa.Array] = (rows[name] for name in ("fragment", "size", "etag", "mtime_ns", "row"))
    return pa.record_batch([keys, *columns], schema=SCHEMA)
