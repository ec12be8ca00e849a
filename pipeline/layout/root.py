"""The root: where it is, how a worker opens it, and the folders of its artifacts."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, ParamSpec, TypeVar, cast

from pipeline.errors import UsageError
from pipeline.storage import (
    StorageConfig,
    Store,
    SyncedStore,
    SyncParams,
    canonical_uri,
    is_remote,
    open_store,
    remove_leftovers,
)

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Root:
    """Address of a root, small enough to travel with every task."""

    uri: str
    storage: StorageConfig

    def open(self) -> Store:
        """The store behind the root, opened once per process."""
        return opened(self.uri, self.storage)


MARKER = "root.json"
WORK = "work"
"""Folder of what is deleted once its readers are done."""
ABANDONED_NS = 7 * 24 * 3600 * 10**9
FORMAT = 2
FOLDERS = (
    "catalog", "annotations", "features", "exact", "moments", "spaces", "indexes", "neighbours", "pairs", "edges",
    "groups", "scores", "audits", "sessions", "status", "models", "tokens", WORK,
)  # fmt: skip
"""Everything under a root. What lies beside these is not ours: a source may."""


def claim(root: Root) -> None:
    """Marks a place as a root, once, and removes what killed writers left there.

    Raises UsageError for a root of another format.
    """
    store = root.open()
    if not store.put_if_absent(MARKER, json.dumps({"image-audit root, format": FORMAT}).encode()):
        raise UsageError(
            f"{store.uri}: its {MARKER} is not of format {FORMAT}: it was made by another version of image-audit, or "
            "is something else. Choose another --root."
        )
    remove_leftovers(store, FOLDERS)
    _remove_abandoned(store)


def _remove_abandoned(store: Store) -> None:
    """Removes intermediates to which nobody added anything for a week: of a run that was killed, after which there were
    other images or parameters. 7 GB at 11.6 million images.
    """
    newest: dict[str, int] = {}
    keys = [(info.key.split("/")[1], info.key, info.mtime_ns) for info in store.list(f"{WORK}/")]
    for folder, _, mtime_ns in keys:
        newest[folder] = max(newest.get(folder, 0), mtime_ns)
    oldest = time.time_ns() - ABANDONED_NS
    for folder, key, _ in keys:
        if newest[folder] < oldest:
            store.delete(key)


def is_own(key: str) -> bool:
    """Whether a key relative to a root is that of its marker or of something in one of its folders."""
    folder, slash, _ = key.partition("/")
    return folder in FOLDERS if slash else key == MARKER


def is_root(store: Store) -> bool:
    """Whether a place is the root of an audit."""
    return store.exists(MARKER)


_STORES: dict[tuple[str, StorageConfig], Store] = {}


def opened(uri: str, storage: StorageConfig) -> Store:
    """The store at a uri, opened once per process."""
    key = (uri, storage)
    if key not in _STORES:
        _STORES[key] = open_store(uri, storage)
    return _STORES[key]


def opened_source(uri: str, storage: StorageConfig) -> Store:
    """The store of a source, through the copies that this machine keeps of a remote one where it keeps any."""
    store = opened(uri, storage)
    if not storage.sync_to_local or not is_remote(uri):
        return store
    return SyncedStore(store, SyncParams(storage.sync_to_local, storage.sync_budget))


def read_address(address: str, storage: StorageConfig) -> bytes:
    """The bytes of one object named by its full address, or by a path below the working folder of now."""
    folder, slash, name = address.rpartition("/")
    return opened(canonical_uri(folder or slash or ".", storage), storage).read(name)


_KEPT: OrderedDict[tuple[Store, str], Any] = OrderedDict()
_KEEP = 8


def kept(store: Store, key: str, load: Callable[[], T]) -> T:
    """What `load` gives for an artifact, kept in this process for its next task; the latest eight stay."""
    name = (store, key)  # not its uri: one uri may lead to two servers
    if name not in _KEPT:
        _KEPT[name] = load()
        if len(_KEPT) > _KEEP:
            _KEPT.popitem(last=False)
    _KEPT.move_to_end(name)
    found: T = _KEPT[name]
    return found


def one_kept(load: Callable[P, T]) -> Callable[P, T]:
    """Keeps the latest result of `load` in this process, until another stage begins."""
    cached = lru_cache(maxsize=1)(load)
    _CLEAR.append(cached.cache_clear)
    return cast("Callable[P, T]", cached)


def forget_kept() -> None:
    """Lets go of what is kept in this process for the next task of a stage: the partition of a join is 1 GB."""
    _KEPT.clear()
    for clear in _CLEAR:
        clear()


_CLEAR: list[Callable[[], None]] = []


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what decides pixels and numbers: they are part of every features fingerprint."""
    import onnxruntime

    return {**decoders(), "onnxruntime": onnxruntime.__version__}


@lru_cache(maxsize=1)
def decoders() -> dict[str, str]:
    """Versions of what decides pixels alone."""
    import cv2
    import PIL

    return {"opencv": cv2.__version__, "pillow": PIL.__version__, **_optional_decoders()}


def _optional_decoders() -> dict[str, str]:
    """Of those that are installed: a file that needed another one is tried again once that is there."""
    found = {}
    for name in ("pillow-heif", "pillow-avif-plugin", "av"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
