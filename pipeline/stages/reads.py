"""Reading the images of a task in order: many at once where they lie side by side in one file, many in flight where
their source is remote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeAlias

from pipeline.errors import AccessDenied, CorruptObject, NotFound, ObjectChanged, StorageError, StorageUnavailable
from pipeline.kernels.header import ImageError
from pipeline.kernels.measure import Measured
from pipeline.kernels.pillow_decode import Decoded
from pipeline.layout.images import ImageObject, problem_error
from pipeline.layout.members import begin_span, member_content, read_span
from pipeline.layout.pixels import Content, Cutting, cut_out, decoded, read_frames
from pipeline.layout.root import Root
from pipeline.pulse import VIDEO, at_image, each_at_image
from pipeline.runner import FATAL
from pipeline.schemas import Status
from pipeline.sources.folder import escape_bytes
from pipeline.sources.fragments import IMAGE
from pipeline.storage import Begun, is_remote, read_ahead

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

Read: TypeAlias = "Content | Measured"
"""The bytes of an image, or pixels of a frame or box; or what is known without them."""


class _Span(NamedTuple):
    """What is read at once: a file, members of one that lie side by side, frames of one; with all boxes of each.

    `failed` where nothing is to be read.
    """

    images: list[ImageObject]
    start: int = 0
    end: int = 0
    failed: Measured | None = None


def status_of(error: StorageError) -> Status:
    """The status of an image that could not be had."""
    return next(CAUSES[cause] for cause in type(error).__mro__ if cause in CAUSES)


def failed(status: Status, message: str) -> Measured:
    """An image of which no more is known."""
    return Measured(status, escape_bytes(message))  # it may name the file, and the name may be no UTF-8


def read_images(root: Root, wanted: Sequence[ImageObject | None], max_bytes: int, cutting: Cutting) -> Iterator[Read]:
    """What every image is looked at by, in order, or why it could not be had; None is one that is gone.

    Members of an archive are read up to 8 MB at once and unpacked one at a time; what boxes are cut out of is read and
    decoded once for all that follow one another, and so are frames. A file of over `max_bytes` is not read, but for a
    video.
    """
    spans = _spans(wanted, max_bytes)
    load = partial(_load, root)
    if any(image is not None and is_remote(image.source) for image in wanted):
        loaded = read_ahead(spans, load, lambda span: span.end - span.start, partial(_begin, root))
    else:
        loaded = map(load, spans)
    for span, early in loaded:
        if isinstance(early, Measured):
            yield from (early for _ in span.images or (None,))
        else:
            yield from _cut(span, _wholes(root, span, early, cutting), cutting)
        del early  # else an image is held while the next one is read


def _spans(wanted: Sequence[ImageObject | None], max_bytes: int) -> Iterator[_Span]:
    span: _Span | None = None
    for image in wanted:
        following = _span_of(image, max_bytes)
        if span is not None and _joins(span, following):
            span.images.extend(following.images)
            span = span._replace(end=following.end)
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
        error = problem_error(inside)
        return _Span([image], failed=failed(error.status, str(error)))
    if image.is_frame:
        return _Span([image])
    if taken > max_bytes:
        said = f"{taken:,} bytes, files of at most {max_bytes:,} are read; raise measure.max_bytes to measure it"
        return _Span([image], failed=failed(Status.TOO_LARGE, said))
    if inside is None or image.kind == IMAGE:
        return _Span([image], 0, image.size)
    return _Span([image], inside.position, inside.position + inside.length)


def _joins(span: _Span, following: _Span) -> bool:
    """Whether one read of all costs less than another one: a box of the same image, another frame of a video, a member
    that lies close behind those of a span.
    """
    if span.failed or following.failed:
        return False
    last, image = span.images[-1], following.images[0]
    if not last.fragment or not image.fragment or last.parent != image.parent:
        return False
    is_next = 0 <= following.start - span.end <= SPAN_GAP and following.end - span.start <= SPAN_BYTES
    return is_next or image.is_frame or last.whole == image.whole


def _load(root: Root, span: _Span) -> tuple[_Span, bytes | Measured | None]:
    """The bytes of a span; None for a tar.gz and a video, whose turn must come: in order they cost least."""
    if span.failed is not None:
        return span, span.failed
    return span, None if _is_stream(span) else _fetch(root, span)


def _is_stream(span: _Span) -> bool:
    return span.images[0].kind == "tar.gz" or span.images[0].is_frame


def _begin(root: Root, span: _Span) -> Begun | None:
    """Asks for what `_load` is going to read."""
    if span.failed is not None or _is_stream(span):
        return None
    first = span.images[0].whole
    if first.fragment is None:
        return first.begin(root)
    return begin_span(root, first.parent, span.start, span.end - span.start, first.expected)


def _fetch(root: Root, span: _Span) -> bytes | Measured:
    first = span.images[0].whole
    try:
        if first.fragment is None:
            return first.read(root)
        return read_span(root, first.parent, span.start, span.end - span.start, first.expected)
    except FATAL:
        raise
    except tuple(CAUSES) as error:
        return _failure(error)
    except ImageError as error:
        return failed(error.status, str(error))


def _failure(error: StorageError) -> Measured:
    return failed(status_of(error), str(error))


def _wholes(root: Root, span: _Span, data: bytes | None, cutting: Cutting) -> Iterator[Read]:
    """The images of a span without their boxes, each once, unpacked or decoded one at a time."""
    wholes = [image for image, _ in groupby(span.images, lambda image: image.whole)]
    if wholes[0].is_frame:
        yield from _frames(root, wholes, cutting)
        return
    fetched = _fetch(root, span) if data is None else data
    for whole in wholes:
        if isinstance(fetched, Measured):
            yield fetched
        else:
            yield _member(whole, fetched, span.start)


def _frames(root: Root, frames: list[ImageObject], cutting: Cutting) -> Iterator[Read]:
    given = 0
    try:
        for frame in each_at_image(read_frames(root, frames, cutting), VIDEO):
            yield failed(frame.status, str(frame)) if isinstance(frame, ImageError) else frame
            given += 1
    except FATAL:
        raise
    except tuple(CAUSES) as error:
        yield from [_failure(error)] * (len(frames) - given)


def _member(image: ImageObject, span: bytes, start: int) -> Read:
    if image.fragment is None:
        return span
    at = image.fragment.position - start
    try:
        return member_content(image.kind, span[at : at + image.fragment.length], image.fragment)
    except ImageError as error:
        return failed(error.status, str(error))


def _cut(span: _Span, wholes: Iterator[Read], cutting: Cutting) -> Iterator[Read]:
    """Every image of a span: a whole as it is, boxes cut out of one decode of theirs."""
    for _, images in groupby(span.images, lambda image: image.whole):
        whole = next(wholes)
        if isinstance(whole, Measured):
            yield from (whole for _ in images)
        else:
            yield from _boxes(whole, images, cutting)


def _boxes(whole: Content, images: Iterable[ImageObject], cutting: Cutting) -> Iterator[Read]:
    pixels: Decoded | Measured | None = None
    for image in images:
        if not image.box:
            yield whole
            continue
        pixels = _decoded(whole, cutting) if pixels is None else pixels
        yield pixels if isinstance(pixels, Measured) else _box(pixels, image, cutting)


def _decoded(whole: Content, cutting: Cutting) -> Decoded | Measured:
    try:
        with at_image():
            return decoded(whole, cutting)
    except ImageError as error:
        return failed(error.status, str(error))


def _box(pixels: Decoded, image: ImageObject, cutting: Cutting) -> Decoded | Measured:
    try:
        return cut_out(pixels, image, cutting)
    except ImageError as error:
        return failed(error.status, str(error))
