"""Which boxes each image has, where boxes are audited in place of images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.sources.fragments import table_name
from pipeline.sources.tabular import BOX, FILENAME, LabelTable, asked_names, match_rows, name_table


class Boxes(Protocol):
    """The boxes of images by the names of these."""

    def of(self, name: str, path: str) -> Sequence[str]:
        """Names of the boxes of an image (`kernels.boxes.box_name`), each once, sorted; none for one without.

        name: relative to its source; path: the whole one, or its URL.
        """
        ...


class SameBox:
    """One box for every image."""

    def __init__(self, name: str) -> None:
        self._names = (name,)

    def of(self, name: str, path: str) -> Sequence[str]:  # noqa: ARG002 - as every Boxes
        """That box."""
        return self._names


class ListedBoxes:
    """Boxes of a table of annotations, found by the name of their image as labels are (`tabular.match_rows`)."""

    def __init__(self, table: pa.Table) -> None:
        """Of each row, in any order, FILENAME and BOX; a row without one has none."""
        has_box = pc.fill_null(pc.not_equal(table[BOX], ""), False)
        listed = table.filter(has_box)
        coded = listed[FILENAME].cast(pa.large_string()).combine_chunks().dictionary_encode()
        codes = coded.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        self._names = name_table(coded.dictionary)
        self._boxes = listed[BOX].cast(pa.large_string()).combine_chunks().take(pa.array(order))
        self._starts = np.searchsorted(codes[order], np.arange(len(coded.dictionary) + 1))
        self._unboxed = table[FILENAME].filter(pc.invert(has_box)).cast(pa.large_string()).combine_chunks()

    @property
    def first(self) -> str:
        """The first image that it names, "" for none."""
        return str(self._names.names[0]) if len(self._names.names) else ""

    def of(self, name: str, path: str) -> Sequence[str]:
        """Its boxes."""
        (row,) = _rows([name], [path], self._names).tolist()
        return sorted(set(self._boxes[self._starts[row] : self._starts[row + 1]].to_pylist())) if row >= 0 else ()

    def have(self, names: Sequence[str], paths: Sequence[str]) -> bool:
        """Whether a row names any of some images, with a box or without."""
        return any((_rows(names, paths, table) >= 0).any() for table in (self._names, self._unboxed_names))

    @cached_property
    def _unboxed_names(self) -> LabelTable:
        """Those of rows without a box, made once asked for: most runs are not to ask, and spare 60 bytes a row."""
        return name_table(self._unboxed)


def _rows(names: Sequence[str], paths: Sequence[str], table: LabelTable) -> NDArray[np.int64]:
    """The row of each image, -1 for none."""
    return match_rows(asked_names([*map(table_name, names)], [*map(table_name, paths)], table), table)
