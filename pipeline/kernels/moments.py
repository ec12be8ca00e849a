"""Count, mean and covariance of vectors: they merge over shards and blend with the moments shipped beside a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.npz import pack_arrays, unpack_arrays

Float64 = NDArray[np.float64]

BLOCK_ROWS = 1024
MOMENTS_PRIOR = 500  # a folder of this many images weighs as much as the shipped moments


@dataclass(frozen=True)
class Moments:
    """First two moments of n vectors: `mean` float64 (d,), `cov` float64 (d, d), divided by n, not n - 1."""

    count: int
    mean: Float64
    cov: Float64

    def __post_init__(self) -> None:
        d = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if self.count < 0 or d < 1 or self.cov.shape != (d, d):
            raise UsageError(
                f"moments of count {self.count}, mean {self.mean.shape}, covariance {self.cov.shape}; "
                "want count >= 0, mean (d,), covariance (d, d)"
            )


def empty_moments(dimension: int) -> Moments:
    """Moments of no vectors: the neutral element of `merge`."""
    return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))


def moments_of(vectors: NDArray[np.floating]) -> Moments:
    """Moments of vectors (n, d) of any float type, accumulated in float64 over blocks of 1,024 rows."""
    if vectors.ndim != 2:
        raise UsageError(f"moments need vectors of shape (n, d), got {vectors.shape}")
    total = empty_moments(vectors.shape[1])
    for start in range(0, vectors.shape[0], BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS].astype(np.float64)
        mean = block.mean(axis=0)
        centred = block - mean
        total = merge(total, Moments(block.shape[0], mean, centred.T @ centred / block.shape[0]))
    return total


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union; exact but for rounding, so callers merge in sorted part order (Chan et al. 1979)."""
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    count = a.count + b.count
    share = b.count / count
    shift = b.mean - a.mean
    cov = a.cov * (1 - share) + b.cov * share + np.outer(shift, shift) * (share * (1 - share))
    return Moments(count, a.mean + shift * share, cov)


def blend(own: Moments, shipped: Moments | None, prior: int = MOMENTS_PRIOR) -> Moments:
    """Own moments leaning on the shipped ones: weight n / (n + prior) for the own.

    Without shipped moments (a user's own model) the mean leans on zero and the covariance on the isotropic one of
    equal trace, so that a folder of two images is compared by nearly plain cosine and nothing is divided by zero.
    The count of the result is the own count.
    """
    weight = own.count / (own.count + prior) if own.count else 0.0
    if shipped is None:
        d = own.mean.shape[0]
        variance = np.trace(own.cov) / d
        base = Moments(0, np.zeros(d), np.eye(d) * (variance if variance > 0 else 1.0))
    else:
        base = shipped
    if base.mean.shape != own.mean.shape:
        raise UsageError(f"shipped moments have dimension {base.mean.shape[0]}, the images' have {own.mean.shape[0]}")
    mean = weight * own.mean + (1 - weight) * base.mean
    return Moments(own.count, mean, weight * own.cov + (1 - weight) * base.cov)


def moments_to_bytes(moments: Moments) -> bytes:
    """The moments as npz; equal moments give equal bytes."""
    return pack_arrays({"count": np.array(moments.count), "mean": moments.mean, "cov": moments.cov})


def moments_from_bytes(data: bytes) -> Moments:
    """Read what `moments_to_bytes` wrote; ArtifactError for anything else. No pickle is read."""
    arrays = unpack_arrays(data, ("count", "mean", "cov"), "stored moments")
    return Moments(int(arrays["count"]), arrays["mean"], arrays["cov"])
