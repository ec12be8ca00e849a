"""What decoding takes at its peak, in bytes per pixel beside the file: known before anything is decoded.

Measured on 3000x3000 pictures by the peak of a process of its own (OpenCV 5.0, Pillow 12), and checked there by a test.
"""

from __future__ import annotations

from pipeline.kernels.header import Header

_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_STORED_OTHERS = 4  # Pillow keeps RGB, LA and the like in four bytes, I and F as well
_DECODERS = {"webp": 12, "avif": 16, "ppm": 8}  # canvases, planes and copies of the pixels beside the image


def opencv_footprint(header: Header) -> float:
    """Of `cv2.imdecode`, which hands out a copy of its pixels; before that a JPEG of several scans has coefficients."""
    pixels = header.channels * ((header.bits + 7) // 8)
    if header.format == "avif":  # measured 18, 23 and 40 of 10 bits, grey, RGB and RGBA
        return 10 + 4 * pixels
    return pixels + max(pixels, header.buffered)


def pillow_footprint(header: Header, mode: str, native: int) -> float:
    """Of Pillow's image, and beside it what is larger: the decoder's buffers, a turned copy, or `native` bytes a pixel.

    `mode`: of the opened image.
    """
    stored = _STORED.get(mode, _STORED_OTHERS)
    decoder = 6 * native if header.format == "jpeg2000" else _DECODERS.get(header.format, 0)
    return stored + max(stored, native, decoder, header.buffered)


def heif_footprint(header: Header) -> float:
    """Of libheif: the planes of all tiles, the image made of them, and its pixels."""
    return header.channels * (2 if header.bits > 8 else 1) * 3


def raster_footprint(header: Header) -> float:
    """Of our own readers: the pixels, and beside them a Radiance file unpacked."""
    return header.channels * header.bits // 8 + 4
