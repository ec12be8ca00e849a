"""From a decoded video frame to upright RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.decode import orient

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""(a, b, c, d) of a display matrix, of which (p, q) becomes (a p + c q, b p + d q), -> EXIF's orientation."""

ROTATIONS = {3: 180, 6: 90, 8: 270}
"""Orientation -> degrees clockwise that pixels are turned."""

_ONE = 1 << 16


def orientation(frame: VideoFrame) -> int:
    """EXIF's orientation (1-8) of a frame by its display matrix; 1 where it has none, or turns by no right angle."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    values = np.frombuffer(matrix, np.int32)  # type: ignore[call-overload]
    if len(values) != 9:
        return 1
    a, b, c, d = (round(int(values[place]) / _ONE) for place in (0, 1, 3, 4))
    return _ORIENTATIONS.get((a, b, c, d), 1)


def upright_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """Upright RGB uint8 (h, w, 3) of a frame, contiguous: the pixels of OpenCV's VideoCapture for 8 bits.

    swscale's conversion by the matrix and range that the stream is tagged with (untagged: BT.601, limited; the yuvj
    formats are full range). More than 8 bits are rounded by swscale; HDR is not mapped to another brightness, pixels
    that are not square stay as stored, interlaced fields stay interleaved, transparency is dropped.
    """
    pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(orient(np.array(pixels, np.uint8), orientation(frame)))
