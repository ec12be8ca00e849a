"""Snapshots: versions of the catalog, and how their rows are read."""

from __future__ import annotations

import hashlib
import logging
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ArtifactError, NotFound
from pipeline.layout.root import kept
from pipeline.layout.tables import json_bytes, read_json, read_rows, read_table
from pipeline.schemas import CATALOG_ROWS
from pipeline.sources.addresses import is_absolute, located
from pipeline.storage import Store

log = logging.getLogger(__name__)

FOLDER = "catalog"
LIST = "list"
"""Kind of a source that is a list of images."""
_NAME = re.compile(r"^snapshot-(\d{6})\.json$")


@dataclass(frozen=True)
class SourceRecord:
    """One source of the catalog: its uri without credentials, the split given to all of it ("" = by rule), and whether
    it is a `folder` (or prefix), one `file` that is or holds images, or a `list` of images.
    """

    uri: str
    split: str
    kind: str = "folder"

    @property
    def place(self) -> str:
        """Uri of the store that its keys are in."""
        return self.uri if self.kind == "folder" else self.uri.rpartition("/")[0] or "/"

    def located(self, key: str) -> tuple[str, str]:
        """The store and key of what the catalog calls `key`: a list names images in other places too."""
        return located(key, self.place) if self.kind == LIST else (self.place, key)


def whole_path(source: SourceRecord, name: str) -> str:
    """The path or URL of an image of a source by its name there."""
    return name if source.kind == LIST and is_absolute(name) else f"{source.place.rstrip('/')}/{name}"


@dataclass(frozen=True)
class CatalogPart:
    """A committed piece of the catalog: offsets [lo, hi), its key, and the sorted run that it belongs to."""

    lo: int
    hi: int
    key: str
    run: int


@dataclass(frozen=True)
class Snapshot:
    """Version `number` of the catalog: `total` rows ever seen, in parts; the removed ones are not audited.

    given: for each source the key of the splits and labels that its list gives (`layout.lists`), "" for a folder; none
    where no source is a list. unselected: images of its listing that were not selected.
    """

    number: int
    total: int
    sources: tuple[SourceRecord, ...]
    parts: tuple[CatalogPart, ...]
    removed_key: str
    removed_count: int
    restamped_key: str
    given: tuple[str, ...] = ()
    unselected: int = 0

    @property
    def digest(self) -> str:
        """Hash of its sources and rows; not of its number, nor of the times of files whose bytes did not change, nor
        of the labels that lists give, nor of what was not selected.
        """
        named = snapshot_to_json(self)
        del named["number"], named["restamped_key"], named["given"], named["unselected"]
        return hashlib.sha256(json_bytes(named)).hexdigest()[:20]

    @property
    def live(self) -> int:
        """Images that are there now."""
        return self.total - self.removed_count


EMPTY = Snapshot(0, 0, (), (), "", 0, "")


def snapshot_key(number: int) -> str:
    """Key of a snapshot's document."""
    return f"{FOLDER}/snapshot-{number:06d}.json"


def latest_snapshot(store: Store) -> Snapshot:
    """The newest snapshot of the root, or EMPTY."""
    numbers = [int(match[1]) for info in store.list(f"{FOLDER}/snapshot-") if (match := _match(info.key))]
    return read_snapshot(store, max(numbers)) if numbers else EMPTY


def read_snapshot(store: Store, number: int) -> Snapshot:
    """Snapshot `number`. Raises NotFound where the root has none of that number."""
    value = read_json(store, snapshot_key(number))
    return Snapshot(
        number=value["number"],
        total=value["total"],
        sources=tuple(SourceRecord(**source) for source in value["sources"]),
        parts=tuple(CatalogPart(**part) for part in value["parts"]),
        removed_key=value["removed_key"],
        removed_count=value["removed_count"],
        restamped_key=value["restamped_key"],
        given=tuple(value.get("given", ())),
        unselected=value.get("unselected", 0),
    )


