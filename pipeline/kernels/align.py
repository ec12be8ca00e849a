"""Alignment of two images of one photo: corners, upright patches, a similarity voted by matches, dense refinement.

Coordinates are pixels (x, y) of the working raster, 0 at the centre of the first pixel. A transform is a float64 (2, 3)
matrix that takes points of the first image to points of the second. There is no random sampling anywhere: every pair of
good matches is one hypothesis and all are tried, so equal input gives equal output without a seed.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Transform = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Raster = TypeVar("Raster", npt.NDArray[np.uint8], npt.NDArray[np.float32])

LEVELS = {1.25: 90, 1.5625: 60, 2.4414: 40}
"""Shrinkage of a level -> corners kept there. The ratios of any two cover 1, 1.25, 1.56 and 1.95 with three levels."""
PATCH = 8
PATCH_SPACING = 3.0
PATCH_BLUR = 1.5


class Features(NamedTuple):
    """Corners of one image over all levels: `points` float32 (n, 2), `descriptors` float32 (n, 64), unit length."""

    points: Array
    descriptors: Array


def _patches(blurred: Array, corners: Array) -> Array:
    """Upright 8x8 samples (n, 64) around each corner of a blurred raster, mean removed, unit length."""
    offsets = (np.arange(PATCH, dtype=np.float32) - (PATCH - 1) / 2) * PATCH_SPACING
    columns = np.tile(offsets, PATCH)
    rows = np.repeat(offsets, PATCH)
    found = cv2.remap(
        blurred,
        corners[:, :1] + columns[None],
        corners[:, 1:] + rows[None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    found = found - found.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(norm, 1e-3), dtype=np.float32)


def features(raster: npt.NDArray[np.uint8]) -> Features:
    """Corners and upright patches of a luminance raster (H, W) on four levels, 1.25 apart."""
    points: list[Array] = [np.zeros((0, 2), np.float32)]
    descriptors: list[Array] = [np.zeros((0, PATCH * PATCH), np.float32)]
    for shrinkage, most in LEVELS.items():
        size = (max(1, round(raster.shape[1] / shrinkage)), max(1, round(raster.shape[0] / shrinkage)))
        level = cv2.resize(raster, size, interpolation=cv2.INTER_AREA)
        if min(level.shape) < 2 * PATCH:
            break
        corners = cv2.goodFeaturesToTrack(level, most, 0.01, 4, blockSize=3)
        if corners is None:
            continue
        corners = np.asarray(corners, dtype=np.float32).reshape(-1, 2)
        blurred = cv2.GaussianBlur(level.astype(np.float32), (0, 0), PATCH_BLUR)
        descriptors.append(_patches(np.asarray(blurred, dtype=np.float32), corners))
        ratio = np.array([raster.shape[1] / level.shape[1], raster.shape[0] / level.shape[0]], np.float32)
        points.append(np.asarray((corners + 0.5) * ratio - 0.5, dtype=np.float32))
    return Features(np.concatenate(points), np.concatenate(descriptors))


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
    best_a = alike.argmax(axis=0)
    rows = np.arange(len(best_b))
    score = alike[rows, best_b]
    mutual = rows[(best_a[best_b] == rows) & (score >= least)]
    mutual = mutual[np.argsort(-score[mutual], kind="stable")[:most]]
    return a.points[mutual], b.points[best_b[mutual]]


def _matrix(factor: complex, shift: complex) -> Transform:
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def vote(source: Array, target: Array, tolerance: float, seeds: int = 28) -> tuple[Transform, int]:
    """The similarity with most inliers among all that two of the first `seeds` matches define, and their number.

    Scales of 0.4 to 2.5 and rotations up to 30 degrees are tried; (identity, 0) without a hypothesis. The winner is
    fitted again to its inliers by least squares.
    """
    identity = np.eye(2, 3)
    if len(source) < 4:
        return identity, 0
    z = source[:, 0] + 1j * source[:, 1].astype(np.complex64)
    w = target[:, 0] + 1j * target[:, 1].astype(np.complex64)
    i, j = np.triu_indices(min(seeds, len(z)), 1)
    run, rise = z[j] - z[i], w[j] - w[i]
    far = np.abs(run) > 12
    i, factor = i[far], rise[far] / run[far]
    size = np.abs(factor)
    fair = (size > 0.4) & (size < 2.5) & (np.abs(np.angle(factor)) < np.pi / 6)
    i, factor = i[fair], factor[fair]
    if not len(factor):
        return identity, 0
    shift = w[i] - factor * z[i]
    miss = np.abs(factor[:, None] * z[None] + shift[:, None] - w[None])
    limit = tolerance * np.maximum(1.0, np.abs(factor))[:, None]
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


def _jacobian(template: Array, stride: int) -> tuple[Array, Array]:
    """Steepest-descent images (6, n) and the template's own values (n,) at every `stride`-th pixel."""
    gx = cv2.Sobel(template, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)[::stride, ::stride].ravel()
    gy = cv2.Sobel(template, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)[::stride, ::stride].ravel()
    height, width = template.shape
    y, x = np.mgrid[0:height:stride, 0:width:stride].astype(np.float32)
    x, y = x.ravel() / width - 0.5, y.ravel() / height - 0.5
    return np.stack([gx * x, gx * y, gx, gy * x, gy * y, gy]), template[::stride, ::stride].ravel()


