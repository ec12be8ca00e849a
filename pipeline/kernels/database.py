"""The searchable rows of one partition, by list, and their cells: the rows of a list that count for one split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.sampling import mix

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]

MAX_SPLITS = 64
# Similarities are rounded to so many decimals before they are compared: with each other or with a threshold.
DECIMALS = 6
# How far the float32 similarity of unit vectors may lie from the exact one, with room to spare; see the tests.
FLOAT32_ERROR = 5e-6
# The same of vectors of the copy space that were stored as float16; seen: 1.5e-4.
FLOAT16_ERROR = 5e-4
_CHUNK_ROWS = 65_536
_HALF_EXPONENT = np.int16(0x7C00)
_HALF_BITS = np.int32(-0x70002000)  # the sign and, 13 bits up, the exponent and fraction of a float16
_NORM_ROWS = 256  # float64 copies that stay in the cache


@dataclass(frozen=True)
class Database:
    """Rows by ascending (list_id, id): ids int64 (n,), vectors float16 or float32 (n, d), split_mask uint64 (n,).

    list_id int32 (n,); scale float64 (n,) = 1 / norm, so that a similarity is the cosine of the vectors as stored;
    parent int64 (n,): whose rows are siblings (`kernels.siblings`), None where there are none. Built by
    `build_database`.
    """

    ids: Int64
    vectors: NDArray[np.floating]
    split_mask: UInt64
    list_id: Int32
    scale: Float64
    parent: Int64 | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def unit(self, rows: Int64 | slice) -> Float32:
        """Return rows as unit float32 vectors (r, d): what the fast search sees."""
        return unit_vectors(self.vectors[rows], self.scale[rows])


class Cells(NamedTuple):
    """`rows[start[i] : start[i + 1]]`, ascending, are the rows of list `list_id[i]` that count for split `split[i]`."""

    list_id: Int32
    split: Int64
    start: Int64
    rows: Int64


def searchable_rows(vectors: NDArray[np.floating]) -> Mask:
    """Return which rows have a direction: finite, and not zero. Leave the others out before any search.

    vectors (n, d); returns bool (n,).
    """
    norm = _squared_norm(vectors)
    return np.asarray(np.isfinite(norm) & (norm > 0))


def unit_scale(vectors: NDArray[np.floating], where: str) -> Float64:
    """Return 1 / norm of every row, float64 (n,). Raises UsageError for a zero, NaN or infinite row."""
    norm = _squared_norm(vectors)
    if not (is_usable := np.isfinite(norm) & (norm > 0)).all():
        raise UsageError(
            f"{where}: {int((~is_usable).sum())} of {len(vectors)} vectors are zero, NaN or infinite, the first in row"
            f" {int(np.argmin(is_usable))}; leave out what searchable_rows() rejects"
        )
    return np.asarray(1 / np.sqrt(norm), dtype=np.float64)


def unit_vectors(vectors: NDArray[np.floating], scale: Float64) -> Float32:
    """Return the rows times their scale as contiguous float32 (n, d)."""
    unit = widened(vectors)
    unit *= scale.astype(np.float32)[:, None]
    return unit


def widened(vectors: NDArray[np.floating]) -> Float32:
    """Return a copy as contiguous float32: 0.6 ns a number of finite float16, where numpy's own cast takes 2.3."""
    if vectors.dtype != np.float16:
        return vectors.astype(np.float32)
    halves = np.ascontiguousarray(vectors).view(np.int16)
    wide = halves.astype(np.int32)
    if ((halves & _HALF_EXPONENT) == _HALF_EXPONENT).any():  # infinite or NaN
        return vectors.astype(np.float32)
    wide <<= 13
    wide &= _HALF_BITS
    unit = wide.view(np.float32)
    unit *= np.float32(2**112)  # the exponents of float16 count from -15, those of float32 from -127
    return unit


def _squared_norm(vectors: NDArray[np.floating]) -> Float64:
    norm = np.empty(len(vectors))
    for start in range(0, len(vectors), _NORM_ROWS):
        wide = vectors[start : start + _NORM_ROWS].astype(np.float64)
        norm[start : start + _NORM_ROWS] = np.einsum("nd,nd->n", wide, wide)
    return norm


