"""Alignment of two images of one photo: corners, upright patches, a similarity voted by matches, dense refinement.

Coordinates are pixels (x, y) of the working raster, 0 at the centre of the first pixel. A transform is a float64 (2, 3)
matrix that takes points of the first image to points of the second. There is no random sampling anywhere: every pair of
good matches is one hypothesis and all are tried, so equal input gives equal output without a seed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Transform = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Complex = npt.NDArray[np.complex64]
Raster = TypeVar("Raster", npt.NDArray[np.uint8], npt.NDArray[np.float32])

LEVELS = {1.25: 90, 1.5625: 60, 2.4414: 40}
"""Shrinkage of a level -> corners kept there. The ratios of any two cover 1, 1.25, 1.56 and 1.95 with three levels."""
PATCH = 8
PATCH_SPACING = 3.0
PATCH_BLUR = 1.5
OFFSETS = (np.arange(PATCH, dtype=np.float32) - (PATCH - 1) / 2) * PATCH_SPACING
COLUMNS, ROWS = np.tile(OFFSETS, PATCH)[None], np.repeat(OFFSETS, PATCH)[None]
PEAK = np.ones((5, 5), np.uint8)


class Features(NamedTuple):
    """Corners of one image over all levels: `points` float32 (n, 2), `descriptors` float32 (n, 64), unit length."""

    points: Array
    descriptors: Array


def _patches(blurred: Array, corners: Array) -> Array:
    """Upright 8x8 samples (n, 64) around each corner of a blurred raster."""
    found = cv2.remap(
        blurred,
        corners[:, :1] + COLUMNS,
        corners[:, 1:] + ROWS,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(found, dtype=np.float32)


def _corners(level: npt.NDArray[np.uint8], most: int) -> Array:
    """The corners (n, 2) of a raster: its `most` strongest peaks of the lesser eigenvalue (Shi and Tomasi, 1994).

    A peak is the largest within 2 pixels each way: half the time of goodFeaturesToTrack.
    """
    strength = cv2.cornerMinEigenVal(level, 3)
    least = max(0.01 * float(strength.max()), 1e-9)
    places = np.flatnonzero((strength == cv2.dilate(strength, PEAK)) & (strength > least))
    if len(places) > most:
        places = places[np.argsort(-strength.ravel()[places], kind="stable")[:most]]
    return np.stack([places % level.shape[1], places // level.shape[1]], axis=1).astype(np.float32)


def features(raster: npt.NDArray[np.uint8]) -> Features:
    """Corners and upright patches of a luminance raster (H, W) on three levels."""
    points: list[Array] = [np.zeros((0, 2), np.float32)]
    patches: list[Array] = [np.zeros((0, PATCH * PATCH), np.float32)]
    level = raster
    for shrinkage, most in LEVELS.items():
        size = (max(1, round(raster.shape[1] / shrinkage)), max(1, round(raster.shape[0] / shrinkage)))
        level = np.asarray(cv2.resize(level, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        if min(level.shape) < 2 * PATCH:
            break
        corners = _corners(level, most)
        if not len(corners):
            continue
        blurred = cv2.GaussianBlur(level.astype(np.float32), (9, 9), PATCH_BLUR)
        patches.append(_patches(np.asarray(blurred, dtype=np.float32), corners))
        ratio = np.array([raster.shape[1] / level.shape[1], raster.shape[0] / level.shape[0]], np.float32)
        points.append((corners + 0.5) * ratio - 0.5)
    found = np.concatenate(patches)
    found -= found.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.einsum("ij,ij->i", found, found))[:, None]
    return Features(np.concatenate(points), found / np.maximum(norm, np.float32(1e-3)))


def mirrored(found: Features, width: int) -> Features:
    """The features of the mirrored image, exactly, from those of the image itself (`width` pixels wide)."""
    flipped = found.descriptors.reshape(-1, PATCH, PATCH)[:, :, ::-1].reshape(-1, PATCH * PATCH)
    points = found.points.copy()
    points[:, 0] = width - 1 - points[:, 0]
    return Features(points, np.ascontiguousarray(flipped))


def match(a: Features, b: Features, least: float, most: int) -> tuple[Array, Array]:
    """Points (m, 2) of `a` and of `b` whose patches are each other's best, at `least` alike; the best `most` first."""
    if not len(a.points) or not len(b.points):
        return a.points[:0], b.points[:0]
    alike = a.descriptors @ b.descriptors.T
    best_b = alike.argmax(axis=1)
    score = alike[np.arange(len(best_b)), best_b]
    mutual = np.flatnonzero((score >= least) & (score >= alike.max(axis=0)[best_b]))
    mutual = mutual[np.argsort(-score[mutual], kind="stable")[:most]]
    return a.points[mutual], b.points[best_b[mutual]]


