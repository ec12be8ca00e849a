"""Reading the images of a task in order: many at once where they lie side by side in one file, many in flight where
their source is remote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from pipeline.errors import AccessDenied, CorruptObject, NotFound, ObjectChanged, StorageError, StorageUnavailable
from pipeline.kernels.header import ImageError
from pipeline.kernels.measure import Measured
from pipeline.layout.images import ImageObject
from pipeline.layout.members import member_content, read_span
from pipeline.layout.root import Root
from pipeline.runner import FATAL
from pipeline.schemas import Status
from pipeline.sources.folder import escape_bytes
from pipeline.storage import is_remote, read_ahead

SPAN_BYTES = 2**23
SPAN_GAP = 2**16  # less costs less to read than another request
HEADER_BYTES = 2**18
"""More than the header of a zip's member takes, whose names and extras are of at most 65,535 bytes each."""
CAUSES: dict[type[StorageError], Status] = {
    NotFound: Status.MISSING,
    ObjectChanged: Status.CHANGED,
    CorruptObject: Status.CHANGED,
    AccessDenied: Status.DENIED,
    StorageUnavailable: Status.TIMEOUT,
    StorageError: Status.TIMEOUT,  # such as a bad sector: one image of a shard must not hold up the others
}

Read: TypeAlias = "tuple[bytes, Measured | None]"
"""The bytes of an image, or what is known without them."""


class _Span(NamedTuple):
    """What is read at once: a file, or members of one that lie side by side; `failed` where nothing is to be read."""

    images: list[ImageObject]
    start: int = 0
    end: int = 0
    failed: Measured | None = None


def failed(status: Status, message: str) -> Measured:
    """An image of which no more is known."""
    return Measured(status, escape_bytes(message))  # it may name the file, and the name may be no UTF-8


def read_images(root: Root, wanted: Sequence[ImageObject | None], max_bytes: int) -> Iterator[Read]:
    """The bytes of every image in order, or why they could not be had; None is one that is gone.

    Members of an archive are read up to 8 MB at once and unpacked one at a time. What has over `max_bytes` is not read.
    """
    spans = _spans(wanted, max_bytes)
    load = partial(_load, root)
    if any(image is not None and is_remote(image.source) for image in wanted):
        loaded = read_ahead(spans, load, lambda span: span.end - span.start)
    else:
        loaded = map(load, spans)
    for span, early in loaded:
        data = _fetch(root, span) if early is None else early
        if isinstance(data, Measured):
            yield from ((b"", data) for _ in span.images or (None,))
        else:
            yield from _contents(span, data)
        del early, data  # else an image is held while the next one is read


def _spans(wanted: Sequence[ImageObject | None], max_bytes: int) -> Iterator[_Span]:
    span: _Span | None = None
    for image in wanted:
        following = _span_of(image, max_bytes)
        if span is not None and _joins(span, following):
            span = _Span([*span.images, *following.images], span.start, following.end)
            continue
        if span is not None:
            yield span
        span = following
    if span is not None:
        yield span


def _span_of(image: ImageObject | None, max_bytes: int) -> _Span:
    if image is None:
        return _Span([], failed=failed(Status.MISSING, "no longer in its source"))
    inside = image.fragment
    taken = image.size if inside is None else max(image.size, inside.length - HEADER_BYTES)
    if inside is not None and inside.problem:
        status, _, message = inside.problem.partition(": ")
        return _Span([image], failed=failed(Status(status), message))
    if taken > max_bytes:
        said = f"{taken:,} bytes, files of at most {max_bytes:,} are read; raise measure.max_bytes to measure it"
        return _Span([image], failed=failed(Status.TOO_LARGE, said))
    if inside is None:
        return _Span([image], 0, image.size)
    return _Span([image], inside.position, inside.position + inside.length)


def _joins(span: _Span, following: _Span) -> bool:
    """Whether a member lies so close behind those of a span that one read of all costs less than another one."""
    if span.failed or following.failed or not following.images[0].fragment or not span.images[0].fragment:
        return False
    is_near = 0 <= following.start - span.end <= SPAN_GAP and following.end - span.start <= SPAN_BYTES
    return is_near and span.images[0].parent == following.images[0].parent


def _load(root: Root, span: _Span) -> tuple[_Span, bytes | Measured | None]:
    """The bytes of a span; None for a tar.gz, which is unpacked in its turn: one span after the other costs least."""
    if span.failed is not None:
        return span, span.failed
    return span, None if span.images[0].kind == "tar.gz" else _fetch(root, span)


def _fetch(root: Root, span: _Span) -> bytes | Measured:
    first = span.images[0]
    try:
        if first.fragment is None:
            return first.read(root)
        return read_span(root, first.parent, span.start, span.end - span.start, first.expected)
    except FATAL:
        raise
    except tuple(CAUSES) as error:
        return failed(next(CAUSES[cause] for cause in type(error).__mro__ if cause in CAUSES), str(error))
    except ImageError as error:
        return failed(error.status, str(error))


def _contents(span: _Span, data: bytes) -> Iterator[Read]:
    """The bytes of each image of a span, unpacked one at a time."""
    for image in span.images:
        if image.fragment is None:
            yield data, None
            continue
        at = image.fragment.position - span.start
        try:
            content = member_content(image.kind, data[at : at + image.fragment.length], image.fragment)
        except ImageError as error:
            yield b"", failed(error.status, str(error))
        else:
            yield content, None
