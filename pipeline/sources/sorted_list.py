"""A list sorted by the raw bytes of its keys, each image or box once, and the splits and labels that it gives."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.sources.listed import LISTED
from pipeline.sources.repeats import Repeats, first_rows

BLOCK_ROWS = 65_536
NONE = -1
_LIMIT = "a list names at most 2 GB of paths"


def sorted_batches(batches: Iterable[pa.RecordBatch], repeats: Repeats) -> Iterator[pa.RecordBatch]:
    """The first row of each image and box of batches of LISTED, by raw key, an image before its boxes.

    The whole list is held: its rows, their order (8 bytes each), and one block of them again.
    """
    table = _joined(pa.Table.from_batches(batches, LISTED))
    keys = pa.table({"key": raw_keys(table), "box": pc.fill_null(table["fragment"], ""), "row": table["row"]})
    by = [(name, "ascending") for name in keys.column_names]
    order = pc.sort_indices(keys, sort_keys=by)
    del keys
    (rows,) = table.to_batches() or [pa.RecordBatch.from_pylist([], LISTED)]
    blocks = (rows.take(order.slice(at, BLOCK_ROWS)) for at in range(0, len(order), BLOCK_ROWS))
    yield from first_rows(blocks, repeats)


def _joined(table: pa.Table) -> pa.Table:
    """The table in one chunk, column by column, so that it is not held twice."""
    for place, name in enumerate(table.column_names):
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray) and column.num_chunks > 1:
            raise UsageError(f"{_LIMIT}: cut it into several, each a source of its own")
        table = table.set_column(place, table.schema.field(name), column)
    return table


def raw_keys(rows: pa.Table | pa.RecordBatch) -> pa.Array:
    """The bytes of the addresses of LISTED."""
    return pc.coalesce(rows["raw_address"], rows["address"].cast(pa.binary()))


@dataclass(frozen=True)
class Given:
    """Splits and labels of a list. names: sorted hashes uint64 of what has one (`given_name`); splits, labels: their
    codes int32 in the texts beside them, NONE for none; None where the list gives none at all.

    folder: what all whole paths and URLs of the list lie in, "" without any.
    """

    names: NDArray[np.uint64]
    splits: NDArray[np.int32]
    labels: NDArray[np.int32]
    split_texts: tuple[str, ...]
    label_texts: tuple[str, ...]
    folder: str

    def values_of(self, names: Sequence[tuple[bytes, str]]) -> tuple[list[str | None] | None, list[str | None] | None]:
        """Split and label of each (raw key, box); those of the image where a box has no row; None without a column."""
        rows = self._rows([given_name(*name) for name in names])
        left = [at for at in np.flatnonzero(rows < 0).tolist() if names[at][1]]
        rows[left] = self._rows([given_name(names[at][0], "") for at in left])
        columns = ((self.splits, self.split_texts), (self.labels, self.label_texts))
        found = [_texts(codes, texts, rows) if texts else None for codes, texts in columns]
        return found[0], found[1]

    def _rows(self, names: Sequence[int]) -> NDArray[np.int64]:
        wanted = np.array(names, np.uint64)
        if not len(self.names):
            return np.full(len(wanted), NONE, np.int64)
        places = np.minimum(np.searchsorted(self.names, wanted), len(self.names) - 1)
        return np.where(self.names[places] == wanted, places, NONE)


def given_name(raw_key: bytes, box: str) -> int:
    """Hash of an image ("" for the box), or of a box of it."""
    digest = hashlib.blake2b(raw_key + b"\0" + box.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass
class GivenRows:
    """Collects what a list gives, 16 bytes a row."""

    _names: array[int] = field(default_factory=lambda: array("Q"))
    _codes: tuple[array[int], array[int]] = field(default_factory=lambda: (array("i"), array("i")))
    _texts: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    _edges: list[bytes] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds sorted rows of LISTED."""
        keys = raw_keys(batch).to_pylist()
        whole = [key for key in keys if key.startswith((b"/", b"s3://", b"minio://"))]
        if whole:
            self._edges = [*(self._edges[:1] or whole[:1]), whole[-1]]
        is_given = pc.or_(pc.is_valid(batch["split"]), pc.is_valid(batch["label"])).to_numpy(zero_copy_only=False)
        at = np.flatnonzero(is_given)
        boxes = batch["fragment"].take(pa.array(at)).to_pylist()
        self._names.extend(given_name(keys[row], box or "") for row, box in zip(at.tolist(), boxes, strict=True))
        for name, codes, texts in zip(("split", "label"), self._codes, self._texts, strict=True):
            values = batch[name].take(pa.array(at)).to_pylist()
            codes.extend(NONE if value is None else texts.setdefault(value, len(texts)) for value in values)

    def given(self) -> Given:
        """What the list gives."""
        names = np.array(self._names, np.uint64)
        order = np.argsort(names, kind="stable")
        splits, labels = (np.array(codes, np.int32)[order] for codes in self._codes)
        split_texts, label_texts = (tuple(texts) for texts in self._texts)
        return Given(names[order], splits, labels, split_texts, label_texts, _folder_of(self._edges))


def _folder_of(edges: Sequence[bytes]) -> str:
    """The folder that sorted keys share, by the first and the last of them."""
    folders = [key.rpartition(b"/")[0].split(b"/") for key in edges]
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(folders[0], folders[-1], strict=False)) if folders else ()
    return b"/".join(one for one, _ in shared).decode("utf-8", "surrogateescape")


def _texts(codes: NDArray[np.int32], texts: tuple[str, ...], rows: NDArray[np.int64]) -> list[str | None]:
    values: list[str | None] = [*texts, None]
    found = np.full(len(rows), NONE, np.int32)
    found[rows >= 0] = codes[rows[rows >= 0]]
    return [values[code] for code in found.tolist()]
