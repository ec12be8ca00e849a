"""The images of a verify task: read once more from their sources, checked to be those that were extracted, prepared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AccessDenied, CorruptObject, NotFound, ObjectChanged, StorageError, StorageUnavailable
from pipeline.kernels.decode import luminance_thumbnail, thumbnail_of
from pipeline.kernels.header import ImageError
from pipeline.kernels.verify import PreparedImage, prepare
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.exact import read_pinned_features
from pipeline.layout.features import FeatureSet, extracted_hashes
from pipeline.layout.images import ImageObject, image_objects_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.pixels import Content, Cutting, Fetched, fetch, frames_as_extracted, parts_as_extracted
from pipeline.pulse import VIDEO, at_image, each_at_image, reading
from pipeline.sources.folder import escape_bytes
from pipeline.storage import is_remote
from pipeline.storage.ahead import BYTES_AHEAD, READS_IN_FLIGHT

KEPT_IMAGES = 512  # of 160 x 160 pixels and what is found in them: about 0.2 MB each
PARTS_AHEAD = KEPT_IMAGES // 2  # so that none is let go of before its turn
HASH_BLOCK = 16_384  # ids whose content hashes are read at once, 0.5 MB
FEW_LOST, LOST_SHARE = 8, 0.01
"""So many images of a task, or this share of them, may be gone without the source being taken for away."""
UNREADABLE = (NotFound, ObjectChanged, CorruptObject, AccessDenied)
"""Why the bytes of an image that was extracted cannot be had. A store that does not answer is none of them."""

Unread: TypeAlias = "tuple[type[StorageError], str]"


class PreparedImages:
    """Images prepared for comparison, the latest few hundred kept; None for one that cannot be read any more."""

    def __init__(self, inputs: Inputs, params: VerifyParams, cutting: Cutting, ids: Iterable[int]) -> None:
        """`ids`: of all images of the task, in the order in which they are asked for, repeats allowed."""
        self._inputs, self._params, self._cutting = inputs, params, cutting
        self._order, self._asked = np.fromiter(ids, np.int64), 0
        self._objects = image_objects_of(inputs, np.unique(self._order))
        self._read_of = {image_id: _read_of(image) for image_id, image in self._objects.items()}
        self._is_remote = any(is_remote(image.source) for image in self._objects.values())
        self._kept: OrderedDict[int, PreparedImage | None] = OrderedDict()
        self._fetched: dict[ImageObject, Fetched | Unread | None] = {}
        self._hashes: dict[int, dict[int, bytes | None]] = {}
        self._lost: dict[int, Unread] = {}

    def get(self, image_id: int) -> PreparedImage | None:
        """The prepared image."""
        if image_id in self._kept:
            self._kept.move_to_end(image_id)
        else:
            self._prepare(image_id)
        while len(self._kept) > KEPT_IMAGES:
            self._kept.popitem(last=False)
        self._asked += 1
        return self._kept[image_id]

    def require_source(self) -> None:
        """Raises StorageUnavailable where so many images are gone that their source must be: an unmounted disk says of
        each that it is missing, and that is no property of the pairs.

        A few, and be it all of a small task, that are there and may not be read are no sign of that: they would hold
        every run up, where the next listing leaves out what is missing.
        """
        lost, every = len(self._lost), len(self._objects)
        gone = sum(issubclass(cause, (NotFound, ObjectChanged)) for cause, _ in self._lost.values())
        if lost <= max(FEW_LOST, LOST_SHARE * every) and not gone == every >= 2:
            return
        image_id = min(self._lost)
        where = self._objects[image_id].name
        why = self._lost[image_id][1].replace(where, "it")
        raise StorageUnavailable(
            f"{lost:,} of {every:,} images that were read before cannot be read now, such as {where} "
            f"({why}). No pair is settled without its pixels while so many are gone (at most "
            f"{FEW_LOST}, or {LOST_SHARE:.0%}). Check that the source is there and may be read, then run again: it is "
            "listed anew."
        )

    def _prepare(self, image_id: int) -> None:
        """Prepares an image with those of its file that are asked for soon: a video is opened, and an image that boxes
        are cut out of is decoded, once for all of them.
        """
        read = self._read_of[image_id]
        wanted = [i for i in self._following(image_id, PARTS_AHEAD) if self._read_of[i] == read and i not in self._kept]
        wanted.sort(key=self._place)
        self._kept |= dict.fromkeys(wanted)
        images = [self._objects[i] for i in wanted]
        if images[0].is_frame:
            self._take(wanted, frames_as_extracted(self._inputs.root, images, self._cutting, self._told(wanted)))
            return
        fetched = self._fetched_ahead(read, image_id) if self._is_remote else self._fetch(read)
        if isinstance(fetched, Fetched):
            self._take(wanted, parts_as_extracted(fetched, images, self._cutting, self._told(wanted)))
        elif fetched is not None:
            self._lost |= dict.fromkeys(wanted, fetched)

    def _take(self, wanted: list[int], parts: Iterable[Content | ImageError | ObjectChanged]) -> None:
        done = 0
        try:
            for found in each_at_image(parts, VIDEO):
                if isinstance(found, ObjectChanged):
                    self._lost[wanted[done]] = _unread(found)
                elif not isinstance(found, ImageError):
                    self._kept[wanted[done]] = self._made(found)
                done += 1
        except UNREADABLE as error:
            self._lost |= dict.fromkeys(wanted[done:], _unread(error))

    def _following(self, image_id: int, count: int) -> list[int]:
        """An image and those that are asked for next, each once, of the next `count` times."""
        return [*dict.fromkeys([image_id, *self._order[self._asked : self._asked + count].tolist()])]

    def _place(self, image_id: int) -> tuple[int, int]:
        fragment = self._objects[image_id].fragment
        return fragment.position if fragment else 0, image_id

    def _made(self, content: Content) -> PreparedImage | None:
        try:
            with at_image():
                return prepare(self._luminance(content), self._params)
        except ImageError:
            return None

    def _luminance(self, content: Content) -> NDArray[np.uint8]:
        if isinstance(content, bytes):
            return luminance_thumbnail(content, self._params.side, self._cutting.limits.max_pixels)
        return thumbnail_of(content, self._params.side)

    def _fetched_ahead(self, read: ImageObject, image_id: int) -> Fetched | Unread | None:
        """Bytes that are read with those of the next pairs at once: a store answers in tens of milliseconds."""
        if read not in self._fetched:
            following = self._following(image_id, 2 * READS_IN_FLIGHT)
            reads = dict.fromkeys(
                self._read_of[i] for i in following if not (i in self._kept or self._objects[i].is_frame)
            )
            wanted = [read, *(each for each in reads if each != read and each not in self._fetched)]
            held = sum(each.size for each in self._fetched)
            sizes = held + np.cumsum([each.size for each in wanted])
            del wanted[max(1, int(np.searchsorted(sizes, BYTES_AHEAD, "right"))) :]
            with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
                self._fetched.update(zip(wanted, pool.map(self._fetch, wanted), strict=True))
        return self._fetched.pop(read)

    def _fetch(self, read: ImageObject) -> Fetched | Unread | None:
        """None: a member that is not what its archive says."""
        try:
            return fetch(read, self._inputs.root)
        except UNREADABLE as error:
            return _unread(error)  # an error would keep the bytes in its frames
        except ImageError:
            return None

    def _told(self, images: list[int]) -> Callable[[int], bytes | None]:
        return lambda number: self._extracted(images[number])

    def _extracted(self, image_id: int) -> bytes | None:
        """The content hash that was extracted, read with those of the other images of the task that are beside it."""
        block = image_id // HASH_BLOCK
        if block not in self._hashes:
            ids = sorted(i for i in self._objects if i // HASH_BLOCK == block)
            with reading():
                self._hashes[block] = extracted_hashes(self._inputs.root.open(), self._features, ids)
        return self._hashes[block][image_id]

    @cached_property
    def _features(self) -> FeatureSet:
        return read_pinned_features(self._inputs.root.open(), self._inputs.exact)


def _read_of(image: ImageObject) -> ImageObject:
    """What is read for an image: a video of which it is a frame, an image of which it is a box; else itself."""
    return ImageObject(image.source, image.info) if image.is_frame else image.whole


def _unread(error: StorageError) -> Unread:
    return type(error), escape_bytes(str(error))
