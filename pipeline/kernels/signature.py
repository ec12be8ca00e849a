"""The signature: a 16x16 luminance thumbnail, 256 numbers that no model has."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIGNATURE_SIDE = 16


def signature(luminance: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Signature of a shrunk luminance image, uint8 (h, w): uint8 (256,), row-major, mean not yet removed."""
    small = cv2.resize(luminance, (SIGNATURE_SIDE, SIGNATURE_SIDE), interpolation=cv2.INTER_AREA)
    return small.reshape(-1)  # type: ignore[return-value]
