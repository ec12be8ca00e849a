"""Real numbers of any range as 256 levels, in a way that depends on the image alone and not on its exposure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEY = 0.18  # what a picture of middle brightness is brought to (Reinhard et al., Photographic tone reproduction, 2002)
_GAMMA = 2.2


def logarithms(pixels: NDArray[Any]) -> tuple[float, int]:
    """Sum of the natural logarithms of all values that are finite and over 0, and their number."""
    used = pixels[(pixels > 0) & np.isfinite(pixels)]
    return float(np.log(used, dtype=np.float64).sum()), used.size


def exposure_of(total: float, count: int) -> float:
    """What values are multiplied by before `toned`: 0.18 over their geometric mean, of the sums of `logarithms`."""
    return _KEY / math.exp(total / count) if count else 1.0


def toned(pixels: NDArray[Any], exposure: float) -> NDArray[np.uint8]:
    """Levels 255 * (x / (1 + x)) ** (1 / 2.2) of x = pixels * exposure: Reinhard's global operator and display gamma.

    What is below 0 or no number is 0, infinity is 255.
    """
    levels = pixels.astype(np.float64)  # and all on in place: four arrays of a band are 25 MB
    with np.errstate(over="ignore", invalid="ignore"):
        levels *= exposure
        levels[~(levels > 0)] = 0
        levels += 1
        np.reciprocal(levels, out=levels)
        np.subtract(1, levels, out=levels)
        levels **= 1 / _GAMMA
        levels *= 255
    return np.rint(levels, out=levels).astype(np.uint8)
