"""Catalog stage: lists the sources, compares with the last snapshot, and appends what is new or changed."""

from __future__ import annotations

import hashlib
import heapq
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import NotFound, StorageUnavailable, UsageError
from pipeline.layout.fragments import KnownFragments, Parent
from pipeline.layout.images import ImageObject, listed_object
from pipeline.layout.root import Root
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
from pipeline.sources.folder import LeftOut, encode_key
from pipeline.sources.fragments import fragment_uri
from pipeline.sources.selection import SelectParams
from pipeline.stages.listing import Listed, Listing, Taken
from pipeline.storage import Store

log = logging.getLogger(__name__)
Ids = NDArray[np.int64]

Place = tuple[int, bytes, int, str]
FRAGMENT_COLUMNS = ("fragment", "position", "length", "parent_size", "parent_kind", "problem")
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
    """An image of whose file nothing but the time changed: its id, and what is listed of it now."""

    image_id: int
    image: ImageObject
    listed: Listed


Compare = Callable[[Sequence[Touched]], Iterable[Content]]
"""At most TOUCHED_ROWS touched images -> what the bytes of each are, in order."""

Expand = Callable[[Sequence[Parent]], None]
"""Looks into files that hold images, and stores what is found in them."""


class _Known(NamedTuple):
    image_id: int
    size: int
    etag: str
    mtime_ns: int


@dataclass
class _Changes:
    """What a listing differs in. Ids and times are kept as numbers: 8 bytes for each, where an object takes 100."""

    appended: list[Listed] = field(default_factory=list)
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


@dataclass(frozen=True)
class Wanted:
    """What is to be listed: sources, and what of them; accept_empty: one that had images may have none."""

    sources: tuple[SourceRecord, ...]
    taken: Taken = field(default_factory=lambda: Taken(SelectParams()))
    accept_empty: bool = False


