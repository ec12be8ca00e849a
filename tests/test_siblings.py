"""Siblings against brute force in float64: in no list of another row, and in bounded lists of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from pipeline.kernels import join as join_module
from pipeline.kernels.hits import Hits, JoinParams, floors_of, merge_hits, saturated_queries
from pipeline.kernels.hnsw import build_graphs, join_graphs
from pipeline.kernels.join import (
    build_database,
    checked_queries,
    join_lists,
    join_queries,
    search_everything,
    split_masks,
)
from pipeline.kernels.metric_hits import metric_hits
from pipeline.kernels.siblings import NO_PARENT, SIBLING_SPLIT, sibling_places, sibling_sample
from pipeline.kernels.visits import (
    Routed,
    asking_batch,
    by_reference,
    database_of,
    resolved,
    visits_by_partition,
    visits_of,
)

Int64 = NDArray[np.int64]
COPY, PLAIN = JoinParams(k=4, k_cross=2, threshold=0.8), JoinParams(k=4, k_cross=2)


SPLITS = 3
NOISE = (0, 1e-6, 1e-3, 0.3, 2.0)


def images_of(seed: int, count: int, families: int, noise: tuple[float, ...] = NOISE) -> Routed:
    """Rows by clusters of one parent, some of files of their own, some equal; one list each, and one more probed."""
    rng = np.random.default_rng(seed)
    parent = rng.integers(-1, max(families, 1), count)
    centre = rng.standard_normal((families + 1, 8))
    x = centre[parent] + rng.choice(noise, (count, 1)) * rng.standard_normal((count, 8))
    mask = split_masks(rng.integers(0, SPLITS, count)) | split_masks(rng.integers(0, SPLITS, count))
    own = rng.integers(0, 3, count).astype(np.int32)
    probes = np.stack([own, rng.integers(-1, 3, count).astype(np.int32)], axis=1)
    ids = rng.permutation(3 * count)[:count].astype(np.int64)
    return Routed(ids, mask, x.astype(np.float16), own, probes, np.where(parent < 0, NO_PARENT, 1000 + 7 * parent))


def brute_force(images: Routed, params: JoinParams, allowed: Any = True) -> list[tuple[Any, ...]]:
    """Every pair in float64, rounded to 1e-6, by (-similarity, id): those of other parents, then siblings."""
    x, parent = images.vectors.astype(np.float64), images.parent
    assert parent is not None
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = np.clip(np.round(x @ x.T, 6), -1, 1)
    same = (parent[:, None] == parent) & (parent >= 0)
    found: list[tuple[Any, ...]] = []
    for row in np.argsort(images.ids):
        for are_siblings, split in itertools.product((0, 1), range(SPLITS)):
            own = bool(int(images.split_mask[row]) >> split & 1)
            limit = (params.k if own else params.k_cross) * (params.threshold is not None or not are_siblings)
            wanted = (images.split_mask >> np.uint64(split)) & np.uint64(1) == 1
            wanted &= (images.ids != images.ids[row]) & (same[row] == bool(are_siblings))
            wanted &= np.broadcast_to(allowed, similarity.shape)[row]
            wanted &= similarity[row] >= (-2 if params.least is None else params.least)
            at = np.flatnonzero(wanted)
            place = split + are_siblings * SIBLING_SPLIT
            for match in at[np.lexsort((images.ids[at], -similarity[row, at]))][:limit]:
                pair = int(images.ids[row]), int(images.ids[match])
                found.append((*pair, float(np.float32(similarity[row, match])), place, own))
    return found


def rows_of(hits: Hits) -> list[tuple[Any, ...]]:
    return [*zip(*(column.tolist() for column in astuple(hits)), strict=True)]


def joined(images: Routed, params: JoinParams, queries: Routed | None = None) -> Hits:
    database = build_database(images.ids, images.vectors, images.split_mask, images.own, images.parent)
    asked = queries or images
    columns = (asked.ids, asked.vectors, asked.split_mask, asked.probes, asked.parent)
    return join_queries(database, checked_queries(database, *columns), params)


def everything(images: Routed, params: JoinParams) -> Hits:
    database = build_database(images.ids, images.vectors, images.split_mask, images.own, images.parent)
    return search_everything(database, images.ids, images.vectors, images.split_mask, params, images.parent)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 110),
    st.integers(0, 5),
    st.sampled_from([COPY, PLAIN, JoinParams(k=3, k_cross=1, threshold=0.9, least=0.9, overfetch=1)]),
    st.integers(1, 3),
)
def test_the_join_equals_brute_force(seed: int, count: int, families: int, params: JoinParams, partitions: int) -> None:
    """By lists and partitions, in every order; a search of everything finds the same in all of them."""
    images = images_of(seed, count, families)
    allowed = (images.probes[:, :, None] == images.own).any(axis=1)
    part, slice_ = images.own % partitions, images.ids % 2
    parts = [
        joined(images.take(part == number), params, images.take(slice_ == half))
        for number in range(partitions)
        for half in (1, 0)
        if (part == number).any()
    ]
    assert rows_of(merge_hits(parts, params)) == brute_force(images, params, allowed)
    whole = [everything(images.take(part == number), params) for number in range(partitions) if (part == number).any()]
    asked = np.isin(images.ids, merge_hits(whole, params).query_id)
    if partitions == 1:
        assert rows_of(whole[0]) == brute_force(images, params)
        assert asked.sum() == len(np.unique(whole[0].query_id))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("_QUERY_ROWS", 64), ("_BLOCK_ROWS", 48), ("_BLOCK_QUERIES", 24), ("_EXACT_ROWS", 32)):
        monkeypatch.setattr(join_module, name, size)
    images = images_of(3, 250, 4)
    for params in (COPY, PLAIN):
        assert rows_of(everything(images, params)) == brute_force(images, params)


def test_a_copy_behind_a_thousand_siblings_is_found() -> None:
    """Two still scenes of which one is a copy of the other; equal vectors too, which hide nothing either."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(32) + 1e-3 * rng.standard_normal((2000, 32))
    x[1000:] += 0.2 * rng.standard_normal(32)
    x[:50], x[1000:1050] = x[0], x[0]
    parent = np.repeat([11, 12], 1000)
    zero, ids = np.zeros(2000, np.int32), np.arange(2000)
    images = Routed(ids, np.ones(2000, np.uint64), x.astype(np.float16), zero, zero[:, None], parent)
    hits = joined(images, JoinParams(k=10, threshold=0.9, least=0.9))
    is_sibling = hits.split >= SIBLING_SPLIT
    unit = images.vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert np.array_equal(parent[hits.query_id] == parent[hits.match_id], is_sibling)
    assert (np.bincount(hits.query_id[~is_sibling]) == 10).all()
    assert (np.bincount(hits.query_id[is_sibling]) == 10).all()
    for query, others in ((0, slice(1000, 2000)), (7, slice(1000, 2000)), (1049, slice(0, 1000))):
        mine = hits.take((hits.query_id == query) & ~is_sibling)
        similarity = np.round(unit[query] @ unit[others].T, 6)
        order = np.lexsort((ids[others], -similarity))[:10]
        assert mine.match_id.tolist() == ids[others][order].tolist()
    assert len(saturated_queries(hits, JoinParams(threshold=0.9))) == 2000


