"""The folder of copies: whose it is, how many bytes it takes, and what is given up when there is no room.

Whatever changes what is taken is done under the lock of the marker file. What is being written has its full size from
the start and is locked by its writer: the sizes in the folder are what it takes, and a file that is not locked any more
belongs to a writer that died. A copy has the time at which a run made it or first used it.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.storage.interface import TEMPORARY_PREFIX

ARCHIVES, FILES = "archives", "files"
OURS = re.compile(r"[0-9a-f]{64}\.(md5|sums|size)")
"""`.size`: a copy without checksums, which no version reads any more; it goes as others that are not used."""
LONGEST_RUN_NS = 12 * 3600 * 10**9
"""A copy that this machine used so shortly before a process began may be of the run that the process works for."""
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
GIVEN_UP_AT_ONCE = 10_000
SPARE_SHARE = 10
"""A tenth of the budget is made free at a time: the folder is walked through for it, 5 us for each copy."""
_MARKER, _RUN = "image-audit-copies", "image-audit-run"
_STARTED_NS = time.time_ns()
_log = logging.getLogger(__name__)
_searched: set[tuple[str, int]] = set()
_said: set[tuple[str, str]] = set()


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


def require_usable(params: SyncParams) -> None:
    """Raises UsageError for a folder that is not ours and not empty, or that cannot be written; makes nothing."""
    folder = Path(params.folder)
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UsageError(f"sync folder {folder}: {there} is no folder; name another one")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise UsageError(
            f"sync folder {folder}: user {os.geteuid()} may not write in {there}; give the right or name another folder"
        )
    marker = folder / _MARKER
    if there == folder and not marker.exists() and any(folder.iterdir()):
        raise UsageError(f"sync folder {folder}: {_OTHERS}; name a new or empty folder")
    if marker.exists() and not os.access(marker, os.R_OK | os.W_OK):
        raise UsageError(f"sync folder {folder}: it is of another user; name a folder of your own")


def begin_run(params: SyncParams) -> None:
    """Makes the folder and notes that a run begins: what it makes or uses from now on is not given up for room.

    Raises UsageError for a folder that cannot be made or written; a disk that is full is warned of.
    """
    try:
        prepare(params)
        path = Path(params.folder, _RUN)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(path)  # by the clock that gives copies theirs, which is up to 4 ms behind this process's
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise UsageError(
                f"sync folder {params.folder}: it cannot be made or written ({error.strerror or error}); "
                "name another folder, on a disk where files can be made"
            ) from None
        say_unusable(params, error)


def used(params: SyncParams, descriptor: int, found: os.stat_result) -> None:
    """Gives a copy the time of now where it has one before this run."""
    if found.st_mtime_ns < _run_began(params):
        with suppress(OSError):  # a folder that may only be read serves as well
            os.utime(descriptor)


def prepare(params: SyncParams) -> None:
    """Make the folder, or find that it is ours: a folder with other files in it is never used (OSError)."""
    folder = Path(params.folder)
    if (folder / _MARKER).exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    has_others = any(path.name not in (_MARKER, _RUN) for path in folder.iterdir())
    if has_others and not (folder / _MARKER).exists():  # another process made it ours meanwhile, marker first
        raise OSError(errno.ENOTEMPTY, _OTHERS, str(folder))
    with suppress(FileExistsError):
        os.close(os.open(folder / _MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def require_marker(params: SyncParams) -> None:
    """Raises UsageError for a folder that is none of ours."""
    if not Path(params.folder, _MARKER).is_file():
        raise UsageError(f"sync folder {params.folder}: it is not one of ours, so nothing in it is removed")


@contextmanager
def ledger_of(params: SyncParams) -> Iterator[int]:
    """The marker file, locked against every other process and thread; it holds the bytes taken."""
    descriptor = os.open(Path(params.folder, _MARKER), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def total_of(params: SyncParams, ledger: int) -> int:
    """Bytes taken as the ledger has them."""
    text = os.pread(ledger, 32, 0).strip()
    return int(text) if text.isdigit() else counted(params)


def set_total(ledger: int, total: int) -> None:
    """Writes the bytes taken."""
    os.pwrite(ledger, f"{total:<32}".encode(), 0)


def counted(params: SyncParams) -> int:
    """Bytes taken as the files have them."""
    return sum(path.lstat().st_size for path in copy_paths(params, (ARCHIVES, FILES)))


def copy_paths(params: SyncParams, kinds: Collection[str]) -> Iterator[Path]:
    """The files of these kinds, those that are being written among them."""
    for kind in kinds:
        for folder, _, names in os.walk(Path(params.folder, kind)):
            yield from (path for name in names if stat.S_ISREG((path := Path(folder, name)).lstat().st_mode))


def with_room(params: SyncParams, ledger: int, total: int, size: int) -> int:
    """The bytes taken once there is room for `size` more, or as they are where no more can be given up.

    What dead writers left goes first, then the copies that no run has used for the longest time; none that this run
    made or used. The caller holds the ledger.
    """
    began = _run_began(params)
    if total + size <= params.budget_bytes or size > params.budget_bytes or (params.folder, began) in _searched:
        return total
    drop_dead(params)
    total = counted(params)
    if total + size > params.budget_bytes:
        wanted = total + size + params.budget_bytes // SPARE_SHARE - params.budget_bytes
        oldest = heapq.nsmallest(GIVEN_UP_AT_ONCE, _unused(params, began))
        for _, path, taken in oldest:
            if wanted <= 0:
                break
            path.unlink()
            total, wanted = total - taken, wanted - taken
        if wanted > 0 and len(oldest) < GIVEN_UP_AT_ONCE:
            _searched.add((params.folder, began))
    set_total(ledger, total)
    return total


def drop_dead(params: SyncParams) -> None:
    """Removes what writers left that died."""
    for path in copy_paths(params, (ARCHIVES, FILES)):
        if path.name.startswith(TEMPORARY_PREFIX):
            drop_if_dead(path)


def drop_if_dead(temporary: Path) -> bool:
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


def say_unusable(params: SyncParams, error: OSError) -> None:
    """Warns, once per process and cause, of what is wrong with the folder and with no object."""
    at = f" (at {error.filename})" if error.filename not in (None, params.folder) else ""
    say_once(params, str(error.errno), f"{error.strerror or error}{at}")


def say_damaged(params: SyncParams, path: Path) -> None:
    """Warns, once per process, that a copy is not what was written."""
    if (params.folder, "damaged") not in _said:
        _said.add((params.folder, "damaged"))
        _log.warning("sync folder %s: %s was damaged there; it is fetched anew. Check the disk", params.folder, path)


def say_once(params: SyncParams, cause: str, text: str) -> None:
    """Warns, once per process, that objects are read from their store, and why."""
    if (params.folder, cause) not in _said:
        _said.add((params.folder, cause))
        _log.warning("sync folder %s: %s; what is not there yet is read from its store each time", params.folder, text)


def _unused(params: SyncParams, began: int) -> Iterator[tuple[int, Path, int]]:
    """Time, path and size of each copy that was neither made nor used since then."""
    for path in copy_paths(params, (ARCHIVES, FILES)):
        found = path.lstat()
        if found.st_mtime_ns < began and OURS.fullmatch(path.name):
            yield found.st_mtime_ns, path, found.st_size


def _run_began(params: SyncParams) -> int:
    """When the latest run here began, in ns since 1970; on machines that only take part in one, before this process."""
    try:
        noted = Path(params.folder, _RUN).stat().st_mtime_ns
    except OSError:
        noted = 0
    return max(noted, _STARTED_NS - LONGEST_RUN_NS)


_OTHERS = "it holds files that are not copies of ours, which would be mixed up with them"
