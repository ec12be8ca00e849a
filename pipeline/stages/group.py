"""Group stages: verified edges to star forests, forests to one, and that with the exact copies to groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.components import (
    Forest,
    Touched,
    group_sizes,
    labels_for,
    star_forest,
    touched_ids,
    union_forests,
)
from pipeline.kernels.splitting import GroupParams, Pieces
from pipeline.layout.edges import each_in_order
from pipeline.layout.exact import ExactGroups
from pipeline.layout.groups import (
    STARS,
    Int64,
    forest_key,
    forest_parts,
    labels_among,
    read_pieces,
    read_stars,
    star_files,
    write_stars,
)
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import EDGES, read_edges
from pipeline.layout.parts import Part, cover, list_parts, part_name
from pipeline.layout.root import Root
from pipeline.runner import Counters
from pipeline.schemas import EXACT_DUPLICATES, GROUPING_KINDS
from pipeline.storage import Store

VERSION = 2
EDGE_COLUMNS = ("image_id", "match_id", "kind", "similarity")


@dataclass(frozen=True)
class GroupSpec:
    """Verified edges and exact groups of one audit, to be joined into groups; the ranges of ids of the forest."""

    inputs: Inputs
    edges: str
    space: str
    threshold: float
    params: GroupParams
    folder: str
    ranges: tuple[tuple[int, int], ...]

    @property
    def total(self) -> int:
        """One more than the largest id there may be."""
        return self.ranges[-1][1]


@dataclass(frozen=True)
class StarSpec:
    """The pairs [lo, hi) of a folder of edges, to be reduced to a star forest."""

    root: Root
    edges: str
    folder: str
    lo: int
    hi: int


@dataclass(frozen=True)
class UniteSpec:
    """Star forests, to be reduced to one: in a file, or in one for each range of ids. total: ids there may be."""

    root: Root
    parts: tuple[Part, ...]
    total: int
    memory_bytes: int
    folder: str
    ranges: tuple[tuple[int, int], ...] = ()
    name: str = ""


@dataclass(frozen=True)
class FinishSpec:
    """A range of ids of the final forest: near-duplicates from `near`, pieces from `work`, and the exact copies."""

    whole: GroupSpec
    near: str
    work: str
    lo: int
    hi: int


def reduce_edges(spec: StarSpec) -> Counters:
    """Commits the star forest of some verified pairs."""
    store = spec.root.open()
    edges = joining_edges(store, spec.edges, spec.lo, spec.hi)
    forest = star_forest(edges["image_id"].to_numpy(), edges["match_id"].to_numpy())
    write_stars(store, f"{spec.folder}/{part_name(STARS, spec.lo, spec.hi)}", forest)
    return {"joined": len(forest.child)}


def merge_stars(spec: UniteSpec) -> Counters:
    """Commits one forest instead of several."""
    store = spec.root.open()
    slices = [*_united(store, spec)]
    forest = Forest(*(np.concatenate([piece[side] for piece in slices]) for side in (0, 1)))
    write_stars(store, f"{spec.folder}/{spec.name}", forest)
    return {"joined": len(forest.child)}


def unite_stars(spec: UniteSpec) -> Counters:
    """Commits the forest of all near-duplicates, range by range."""
    store = spec.root.open()
    count = 0
    for bounds, forest in in_ranges(_united(store, spec), spec.ranges):
        write_stars(store, forest_key(spec.folder, bounds), forest)
        count += len(forest.child)
    return {"joined": count}


def finish(spec: FinishSpec) -> Counters:
    """Commits a range of the groups: every member -> its smallest id."""
    store = spec.whole.inputs.root.open()
    parts = forest_parts(spec.near, spec.whole.ranges)
    exact, pieces = spec.whole.inputs.exact_groups(), read_pieces(store, spec.work)
    rows = _copies(exact, spec.lo, spec.hi)
    rows = rows[~_is_alone(store, parts, exact, rows)]
    heads = labels_among(store, parts, exact.representative_id[rows])
    near = read_stars(store, forest_key(spec.near, (spec.lo, spec.hi)))
    forest = grouped(near, Forest(exact.image_id[rows], heads), pieces, exact, rows)
    write_stars(store, forest_key(spec.whole.folder, (spec.lo, spec.hi)), forest)
    return {"joined": len(forest.child)}


def commit_groups(store: Store, spec: GroupSpec, near: Forest, pieces: Pieces) -> Counters:
    """Commits the groups of a data set of which everything is at hand."""
    exact = spec.inputs.exact_groups()
    rows = _copies(exact, 0, spec.total)
    joined = np.r_[near.child, near.root]
    rows = rows[~exact.is_within[rows] | np.isin(exact.representative_id[rows], joined)]
    heads = labels_for(exact.representative_id[rows], near)
    forest = grouped(near, Forest(exact.image_id[rows], heads), pieces, exact, rows)
    for bounds, part in in_ranges([forest], spec.ranges):
        write_stars(store, forest_key(spec.folder, bounds), part)
    sizes = group_sizes(np.r_[forest.root, np.unique(forest.root)]).size
    return {"groups": len(sizes), "images": int(sizes.sum()), "largest": int(sizes.max(initial=0))}


def grouped(near: Forest, copies: Forest, pieces: Pieces, exact: ExactGroups, rows: Int64) -> Forest:
    """The forest of near-duplicates with the copies hung below, and the pieces of split components for their label.

    copies: non-representatives with the component of their representative; rows: theirs in `exact`.
    """
    ids = np.concatenate([near.child, copies.child])
    labels = np.concatenate([near.root, copies.root])
    if len(pieces.image_id):
        heads = np.concatenate([near.child, exact.representative_id[rows]])
        at = np.minimum(np.searchsorted(pieces.image_id, heads), len(pieces.image_id) - 1)
        is_cut = pieces.image_id[at] == heads
        labels[is_cut] = pieces.piece_id[at[is_cut]]
    kept = np.flatnonzero(ids != labels)
    order = kept[np.argsort(ids[kept])]
    return Forest(ids[order], labels[order])


def joining_edges(store: Store, folder: str, lo: int, hi: int) -> pa.Table:
    """Those of the pairs [lo, hi) whose kind joins two images: image_id, match_id, similarity, is_exact."""
    slices = cover(list_parts(store, folder, EDGES), lo, hi)
    kinds, certain = (pa.array([kind.value for kind in some]) for some in (GROUPING_KINDS, EXACT_DUPLICATES))
    tables = []
    for rows in each_in_order(store, slices, lambda piece: read_edges(store, piece, EDGE_COLUMNS)):
        kept = rows.filter(pc.is_in(rows["kind"], value_set=kinds))
        is_exact = pc.is_in(kept["kind"], value_set=certain)
        tables.append(kept.drop_columns(["kind"]).append_column("is_exact", is_exact))
    if not tables:
        columns = [np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, bool)]
        return pa.table(columns, names=["image_id", "match_id", "similarity", "is_exact"])
    return pa.concat_tables(tables).combine_chunks()


def in_ranges(forests: Iterable[Forest], ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Forest]]:
    """Slices of one forest, of ascending children, as the rows of each range; a range without any is empty."""
    slices, held, is_end = iter(forests), Forest(np.empty(0, np.int64), np.empty(0, np.int64)), False
    for lo, hi in ranges:
        while not is_end and not (len(held.child) and held.child[-1] >= hi - 1):
            following = next(slices, None)
            is_end = following is None
            if following is not None:
                held = Forest(np.r_[held.child, following.child], np.r_[held.root, following.root])
        stop = int(np.searchsorted(held.child, hi))
        yield (lo, hi), Forest(held.child[:stop], held.root[:stop])
        held = Forest(held.child[stop:], held.root[stop:])


def _united(store: Store, spec: UniteSpec) -> Iterator[Forest]:
    forests = star_files(store, spec.parts)
    is_dense = 4 * spec.total <= spec.memory_bytes
    return union_forests(Touched(spec.total) if is_dense else touched_ids(spec.total, forests()), forests())


def _is_alone(store: Store, parts: Sequence[Part], exact: ExactGroups, rows: Int64) -> NDArray[np.bool_]:
    """Which rows are copies within one file alone, of which no near-duplicate is in another: bool (n,)."""
    alone = exact.is_within[rows]
    for part in parts if alone.any() else ():
        stars = read_stars(store, part.key)
        alone &= ~np.isin(exact.representative_id[rows], np.r_[stars.child, stars.root])
    return alone


def _copies(exact: ExactGroups, lo: int, hi: int) -> Int64:
    """Rows of the images of a range that are copies of a smaller one."""
    ids = exact.image_id
    return np.flatnonzero((ids != exact.representative_id) & (ids >= lo) & (ids < hi))
