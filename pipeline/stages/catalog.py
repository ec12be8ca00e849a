"""Catalog stage: lists the sources, compares with the last snapshot, and appends what is new or changed."""

from __future__ import annotations

import hashlib
import heapq
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import NotFound, StorageUnavailable, UsageError
from pipeline.layout.root import Root, is_own, opened
from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.layout.snapshots import (
    CatalogPart,
    Snapshot,
    SourceRecord,
    catalog_rows,
    latest_snapshot,
    removed_ids,
    restamped_times,
    snapshot_key,
    snapshot_to_json,
)
from pipeline.layout.tables import json_bytes, parquet_bytes
from pipeline.schemas import CATALOG_ROWS
from pipeline.sources.folder import LeftOut, encode_key, image_objects, is_image_key
from pipeline.sources.vectors import open_vectors
from pipeline.storage import ObjectInfo, StorageConfig, Store, is_remote
from pipeline.storage.uri import parse_bucket

log = logging.getLogger(__name__)
Ids = NDArray[np.int64]

PART_ROWS = 131_072
TOUCHED_ROWS = 16_384
BLOCK_ROWS = 65_536
RACES = 20


class Content(Enum):
    """What the bytes of a touched file are: those that were extracted, others, or never read, so nobody can tell."""

    SAME = "same"
    OTHER = "other"
    UNREAD = "unread"


@dataclass(frozen=True)
class Touched:
    """A file of which nothing but the time changed: its id, source (number and uri), and what is listed of it now."""

    image_id: int
    source: int
    uri: str
    info: ObjectInfo


Compare = Callable[[Sequence[Touched]], Iterable[Content]]
"""At most TOUCHED_ROWS touched files -> what the bytes of each are, in order."""


class _Known(NamedTuple):
    image_id: int
    size: int
    etag: str
    mtime_ns: int


@dataclass
class _Changes:
    """What a listing differs in. Ids and times are kept as numbers: 8 bytes for each, where an object takes 100."""

    appended: list[tuple[int, ObjectInfo]] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)  # still to be compared
    parts: list[CatalogPart] = field(default_factory=list)
    removed: array[int] = field(default_factory=lambda: array("q"))
    lost: Counter[int] = field(default_factory=Counter)  # images of each source that it does not list any more
    stamped: array[int] = field(default_factory=lambda: array("q"))  # ids, whose new times stand beside them
    times: array[int] = field(default_factory=lambda: array("q"))
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
    root: Root, sources: tuple[SourceRecord, ...], compare: Compare, accept_empty: bool = False
) -> Update:
    """The snapshot of what the sources hold now: the latest one where nothing changed, else a new one.

    The listing is streamed against the sorted runs of the catalog; 16 bytes stay of each touched or removed image. Who
    loses the race for a snapshot's number lists again. Raises UsageError where the root belongs to other sources,
    NotFound where a new source is not there, or no image of one that had some, unless `accept_empty`.
    """
    store = root.open()
    for _ in range(RACES):
        previous = latest_snapshot(store)
        merged = merge_sources(root, previous.sources, sources)
        left_out = tuple(LeftOut() for _ in merged)
        listing = _listing(root, merged, left_out, len(previous.sources))
        changes = _compare(store, previous, listing, compare)
        if not accept_empty:
            _refuse_emptied(root, merged, changes.lost, left_out)
        counts = (changes.added, changes.changed, len(changes.removed) - changes.changed)
        _flush(store, changes, previous.number + 1)
        if previous.number and previous.sources == merged and not (changes.parts or changes.removed or changes.stamped):
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
    store: Store, previous: Snapshot, listing: Iterable[tuple[int, ObjectInfo, bytes]], compare: Compare
) -> _Changes:
    changes = _Changes(total=previous.total)
    known = _known_rows(store, previous)
    row = next(known, None)
    for source, info, raw in listing:
        while row is not None and row[0] < (source, raw):
            _remove(changes, *row)
            row = next(known, None)
        if row is not None and row[0] == (source, raw):
            if _is_changed(row[1], info):
                _match(changes, row[1], Touched(row[1].image_id, source, previous.sources[source].uri, info))
            row = next(known, None)
        else:
            changes.appended.append((source, info))
            changes.added += 1
        if len(changes.touched) >= TOUCHED_ROWS or len(changes.appended) >= PART_ROWS:
            _settle(changes, compare)
        if len(changes.appended) >= PART_ROWS:
            _flush(store, changes, previous.number + 1)
    while row is not None:
        _remove(changes, *row)
        row = next(known, None)
    _settle(changes, compare)
    return changes


