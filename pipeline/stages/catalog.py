"""Catalog stage: lists the sources, compares with the last snapshot, and appends what is new or changed."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import NotFound, StorageUnavailable, UsageError
from pipeline.layout.root import Root, opened
from pipeline.layout.snapshots import (
    FOLDER,
    CatalogPart,
    Snapshot,
    SourceRecord,
    catalog_rows,
    latest_snapshot,
    removed_ids,
    snapshot_key,
    snapshot_to_json,
)
from pipeline.layout.tables import json_bytes, parquet_bytes, read_table
from pipeline.schemas import CATALOG_ROWS
from pipeline.sources.folder import LeftOut, encode_key, image_objects
from pipeline.storage import ObjectInfo, StorageConfig, Store, is_remote
from pipeline.storage.uri import parse_bucket

log = logging.getLogger(__name__)

PART_ROWS = 131_072
RACES = 20

SameContent = Callable[[int, int, ObjectInfo], bool]
"""(image_id, source, object listed now) -> whether its bytes hash to what was extracted for that id."""


@dataclass(frozen=True)
class _Known:
    image_id: int
    size: int
    etag: str
    mtime_ns: int


@dataclass
class _Changes:
    appended: list[tuple[int, ObjectInfo]] = field(default_factory=list)
    parts: list[CatalogPart] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    lost: Counter[int] = field(default_factory=Counter)  # images of each source that it does not list any more
    restamped: dict[int, tuple[str, int]] = field(default_factory=dict)
    total: int = 0
    added: int = 0
    changed: int = 0


@dataclass(frozen=True)
class Update:
    """A snapshot, how it differs from number `since` (0 = there was none), and what each source has beside images."""

    snapshot: Snapshot
    since: int
    added: int
    changed: int
    removed: int
    left_out: tuple[LeftOut, ...]


def update_catalog(
    root: Root, sources: tuple[SourceRecord, ...], same_content: SameContent, accept_empty: bool = False
) -> Update:
    """The snapshot of what the sources hold now: the latest one where nothing changed, else a new one.

    The listing is streamed against the sorted runs of the catalog, so memory does not grow with it. Who loses the
    race for a snapshot's number lists again. Raises UsageError where the root belongs to other sources, NotFound where
    nothing is under a path of an object store, or no image where there were some, unless `accept_empty`.
    """
    store = root.open()
    for _ in range(RACES):
        previous = latest_snapshot(store)
        merged = merge_sources(root, previous.sources, sources)
        left_out = tuple(LeftOut() for _ in merged)
        changes = _compare(store, previous, _listing(root, merged, left_out), same_content)
        if not accept_empty:
            _refuse_emptied(root, merged, changes.lost, left_out)
        counts = (changes.added, changes.changed, len(changes.removed) - changes.changed)
        _flush(store, changes, previous.number + 1)
        if (
            previous.number
            and previous.sources == merged
            and not (changes.parts or changes.removed or changes.restamped)
        ):
            return Update(previous, previous.number, *counts, left_out)
        snapshot = _next_snapshot(store, previous, merged, changes)
        if store.put_if_absent(snapshot_key(snapshot.number), json_bytes(snapshot_to_json(snapshot))):
            return Update(snapshot, previous.number, *counts, left_out)
        log.info("another audit wrote snapshot %d first; listing again", snapshot.number)
    raise StorageUnavailable(
        f"{root.uri}: lost the race for a snapshot {RACES} times. Run again when fewer audits start."
    )


def merge_sources(
    root: Root, known: tuple[SourceRecord, ...], wanted: tuple[SourceRecord, ...]
) -> tuple[SourceRecord, ...]:
    """The root's sources followed by new ones. Raises UsageError that names each dropped one."""
    uris = {source.uri: source for source in wanted}
    dropped = [source.uri for source in known if source.uri not in uris]
    if dropped:
        raise UsageError(
            f"the root {root.uri} belongs to sources that this call leaves out: {', '.join(dropped)}. Name them too, "
            "or choose another --root."
        )
    kept = tuple(uris[source.uri] for source in known)
    return kept + tuple(source for source in wanted if source.uri not in {item.uri for item in known})