def split_masks(split: NDArray[np.integer]) -> UInt64:
    """Return the mask with the bit of each image's split: split int (n,), 0 to 63; returns uint64 (n,).

    Raises UsageError for a split outside 0 to 63.
    """
    if len(split) and (int(split.min()) < 0 or int(split.max()) >= MAX_SPLITS):
        raise UsageError(f"join: splits {int(split.min())} to {int(split.max())}, want 0 to 63: merge some splits")
    return np.asarray(np.left_shift(np.uint64(1), split.astype(np.uint64)), dtype=np.uint64)


def build_database(
    ids: Int64,
    vectors: NDArray[np.floating],
    split_mask: UInt64,
    list_id: NDArray[np.integer],
    parent: Int64 | None = None,
) -> Database:
    """Return the rows of one partition, in any order on entry, as a Database.

    ids int64 (n,), unique; vectors float16 or float32 (n, d), finite, not zero, of any length; split_mask uint64 (n,),
    not 0; list_id int (n,), >= 0, a row's own list; parent int64 (n,) or None. Raises UsageError for anything else.
    """
    count = len(ids)
    problems = []
    if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
        problems.append(f"vectors are {vectors.dtype} {vectors.shape}, want float16 or float32 (n, d)")
    if not len(vectors) == len(split_mask) == len(list_id) == count:
        problems.append(
            f"{count} ids, {len(vectors)} vectors, {len(split_mask)} masks, {len(list_id)} lists, want equal"
        )
    if count and len(list_id) and int(list_id.min()) < 0:
        problems.append("a list id is negative")
    if count and not np.asarray(split_mask).all():
        problems.append("a row is in no split (mask 0)")
    if problems:
        raise UsageError("join: " + "; ".join(problems))
    unit_scale(vectors, "join")  # names the row as it came
    order = np.lexsort((ids, list_id))
    parents = None if parent is None else parent[order]
    ordered = (ids[order], np.ascontiguousarray(vectors[order]), split_mask[order], list_id[order])
    return ordered_database(*ordered, parents)


def ordered_database(
    ids: Int64,
    vectors: NDArray[np.floating],
    split_mask: UInt64,
    list_id: NDArray[np.integer],
    parent: Int64 | None = None,
) -> Database:
    """Return rows that are by (list_id, id) already as a Database, without a copy of the vectors.

    Raises UsageError for an id that is there twice, zero or NaN rows.
    """
    ids = np.asarray(ids, dtype=np.int64)
    if (repeats := len(ids) - len(np.unique(ids))) > 0:
        raise UsageError(f"join: {repeats} ids occur twice; a row has one list")
    scale = unit_scale(vectors, "join")
    masks, lists = np.asarray(split_mask, np.uint64), np.asarray(list_id, np.int32)
    return Database(ids, vectors, masks, lists, scale, parent)


def database_cells(db: Database, keep: int) -> Cells:
    """Return the cells of a database, without the rows that can be in no answer of fewer than `keep` rows.

    Such a row has `keep` others of smaller id and the same vector in its cell, siblings of its own where it has a
    parent: to what is no sibling of theirs they are nearer, and siblings do not find them. Without this rule, 5,000
    copies of one vector would make every boundary of a neighbour list a tie.
    """
    present = int(np.bitwise_or.reduce(db.split_mask)) if len(db) else 0
    splits = [s for s in range(MAX_SPLITS) if present >> s & 1]
    rows_by_split = [np.flatnonzero(db.split_mask & np.uint64(1 << s)) for s in splits]
    rows = np.concatenate([np.empty(0, dtype=np.int64), *rows_by_split])
    split = np.repeat(np.array(splits, dtype=np.int64), [len(r) for r in rows_by_split])
    order = np.argsort(db.list_id[rows], kind="stable")
    rows, split = rows[order], split[order]
    is_kept = _not_superfluous(db, rows, split, keep)
    rows, split = rows[is_kept], split[is_kept]
    if len(rows) == 0:
        return Cells(np.empty(0, dtype=np.int32), split, np.zeros(1, dtype=np.int64), rows)
    list_id = db.list_id[rows]
    changes = (list_id[1:] != list_id[:-1]) | (split[1:] != split[:-1])
    start = np.concatenate([[0], np.flatnonzero(changes) + 1])
    return Cells(list_id[start], split[start], np.append(start, len(rows)), rows)