def _is_changed(known: _Known, info: ObjectInfo) -> bool:
    is_touched = not info.etag and known.mtime_ns != info.mtime_ns
    return known.size != info.size or known.etag != info.etag or is_touched


def _match(changes: _Changes, known: _Known, now: Touched) -> None:
    """Books a file that changed under a known name; one that may only have been touched waits for `_settle`."""
    if known.size != now.info.size or known.etag != now.info.etag:
        _replace(changes, now)
    elif now.info.size:
        changes.touched.append(now)
    else:
        _stamp(changes, now)


def _settle(changes: _Changes, compare: Compare) -> None:
    """Books the touched files. One that was never read keeps its id, and its old time: once its bytes are known the
    next listing compares them, so that an audit that reads it at this moment cannot be believed to have read these.
    """
    before = changes.changed
    for now, content in zip(changes.touched, compare(changes.touched) if changes.touched else (), strict=True):
        if content is Content.SAME:
            _stamp(changes, now)
        elif content is Content.OTHER:
            _replace(changes, now)
    changes.touched.clear()
    if changes.changed > before:
        changes.appended.sort(key=lambda entry: (entry[0], _raw(entry[1])))


def _stamp(changes: _Changes, now: Touched) -> None:
    changes.stamped.append(now.image_id)
    changes.times.append(now.info.mtime_ns)


def _replace(changes: _Changes, now: Touched) -> None:
    changes.removed.append(now.image_id)
    changes.appended.append((now.source, now.info))
    changes.changed += 1


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


def _listing(
    root: Root, sources: tuple[SourceRecord, ...], left_out: tuple[LeftOut, ...], known: int
) -> Iterator[tuple[int, ObjectInfo, bytes]]:
    """Every image of every source, sorted by (source, raw bytes of the key), without the root's own files.

    One of the first `known` sources, which the root has listed before, may be gone: it is listed as empty.
    """
    for index, source in enumerate(sources):
        if (names := names_alone(source.uri, root.storage)) is not None:
            left_out[index].images += len(names)
            yield from ((index, ObjectInfo(name, 0, "", 0), name.encode()) for name in names)
            continue
        listed = _without_root(root, source, opened(source.uri, root.storage).list())
        try:
            for info in image_objects(listed, left_out[index]):
                yield index, info, _raw(info)
        except NotFound:
            if index >= known or left_out[index] != LeftOut():
                raise
        if index >= known and left_out[index] == LeftOut():
            _require_path(source.uri, root.storage)


def _raw(info: ObjectInfo) -> bytes:
    return info.key.encode("utf-8", "surrogateescape")


