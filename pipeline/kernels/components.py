"""Connected components as star forests (child -> smallest id), which merge in any order and any tree.

A forest names no root and no lonely id: what it does not name is its own component. Measured on one busy
core: star_forest of 10M random edges 7 s (dense ids) or 11 s, union_dense of 20M nodes and 20M edges 20 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Int64 = NDArray[np.int64]
UInt32 = NDArray[np.uint32]

# A table over the span of the ids replaces their sort (three quarters of the time) while it is not much larger.
_TABLE_SPAN_PER_EDGE = 8
_SLICE = 1 << 22
_WORDS = 1 << 20


class Forest(NamedTuple):
    """Edges (child, root), int64 (m,), by ascending child; root < child, and no root is a child."""

    child: Int64
    root: Int64


class GroupSizes(NamedTuple):
    """Ascending labels and the number of images that carry each, both int64 (g,)."""

    label: Int64
    size: Int64


def empty_forest() -> Forest:
    """Return the forest of no edges."""
    return Forest(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def star_forest(edges_a: Int64, edges_b: Int64) -> Forest:
    """Return the components of undirected edges; repetition, direction, order and self-loops do not matter.

    edges_a, edges_b int64 (m,), ids >= 0. Raises UsageError for unequal lengths or a negative id.
    """
    a = np.ascontiguousarray(edges_a, dtype=np.int64)
    b = np.ascontiguousarray(edges_b, dtype=np.int64)
    if a.shape != b.shape:
        raise UsageError(f"components: {a.shape} ids on one side of the edges and {b.shape} on the other, want equal")
    if len(a) == 0:
        return empty_forest()
    if min(int(a.min()), int(b.min())) < 0:
        raise UsageError("components: an edge has a negative id; drop masked neighbours (id -1) first")
    ids, row, column = _relabel(a, b)
    root = ids[_smallest_member(row, column, len(ids))]
    is_child = root != ids
    return Forest(ids[is_child], root[is_child])


def merge_forests(forests: Sequence[Forest]) -> Forest:
    """Return the forest of all edges of all forests; any grouping and order gives the same one."""
    if not forests:
        return empty_forest()
    return star_forest(np.concatenate([f.child for f in forests]), np.concatenate([f.root for f in forests]))


def _relabel(a: Int64, b: Int64) -> tuple[Int64, Int64, Int64]:
    """Return the ascending ids that occur, and both sides as positions among them."""
    low = min(int(a.min()), int(b.min()))
    span = max(int(a.max()), int(b.max())) - low + 1
    if span > _TABLE_SPAN_PER_EDGE * len(a):
        ids, inverse = np.unique(np.concatenate([a, b]), return_inverse=True)
        return ids, inverse[: len(a)], inverse[len(a) :]
    is_used = np.zeros(span, dtype=bool)
    is_used[a - low] = True
    is_used[b - low] = True
    position = np.cumsum(is_used, dtype=np.int64) - 1
    return np.flatnonzero(is_used) + low, position[a - low], position[b - low]


def _smallest_member(row: Int64, column: Int64, size: int) -> Int64:
    """Return for each node 0..size-1 the smallest node of its component."""
    # here, for it is 0.27 s of CPU, and a driver that hands the work to others never comes here
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(row), dtype=np.int8), (row, column)), shape=(size, size)).tocsr()
    count, label = connected_components(graph, directed=False)
    first = np.empty(count, dtype=np.int64)
    first[label[::-1]] = np.arange(size - 1, -1, -1, dtype=np.int64)  # the last write is the smallest node
    return np.asarray(first[label], dtype=np.int64)


def find_roots(parent: UInt32, nodes: NDArray[np.integer]) -> UInt32:
    """Return the root of each node and point the nodes at it. parent uint32 (n,) is changed in place."""
    root: UInt32 = parent[nodes]
    while True:
        above = parent[root]
        if np.array_equal(above, root):
            break
        root = above
    parent[nodes] = root
    return root


def unite(parent: UInt32, a: NDArray[np.integer], b: NDArray[np.integer]) -> Forest:
    """Join the trees of a[i] and b[i] under their smallest node; return which roots became children of which.

    parent uint32 (n,) is changed in place.
    """
    root_a, root_b = find_roots(parent, a), find_roots(parent, b)
    differs = root_a != root_b
    if not differs.any():
        return empty_forest()
    joined = star_forest(root_a[differs].astype(np.int64), root_b[differs].astype(np.int64))
    parent[joined.child] = joined.root.astype(np.uint32)
    return joined


def union_dense(count: int, chunks: Iterable[tuple[Int64, Int64]]) -> UInt32:
    """Return the smallest node of the component of each node 0..count-1, from a stream of edges (a, b).

    4 bytes a node, whatever the number of edges; chunks of about 4M edges are fastest.
    Raises UsageError for a node outside 0..count-1 or more than 2**32 nodes.
    """
    if not 0 <= count <= 1 << 32:
        raise UsageError(f"components: {count} nodes, want 0 to 2**32: use the tree of forests beyond that")
    parent = np.arange(count, dtype=np.uint32)
    for a, b in chunks:
        if len(a) == 0:
            continue
        low, high = min(int(a.min()), int(b.min())), max(int(a.max()), int(b.max()))
        if low < 0 or high >= count:
            raise UsageError(f"components: an edge names node {low if low < 0 else high}, want 0 to {count - 1}")
        unite(parent, a, b)
    for start in range(0, count, _SLICE):
        find_roots(parent, np.arange(start, min(start + _SLICE, count)))
    return parent


class Touched(NamedTuple):
    """The ids that may have an edge, as nodes of a dense union: every id under `size`, or those of an ascending list.

    With a list also a bit for every id there is (words uint64), and the bits before each word (int64): a search of the
    list for 4M ids took ten times as long.
    """

    size: int
    ids: Int64 | None = None
    words: NDArray[np.uint64] | None = None
    before: Int64 | None = None

    def nodes(self, ids: Int64) -> Int64:
        """The node of each id."""
        if self.words is None or self.before is None:
            return ids
        word = ids >> 6
        below = self.words[word] & ((np.uint64(1) << (ids & 63).astype(np.uint64)) - np.uint64(1))
        return np.asarray(self.before[word] + _bits(below), dtype=np.int64)

    def ids_of(self, nodes: Int64) -> Int64:
        """The id of each node."""
        return nodes if self.ids is None else np.asarray(self.ids[nodes])


def touched_ids(total: int, forests: Iterable[Forest]) -> Touched:
    """The ids under `total` that some forests name: 8 bytes each, and 1/4 for every id there is."""
    words = np.zeros(-(-total // 64), dtype=np.uint64)
    for forest in forests:
        for ids in (forest.child, np.unique(forest.root)):
            starts = np.flatnonzero(np.r_[True, np.diff(ids >> 6) > 0]) if len(ids) else ids
            bits = np.uint64(1) << (ids & 63).astype(np.uint64)
            words[ids[starts] >> 6] |= np.bitwise_or.reduceat(bits, starts) if len(ids) else bits
    before = np.cumsum(_bits(words)) - _bits(words)
    found = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(words), _WORDS):
        block = np.unpackbits(words[first : first + _WORDS].astype("<u8").view(np.uint8), bitorder="little")
        found.append(np.flatnonzero(block) + 64 * first)
    ids = np.concatenate(found)
    return Touched(len(ids), ids, words, before)


def _bits(words: NDArray[np.uint64]) -> Int64:
    """How many bits of each word are set, by adding neighbours: pairs, fours, eights, then all bytes."""
    one, two, four = (np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    pairs = words - ((words >> np.uint64(1)) & one)
    fours = (pairs & two) + ((pairs >> np.uint64(2)) & two)
    eights = (fours + (fours >> np.uint64(4))) & four
    return np.asarray((eights * np.uint64(0x0101010101010101)) >> np.uint64(56), dtype=np.int64)


def union_forests(touched: Touched, forests: Iterable[Forest]) -> Iterator[Forest]:
    """Yield the forest of all edges of a stream of forests, in slices of ascending children.

    4 bytes a touched id, whatever the number of forests, and as much as the largest of them. The ids of all forests
    must be among the touched ones. Raises UsageError for more than 2**32 of these.
    """
    parent = union_dense(touched.size, _edges_at_once(touched, forests))
    for start in range(0, touched.size, _SLICE):
        root = parent[start : start + _SLICE].astype(np.int64)
        child = np.arange(start, start + len(root))
        is_child = root != child
        yield Forest(touched.ids_of(child[is_child]), touched.ids_of(root[is_child]))


def _edges_at_once(touched: Touched, forests: Iterable[Forest]) -> Iterator[tuple[Int64, Int64]]:
    """Edges between nodes, so many at a time: 60 million at once took 5 GB."""
    for forest in forests:
        for start in range(0, len(forest.child), _SLICE):
            stop = start + _SLICE
            yield touched.nodes(forest.child[start:stop]), touched.nodes(forest.root[start:stop])


class SpanningRows(NamedTuple):
    """Edges (a, b) int64 with the level of each, int16 (m,): a higher one is cut later."""

    a: Int64
    b: Int64
    level: NDArray[np.int16]


def spanning_rows(edges: SpanningRows) -> SpanningRows:
    """Return fewer edges than there are images that join the same images at every level; rows of several may be merged.

    The forest of each level, strongest first, over the trees of those before (Kruskal's algorithm, a level at a time).
    """
    if len(edges.a) == 0:
        return edges
    ids, row, column = _relabel(edges.a, edges.b)
    parent = np.arange(len(ids), dtype=np.uint32)
    kept: list[Forest] = []
    levels = np.unique(edges.level)[::-1]
    for level in levels:
        at = np.flatnonzero(edges.level == level)
        kept.append(unite(parent, row[at], column[at]))
    child, root = (np.concatenate([forest[side] for forest in kept]) for side in (0, 1))
    counts = [len(forest.child) for forest in kept]
    return SpanningRows(ids[child], ids[root], np.repeat(levels, counts))


def labels_for(ids: Int64, forest: Forest) -> Int64:
    """Return the label of each id: its root in the forest, or itself. int64 (n,) in, int64 (n,) out."""
    labels = np.array(ids, dtype=np.int64)
    if len(forest.child):
        position = np.minimum(np.searchsorted(forest.child, labels), len(forest.child) - 1)
        is_child = forest.child[position] == labels
        labels[is_child] = forest.root[position[is_child]]
    return labels


def group_sizes(labels: Int64) -> GroupSizes:
    """Return the number of images of each label. labels int64 (n,), one per image."""
    label, size = np.unique(np.asarray(labels, dtype=np.int64), return_counts=True)
    return GroupSizes(label, size.astype(np.int64))
