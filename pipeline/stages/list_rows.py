"""The rows of a prepared list as the catalog takes them, with the sizes that the list does not tell."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from pipeline.errors import AccessDenied, NotFound, UsageError
from pipeline.layout.lists import PreparedList
from pipeline.layout.root import opened
from pipeline.layout.snapshots import SourceRecord
from pipeline.sources.folder import escape_bytes
from pipeline.storage import ObjectInfo, StorageConfig

log = logging.getLogger(__name__)

STATS_IN_FLIGHT, STATS_AT_ONCE = 16, 8
"""Sizes asked for at a time, and by one thread: a HEAD takes 5 to 30 ms, a stat on a local disk 5 us."""


class ListRow(NamedTuple):
    """An image or box of a list: the raw bytes of its key, what is known of its file, its box ("" = the image)."""

    raw: bytes
    info: ObjectInfo
    box: str


def list_rows(prepared: PreparedList, source: SourceRecord, storage: StorageConfig) -> Iterator[ListRow]:
    """The rows, sorted by raw key, an image before its boxes. Sizes that the list does not tell are asked for, once for
    all boxes of an image; of a file that is not there, or may not be looked at, it is 0.

    Raises UsageError for a folder in the list, and a StorageError where a store does not answer.
    """
    missing, first = 0, b""
    with ThreadPoolExecutor(STATS_IN_FLIGHT) as pool:
        for batch in prepared.batches():
            files = [_File(raw, [*rows]) for raw, rows in groupby(batch.to_pylist(), key=_key)]
            chunks = [files[at : at + STATS_AT_ONCE] for at in range(0, len(files), STATS_AT_ONCE)]
            for found in pool.map(lambda chunk: [_info(file, source, storage) for file in chunk], chunks):
                for file, info in found:
                    if info is None:
                        missing, first = missing + 1, first or file.raw
                    yield from _rows(file, info or ObjectInfo(_text(file.raw), 0, "", 0))
    for said in prepared.warnings:
        log.warning("%s", said)
    if missing:
        shown = escape_bytes(_text(first))
        log.warning("%s: %s of its files are not there or closed, such as %r", source.uri, f"{missing:,}", shown)


class _File(NamedTuple):
    raw: bytes
    rows: list[dict[str, Any]]


def _key(row: dict[str, Any]) -> bytes:
    key: bytes = row["key"]
    return key


def _info(file: _File, source: SourceRecord, storage: StorageConfig) -> tuple[_File, ObjectInfo | None]:
    """What is known of a file; None where it cannot be looked at."""
    key, row = _text(file.raw), file.rows[0]
    if row["size"] is not None:
        return file, ObjectInfo(key, row["size"], row["etag"] or "", row["mtime_ns"] or 0)
    place, inside = source.located(key)
    store = opened(place, storage)
    try:
        return file, replace(store.stat(inside), key=key)
    except (NotFound, AccessDenied):
        path = store.local_path(inside)
        if path is not None and path.is_dir():
            raise UsageError(
                f"{source.uri} names the folder {escape_bytes(key)!r}: a list names files. Take the folder out, and "
                "name it as a source of its own"
            ) from None
        return file, None


def _rows(file: _File, info: ObjectInfo) -> Iterator[ListRow]:
    return (ListRow(file.raw, info, row["box"] or "") for row in file.rows)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