def _compare(
    store: Store, previous: Snapshot, listing: Iterable[tuple[int, ObjectInfo, bytes]], same_content: SameContent
) -> _Changes:
    changes = _Changes(total=previous.total)
    known = _known_rows(store, previous)
    row = next(known, None)
    for source, info, raw in listing:
        while row is not None and row[0] < (source, raw):
            _remove(changes, *row)
            row = next(known, None)
        if row is not None and row[0] == (source, raw):
            if not _is_kept(row[1], source, info, changes, same_content):
                changes.removed.append(row[1].image_id)
                changes.appended.append((source, info))
                changes.changed += 1
            row = next(known, None)
        else:
            changes.appended.append((source, info))
            changes.added += 1
        if len(changes.appended) >= PART_ROWS:
            _flush(store, changes, previous.number + 1)
    while row is not None:
        _remove(changes, *row)
        row = next(known, None)
    return changes


def _remove(changes: _Changes, name: tuple[int, bytes], known: _Known) -> None:
    changes.removed.append(known.image_id)
    changes.lost[name[0]] += 1


def _refuse_emptied(
    root: Root, sources: tuple[SourceRecord, ...], lost: Counter[int], left_out: tuple[LeftOut, ...]
) -> None:
    """A mount that is away reads as an empty folder, and images that come back are new ones: all extracted again."""
    for index, source in enumerate(sources):
        if lost[index] and not left_out[index].images:
            raise NotFound(
                f"{source.uri}: no image is left of the {lost[index]:,} that the root {root.uri} knows of it. Check "
                "that it is mounted and complete, or say --accept-empty (accept_empty) where it was emptied on purpose."
            )


def _is_kept(known: _Known, source: int, info: ObjectInfo, changes: _Changes, same_content: SameContent) -> bool:
    if known.size != info.size or known.etag != info.etag:
        return False
    if info.etag or known.mtime_ns == info.mtime_ns:
        return True
    if info.size and not same_content(known.image_id, source, info):  # without bytes there is no hash to compare
        return False
    changes.restamped[known.image_id] = (info.etag, info.mtime_ns)
    return True


def _listing(
    root: Root, sources: tuple[SourceRecord, ...], left_out: tuple[LeftOut, ...]
) -> Iterator[tuple[int, ObjectInfo, bytes]]:
    """Every image of every source, sorted by (source, raw bytes of the key); the root itself is left out."""
    for index, source in enumerate(sources):
        store = opened(source.uri, root.storage)
        inside = root.uri.removeprefix(source.uri + "/") + "/" if root.uri.startswith(source.uri + "/") else None
        listed = (info for info in store.list() if inside is None or not info.key.startswith(inside))
        for info in image_objects(listed, left_out[index]):
            yield index, info, info.key.encode("utf-8", "surrogateescape")
        if left_out[index] == LeftOut():
            _require_path(store, source.uri, root.storage)


def _require_path(store: Store, uri: str, storage: StorageConfig) -> None:
    """An object store has no folders: a path under which nothing is does not exist, but for a console's marker."""
    if is_remote(uri) and parse_bucket(uri, storage).prefix and not store.exists(""):
        raise NotFound(f"list {uri}: nothing is there. Check the path")


def _known_rows(store: Store, snapshot: Snapshot) -> Iterator[tuple[tuple[int, bytes], _Known]]:
    """Live rows of the snapshot sorted by (source, raw key): a merge of its sorted runs."""
    gone = frozenset(removed_ids(store, snapshot).tolist())
    stamps = _restamped(store, snapshot)
    runs = sorted({part.run for part in snapshot.parts})
    streams = [_run_rows(store, snapshot, run, stamps) for run in runs]
    return (row for row in heapq.merge(*streams, key=lambda row: row[0]) if row[1].image_id not in gone)


