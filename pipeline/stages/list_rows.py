"""The rows of a prepared list as the catalog takes them, with the sizes that the list does not tell."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

from pipeline.errors import AccessDenied, NotFound, UsageError
from pipeline.layout.lists import PreparedList
from pipeline.layout.root import opened
from pipeline.layout.snapshots import SourceRecord
from pipeline.sources.folder import escape_bytes
from pipeline.storage import ObjectInfo, StorageConfig

STATS_IN_FLIGHT, STATS_AT_ONCE = 16, 8
"""Sizes asked for at a time, and by one thread: a HEAD takes 5 to 30 ms, a stat on a local disk 5 us."""


class ListRow(NamedTuple):
    """An image or box of a list: the raw bytes of its key, what is known of its file, its box ("" = the image)."""

    raw: bytes
    info: ObjectInfo
    box: str


def list_rows(
    prepared: PreparedList, source: SourceRecord, storage: StorageConfig, warnings: list[str]
) -> Iterator[ListRow]:
    """The rows, sorted by raw key, an image before its boxes. Sizes that the list does not tell are asked for, once for
    all boxes of an image; of a file that is not there, or may not be looked at, it is 0. What is to be said of the list
    is added to `warnings` at the end.

    Raises UsageError for a folder in the list, and a StorageError where a store does not answer.
    """
    missing, first = 0, b""
    with ThreadPoolExecutor(STATS_IN_FLIGHT) as pool:
        for batch in prepared.batches():
            columns = [batch[name].to_pylist() for name in _File._fields]
            files = [[*rows] for _, rows in groupby(map(_File, *columns), key=lambda file: file.key)]
            asked = [rows[0].key for rows in files if rows[0].size is None]
            chunks = [asked[at : at + STATS_AT_ONCE] for at in range(0, len(asked), STATS_AT_ONCE)]
            found = chain.from_iterable(pool.map(partial(_stats, source, storage), chunks))
            for rows in files:
                info = next(found) if rows[0].size is None else _told(rows[0])
                if info is None:
                    missing, first = missing + 1, first or rows[0].key
                    info = ObjectInfo(_text(rows[0].key), 0, "", 0)
                yield from (ListRow(row.key, info, row.box or "") for row in rows)
    warnings += prepared.warnings
    if missing:
        shown = escape_bytes(_text(first))
        warnings.append(f"{source.uri}: {missing:,} of its files are not there or closed, such as {shown!r}")


class _File(NamedTuple):
    key: bytes
    box: str | None
    size: int | None
    etag: str | None
    mtime_ns: int | None


def _told(file: _File) -> ObjectInfo:
    return ObjectInfo(_text(file.key), file.size or 0, file.etag or "", file.mtime_ns or 0)


def _stats(source: SourceRecord, storage: StorageConfig, keys: list[bytes]) -> list[ObjectInfo | None]:
    return [_stat(source, storage, _text(raw)) for raw in keys]


def _stat(source: SourceRecord, storage: StorageConfig, key: str) -> ObjectInfo | None:
    """What is known of a file; None where it cannot be looked at."""
    place, inside = source.located(key)
    store = opened(place, storage)
    try:
        return replace(store.stat(inside), key=key)
    except (NotFound, AccessDenied):
        path = store.local_path(inside)
        if path is not None and path.is_dir():
            raise UsageError(
                f"{source.uri} names the folder {escape_bytes(key)!r}: a list names files. Take the folder out, and "
                "name it as a source of its own"
            ) from None
        return None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
