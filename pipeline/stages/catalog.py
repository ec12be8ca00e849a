"""Catalog stage: lists the sources, compares with the last snapshot, and appends what is new or changed."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import AccessDenied, NotFound, StorageUnavailable, UsageError
from pipeline.layout.fragments import KnownFragments, Parent
from pipeline.layout.images import ImageObject, listed_object, problem_error
from pipeline.layout.lists import shown_source, source_name
from pipeline.layout.root import Root
from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.layout.snapshots import (
    LIST,
    CatalogPart,
    Snapshot,
    SourceRecord,
    latest_snapshot,
    removed_ids,
    restamped_times,
    snapshot_key,
    snapshot_to_json,
)
from pipeline.layout.tables import json_bytes, parquet_bytes
from pipeline.sources.folder import LeftOut
from pipeline.sources.selection import SelectParams
from pipeline.stages.listing import UNBOXED, Listed, Listing, Taken
from pipeline.stages.rows_by_place import END, KnownRow, Row, known_rows, row_of, rows_table, state_of
from pipeline.storage import Store

log = logging.getLogger(__name__)
Ids = NDArray[np.int64]

PART_ROWS = 131_072
TOUCHED_ROWS = 16_384
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

OF_A_LIST = (
    "Names are relative to the folder of the list. Where the images lie elsewhere, name that folder as the source and "
    "the list as --labels (annotations)"
)
OF_A_CALL = (
    "Names that are no whole paths or URLs lie below the folder that Python works in (os.getcwd()): correct them, or "
    "give whole paths"
)
"""What is wrong where none of the files is there that a list names, or what a Python caller gives."""


@dataclass
class _Changes:
    """What a listing differs in. Ids and times are kept as numbers: 8 bytes for each, where an object takes 100."""

    appended: list[Row] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)  # still to be compared
    parts: list[CatalogPart] = field(default_factory=list)
    removed: array[int] = field(default_factory=lambda: array("q"))
    returned: array[int] = field(default_factory=lambda: array("q"))  # removed before, and there again
    lost: Counter[int] = field(default_factory=Counter)  # images of each source that it does not list any more
    stamped: array[int] = field(default_factory=lambda: array("q"))  # ids, whose new times stand beside them
    times: array[int] = field(default_factory=lambda: array("q"))
    closed: Listed | None = None  # the last folder so far that may not be listed
    behind: Counter[Listed] = field(default_factory=Counter)  # images known below each of these
    total: int = 0
    added: int = 0
    changed: int = 0

    @property
    def any_row(self) -> bool:
        """Whether a row is added, gone, there again or of another time, once all were flushed."""
        return bool(self.parts or self.removed or self.returned or self.stamped)


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
        listing.refuse(wanted.accept_empty)
        if not wanted.accept_empty:
            _refuse_losses(root, merged, changes, left_out)
            _refuse_unfound(root, merged[len(previous.sources) :], left_out[len(previous.sources) :])
        counts = (changes.added, changes.changed, len(changes.removed) - changes.changed)
        _flush(store, changes, previous.number + 1)
        given = tuple(listing.given) if any(listing.given) else ()
        unselected = sum(found.unselected for found in left_out)
        is_same = (previous.sources, previous.given, previous.unselected) == (merged, given, unselected)
        if previous.number and is_same and not changes.any_row:
            return Update(previous, previous.number, *counts, left_out)
        snapshot = replace(_next_snapshot(store, previous, merged, changes), given=given, unselected=unselected)
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
    uris = {source_name(root.uri, source.uri): source for source in wanted}
    names = [source_name(root.uri, source.uri) for source in known]
    dropped = [
        shown_source(root.uri, source.uri) for source, name in zip(known, names, strict=True) if name not in uris
    ]
    if dropped:
        raise UsageError(
            f"the root {root.uri} belongs to sources that this call leaves out: {', '.join(dropped)}. Name them too, "
            "or choose another --root."
        )
    return tuple(uris[name] for name in names) + tuple(source for name, source in uris.items() if name not in names)


def _compare(store: Store, previous: Snapshot, listing: Iterable[Listed], compare: Compare) -> _Changes:
    changes = _Changes(total=previous.total)
    rows = known_rows(store, previous)
    row = next(rows, END)
    for listed in listing:
        place = listed.place
        while row.place < place:
            _lose(changes, row)
            row = next(rows, END)
        live = before = None
        while row.place == place:
            live, before = (row, before) if row.is_live else (live, _again(row, listed) or before)
            row = next(rows, END)
        if live is None or live.state != state_of(listed):
            _meet(changes, listed, (live, before), previous.sources)
        changes.closed = listed if listed.is_closed else changes.closed
        if len(changes.touched) >= TOUCHED_ROWS or len(changes.appended) >= PART_ROWS:
            _settle(changes, compare)
        if len(changes.appended) >= PART_ROWS:
            _flush(store, changes, previous.number + 1)
    while row is not END:
        _lose(changes, row)
        row = next(rows, END)
    _settle(changes, compare)
    return changes


def _again(row: KnownRow, listed: Listed) -> KnownRow | None:
    """A removed row, where what is listed is that again, by its size and its etag or time."""
    return row if row.state == state_of(listed) else None


def _meet(
    changes: _Changes, listed: Listed, known: tuple[KnownRow | None, KnownRow | None], sources: Sequence[SourceRecord]
) -> None:
    """Books what is listed at a place whose live row, if there is one, has another state.

    known: that row, and the removed one that comes back to life. What may only have been touched waits for `_settle`.
    """
    live, before = known
    if before is None and live is not None and live.state[:-1] == state_of(listed)[:-1]:
        image = listed_object(sources[listed.source], listed.info, listed.fragment, listed.kind)
        now = Touched(live.image_id, image, listed)
        if listed.size:
            changes.touched.append(now)
        else:
            _stamp(changes, now)
        return
    if live is None:
        changes.added += 1
    else:
        changes.removed.append(live.image_id)
        changes.changed += 1
    if before is None:
        changes.appended.append(row_of(listed))
    else:
        changes.returned.append(before.image_id)


def _settle(changes: _Changes, compare: Compare) -> None:
    """Books the touched files. One that was never read keeps its id, and its old time: once its bytes are known the
    next listing compares them, so that an audit that reads it at this moment cannot be believed to have read these.
    """
    if not changes.touched:
        return
    before = changes.changed
    for now, content in zip(changes.touched, compare(changes.touched), strict=True):
        if content is Content.SAME:
            _stamp(changes, now)
        elif content is Content.OTHER:
            _replace(changes, now)
    changes.touched.clear()
    if changes.changed > before:
        changes.appended.sort()


def _stamp(changes: _Changes, now: Touched) -> None:
    changes.stamped.append(now.image_id)
    changes.times.append(now.listed.info.mtime_ns)


def _replace(changes: _Changes, now: Touched) -> None:
    changes.removed.append(now.image_id)
    changes.appended.append(row_of(now.listed))
    changes.changed += 1


def _lose(changes: _Changes, known: KnownRow) -> None:
    if known.is_live:
        changes.removed.append(known.image_id)
        changes.lost[known.place[0]] += 1
        closed = changes.closed
        if closed and known.place[0] == closed.source and known.place[1].startswith(closed.place[1]):
            changes.behind[closed] += 1


def _refuse_losses(
    root: Root, sources: tuple[SourceRecord, ...], changes: _Changes, left_out: tuple[LeftOut, ...]
) -> None:
    """A mount that is away reads as an empty folder, or as a list of files that are not there; a folder that may not be
    listed any more as one without images.
    """
    if changes.behind:
        first, images = next(iter(changes.behind)), sum(changes.behind.values())
        why = problem_error(first.fragment) if first.fragment else ""
        raise AccessDenied(
            f"{why}. The root {root.uri} knows of {images:,} images below {len(changes.behind):,} such folders: they "
            "would count as removed. Say --accept-empty (accept_empty) where they are to."
        )
    for index, source in enumerate(sources):
        found, lost = left_out[index], changes.lost[index]
        if lost and not _is_any_there(found):
            beside = f", whose list names {found.missing:,} that are not there" if found.missing else ""
            raise NotFound(
                f"{shown_source(root.uri, source.uri)}: no image is left of the {lost:,} that the root {root.uri} "
                f"knows of it{beside}. Check that it is mounted and complete, or say --accept-empty (accept_empty) "
                "where it was emptied on purpose."
            )


def _refuse_unfound(root: Root, sources: Sequence[SourceRecord], left_out: Sequence[LeftOut]) -> None:
    """A new list of whose files none is there was written for another folder than its own, or given in another one."""
    for source, found in zip(sources, left_out, strict=True):
        if source.kind == LIST and found.missing and not _is_any_there(found):
            shown = shown_source(root.uri, source.uri)
            raise NotFound(
                f"{shown}: none of the {found.missing:,} files that it names is there. "
                f"{OF_A_LIST if shown == source.uri else OF_A_CALL}; or say --accept-empty (accept_empty)."
            )


def _is_any_there(found: LeftOut) -> bool:
    """Whether a source has a file that is there, be it one that is not selected, or that no box is listed of."""
    return found.images + found.unselected + found.suffixes[UNBOXED] > found.missing + found.closed


def _flush(store: Store, changes: _Changes, run: int) -> None:
    """Writes the appended rows collected so far as a part; its name holds its hash, so a lost race leaves an orphan."""
    if not changes.appended:
        return
    lo = changes.total
    table = rows_table(changes.appended, lo)
    key = _write_hashed(store, "rows", table)
    changes.parts.append(CatalogPart(lo, lo + table.num_rows, key, run))
    changes.total += table.num_rows
    changes.appended.clear()


def _next_snapshot(store: Store, previous: Snapshot, sources: tuple[SourceRecord, ...], changes: _Changes) -> Snapshot:
    """The snapshot with these changes; a byte per row of the catalog tells who is gone, eight when it was touched."""
    removed_key, removed_count, restamped_key = previous.removed_key, previous.removed_count, previous.restamped_key
    if changes.removed or changes.returned:
        is_gone = np.zeros(previous.total, np.bool_)
        is_gone[removed_ids(store, previous)] = True
        is_gone[np.array(changes.removed, np.int64)] = True
        is_gone[np.array(changes.returned, np.int64)] = False
        gone = np.flatnonzero(is_gone)
        removed_key, removed_count = "", len(gone)
        if removed_count:
            removed_key = _write_hashed(store, "removed", pa.table({"image_id": gone}))
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
