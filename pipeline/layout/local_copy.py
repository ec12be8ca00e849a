"""Copies of committed files on this machine's disk, for readers that map them: of a root on a disk, the file itself."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pipeline.errors import AccessDenied
from pipeline.storage import ObjectInfo, Store, open_store

CACHE_BYTES = 32 * 2**30
"""Of all copies in a cache folder together; what was copied first goes first, and is copied again when asked for."""


def mapped(store: Store, key: str) -> Path:
    """Path of a committed file on this machine; that of an object store is copied once per node, whole and checked.

    Who opens it may find that another process removed it since, to make room: ask again. Raises a StorageError.
    """
    path = store.local_path(key)
    if path is not None:
        return path
    cache, info = cache_store(), store.stat(key)
    name = _name(store, info)
    if not cache.exists(name):
        _make_room(cache, info.size)
        cache.put(name, store.read(key))
    return Path(cache.uri) / name


def forget(store: Store, key: str) -> bool:
    """Removes this node's copy of an object, which was found damaged; False where the file itself is on a disk."""
    if store.local_path(key) is not None:
        return False
    cache_store().delete(_name(store, store.stat(key)))
    return True


def cache_store() -> Store:
    """The folder of the copies, below the one for temporary files (TMPDIR).

    Raises AccessDenied where the folder belongs to somebody else, who could put other bytes there.
    """
    folder = Path(tempfile.gettempdir()) / f"image-audit-{os.getuid()}"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise AccessDenied(f"{folder}: it is of user {folder.stat().st_uid}, want {os.getuid()}. Set TMPDIR.")
    return open_store(folder)


def _name(store: Store, info: ObjectInfo) -> str:
    """The etag tells two servers of one uri, and an object that was deleted and made again, apart."""
    words = [store.uri, info.key, info.etag, str(info.size)]
    return hashlib.blake2b("\0".join(words).encode(), digest_size=16).hexdigest()


def _make_room(cache: Store, size: int) -> None:
    if not Path(cache.uri).exists():
        return
    oldest = sorted(cache.list(), key=lambda info: (info.mtime_ns, info.key))
    held = sum(info.size for info in oldest)
    for info in oldest:
        if held + size <= CACHE_BYTES:
            return
        cache.delete(info.key)
        held -= info.size
