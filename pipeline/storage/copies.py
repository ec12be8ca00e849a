"""Copies of remote objects in a folder with a budget in bytes that holds for every process on the machine together.

Copies have names made of hashes, so no key of a source ever names a file. What goes wrong with the folder is warned of
once and is no error: every object can be read from its store.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.storage.copy_folder import (
    ARCHIVES,
    FILES,
    OURS,
    SyncParams,
    copy_paths,
    counted,
    drop_dead,
    drop_if_dead,
    ledger_of,
    prepare,
    require_marker,
    say_once,
    say_unusable,
    set_total,
    total_of,
    used,
    with_room,
)
from pipeline.storage.counts import count_request
from pipeline.storage.interface import TEMPORARY_PREFIX, ObjectInfo
from pipeline.storage.local import typed

_ARCHIVE_ENDINGS = (".tar", ".tgz", ".tar.gz", ".zip")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ALLOCATION = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_MOST_REFUSED = 10_000
_refused: set[Path] = set()
"""Copies for which the disk had no room: not tried again by this process, which may read an archive range by range."""


@dataclass(frozen=True)
class CopyName:
    """The copy of one version of one object. md5: of its bytes, compared on each whole read; "" where unknown."""

    path: Path
    size: int
    md5: str


def copy_names(params: SyncParams, uri: str, info: ObjectInfo) -> tuple[CopyName, ...]:
    """The names that a copy may have, hashes of uri, key and etag: checked by MD5 if the etag is one, or by size."""
    digest = hashlib.sha256("\0".join((uri, info.key, info.etag)).encode("utf-8", "surrogateescape")).hexdigest()
    kind = ARCHIVES if info.key.lower().endswith(_ARCHIVE_ENDINGS) else FILES
    path = Path(params.folder, kind, digest[:2], digest)
    plain = CopyName(path.with_suffix(".size"), info.size, "")
    is_md5 = len(info.etag) == 32 and not set(info.etag) - set("0123456789abcdef")
    return (CopyName(path.with_suffix(".md5"), info.size, info.etag), plain) if is_md5 else (plain,)


def open_copy(params: SyncParams, name: CopyName) -> int | None:
    """A descriptor of the copy, None if there is none of that size that can be read."""
    try:
        descriptor = os.open(name.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        say_unusable(params, error)
        return None
    found = os.fstat(descriptor)
    if found.st_size == name.size:
        used(params, descriptor, found)
        return descriptor
    os.close(descriptor)
    return None


def read_copy(params: SyncParams, name: CopyName) -> bytes | None:
    """The bytes of the copy, None if there is none; one that is damaged is removed."""
    descriptor = open_copy(params, name)
    if descriptor is None:
        return None
    data = read_part(params, descriptor, 0, name.size)
    if data is None:
        return None
    if len(data) == name.size and name.md5 in ("", hashlib.md5(data, usedforsecurity=False).hexdigest()):
        count_request("sync.hit", read=len(data))
        return data
    _remove_copy(params, name)
    return None


def read_part(params: SyncParams, descriptor: int, start: int, length: int) -> bytes | None:
    """Bytes [start, start + length) of an open copy, which is closed; None where the disk does not give them."""
    with os.fdopen(descriptor, "rb") as file:
        try:
            file.seek(start)
            return file.read(length)
        except OSError as error:
            say_unusable(params, error)
    return None


def keep_copy(params: SyncParams, names: tuple[CopyName, ...], pieces: Iterable[bytes]) -> CopyName | None:
    """Write a copy; None where the budget or the disk is full, another writer is at it or the folder is of no use.

    Raises what `pieces` raises, which must be no OSError, and StorageError for pieces of another length; then nothing
    is left.
    """
    if names[0].path in _refused:
        count_request("sync.full")
        return None
    try:
        claimed = _claim(params, names)
        return None if claimed is None else _filled(params, names, pieces, *claimed)
    except OSError as error:
        if error.errno not in _FULL:
            say_unusable(params, error)
            return None
    if len(_refused) >= _MOST_REFUSED:
        _refused.clear()
    _refused.add(names[0].path)
    count_request("sync.full")
    say_once(params, "full", "its disk is full")
    return None


def _filled(
    params: SyncParams, names: tuple[CopyName, ...], pieces: Iterable[bytes], temporary: Path, descriptor: int
) -> CopyName:
    try:
        md5 = _write(descriptor, names[0], pieces)
        name = names[0] if names[0].md5 == md5 else names[-1]
        if not name.md5:
            os.fsync(descriptor)  # no checksum would show what a power cut left of it
        with ledger_of(params):
            os.replace(temporary, name.path)  # noqa: PTH105
    except BaseException:
        _give_back(params, temporary, names[0].size)
        raise
    finally:
        os.close(descriptor)
    count_request("sync.write", written=name.size)
    return name


def remove_copies(params: SyncParams, kinds: Collection[str] = (ARCHIVES, FILES)) -> int:
    """Remove the copies of these kinds; returns their bytes. Nothing else in the folder is touched.

    What another process is writing stays. Raises UsageError if the folder is none of ours.
    """
    with typed("delete", params.folder):
        if not os.path.lexists(params.folder):
            return 0
        require_marker(params)
        with ledger_of(params) as ledger:
            drop_dead(params)
            removed = 0
            for path in copy_paths(params, kinds):
                if OURS.fullmatch(path.name):
                    removed += path.lstat().st_size
                    path.unlink()
            set_total(ledger, counted(params))
        return removed


def bytes_held(params: SyncParams) -> int:
    """Bytes that copies and what is being written take now."""
    with typed("list", params.folder):
        return counted(params) if os.path.lexists(params.folder) else 0


def _remove_copy(params: SyncParams, name: CopyName) -> None:
    try:
        with suppress(FileNotFoundError):
            _give_back(params, name.path, name.size)
    except OSError as error:
        say_unusable(params, error)


def _claim(params: SyncParams, names: tuple[CopyName, ...]) -> tuple[Path, int] | None:
    """Take the room for one copy: a locked file of its full size."""
    folder, size = names[0].path.parent, names[0].size
    prepare(params)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY_PREFIX}{names[0].path.stem}"
    with ledger_of(params) as ledger:
        if any(_is_there(params, name) for name in names):
            return None
        total = total_of(params, ledger)
        if temporary.exists():
            if not drop_if_dead(temporary):
                return None
            total = max(0, total - size)
            set_total(ledger, total)  # whether or not there is room for another one
        total = with_room(params, ledger, total, size)
        if total + size > params.budget_bytes:
            count_request("sync.full")
            say_once(params, "budget", f"its budget of {params.budget_bytes} bytes is used up")
            return None
        set_total(ledger, total + size)
        try:
            return temporary, _allocated(temporary, size)
        except BaseException:
            set_total(ledger, total)
            raise


def _allocated(path: Path, size: int) -> int:
    """A descriptor of a new, locked file that has all of its blocks: a full disk shows before a byte is asked for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _allocate(descriptor, size)
    except BaseException:
        path.unlink()
        os.close(descriptor)
        raise
    return descriptor


def _allocate(descriptor: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:
                raise
    os.ftruncate(descriptor, size)


def _write(descriptor: int, name: CopyName, pieces: Iterable[bytes]) -> str:
    digest, written = hashlib.md5(usedforsecurity=False), 0
    for piece in pieces:
        written += len(piece)
        if written > name.size:
            break
        digest.update(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    if written != name.size:
        raise StorageError(f"write {name.path}: {written} bytes came of {name.size}; list again")
    return digest.hexdigest()


def _give_back(params: SyncParams, path: Path, size: int) -> None:
    with ledger_of(params) as ledger:
        path.unlink(missing_ok=True)
        set_total(ledger, max(0, total_of(params, ledger) - size))


def _is_there(params: SyncParams, name: CopyName) -> bool:
    descriptor = open_copy(params, name)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True
