"""Split stages: which large components only chains hold together, and their pieces at a higher similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.kernels.components import Forest, GroupSizes, SpanningRows, labels_for, spanning_rows, star_forest
from pipeline.kernels.space import project_copy
from pipeline.kernels.splitting import Float64, Pieces, Widths, far_shares, is_sampled, split_wide
from pipeline.layout.groups import (
    SPANS,
    Int64,
    Large,
    Splits,
    forest_parts,
    labels_among,
    read_large,
    read_spans,
    star_files,
    write_large,
    write_pieces,
    write_spans,
    write_split,
)
from pipeline.layout.parts import part_name
from pipeline.layout.spaces import read_space
from pipeline.runner import Counters
from pipeline.stages.group import GroupSpec, commit_groups, joining_edges

Forests = Callable[[], Iterator[Forest]]

BATCH_MEMBERS = 65_536


@dataclass(frozen=True)
class LargeSpec:
    """The forest of near-duplicates in `near`, of which the large components are looked at."""

    whole: GroupSpec
    near: str
    work: str


@dataclass(frozen=True)
class SpanSpec:
    """The pairs [lo, hi), of which those inside wide components are reduced."""

    whole: GroupSpec
    near: str
    work: str
    lo: int
    hi: int


def group(spec: GroupSpec) -> Counters:
    """Commits the groups of a data set whose pairs fit one task."""
    store = spec.inputs.root.open()
    edges = joining_edges(store, spec.edges, 0, np.iinfo(np.int64).max)
    near = star_forest(edges["image_id"].to_numpy(), edges["match_id"].to_numpy())
    large = _large(spec, lambda: iter([near]))
    pieces = _no_pieces()
    if large.is_split.any():
        labels = labels_for(edges["image_id"].to_numpy(), near)
        pieces = split_wide(spanning_rows(_inside(spec, edges, labels, large)), spec.params, _widths(spec))
    _commit_split(spec, pieces, labels_for(pieces.image_id, near), large)
    return commit_groups(store, spec, near, pieces)


def find_large(spec: LargeSpec) -> Counters:
    """Commits the components over the limit of size, and whether each is too wide as well."""
    store = spec.whole.inputs.root.open()
    large = _large(spec.whole, star_files(store, forest_parts(spec.near, spec.whole.ranges)))
    if not large.is_split.any():
        _commit_split(spec.whole, _no_pieces(), np.empty(0, np.int64), large)
        write_pieces(store, spec.work, _no_pieces())
    write_large(store, spec.work, large)
    return {"large": len(large.size), "wide": int(large.is_wide.sum())}


def reduce_spans(spec: SpanSpec) -> Counters:
    """Commits the pairs that hold wide components together at each level of similarity."""
    store = spec.whole.inputs.root.open()
    edges = joining_edges(store, spec.whole.edges, spec.lo, spec.hi)
    labels = labels_among(store, forest_parts(spec.near, spec.whole.ranges), edges["image_id"].to_numpy())
    rows = spanning_rows(_inside(spec.whole, edges, labels, read_large(store, spec.work)))
    write_spans(store, f"{spec.work}/{part_name(SPANS, spec.lo, spec.hi)}", rows)
    return {"pairs": len(rows.a)}


def split_groups(spec: LargeSpec) -> Counters:
    """Commits the pieces of wide components."""
    store = spec.whole.inputs.root.open()
    rows = SpanningRows(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int16))
    for found in read_spans(store, spec.work):
        rows = spanning_rows(
            SpanningRows(np.r_[rows.a, found.a], np.r_[rows.b, found.b], np.r_[rows.level, found.level])
        )
    pieces = split_wide(rows, spec.whole.params, _widths(spec.whole))
    components = labels_for(pieces.image_id, star_forest(rows.a, rows.b))
    _commit_split(spec.whole, pieces, components, read_large(store, spec.work))
    write_pieces(store, spec.work, pieces)
    return {"images": len(pieces.image_id)}


def _commit_split(spec: GroupSpec, pieces: Pieces, components: Int64, large: Large) -> None:
    """Commits what became of wide components; one whose exact duplicates hold it together is not among them."""
    is_cut = np.isin(components, components[pieces.piece_id != components])
    group, first, size = np.unique(pieces.piece_id[is_cut], return_index=True, return_counts=True)
    demand = [spec.params.demand(level, spec.threshold) for level in pieces.level[is_cut][first].tolist()]
    splits = Splits(group, components[is_cut][first], np.array(demand, np.float64))
    write_split(spec.inputs.root.open(), spec.folder, splits, size, large.left)


def _inside(spec: GroupSpec, edges: pa.Table, labels: Int64, large: Large) -> SpanningRows:
    kept = edges.filter(pa.array(np.isin(labels, large.split)))
    similarity = kept["similarity"].to_numpy()
    levels = spec.params.levels(similarity, spec.threshold, kept["is_exact"].to_numpy())
    return SpanningRows(kept["image_id"].to_numpy(), kept["match_id"].to_numpy(), levels)


def _large(spec: GroupSpec, forests: Forests) -> Large:
    """Components of more than max_size different images, which of them are too wide, and which are split."""
    sizes = _over_size(spec, forests)
    is_wide = np.zeros(len(sizes.label), bool)
    if len(is_wide):
        is_wide = _widths(spec)(*_sample(sizes, forests)) > spec.params.max_far_share
    weight = np.where(is_wide, sizes.size, 0)
    order = np.lexsort((sizes.label, weight))
    fits = np.empty(len(order), bool)
    fits[order] = np.cumsum(weight[order]) <= spec.params.max_split
    return Large(sizes.label, sizes.size, is_wide, is_wide & fits)


def _over_size(spec: GroupSpec, forests: Forests) -> GroupSizes:
    """Labels and sizes of components over the limit; the ids are counted in blocks that fit the memory."""
    block = max(1024, spec.params.memory_bytes // 16)
    found = []
    for lo in range(0, spec.total, block):
        counts = np.zeros(min(block, spec.total - lo), np.int64)
        for forest in forests():
            roots = forest.root[(forest.root >= lo) & (forest.root < lo + len(counts))]
            if len(roots):
                low = int(roots.min())
                some = np.bincount(roots - low)
                counts[low - lo : low - lo + len(some)] += some
        at = np.flatnonzero(counts >= spec.params.max_size)  # the root is one more
        found.append(GroupSizes(at + lo, counts[at] + 1))
    return GroupSizes(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _sample(large: GroupSizes, forests: Forests) -> tuple[Int64, Int64]:
    """Ids that stand for each component, sorted by component, then id; and the component of each."""
    ids, owners = [large.label], [np.arange(len(large.label))]
    seen = np.ones(len(large.label), np.int64)  # the root has rank 0
    for forest in forests():
        at = np.minimum(np.searchsorted(large.label, forest.root), len(large.label) - 1)
        rows = np.flatnonzero(large.label[at] == forest.root)
        order = rows[np.argsort(at[rows], kind="stable")]
        owner = at[order]
        count = np.bincount(owner, minlength=len(seen))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count) + seen[owner]
        chosen = is_sampled(rank, large.size[owner])
        ids.append(forest.child[order][chosen])
        owners.append(owner[chosen])
        seen += count
    all_ids, owner = np.concatenate(ids), np.concatenate(owners)
    order = np.lexsort((all_ids, owner))
    return all_ids[order], large.label[owner[order]]


def _widths(spec: GroupSpec) -> Widths:
    space = read_space(spec.inputs.root.open(), spec.space)
    population = spec.inputs.population()
    limit = round(spec.threshold - spec.params.far_below, 6)

    def widths(ids: Int64, groups: Int64) -> Float64:
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(ids) else np.empty(0, np.int64)
        found = [np.empty(0)]
        for first, last in _batches(np.r_[starts, len(ids)]):
            some = ids[first:last]
            rows = population.take(np.sort(some))
            at = np.searchsorted(rows.ids, some)
            vectors = project_copy(space, rows.embeddings, rows.signatures)[at]
            found.append(far_shares(groups[first:last], vectors, limit))
        return np.concatenate(found)

    return widths


def _batches(bounds: Int64) -> Iterator[tuple[int, int]]:
    """Whole groups, so many together that each part of the features is read once for all of them."""
    first = int(bounds[0])
    for last, following in zip(bounds[1:-1].tolist(), bounds[2:].tolist(), strict=True):
        if following - first > BATCH_MEMBERS:
            yield first, last
            first = last
    if bounds[-1] > first:
        yield first, int(bounds[-1])


def _no_pieces() -> Pieces:
    return Pieces(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int16))
