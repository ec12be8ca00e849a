"""What an image is looked at by: its bytes, or pixels where it is a frame of a video or a box of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeAlias

from pipeline.errors import ObjectChanged
from pipeline.kernels.boxes import parse_box
from pipeline.kernels.crop import BoxParams, crop
from pipeline.kernels.decode import Limits, decode
from pipeline.kernels.hashing import content_hash, pixel_hash
from pipeline.kernels.header import ImageError
from pipeline.kernels.pillow_decode import Decoded
from pipeline.layout.images import ImageObject
from pipeline.layout.root import Root, opened_source
from pipeline.pulse import reading
from pipeline.storage.blocks import open_blocks

Content: TypeAlias = "bytes | Decoded"
Extracted: TypeAlias = Callable[[int], "bytes | None"]


class Fetched(NamedTuple):
    """The bytes of a file or member, and whether its file has another time than was listed."""

    data: bytes
    is_touched: bool


@dataclass(frozen=True)
class Cutting:
    """How pixels are had: the limits of a decode, and what is added around a box."""

    limits: Limits
    boxes: BoxParams


def fetch(whole: ImageObject, root: Root) -> Fetched:
    """The bytes of a file or member, whose file may have another time than was listed: a touched file, or another one
    of its size. Raises a StorageError, or an ImageError for a member that is not what its archive says.
    """
    try:
        return Fetched(whole.read(root, whole.info), False)
    except ObjectChanged:
        if whole.info.etag:
            raise
    return Fetched(whole.read(root), True)


def parts_as_extracted(
    fetched: Fetched, images: Sequence[ImageObject], cutting: Cutting, extracted: Extracted
) -> Iterator[Content | ImageError | ObjectChanged]:
    """A file or member, and boxes of it, if they are what was extracted; all boxes are cut out of one decode.

    `extracted` tells the content hash of an image, or the pixel hash of a box, by its number here; it is asked only
    where the file was touched.
    """
    parts = _parts(iter([fetched.data]), images, cutting)
    yield from _as_extracted(parts, images, extracted) if fetched.is_touched else parts


def frames_as_extracted(
    root: Root, frames: Sequence[ImageObject], cutting: Cutting, extracted: Extracted
) -> Iterator[Content | ImageError | ObjectChanged]:
    """The same of frames of one video, and of boxes of them, in the order of their times: one pass.

    Raises a StorageError that is one of the whole video.
    """
    first = frames[0]
    try:
        with reading():
            opened_source(first.source, root.storage).read_range(first.info.key, 0, 1, expect=first.info)
        is_touched = False
    except ObjectChanged:
        if first.info.etag:
            raise
        is_touched = True
    wholes = read_frames(root, [whole for whole, _ in groupby(frames, lambda frame: frame.whole)], cutting)
    parts = _parts(wholes, frames, cutting)
    yield from _as_extracted(parts, frames, extracted) if is_touched else parts


def hash_of(content: Content) -> bytes:
    """Hash of bytes, or of pixels."""
    return content_hash(content) if isinstance(content, bytes) else pixel_hash(content.native, content.space)


def cut_out(whole: Decoded, image: ImageObject, cutting: Cutting) -> Decoded:
    """The box that an image is of `whole`, which is left as it is. Raises ImageError."""
    return crop(whole, parse_box(image.box), cutting.boxes)


def decoded(content: Content, cutting: Cutting) -> Decoded:
    """The pixels of what an image is looked at by. Raises ImageError."""
    return decode(content, cutting.limits) if isinstance(content, bytes) else content


def read_frames(root: Root, frames: Sequence[ImageObject], cutting: Cutting) -> Iterator[Decoded | ImageError]:
    """Frames of one video, in the order of their times: one pass over what lies between them.

    Raises a StorageError, ObjectChanged where the file is not the one that was listed.
    """
    from pipeline.kernels.video_frames import decode_frames  # PyAV is an extra

    first = frames[0]
    source = opened_source(first.source, root.storage)
    with reading():
        source.read_range(first.info.key, 0, 1, expect=first.expected)
    times = [frame.fragment.position for frame in frames if frame.fragment]
    with open_blocks(source, first.expected) as stream:
        yield from decode_frames(stream, times, cutting.limits)


def _parts(
    wholes: Iterator[Content | ImageError], images: Sequence[ImageObject], cutting: Cutting
) -> Iterator[Content | ImageError]:
    """Each image as it is, or cut out of the next one of `wholes`, which is decoded once."""
    for _, parts in groupby(images, lambda image: image.whole):
        whole = next(wholes)
        for image in parts:
            if image.box and isinstance(whole, bytes):
                whole = _decoded_or_error(whole, cutting)
            yield _part(whole, image, cutting)


def _decoded_or_error(data: bytes, cutting: Cutting) -> Decoded | ImageError:
    try:
        return decode(data, cutting.limits)
    except ImageError as error:
        return error


def _part(whole: Content | ImageError, image: ImageObject, cutting: Cutting) -> Content | ImageError:
    if not image.box or not isinstance(whole, Decoded):
        return whole
    try:
        return cut_out(whole, image, cutting)
    except ImageError as error:
        return error


def _as_extracted(
    parts: Iterator[Content | ImageError], images: Sequence[ImageObject], extracted: Extracted
) -> Iterator[Content | ImageError | ObjectChanged]:
    for number, (found, image) in enumerate(zip(parts, images, strict=True)):
        if isinstance(found, ImageError) or hash_of(found) == extracted(number):
            yield found
        else:
            yield ObjectChanged(f"read {image.name}: it was replaced after it was extracted; run again")