def _matrix(factor: complex, shift: complex) -> Transform:
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


@lru_cache(maxsize=64)
def _couples(count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(count, 1)


def _misses(factor: Complex, shift: Complex, z: Complex, w: Complex) -> Array:
    """Distance (hypotheses, matches) between where each match is taken and where it lies."""
    one = np.ones(len(z), np.float32)
    x = np.stack([factor.real, -factor.imag, shift.real, np.ones_like(shift.real)], axis=1)
    y = np.stack([factor.imag, factor.real, shift.imag, np.ones_like(shift.real)], axis=1)
    across = x @ np.stack([z.real, z.imag, one, -w.real])
    down = y @ np.stack([z.real, z.imag, one, -w.imag])
    return np.asarray(np.sqrt(across * across + down * down), dtype=np.float32)


def vote(source: Array, target: Array, tolerance: float, least: int, seeds: int = 28) -> tuple[Transform, int]:
    """The similarity with most inliers among all that two of the first `seeds` matches define, and their number.

    Scales of 0.4 to 2.5 and rotations up to 30 degrees are tried; (identity, 0) without a hypothesis or with fewer than
    `least` matches. The winner is fitted again to its inliers by least squares.
    """
    identity = np.eye(2, 3)
    if len(source) < max(4, least):
        return identity, 0
    z = source[:, 0] + 1j * source[:, 1].astype(np.complex64)
    w = target[:, 0] + 1j * target[:, 1].astype(np.complex64)
    i, j = _couples(min(seeds, len(z)))
    run, rise = z[j] - z[i], w[j] - w[i]
    far = np.abs(run) > 12
    i, factor = i[far], rise[far] / run[far]
    size = np.abs(factor)
    fair = (size > 0.4) & (size < 2.5) & (factor.real > np.sqrt(0.75) * size)
    i, factor, size = i[fair], factor[fair], size[fair]
    if not len(factor):
        return identity, 0
    shift = w[i] - factor * z[i]
    miss = _misses(factor, shift, z, w)
    limit = tolerance * np.maximum(np.float32(1.0), size)[:, None]
    votes = np.minimum(1.0, miss / limit).sum(axis=1)
    winner = int(votes.argmin())
    inlier = miss[winner] < limit[winner]
    best, offset = complex(factor[winner]), complex(shift[winner])
    for _ in range(2):
        if inlier.sum() < 3:
            break
        zi, wi = z[inlier].astype(complex), w[inlier].astype(complex)
        centre, goal = zi.mean(), wi.mean()
        best = complex((np.conj(zi - centre) @ (wi - goal)) / max(float((np.abs(zi - centre) ** 2).sum()), 1e-9))
        offset = complex(goal - best * centre)
        inlier = np.abs(best * z + offset - w) < tolerance * max(1.0, abs(best))
    return _matrix(best, offset), int(inlier.sum())


STEPS = 8
LEAST_CORRELATION = 0.35
"""Of the bands under a voted transform. 1,300 planted edits have .46 (text) or more, half of the look-alikes less."""
RIDGE = 1e-6 * np.eye(6)
FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def warp(image: Raster, transform: Transform, shape: tuple[int, ...]) -> Raster:
    """`image` (uint8 or float32) sampled at the transformed pixels of a raster of `shape`; mirrored at its edges."""
    size = (shape[1], shape[0])
    return cast(Raster, cv2.warpAffine(image, transform, size, flags=FLAGS, borderMode=cv2.BORDER_REFLECT_101))


def inside(other: tuple[int, ...], transform: Transform, shape: tuple[int, ...]) -> Mask:
    """Which pixels of a raster of `shape` fall on a raster of the shape `other`: bool (H, W)."""
    return hits(np.ones(other[:2], np.uint8), transform, shape)


def hits(mask: npt.NDArray[np.uint8], transform: Transform, shape: tuple[int, ...]) -> Mask:
    """Which pixels of a raster of `shape` fall on a pixel of `mask` that is 1: bool (H, W)."""
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(mask, transform, (shape[1], shape[0]), flags=flags).view(np.bool_)


@lru_cache(maxsize=64)
def _grid(shape: tuple[int, int], stride: int) -> tuple[Array, Array]:
    """Column and row, as shares of the frame from its centre, of every `stride`-th pixel of a raster of `shape`."""
    y, x = np.mgrid[0 : shape[0] : stride, 0 : shape[1] : stride].astype(np.float32)
    return x.ravel() / shape[1] - 0.5, y.ravel() / shape[0] - 0.5


def _jacobian(template: Array, stride: int) -> tuple[Array, Array]:
    """Steepest-descent images (6, n) and the template's own values (n,) at every `stride`-th pixel."""
    gx = cv2.Sobel(template, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)[::stride, ::stride].ravel()
    gy = cv2.Sobel(template, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)[::stride, ::stride].ravel()
    x, y = _grid((template.shape[0], template.shape[1]), stride)
    return np.stack([gx * x, gx * y, gx, gy * x, gy * y, gy]), template[::stride, ::stride].ravel()


def core(shape: tuple[int, ...], border: int) -> npt.NDArray[np.uint8]:
    """1 in a raster of `shape` but for its outer `border` pixels, where a band knows only one side: uint8 (H, W)."""
    made = np.zeros(shape[:2], np.uint8)
    made[border : shape[0] - border, border : shape[1] - border] = 1
    return made


def strided(transform: Transform, stride: int) -> Transform:
    """`transform` for a raster that holds every `stride`-th pixel of the first."""
    return np.asarray(transform * [stride, stride, 1.0], dtype=np.float64)


def refine(template: Array, image: Array, start: Transform, seen: Mask | None = None) -> Transform:
    """The affine transform near `start` that lays `image` on `template`: inverse compositional Gauss-Newton.

    Both are band-passed float32 rasters, of which every second pixel takes part; gain is taken out at each step and
    residuals are weighted down as 1/(1+r^2), so that an overlay does not pull. Source: Baker and Matthews, Lucas-Kanade
    20 years on (2004). A step that leaves the image, does not solve, or starts where the two correlate less than
    `LEAST_CORRELATION` ends the search at the best transform so far.
    """
    border = max(2, round(max(template.shape) / 40))
    small = (-(-template.shape[0] // 2), -(-template.shape[1] // 2))
    own = core(template.shape, border)[::2, ::2]
    other = core(image.shape, border) if seen is None else seen.view(np.uint8)
    jacobian, values = _jacobian(template, 2)
    squares = values * values
    transform: Transform = start
    for _ in range(STEPS):
        at = strided(transform, 2)
        sampled = warp(image, at, small).ravel()
        mask = (hits(other, at, small).view(np.uint8) & own).ravel().astype(np.float32)
        covered = sampled * mask
        pixels, cross, energy = float(mask.sum()), float(covered @ values), float(covered @ sampled) + 1e-6
        if pixels < 64 or cross < LEAST_CORRELATION * (energy * float(squares @ mask)) ** 0.5:
            return transform
        residual = np.float32(cross / energy) * sampled - values
        spread = float(np.abs(residual) @ mask) / pixels + 1e-3
        weight = residual * np.float32(0.5 / spread)
        weighted = jacobian * (mask / (weight * weight + np.float32(1.0)))
        hessian = (weighted @ jacobian.T).astype(np.float64) + RIDGE
        goal = (weighted @ residual).astype(np.float64).reshape(6, 1)
        solved, delta = cv2.solve(hessian, goal, flags=cv2.DECOMP_CHOLESKY)
        if not solved:
            return transform
        transform = _undone(transform, delta.ravel().tolist(), template.shape)
        if np.abs(delta).max() < 0.03:
            break
    return transform


def _undone(transform: Transform, delta: list[float], shape: tuple[int, ...]) -> Transform:
    """`transform` after the inverse of the small change `delta`, given in shares of the frame from its centre."""
    a, b, x, c, d, y = delta
    a, b, c, d = 1 + a / shape[1], b / shape[0], c / shape[1], 1 + d / shape[0]
    x, y = x - (delta[0] + delta[1]) / 2, y - (delta[3] + delta[4]) / 2
    change = np.array([[a, b, x], [c, d, y]])
    linear = transform[:, :2] @ cv2.invertAffineTransform(change)
    linear[:, 2] += transform[:, 2]
    return np.asarray(linear, dtype=np.float64)


class Geometry(NamedTuple):
    """What a transform does to a frame: areas as shares, lengths in pixels of the first raster.

    `contained`: share of the frame that shows less of the scene which lies inside the other frame; 1 for a crop.
    `common`: the common area as a share of the frame that shows more. `scale`: size of the second image's picture over
    the first's. `rotation`: degrees. `centre`: distance between the two centres. `skew`: how far the transform leaves
    stretching along the axes across the frame, and `shear`: how far it leaves turning and scaling.
    """

    contained: float
    common: float
    scale: float
    rotation: float
    centre: float
    skew: float
    shear: float


def frame_change(shape: tuple[int, ...], other: tuple[int, ...]) -> Transform:
    """The transform that stretches the frame of a raster of `shape` onto that of `other`, corner to corner."""
    x, y = other[1] / shape[1], other[0] / shape[0]
    return np.array([[x, 0.0, (x - 1) / 2], [0.0, y, (y - 1) / 2]])


def geometry(transform: Transform, shape: tuple[int, ...], other: tuple[int, ...]) -> Geometry:
    """How `transform` lays the frame of a raster of `shape` on that of `other` (both (H, W))."""
    linear, shift = transform[:, :2], transform[:, 2]
    height, width = shape[:2]
    rows, columns = other[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    frame = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]]) - 0.5
    shared, _ = cv2.intersectConvexConvex(
        (corners @ linear.T + shift).astype(np.float32), frame.astype(np.float32), handleNested=True
    )
    (a, b), (c, d) = linear.tolist()
    area = abs(a * d - b * c) * width * height
    centre = linear @ [(width - 1) / 2, (height - 1) / 2] + shift - [(columns - 1) / 2, (rows - 1) / 2]
    scale = max(float(np.sqrt(area / (width * height))), 1e-6)
    a, b, c, d = a / scale, b / scale, c / scale, d / scale
    return Geometry(
        contained=min(1.0, shared / max(min(area, rows * columns), 1e-6)),
        common=min(1.0, shared / max(area, rows * columns)),
        scale=scale,
        rotation=float(np.degrees(np.arctan2(c - b, a + d))),
        centre=float(np.hypot(*centre)) / scale,
        skew=max(abs(b) * height, abs(c) * width),
        shear=max(abs(a - d) * width, abs(b + c) * height),
    )
