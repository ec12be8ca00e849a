"""Synthetic features of any number of images, as crowded as those of photographs: every row follows from seed and id.

Real features have neighbours at every scale. In the copy space of 14,034 scene photos each decade of the share of
pairs, from 1e-2 on, lies .09 to .11 of similarity further out; an isotropic cloud, or one of equal clusters, ends after
a decade or two. So images hang on a tree (theme, family, concept, scene, view, pose), each level shared by about a
tenth of the pairs of the level above, in the coordinates that the shipped moments of the default model make white.
Measured at a million: .107 per decade, 8e-8 of all pairs over the threshold, which the rule puts at .685 for 1e-7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import space as space_kernel
from pipeline.kernels.moments import Moments
from pipeline.kernels.sampling import mix
from pipeline.models import default_model

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

SPLITS = ("test", "train", "val")  # in the order of a listing
SPLIT_SHARES = (0.05, 0.9, 0.05)
THEMES, FAMILIES, CONCEPTS = 100, 1_500, 21_841
IMAGES_PER_LABEL = 530  # of ImageNet-21K
BRANCHES = 10
EMBEDDING_DIMS, SIGNATURE_DIMS = 320, 160
DIMS = EMBEDDING_DIMS + SIGNATURE_DIMS
EMBEDDING_SHARED = (0.28, 0.36, 0.45, 0.52, 0.59, 0.66)
SIGNATURE_SHARED = (0.08, 0.12, 0.20, 0.38, 0.52, 0.65)
"""Share of the variance that images of one node have in common, level by level; layout hardly follows a theme."""
BANK_ROWS, BANK_TERMS = 2048, 4
LOOSEST, TIGHTEST = 1.15, 0.5  # how far the images of a pose lie from it, as a factor
RESIDUAL_BLOCK = 1024
EMBEDDING_LENGTH = 12.0
BORDER = 1e-3  # of the largest weight: a cell that counts less is not blown up any further


@dataclass(frozen=True)
class World:
    """A data set of `images` images. Ids run through splits, then labels, as a sorted listing does."""

    images: int
    seed: int = 0

    @cached_property
    def labels(self) -> int:
        """How many class folders there are."""
        return int(np.clip(self.images // IMAGES_PER_LABEL, 4, CONCEPTS))

    @cached_property
    def starts(self) -> Int64:
        """First id of every (split, label), split by split, and the end: int64 (3 * labels + 1,)."""
        rng = np.random.default_rng((self.seed, 1))
        weight = (np.arange(self.labels) + 0.05 * self.labels) ** -0.6  # the largest class has 3 to 6 times the mean
        weight = rng.permutation(weight / weight.sum())
        share = np.concatenate([split * weight for split in SPLIT_SHARES])
        ends = np.round(np.cumsum(share) * self.images).astype(np.int64)
        ends[-1] = self.images
        starts: Int64 = np.r_[np.int64(0), ends]
        return starts

    def cells(self, ids: Int64) -> tuple[Int64, Int64, Int64]:
        """Split, label and position in its folder of each id."""
        cell = np.searchsorted(self.starts, ids, side="right") - 1
        return cell // self.labels, cell % self.labels, ids - self.starts[cell]

    def uris(self, lo: int, hi: int) -> list[str]:
        """Names of [lo, hi), sorted: `train/n01440764/n01440764_000026.JPEG`."""
        split, label, position = self.cells(np.arange(lo, hi))
        wnids = 1_440_764 + 617 * label
        rows = zip(split.tolist(), wnids.tolist(), position.tolist(), strict=True)
        return [f"{SPLITS[s]}/n{wnid:08d}/n{wnid:08d}_{at:06d}.JPEG" for s, wnid, at in rows]


@dataclass(frozen=True)
class Colouring:
    """From white coordinates to stored features: mean and matrix (d_in, d_out) of each."""

    embedding_mean: Float32
    embedding: Float32
    signature_mean: Float32
    signature: Float32


@lru_cache(maxsize=1)
def colouring() -> Colouring:
    """The shipped moments of the default model, turned around."""
    model = default_model()
    if model.embedding_moments is None:
        raise RuntimeError("the default model has no moments")
    embedding, signature = model.embedding_moments, model.signature_moments
    taper = np.sqrt(np.maximum(space_kernel._TAPER, BORDER * space_kernel._TAPER.max()))
    return Colouring(
        embedding.mean.astype(np.float32),
        _axes(embedding, EMBEDDING_DIMS).astype(np.float32),
        (signature.mean / taper).astype(np.float32),
        (_axes(signature, SIGNATURE_DIMS) / taper).astype(np.float32),
    )


def _axes(moments: Moments, dims: int) -> NDArray[np.float64]:
    variances, axes = np.linalg.eigh(moments.cov)
    largest = np.argsort(variances)[::-1][:dims]
    scaled: NDArray[np.float64] = (axes[:, largest] * np.sqrt(np.maximum(variances[largest], 0.0))).T
    return scaled


@lru_cache(maxsize=2)
def _bank(seed: int) -> Float32:
    return np.random.default_rng((seed, 2)).standard_normal((BANK_ROWS, DIMS), np.float32)


def _node_vectors(seed: int, level: int, nodes: Int64) -> Float32:
    """White vectors of nodes of the tree: four rows of a bank each, so that any node is made without the others."""
    unique, inverse = np.unique(nodes, return_inverse=True)
    bank = _bank(seed)
    found = np.zeros((len(unique), DIMS), np.float32)
    for term in range(BANK_TERMS):
        bits = mix(unique, 100 * level + term + 1000 * seed)
        sign = np.where(bits & np.uint64(1), 0.5, -0.5).astype(np.float32)
        found += sign[:, None] * bank[(bits >> np.uint64(8)) % np.uint64(BANK_ROWS)]
    return found[inverse.ravel()]


def tree_path(world: World, ids: Int64) -> list[Int64]:
    """The node of each id on each level, from theme to pose."""
    _, label, _ = world.cells(ids)
    bits = mix(ids, 7 + 1000 * world.seed)
    first = label * CONCEPTS // world.labels
    width = np.maximum((label + 1) * CONCEPTS // world.labels - first, 1)
    concept = first + (bits >> np.uint64(20)).astype(np.int64) % width
    path = [concept * THEMES // CONCEPTS, concept * FAMILIES // CONCEPTS, concept]
    digits = (bits & np.uint64(0xFFFFF)).astype(np.int64)
    for _ in range(len(EMBEDDING_SHARED) - len(path)):
        path.append(path[-1] * BRANCHES + digits % BRANCHES)
        digits //= BRANCHES
    return path


def white_vectors(world: World, ids: Int64, residual: Float32) -> Float32:
    """White coordinates (n, 480) of images: their place in the tree, and what is theirs alone (n, 480)."""
    path = tree_path(world, ids)
    shared = np.diff(np.array([EMBEDDING_SHARED, SIGNATURE_SHARED]), axis=1, prepend=0.0)
    spread = TIGHTEST + (LOOSEST - TIGHTEST) * (mix(path[-1], 9).astype(np.float64) / 2.0**64)
    own = np.sqrt(1 - np.array([EMBEDDING_SHARED[-1], SIGNATURE_SHARED[-1]]))
    found = residual * spread[:, None].astype(np.float32) * _per_part(own)
    for level, nodes in enumerate(path):
        found += _node_vectors(world.seed, level, nodes) * _per_part(np.sqrt(shared[:, level]))
    return found


def _per_part(factors: NDArray[np.float64]) -> Float32:
    """One factor for the embedding's coordinates, one for the signature's, as a row."""
    return np.repeat(factors, (EMBEDDING_DIMS, SIGNATURE_DIMS)).astype(np.float32)


def block_residuals(world: World, lo: int, hi: int) -> Float32:
    """What each of [lo, hi) has alone: white noise, drawn in blocks that do not depend on the range."""
    blocks = range(lo // RESIDUAL_BLOCK, -(-hi // RESIDUAL_BLOCK))
    drawn = [
        np.random.default_rng((world.seed, 3, b)).standard_normal((RESIDUAL_BLOCK, DIMS), np.float32) for b in blocks
    ]
    start = lo - blocks[0] * RESIDUAL_BLOCK
    return np.concatenate(drawn)[start : start + hi - lo]


def own_residuals(world: World, ids: Int64, salt: int) -> Float32:
    """White noise of single images, each from a generator of its own."""
    found = np.empty((len(ids), DIMS), np.float32)
    for row, image_id in enumerate(ids.tolist()):
        found[row] = np.random.default_rng((world.seed, 4, salt, image_id)).standard_normal(DIMS, np.float32)
    return found


def embeddings_of(white: Float32) -> NDArray[np.float16]:
    """Embeddings float16 (n, 320) of white coordinates, of the length that the model gives."""
    colour = colouring()
    raw = colour.embedding_mean + white[:, :EMBEDDING_DIMS] @ colour.embedding
    raw *= EMBEDDING_LENGTH / np.linalg.norm(raw, axis=1, keepdims=True)
    return raw.astype(np.float16)


def signatures_of(white: Float32, ids: Int64) -> NDArray[np.uint8]:
    """Signatures uint8 (n, 256): thumbnails of the pattern, each of its own brightness and contrast."""
    colour = colouring()
    pattern = colour.signature_mean + white[:, EMBEDDING_DIMS:] @ colour.signature
    bits = mix(ids, 11)
    contrast = 25.0 + 25.0 * (bits & np.uint64(0xFFFF)).astype(np.float32) / 65_536
    brightness = 100.0 + 50.0 * (bits >> np.uint64(48)).astype(np.float32) / 65_536
    return np.rint(np.clip(brightness[:, None] + contrast[:, None] * pattern, 0, 255)).astype(np.uint8)
