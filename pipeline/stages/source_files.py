"""What a source is, and the files that lie in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from pipeline.errors import AccessDenied, NotFound
from pipeline.layout.fragments import Parent
from pipeline.layout.root import Root, is_own, opened
from pipeline.layout.snapshots import LIST, SourceRecord
from pipeline.schemas import Status
from pipeline.sources.folder import escape_bytes, is_image_key
from pipeline.sources.fragments import parent_kind
from pipeline.sources.list_kinds import is_list_name
from pipeline.sources.listed import Tally
from pipeline.sources.vectors import holds_vectors, open_vectors
from pipeline.stages.prepare_list import list_batches
from pipeline.storage import LocalStore, ObjectInfo, StorageConfig, is_remote
from pipeline.storage.uri import parse_bucket
from pipeline.storage.walk import Closed

log = logging.getLogger(__name__)


def source_objects(
    source: SourceRecord, storage: StorageConfig, closed: Closed = lambda *_: None
) -> Iterable[ObjectInfo]:
    """What lies in a source: all of a folder or prefix, or the one file (or list) that it is. `closed` is told of the
    folders on a disk that may not be listed.
    """
    store = opened(source.place, storage)
    if source.kind != "folder":
        return [store.stat(source.uri.rpartition("/")[2])]
    return store.list_open(closed) if isinstance(store, LocalStore) else store.list()


def with_closed(source: SourceRecord, storage: StorageConfig, problems: dict[str, str]) -> Iterator[ObjectInfo]:
    """What lies in a source; in place of each folder that may not be listed its key, whose problem is noted."""
    waiting = list[ObjectInfo]()

    def closed(key: str, error: AccessDenied) -> None:
        problems[key] = f"{Status.DENIED.value}: {escape_bytes(str(error))}"
        waiting.append(ObjectInfo(key, 0, "", 0))

    for info in source_objects(source, storage, closed):
        yield from waiting
        waiting.clear()
        yield info
    yield from waiting


def without_root(root: Root, source: SourceRecord, listed: Iterable[ObjectInfo]) -> Iterable[ObjectInfo]:
    """A listing without what is the root's own, where that lies in the source: images may lie beside and around it."""
    if not root.uri.startswith(source.uri + "/"):
        return listed
    return _around_root(root, source, listed)


def _around_root(root: Root, source: SourceRecord, listed: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    inside = f"{root.uri.removeprefix(source.uri + '/')}/"
    hidden, first = 0, ""
    for info in listed:
        if not info.key.startswith(inside) or not is_own(info.key[len(inside) :]):
            yield info
        elif is_image_key(info.key):
            hidden, first = hidden + 1, first or info.key
    if hidden:
        log.warning(
            "%s: images in folders that the root %s takes as its own are left out: %s, the first is %r. Choose another "
            "--root to audit them.", source.uri, root.uri, f"{hidden:,}", first,
        )  # fmt: skip


def names_alone(uri: str, storage: StorageConfig) -> list[str] | None:
    """The names of a source that is a file of vectors without images, sorted as keys are; None for any other."""
    place, slash, key = uri.rpartition("/")
    if not key.endswith(".parquet") or not opened(place or slash, storage).exists(key):
        return None
    names = open_vectors(opened(place or slash, storage), key, uri).names
    return sorted([] if names is None else names.to_pylist(), key=str.encode)


def source_kind(uri: str, storage: StorageConfig) -> str:
    """What a source is: where there is such a file, `file` by the name of an archive, a video or an image and `list` by
    that of a list (a Parquet of vectors is none); else `folder`.
    """
    place, slash, name = uri.rpartition("/")
    if not parent_kind(name) and not is_image_key(name) and not is_list_name(name):
        return "folder"
    store = opened(place or slash, storage)
    if not store.exists(name):
        return "folder"
    if not is_list_name(name):
        return "file"
    return "folder" if name.endswith(".parquet") and holds_vectors(store, name) else LIST


def require_source(source: SourceRecord, storage: StorageConfig) -> None:
    """Raises NotFound, or another StorageError, for a source that cannot be listed."""
    if source.kind == LIST:
        _require_list(source, storage)
        return
    if names_alone(source.uri, storage) is not None:
        return
    if next(iter(source_objects(source, storage)), None) is None:
        require_path(source.uri, storage)


def _require_list(source: SourceRecord, storage: StorageConfig) -> None:
    """Raises UsageError for what is wrong with the first rows of a list: nothing is written before that is known."""
    info = opened(source.place, storage).stat(source.uri.rpartition("/")[2])
    next(list_batches(Parent(source.place, info, LIST), storage, Tally()), None)


def require_path(uri: str, storage: StorageConfig) -> None:
    """Raises NotFound for a path of an object store that nothing is under, and that is no console's marker."""
    if is_remote(uri) and parse_bucket(uri, storage).prefix and not opened(uri, storage).exists(""):
        raise NotFound(f"list {uri}: nothing is there. Check the path")
