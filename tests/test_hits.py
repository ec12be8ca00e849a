"""What is done with hits: saturated queries, the interval of a recall, merging."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_join import exact_join, images_of, rows_of

from pipeline.errors import UsageError
from pipeline.kernels import hits as hits_module
from pipeline.kernels.hits import (
    Hits,
    JoinParams,
    concatenate_hits,
    empty_hits,
    merge_hits,
    saturated_queries,
    wilson,
)


def test_saturated_queries_have_a_full_list_at_the_threshold():
    ids, x, mask = images_of(14, 300, d=6)
    params = JoinParams(k=4, k_cross=2, threshold=0.8)
    hits = exact_join((ids, x, mask), params)
    count = {}
    for q, _, s, split, own in rows_of(hits):
        count[q, split, own] = count.get((q, split, own), 0) + (s >= float(np.float32(0.8)))
    expected = sorted({q for (q, _, own), c in count.items() if c == (4 if own else 2)})
    assert saturated_queries(hits, params).tolist() == expected
    assert 0 < len(expected) < 300
    with pytest.raises(UsageError, match="threshold"):
        saturated_queries(hits, JoinParams())


def test_interval_of_a_share_is_wilsons():
    low, high = wilson(1, 10)
    assert (round(low, 4), round(high, 4)) == (0.0179, 0.4042)  # Newcombe 1998, table I method 3
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(900, 1000)
    assert 0.87 < low < 0.9 < high < 0.93


def test_merging_keeps_one_row_of_a_match_found_twice():
    hits = exact_join(images_of(16, 60), JoinParams(k=3, k_cross=1))
    assert rows_of(merge_hits([hits, hits], JoinParams(k=3, k_cross=1))) == rows_of(hits)
    assert len(merge_hits([], JoinParams())) == 0
    lower = replace(hits, similarity=hits.similarity - np.float32(1e-6))  # as another kind of CPU might round it
    assert rows_of(merge_hits([lower, hits], JoinParams(k=3, k_cross=1))) == rows_of(hits)
    assert rows_of(merge_hits([hits, lower], JoinParams(k=3, k_cross=1))) == rows_of(hits)
    assert rows_of(concatenate_hits([hits, empty_hits()])) == rows_of(hits)


def test_merging_survives_keys_that_share_their_64_bits(monkeypatch):
    hits = exact_join(images_of(17, 60), JoinParams(k=3, k_cross=1))
    monkeypatch.setattr(hits_module, "mix", lambda ids, salt=0: np.zeros(len(ids), dtype=np.uint64))
    shuffled = hits.take(np.random.default_rng(0).permutation(len(hits)))
    assert rows_of(merge_hits([hits, shuffled], JoinParams(k=3, k_cross=1))) == rows_of(hits)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 300), st.sampled_from([0, 1 << 40]))
def test_merging_is_a_sort_and_a_cut(seed, n, far):
    """Ties in similarity, repeats, and query ids that lie far apart."""
    rng = np.random.default_rng(seed)
    split = rng.integers(0, 3, n).astype(np.int8)
    query = rng.integers(0, 5, n) * (1 + far) - far
    similarity = np.round(rng.choice([-1, -0.2, 0.0, 0.3, 0.300001, 1], n), 6).astype(np.float32)
    hits = Hits(query, rng.integers(0, 40, n), similarity, split, (query + split) % 2 == 0)
    params = JoinParams(k=4, k_cross=2)
    best = {}
    for row in rows_of(hits):
        key = (row[0], row[3], row[1])
        best[key] = max(best.get(key, -2), row[2])
    expected, count = [], {}
    for (q, s, match), value in sorted(best.items(), key=lambda item: (item[0][0], item[0][1], -item[1], item[0][2])):
        own = (q + s) % 2 == 0
        count[q, s] = count.get((q, s), 0) + 1
        if count[q, s] <= (4 if own else 2):
            expected.append((q, match, value, s, own))
    cut = np.sort(rng.integers(0, n + 1, 2))
    parts = [hits.take(slice(0, cut[0])), hits.take(slice(cut[0], cut[1])), hits.take(slice(cut[1], n))]
    assert rows_of(merge_hits(parts, params)) == expected
