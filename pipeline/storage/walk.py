"""Walks a folder in the order of its keys' raw bytes, without following a link in circles."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AccessDenied
from pipeline.storage.interface import TEMPORARY_PREFIX, ObjectInfo

LOST_FOUND = "lost+found/"
"""On the top of a mounted disk, for its administrator alone: no reason to refuse the rest of it."""

Typed = Callable[[str, str], AbstractContextManager[None]]
Closed = Callable[[str, AccessDenied], None]
"""Told of a folder that may not be listed: its key, which ends in a slash, and why."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Folder:
    """An entry that is a folder: `key` ends in a slash, `is_beyond` = reached through a link out of the store."""

    key: str
    is_beyond: bool


def walk(root: Path, prefix: str, typed: Typed, closed: Closed) -> Iterator[ObjectInfo]:
    """Yield the regular files below `root` whose key starts with `prefix`, sorted by the key's raw bytes.

    A folder sorts by its name with a slash behind it, so visiting entries in order gives the order of whole keys.
    `typed(verb, path)` is entered around every system call that may fail for good; what vanishes between listing
    and stat is left out. `closed` is told of a folder below `root` in its turn; where it returns the walk goes on.
    """
    skipped: Counter[str] = Counter()
    real_root, base = root.resolve(), str(root).rstrip("/") + "/"
    stack: list[Iterator[_Folder | str]] = [iter([_Folder("", False)])]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, _Folder):
            if prefix.startswith(entry.key) or entry.key.startswith(prefix):
                try:
                    stack.append(iter(_entries(base, real_root, entry, typed, skipped)))
                except AccessDenied as error:
                    if not entry.key:
                        raise
                    closed(entry.key, error)
        elif entry.startswith(prefix):
            info = _info(base, entry, typed, skipped)
            if info is not None:
                yield info
    if skipped:
        found = ", ".join(f"{what} ({count})" for what, count in sorted(skipped.items()))
        _log.warning("list %s: left out %s", root, found)


def _entries(base: str, real_root: Path, folder: _Folder, typed: Typed, skipped: Counter[str]) -> list[_Folder | str]:
    path = base + folder.key
    if folder.key.endswith(LOST_FOUND) and not os.access(path, os.R_OK | os.X_OK):
        skipped["lost+found of a file system"] += 1
        return []
    found: list[tuple[bytes, _Folder | str]] = []
    with typed("list", path), os.scandir(path) as entries:
        _require_search(path)
        for entry in entries:
            if entry.name.startswith(TEMPORARY_PREFIX):
                continue
            key = folder.key + entry.name
            if not _is_folder(entry):
                found.append((os.fsencode(entry.name), key))
            elif not entry.is_symlink():
                found.append((os.fsencode(entry.name) + b"/", _Folder(key + "/", folder.is_beyond)))
            elif folder.is_beyond or not _leads_out(Path(entry.path), real_root):
                skipped["links to folders inside, or behind another link"] += 1
            else:
                found.append((os.fsencode(entry.name) + b"/", _Folder(key + "/", True)))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def _require_search(folder: str) -> None:
    """Raises the PermissionError of a folder whose names may be read, and no file behind them."""
    try:
        os.stat(f"{folder}.")  # noqa: PTH116 - as below
    except PermissionError as error:
        error.filename = folder
        raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle of links, or to where this user may not look; the stat reports it
        return False


def _leads_out(link: Path, real_root: Path) -> bool:
    target = link.resolve()
    return not (target.is_relative_to(real_root) or real_root.is_relative_to(target))


def _info(base: str, key: str, typed: Typed, skipped: Counter[str]) -> ObjectInfo | None:
    path = base + key
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path per file would take longer than the call
    except (FileNotFoundError, NotADirectoryError):
        skipped["dangling links or files that vanished"] += 1
        return None
    except OSError:
        if not os.path.islink(path):  # noqa: PTH114 - as above
            with typed("list", path):
                raise
        skipped["links that cannot be followed"] += 1
        return None
    if not stat.S_ISREG(status.st_mode):
        skipped["files that are no regular files (FIFO, socket, device)"] += 1
        return None
    return ObjectInfo(key, status.st_size, "", status.st_mtime_ns)