def _without_root(root: Root, source: SourceRecord, listed: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """A listing without what is the root's own, where that lies in the source: images may lie beside and around it."""
    inside = f"{root.uri.removeprefix(source.uri + '/')}/" if root.uri.startswith(source.uri + "/") else None
    hidden, first = 0, ""
    for info in listed:
        if inside is None or not info.key.startswith(inside) or not is_own(info.key[len(inside) :]):
            yield info
        elif is_image_key(info.key):
            hidden, first = hidden + 1, first or info.key
    if hidden:
        log.warning(
            "%s: images in folders that the root %s takes as its own are left out: %s, the first is %r. Choose another "
            "--root to audit them.", source.uri, root.uri, f"{hidden:,}", first,
        )  # fmt: skip


def names_alone(uri: str, storage: StorageConfig) -> list[str] | None:
    """The names of a source that is a file of vectors without images, sorted as keys are; None for any other."""
    place, slash, key = uri.rpartition("/")
    if not key.endswith(".parquet") or not opened(place or slash, storage).exists(key):
        return None
    names = open_vectors(opened(place or slash, storage), key, uri).names
    return sorted([] if names is None else names.to_pylist(), key=str.encode)


def require_source(uri: str, storage: StorageConfig) -> None:
    """Raises NotFound, or another StorageError, for a source that cannot be listed."""
    if names_alone(uri, storage) is not None:
        return
    if next(opened(uri, storage).list(), None) is None:
        _require_path(uri, storage)


def _require_path(uri: str, storage: StorageConfig) -> None:
    """An object store has no folders: a path under which nothing is does not exist, but for a console's marker."""
    if is_remote(uri) and parse_bucket(uri, storage).prefix and not opened(uri, storage).exists(""):
        raise NotFound(f"list {uri}: nothing is there. Check the path")


def _known_rows(store: Store, snapshot: Snapshot) -> Iterator[tuple[tuple[int, bytes], _Known]]:
    """Live rows of the snapshot sorted by (source, raw key): a merge of its sorted runs."""
    gone, stamps = removed_ids(store, snapshot), restamped_times(store, snapshot)
    runs = sorted({part.run for part in snapshot.parts})
    return heapq.merge(*(_run_rows(store, snapshot, run, gone, stamps) for run in runs), key=lambda row: row[0])


def _run_rows(
    store: Store, snapshot: Snapshot, run: int, gone: Ids, stamps: tuple[Ids, Ids]
) -> Iterator[tuple[tuple[int, bytes], _Known]]:
    for part in snapshot.parts:
        for lo in range(part.lo, part.hi, BLOCK_ROWS) if part.run == run else ():
            hi = min(lo + BLOCK_ROWS, part.hi)
            live = np.setdiff1d(np.arange(lo, hi), gone[_within(gone, lo, hi)], assume_unique=True)
            if not len(live):
                continue
            rows = catalog_rows(store, snapshot, lo, hi).to_pydict()
            stamped = _within(stamps[0], lo, hi)
            for image_id, time in zip(stamps[0][stamped].tolist(), stamps[1][stamped].tolist(), strict=True):
                rows["mtime_ns"][image_id - lo] = time
            for image_id in live.tolist():
                at = image_id - lo
                raw = rows["raw_key"][at] or rows["uri"][at].encode()
                etag, time = rows["etag"][at] or "", rows["mtime_ns"][at] or 0
                yield (rows["source"][at], raw), _Known(image_id, rows["size_bytes"][at], etag, time)


def _within(ids: Ids, lo: int, hi: int) -> slice:
    """Where the ids of [lo, hi) are among sorted ones."""
    return slice(*np.searchsorted(ids, (lo, hi)))


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
    """The snapshot with these changes; a byte per row of the catalog tells who is gone, eight when it was touched."""
    removed_key, removed_count, restamped_key = previous.removed_key, previous.removed_count, previous.restamped_key
    if changes.removed:
        is_gone = np.zeros(previous.total, np.bool_)
        is_gone[removed_ids(store, previous)] = True
        is_gone[np.array(changes.removed)] = True
        gone = np.flatnonzero(is_gone)
        removed_key, removed_count = _write_hashed(store, "removed", pa.table({"image_id": gone})), len(gone)
    if changes.stamped:
        never = np.iinfo(np.int64).min
        times = np.full(previous.total, never)
        ids, before = restamped_times(store, previous)
        times[ids] = before
        times[np.array(changes.stamped)] = np.array(changes.times)
        ids = np.flatnonzero(times != never)
        restamped_key = _write_hashed(store, "restamped", pa.table({"image_id": ids, "mtime_ns": times[ids]}))
    return Snapshot(
        previous.number + 1, changes.total, sources, previous.parts + tuple(changes.parts),
        removed_key, removed_count, restamped_key,
    )  # fmt: skip


def _write_hashed(store: Store, stem: str, table: pa.Table) -> str:
    data = parquet_bytes(table)
    key = f"{CATALOG}/{stem}-{hashlib.blake2b(data, digest_size=8).hexdigest()}.parquet"
    store.put(key, data)
    return key
