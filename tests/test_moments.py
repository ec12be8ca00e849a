"""Moments against NumPy, merging in any order, blending with the shipped ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError, UsageError
from pipeline.kernels.moments import (
    Moments,
    blend,
    empty_moments,
    merge,
    moments_from_bytes,
    moments_of,
    moments_to_bytes,
)


def draw(seed: int, n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(np.float32)


def assert_same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(a.cov, b.cov, rtol=0, atol=1e-8)


def test_moments_equal_numpy_over_block_borders():
    for n in (1, 2, 1023, 1024, 1025, 2500):
        x = draw(n, n, 5)
        got = moments_of(x)
        assert got.count == n
        np.testing.assert_allclose(got.mean, x.astype(np.float64).mean(axis=0), atol=1e-10)
        np.testing.assert_allclose(got.cov, np.cov(x.astype(np.float64).T, bias=True).reshape(5, 5), atol=1e-9)


def test_a_large_offset_does_not_drown_the_variance():
    x = draw(3, 3000, 4).astype(np.float64) + 1e6
    np.testing.assert_allclose(moments_of(x).cov, np.cov(x.T, bias=True), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5))
def test_merge_of_any_split_in_any_order_equals_the_whole(seed, n, cuts):
    x = draw(seed, n, 3)
    parts = [moments_of(part) for part in np.split(x, sorted(min(c, n) for c in cuts))]
    for order in (parts, parts[::-1]):
        total = empty_moments(3)
        for part in order:
            total = merge(total, part)
        assert_same(total, moments_of(x))


def test_blend_moves_from_the_shipped_to_the_own_with_the_count():
    own, shipped = moments_of(draw(1, 500, 4)), moments_of(draw(2, 900, 4))
    half = blend(own, shipped, prior=500)
    np.testing.assert_allclose(half.mean, (own.mean + shipped.mean) / 2)
    np.testing.assert_allclose(half.cov, (own.cov + shipped.cov) / 2)
    assert_same(blend(empty_moments(4), shipped), Moments(0, shipped.mean, shipped.cov))
    assert_same(blend(own, shipped, prior=0), own)


def test_without_shipped_moments_few_images_are_isotropic_and_many_their_own():
    few = blend(moments_of(draw(1, 2, 4)), None)
    assert np.linalg.cond(few.cov) < 1.1
    nothing = blend(empty_moments(4), None)
    np.testing.assert_array_equal(nothing.cov, np.eye(4))
    identical = blend(moments_of(np.ones((7, 4))), None)
    assert np.linalg.matrix_rank(identical.cov) == 4
    own = moments_of(draw(1, 50_000, 4))
    np.testing.assert_allclose(blend(own, None).cov, own.cov, atol=0.02 * np.trace(own.cov))


def test_bytes_are_equal_for_equal_moments_and_read_back_exactly():
    moments = moments_of(draw(1, 40, 3))
    assert moments_to_bytes(moments) == moments_to_bytes(moments_of(draw(1, 40, 3)))
    back = moments_from_bytes(moments_to_bytes(moments))
    assert back.count == 40
    np.testing.assert_array_equal(back.mean, moments.mean)
    np.testing.assert_array_equal(back.cov, moments.cov)


@pytest.mark.parametrize("data", [b"", b"not an npz", moments_to_bytes(empty_moments(3))[:-40]])
def test_damaged_bytes_are_an_artifact_error(data):
    with pytest.raises(ArtifactError, match="stored moments"):
        moments_from_bytes(data)


def test_wrong_shapes_are_refused():
    with pytest.raises(UsageError, match="shape"):
        moments_of(np.zeros(4))
    with pytest.raises(UsageError, match="covariance"):
        Moments(3, np.zeros(3), np.zeros((3, 2)))
    with pytest.raises(UsageError, match="dimension"):
        blend(empty_moments(3), empty_moments(4))