def list_cells(db: Database) -> Cells:
    """Return one cell per list with all its rows, as split 0."""
    lists, start = np.unique(db.list_id, return_index=True)
    return Cells(lists, np.zeros(len(lists), dtype=np.int64), np.append(start, len(db)), np.arange(len(db)))


def visits(cells: Cells, probes: Int32) -> Iterator[tuple[Int64, int, Int64]]:
    """Yield (database rows, at most 65,536 of them; their cell; the queries that probe its list).

    probes int32 (n, nprobe): a list named twice is visited once, one that has no cell never.
    """
    query = np.repeat(np.arange(len(probes)), probes.shape[1])
    visited = probes.ravel()
    order = np.lexsort((query, visited))
    query, visited = query[order], visited[order]
    is_new = np.ones(len(query), dtype=bool)
    is_new[1:] = (query[1:] != query[:-1]) | (visited[1:] != visited[:-1])
    query, visited = query[is_new], visited[is_new]
    first = np.searchsorted(visited, cells.list_id, side="left")
    last = np.searchsorted(visited, cells.list_id, side="right")
    for cell in np.flatnonzero(last > first).tolist():
        visitors = query[first[cell] : last[cell]]
        stop = int(cells.start[cell + 1])
        for start in range(int(cells.start[cell]), stop, _CHUNK_ROWS):
            yield cells.rows[start : min(start + _CHUNK_ROWS, stop)], cell, visitors


def _not_superfluous(db: Database, rows: Int64, split: Int64, keep: int) -> Mask:
    """Return which (row, split) entries have fewer than `keep` equal vectors of smaller id in their cell and parent."""
    is_kept = np.ones(len(rows), dtype=bool)
    hashed = _row_hash(db.vectors)
    if db.parent is not None:
        hashed = hashed ^ mix(db.parent)
    _, inverse, count = np.unique(hashed, return_inverse=True, return_counts=True)
    suspects = np.flatnonzero(count[inverse[rows]] > keep)
    if len(suspects) == 0:
        return is_kept
    suspect_rows = rows[suspects]
    key = np.stack([split[suspects], db.list_id[suspect_rows].astype(np.int64), inverse[suspect_rows]])
    order = np.lexsort((suspect_rows, *key))
    key, suspects, suspect_rows = key[:, order], suspects[order], suspect_rows[order]
    starts_run = np.concatenate([[True], (key[:, 1:] != key[:, :-1]).any(axis=0)])
    run_start = np.flatnonzero(starts_run)[np.cumsum(starts_run) - 1]
    is_over = np.arange(len(suspects)) - run_start >= keep
    drop, first = suspects[is_over], suspect_rows[run_start[is_over]]
    for at in range(0, len(drop), _CHUNK_ROWS):  # 64 bits may collide; a dropped row is compared in full
        block = slice(at, at + _CHUNK_ROWS)
        one, other = rows[drop[block]], first[block]
        is_kept[drop[block]] = (db.vectors[one] != db.vectors[other]).any(axis=1)
        if db.parent is not None:
            is_kept[drop[block]] |= db.parent[one] != db.parent[other]
    return is_kept


def _row_hash(vectors: NDArray[np.floating]) -> UInt64:
    """Return 64 bits per row, equal for rows of equal bytes: 14,034 x 320 float32 in 3 ms, number by number 32."""
    rows = np.ascontiguousarray(vectors)
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    words = rows.view(next(f"u{size}" for size in (8, 4, 2) if row_bytes % size == 0))
    drawn = np.random.default_rng(0).integers(0, 1 << 63, size=words.shape[1], dtype=np.uint64)
    odd = drawn * np.uint64(2) + np.uint64(1)
    hashed = np.empty(len(words), dtype=np.uint64)
    for start in range(0, len(words), _NORM_ROWS):
        block = words[start : start + _NORM_ROWS].astype(np.uint64, copy=False)
        hashed[start : start + _NORM_ROWS] = np.einsum("nd,d->n", block, odd)
    return hashed
