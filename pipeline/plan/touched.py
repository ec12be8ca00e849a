"""Files of which only the time changed: do they still have the bytes that were extracted?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AccessDenied, ArtifactError, CorruptObject, NotFound, ObjectChanged
from pipeline.kernels.hashing import content_hash
from pipeline.kernels.header import ImageError
from pipeline.layout.features import FeatureSet, list_features, read_feature_rows
from pipeline.layout.parts import cover
from pipeline.layout.root import Root
from pipeline.stages.catalog import Content, Touched
from pipeline.storage import read_ahead

log = logging.getLogger(__name__)


class KnownContent:
    """Compares touched files with what any model's features hold of them; a `Compare` of the catalog stage."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._features: list[FeatureSet] | None = None
        self._warned: set[str] = set()

    def __call__(self, touched: Sequence[Touched]) -> list[Content]:
        """What the bytes of each file are."""
        known = self._known(np.sort(np.array([file.image_id for file in touched], np.int64)))
        for file in touched:
            if not file.image.has_bytes:  # a frame or box: no hash of it tells whether its file has changed
                known.pop(file.image_id, None)
        # of two hashes none speaks for both models: the file was replaced between their runs
        asked = [file for file in touched if len(known.get(file.image_id, ())) == 1]
        hashes = dict(zip((file.image_id for file in asked), _hashes(asked, self._root), strict=True))
        return [_content(known.get(file.image_id), hashes.get(file.image_id)) for file in touched]

    def _known(self, ids: NDArray[np.int64]) -> dict[int, set[bytes]]:
        """The content hashes that features hold of each of some sorted ids; without those that none has a row of.

        A row without a hash was never read. Where a part is damaged nobody can tell, which is treated alike.
        """
        known: dict[int, set[bytes]] = {}
        for features in self._folders():
            for piece in cover(features.base, int(ids[0]), int(ids[-1]) + 1):
                inside = ids[slice(*np.searchsorted(ids, (piece.lo, piece.hi)))]
                hashes = self._read(features, inside) if len(inside) else []
                for image_id, value in zip(inside.tolist(), hashes, strict=True):
                    known.setdefault(image_id, set()).update([value] if value else [])
        return known

    def _read(self, features: FeatureSet, ids: NDArray[np.int64]) -> list[bytes | None]:
        lo, hi = int(ids[0]), int(ids[-1]) + 1
        try:
            rows = read_feature_rows(self._root.open(), features, lo, hi, ["content_hash"])
        except (ArtifactError, NotFound) as error:  # this audit may need none of it: another folder may know them
            if str(error) not in self._warned:
                log.warning("%s Until then touched files are not compared with what it knows of them.", error)
            self._warned.add(str(error))
            return [None] * len(ids)
        hashes: list[bytes | None] = rows["content_hash"].take(ids - lo).to_pylist()
        return hashes

    def _folders(self) -> list[FeatureSet]:
        if self._features is None:
            store = self._root.open()
            names = sorted({info.key.split("/")[1] for info in store.list("features/")})
            self._features = [list_features(store, f"features/{name}") for name in names]
        return self._features


def _content(known: set[bytes] | None, found: bytes | None) -> Content:
    if known is None:
        return Content.OTHER
    if not known:
        return Content.UNREAD
    return Content.SAME if found in known else Content.OTHER


def _hashes(files: Sequence[Touched], root: Root) -> Iterator[bytes | None]:
    """The content hash of each file now, in order; ahead on a disk too, for it may lie across a network."""
    return read_ahead(files, lambda file: _hash(file, root), lambda file: file.image.size)


def _hash(file: Touched, root: Root) -> bytes | None:
    try:
        return content_hash(file.image.read(root))
    except (
        NotFound,
        AccessDenied,
        ObjectChanged,
        CorruptObject,
        ImageError,
    ):  # a new row, whose status extraction finds
        return None
