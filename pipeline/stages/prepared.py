"""The images of a verify task: read once more from their sources, checked to be those that were extracted, prepared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AccessDenied, CorruptObject, NotFound, ObjectChanged, StorageError, StorageUnavailable
from pipeline.kernels.decode import luminance_thumbnail, thumbnail_of
from pipeline.kernels.header import ImageError
from pipeline.kernels.verify import PreparedImage, prepare
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.exact import read_pinned_features
from pipeline.layout.features import FeatureSet, extracted_hashes
from pipeline.layout.images import image_objects_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.pixels import Content, Cutting, load_as_extracted, load_frames_as_extracted
from pipeline.sources.folder import escape_bytes
from pipeline.storage import is_remote
from pipeline.storage.ahead import BYTES_AHEAD, READS_IN_FLIGHT

KEPT_IMAGES = 512  # of 160 x 160 pixels and what is found in them: about 0.2 MB each
FRAMES_AHEAD = KEPT_IMAGES // 2  # so that none is let go of before its turn
HASH_BLOCK = 16_384  # ids whose content hashes are read at once, 0.5 MB
FEW_LOST, LOST_SHARE = 8, 0.01
"""So many images of a task, or this share of them, may be gone without the source being taken for away."""
UNREADABLE = (NotFound, ObjectChanged, CorruptObject, AccessDenied)
"""Why the bytes of an image that was extracted cannot be had. A store that does not answer is none of them."""


class PreparedImages:
    """Images prepared for comparison, the latest few hundred kept; None for one that cannot be read any more."""

    def __init__(self, inputs: Inputs, params: VerifyParams, cutting: Cutting, ids: Iterable[int]) -> None:
        """`ids`: of all images of the task, in the order in which they are asked for, repeats allowed."""
        self._inputs, self._params, self._cutting = inputs, params, cutting
        self._order = list(dict.fromkeys(ids))
        self._place = {image_id: at for at, image_id in enumerate(self._order)}
        self._objects = image_objects_of(inputs, np.array(sorted(self._order), np.int64))
        self._is_remote = any(is_remote(image.source) for image in self._objects.values())
        self._kept: OrderedDict[int, PreparedImage | None] = OrderedDict()
        self._bytes: dict[int, Content | None] = {}
        self._hashes: dict[int, dict[int, bytes | None]] = {}
        self._lost: dict[int, tuple[type[StorageError], str]] = {}

    def get(self, image_id: int) -> PreparedImage | None:
        """The prepared image."""
        if image_id in self._kept:
            self._kept.move_to_end(image_id)
            return self._kept[image_id]
        made = self._prepare(image_id)
        self._kept[image_id] = made
        while len(self._kept) > KEPT_IMAGES:
            self._kept.popitem(last=False)
        return made

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

    def _prepare(self, image_id: int) -> PreparedImage | None:
        if self._objects[image_id].is_frame:
            self._prepare_frames(image_id)
            return self._kept[image_id]
        return self._made(self._read(image_id))

    def _prepare_frames(self, image_id: int) -> None:
        """Prepares a frame with those of its video that are asked for soon: each opening decodes from a keyframe on."""
        at, parent = self._place[image_id], self._objects[image_id].parent
        wanted = [
            i for i in self._order[at : at + FRAMES_AHEAD] if i not in self._kept and self._objects[i].parent == parent
        ]
        wanted.sort(key=lambda i: (self._time(i), i))
        root, frames = self._inputs.root, [self._objects[i] for i in wanted]
        self._kept |= dict.fromkeys(wanted)
        done = 0
        try:
            for found in load_frames_as_extracted(root, frames, self._cutting, lambda n: self._extracted(wanted[n])):
                if isinstance(found, ObjectChanged):
                    self._lost[wanted[done]] = type(found), escape_bytes(str(found))
                elif not isinstance(found, ImageError):
                    self._kept[wanted[done]] = self._made(found)
                done += 1
        except UNREADABLE as error:
            self._lost |= dict.fromkeys(wanted[done:], (type(error), escape_bytes(str(error))))

    def _time(self, image_id: int) -> int:
        fragment = self._objects[image_id].fragment
        return fragment.position if fragment else 0

    def _made(self, content: Content | None) -> PreparedImage | None:
        try:
            return None if content is None else prepare(self._luminance(content), self._params)
        except ImageError:
            return None

    def _luminance(self, content: Content) -> NDArray[np.uint8]:
        if isinstance(content, bytes):
            return luminance_thumbnail(content, self._params.side, self._cutting.limits.max_pixels)
        return thumbnail_of(content, self._params.side)

    def _read(self, image_id: int) -> Content | None:
        if not self._is_remote:
            return self._read_now(image_id)
        if image_id not in self._bytes:
            self._fetch_ahead(image_id)
        return self._bytes.pop(image_id)

    def _fetch_ahead(self, image_id: int) -> None:
        """Reads this image and the next ones of the pairs at once: a store answers in tens of milliseconds."""
        at = self._place[image_id]
        following = self._order[at : at + 4 * READS_IN_FLIGHT]
        wanted = [i for i in following if not (i in self._kept or i in self._bytes or self._objects[i].is_frame)]
        sizes = np.cumsum([self._objects[i].size for i in wanted])
        del wanted[max(1, int(np.searchsorted(sizes, BYTES_AHEAD, "right"))) :]
        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            self._bytes.update(zip(wanted, pool.map(self._read_now, wanted), strict=True))

    def _read_now(self, image_id: int) -> Content | None:
        try:
            image = self._objects[image_id]
            return load_as_extracted(image, self._inputs.root, self._cutting, lambda: self._extracted(image_id))
        except UNREADABLE as error:
            self._lost[image_id] = type(error), escape_bytes(str(error))  # an error would keep the bytes in its frames
            return None
        except ImageError:
            return None

    def _extracted(self, image_id: int) -> bytes | None:
        """The content hash that was extracted, read with those of the other images of the task that are beside it."""
        block = image_id // HASH_BLOCK
        if block not in self._hashes:
            ids = sorted(i for i in self._order if i // HASH_BLOCK == block)
            self._hashes[block] = extracted_hashes(self._inputs.root.open(), self._features, ids)
        return self._hashes[block][image_id]

    @cached_property
    def _features(self) -> FeatureSet:
        return read_pinned_features(self._inputs.root.open(), self._inputs.exact)
