"""Splits and labels from a table, matched to paths by hash: memory stays near that of the table."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.addresses import is_absolute
from pipeline.sources.fragments import table_name

FILENAME, SPLIT, LABEL = "filename", "split", "label"
BOX = "#box"
"""The column of boxes in what `annotated.normal_table` makes of annotations."""

_BLOCK = 65_536
"""Names that are Python's at a time: as such they take 110 bytes each."""


@dataclass(frozen=True)
class Coded:
    """A column of few values: the values, then None; and each row's place in them, int32 (n,)."""

    values: list[str | None]
    codes: npt.NDArray[np.int32]


@dataclass(frozen=True)
class LabelTable:
    """A loaded table of n rows, and the sorted hashes that find a row.

    names: string (n,). splits, labels: None where the table has no such column.
    path_keys, path_rows: uint64 and int64 (n,), sorted by key. base_keys, base_rows: the same for the part of a name
    after its last `/`, only those that a single row has. has_whole: one of the names is a whole path or URL.
    """

    names: pa.Array
    splits: Coded | None
    labels: Coded | None
    path_keys: npt.NDArray[np.uint64]
    path_rows: npt.NDArray[np.int64]
    base_keys: npt.NDArray[np.uint64]
    base_rows: npt.NDArray[np.int64]
    has_whole: bool
    has_boxes: bool = False


def read_label_table(data: bytes, address: str) -> LabelTable:
    """A table as `annotated.normal_table` makes it, a row per image or box; `address` is for messages.

    An image in an archive may be named as its uri is. A column without any value is left out.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"table {address} cannot be read ({error}): write it anew") from error
    names, splits, labels = _row_names(table), _encode(table, SPLIT), _encode(table, LABEL)
    return replace(name_table(names), splits=splits, labels=labels, has_boxes=BOX in table.column_names)


def name_table(names: pa.Array) -> LabelTable:
    """A table of names alone, large_string (n,)."""
    paths, bases, has_whole = [_keys([])], [_keys([])], False
    for at in range(0, len(names), _BLOCK):
        block = names[at : at + _BLOCK].to_pylist()
        paths.append(_keys(block))
        bases.append(_keys([name.rpartition("/")[2] for name in block]))
        has_whole = has_whole or any(map(is_absolute, block))
    path_keys, path_rows = _sorted(np.concatenate(paths))
    base_keys, base_rows = _only_single(*_sorted(np.concatenate(bases)))
    return LabelTable(names, None, None, path_keys, path_rows, base_keys, base_rows, has_whole)


def _row_names(table: pa.Table) -> pa.Array:
    """What each row names, an image or a box of one."""
    named = list[pa.Array]()
    for block in table.select([name for name in (FILENAME, BOX) if name in table.column_names]).to_batches(_BLOCK):
        names = [table_name(name.removeprefix("./")) for name in block[FILENAME].to_pylist()]
        boxes = block[BOX].to_pylist() if BOX in block.schema.names else [None] * len(names)
        texts = [f"{name}#{box}" if box else name for name, box in zip(names, boxes, strict=True)]
        named.append(pa.array(texts, pa.large_string()))
    return pa.chunked_array(named, pa.large_string()).combine_chunks()


def match_rows(paths: Sequence[str], table: LabelTable) -> npt.NDArray[np.int64]:
    """Row of the table for each path, int64 (len(paths),), -1 where none.

    By the whole relative path; else by the file's own name where a single row has it and one of the two names ends in
    the other (`cat/1.jpg` in the table finds `train/cat/1.jpg`, and never `dog/1.jpg`).
    """
    rows = _look_up(_keys(paths), table.path_keys, table.path_rows)
    missing = np.flatnonzero(rows < 0)
    if missing.size and table.base_keys.size:
        left = [paths[i] for i in missing.tolist()]
        found = _look_up(_keys([path.rpartition("/")[2] for path in left]), table.base_keys, table.base_rows)
        hits = np.flatnonzero(found >= 0)
        names = table.names.take(pa.array(found[hits])).to_pylist()
        agree = np.array([_one_ends_in_other(left[i], name) for i, name in zip(hits, names, strict=True)], dtype=bool)
        rows[missing[hits[agree]]] = found[hits[agree]]
    return rows


def asked_names(names: Sequence[str], paths: Sequence[str], table: LabelTable) -> list[str]:
    """What a table is asked for: the whole path where it has that one, else the name relative to the source."""
    return known_names(names, paths, table) if table.has_whole else list(names)


def known_names(names: Sequence[str], others: Sequence[str], table: LabelTable) -> list[str]:
    """The names; in place of each the other one where the table has that."""
    rows = _look_up(_keys(others), table.path_keys, table.path_rows)
    return [other if row >= 0 else name for name, other, row in zip(names, others, rows.tolist(), strict=True)]


def values_at(column: Coded, rows: npt.NDArray[np.int64]) -> list[str | None]:
    """Values of a column at `rows`; None at -1 and where the table has none."""
    codes = np.full(len(rows), -1, dtype=np.int32)
    codes[rows >= 0] = column.codes[rows[rows >= 0]]
    values = column.values
    return [values[code] for code in codes.tolist()]


def _encode(table: pa.Table, name: str) -> Coded | None:
    if name not in table.column_names or table[name].null_count == table.num_rows:
        return None
    encoded = table[name].combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Coded([*encoded.dictionary.to_pylist(), None], codes)


def _keys(names: Sequence[str]) -> npt.NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8")


def _sorted(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    rows = np.argsort(keys, kind="stable").astype(np.int64)
    return keys[rows], rows


def _only_single(
    keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    same = keys[1:] == keys[:-1]
    single = ~(np.concatenate([[False], same]) | np.concatenate([same, [False]]))[: len(keys)]
    return keys[single], rows[single]


def _look_up(
    wanted: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    if not keys.size:
        return np.full(len(wanted), -1, dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, rows[places], np.int64(-1))


def _one_ends_in_other(path: str, name: str) -> bool:
    return f"/{path}".endswith(f"/{name}") or f"/{name}".endswith(f"/{path}")
