"""The join against brute force in float64: equal rows, whatever the order, the lists and the partitions."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels import contenders
from pipeline.kernels import join as join_module
from pipeline.kernels.database import FLOAT32_ERROR, widened
from pipeline.kernels.hits import Hits, empty_hits, floors_of, stored_threshold
from pipeline.kernels.join import (
    JoinParams,
    build_database,
    checked_queries,
    join_lists,
    join_queries,
    merge_hits,
    saturated_queries,
    search_everything,
    searchable_rows,
    split_masks,
)

COLUMNS = [f.name for f in fields(Hits)]


def rows_of(hits):
    return list(zip(*(getattr(hits, c).tolist() for c in COLUMNS), strict=True))


def brute_force(images, queries, params, allowed=None):
    """Every pair in float64, rounded to 1e-6, by (-similarity, id); images = (ids, vectors, masks)."""
    least = -2 if params.least is None else round(params.least, 6)
    (ids, xb, mask), (qids, xq, qmask) = images, queries
    wide = [x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (xq, xb)]
    similarity = np.clip(np.round(wide[0] @ wide[1].T, 6), -1, 1)
    rows = []
    for i in np.argsort(qids):
        for split in range(64):
            member = (mask >> np.uint64(split)) & np.uint64(1) == 1
            member &= ids != qids[i]
            if allowed is not None:
                member &= allowed[i]
            member &= similarity[i] >= least
            own = bool(int(qmask[i]) >> split & 1)
            chosen = np.flatnonzero(member)
            chosen = chosen[np.lexsort((ids[chosen], -similarity[i, chosen]))][: params.k if own else params.k_cross]
            rows += [(int(qids[i]), int(ids[j]), float(np.float32(similarity[i, j])), split, own) for j in chosen]
    return rows


def images_of(seed, n, d=24, splits=3, dtype=np.float32):
    """Clustered vectors with exact copies, near copies and rows in several splits; ids are not positions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + 2 * rng.standard_normal((max(1, n // 20), d))[rng.integers(0, max(1, n // 20), n)]
    if n > 3:
        source = rng.integers(0, n, n // 3)
        noise = rng.choice([0, 1e-7, 1e-3], size=(n // 3, 1))
        x[rng.integers(0, n, n // 3)] = x[source] + noise * rng.standard_normal((n // 3, d))
    mask = split_masks(rng.integers(0, splits, n))
    both = rng.random(n) < 0.1
    mask[both] |= split_masks(rng.integers(0, splits, int(both.sum())))
    return rng.permutation(5 * n)[:n].astype(np.int64), x.astype(dtype), mask


def exact_join(images, params, queries=None):
    ids, x, mask = images
    qids, xq, qmask = queries or images
    db = build_database(ids, x, mask, np.zeros(len(ids), dtype=np.int32))
    return join_lists(db, qids, xq, qmask, np.zeros((len(qids), 1), dtype=np.int32), params)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("n", [1, 2, 9, 700])
def test_exact_join_equals_brute_force(n, dtype):
    images = images_of(n, n, dtype=dtype)
    params = JoinParams(k=5, k_cross=2)
    assert rows_of(exact_join(images, params)) == brute_force(images, images, params)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 90), st.integers(1, 12), st.integers(0, 3), st.integers(1, 5))
def test_exact_join_equals_brute_force_on_any_small_set(seed, n, k, k_cross, splits):
    images = images_of(seed, n, d=6, splits=splits)
    params = JoinParams(k=k, k_cross=min(k, k_cross), overfetch=1)
    assert rows_of(exact_join(images, params)) == brute_force(images, images, params)


def test_a_list_longer_than_one_search_block_equals_brute_force(monkeypatch):
    monkeypatch.setattr(join_module, "_QUERY_ROWS", 64)
    monkeypatch.setattr(join_module, "_BLOCK_ROWS", 48)
    monkeypatch.setattr(join_module, "_BLOCK_QUERIES", 24)
    monkeypatch.setattr(join_module, "_EXACT_ROWS", 32)
    monkeypatch.setattr(join_module, "_EXACT_QUERIES", 16)
    images = images_of(3, 400)
    params = JoinParams(k=7, k_cross=3)
    assert rows_of(exact_join(images, params)) == brute_force(images, images, params)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 120),
    st.integers(1, 6),
    st.sampled_from([None, -1.0, 0.7, 0.999999, 1.0]),
    st.data(),
)
def test_lists_partitions_and_order_do_not_matter(seed, n, lists, least, data):
    ids, x, mask = images_of(seed, n, d=8)
    rng = np.random.default_rng(seed)
    own = rng.integers(0, lists, n)
    probes = np.stack([own, rng.integers(-1, lists, n), rng.integers(0, lists, n)], axis=1).astype(np.int32)
    params = JoinParams(k=4, k_cross=2, least=least)
    allowed = (probes[:, :, None] == own[None, None, :]).any(axis=1)
    expected = brute_force((ids, x, mask), (ids, x, mask), params, allowed)
    partition = np.array(data.draw(st.lists(st.integers(0, 3), min_size=lists, max_size=lists)))[own]
    shard = rng.integers(0, 3, n)
    parts = []
    for p in range(4):
        order = rng.permutation(np.flatnonzero(partition == p))
        db = build_database(ids[order], x[order], mask[order], own[order])
        for s in range(3):
            q = rng.permutation(np.flatnonzero(shard == s))
            parts.append(join_lists(db, ids[q], x[q], mask[q], probes[q], params))
    assert rows_of(merge_hits(parts, params)) == expected
    tree = merge_hits([merge_hits(parts[7:], params), merge_hits(parts[:7][::-1], params), empty_hits()], params)
    assert rows_of(tree) == expected


@pytest.mark.parametrize("params", [JoinParams(), JoinParams(k=5, k_cross=0), JoinParams(least=0.9, overfetch=1)])
def test_all_lists_probed_is_the_exact_join(params):
    ids, x, mask = images_of(5, 300)
    own = np.random.default_rng(0).integers(0, 11, 300)
    db = build_database(ids, x, mask, own)
    found = join_lists(db, ids, x, mask, np.tile(np.arange(11, dtype=np.int32), (300, 1)), params)
    assert rows_of(found) == rows_of(exact_join((ids, x, mask), params))
    few = np.random.default_rng(1).permutation(300)[:40]
    everything = search_everything(db, ids[few], x[few], mask[few], params)
    assert rows_of(everything) == [row for row in rows_of(found) if row[0] in ids[few]]
    assert len(search_everything(db, ids[:0], x[:0], mask[:0], params)) == 0


def test_five_thousand_copies_of_one_vector_hide_nobody():
    """With k = 10 the copies fill every list of their own split; the lists across splits still find the leak."""
    rng = np.random.default_rng(0)
    unrelated, copies = rng.standard_normal((300, 32)), np.tile(rng.standard_normal(32), (5000, 1))
    x = np.concatenate([unrelated, copies]).astype(np.float16)
    ids = rng.permutation(len(x)).astype(np.int64)
    split = np.zeros(len(x), dtype=np.int64)
    split[-50:] = 1
    params = JoinParams(threshold=0.9)
    hits = exact_join((ids, x, split_masks(split)), params)
    copy_ids = ids[300:]
    train, val = np.sort(ids[300:-50]), np.sort(ids[-50:])
    assert not (hits.query_id == hits.match_id).any()
    for query in (train[0], train[5], train[-1], val[0], val[-1]):
        for target, own in ((train, query in train), (val, query in val)):
            rows = (hits.query_id == query) & (hits.split == (0 if target is train else 1))
            nearest = [i for i in target[: params.k + 1] if i != query][: params.k if own else params.k_cross]
            assert hits.match_id[rows].tolist() == nearest
    leaks = hits.take(~hits.is_own & (hits.similarity >= stored_threshold(0.9)))
    assert set(leaks.query_id.tolist()) == set(copy_ids.tolist())
    assert set(saturated_queries(hits, params).tolist()) == set(copy_ids.tolist())
    of_unrelated = hits.take(np.isin(hits.query_id, ids[:300]))
    few = np.concatenate(
        [np.arange(300), 300 + np.argsort(ids[300:-50])[:11], len(x) - 50 + np.argsort(ids[-50:])[:11]]
    )
    expected = brute_force(
        (ids[few], x[few], split_masks(split[few])), (ids[:300], x[:300], split_masks(split[:300])), params
    )
    assert rows_of(of_unrelated) == expected


@pytest.mark.parametrize(("compact_rows", "overfetch"), [(50, 4), (50, 1), (10**9, 1000)])
def test_forgetting_along_the_way_and_crowds_change_nothing(compact_rows, overfetch, monkeypatch):
    """Clusters of near-equal rows over several lists: many a floor is raised, many a slot is crowded."""
    monkeypatch.setattr(contenders, "_COMPACT_ROWS", compact_rows)
    monkeypatch.setattr(join_module, "_BLOCK_ROWS", 64)
    monkeypatch.setattr(join_module, "_BLOCK_QUERIES", 32)
    rng = np.random.default_rng(overfetch)
    noise = rng.choice([0, 1e-6, 1e-5, 1e-3], size=(600, 1))
    x = (rng.standard_normal((4, 16))[rng.integers(0, 4, 600)] + noise * rng.standard_normal((600, 16))).astype(
        np.float32
    )
    ids, mask, own = (
        rng.permutation(600).astype(np.int64),
        split_masks(rng.integers(0, 3, 600)),
        rng.integers(0, 5, 600),
    )
    everywhere = np.tile(np.arange(5, dtype=np.int32), (600, 1))
    params = JoinParams(k=6, k_cross=2, overfetch=overfetch)
    hits = join_lists(build_database(ids, x, mask, own), ids, x, mask, everywhere, params)
    assert rows_of(hits) == brute_force((ids, x, mask), (ids, x, mask), params)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.floats(0, 1))
def test_two_rounds_find_what_one_does(seed, k, known):
    """Some lists first, the others over the floors that this gives; queries that found too little have none."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((5, 12))[rng.integers(0, 5, 300)] + 0.3 * rng.standard_normal((300, 12))).astype(
        np.float16
    )
    ids, mask = rng.permutation(900)[:300].astype(np.int64), np.ones(300, np.uint64)
    lists = rng.integers(0, 8, 300).astype(np.int32)
    db, params = build_database(ids, x, mask, lists), JoinParams(k=k, k_cross=0)
    probes = np.tile(np.arange(8, dtype=np.int32), (300, 1))
    near = np.where(probes == lists[:, None], probes, -1)
    first = join_lists(db, ids, x, mask, near, params)
    asked, floor = floors_of(first, k)
    assert asked.tolist() == sorted(q for q, n in Counter(first.query_id.tolist()).items() if n == k)
    keep = rng.random(len(asked)) < known  # a floor may be missing
    queries = checked_queries(db, ids, x, mask, np.where(near < 0, probes, -1))
    place = {int(image): at for at, image in enumerate(ids)}
    queries.floor[[place[int(image)] for image in asked[keep]]] = floor[keep]
    further = join_queries(db, queries, params)

    assert rows_of(merge_hits([first, further], params)) == rows_of(join_lists(db, ids, x, mask, probes, params))
    under = {int(image): float(f) for image, f in zip(asked[keep], floor[keep], strict=True)}
    pairs = zip(further.query_id.tolist(), further.similarity.tolist(), strict=True)
    assert all(similarity >= under.get(query, -2) - 2e-5 for query, similarity in pairs)


def test_what_must_stay_is_not_sorted_with_every_block(monkeypatch):
    """40 queries that want 6 rows each keep 280, over the limit of 50: sorted again when as many more have come."""
    compact, calls = contenders.compact, []
    monkeypatch.setattr(contenders, "_COMPACT_ROWS", 50)
    monkeypatch.setattr(contenders, "compact", lambda found: calls.append(found.count) or compact(found))
    found = contenders.no_contenders(np.full((40, 1), 6), JoinParams(k=6, k_cross=0))
    rng = np.random.default_rng(0)
    slots, rows = np.arange(40), 200
    similarity = rng.random((rows, 40), dtype=np.float32)
    for row in range(rows):
        contenders.add(found, slots, np.full(40, row, np.int32), similarity[row])
    slot, row = compact(found)

    kept = {(int(s), int(r)) for s, r in zip(slot, row, strict=True)}
    best = np.argsort(-similarity, axis=0)[:7]
    assert kept >= {(s, int(r)) for s in range(40) for r in best[:, s]}
    assert len(kept) <= 40 * 10
    assert 3 < len(calls) < 40


def test_float16_is_widened_as_it_is():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 8)
    assert (widened(finite).view(np.uint32) == finite.astype(np.float32).view(np.uint32)).all()
    assert np.array_equal(widened(every[None]), every[None].astype(np.float32), equal_nan=True)
    assert (widened(finite[::3, ::2]) == finite[::3, ::2].astype(np.float32)).all()


def test_nearly_equal_vectors_are_ranked_in_float64():
    """600 rows whose similarities differ by less than float32 resolves: no overfetch would be enough."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(64) + 3e-5 * rng.standard_normal((600, 64))).astype(np.float32)
    images = (rng.permutation(600).astype(np.int64), x, split_masks(np.arange(600) % 2))
    params = JoinParams(k=10, k_cross=3)
    assert rows_of(exact_join(images, params)) == brute_force(images, images, params)


@pytest.mark.parametrize("dimensions", [8, 320, 2048])
def test_the_float32_search_errs_less_than_its_ranking_allows(dimensions):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((512, dimensions)) + rng.standard_normal(dimensions)
    wide = x / np.linalg.norm(x, axis=1, keepdims=True)
    stored = x.astype(np.float32)
    unit = stored / np.linalg.norm(stored.astype(np.float64), axis=1, keepdims=True).astype(np.float32)
    assert np.abs(unit @ unit.T - wide @ wide.T).max() < FLOAT32_ERROR / 4


def test_up_to_64_splits_and_no_more():
    split = np.arange(128) % 64
    images = (np.arange(128), np.random.default_rng(0).standard_normal((128, 8)).astype(np.float32), split_masks(split))
    params = JoinParams(k=3, k_cross=1)
    assert rows_of(exact_join(images, params)) == brute_force(images, images, params)
    for wrong in (64, -1):
        with pytest.raises(UsageError, match="0 to 63"):
            split_masks(np.array([0, wrong]))


def test_one_list_over_all_splits_is_a_mask_of_ones():
    ids, x, _ = images_of(8, 200)
    ones = np.ones(200, dtype=np.uint64)
    params = JoinParams(k=32, k_cross=0)
    assert rows_of(exact_join((ids, x, ones), params)) == brute_force((ids, x, ones), (ids, x, ones), params)


def test_k_cross_zero_searches_only_the_own_splits():
    images = images_of(9, 150)
    params = JoinParams(k=4, k_cross=0)
    assert rows_of(exact_join(images, params)) == brute_force(images, images, params)


def test_a_query_outside_the_database_finds_everything():
    images, queries = images_of(4, 80), images_of(5, 30)
    queries = (queries[0] + 10_000, *queries[1:])
    params = JoinParams(k=3, k_cross=2)
    assert rows_of(exact_join(images, params, queries)) == brute_force(images, queries, params)


def test_empty_sides_and_foreign_lists_give_no_hits():
    ids, x, mask = images_of(1, 10)
    none = (ids[:0], x[:0], mask[:0])
    assert len(exact_join(none, JoinParams())) == len(exact_join((ids, x, mask), JoinParams(), none)) == 0
    assert len(exact_join(none, JoinParams(), (ids, x, mask))) == 0
    db = build_database(ids, x, mask, np.zeros(10, dtype=np.int32))
    assert len(join_lists(db, ids, x, mask, np.full((10, 2), 7, dtype=np.int32), JoinParams())) == 0


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused_and_named(bad):
    ids, x, mask = images_of(1, 10)
    x[3] = 0
    x[3, 1] = bad
    assert searchable_rows(x).tolist() == [i != 3 for i in range(10)]
    with pytest.raises(UsageError, match=r"1 of 10 vectors .* row 3"):
        build_database(ids, x, mask, np.zeros(10, dtype=np.int32))
    good = np.where(searchable_rows(x)[:, None], x, 1).astype(np.float32)
    db = build_database(ids, good, mask, np.zeros(10, dtype=np.int32))
    with pytest.raises(UsageError, match="join queries: 1 of 10"):
        join_lists(db, ids, x, mask, np.zeros((10, 1), dtype=np.int32), JoinParams())


def test_wrong_input_is_refused():
    ids, x, mask = images_of(1, 10)
    lists = np.zeros(10, dtype=np.int32)
    for arguments in [
        (ids[:9], x, mask, lists),
        (ids, x.astype(np.float64), mask, lists),
        (ids, x, mask * np.uint64(0), lists),
        (ids, x, mask, lists - 1),
        (ids * 0, x, mask, lists),
    ]:
        with pytest.raises(UsageError):
            build_database(*arguments)
    db = build_database(ids, x, mask, lists)
    for arguments in [(ids, x[:, :5], mask, lists[:, None]), (ids, x, mask, lists), (ids[:9], x, mask, lists[:, None])]:
        with pytest.raises(UsageError):
            join_lists(db, *arguments, JoinParams())
    for wrong in [{"k": 0}, {"k": 2, "k_cross": 3}, {"threshold": 1.5}, {"overfetch": 0}, {"least": 1.5}]:
        with pytest.raises(UsageError):
            JoinParams(**wrong)