def update_catalog(root: Root, wanted: Wanted, compare: Compare, expand: Expand) -> Update:
    """The snapshot of what the sources hold now: the latest one where nothing changed, else a new one.

    The listing is streamed against the sorted runs of the catalog; 16 bytes stay of each touched or removed image. It
    is made again where it met files to `expand`, and by who loses the race for a snapshot's number. Raises UsageError
    where the root belongs to other sources, NotFound where a new source is not there, or no image of one that had
    some, unless that is accepted.
    """
    store = root.open()
    is_expanded = False
    for _ in range(RACES):
        previous = latest_snapshot(store)
        merged = merge_sources(root, previous.sources, wanted.sources)
        fragments = KnownFragments(store, is_expanded)
        listing = Listing(root, merged, fragments, wanted.taken)
        changes = _compare(store, previous, listing.images(len(previous.sources)), compare)
        if fragments.missing:
            expand(fragments.missing)
            is_expanded = True
            continue
        left_out = listing.left_out
        if not wanted.accept_empty:
            _refuse_emptied(root, merged, changes.lost, left_out)
        counts = (changes.added, changes.changed, len(changes.removed) - changes.changed)
        _flush(store, changes, previous.number + 1)
        given = tuple(listing.given) if any(listing.given) else ()
        is_same = previous.sources == merged and previous.given == given
        if previous.number and is_same and not (changes.parts or changes.removed or changes.stamped):
            return Update(previous, previous.number, *counts, left_out)
        snapshot = replace(_next_snapshot(store, previous, merged, changes), given=given)
        if store.put_if_absent(snapshot_key(snapshot.number), json_bytes(snapshot_to_json(snapshot))):
            return Update(snapshot, previous.number, *counts, left_out)
        log.info("another audit wrote snapshot %d first; listing again", snapshot.number)
    raise StorageUnavailable(
        f"{root.uri}: lost the race for a snapshot {RACES} times, or its sources change all the time. Run again when "
        "fewer audits start, or nobody writes there."
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


def _compare(store: Store, previous: Snapshot, listing: Iterable[Listed], compare: Compare) -> _Changes:
    changes = _Changes(total=previous.total)
    known = _known_rows(store, previous)
    row = next(known, None)
    for listed in listing:
        place = listed.place
        while row is not None and row[0] < place:
            _remove(changes, *row)
            row = next(known, None)
        if row is not None and row[0] == place:
            if _is_changed(row[1], listed):
                image = listed_object(previous.sources[listed.source], listed.info, listed.fragment, listed.kind)
                _match(changes, row[1], Touched(row[1].image_id, image, listed))
            row = next(known, None)
        else:
            changes.appended.append(listed)
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


def _is_changed(known: _Known, listed: Listed) -> bool:
    info = listed.info
    is_touched = not info.etag and known.mtime_ns != info.mtime_ns
    return known.size != listed.size or known.etag != info.etag or is_touched


def _match(changes: _Changes, known: _Known, now: Touched) -> None:
    """Books a file that changed under a known name; one that may only have been touched waits for `_settle`."""
    if known.size != now.listed.size or known.etag != now.listed.info.etag:
        _replace(changes, now)
    elif now.listed.size:
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
        changes.appended.sort(key=lambda listed: listed.place)


def _stamp(changes: _Changes, now: Touched) -> None:
    changes.stamped.append(now.image_id)
    changes.times.append(now.listed.info.mtime_ns)


def _replace(changes: _Changes, now: Touched) -> None:
    changes.removed.append(now.image_id)
    changes.appended.append(now.listed)
    changes.changed += 1


def _remove(changes: _Changes, name: Place, known: _Known) -> None:
    changes.removed.append(known.image_id)
    changes.lost[name[0]] += 1


def _refuse_emptied(
    root: Root, sources: tuple[SourceRecord, ...], lost: Counter[int], left_out: tuple[LeftOut, ...]
) -> None:
    """A mount that is away reads as an empty folder, and images that come back are new ones: all extracted again."""
    for index, source in enumerate(sources):
        if lost[index] and not left_out[index].images and not left_out[index].unselected:
            raise NotFound(
                f"{source.uri}: no image is left of the {lost[index]:,} that the root {root.uri} knows of it. Check "
                "that it is mounted and complete, or say --accept-empty (accept_empty) where it was emptied on purpose."
            )


def _known_rows(store: Store, snapshot: Snapshot) -> Iterator[tuple[Place, _Known]]:
    """Live rows of the snapshot sorted by their place: a merge of its sorted runs."""
    gone, stamps = removed_ids(store, snapshot), restamped_times(store, snapshot)
    runs = sorted({part.run for part in snapshot.parts})
    return heapq.merge(*(_run_rows(store, snapshot, run, gone, stamps) for run in runs), key=lambda row: row[0])


def _run_rows(
    store: Store, snapshot: Snapshot, run: int, gone: Ids, stamps: tuple[Ids, Ids]
) -> Iterator[tuple[Place, _Known]]:
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
                etag, time = rows["etag"][at] or "", rows["mtime_ns"][at] or 0
                yield _place_of(rows, at), _Known(image_id, rows["size_bytes"][at], etag, time)


def _place_of(rows: dict[str, list[Any]], at: int) -> Place:
    """What `Listed.place` was of a row."""
    uri, raw, position = rows["uri"][at], rows["raw_key"][at], rows["position"][at]
    if position is None:
        return rows["source"][at], raw or uri.encode(), -1, ""
    name = rows["fragment"][at]
    return rows["source"][at], raw or uri[: len(uri) - len(name) - bool(name)].encode(), position, name


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


def _rows_table(entries: list[Listed], lo: int) -> pa.Table:
    encoded = [encode_key(listed.info.key) for listed in entries]
    columns: dict[str, Any] = {
        "image_id": np.arange(lo, lo + len(entries), dtype=np.int64),
        "source": np.fromiter((listed.source for listed in entries), np.int16, len(entries)),
        "uri": [_uri(uri, listed) for (uri, _), listed in zip(encoded, entries, strict=True)],
        "raw_key": [raw for _, raw in encoded],
        "size_bytes": [listed.size for listed in entries],
        "etag": [listed.info.etag or None for listed in entries],
        "mtime_ns": [None if listed.info.etag else listed.info.mtime_ns for listed in entries],
    }
    if any(listed.fragment for listed in entries):
        columns |= _fragment_columns(entries)
    else:
        columns |= {name: pa.nulls(len(entries), CATALOG_ROWS.schema.field(name).type) for name in FRAGMENT_COLUMNS}
    return pa.table(columns, schema=CATALOG_ROWS.schema)


def _uri(uri: str, listed: Listed) -> str:
    return uri if listed.fragment is None else fragment_uri(uri, listed.fragment.name)


def _fragment_columns(entries: list[Listed]) -> dict[str, list[Any]]:
    rows = [
        (None,) * len(FRAGMENT_COLUMNS) if (inner := listed.fragment) is None
        else (inner.name, inner.position, inner.length, listed.info.size, listed.kind, inner.problem)
        for listed in entries
    ]  # fmt: skip
    return {name: list(column) for name, column in zip(FRAGMENT_COLUMNS, zip(*rows, strict=True), strict=True)}


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