def test_the_second_round_finds_what_the_first_leaves() -> None:
    images, params = images_of(9, 300, 3), JoinParams(k=5, k_cross=0)
    one = np.ones(300, np.uint64)
    images = Routed(images.ids, one, images.vectors, images.own, images.probes, images.parent)
    near = Routed(images.ids, one, images.vectors, images.own, images.probes[:, :1], images.parent)
    first = joined(images, params, near)
    ids, floor = floors_of(first, 5)
    database = build_database(images.ids, images.vectors, images.split_mask, images.own, images.parent)
    asked = checked_queries(database, images.ids, images.vectors, one, images.probes, images.parent)
    is_known = np.isin(images.ids, ids)
    asked.floor[is_known] = floor[np.searchsorted(ids, images.ids[is_known])]
    merged = merge_hits([first, join_queries(database, asked, params)], params)
    assert rows_of(merged) == rows_of(joined(images, params))


def test_without_parents_nothing_is_another_row() -> None:
    """Files of their own, and queries that nothing is known of, find what they find in a database without parents."""
    images = images_of(4, 300, 3)
    database = build_database(images.ids, images.vectors, images.split_mask, images.own)
    columns = (images.ids, images.vectors, images.split_mask, images.probes)
    plain = rows_of(join_lists(database, *columns, COPY))
    alone = Routed(*columns[:1], images.split_mask, images.vectors, images.own, images.probes, np.full(300, NO_PARENT))
    assert rows_of(joined(alone, COPY)) == plain
    told = build_database(images.ids, images.vectors, images.split_mask, images.own, images.parent)
    assert rows_of(join_queries(told, checked_queries(told, *columns), COPY)) == plain


