"""The `copy` and `semantic` spaces: how stored features become the unit vectors that are searched and compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.moments import MOMENTS_PRIOR, Moments
from pipeline.kernels.npz import pack_arrays, unpack_arrays

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Every projection is a GEMM over exactly this many rows (the last block is padded), so that a row's bits do not
# depend on how many rows came with it.
BLOCK_ROWS = 1024
SIMILARITY_DECIMALS = 6
SIGNATURE_SIDE = 16
TAPER_SIGMA = 0.4  # of half the side; crops, rotations with black corners and frames change the border first


@dataclass(frozen=True)
class SpaceParams:
    """How the copy space is trained. Dimensions are upper bounds, the signature weighs 1 - embedding_weight.

    Measured on 600 photos x 9 edits, 2,400 distractors, at the threshold of 0.1 false candidates among 8,400 images
    and among 1M: 256 + 64 dimensions, weight .7, regulariser .1 find .930 and .25 of the edits (uAP .9966, without
    the taper of `normalise_signatures` .987); regulariser .03 and these dimensions .975 and .63; these values .983
    and .72 (uAP .9977).
    """

    embedding_dims: int = 224
    signature_dims: int = 96
    embedding_weight: float = 0.65
    regulariser: float = 0.01
    prior: int = MOMENTS_PRIOR

    def __post_init__(self) -> None:
        problems = []
        if self.embedding_dims < 1 or self.signature_dims < 1:
            problems.append(f"dimensions {self.embedding_dims} and {self.signature_dims}, want at least 1")
        if not 0 < self.embedding_weight < 1:
            problems.append(f"embedding_weight {self.embedding_weight}, want more than 0 and less than 1")
        if not self.regulariser > 0:
            problems.append(f"regulariser {self.regulariser}, want more than 0")
        if self.prior < 0:
            problems.append(f"prior {self.prior}, want at least 0")
        if problems:
            raise UsageError("space: " + "; ".join(problems))


@dataclass(frozen=True)
class WhiteningTransform:
    """`(x - mean) @ matrix`: mean float64 (d_in,), matrix float64 (d_in, d_out)."""

    mean: Float64
    matrix: Float64


@dataclass(frozen=True)
class CopySpace:
    """The trained transform of both features and the weights (embedding, signature), which sum to 1."""

    embedding: WhiteningTransform
    signature: WhiteningTransform
    weights: tuple[float, float]

    @property
    def dimension(self) -> int:
        """Length of the vectors of `project_copy`."""
        return int(self.embedding.matrix.shape[1] + self.signature.matrix.shape[1])


class PairSimilarities(NamedTuple):
    """Three similarities per pair, float64 (n,), rounded to 1e-6."""

    copy: Float64
    semantic: Float64
    signature: Float64


@dataclass(frozen=True)
class ExactVectors:
    """Unit vectors in float64 (n, d), computed once per image and compared in many pairs."""

    copy: Float64
    semantic: Float64
    signature: Float64


def _taper() -> Float64:
    offset = (np.arange(SIGNATURE_SIDE) - (SIGNATURE_SIDE - 1) / 2) / (SIGNATURE_SIDE / 2)
    weight = np.exp(-((offset / TAPER_SIGMA) ** 2) / 2)
    cells = np.outer(weight, weight).ravel()
    normalised: Float64 = cells / cells.sum()
    return normalised


_TAPER = _taper()


def train_copy_space(embedding: Moments, signature: Moments, params: SpaceParams) -> CopySpace:
    """The copy space from (blended) moments of normalised embeddings and normalised signatures."""
    return CopySpace(
        _whitening(embedding, params.embedding_dims, params.regulariser),
        _whitening(signature, params.signature_dims, params.regulariser),
        (params.embedding_weight, 1 - params.embedding_weight),
    )


def normalise_embeddings(embeddings: NDArray[np.floating]) -> Float64:
    """Stored embeddings (n, d) as unit vectors, float64. A zero row stays zero; ModelError for NaN or infinity."""
    vectors = embeddings.astype(np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ModelError(
            f"{int((~finite).sum())} of {len(vectors)} embeddings hold NaN or infinity (first: row {row}); "
            "the model overflows float16 or is broken: check it on that image"
        )
    return _unit(vectors)


def normalise_signatures(signatures: NDArray[np.uint8]) -> Float64:
    """Stored signatures uint8 (n, 256) as unit vectors, float64, mean removed and the centre weighing more.

    The cells are weighted by a Gaussian of the distance to the centre. A flat signature becomes zero, never NaN.
    """
    vectors = signatures.astype(np.float64)
    centred = (vectors - (vectors * _TAPER).sum(axis=1, keepdims=True)) * np.sqrt(_TAPER)
    centred[signatures.min(axis=1, initial=255) == signatures.max(axis=1, initial=0)] = 0.0
    return _unit(centred)


def project_copy(space: CopySpace, embeddings: NDArray[np.floating], signatures: NDArray[np.uint8]) -> Float32:
    """Unit vectors of the copy space, float32 (n, dimension); the bits of a row do not depend on the other rows.

    An image whose signature is flat or whose embedding is zero is compared by the other part alone; one that lacks
    both becomes zero and is similar to nothing.
    """
    out = np.empty((len(embeddings), space.dimension), dtype=np.float32)
    for start in range(0, len(embeddings), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        unit = (normalise_embeddings(embeddings[rows]), normalise_signatures(signatures[rows]))
        out[rows] = _copy_vectors(space, *unit)
    return out


def project_semantic(embeddings: NDArray[np.floating]) -> Float32:
    """Unit vectors of the semantic space, float32 (n, d): the raw embedding, L2-normalised."""
    out = np.empty(embeddings.shape, dtype=np.float32)
    for start in range(0, len(embeddings), BLOCK_ROWS):
        out[start : start + BLOCK_ROWS] = normalise_embeddings(embeddings[start : start + BLOCK_ROWS])
    return out


def exact_vectors(space: CopySpace, embeddings: NDArray[np.floating], signatures: NDArray[np.uint8]) -> ExactVectors:
    """Float64 unit vectors of images that occur in many pairs; compare them with `compare_rows`."""
    semantic = normalise_embeddings(embeddings)
    signature = normalise_signatures(signatures)
    thumbnail = signatures.astype(np.float64)
    copy = np.empty((len(semantic), space.dimension))
    for start in range(0, len(semantic), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        copy[rows] = _copy_vectors(space, semantic[rows], signature[rows])
    return ExactVectors(copy, semantic, _unit(thumbnail - thumbnail.mean(axis=1, keepdims=True)))


def compare_rows(a: ExactVectors, b: ExactVectors, i: NDArray[np.int64], j: NDArray[np.int64]) -> PairSimilarities:
    """Similarities of row `i[k]` of `a` with row `j[k]` of `b`: symmetric, and independent of the other pairs."""
    return PairSimilarities(
        _row_cosines(a.copy, b.copy, i, j),
        _row_cosines(a.semantic, b.semantic, i, j),
        _row_cosines(a.signature, b.signature, i, j),
    )


def pair_similarities(
    space: CopySpace,
    embeddings_a: NDArray[np.floating],
    signatures_a: NDArray[np.uint8],
    embeddings_b: NDArray[np.floating],
    signatures_b: NDArray[np.uint8],
) -> PairSimilarities:
    """The similarities that tables carry, of row k of side a with row k of side b.

    Embeddings (n, d) as stored, signatures uint8 (n, 256). Computed in float64 and rounded to 1e-6; swapping the
    sides, shuffling or splitting the pairs changes no bit. `signature` is the correlation of the thumbnails,
    `semantic` the cosine of the raw embeddings.
    """
    rows = np.arange(len(embeddings_a), dtype=np.int64)
    a = exact_vectors(space, embeddings_a, signatures_a)
    return compare_rows(a, exact_vectors(space, embeddings_b, signatures_b), rows, rows)


def space_to_bytes(space: CopySpace) -> bytes:
    """The space as npz; equal spaces give equal bytes."""
    arrays = {
        "embedding_mean": space.embedding.mean,
        "embedding_matrix": space.embedding.matrix,
        "signature_mean": space.signature.mean,
        "signature_matrix": space.signature.matrix,
        "weights": np.array(space.weights),
    }
    return pack_arrays(arrays)


def space_from_bytes(data: bytes) -> CopySpace:
    """Read what `space_to_bytes` wrote; ArtifactError for anything else. No pickle is read."""
    names = ("embedding_mean", "embedding_matrix", "signature_mean", "signature_matrix", "weights")
    arrays = unpack_arrays(data, names, "stored space")
    return CopySpace(
        WhiteningTransform(arrays["embedding_mean"], arrays["embedding_matrix"]),
        WhiteningTransform(arrays["signature_mean"], arrays["signature_matrix"]),
        (float(arrays["weights"][0]), float(arrays["weights"][1])),
    )


def _whitening(moments: Moments, dims: int, regulariser: float) -> WhiteningTransform:
    """PCA to at most `dims` axes, each scaled by 1 / (sigma / sigma_max + regulariser)."""
    variances, axes = np.linalg.eigh(moments.cov)
    order = np.argsort(variances, kind="stable")[::-1][:dims]
    sigma = np.sqrt(np.maximum(variances[order], 0.0))
    axes = axes[:, order]
    # eigh leaves each sign open: the largest entry is made positive, so that equal moments give equal bytes.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    largest = sigma[0] if sigma[0] > 0 else 1.0
    return WhiteningTransform(moments.mean.copy(), axes * signs / (sigma / largest + regulariser))


def _copy_vectors(space: CopySpace, embedding: Float64, signature: Float64) -> Float64:
    """At most 1,024 unit rows of each part to unit rows of the copy space, float64."""
    parts = []
    sides = ((embedding, space.embedding, space.weights[0]), (signature, space.signature, space.weights[1]))
    for unit, transform, weight in sides:
        block = np.zeros((BLOCK_ROWS, unit.shape[1]))
        block[: len(unit)] = unit - transform.mean
        projected: Float64 = _unit((block @ transform.matrix)[: len(unit)])
        projected[~unit.any(axis=1)] = 0.0
        parts.append(projected * math.sqrt(weight))
    return _unit(np.concatenate(parts, axis=1))


def _unit(vectors: Float64) -> Float64:
    norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    unit: Float64 = vectors / np.where(norms > 0, norms, 1.0)
    return unit


def _row_cosines(a: Float64, b: Float64, i: NDArray[np.int64], j: NDArray[np.int64]) -> Float64:
    out = np.empty(len(i))
    for start in range(0, len(i), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        # A sum along contiguous rows adds in an order fixed by the length; a product commutes: so a-b equals b-a.
        out[rows] = (a[i[rows]] * b[j[rows]]).sum(axis=1)
    rounded: Float64 = np.asarray(np.round(np.clip(out, -1.0, 1.0), SIMILARITY_DECIMALS), dtype=np.float64)
    return rounded + 0.0  # no negative zero
