"""Shrinking without aliasing, at a price a worker can pay for every image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def shrink(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Squash `pixels`, uint8 (h, w) or (h, w, 3), to exactly `width` x `height`: uint8, same channels.

    Each axis is halved by exact 2:1 averages while it is at least twice too long, then one bilinear step does the
    rest. Below 2:1 a bilinear sample still covers every source pixel, so nothing is skipped, and the path depends on
    the size alone. INTER_AREA at a fractional ratio runs scalar code: 1.14 ms for 500x375 -> 160x160, this 0.20 ms.
    An axis that is too short grows bilinearly.
    """
    while True:
        h, w = pixels.shape[:2]
        fx, fy = 1 + (w >= 2 * width), 1 + (h >= 2 * height)
        if fx == fy == 1:
            break
        pixels = _halve(pixels, fx, fy)
    if (w, h) == (width, height):
        return np.ascontiguousarray(pixels)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _halve(pixels: NDArray[np.uint8], fx: int, fy: int) -> NDArray[np.uint8]:
    """Average blocks of `fx` x `fy` (1 or 2) pixels; an odd last row or column is left out (0.3% at most at 320 px)."""
    h, w = pixels.shape[:2]
    even = pixels[: h - h % fy, : w - w % fx]
    how = cv2.INTER_AREA if fx == fy else cv2.INTER_LINEAR  # at exactly 2:1 along one axis both are the average
    return cv2.resize(even, (w // fx, h // fy), interpolation=how)  # type: ignore[return-value]


def fitted_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with the longest side at most `side`, aspect ratio kept; never larger than the image."""
    longest = max(width, height)
    if longest <= side:
        return width, height
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))
