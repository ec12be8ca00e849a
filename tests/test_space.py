"""The copy space: whitening against its formula, results that do not depend on the batch, odd features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from benchmarks.copy_space import score_copies
from pipeline.errors import ArtifactError, ModelError, UsageError
from pipeline.kernels.moments import Moments, blend, moments_of
from pipeline.kernels.space import (
    CopySpace,
    SpaceParams,
    normalise_embeddings,
    normalise_signatures,
    pair_similarities,
    project_copy,
    project_semantic,
    space_from_bytes,
    space_to_bytes,
    train_copy_space,
)

D = 40


def features(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float16 (n, D) of a few dominant directions and smooth signatures uint8 (n, 256)."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(D, D)) * np.linspace(3, 0.2, D)[:, None]
    embeddings = (rng.normal(size=(n, D)) @ mixing + 2).astype(np.float16)
    coarse = rng.uniform(0, 255, size=(n, 4, 4))
    signatures = np.kron(coarse, np.ones((4, 4))) + rng.normal(0, 5, size=(n, 16, 16))
    return embeddings, np.clip(signatures, 0, 255).astype(np.uint8).reshape(n, 256)


def trained(seed: int = 1, n: int = 3000, params: SpaceParams | None = None) -> CopySpace:
    embeddings, signatures = features(seed, n)
    moments = moments_of(normalise_embeddings(embeddings)), moments_of(normalise_signatures(signatures))
    return train_copy_space(*moments, params or SpaceParams())


SPACE = trained()


def test_vectors_are_unit_and_as_long_as_the_space_says():
    embeddings, signatures = features(2, 1500)
    copy = project_copy(SPACE, embeddings, signatures)
    assert copy.dtype == np.float32
    assert copy.shape == (1500, SPACE.dimension) == (1500, D + 96)
    np.testing.assert_allclose(np.linalg.norm(copy, axis=1), 1, atol=1e-6)
    semantic = project_semantic(embeddings)
    reference = embeddings.astype(np.float64)
    np.testing.assert_allclose(semantic, reference / np.linalg.norm(reference, axis=1, keepdims=True), atol=1e-6)


def test_whitening_scales_each_axis_by_its_share_of_the_largest_sigma():
    params = SpaceParams(embedding_dims=7, regulariser=0.2)
    space = trained(params=params)
    unit = normalise_embeddings(features(1, 3000)[0])
    covariance = np.cov(unit.T, bias=True)
    sigma = np.sqrt(np.sort(np.linalg.eigvalsh(covariance))[::-1][:7])
    projected = (unit - space.embedding.mean) @ space.embedding.matrix
    wanted = (sigma / (sigma / sigma[0] + 0.2)) ** 2
    np.testing.assert_allclose(np.cov(projected.T, bias=True), np.diag(wanted), atol=1e-9)


def test_the_weights_are_the_share_of_each_part_in_the_similarity():
    embeddings, signatures = features(5, 200)
    vectors = project_copy(SPACE, embeddings, signatures).astype(np.float64)
    np.testing.assert_allclose((vectors[:, :D] ** 2).sum(axis=1), 0.65, atol=1e-6)
    np.testing.assert_allclose((vectors[:, D:] ** 2).sum(axis=1), 0.35, atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 2300), st.integers(0, 2**32 - 1))
def test_no_bit_of_a_projection_depends_on_the_other_rows(n, seed):
    embeddings, signatures = features(7, 2300)
    whole = project_copy(SPACE, embeddings, signatures)
    rows = np.random.default_rng(seed).permutation(2300)[:n]
    np.testing.assert_array_equal(project_copy(SPACE, embeddings[rows], signatures[rows]), whole[rows])
    np.testing.assert_array_equal(project_semantic(embeddings[rows]), project_semantic(embeddings)[rows])


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 1500), st.integers(0, 2**32 - 1))
def test_no_bit_of_a_similarity_depends_on_side_order_or_batch(n, seed):
    rng = np.random.default_rng(seed)
    embeddings, signatures = features(8, 400)
    i, j = rng.integers(0, 400, 1500), rng.integers(0, 400, 1500)
    whole = pair_similarities(SPACE, embeddings[i], signatures[i], embeddings[j], signatures[j])
    rows = rng.permutation(1500)[:n]
    i, j = i[rows], j[rows]
    swapped = pair_similarities(SPACE, embeddings[j], signatures[j], embeddings[i], signatures[i])
    for ours, all_pairs in zip(swapped, whole, strict=True):
        np.testing.assert_array_equal(ours, all_pairs[rows])


def test_pair_similarities_are_cosines_rounded_to_six_decimals():
    (ea, sa), (eb, sb) = features(1, 300), features(2, 300)
    copy, semantic, signature = pair_similarities(SPACE, ea, sa, eb, sb)
    by_projection = (project_copy(SPACE, ea, sa) * project_copy(SPACE, eb, sb)).sum(axis=1)
    np.testing.assert_allclose(copy, by_projection, atol=2e-6)
    np.testing.assert_allclose(semantic, (project_semantic(ea) * project_semantic(eb)).sum(axis=1), atol=2e-6)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(sa.astype(float), sb.astype(float), strict=True)]
    np.testing.assert_allclose(signature, correlation, atol=1e-6)
    for values in (copy, semantic, signature):
        np.testing.assert_array_equal(values, np.round(values, 6))
    np.testing.assert_array_equal(pair_similarities(SPACE, ea, sa, ea, sa), np.ones((3, 300)))


def test_flat_signatures_and_zero_embeddings_are_zero_and_never_nan():
    embeddings, signatures = features(3, 4)
    signatures[0] = 200
    signatures[1] = 0
    embeddings[1:3] = 0
    assert not normalise_signatures(signatures)[:2].any()
    vectors = project_copy(SPACE, embeddings, signatures)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1], atol=1e-6)
    assert not vectors[0, D:].any()
    assert not vectors[2, :D].any()
    pairs = pair_similarities(SPACE, embeddings, signatures, embeddings[::-1], signatures[::-1])
    assert all(np.isfinite(values).all() for values in pairs)


def test_two_images_that_are_flat_are_compared_by_their_embeddings():
    embeddings, signatures = features(3, 2)
    signatures[:] = 17
    same = pair_similarities(SPACE, embeddings[:1], signatures[:1], embeddings[:1], signatures[:1])
    assert same.copy[0] == 1.0
    assert same.signature[0] == 0.0


def test_an_embedding_that_is_not_finite_is_a_model_error_that_names_the_row():
    embeddings, signatures = features(3, 5)
    embeddings[3, 7] = np.nan
    with pytest.raises(ModelError, match=r"1 of 5 .* row 3"):
        project_copy(SPACE, embeddings, signatures)
    embeddings[3, 7] = np.inf
    with pytest.raises(ModelError, match="row 3"):
        project_semantic(embeddings)


def test_no_images_give_no_vectors():
    embeddings, signatures = features(3, 0)
    assert project_copy(SPACE, embeddings, signatures).shape == (0, SPACE.dimension)
    assert project_semantic(embeddings).shape == (0, D)
    assert all(len(values) == 0 for values in pair_similarities(SPACE, embeddings, signatures, embeddings, signatures))


def test_the_border_of_a_signature_matters_less_than_its_centre():
    signatures = features(3, 50)[1].reshape(50, 16, 16)
    border, centre = signatures.copy(), signatures.copy()
    border[:, :2], border[:, -2:] = 0, 0
    centre[:, 6:10] = 0
    plain = normalise_signatures(signatures.reshape(50, 256))
    of_border = (plain * normalise_signatures(border.reshape(50, 256))).sum(axis=1)
    of_centre = (plain * normalise_signatures(centre.reshape(50, 256))).sum(axis=1)
    assert of_border.mean() > 0.85
    assert of_centre.mean() < of_border.mean() - 0.3


def test_blended_moments_make_a_space_of_two_images_that_still_separates():
    ea, sa = features(1, 4000)
    shipped = moments_of(normalise_embeddings(ea)), moments_of(normalise_signatures(sa))
    eb, sb = features(9, 2)
    own = moments_of(normalise_embeddings(eb)), moments_of(normalise_signatures(sb))
    space = train_copy_space(blend(own[0], shipped[0]), blend(own[1], shipped[1]), SpaceParams())
    vectors = project_copy(space, np.concatenate([eb, eb * np.float16(1.01)]), np.concatenate([sb, sb]))
    similarities = vectors @ vectors.T
    assert similarities[0, 2] > 0.99
    assert abs(similarities[0, 1]) < 0.5


def test_equal_moments_give_equal_bytes_and_bytes_the_same_space():
    with threadpool_limits(1):  # as in every worker: the number of threads changes the last bits of eigenvectors
        is_equal = space_to_bytes(trained()) == space_to_bytes(trained())
    assert is_equal
    back = space_from_bytes(space_to_bytes(SPACE))
    embeddings, signatures = features(4, 100)
    np.testing.assert_array_equal(
        project_copy(back, embeddings, signatures), project_copy(SPACE, embeddings, signatures)
    )
    assert back.weights == SPACE.weights


def test_the_sign_that_eigenvectors_leave_open_is_fixed():
    moments = Moments(9, np.zeros(3), np.diag([3.0, 2.0, 1.0]))
    matrix = train_copy_space(moments, moments, SpaceParams()).embedding.matrix
    assert (matrix[np.abs(matrix).argmax(axis=0), np.arange(3)] > 0).all()


@pytest.mark.parametrize("data", [b"", b"PK not a zip", space_to_bytes(SPACE)[:500]])
def test_damaged_bytes_are_an_artifact_error(data):
    with pytest.raises(ArtifactError, match="stored space"):
        space_from_bytes(data)


@pytest.mark.parametrize(
    "wrong", [{"embedding_dims": 0}, {"embedding_weight": 1.0}, {"regulariser": 0.0}, {"prior": -1}]
)
def test_params_are_checked(wrong):
    with pytest.raises(UsageError, match="space: "):
        SpaceParams(**wrong)


def test_the_copy_scores_of_the_benchmark_equal_a_ranked_list_by_hand():
    rng = np.random.default_rng(2)
    database = rng.normal(size=(60, 6))
    originals = rng.permutation(60)[:25]
    queries = database[originals] + rng.normal(size=(25, 6)) * rng.uniform(0, 2, size=(25, 1))
    database /= np.linalg.norm(database, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    is_true = np.zeros((25, 60), dtype=bool)
    is_true[np.arange(25), originals] = True
    ranked = is_true.ravel()[np.argsort(-(queries @ database.T).ravel(), kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, ranked.size + 1)
    scores = score_copies(queries, database, originals)
    assert scores.uap == pytest.approx(precision[ranked].mean())
    assert scores.recall_at_p90 == pytest.approx(np.cumsum(ranked)[ranked & (precision >= 0.9)].max(initial=0) / 25)
