"""A folder of copies with a budget in bytes that holds for every process on the machine together.

Whatever changes what is taken is done under the lock of the marker file. Copies have names made of hashes, so no key of
a source ever names a file. What is being written has its full size from the start and is locked by its writer: the
sizes in the folder are what it takes, and a file that is not locked any more belongs to a writer that died.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError, UsageError
from pipeline.storage.counts import count_request
from pipeline.storage.interface import TEMPORARY_PREFIX, ObjectInfo
from pipeline.storage.local import typed

ARCHIVES, FILES = "archives", "files"
_ARCHIVE_ENDINGS = (".tar", ".tgz", ".tar.gz", ".zip")
_MARKER = "image-audit-copies"
_OURS = re.compile(r"[0-9a-f]{64}\.(md5|size)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_log = logging.getLogger(__name__)
_recounted: set[str] = set()
_said: set[str] = set()


@dataclass(frozen=True)
class SyncParams:
    """Where copies of remote objects are kept, and how many bytes they may take in all.

    Raises UsageError for a relative folder or a budget that is not positive.
    """

    folder: str
    budget_bytes: int

    def __post_init__(self) -> None:
        if not os.path.isabs(self.folder):  # noqa: PTH117 - no Path is needed
            raise UsageError(f"sync folder {self.folder!r}: it must be an absolute path")
        if self.budget_bytes <= 0:
            raise UsageError(f"sync folder {self.folder}: its budget must be over 0 bytes, not {self.budget_bytes}")


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


def open_copy(name: CopyName) -> int | None:
    """A descriptor of the copy, None if there is none of that size."""
    try:
        descriptor = os.open(name.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == name.size:
        return descriptor
    os.close(descriptor)
    return None


def keep_copy(params: SyncParams, names: tuple[CopyName, ...], pieces: Iterable[bytes]) -> CopyName | None:
    """Write a copy; None where the budget or the disk is full, or another writer is at it.

    Raises what `pieces` raises, and StorageError for pieces of another length; then nothing is left.
    """
    with typed("write", names[0].path):
        try:
            claimed = _claim(params, names)
            return None if claimed is None else _filled(params, names, pieces, *claimed)
        except OSError as error:
            if error.errno not in _FULL:
                raise
    _say_full(params, "its disk is full")
    return None


def _filled(
    params: SyncParams, names: tuple[CopyName, ...], pieces: Iterable[bytes], temporary: Path, descriptor: int
) -> CopyName:
    try:
        md5 = _write(descriptor, names[0], pieces)
        name = names[0] if names[0].md5 == md5 else names[-1]
        if not name.md5:
            os.fsync(descriptor)  # no checksum would show what a power cut left of it
        with _ledger(params):
            os.replace(temporary, name.path)  # noqa: PTH105
    except BaseException:
        _give_back(params, temporary, names[0].size)
        raise
    finally:
        os.close(descriptor)
    count_request("sync.write", written=name.size)
    return name


def remove_copy(params: SyncParams, name: CopyName) -> None:
    """Remove a copy that is damaged."""
    with typed("delete", name.path), suppress(FileNotFoundError):
        _give_back(params, name.path, name.size)


def remove_copies(params: SyncParams, kinds: Collection[str] = (ARCHIVES, FILES)) -> int:
    """Remove the copies of these kinds; returns their bytes. Nothing else in the folder is touched.

    What another process is writing stays. Raises UsageError if the folder is none of ours.
    """
    with typed("delete", params.folder):
        if not os.path.lexists(params.folder):
            return 0
        _require_marker(params)
        with _ledger(params) as ledger:
            _drop_dead(params)
            removed = 0
            for path in _copies(params, kinds):
                if _OURS.fullmatch(path.name):
                    removed += path.lstat().st_size
                    path.unlink()
            _set_total(ledger, _counted(params))
        return removed


def bytes_held(params: SyncParams) -> int:
    """Bytes that copies and what is being written take now."""
    with typed("list", params.folder):
        return _counted(params) if os.path.lexists(params.folder) else 0


def _claim(params: SyncParams, names: tuple[CopyName, ...]) -> tuple[Path, int] | None:
    """Take the room for one copy: a locked file of its full size."""
    folder, size = names[0].path.parent, names[0].size
    _prepare(params)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f"{TEMPORARY_PREFIX}{names[0].path.stem}"
    with _ledger(params) as ledger:
        if any(_is_there(name) for name in names):
            return None
        total = _total(params, ledger)
        if temporary.exists():
            if not _drop_if_dead(temporary):
                return None
            total -= size
        if total + size > params.budget_bytes and params.folder not in _recounted:
            _recounted.add(params.folder)
            _drop_dead(params)
            total = _counted(params)
            _set_total(ledger, total)
        if total + size > params.budget_bytes:
            _say_full(params, f"its budget of {params.budget_bytes} bytes is used up")
            return None
        _set_total(ledger, total + size)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, size)
    return temporary, descriptor


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
    with _ledger(params) as ledger:
        path.unlink(missing_ok=True)
        _set_total(ledger, max(0, _total(params, ledger) - size))


def _is_there(name: CopyName) -> bool:
    descriptor = open_copy(name)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _prepare(params: SyncParams) -> None:
    """Make the folder, or find that it is ours: a folder with other files in it is never used."""
    folder = Path(params.folder)
    if (folder / _MARKER).exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    has_others = any(path.name != _MARKER for path in folder.iterdir())
    if has_others and not (folder / _MARKER).exists():  # another process made it ours meanwhile, marker first
        raise UsageError(
            f"sync folder {folder}: it holds files that are not copies of ours, which would be mixed up with them; "
            "name a new or empty folder"
        )
    with suppress(FileExistsError):
        os.close(os.open(folder / _MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _require_marker(params: SyncParams) -> None:
    if not Path(params.folder, _MARKER).is_file():
        raise UsageError(f"sync folder {params.folder}: it is not one of ours, so nothing in it is removed")


@contextmanager
def _ledger(params: SyncParams) -> Iterator[int]:
    """The marker file, locked against every other process and thread; it holds the bytes taken."""
    descriptor = os.open(Path(params.folder, _MARKER), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _total(params: SyncParams, ledger: int) -> int:
    text = os.pread(ledger, 32, 0).strip()
    return int(text) if text.isdigit() else _counted(params)


def _set_total(ledger: int, total: int) -> None:
    os.pwrite(ledger, f"{total:<32}".encode(), 0)


def _counted(params: SyncParams) -> int:
    return sum(path.lstat().st_size for path in _copies(params, (ARCHIVES, FILES)))


def _copies(params: SyncParams, kinds: Collection[str]) -> Iterator[Path]:
    for kind in kinds:
        for folder, _, names in os.walk(Path(params.folder, kind)):
            yield from (path for name in names if stat.S_ISREG((path := Path(folder, name)).lstat().st_mode))


def _drop_dead(params: SyncParams) -> None:
    for path in _copies(params, (ARCHIVES, FILES)):
        if path.name.startswith(TEMPORARY_PREFIX):
            _drop_if_dead(path)


def _drop_if_dead(temporary: Path) -> bool:
    """Remove a file whose writer died, which its lock tells; the total is the caller's, who holds the ledger."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _say_full(params: SyncParams, why: str) -> None:
    count_request("sync.full")
    if params.folder not in _said:
        _said.add(params.folder)
        _log.warning("sync folder %s: %s; what is not there yet is read from its store each time", params.folder, why)
