"""Expand stage: lists the images inside of files that hold many, each file once for as long as it is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.errors import AccessDenied, CorruptObject, NotFound, ObjectChanged, StorageError
from pipeline.kernels.header import ImageError
from pipeline.layout.fragments import FOUND, INDEX, INSTALL, Parent, write_fragments
from pipeline.layout.root import Root, opened_source
from pipeline.runner import Counters
from pipeline.schemas import Status
from pipeline.sources.archives import FOLLOWED, HEAD_BYTES, archive_fragments, archive_kind, is_prefixed_zip
from pipeline.sources.folder import LeftOut, escape_bytes
from pipeline.sources.fragments import VIDEO, Fragment
from pipeline.sources.gzip_stream import GzipStream
from pipeline.sources.videos import frame_name, frame_times, has_library, parse_sampling
from pipeline.stages.reads import status_of
from pipeline.storage import StorageConfig, Store
from pipeline.storage.blocks import open_blocks

OF_THE_FILE = (NotFound, ObjectChanged, CorruptObject, AccessDenied)
"""Why a file could not be read that is no reason to end the run: it gets a row, and is tried again by the next one. So
does one with a plain StorageError, such as a bad sector."""


@dataclass(frozen=True)
class ExpandSpec:
    """Files to look into, in the order of the listing."""

    root: Root
    parents: tuple[Parent, ...]


def expand(spec: ExpandSpec) -> Counters:
    """Stores the fragments of each file; what is wrong with a file is a fragment of its own that says so.

    Raises StorageUnavailable where the store of a file does not answer: that is no property of the file.
    """
    store = spec.root.open()
    counts = [_expand(store, parent, spec.root.storage) for parent in spec.parents]
    return {"parents": len(counts), "fragments": sum(counts)}


def part_key(spec: ExpandSpec) -> str:
    """Key of what the spec commits last."""
    return spec.parents[-1].stem + FOUND


def halves(spec: ExpandSpec) -> list[ExpandSpec]:
    """The spec cut in two; itself where it has one file."""
    middle = len(spec.parents) // 2
    return [ExpandSpec(spec.root, parents) for parents in (spec.parents[:middle], spec.parents[middle:]) if parents]


def quarantine(spec: ExpandSpec, cause: str) -> Counters:
    """Settles one file that killed or hung its process twice: it has that status until the next run tries it again."""
    (parent,) = spec.parents
    found = [_problem(parent, Status(cause), "its process died or hung twice while it was looked into")]
    write_fragments(spec.root.open(), parent, parent.kind, found, LeftOut())
    return {"parents": 1, "fragments": 1}


def _expand(store: Store, parent: Parent, storage: StorageConfig) -> int:
    left_out = LeftOut()
    source, info = opened_source(parent.place, storage), parent.info
    try:
        head = source.read_range(info.key, 0, HEAD_BYTES, expect=info)
        with open_blocks(source, info) if parent.kind == VIDEO else source.open(info.key) as stream:
            kind = _kind(parent.kind, head, stream)
            found = _frames(parent, stream) if kind == VIDEO else _fragments(store, parent, kind, stream, left_out)
            return write_fragments(store, parent, kind, found, left_out)
    except StorageError as error:
        if not isinstance(error, OF_THE_FILE) and type(error) is not StorageError:
            raise
        return write_fragments(store, parent, parent.kind, [_problem(parent, status_of(error), str(error))], left_out)


def _kind(named: str, head: bytes, stream: BinaryIO) -> str:
    """What a file is by its bytes, of a kind by its name."""
    if named == VIDEO:
        return VIDEO
    kind = archive_kind(head)
    return "zip" if kind == "tar" and named == "zip" and is_prefixed_zip(head, stream) else kind


def _fragments(store: Store, parent: Parent, kind: str, stream: BinaryIO, left_out: LeftOut) -> Iterator[Fragment]:
    """The fragments of an archive, and at the end what broke it off."""
    if not parent.info.size:
        yield _problem(parent, Status.EMPTY, "the archive has 0 bytes")
        return
    try:
        if kind == "tar.gz":
            yield from _packed_fragments(store, parent, stream, left_out)
        else:
            yield from archive_fragments(stream, kind, left_out)
    except ImageError as error:
        yield _problem(parent, error.status, str(error))


def _packed_fragments(store: Store, parent: Parent, stream: BinaryIO, left_out: LeftOut) -> Iterator[Fragment]:
    """As `archive_fragments`, of a tar.gz; its index is stored. Raises ImageError for the gzip before that for its tar:
    where the gzip breaks off the tar does.
    """
    unpacked = GzipStream(stream, parent.info.size)
    store.put(parent.stem + INDEX, unpacked.index())
    damage = unpacked.problem()
    inside: ImageError | None = None
    try:
        yield from archive_fragments(cast(BinaryIO, unpacked), "tar", left_out)
    except ImageError as error:
        inside = error
    if unpacked.is_followed and damage is None:
        left_out.count(FOLLOWED)
    is_more = inside is not None and (inside.status is Status.UNREADABLE or not unpacked.breaks_off)
    if damage is not None and is_more:
        raise ImageError(damage.status, f"{damage}; {inside}")
    for problem in (damage, inside):
        if problem is not None:
            raise problem


def _frames(parent: Parent, stream: BinaryIO) -> Iterator[Fragment]:
    """The frames of a video that are taken, and at the end what broke it off."""
    try:
        for time in frame_times(stream, parse_sampling(parent.params)):
            if isinstance(time, ImageError):
                yield _problem(parent, time.status, str(time))
            else:
                yield Fragment(frame_name(time), time, 0, parent.info.size)
    except ImageError as error:
        is_missing = error.status is Status.UNSUPPORTED and not has_library()
        yield _problem(parent, error.status, f"{error}{INSTALL}" if is_missing else str(error))


def _problem(parent: Parent, status: Status, message: str) -> Fragment:
    return Fragment("", -1, 0, parent.info.size, f"{status.value}: {escape_bytes(message)}")
