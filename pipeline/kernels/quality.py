"""Quality numbers of an image, with fastdup's formulas, from as few passes over the pixels as they need."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_BAND_PIXELS = 1 << 16
_SAMPLE_ROWS = 40


class Quality(NamedTuple):
    """Numbers over all pixels at full size; levels are 0-255.

    mean: of all channel values. stdv: mean of the per-channel standard deviations. contrast: (max-min)/(max+min), 0
    for a black image. blur: variance of the Laplacian (ksize 1) of the luminance; blur_blue: of the blue channel, as
    in fastdup. min, max: over all channels. unique: distinct values, channels pooled. All match fastdup 2.54's
    atrain_stats.csv, where blur is `blur_blue`.
    """

    mean: float
    stdv: float
    contrast: float
    blur: float
    blur_blue: float
    min: int
    max: int
    unique: int


def quality(pixels: NDArray[np.uint8]) -> Quality:
    """Quality numbers of uint8 (h, w) grey or (h, w, 3) RGB pixels; grey counts as three equal channels."""
    levels = np.flatnonzero(_levels(pixels))
    low, high = int(levels[0]), int(levels[-1])
    count = pixels.shape[0] * pixels.shape[1]
    channels, edges = _moments(pixels)
    blurs = [_variance(total, squares, count) for total, squares in edges]
    return Quality(
        mean=sum(total for total, _ in channels) / (count * len(channels)),
        stdv=sum(math.sqrt(_variance(total, squares, count)) for total, squares in channels) / len(channels),
        contrast=(high - low) / (high + low) if high else 0.0,
        blur=blurs[0],
        blur_blue=blurs[-1],
        min=low,
        max=high,
        unique=len(levels),
    )


def entropy(luminance: NDArray[np.uint8]) -> float:
    """Shannon entropy, in bits per pixel (0 to 8), of the histogram of uint8 (h, w) luminance."""
    counts = cv2.calcHist([luminance], [0], None, [256], [0, 256]).reshape(-1)
    information = sum(_information(luminance.size).take(counts.astype(np.intp)).tolist())
    return max(0.0, math.log2(luminance.size) - float(information) / luminance.size)


@lru_cache(maxsize=2)
def _information(size: int) -> NDArray[np.float64]:
    """Every count up to `size` times its logarithm to base 2: 256 logarithms an image took 25 us of 48."""
    return np.array([0.0] + [count * math.log2(count) for count in range(1, size + 1)])


def channel_difference(rgb: NDArray[np.uint8]) -> float:
    """Mean over uint8 (h, w, 3), two pixels or more, of max(R,G,B) - min(R,G,B): 0 for grey, over 1 for visible colour.

    For three numbers that is half the sum of their pairwise differences. In the interleaved bytes the channels of a
    pixel lie one and two apart; at every third place such a difference spans two pixels and is left out of the sum.
    Splitting the channels first took twice the time.
    """
    flat = np.ascontiguousarray(rgb).reshape(1, -1)
    red_green, green_blue, _, _ = cv2.sumElems(cv2.absdiff(flat[:, :-3], flat[:, 1:-2]).reshape(1, -1, 3))
    red_blue = cv2.sumElems(cv2.absdiff(flat[:, :-3], flat[:, 2:-1]).reshape(1, -1, 3))[0]
    red, green, blue = flat[0, -3:].tolist()
    last = abs(red - green) + abs(green - blue) + abs(red - blue)
    return float(red_green + green_blue + red_blue + last) / (2 * (flat.size // 3))


def _levels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Counts that are non-zero exactly for the values that occur: of some rows where those hold all 256, else of all.

    Counting is the one pass that no SIMD speeds up (0.32 ms at 500x375), and most photos use every level.
    """
    sample = pixels[:: max(1, pixels.shape[0] // _SAMPLE_ROWS)]
    counts = _histogram(sample)
    if sample.shape[0] == pixels.shape[0] or cv2.countNonZero(counts) == 256:
        return counts
    for top in range(0, pixels.shape[0], _band_rows(pixels)):
        counts += _histogram(pixels[top : top + _band_rows(pixels)])
    return counts


def _histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    counts = cv2.calcHist([pixels.reshape(1, -1)], [0], None, [256], [0, 256])
    return counts.reshape(-1)  # type: ignore[return-value]


def _band_rows(pixels: NDArray[np.uint8]) -> int:
    """Rows per band: its temporaries stay in the cache and on the heap.

    At 500x375 bands of 64k pixels take 0.8 ms, the whole image at once 1.5 (fresh pages for every temporary).
    """
    return max(1, _BAND_PIXELS // int(pixels.shape[1]))


Moments = tuple[float, float]
"""Sum and sum of squares: exact integers below 2^53 held as float."""


def _moments(pixels: NDArray[np.uint8]) -> tuple[list[Moments], list[Moments]]:
    """Moments of each channel, and of the Laplacian of luminance and (colour only) blue, summed over bands of rows."""
    height, rows = pixels.shape[0], _band_rows(pixels)
    parts = []
    for top in range(0, height, rows):
        first, last = max(top - 1, 0), min(top + rows + 1, height)  # one row more each side for the Laplacian
        parts.append(_band_moments(pixels[first:last], top - first, min(rows, height - top)))
    if len(parts) == 1:
        return parts[0]
    channels, edges = zip(*parts, strict=True)
    return _summed(channels), _summed(edges)


def _band_moments(band: NDArray[np.uint8], skip: int, rows: int) -> tuple[list[Moments], list[Moments]]:
    kept = slice(skip, skip + rows)
    if band.ndim == 2:
        return [_moment(band[kept])], [_moment(_laplacian(band)[kept])]
    planes = cv2.split(band)
    sources = (cv2.cvtColor(band, cv2.COLOR_RGB2GRAY), planes[2])
    return [_moment(plane[kept]) for plane in planes], [_moment(_laplacian(source)[kept]) for source in sources]


def _laplacian(plane: NDArray[Any]) -> NDArray[np.int16]:
    return cv2.Laplacian(plane, cv2.CV_16S, ksize=1)  # type: ignore[return-value]


def _moment(plane: NDArray[Any]) -> Moments:
    return cv2.sumElems(plane)[0], cv2.norm(plane, cv2.NORM_L2SQR)


def _summed(parts: tuple[list[Moments], ...]) -> list[Moments]:
    return [
        (sum(total for total, _ in moments), sum(squares for _, squares in moments))
        for moments in zip(*parts, strict=True)
    ]


def _variance(total: float, squares: float, count: int) -> float:
    """Population variance from integer sums, without cancellation; OpenCV returns the squares 1e-12 off."""
    exact = count * round(squares) - round(total) ** 2
    return exact / (count * count)
