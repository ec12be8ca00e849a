"""Groups at rest: the forest of duplicates and near-duplicates in ranges of ids, and which groups were split.

A folder holds `forest-<lo>-<hi>.parquet` for every range of the grid that the snapshot reaches into, sorted by
image_id, and `split.json`. Nothing but a reader of everything reads more of it than its own ids need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, NotFound
from pipeline.kernels.components import Forest, SpanningRows, empty_forest
from pipeline.kernels.splitting import Pieces
from pipeline.layout.parts import Part, list_parts, part_name
from pipeline.layout.root import kept
from pipeline.layout.tables import damaged, read_json, read_table, way_out, write_json, write_table
from pipeline.storage import Store, is_remote, read_ahead

FOREST, STARS, SPANS = "forest", "stars", "spans"
SPLIT = "split.json"
PIECES, SPLITS, LARGE = "pieces.parquet", "splits.parquet", "large.parquet"
FOREST_IDS = 1 << 22
"""Ids of a part: at most 4M rows."""

Int64 = NDArray[np.int64]
T = TypeVar("T")
_ROW_BYTES = 16

STAR_SCHEMA = pa.schema([pa.field("image_id", pa.int64()), pa.field("group_id", pa.int64())])
SPAN_SCHEMA = pa.schema(
    [pa.field("image_id", pa.int64()), pa.field("match_id", pa.int64()), pa.field("level", pa.int16())]
)
SPLIT_SCHEMA = pa.schema(
    [pa.field("group_id", pa.int64()), pa.field("component_id", pa.int64()), pa.field("similarity", pa.float64())]
)
"""A piece of a component that was split, by group_id, and the similarity that near-duplicates in it had to have.

