"""What an image is looked at by: its bytes, or pixels where it is a frame of a video or a box of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from pipeline.errors import ObjectChanged
from pipeline.kernels.boxes import parse_box
from pipeline.kernels.crop import BoxParams, crop
from pipeline.kernels.decode import Limits, decode
from pipeline.kernels.hashing import content_hash, pixel_hash
from pipeline.kernels.header import ImageError
from pipeline.kernels.pillow_decode import Decoded
from pipeline.layout.images import ImageObject
from pipeline.layout.root import Root, opened_source
from pipeline.storage import ObjectInfo
from pipeline.storage.blocks import open_blocks

Content: TypeAlias = "bytes | Decoded"


@dataclass(frozen=True)
class Cutting:
    """How pixels are had: the limits of a decode, and what is added around a box."""

    limits: Limits
    boxes: BoxParams


def load(image: ImageObject, root: Root, cutting: Cutting) -> Content:
    """What an image is looked at by. Raises a StorageError or an ImageError."""
    return _load(image, root, cutting, image.expected)


def load_as_extracted(
    image: ImageObject, root: Root, cutting: Cutting, extracted: Callable[[], bytes | None]
) -> Content:
    """The same, if it is what was extracted: the content hash that `extracted` tells, or the pixel hash of a frame or
    box; it is asked only where a file's time differs from the listed one: a touched file, or another one of its size.
    """
    try:
        return _load(image, root, cutting, image.info)
    except ObjectChanged:
        if image.info.etag:
            raise
    found = load(image, root, cutting)
    if hash_of(found) != extracted():
        raise _replaced(image)
    return found


def load_frames_as_extracted(
    root: Root, frames: Sequence[ImageObject], cutting: Cutting, extracted: Callable[[int], bytes | None]
) -> Iterator[Decoded | ImageError | ObjectChanged]:
    """`load_as_extracted` of frames of one video, and of boxes of them, in the order of their times: one pass.

    `extracted` is asked by the number of a frame here. Raises a StorageError that is one of the whole video.
    """
    first, number = frames[0], 0
    try:
        opened_source(first.source, root.storage).read_range(first.info.key, 0, 1, expect=first.info)
        is_touched = False
    except ObjectChanged:
        if first.info.etag:
            raise
        is_touched = True
    wholes = read_frames(root, [whole for whole, _ in groupby(frames, lambda frame: frame.whole)], cutting)
    for _, images in groupby(frames, lambda frame: frame.whole):
        pixels = next(wholes)
        for image in images:
            found = _part(pixels, image, cutting)
            if is_touched and not isinstance(found, ImageError) and hash_of(found) != extracted(number):
                yield _replaced(image)
            else:
                yield found
            number += 1


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
    source.read_range(first.info.key, 0, 1, expect=first.expected)
    times = [frame.fragment.position for frame in frames if frame.fragment]
    with open_blocks(source, first.expected) as stream:
        yield from decode_frames(stream, times, cutting.limits)


def _replaced(image: ImageObject) -> ObjectChanged:
    return ObjectChanged(f"read {image.name}: it was replaced after it was extracted; run again")


def _part(pixels: Decoded | ImageError, image: ImageObject, cutting: Cutting) -> Decoded | ImageError:
    """A frame as it is, or a box of it."""
    if isinstance(pixels, ImageError) or not image.box:
        return pixels
    try:
        return cut_out(pixels, image, cutting)
    except ImageError as error:
        return error


def _load(image: ImageObject, root: Root, cutting: Cutting, expect: ObjectInfo) -> Content:
    if image.has_bytes:
        return image.read(root, expect)
    if image.box:
        return cut_out(decoded(_load(image.whole, root, cutting, expect), cutting), image, cutting)
    opened_source(image.source, root.storage).read_range(image.info.key, 0, 1, expect=expect)
    (frame,) = read_frames(root, [image], cutting)
    if isinstance(frame, ImageError):
        raise frame
    return frame
