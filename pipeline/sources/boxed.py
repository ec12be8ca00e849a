"""Which boxes each image has, where boxes are audited in place of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Boxes(Protocol):
    """The boxes of images by the names of these."""

    def of(self, name: str) -> Sequence[str]:
        """Names of the boxes of an image (`kernels.boxes.box_name`), each once, sorted; none for one without."""
        ...


class SameBox:
    """One box for every image."""

    def __init__(self, name: str) -> None:
        self._names = (name,)

    def of(self, name: str) -> Sequence[str]:  # noqa: ARG002 - as every Boxes
        """That box."""
        return self._names


class ListedBoxes:
    """Boxes of a table: 16 bytes for each and their names, where a dict of lists takes some 400."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        """`rows`: names of images and of boxes, in any order, repeats allowed."""
        keys, boxes = _columns(rows)
        order = np.argsort(keys, kind="stable")
        self._keys, self._boxes = keys[order], boxes.take(pa.array(order))

    def of(self, name: str) -> Sequence[str]:
        """Its boxes."""
        first, last = (int(np.searchsorted(self._keys, _key(name), side)) for side in ("left", "right"))
        return sorted(set(self._boxes[first:last].to_pylist()))


def _columns(rows: Iterable[tuple[str, str]]) -> tuple[NDArray[np.uint64], pa.Array]:
    keys, names = [], []
    for image, box in rows:
        keys.append(_key(image))
        names.append(box)
    return np.array(keys, np.uint64), pa.array(names, pa.large_string())


def _key(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
