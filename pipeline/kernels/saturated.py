"""Every pair at or over the threshold around saturated queries, as a forest and never as a list of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.components import Forest, UInt32, empty_forest, find_roots, unite
from pipeline.kernels.database import (
    DECIMALS,
    FLOAT32_ERROR,
    Database,
    Float32,
    Float64,
    Int32,
    Int64,
    Mask,
    list_cells,
    unit_scale,
    unit_vectors,
    visits,
)

MAX_BLOCK = 4096
# So many queries, spread over a list, usually join most of a cluster, and the first few of them, or of the rows, all of
# a clique; the blocks inside one tree are then skipped.
_PILOT = 256
_FIRST_PILOT = 32
# A tree with so many queries gets blocks of its own: a block of one tree passes over the rows already in it.
_LARGE_TREE = 1024


class _Side(NamedTuple):
    """One side of a block: nodes int64 (n,), vectors (n, d) as stored, scale float64 (n,), unit float32 (n, d)."""

    nodes: Int64
    vectors: NDArray[np.floating]
    scale: Float64
    unit: Float32

    def take(self, rows: Int64 | Mask | slice) -> _Side:
        return _Side(self.nodes[rows], self.vectors[rows], self.scale[rows], self.unit[rows])

    def wide(self) -> Float64:
        return self.vectors.astype(np.float64) * self.scale[:, None]


def saturated_forest(
    db: Database,
    query_ids: Int64,
    xq: NDArray[np.floating],
    probes: Int32,
    threshold: float,
    block: int = MAX_BLOCK,
) -> Forest:
    """Return a forest in which a query and every row of its probed lists at or over the threshold share a tree.

    query_ids int64 (n,); xq float (n, d), taken at the database's precision; probes int32 (n, nprobe); at most `block`
    x `block` similarities exist at once. Similarities are float64 cosines rounded to 1e-6 where float32 cannot tell.
    Order, blocks and partitions do not change the merged forest. Raises UsageError for a block over 4,096, zero or NaN
    queries.
    """
    if not 1 <= block <= MAX_BLOCK:
        raise UsageError(f"saturated: block {block}, want 1 to {MAX_BLOCK}")
    if len(query_ids) == 0 or len(db) == 0:
        return empty_forest()
    ids = np.unique(np.concatenate([query_ids, db.ids]))
    stored = xq.astype(db.vectors.dtype)
    nodes, scale = np.searchsorted(ids, query_ids), unit_scale(stored, "saturated queries")
    parent = np.arange(len(ids), dtype=np.uint32)
    for rows, _, visitors in visits(list_cells(db), probes):
        side = _Side(np.searchsorted(ids, db.ids[rows]), db.vectors[rows], db.scale[rows], db.unit(rows))
        for chosen in _query_blocks(parent, nodes[visitors], block):
            q = visitors[chosen]
            asking = _Side(nodes[q], stored[q], scale[q], unit_vectors(stored[q], scale[q]))
            _join_block_with_list(parent, asking, side, threshold, block)
    root = find_roots(parent, np.arange(len(ids)))
    is_child = root != np.arange(len(ids))
    return Forest(ids[is_child], ids[root[is_child]])


def _join_block_with_list(parent: UInt32, queries: _Side, rows: _Side, threshold: float, block: int) -> None:
    """Join a block of queries with the rows of one list; parent is changed in place."""
    root = find_roots(parent, queries.nodes)
    if (root == root[0]).all():
        is_other = find_roots(parent, rows.nodes) != root[0]
        rows = rows if is_other.all() else rows.take(is_other)
    if len(rows.nodes) > block:
        _join_block(parent, queries, rows.take(slice(0, None, -(-len(rows.nodes) // _FIRST_PILOT))), threshold)
    for start in range(0, len(rows.nodes), block):
        _join_block(parent, queries, rows.take(slice(start, start + block)), threshold)


def _query_blocks(parent: UInt32, nodes: Int64, block: int) -> Iterator[Int64]:
    """Yield positions of nodes in blocks: first a few spread over all, then the trees that those made, one by one."""
    step = max(1, len(nodes) // _PILOT)
    pilot = np.arange(0, len(nodes), step)
    for part in (pilot[:_FIRST_PILOT], pilot[_FIRST_PILOT:]):
        for start in range(0, len(part), block):
            yield part[start : start + block]
    is_left = np.ones(len(nodes), dtype=bool)
    is_left[pilot] = False
    left = np.flatnonzero(is_left)
    _, tree, size = np.unique(find_roots(parent, nodes[left]), return_inverse=True, return_counts=True)
    key = np.where(size[tree] >= _LARGE_TREE, tree + 1, 0)
    order = np.argsort(key, kind="stable")
    left, key = left[order], key[order]
    for run in np.split(left, np.flatnonzero(key[1:] != key[:-1]) + 1):
        for start in range(0, len(run), block):
            yield run[start : start + block]


def _join_block(parent: UInt32, queries: _Side, rows: _Side, threshold: float) -> None:
    """Join the pairs of one block at or over the threshold, leaving out what already is in the one tree of a side."""
    root_q, root_r = find_roots(parent, queries.nodes), find_roots(parent, rows.nodes)
    if (root_r == root_r[0]).all():
        queries = queries.take(root_q != root_r[0])
    elif (root_q == root_q[0]).all():
        rows = rows.take(root_r != root_q[0])
    if len(queries.nodes) == 0 or len(rows.nodes) == 0:
        return
    wanted = round(threshold, DECIMALS)
    rough = queries.unit @ rows.unit.T
    if rough.max() < wanted - FLOAT32_ERROR:
        return
    _unite_where(parent, queries.nodes, rows.nodes, rough >= wanted + FLOAT32_ERROR)
    # What is still apart was under that: float64 decides on what lies close to the threshold.
    is_close = (rough >= wanted - FLOAT32_ERROR) & _differs(parent, queries.nodes, rows.nodes)
    if is_close.any():
        q, r = np.flatnonzero(is_close.any(axis=1)), np.flatnonzero(is_close.any(axis=0))
        exact = np.round(queries.take(q).wide() @ rows.take(r).wide().T, DECIMALS)
        _unite_where(parent, queries.nodes[q], rows.nodes[r], exact >= wanted)


def _unite_where(parent: UInt32, a: Int64, b: Int64, is_pair: Mask) -> None:
    """Join a[i] and b[j] where is_pair[i, j]: every tree takes one edge to another until none is left (Boruvka).

    The trees at least halve in a round, and no more than one edge a row and column is written out.
    """
    while True:
        crossing = is_pair & _differs(parent, a, b)
        from_a, from_b = np.flatnonzero(crossing.any(axis=1)), np.flatnonzero(crossing.any(axis=0))
        if len(from_a) == 0:
            return
        to_b, to_a = crossing[from_a].argmax(axis=1), crossing[:, from_b].argmax(axis=0)
        unite(parent, np.concatenate([a[from_a], a[to_a]]), np.concatenate([b[to_b], b[from_b]]))


def _differs(parent: UInt32, a: Int64, b: Int64) -> Mask:
    return np.asarray(find_roots(parent, a)[:, None] != find_roots(parent, b)[None, :])