@pytest.mark.parametrize("params", [COPY, PLAIN])
def test_graphs_leave_siblings_out(params: JoinParams) -> None:
    """Also where a graph gives nothing else."""
    images = images_of(6, 300, 3, (0.1, 0.3, 2.0))
    database = build_database(images.ids, images.vectors, images.split_mask, images.own, images.parent)
    graphs = build_graphs(database, params, 16)
    found = rows_of(join_graphs(graphs, images.ids, images.vectors, images.split_mask, images.parent))
    exact = brute_force(images, params)
    others = {row[:2] for row in found if row[3] < SIBLING_SPLIT}
    assert len(others & {row[:2] for row in exact}) >= 0.99 * len(others)
    assert sum(row[3] < SIBLING_SPLIT for row in found) == sum(row[3] < SIBLING_SPLIT for row in exact)
    parent = dict(zip(images.ids.tolist(), (images.parent if images.parent is not None else []), strict=True))
    for query, match, _, split, _ in found:
        assert (parent[query] == parent[match] >= 0) == (split >= SIBLING_SPLIT)


@pytest.mark.parametrize("metric", ["l1", "canberra"])
def test_other_distances_leave_siblings_out(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.kernels.metric_hits._MOST_FOUND", 900)
    images = images_of(8, 120, 3)
    zero = np.zeros(120, np.int32)
    database = build_database(images.ids, images.vectors, np.ones(120, np.uint64), zero, images.parent)
    hits = metric_hits(database, images, metric, 6)
    x = images.vectors.astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    far = cdist(x, x, {"l1": "cityblock"}.get(metric, metric))
    assert images.parent is not None
    far[(images.parent[:, None] == images.parent) & (images.parent >= 0)] = np.inf
    np.fill_diagonal(far, np.inf)
    for row, image_id in enumerate(images.ids.tolist()):
        mine = hits.match_id[hits.query_id == image_id]
        at = [int(np.flatnonzero(images.ids == match)[0]) for match in mine]
        assert np.allclose(far[row, at], np.sort(far[row])[:6], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 4), max_size=30), st.lists(st.integers(-1, 4), max_size=30))
def test_where_siblings_are(queries: list[int], rows: list[int]) -> None:
    one, other = np.array(queries, np.int64), np.array(rows, np.int64)
    expected = np.flatnonzero(((one[:, None] == other) & (one[:, None] >= 0)).ravel())
    found = sibling_places(one, other)
    assert np.array_equal(np.sort(found), expected)
    assert not len(rows) or (np.diff(found // len(rows)) >= 0).all()


def test_a_large_parent_keeps_a_part_of_its_rows() -> None:
    """About as many as are wanted, whoever else is asked for; every row of the others."""
    ids = np.arange(40_000)
    parents = np.repeat([-1, 3, 5, 9], 10_000)
    large = (np.array([3, 9]), np.array([10_000, 10_000]))
    kept = sibling_sample(ids, parents, large, 1000)
    assert kept[:10_000].all()
    assert kept[20_000:30_000].all()
    assert all(850 < count < 1150 for count in (kept[10_000:20_000].sum(), kept[30_000:].sum()))
    assert np.array_equal(sibling_sample(ids[::7], parents[::7], large, 1000), kept[::7])
    assert sibling_sample(ids, parents, (large[0][:0], large[1][:0]), 1).all()


def batches_of(images: Routed, is_by_reference: bool) -> Iterable[Any]:
    routed = by_reference(images) if is_by_reference else images
    for batch in visits_by_partition(routed, np.array([0, 1, 1], np.int32), 2):
        yield resolved(batch, images.vectors) if is_by_reference else batch


@pytest.mark.parametrize("is_by_reference", [False, True])
def test_visits_carry_parents(is_by_reference: bool) -> None:
    images = images_of(2, 60, 3)
    images = images.take(np.argsort(images.ids))
    assert images.parent is not None
    known = dict(zip(images.ids.tolist(), images.parent.tolist(), strict=True))
    for batch in batches_of(images, is_by_reference):
        there, database = visits_of([batch, batch], 8), database_of(lambda batch=batch: [batch], 8)
        assert there.parent is not None
        assert database.parent is not None
        assert [known[image_id] for image_id in there.ids.tolist()] == there.parent.tolist()
        assert [known[image_id] for image_id in database.ids.tolist()] == database.parent.tolist()
    asking = visits_of([asking_batch(images)], 8)
    assert asking.parent is not None
    assert asking.parent.tolist() == images.parent.tolist()
