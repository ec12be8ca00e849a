"""Everything image-audit stores about one image, from its bytes: one decode, no path, no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.decode import as_luminance, as_rgb, decode
from pipeline.kernels.hashing import content_hash, pixel_hash
from pipeline.kernels.header import Header, ImageError, read_header
from pipeline.kernels.pillow_decode import Decoded, to_shown
from pipeline.kernels.quality import channel_difference, entropy, quality
from pipeline.kernels.shrink import shrink
from pipeline.kernels.signature import signature
from pipeline.schemas import Status

RASTER = (160, 160)
"""Width and height of the picture that entropy, channel_difference and the signature are taken of, whatever the model
takes: with the default model it is the model's input, with another one a shrink more (0.07 ms at 150x150)."""


@dataclass(frozen=True)
class MeasureParams:
    """What is decoded, and the model's input size in pixels (`input_width`, `input_height` where it is no square).

    max_bytes: of a file that is read. max_memory: bytes that a file and its decoding may take together; beside some
    220 MB of a worker's own. min_width, min_height: pixels after orientation.
    """

    max_pixels: int = 80_000_000
    max_bytes: int = 200_000_000
    max_memory: int = 540_000_000
    min_width: int = 10
    min_height: int = 10
    input_size: int = 160
    input_width: int = 0
    input_height: int = 0

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "max_memory", "min_width", "min_height", "input_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number of 1 or more")
        if min(self.input_width, self.input_height) < 0 or bool(self.input_width) != bool(self.input_height):
            raise UsageError(
                f"input_width x input_height is {self.input_width}x{self.input_height}; "
                "give both as 1 or more, or neither"
            )

    @property
    def input_shape(self) -> tuple[int, int]:
        """Width and height of the model's input."""
        return self.input_width or self.input_size, self.input_height or self.input_size


class Measured(NamedTuple):
    """One image. Of a bad one only status, message, content_hash and, where its header was read, format and size hold.

    width, height: pixels after orientation. channels: of the decoded pixels, alpha counted. frames: images in the
    file; the first one is measured. content_hash: 16 bytes, None for an empty file, a box or a frame. pixel_hash: 16
    bytes, None for several frames. mean ... unique: see `quality.Quality`. entropy: bits per pixel of the luminance,
    0-8; channel_difference: mean max-min of R, G, B in levels, 0 for grey; signature: uint8 (256,); all three of the
    image shrunk to RASTER. model_input: uint8 (input_height, input_width, 3) RGB.
    """

    status: Status
    message: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    channels: int = 0
    frames: int = 0
    content_hash: bytes | None = None
    pixel_hash: bytes | None = None
    mean: float = math.nan
    stdv: float = math.nan
    contrast: float = math.nan
    blur: float = math.nan
    blur_blue: float = math.nan
    min: int = 0
    max: int = 0
    unique: int = 0
    entropy: float = math.nan
    channel_difference: float = math.nan
    model_input: NDArray[np.uint8] | None = None
    signature: NDArray[np.uint8] | None = None


def measure(data: bytes, params: MeasureParams) -> Measured:
    """Measure the bytes of one image file; what is wrong with them is a status, never an exception."""
    try:
        decoded = decode(data, params)
    except ImageError as error:
        return _measure_bad(data, error)
    return measure_pixels(decoded, params)._replace(content_hash=content_hash(data))


def measure_pixels(decoded: Decoded, params: MeasureParams) -> Measured:
    """Measure pixels that have no bytes of their own, such as a box or a frame; they are written over."""
    header, native, space = decoded
    pixels = pixel_hash(native, space) if header.frames == 1 else None
    shown = to_shown(decoded)  # over native, which was hashed
    small = shrink(shown, *RASTER)
    model_input = small if params.input_shape == RASTER else shrink(shown, *params.input_shape)
    small_luminance = as_luminance(small)
    numbers = quality(shown)
    return Measured(
        status=Status.OK,
        format=header.format,
        width=shown.shape[1],
        height=shown.shape[0],
        channels=1 if native.ndim == 2 else native.shape[2],
        frames=header.frames,
        pixel_hash=pixels,
        **numbers._asdict(),
        entropy=entropy(small_luminance),
        channel_difference=0.0 if small.ndim == 2 else channel_difference(small),
        model_input=as_rgb(model_input),
        signature=signature(small_luminance),
    )


def _measure_bad(data: bytes, error: ImageError) -> Measured:
    header = error.header or _readable_header(data)
    is_turned = header.orientation >= 5
    return Measured(
        status=error.status,
        message=str(error),
        format=header.format,
        width=header.height if is_turned else header.width,
        height=header.width if is_turned else header.height,
        channels=header.channels,
        frames=header.frames if header.format else 0,
        content_hash=content_hash(data) if data else None,
    )


def _readable_header(data: bytes) -> Header:
    try:
        return read_header(data)
    except ImageError:
        return Header("")