A piece of one image is no group, and has its row."""


PIECE_SCHEMA = pa.schema(
    [pa.field("image_id", pa.int64()), pa.field("piece_id", pa.int64()), pa.field("level", pa.int16())]
)
LARGE_SCHEMA = pa.schema(
    [
        pa.field("component_id", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("is_wide", pa.bool_()),
        pa.field("is_split", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Large:
    """Components over the limit of size, ascending: id and different images int64 (n,), whether they are too wide, and
    whether they are split.
    """

    component_id: Int64
    size: Int64
    is_wide: NDArray[np.bool_]
    is_split: NDArray[np.bool_]

    @property
    def split(self) -> Int64:
        """Those that are split."""
        return self.component_id[self.is_split]

    @property
    def left(self) -> int:
        """How many are too wide and stay whole."""
        return int((self.is_wide & ~self.is_split).sum())


@dataclass(frozen=True)
class Splits:
    """The pieces of components that were split, by ascending group_id (n,): int64, int64, float64."""

    group_id: Int64
    component_id: Int64
    similarity: NDArray[np.float64]


def read_forest(store: Store, folder: str) -> Forest:
    """The star forest of a groups folder, all of it: every member of a group -> its smallest id.

    Read once per process, 16 bytes a member: tasks of a stage would each read it again.
    """
    return kept(store, folder, lambda: _read_all(store, folder))


def _read_all(store: Store, folder: str) -> Forest:
    parts = list_parts(store, folder, FOREST)
    if not parts:
        raise ArtifactError(f"{store.uri}/{folder}: its forest is gone. {way_out(folder, is_there=False)}")
    return _joined([*_in_order(store, parts, lambda part: read_stars(store, part.key))])


def stars_between(store: Store, parts: Sequence[Part], lo: int, hi: int) -> Iterator[Forest]:
    """The rows of each of some forests, whatever they are named by, whose image_id is in [lo, hi)."""
    return _in_order(store, parts, lambda part: _between(store, part.key, lo, hi), hi - lo)


def labels_of(store: Store, folder: str, ids: Int64) -> Int64:
    """The group of each id (any order): its own where it is alone. Costs by how many row groups hold them."""
    return labels_among(store, list_parts(store, folder, FOREST), ids)


def labels_among(store: Store, parts: Sequence[Part], ids: Int64) -> Int64:
    """`labels_of` for parts that are listed already."""
    wanted, inverse = np.unique(ids, return_inverse=True)
    labels = wanted.astype(np.int64)
    for part in parts:
        first, last = np.searchsorted(wanted, [part.lo, part.hi])
        if first < last:
            _look_up(store, part.key, wanted[first:last], labels[first:last])
    return np.asarray(labels[inverse.ravel()])


def read_splits(store: Store, folder: str) -> Splits:
    """Which groups are pieces of a component that was split. Raises ArtifactError."""
    if not read_split_summary(store, folder)["components"]:
        return Splits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    rows = read_table(store, f"{folder}/{SPLITS}")
    return Splits(*(rows[name].to_numpy() for name in SPLIT_SCHEMA.names))


def read_split_summary(store: Store, folder: str) -> dict[str, Any]:
    """Components that were split, different images in them and in the largest, their pieces, and those left whole."""
    try:
        found: dict[str, Any] = read_json(store, f"{folder}/{SPLIT}")
    except NotFound as error:
        raise ArtifactError(f"{store.uri}/{folder}/{SPLIT}: it is gone. {way_out(folder, is_there=False)}") from error
    return found


def forest_ranges(total: int, size: int = FOREST_IDS) -> list[tuple[int, int]]:
    """The ranges of a forest over so many ids: a grid, whatever the snapshot."""
    return [(lo, lo + size) for lo in range(0, max(total, 1), size)]


def forest_key(folder: str, bounds: tuple[int, int]) -> str:
    """Key of the part of a forest that holds a range."""
    return f"{folder}/{part_name(FOREST, *bounds)}"


def forest_parts(folder: str, ranges: Iterable[tuple[int, int]]) -> list[Part]:
    """The parts of a forest by name, so that none is missing unseen."""
    return [Part(*bounds, 0, forest_key(folder, bounds)) for bounds in ranges]


def write_stars(store: Store, key: str, forest: Forest) -> None:
    """Commits a forest, or one range of it."""
    write_table(store, key, pa.table([forest.child, forest.root], schema=STAR_SCHEMA))


def read_stars(store: Store, key: str) -> Forest:
    """A forest that was committed as one file. Raises ArtifactError."""
    return _as_forest(read_table(store, key))


def star_files(store: Store, parts: Sequence[Part]) -> Callable[[], Iterator[Forest]]:
    """What reads the forests of some parts, one at a time, as often as it is called."""
    return lambda: _in_order(store, parts, lambda part: read_stars(store, part.key))


def write_spans(store: Store, key: str, rows: SpanningRows) -> None:
    """Commits the edges that hold large groups together."""
    write_table(store, key, pa.table([rows.a, rows.b, rows.level], schema=SPAN_SCHEMA))


def read_spans(store: Store, folder: str) -> Iterator[SpanningRows]:
    """The edges that hold large groups together, task by task."""
    tables = _in_order(store, list_parts(store, folder, SPANS), lambda part: read_table(store, part.key))
    for rows in tables:
        yield SpanningRows(*(rows[name].to_numpy() for name in SPAN_SCHEMA.names))


def write_large(store: Store, work: str, large: Large) -> None:
    """Commits the components over the limit of size."""
    write_table(store, f"{work}/{LARGE}", pa.table([*vars(large).values()], schema=LARGE_SCHEMA))


def read_large(store: Store, work: str) -> Large:
    """The components over the limit of size."""
    rows = read_table(store, f"{work}/{LARGE}")
    return Large(*(rows[name].to_numpy() for name in LARGE_SCHEMA.names))


def write_pieces(store: Store, work: str, pieces: Pieces) -> None:
    """Commits the piece of each image of split components."""
    write_table(store, f"{work}/{PIECES}", pa.table([*pieces], schema=PIECE_SCHEMA))


def read_pieces(store: Store, work: str) -> Pieces:
    """The piece of each image of split components."""
    rows = read_table(store, f"{work}/{PIECES}")
    return Pieces(*(rows[name].to_numpy() for name in PIECE_SCHEMA.names))


def write_split(store: Store, folder: str, splits: Splits, sizes: Int64, left: int) -> None:
    """Commits which groups are pieces of which component. sizes: different images of each; left: too wide components
    that stay whole.
    """
    components, owner = np.unique(splits.component_id, return_inverse=True)
    write_table(store, f"{folder}/{SPLITS}", pa.table([*vars(splits).values()], schema=SPLIT_SCHEMA))
    summary = {
        "components": len(components),
        "different_images": int(sizes.sum()),
        "largest": int(np.bincount(owner.ravel(), sizes).max(initial=0)),
        "pieces": len(splits.group_id),
        "left_whole": left,
    }
    write_json(store, f"{folder}/{SPLIT}", summary)


def _in_order(store: Store, parts: Sequence[Part], read: Callable[[Part], T], most: int = FOREST_IDS) -> Iterator[T]:
    """What `read` gives for each part, in order; read ahead as far as parts of at most so many rows leave room."""
    if not is_remote(store.uri):
        return map(read, parts)
    return read_ahead(parts, read, lambda part: _ROW_BYTES * min(part.hi - part.lo, most))


def _as_forest(rows: pa.Table) -> Forest:
    return Forest(rows["image_id"].to_numpy(), rows["group_id"].to_numpy())


def _joined(forests: Sequence[Forest]) -> Forest:
    """Forests of ascending ranges as one."""
    if not forests:
        return empty_forest()
    return Forest(*(np.concatenate([forest[side] for forest in forests]) for side in (0, 1)))


def _between(store: Store, key: str, lo: int, hi: int) -> Forest:
    rows = _row_groups(store, key, lambda low, high: (low < hi) & (high >= lo))
    first, last = np.searchsorted(rows.child, [lo, hi])
    return Forest(rows.child[first:last], rows.root[first:last])


def _look_up(store: Store, key: str, wanted: Int64, labels: Int64) -> None:
    """Writes the roots of those ids (ascending) that a part names into their labels."""

    def holds_one(low: Int64, high: Int64) -> NDArray[np.bool_]:
        return np.asarray(np.searchsorted(wanted, low, "left") < np.searchsorted(wanted, high, "right"))

    rows = _row_groups(store, key, holds_one)
    if len(rows.child):
        at = np.minimum(np.searchsorted(rows.child, wanted), len(rows.child) - 1)
        is_child = rows.child[at] == wanted
        labels[is_child] = rows.root[at[is_child]]


def _row_groups(store: Store, key: str, is_wanted: Callable[[Int64, Int64], NDArray[np.bool_]]) -> Forest:
    """The row groups of a part whose smallest and largest image_id are wanted."""
    path = store.local_path(key)
    try:
        source: Any = str(path) if path is not None else store.open(key)
        # without a buffer, each column of each row group is a request of its own
        with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=path is None) as file:
            every = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
            found = [group.column(0).statistics for group in every if group.num_rows]
            low, high = (np.array([getattr(item, side) for item in found], np.int64) for side in ("min", "max"))
            chosen = np.flatnonzero(is_wanted(low, high)).tolist() if found else []
            return _as_forest(file.read_row_groups(chosen, use_threads=False)) if chosen else empty_forest()
    except (FileNotFoundError, NotFound) as error:
        raise ArtifactError(f"{store.uri}/{key}: the part is gone. {way_out(key, is_there=False)}") from error
    except (OSError, ValueError, KeyError, EOFError, AttributeError, pa.ArrowException) as error:
        raise damaged(store, key, error) from error
