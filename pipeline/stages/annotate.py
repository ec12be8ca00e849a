"""Annotate stage: gives every catalog row its split and label under the rule, and counts both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.kernels.hashing import content_hash
from pipeline.layout.annotations import SCHEMA, STEM, VOCABULARY
from pipeline.layout.parts import list_parts, part_name
from pipeline.layout.root import Root, opened
from pipeline.layout.snapshots import Snapshot, SourceRecord, catalog_rows, read_snapshot, removed_ids
from pipeline.layout.tables import json_bytes, read_table, write_table
from pipeline.runner import Counters
from pipeline.sources.labels import RuleParams, assign, count_unmatched
from pipeline.sources.tabular import LabelTable, read_label_table
from pipeline.storage import StorageConfig

VERSION = 1


@dataclass(frozen=True)
class AnnotateSpec:
    """Offsets [lo, hi) of a snapshot, annotated into a folder; table_hash: content hash of the rule's table, if any."""

    root: Root
    snapshot: int
    folder: str
    rule: RuleParams
    table_hash: str
    lo: int
    hi: int


@dataclass(frozen=True)
class VocabularySpec:
    """The annotations folder of a snapshot, to be counted."""

    root: Root
    snapshot: int
    folder: str


def annotate(spec: AnnotateSpec) -> Counters:
    """Commits the split and label of offsets [lo, hi)."""
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    rows = catalog_rows(store, snapshot, spec.lo, spec.hi)
    table = load_table(spec.rule.table, spec.root.storage, spec.table_hash) if spec.rule.table else None
    uris, source = rows["uri"].to_pylist(), rows["source"].to_numpy()
    splits: list[str | None] = [None] * len(uris)
    labels: list[str | None] = [None] * len(uris)
    unmatched = 0
    for index, record in enumerate(snapshot.sources):
        at = np.flatnonzero(source == index)
        paths = [uris[row] for row in at]
        rule = source_rule(spec.rule, record, snapshot)
        found_splits, found_labels = assign(paths, rule, table)
        unmatched += count_unmatched(paths, rule, table)
        for row, split, label in zip(at, found_splits, found_labels, strict=True):
            splits[row], labels[row] = split, label
    columns = {
        "image_id": rows["image_id"],
        "split": pa.array(splits, pa.string()).dictionary_encode(),
        "label": pa.array(labels, pa.string()).dictionary_encode(),
    }
    key = f"{spec.folder}/{part_name(STEM, spec.lo, spec.hi)}"
    write_table(store, key, pa.table(columns, schema=SCHEMA).replace_schema_metadata({"unmatched": str(unmatched)}))
    return {"images": len(uris), "unmatched": unmatched}


def source_rule(rule: RuleParams, record: SourceRecord, snapshot: Snapshot) -> RuleParams:
    """The rule of one source: all of it in its given split; beside such a source, the others are train by default."""
    if record.split:
        return replace(rule, split=record.split)
    if any(source.split for source in snapshot.sources) and rule.default_split is None:
        return replace(rule, default_split="train")
    return rule


@lru_cache(maxsize=1)
def load_table(address: str, storage: StorageConfig, hashed: str) -> LabelTable:
    """The table of splits and labels at an address, of this content hash, read once per process.

    Raises UsageError where it is another by now: its annotations would be kept under the name of the first.
    """
    data = read_address(address, storage)
    if content_hash(data).hex() != hashed:
        raise UsageError(f"table {address} changed while the run read it. Run again when it is finished.")
    return read_label_table(data, address)


def read_address(address: str, storage: StorageConfig) -> bytes:
    """The bytes of one object named by its full address."""
    folder, slash, name = address.rpartition("/")
    return opened(folder or slash or ".", storage).read(name)


def count_vocabulary(spec: VocabularySpec) -> Counters:
    """Commits the sorted splits and labels of the live images with their counts."""
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    gone = pa.array(removed_ids(store, snapshot))
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    unmatched = 0
    for part in list_parts(store, spec.folder, STEM):
        rows = read_table(store, part.key)
        unmatched += int((rows.schema.metadata or {}).get(b"unmatched", b"0"))
        live = rows.filter(pc.invert(pc.is_in(rows["image_id"], value_set=gone)))
        splits.update(_counts(live["split"]))
        labels.update(_counts(live["label"]))
    value = {
        "splits": sorted(splits),
        "labels": sorted(labels),
        "split_counts": [splits[name] for name in sorted(splits)],
        "label_counts": [labels[name] for name in sorted(labels)],
        "unmatched": unmatched,
    }
    store.put(f"{spec.folder}/{VOCABULARY}", json_bytes(value))
    return {"splits": len(splits), "labels": len(labels), "unmatched": unmatched}


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.cast(pa.string()).drop_null())
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
