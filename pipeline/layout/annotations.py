"""Annotations: the split and label of every catalog row under one rule, and the vocabulary of both."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ArtifactError
from pipeline.kernels.hashing import content_hash
from pipeline.layout.lookups import open_lookup
from pipeline.layout.root import Root, kept, read_address
from pipeline.layout.tables import read_json, way_out
from pipeline.sources.annotated import normal_table
from pipeline.sources.boxed import ListedBoxes
from pipeline.sources.tabular import BOX, FILENAME, LabelTable, read_label_table
from pipeline.storage import StorageConfig, Store, canonical_uri

log = logging.getLogger(__name__)

STEM = "annotations"
VOCABULARY = "vocabulary.json"
CODES = "codes.arrow"
NAMES = "names"
"""Lookup of the catalog rows of the snapshot, without their ids."""
TABLES = "annotations/tables"
GIVEN, OF_YOLO = "given-", "yolo-"
"""How the names of tables begin that are of no file: annotations in memory, and the label files of YOLO sets."""
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("split", pa.dictionary(pa.int32(), pa.string())),
        pa.field("label", pa.dictionary(pa.int32(), pa.string())),
        pa.field("rule_row", pa.int64()),
    ]
)
"""rule_row: row of the table that names the image, 0 under a pattern or folders; null where nothing matches it."""
NONE = -1


@dataclass(frozen=True)
class Vocabulary:
    """Every split and label of a snapshot, sorted, with the number of live images of each. A code is a position.

    split_digest, label_digest: of the ids of live images and the split or label of each. They name what depends on
    splits or labels, so that another rule or table that gives the same ones costs nothing. unmatched, unused: live
    images that the table or pattern does not match, rows of the table that match none; with the first name of each.
    unboxed: rows that match none since they have no box, in a table of boxes.
    """

    splits: tuple[str, ...]
    labels: tuple[str, ...]
    split_counts: tuple[int, ...]
    label_counts: tuple[int, ...]
    unmatched: int
    unmatched_name: str
    unused: int
    unused_name: str
    split_digest: str
    label_digest: str
    unboxed: int = 0

    @property
    def labelled(self) -> int:
        """Live images that have a label."""
        return sum(self.label_counts)


@dataclass(frozen=True)
class Codes:
    """Split and label codes of some images, int32 (n,), -1 where there is none."""

    split: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]


def store_table(root: Root, address: str) -> str:
    """Copies a table of splits, labels or boxes into the root, where every worker finds it; returns the hash it is
    under.

    Raises UsageError for one that cannot be read, the first time that the root sees it.
    """
    said: list[str] = []
    data = read_annotations(root.storage, address, said)
    for line in said:
        log.warning("%s", line)
    hashed = content_hash(data).hex()
    store = root.open()
    if not store.exists(f"{TABLES}/{hashed}"):
        read_label_table(data, address)
        store.put_if_absent(f"{TABLES}/{hashed}", data)
    return hashed


def table_name(address: str) -> str:
    """A table as its caller names it, for messages: what is of no file has a key that nobody gave."""
    folder, _, name = address.rpartition("/")
    if not folder.endswith(TABLES):
        return address
    return {GIVEN: "annotations", OF_YOLO: "of the YOLO label files"}.get(f"{name.partition('-')[0]}-", address)


def read_annotations(storage: StorageConfig, address: str, said: list[str]) -> bytes:
    """A table of annotations, CSV, Parquet or COCO, as `read_label_table` takes it.

    What is to be said of it is added to `said`. The latest one is kept: it is checked before any work, then stored, and
    a million rows take 8 s.
    """
    base = canonical_uri(address.rpartition("/")[0] or ("/" if address.startswith("/") else "."), storage)
    data = read_address(address, storage)
    asked = content_hash(data), address, base
    found = _LATEST.get(asked)
    if found is None:
        noted: list[str] = []
        found = normal_table(data, address, base, noted), noted
        _LATEST.clear()
        _LATEST[asked] = found
    said += found[1]
    return found[0]


_LATEST: dict[tuple[bytes, str, str], tuple[bytes, list[str]]] = {}


def has_boxes(data: bytes) -> bool:
    """Whether a table has boxes, by its columns alone."""
    return data[:4] == b"PAR1" and BOX in pq.read_schema(io.BytesIO(data)).names


def load_boxes(store: Store, hashed: str) -> ListedBoxes | None:
    """The boxes of a stored table; None where it has none."""
    data = store.read(f"{TABLES}/{hashed}")
    if not has_boxes(data):
        return None
    return ListedBoxes(pq.read_table(io.BytesIO(data), columns=[FILENAME, BOX]))


def load_table(store: Store, hashed: str, address: str) -> LabelTable:
    """The stored table of a hash, read once per process; `address` is where it came from, for messages."""
    return kept(store, f"{TABLES}/{hashed}", lambda: _read_stored_table(store, hashed, address))


def _read_stored_table(store: Store, hashed: str, address: str) -> LabelTable:
    key = f"{TABLES}/{hashed}"
    data = store.read(key)
    if content_hash(data).hex() != hashed:
        raise ArtifactError(f"{store.uri}/{key}: its hash is not the one in its name. {way_out(key)}")
    return read_label_table(data, address)


def read_vocabulary(store: Store, folder: str) -> Vocabulary:
    """The vocabulary of an annotations folder."""
    value = read_json(store, f"{folder}/{VOCABULARY}")
    return Vocabulary(
        splits=tuple(value["splits"]),
        labels=tuple(value["labels"]),
        split_counts=tuple(value["split_counts"]),
        label_counts=tuple(value["label_counts"]),
        unmatched=value["unmatched"],
        unmatched_name=value["unmatched_name"],
        unused=value["unused"],
        unused_name=value["unused_name"],
        split_digest=value["split_digest"],
        label_digest=value["label_digest"],
        unboxed=value.get("unboxed", 0),
    )


def read_codes(store: Store, folder: str) -> Codes:
    """The codes of every row of the snapshot, mapped: what is asked for is read."""
    rows = open_lookup(store, f"{folder}/{CODES}")
    return Codes(rows["split"].to_numpy(), rows["label"].to_numpy())


def names_of(codes: npt.NDArray[np.int32], names: Sequence[str]) -> pa.Array:
    """Strings of codes; null for -1."""
    indices = pa.array(codes, pa.int32(), mask=codes < 0)
    return pa.array(list(names), pa.string()).take(indices)
