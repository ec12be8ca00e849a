"""Groups of equal hashes against a dict."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.components import merge_forests
from pipeline.kernels.hash_groups import hash_bytes, hash_group_edges

# Few distinct halves, so that hashes agree in their first or their last 8 bytes alone.
HASH = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda t: b"%08d%08d" % t)


def as_bytes(hashes):
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(hashes), 16)


def brute_force(ids, hashes):
    smallest = {}
    for i, h in zip(ids, hashes, strict=True):
        if h is not None:
            smallest[h] = min(i, smallest.get(h, i))
    return sorted((i, smallest[h]) for i, h in zip(ids, hashes, strict=True) if h is not None and smallest[h] != i)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), HASH), max_size=40), st.integers(0, 1000), st.integers(1, 4))
def test_every_image_points_at_the_smallest_id_of_its_hash(hashes, seed, buckets):
    ids = np.random.default_rng(seed).permutation(10 * len(hashes) + 1)[: len(hashes)].astype(np.int64)
    values, is_valid = hash_bytes(pa.array(hashes, type=pa.binary(16)))
    edges = hash_group_edges(ids, values, is_valid)
    expected = brute_force(ids.tolist(), hashes)
    assert list(zip(edges.child.tolist(), edges.root.tolist(), strict=True)) == expected
    bucket = values[:, 7] % buckets
    parts = [hash_group_edges(ids[bucket == b], values[bucket == b], is_valid[bucket == b]) for b in range(buckets)]
    merged = merge_forests(parts)
    assert list(zip(merged.child.tolist(), merged.root.tolist(), strict=True)) == expected


def test_content_then_pixel_hashes_make_one_group():
    content = as_bytes([b"a" * 16, b"a" * 16, b"b" * 16, b"c" * 16])
    pixels = as_bytes([b"x" * 16, b"x" * 16, b"x" * 16, b"y" * 16])
    ids = np.array([4, 9, 2, 1])
    merged = merge_forests([hash_group_edges(ids, content), hash_group_edges(ids, pixels)])
    assert (merged.child.tolist(), merged.root.tolist()) == ([4, 9], [2, 2])


def test_a_null_hash_equals_nothing_and_a_hash_of_zeros_is_a_hash():
    zeros = np.zeros((4, 16), dtype=np.uint8)
    edges = hash_group_edges(np.arange(4), zeros, np.array([False, True, False, True]))
    assert (edges.child.tolist(), edges.root.tolist()) == ([3], [1])
    assert len(hash_group_edges(np.arange(4), zeros, np.zeros(4, dtype=bool)).child) == 0
    assert len(hash_group_edges(np.arange(0), zeros[:0]).child) == 0


def test_a_slice_and_chunks_of_an_arrow_column_keep_their_rows():
    column = pa.array([b"a" * 16, None, b"b" * 16, b"a" * 16, b"b" * 16], type=pa.binary(16))
    for piece in (column.slice(2), pa.chunked_array([column.slice(2, 1), column.slice(3)])):
        values, is_valid = hash_bytes(piece)
        assert [bytes(v) for v in values] == [b"b" * 16, b"a" * 16, b"b" * 16]
        assert is_valid.all()
    values, is_valid = hash_bytes(pa.chunked_array([], type=pa.binary(16)))
    assert values.shape == (0, 16)
    assert is_valid.shape == (0,)


def test_wrong_hashes_are_refused():
    with pytest.raises(UsageError, match="fixed_size_binary"):
        hash_bytes(pa.array([b"abc"]))
    for hashes in (np.zeros((2, 8), np.uint8), np.zeros((3, 16), np.uint8), np.zeros((2, 16), np.int8)):
        with pytest.raises(UsageError, match="want uint8"):
            hash_group_edges(np.arange(2), hashes)
    with pytest.raises(UsageError, match="is_valid"):
        hash_group_edges(np.arange(2), np.zeros((2, 16), np.uint8), np.ones(3, dtype=bool))