def _core(shape: tuple[int, ...], border: int) -> npt.NDArray[np.uint8]:
    """1 in a raster of `shape` but for its outer `border` pixels, where a band knows only one side: uint8 (H, W)."""
    core = np.zeros(shape[:2], np.uint8)
    core[border : shape[0] - border, border : shape[1] - border] = 1
    return core


def refine(template: Array, image: Array, start: Transform, steps: int, seen: Mask | None = None) -> Transform:
    """The affine transform near `start` that lays `image` on `template`: inverse compositional Gauss-Newton.

    Both are band-passed float32 rasters; gain is taken out at each step and residuals are weighted down as 1/(1+r^2),
    so that an overlay does not pull. Source: Baker and Matthews, Lucas-Kanade 20 years on (2004). A step that leaves
    the image or does not solve ends the search at the best transform so far.
    """
    stride, border = 2, max(2, round(max(template.shape) / 40))
    jacobian, values = _jacobian(template, stride)
    height, width = template.shape
    scale = np.array([[1 / width, 0, -0.5], [0, 1 / height, -0.5], [0, 0, 1.0]])
    grid = np.diag([stride, stride, 1.0])
    transform: Transform = start.copy()
    small = (-(-height // stride), -(-width // stride))
    own = _core(template.shape, border)[::stride, ::stride]
    other = _core(image.shape, border) if seen is None else seen.view(np.uint8)
    for _ in range(steps):
        at = transform @ grid
        moved = warp(image, at, small)
        mask = (hits(other, at, small) & own.view(np.bool_)).ravel()
        if mask.sum() < 64:
            return transform
        sampled = moved.ravel()
        energy = float((sampled * sampled)[mask].sum())
        gain = float((sampled * values)[mask].sum()) / max(energy, 1e-6)
        if gain <= 0:
            return transform
        residual = gain * sampled - values
        spread = float(np.abs(residual[mask]).mean()) + 1e-3
        weight = mask / (1.0 + (residual / (2.0 * spread)) ** 2)
        weighted = jacobian * weight.astype(np.float32)
        hessian = (weighted @ jacobian.T).astype(np.float64) + 1e-6 * np.eye(6)
        delta = np.linalg.solve(hessian, (weighted @ residual).astype(np.float64))
        change = np.eye(3) + np.vstack([delta.reshape(2, 3), np.zeros(3)]) @ scale
        transform = np.asarray(transform @ np.linalg.inv(change), dtype=np.float64)
        if np.abs(delta).max() < 0.03:
            break
    return transform


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
    area = abs(float(np.linalg.det(linear))) * width * height
    centre = linear @ [(width - 1) / 2, (height - 1) / 2] + shift - [(columns - 1) / 2, (rows - 1) / 2]
    scale = max(float(np.sqrt(area / (width * height))), 1e-6)
    (a, b), (c, d) = linear / scale
    return Geometry(
        contained=min(1.0, shared / max(min(area, rows * columns), 1e-6)),
        common=min(1.0, shared / max(area, rows * columns)),
        scale=scale,
        rotation=float(np.degrees(np.arctan2(c - b, a + d))),
        centre=float(np.hypot(*centre)) / scale,
        skew=max(abs(b) * height, abs(c) * width),
        shear=max(abs(a - d) * width, abs(b + c) * height),
    )
