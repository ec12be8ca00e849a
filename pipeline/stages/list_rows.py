"""The rows of a prepared list as the catalog takes them, with the sizes that the list does not tell."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pipeline.errors import AccessDenied, NotFound, StorageError, UsageError
from pipeline.layout.lists import PreparedList
from pipeline.layout.root import opened
from pipeline.layout.snapshots import SourceRecord
from pipeline.sources.folder import escape_bytes
from pipeline.sources.fragments import Fragment
from pipeline.stages.reads import status_of
from pipeline.storage import ObjectInfo, StorageConfig

_Seen: TypeAlias = "tuple[ObjectInfo, str]"
STATS_IN_FLIGHT, STATS_AT_ONCE = 16, 8
"""Sizes asked for at a time, and by one thread: a HEAD takes 5 to 30 ms, a stat on a local disk 5 us."""


UNSEEN = -2
"""Position of the row of a file that cannot be looked at: not that of the file itself, whose row comes back with it."""


class ListRow(NamedTuple):
    """An image or box of a list: the raw bytes of its key, what is known of its file, its box ("" = the image), and why
    its file cannot be looked at ("" = it can), as `Fragment.problem`.
    """

    raw: bytes
    info: ObjectInfo
    box: str
    problem: str = ""


def unseen(problem: str, box: str = "") -> Fragment:
    """What stands for an image, or a box of one, whose file cannot be looked at."""
    return Fragment(box, UNSEEN, 0, 0, problem)


def list_rows(
    prepared: PreparedList, source: SourceRecord, storage: StorageConfig, warnings: list[str]
) -> Iterator[ListRow]:
    """The rows, sorted by raw key, an image before its boxes. Sizes that the list does not tell are asked for, once for
    all boxes of an image; a file that is not there, or that cannot be looked at, has a problem in place of one. What is
    to be said of the list is added to `warnings` at the end.

    Raises UsageError for a folder in the list, and a StorageError where a store does not answer.
    """
    missing, first = 0, b""
    pool = ThreadPoolExecutor(STATS_IN_FLIGHT)
    try:
        for batch in prepared.batches():
            columns = [batch[name].to_pylist() for name in _File._fields]
            files = [[*rows] for _, rows in groupby(map(_File, *columns), key=lambda file: file.key)]
            asked = [rows[0].key for rows in files if rows[0].size is None]
            chunks = [asked[at : at + STATS_AT_ONCE] for at in range(0, len(asked), STATS_AT_ONCE)]
            found = chain.from_iterable(pool.map(partial(_stats, source, storage), chunks))
            for rows in files:
                info, problem = next(found) if rows[0].size is None else (_told(rows[0]), "")
                if problem:
                    missing, first = missing + 1, first or rows[0].key
                yield from (ListRow(row.key, info, row.box or "", problem) for row in rows)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # as `read_ahead`
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


def _stats(source: SourceRecord, storage: StorageConfig, keys: list[bytes]) -> list[_Seen]:
    return [_stat(source, storage, _text(raw)) for raw in keys]


def _stat(source: SourceRecord, storage: StorageConfig, key: str) -> _Seen:
    place, inside = source.located(key)
    store = opened(place, storage)
    path = store.local_path(inside)
    try:
        return replace(store.stat(inside), key=key), ""
    except StorageError as error:
        # any other error of a store is one of all its files; of a disk, such as a bad sector, it is of this one
        if not isinstance(error, (NotFound, AccessDenied)) and (path is None or type(error) is not StorageError):
            raise
        if path is not None and _is_folder(path):
            raise UsageError(
                f"{source.uri} names the folder {escape_bytes(key)!r}: a list names files. Take the folder out, and "
                "name it as a source of its own"
            ) from None
        return ObjectInfo(key, 0, "", 0), f"{status_of(error).value}: {escape_bytes(str(error))}"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
