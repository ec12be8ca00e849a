"""Search by graphs against the exact join: nearly all neighbours, and the rules that hold for any search."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.kernels.hnsw import join_hnsw
from pipeline.kernels.join import JoinParams, build_database, search_everything, split_masks


def images_of(seed, n, d=32, splits=3):
    rng = np.random.default_rng(seed)
    x = 2 * rng.standard_normal((max(1, n // 25), d))[rng.integers(0, max(1, n // 25), n)] + rng.standard_normal((n, d))
    return rng.permutation(3 * n)[:n].astype(np.int64), x.astype(np.float16), split_masks(rng.integers(0, splits, n))


def both(images, params, m=32):
    ids, x, mask = images
    db = build_database(ids, x, mask, np.zeros(len(ids), dtype=np.int32))
    return join_hnsw(db, ids, x, mask, params, m), search_everything(db, ids, x, mask, params)


def pairs(hits):
    columns = (hits.query_id, hits.match_id, hits.split, hits.is_own)
    return set(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("params", [JoinParams(), JoinParams(k=33, k_cross=0), JoinParams(least=0.8)])
def test_nearly_all_neighbours_are_found_and_ranked_alike(params):
    images = images_of(1, 3000)
    found, exact = both(images, params)
    common = pairs(found) & pairs(exact)
    assert len(common) >= 0.95 * len(exact)
    assert len(found) <= len(exact)
    assert not (found.query_id == found.match_id).any()
    known = dict(zip(zip(exact.query_id.tolist(), exact.match_id.tolist(), strict=True), exact.similarity, strict=True))
    for query, match, similarity in zip(
        found.query_id.tolist(), found.match_id.tolist(), found.similarity, strict=True
    ):
        assert known.get((query, match), similarity) == similarity
    order = np.lexsort((found.match_id, -found.similarity, found.split, found.query_id))
    assert (order == np.arange(len(found))).all()


def test_matches_are_in_the_split_that_they_are_said_to_be_in():
    ids, x, mask = images_of(2, 900)
    found, _ = both((ids, x, mask), JoinParams(k=6, k_cross=2))
    mask_of = dict(zip(ids.tolist(), mask.tolist(), strict=True))
    for query, match, split, own in pairs(found):
        assert mask_of[match] >> split & 1
        assert own == bool(mask_of[query] >> split & 1)
    count = np.unique(np.stack([found.query_id, found.split]), axis=1, return_counts=True)[1]
    assert count.max() == 6


def test_the_same_rows_give_the_same_hits_in_any_order():
    ids, x, mask = images_of(3, 800)
    first, _ = both((ids, x, mask), JoinParams())
    order = np.random.default_rng(0).permutation(800)
    second, _ = both((ids[order], x[order], mask[order]), JoinParams())
    assert pairs(first) == pairs(second)
    assert (first.similarity == second.similarity).all()


def test_few_rows_give_all_of_them():
    for n in (1, 2, 7):
        found, exact = both(images_of(4, n), JoinParams())
        assert pairs(found) == pairs(exact)
    ids, x, mask = images_of(4, 5)
    db = build_database(ids, x, mask, np.zeros(5, dtype=np.int32))
    assert len(join_hnsw(db, ids[:0], x[:0], mask[:0], JoinParams(), 16)) == 0
    empty = build_database(ids[:0], x[:0], mask[:0], np.zeros(0, dtype=np.int32))
    assert len(join_hnsw(empty, ids, x, mask, JoinParams(), 16)) == 0


def test_identical_vectors_are_found_by_the_smallest_ids():
    ids = np.random.default_rng(0).permutation(500).astype(np.int64)
    images = (ids, np.ones((500, 8), dtype=np.float32), np.ones(500, dtype=np.uint64))
    found, exact = both(images, JoinParams(k=4, k_cross=0))
    assert pairs(found) == pairs(exact)


def test_wrong_input_is_refused():
    ids, x, mask = images_of(5, 10)
    db = build_database(ids, x, mask, np.zeros(10, dtype=np.int32))
    for m in (1, 257):
        with pytest.raises(UsageError, match="links"):
            join_hnsw(db, ids, x, mask, JoinParams(), m)
    with pytest.raises(UsageError, match="join"):
        join_hnsw(db, ids, x[:, :4], mask, JoinParams(), 16)