def first_alike(store: Store, snapshot: Snapshot) -> Snapshot:
    """The first of the snapshots up to this one that hold the same rows of the same sources.

    An audit is one of that snapshot (with what lists give in this one), so that a touched file, a label in a list, or a
    split that was given to a source for one night makes no other. Rows are only ever added, so the first snapshot with
    as many is found by halving (9 of 300 are read); removed ones may return, so each from there on is looked at.
    """
    numbers = range(1, snapshot.number)
    try:
        start = bisect_left(numbers, snapshot.total, key=lambda number: read_snapshot(store, number).total)
        following = (read_snapshot(store, number) for number in numbers[start:])
        first = next((earlier for earlier in following if earlier.digest == snapshot.digest), snapshot)
        return replace(first, given=snapshot.given, unselected=snapshot.unselected)
    except (ArtifactError, NotFound) as error:  # no artifact of this audit: it can do without
        log.warning("%s Until then this audit may be one that the root has already, under another id.", error)
        return snapshot


def snapshot_to_json(snapshot: Snapshot) -> dict[str, object]:
    """The document of a snapshot."""
    return {
        "number": snapshot.number,
        "total": snapshot.total,
        "sources": [dict(vars(source)) for source in snapshot.sources],
        "parts": [{"lo": part.lo, "hi": part.hi, "key": part.key, "run": part.run} for part in snapshot.parts],
        "removed_key": snapshot.removed_key,
        "removed_count": snapshot.removed_count,
        "restamped_key": snapshot.restamped_key,
        "given": list(snapshot.given),
        "unselected": snapshot.unselected,
    }


def catalog_rows(store: Store, snapshot: Snapshot, lo: int, hi: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Catalog rows of offsets [lo, hi), in order, as CATALOG_ROWS (removed ones included), or some of their columns."""
    if hi > snapshot.total:
        raise NotFound(f"offsets [{lo}, {hi}) pass the end of snapshot {snapshot.number} ({snapshot.total} rows).")
    pieces = [
        read_rows(store, part.key, max(lo, part.lo) - part.lo, min(hi, part.hi) - part.lo, columns)
        for part in snapshot.parts
        if part.lo < hi and lo < part.hi
    ]
    if not pieces:
        return CATALOG_ROWS.empty() if columns is None else CATALOG_ROWS.empty().select(list(columns))
    return pa.concat_tables(pieces).combine_chunks()


def catalog_rows_of(
    store: Store, snapshot: Snapshot, ids: npt.NDArray[np.int64], columns: Sequence[str] | None = None
) -> pa.Table:
    """Catalog rows of some ids (any order, repeats allowed), row-aligned with `ids`, or some of their columns."""
    wanted, inverse = np.unique(ids, return_inverse=True)
    pieces = []
    for lo, hi in _blocks(wanted):
        inside = wanted[(wanted >= lo) & (wanted < hi)]
        rows = catalog_rows(store, snapshot, lo, min(hi, snapshot.total), columns)
        pieces.append(rows.take(pa.array(inside - lo)))
    if not pieces:
        return CATALOG_ROWS.empty() if columns is None else CATALOG_ROWS.empty().select(list(columns))
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(inverse.ravel()))


def removed_ids(store: Store, snapshot: Snapshot) -> npt.NDArray[np.int64]:
    """Sorted int64 ids that were in an earlier snapshot and are gone (or replaced by a newer row)."""
    if not snapshot.removed_key:
        return np.empty(0, np.int64)
    key = snapshot.removed_key
    ids: npt.NDArray[np.int64] = kept(store, key, lambda: _column(store, key, "image_id"))
    return ids


def restamped_times(store: Store, snapshot: Snapshot) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sorted ids of files that were touched since their row was written, and their times in ns; both int64 (n,)."""
    if not snapshot.restamped_key:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    key = snapshot.restamped_key
    return _column(store, key, "image_id"), _column(store, key, "mtime_ns")


def live_between(store: Store, snapshot: Snapshot, lo: int, hi: int) -> int:
    """Images of offsets [lo, hi) that are there now."""
    gone = removed_ids(store, snapshot)
    return hi - lo - int(np.searchsorted(gone, hi) - np.searchsorted(gone, lo))


def _column(store: Store, key: str, name: str) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = read_table(store, key, [name])[name].to_numpy()
    return numbers


def _blocks(ids: npt.NDArray[np.int64], size: int = 65536) -> list[tuple[int, int]]:
    return [(int(block) * size, (int(block) + 1) * size) for block in np.unique(ids // size)]


def _match(key: str) -> re.Match[str] | None:
    return _NAME.match(key.rsplit("/", 1)[-1])
