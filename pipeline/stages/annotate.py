"""Annotate stage: gives every catalog row its split and label under the rule, and counts both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.hashing import content_hash
from pipeline.kernels.sampling import mix
from pipeline.layout.annotations import SCHEMA, STEM, VOCABULARY, load_table
from pipeline.layout.parts import list_parts, part_name
from pipeline.layout.root import Root
from pipeline.layout.snapshots import Snapshot, SourceRecord, catalog_rows, read_snapshot, removed_ids
from pipeline.layout.tables import json_bytes, read_table, write_table
from pipeline.runner import Counters
from pipeline.sources.folder import own_name
from pipeline.sources.labels import RuleParams, assign, count_unmatched

VERSION = 2


@dataclass(frozen=True)
class AnnotateSpec:
    """Offsets [lo, hi) of a snapshot, annotated into a folder; table_hash: of the rule's table as the root has it."""

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
    table = load_table(store, spec.table_hash, spec.rule.table) if spec.rule.table else None
    names = [*map(own_name, rows["uri"].to_pylist(), rows["raw_key"].to_pylist())]
    source = rows["source"].to_numpy()
    splits: list[str | None] = [None] * len(names)
    labels: list[str | None] = [None] * len(names)
    unmatched = 0
    for index, record in enumerate(snapshot.sources):
        at = np.flatnonzero(source == index)
        paths = [names[row] for row in at]
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
    return {"images": len(names), "unmatched": unmatched}


def source_rule(rule: RuleParams, record: SourceRecord, snapshot: Snapshot) -> RuleParams:
    """The rule of one source: all of it in its given split; beside such a source, the others are train by default."""
    if record.split:
        return replace(rule, split=record.split)
    if any(source.split for source in snapshot.sources) and rule.default_split is None:
        return replace(rule, default_split="train")
    return rule


def count_vocabulary(spec: VocabularySpec) -> Counters:
    """Commits the sorted splits and labels of the live images with their counts and digests."""
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    gone = pa.array(removed_ids(store, snapshot))
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    unmatched = 0
    digests = {"split": 0, "label": 0}
    for part in list_parts(store, spec.folder, STEM):
        rows = read_table(store, part.key)
        unmatched += int((rows.schema.metadata or {}).get(b"unmatched", b"0"))
        live = rows.filter(pc.invert(pc.is_in(rows["image_id"], value_set=gone)))
        splits.update(_counts(live["split"]))
        labels.update(_counts(live["label"]))
        for name, digest in digests.items():
            digests[name] = (digest + _digest(live["image_id"].to_numpy(), live[name])) % 2**64
    value = {
        "splits": sorted(splits),
        "labels": sorted(labels),
        "split_counts": [splits[name] for name in sorted(splits)],
        "label_counts": [labels[name] for name in sorted(labels)],
        "unmatched": unmatched,
        **{f"{name}_digest": f"{digest:016x}" for name, digest in digests.items()},
    }
    store.put(f"{spec.folder}/{VOCABULARY}", json_bytes(value))
    return {"splits": len(splits), "labels": len(labels), "unmatched": unmatched}


def _digest(ids: NDArray[np.int64], column: pa.ChunkedArray) -> int:
    """A sum over rows, so that it does not depend on how they were cut into parts."""
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    words = np.frombuffer(b"".join(content_hash(name.encode())[:8] for name in names) + bytes(8), np.uint64)
    codes = pc.fill_null(coded.indices, len(names)).to_numpy()
    return int(mix((mix(ids) ^ words[codes]).view(np.int64), 1).sum(dtype=np.uint64))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.cast(pa.string()).drop_null())
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