def _run_rows(
    store: Store, snapshot: Snapshot, run: int, stamps: dict[int, tuple[str, int]]
) -> Iterator[tuple[tuple[int, bytes], _Known]]:
    for part in snapshot.parts:
        if part.run != run:
            continue
        for lo in range(part.lo, part.hi, 65536):
            rows = catalog_rows(store, snapshot, lo, min(lo + 65536, part.hi)).to_pydict()
            for at, image_id in enumerate(rows["image_id"]):
                raw = rows["raw_key"][at] or rows["uri"][at].encode()
                etag, mtime = stamps.get(image_id, (rows["etag"][at] or "", rows["mtime_ns"][at] or 0))
                yield (rows["source"][at], raw), _Known(image_id, rows["size_bytes"][at], etag, mtime)


def _restamped(store: Store, snapshot: Snapshot) -> dict[int, tuple[str, int]]:
    if not snapshot.restamped_key:
        return {}
    rows = read_table(store, snapshot.restamped_key).to_pydict()
    return {
        image_id: (etag, mtime)
        for image_id, etag, mtime in zip(rows["image_id"], rows["etag"], rows["mtime_ns"], strict=True)
    }


def _flush(store: Store, changes: _Changes, run: int) -> None:
    """Writes the appended rows collected so far as a part; its name holds its hash, so a lost race leaves an orphan."""
    if not changes.appended:
        return
    lo = changes.total
    table = _rows_table(changes.appended, lo)
    key = _write_hashed(store, "rows", table)
    changes.parts.append(CatalogPart(lo, lo + table.num_rows, key, run))
    changes.total += table.num_rows
    changes.appended.clear()


def _rows_table(entries: list[tuple[int, ObjectInfo]], lo: int) -> pa.Table:
    encoded = [encode_key(info.key) for _, info in entries]
    columns: dict[str, Any] = {
        "image_id": np.arange(lo, lo + len(entries), dtype=np.int64),
        "source": np.fromiter((source for source, _ in entries), np.int16, len(entries)),
        "uri": [uri for uri, _ in encoded],
        "raw_key": [raw for _, raw in encoded],
        "size_bytes": [info.size for _, info in entries],
        "etag": [info.etag or None for _, info in entries],
        "mtime_ns": [None if info.etag else info.mtime_ns for _, info in entries],
    }
    return pa.table(columns, schema=CATALOG_ROWS.schema)


def _next_snapshot(store: Store, previous: Snapshot, sources: tuple[SourceRecord, ...], changes: _Changes) -> Snapshot:
    gone = np.union1d(removed_ids(store, previous), np.array(changes.removed, np.int64))
    stamps = _restamped(store, previous) | changes.restamped
    return Snapshot(
        number=previous.number + 1,
        total=changes.total,
        sources=sources,
        parts=previous.parts + tuple(changes.parts),
        removed_key=_write_hashed(store, "removed", pa.table({"image_id": gone})) if len(gone) else "",
        removed_count=len(gone),
        restamped_key=_write_hashed(store, "restamped", _stamps_table(stamps)) if stamps else "",
    )


def _stamps_table(stamps: dict[int, tuple[str, int]]) -> pa.Table:
    ids = sorted(stamps)
    return pa.table(
        {
            "image_id": pa.array(ids, pa.int64()),
            "etag": [stamps[image_id][0] for image_id in ids],
            "mtime_ns": pa.array([stamps[image_id][1] for image_id in ids], pa.int64()),
        }
    )


def _write_hashed(store: Store, stem: str, table: pa.Table) -> str:
    data = parquet_bytes(table)
    key = f"{FOLDER}/{stem}-{hashlib.blake2b(data, digest_size=8).hexdigest()}.parquet"
    store.put(key, data)
    return key
