"""How two aligned images agree, in windows of a band of middle frequencies.

Blur, re-encoding, resizing and recolouring change that band little, another frame of the same scene changes it much.
Rasters are as long as `VerifyParams.side`; a window is a tenth of the frame, 19 x 19 of them overlap by half.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.kernels.align import Array, Mask

Luminance = npt.NDArray[np.uint8]

CELLS = 20
NOISE = 2.0
"""Variance that the band of a flat window reaches by JPEG noise alone; keeps its correlation near 0."""
TEXTURE = 8.0
"""Variance of the band from which a window can tell two photos apart."""
CLIPPED_LOW, CLIPPED_HIGH = 4, 247


class Agreement(NamedTuple):
    """`windows`: textured ones. `half`, `well`: their shares that correlate over .5 and .7.

    `residual`: what is left of the band after the best gain, relative to it; median over the windows. Copies leave
    little whatever an overlay covers, frames of a burst leave much everywhere. `sides`: 0 where each image has more
    detail in as many of the windows that disagree (something moved), 1 where it is always the same image (something
    was laid over it); 1 where none disagree.
    """

    windows: int
    half: float
    well: float
    residual: float
    sides: float


NOTHING = Agreement(0, 0.0, 0.0, 1.0, 0.0)


def _smooth(raster: Array, unit: float) -> tuple[Array, Array]:
    """The raster blurred by 1.5 units and, at every second pixel, by nearly 5: on half a raster a fifth of the time."""
    fine = cv2.GaussianBlur(raster, (0, 0), 1.5 * unit)
    # variances add: the fine blur, that of pyrDown and of pyrUp (1 pixel each), and this one in pixels twice as wide
    rest = np.sqrt(max(22.75 * unit**2 - 2, 0.5) / 4)
    coarse = cv2.GaussianBlur(cv2.pyrDown(fine), (0, 0), float(rest))
    return np.asarray(fine, dtype=np.float32), np.asarray(coarse, dtype=np.float32)


def band(raster: Array, unit: float) -> Array:
    """Difference of Gaussians (1.5 and 5 units of `unit` pixels) of a float32 raster (H, W)."""
    fine, coarse = _smooth(raster, unit)
    return np.asarray(fine - cv2.pyrUp(coarse, dstsize=(raster.shape[1], raster.shape[0])), dtype=np.float32)


def judged(inside: Mask, border: int) -> Mask:
    """`inside` without `border` pixels along its edge, where the band of an image knows only one side."""
    kernel = np.ones((2 * border + 1, 2 * border + 1), np.uint8)
    shrunk = cv2.erode(inside.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return shrunk.view(np.bool_)


def unclipped(luminance: Luminance) -> Luminance:
    """1 where an image is not clipped (nor next to it): brightening and filled corners wipe detail out."""
    clear = ((luminance > CLIPPED_LOW) & (luminance < CLIPPED_HIGH)).view(np.uint8)
    return np.asarray(cv2.erode(clear, np.ones((3, 3), np.uint8)), dtype=np.uint8)


@lru_cache(maxsize=64)
def _averaging(length: int) -> Array:
    """Matrix (19, length) that averages `length` pixels over 19 windows, each two of 20 cells long."""
    edges = np.linspace(0, length, CELLS + 1)
    pixel = np.arange(length)
    low, high = edges[:-2, None], edges[2:, None]
    covered = np.clip(np.minimum(pixel + 1, high) - np.maximum(pixel, low), 0, 1)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True), dtype=np.float32)


def _windows(values: Array) -> Array:
    """Means of each of (k, H, W) over overlapping windows, (k, 361)."""
    count, height, width = values.shape
    rows, columns = _averaging(height), _averaging(width)
    across = (values.reshape(-1, width) @ columns.T).reshape(count, height, -1)
    return np.asarray(rows @ across, dtype=np.float32).reshape(count, -1)


def _median(values: Array) -> float:
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def agreement(first: Array, second: Array, mask: Mask) -> Agreement:
    """Compare two aligned bands (float32 (H, W)) under `mask`, whatever the gain between them (1/4 to 4)."""
    products = np.empty((4, *mask.shape), np.float32)
    weight = products[0]
    weight[:] = mask
    first, second = first * weight, second * weight
    np.multiply(first, first, out=products[1])
    np.multiply(second, second, out=products[2])
    np.multiply(first, second, out=products[3])
    means = _windows(products)
    seen = np.flatnonzero(means[0] > 0.5)
    _, a, b, both = means[:, seen] / means[0, seen]
    gain = min(max(float(np.sqrt((float(a.sum()) + 1e-6) / (float(b.sum()) + 1e-6))), 0.25), 4.0)
    b, both = b * gain**2, both * gain
    textured = np.flatnonzero(np.maximum(a, b) > TEXTURE)
    if not len(textured):
        return NOTHING
    a, b, both = a[textured], b[textured], both[textured]
    alike = both / np.sqrt((a + NOISE) * (b + NOISE))
    good, poor = alike > 0.7, alike < 0.6
    fit = gain * float(both[good].sum()) / float(b[good].sum()) if good.any() else gain
    second = np.float32(fit) * second
    rest = np.stack([np.abs(first - second), np.abs(first) + np.abs(second)])
    left, size = _windows(rest)[:, seen[textured]]
    sides = np.clip(np.log((a[poor] + 1) / (b[poor] + 1)) / 0.3, -1, 1)
    return Agreement(
        windows=len(a),
        half=np.count_nonzero(alike > 0.5) / len(a),
        well=np.count_nonzero(good) / len(a),
        residual=_median(left / np.maximum(size / 2, 1e-3)),
        sides=abs(float(sides.mean())) if len(sides) else 1.0,
    )


def correlation(first: Luminance, second: Luminance, inside: Mask) -> float:
    """Pearson's over the common area, -1 to 1; two flat ones correlate (1) when they are equal within two levels."""
    count = np.count_nonzero(inside)
    if not count:
        return 0.0
    a = np.where(inside, first, np.uint8(0)).ravel().astype(np.float64)
    b = np.where(inside, second, np.uint8(0)).ravel().astype(np.float64)
    sum_a, sum_b = float(a.sum()), float(b.sum())  # whole numbers below 2^53: exact, whatever the order of the pair
    level = abs(sum_a - sum_b) / count
    energy_a, energy_b = float(a @ a) - sum_a**2 / count, float(b @ b) - sum_b**2 / count
    least = 0.01 * count
    if energy_a < least or energy_b < least:
        return float(energy_a < least and energy_b < least and level <= 2)
    both = float(a @ b) - sum_a * sum_b / count
    return max(-1.0, min(1.0, both / float(np.sqrt(energy_a * energy_b))))


def difference(first: Luminance, second: Luminance, inside: Mask) -> float:
    """Mean absolute difference in grey levels over the common area."""
    return float(cv2.absdiff(first, second)[inside].mean()) if inside.any() else 255.0


def covered_share(first: Luminance, second: Luminance, inside: Mask) -> float:
    """Share of the common area whose 7 x 7 surroundings no tone curve explains: what an overlay covers.

    The curve is the mean of `second` at each of 32 levels of `first`; 30 grey levels off it is unexplained.
    """
    level = first >> 3
    counts = np.bincount(level[inside], minlength=32)
    sums = np.bincount(level[inside], weights=second[inside], minlength=32)
    expected = (sums / np.maximum(counts, 1)).astype(np.float32)[level]
    left = cv2.blur((expected - second) * inside, (7, 7))
    return float((np.abs(left[inside]) > 30).mean())
