"""Exact groups stages: images with the same bytes, then the same pixels; one representative of each goes on.

Ranges of offsets shuffle their hashes to buckets, a bucket finds equal ones, and one task merges what was found; a
small set is one task that does all three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for, merge_forests
from pipeline.kernels.hash_groups import HASH_BYTES, hash_bytes, hash_group_edges
from pipeline.kernels.sampling import mix
from pipeline.kernels.siblings import families
from pipeline.layout.annotations import read_codes
from pipeline.layout.exact import (
    FEATURES,
    LARGE,
    LARGE_PARENT,
    LARGE_SCHEMA,
    MEMBER_SCHEMA,
    MEMBERS,
    PARENT_ID,
    REPRESENTATIVE_SCHEMA,
    REPRESENTATIVES,
    SIZE_SCHEMA,
    SIZES,
    SUMMARY,
    ExactGroups,
    group_masks,
    is_live,
    read_pinned_features,
    split_bits,
    usable,
)
from pipeline.layout.features import FeatureSet, pinned_to_json, read_feature_rows
from pipeline.layout.images import NO_PARENT, PARENT_COLUMNS, parents_of
from pipeline.layout.lookups import FORM, lookup_name, read_between, write_lookup
from pipeline.layout.parts import cut, list_parts
from pipeline.layout.root import Root
from pipeline.layout.shuffle import read_column, write_batches
from pipeline.layout.snapshots import Snapshot, catalog_rows, catalog_rows_of, read_snapshot, removed_ids
from pipeline.layout.tables import json_bytes, parquet_bytes, read_json, read_table, write_table
from pipeline.runner import Counters
from pipeline.schemas import Status
from pipeline.storage import Store

VERSION = 6
RANGE = 262_144
"""Offsets per range; sets that have no more are one task."""
BUCKET_IMAGES = 1_048_576  # 48 bytes each, and three times that to sort them
HASHES, FACTS, FORESTS = "hashes", "facts", "forests"
HASH_SCHEMA = pa.schema([pa.field("image_id", pa.int64()), pa.field("hash", pa.binary(HASH_BYTES))])
FOREST_SCHEMA = pa.schema(
    [pa.field("image_id", pa.int64()), pa.field("root", pa.int64()), pa.field("is_content", pa.bool_())]
)


@dataclass(frozen=True)
class ExactSpec:
    """Features and annotations of a snapshot, grouped into a folder."""

    root: Root
    snapshot: int
    features: FeatureSet
    annotations: str
    folder: str


@dataclass(frozen=True)
class HashSpec:
    """Offsets [lo, hi) of a snapshot, whose hashes go to so many buckets in a folder that names its features."""

    root: Root
    snapshot: int
    folder: str
    buckets: int
    lo: int
    hi: int


@dataclass(frozen=True)
class BucketSpec:
    """One bucket of the hashes of a snapshot of so many rows."""

    root: Root
    total: int
    folder: str
    number: int


@dataclass(frozen=True)
class MergeSpec:
    """The forests of all buckets, to be merged with the annotations of a snapshot."""

    root: Root
    snapshot: int
    annotations: str
    folder: str


@dataclass(frozen=True)
class _Range:
    """Hashes of the usable images of a range by kind, and what its rows add up to."""

    content: pa.Table
    pixels: pa.Table
    sizes: pa.Table
    statuses: Counter[str]
    digest: int


def group_exact(spec: ExactSpec) -> Counters:
    """Commits the members of exact groups and the summary (the done-marker) of a set of one range."""
    store = spec.root.open()
    store.put(f"{spec.folder}/{FEATURES}", json_bytes(pinned_to_json(spec.features)))
    total = read_snapshot(store, spec.snapshot).total
    found = _read_range(store, spec.snapshot, spec.features, 0, total)
    write_lookup(store, f"{spec.folder}/{lookup_name(SIZES, 0, total)}", found.sizes)
    forests = [(_equal(found.content), _equal(found.pixels))]
    whole = MergeSpec(spec.root, spec.snapshot, spec.annotations, spec.folder)
    return _commit(store, whole, forests, [{"statuses": found.statuses, "digest": found.digest}])


def hash_range(spec: HashSpec) -> Counters:
    """Commits the sizes of a range, its hashes by bucket, and what its rows add up to (the done-marker)."""
    store = spec.root.open()
    found = _read_range(store, spec.snapshot, read_pinned_features(store, spec.folder), spec.lo, spec.hi)
    write_lookup(store, f"{spec.folder}/{lookup_name(SIZES, spec.lo, spec.hi)}", found.sizes)
    batches = [batch for hashes in (found.content, found.pixels) for batch in _by_bucket(hashes, spec.buckets)]
    write_batches(store, hashes_key(spec.folder, spec.lo, spec.hi), batches)
    facts = {"statuses": dict(sorted(found.statuses.items())), "digest": found.digest}
    store.put(facts_key(spec.folder, spec.lo, spec.hi), json_bytes(facts))
    return {"images": found.content.num_rows}


def group_bucket(spec: BucketSpec) -> Counters:
    """Commits the forests of equal content and of equal pixels of one bucket."""
    store = spec.root.open()
    ranges = cut(0, spec.total, RANGE)
    keys = [hashes_key(spec.folder, lo, hi) for lo, hi in ranges]
    buckets = bucket_count(spec.total)
    tables = []
    for kind in (0, 1):
        batches = [*read_column(store, keys, kind * buckets + spec.number)]
        forest = _equal(pa.Table.from_batches(batches, HASH_SCHEMA))
        columns = [forest.child, forest.root, np.full(len(forest.child), kind == 0)]
        tables.append(pa.table(columns, schema=FOREST_SCHEMA))
    write_table(store, forests_key(spec.folder, spec.number), pa.concat_tables(tables))
    return {"copies": sum(table.num_rows for table in tables)}


def merge_exact(spec: MergeSpec) -> Counters:
    """Commits the members of exact groups, the representatives, and the summary (the done-marker)."""
    store = spec.root.open()
    total = read_snapshot(store, spec.snapshot).total
    rows = [read_table(store, forests_key(spec.folder, number)) for number in range(bucket_count(total))]
    facts = [read_json(store, facts_key(spec.folder, lo, hi)) for lo, hi in cut(0, total, RANGE)]
    return _commit(store, spec, [*map(_forests, rows)], facts)


def bucket_count(total: int) -> int:
    """Buckets of the hashes of so many images."""
    return -(-total // BUCKET_IMAGES)


def hashes_key(folder: str, lo: int, hi: int) -> str:
    """Key of the hashes of a range: by content, then by pixels, a batch per bucket."""
    return f"{folder}/{lookup_name(HASHES, lo, hi)}"


def facts_key(folder: str, lo: int, hi: int) -> str:
    """Key of what the rows of a range add up to."""
    return f"{folder}/{FACTS}-{lo:012d}-{hi:012d}.json"


def forests_key(folder: str, number: int) -> str:
    """Key of the forests of a bucket."""
    return f"{folder}/{FORESTS}-{number:04d}.parquet"


def _read_range(store: Store, number: int, features: FeatureSet, lo: int, hi: int) -> _Range:
    snapshot = read_snapshot(store, number)
    gone = removed_ids(store, snapshot)
    names = ["image_id", "status", "content_hash", "pixel_hash", "width", "height", "size_bytes"]
    rows = read_feature_rows(store, features, lo, hi, names)
    live, keep = is_live(rows["image_id"].to_numpy(), gone), usable(rows, gone)
    counted = pc.value_counts(rows["status"].filter(pa.array(live))).to_pylist()
    columns = [pa.array(keep), *(rows[name] for name in names[-3:]), pa.array(_parents(store, snapshot, lo, hi))]
    sizes = pa.table(columns, names=SIZE_SCHEMA.names)
    return _Range(
        _hashed(rows, keep, "content_hash"), _hashed(rows, keep, "pixel_hash"), sizes.cast(SIZE_SCHEMA),
        Counter({item["values"]: item["counts"] for item in counted}), _digest(rows, live),
    )  # fmt: skip


def _parents(store: Store, snapshot: Snapshot, lo: int, hi: int) -> NDArray[np.int64]:
    """What each image of a range is a frame or box of; where nothing is one, no names are read."""
    kinds = catalog_rows(store, snapshot, lo, hi, ["parent_kind"])["parent_kind"]
    if kinds.null_count == len(kinds):
        return np.full(hi - lo, NO_PARENT, np.int64)
    return parents_of(catalog_rows(store, snapshot, lo, hi, PARENT_COLUMNS))


def _hashed(rows: pa.Table, keep: NDArray[np.bool_], name: str) -> pa.Table:
    """The usable rows that have such a hash, as HASH_SCHEMA."""
    chosen = pc.and_(pa.array(keep), pc.is_valid(rows[name]))
    return pa.table([rows["image_id"].filter(chosen), rows[name].filter(chosen)], schema=HASH_SCHEMA)


def _by_bucket(hashes: pa.Table, buckets: int) -> list[pa.RecordBatch]:
    words = hash_bytes(hashes["hash"])[0].view(np.uint64)[:, 0]
    bucket = (words % np.uint64(buckets)).astype(np.int16)
    order = np.argsort(bucket, kind="stable")
    (sorted_rows,) = hashes.take(pa.array(order)).combine_chunks().to_batches() or [_no_hashes()]
    ends = np.searchsorted(bucket[order], np.arange(buckets + 1))
    return [sorted_rows.slice(lo, hi - lo) for lo, hi in pairwise(ends.tolist())]


def _no_hashes() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], HASH_SCHEMA)


def _equal(hashes: pa.Table) -> Forest:
    """An edge from every image to the smallest with its hash."""
    return hash_group_edges(hashes["image_id"].to_numpy(), hash_bytes(hashes["hash"])[0])


def _forests(rows: pa.Table) -> tuple[Forest, Forest]:
    parts = [rows.filter(kind) for kind in (rows["is_content"], pc.invert(rows["is_content"]))]
    content, pixels = (Forest(part["image_id"].to_numpy(), part["root"].to_numpy()) for part in parts)
    return content, pixels


def _digest(rows: pa.Table, live: NDArray[np.bool_]) -> int:
    """A sum over rows, so that it does not depend on how the rows were cut into parts."""
    order = pa.array([status.value for status in Status])
    status = pc.index_in(rows["status"], value_set=order).to_numpy().astype(np.uint64)
    content, is_there = hash_bytes(rows["content_hash"])
    # what lies behind a null is not specified
    words = np.where(is_there[:, None], content, 0).astype(np.uint8).view(np.uint64)
    ids = mix(rows["image_id"].to_numpy())
    row = mix((ids ^ words[:, 0] ^ (status << np.uint64(56))).view(np.int64), 1)
    return int(row[live].sum(dtype=np.uint64))


def _commit(
    store: Store, spec: MergeSpec, forests: Sequence[tuple[Forest, Forest]], facts: Sequence[dict[str, Any]]
) -> Counters:
    same_bytes = merge_forests([content for content, _ in forests])
    forest = merge_forests([same_bytes, *(pixels for _, pixels in forests)])
    members = _members(store, spec, forest, same_bytes)
    ok = _write_representatives(store, spec, forest, members)
    store.put(f"{spec.folder}/{MEMBERS}", parquet_bytes(members))
    statuses = sum((Counter(fact["statuses"]) for fact in facts), Counter[str]())
    summary = {
        "digest": f"{sum(fact['digest'] for fact in facts) % 2**64:016x}",
        "live": sum(statuses.values()),
        "ok": ok,
        "representatives": ok - len(forest.child),
        "statuses": dict(sorted(statuses.items())),
        **_parent_facts(store, spec.folder, forest.child),
    }
    store.put(f"{spec.folder}/{SUMMARY}", json_bytes(summary))
    return {"images": ok, "copies": len(forest.child)}


def _parent_facts(store: Store, folder: str, copies: NDArray[np.int64]) -> dict[str, int]:
    """What is said of parents in the summary, but for `copies`, which nothing is searched in; commits those of many
    images.
    """
    parents, images, files = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for part in list_parts(store, folder, SIZES, FORM):
        rows = read_between(store, folder, SIZES, part.lo, part.hi, ["is_usable", PARENT_ID])
        is_one = rows["is_usable"].to_numpy().copy()
        is_one[copies[(copies >= part.lo) & (copies < part.hi)] - part.lo] = False
        found = rows[PARENT_ID].to_numpy()[is_one]
        files += int((found < 0).sum())
        if len(own := np.sort(found[found >= 0])):
            parents, place = np.unique(np.concatenate([parents, own]), return_inverse=True)
            images = np.bincount(place, np.concatenate([images, np.ones(len(own), np.int64)])).astype(np.int64)
    large = images > LARGE_PARENT
    if large.any():
        write_lookup(store, f"{folder}/{LARGE}", pa.table([parents[large], images[large]], schema=LARGE_SCHEMA))
    return {"parents": len(parents), "files": files, "large": int(large.sum())}


def _members(store: Store, spec: MergeSpec, forest: Forest, same_bytes: Forest) -> pa.Table:
    ids = np.union1d(forest.child, forest.root)
    codes = read_codes(store, spec.annotations)
    parents = parents_of(catalog_rows_of(store, read_snapshot(store, spec.snapshot), ids, PARENT_COLUMNS))
    columns = [ids, labels_for(ids, forest), labels_for(ids, same_bytes), codes.split[ids], codes.label[ids], parents]
    return pa.table(dict(zip(MEMBER_SCHEMA.names, columns, strict=True)), schema=MEMBER_SCHEMA)


def _write_representatives(store: Store, spec: MergeSpec, forest: Forest, members: pa.Table) -> int:
    """Commits the representatives of every range; returns how many images are ok and live."""
    exact = ExactGroups(*(members[name].to_numpy() for name in MEMBER_SCHEMA.names))
    heads, group = group_masks(exact)
    _, family = families(exact.representative_id, exact.parent_id)
    codes = read_codes(store, spec.annotations)
    ok = 0
    for part in list_parts(store, spec.folder, SIZES, FORM):
        sizes = read_between(store, spec.folder, SIZES, part.lo, part.hi, ["is_usable", PARENT_ID])
        is_chosen = sizes["is_usable"].to_numpy().copy()
        ok += int(is_chosen.sum())
        children = forest.child[slice(*np.searchsorted(forest.child, [part.lo, part.hi]))]
        is_chosen[children - part.lo] = False
        ids = np.flatnonzero(is_chosen) + part.lo
        masks = split_bits(codes.split[ids])
        own = slice(*np.searchsorted(heads, [part.lo, part.hi]))
        at = np.searchsorted(ids, heads[own])
        of = sizes[PARENT_ID].to_numpy()[ids - part.lo].copy()
        masks[at], of[at] = group[own], family[own]
        rows = pa.table([ids, masks, codes.label[ids], of], schema=REPRESENTATIVE_SCHEMA)
        write_lookup(store, f"{spec.folder}/{lookup_name(REPRESENTATIVES, part.lo, part.hi)}", rows)
    return ok
