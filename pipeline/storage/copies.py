"""Copies of remote objects in a folder with a budget in bytes that holds for every process on the machine together.

Copies have names made of hashes, so no key of a source ever names a file. What goes wrong with the folder is warned of
once and is no error: every object can be read from its store.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.storage.copy_folder import (
    ARCHIVES,
    FILES,
    FULL_DISK,
    OURS,
    SyncParams,
    copy_paths,
    counted,
    drop_dead,
    drop_if_dead,
    ledger_of,
    prepare,
    require_marker,
    say_damaged,
    say_once,
    say_unusable,
    set_total,
    total_of,
    used,
    with_room,
)
from pipeline.storage.copy_sums import BlockSums, read_checked, sums_bytes
from pipeline.storage.counts import count_request
from pipeline.storage.interface import TEMPORARY_PREFIX, ObjectInfo
from pipeline.storage.local import typed

_ARCHIVE_ENDINGS = (".tar", ".tgz", ".tar.gz", ".zip")
_NO_ALLOCATION = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_MOST_REFUSED = 10_000
_refused: set[Path] = set()
"""Copies for which the disk had no room: not tried again by this process, which may read an archive range by range."""


@dataclass(frozen=True)
class CopyName:
    """The copy of one version of one object. size: of the object; md5: of its bytes, "" where unknown or not compared.

    A copy with an MD5 is read whole; in any other, checksums of its blocks stand behind the bytes.
    """

    path: Path
    size: int
    md5: str

    @property
    def taken(self) -> int:
        """Bytes of the file."""
        return self.size if self.md5 else self.size + sums_bytes(self.size)


def copy_names(params: SyncParams, uri: str, info: ObjectInfo) -> tuple[CopyName, ...]:
    """The names that a copy may have, hashes of uri, key and etag: checked by MD5 if the etag is one, or by blocks."""
    digest = hashlib.sha256("\0".join((uri, info.key, info.etag)).encode("utf-8", "surrogateescape")).hexdigest()
    kind = ARCHIVES if info.key.lower().endswith(_ARCHIVE_ENDINGS) else FILES
    path = Path(params.folder, kind, digest[:2], digest)
    plain = CopyName(path.with_suffix(".sums"), info.size, "")
    is_md5 = len(info.etag) == 32 and not set(info.etag) - set("0123456789abcdef")
    return (CopyName(path.with_suffix(".md5"), info.size, info.etag), plain) if is_md5 else (plain,)


def open_copy(params: SyncParams, name: CopyName) -> int | None:
    """A descriptor of the copy, None if there is none of its length that can be read."""
    try:
        descriptor = os.open(name.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        say_unusable(params, error)
        return None
    found = os.fstat(descriptor)
    if found.st_size == name.taken:
        used(params, descriptor, found)
        return descriptor
    if stat.S_ISREG(found.st_mode):
        say_damaged(params, name.path)
    os.close(descriptor)
    return None


def has_copy(params: SyncParams, name: CopyName) -> bool:
    """Whether there is a copy that can be opened."""
    descriptor = open_copy(params, name)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def read_copy(params: SyncParams, name: CopyName, start: int = 0, length: int | None = None) -> bytes | None:
    """Bytes [start, start + length) of the copy, all of one with an MD5; None if there is none that the disk gives.

    One whose bytes are not those that were written is removed, with a warning.
    """
    descriptor = open_copy(params, name)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            if name.md5:
                data: bytes | None = file.read()
                if data is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != name.md5:
                    data = None
            else:
                data = read_checked(descriptor, name.size, start, name.size if length is None else length)
            if data is None:
                _remove_damaged(params, name, descriptor)
        except OSError as error:
            say_unusable(params, error)
            return None
    return data


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
        if error.errno not in FULL_DISK:
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
        md5, sums = _write(descriptor, names[0], pieces)
        name = names[0] if names[0].md5 == md5 else names[-1]
        if name.md5:
            os.ftruncate(descriptor, name.taken)
        else:
            _write_all(descriptor, sums)
        with ledger_of(params) as ledger:
            os.replace(temporary, name.path)  # noqa: PTH105
            set_total(ledger, max(0, total_of(params, ledger) - (names[-1].taken - name.taken)))
    except BaseException:
        _give_back(params, temporary, names[-1].taken)
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


def _remove_damaged(params: SyncParams, name: CopyName, descriptor: int) -> None:
    """Removes the copy that is open, unless another process did and has put a new one in its place."""
    say_damaged(params, name.path)
    with ledger_of(params) as ledger, suppress(FileNotFoundError):
        found = os.fstat(descriptor)
        if os.path.samestat(found, name.path.lstat()):
            name.path.unlink()
            set_total(ledger, max(0, total_of(params, ledger) - found.st_size))


def _claim(params: SyncParams, names: tuple[CopyName, ...]) -> tuple[Path, int] | None:
    """Take the room for one copy: a locked file of its full size, with checksums as long as no MD5 is known to hold."""
    folder, size = names[0].path.parent, names[-1].taken
    prepare(params)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY_PREFIX}{names[0].path.stem}"
    with ledger_of(params) as ledger:
        if any(has_copy(params, name) for name in names):
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


def _write(descriptor: int, name: CopyName, pieces: Iterable[bytes]) -> tuple[str, bytes]:
    """MD5, "" where none is to be compared, and checksums of what is written."""
    digest, sums, written = hashlib.md5(usedforsecurity=False), BlockSums(), 0
    for piece in pieces:
        written += len(piece)
        if written > name.size:
            break
        if name.md5:
            digest.update(piece)
        sums.update(piece)
        _write_all(descriptor, piece)
    if written != name.size:
        raise StorageError(f"write {name.path}: {written} bytes came of {name.size}; list again")
    return digest.hexdigest() if name.md5 else "", sums.sums()


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _give_back(params: SyncParams, path: Path, size: int) -> None:
    with ledger_of(params) as ledger:
        path.unlink(missing_ok=True)
        set_total(ledger, max(0, total_of(params, ledger) - size))
