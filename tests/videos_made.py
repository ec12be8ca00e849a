"""Test videos whose frames carry their number as a row of big blocks, made with PyAV and with OpenCV."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS = 192, 96, 8
MILLISECOND = Fraction(1, 1000)


class Kind(NamedTuple):
    """A container, an encoder of PyAV, and what is asked of both."""

    container: str
    codec: str
    pixels: str = "yuv420p"
    b_frames: int = 0
    options: tuple[tuple[str, str], ...] = ()


FIXED = (("sc_threshold", "0"), ("crf", "12"), ("preset", "ultrafast"))
REALTIME = ("deadline", "realtime")
OPEN = "log-level=none:open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:pools=none:frame-threads=1"
KINDS = {
    "mp4 h264": Kind("mp4", "libx264", b_frames=2, options=FIXED),
    "mp4 h264 open": Kind("mp4", "libx264", b_frames=3, options=(*FIXED, ("x264-params", "open-gop=1:bframes=3"))),
    "mp4 hevc open": Kind("mp4", "libx265", options=(("crf", "12"), ("preset", "ultrafast"), ("x265-params", OPEN))),
    "mov mpeg4": Kind("mov", "mpeg4", b_frames=2),
    "3gp mpeg4": Kind("3gp", "mpeg4"),
    "mkv h264": Kind("matroska", "libx264", b_frames=2, options=FIXED),
    "mkv mpeg2": Kind("matroska", "mpeg2video", b_frames=2),
    "webm vp8": Kind("webm", "libvpx", options=(("crf", "8"), ("b", "2M"), REALTIME)),
    "webm vp9": Kind("webm", "libvpx-vp9", options=(("crf", "20"), ("b", "0"), ("cpu-used", "8"), REALTIME)),
    "avi mjpeg": Kind("avi", "mjpeg", "yuvj420p"),
    "avi mpeg4": Kind("avi", "mpeg4"),
    "avi mpeg4 b": Kind("avi", "mpeg4", b_frames=2),
    "avi h264 b": Kind("avi", "libx264", b_frames=2, options=FIXED),
    "mpeg mpeg1": Kind("mpeg", "mpeg1video"),
    "mpeg mpeg2": Kind("mpeg", "mpeg2video", b_frames=2),
    "mpg ts": Kind("mpegts", "libx264", b_frames=2, options=FIXED),
    "wmv": Kind("asf", "wmv2"),
    "flv": Kind("flv", "flv"),
    "flv h264": Kind("flv", "libx264", b_frames=2, options=FIXED),
}  # fmt: skip
"""One of each way in which containers keep time and codecs depend on other frames."""


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """RGB picture of a number up to 255: eight blocks, white for a 1, over colours that move with the number."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([64 + (x + 3 * number) % 64, 64 + (y + 2 * number) % 64, np.full_like(x, 90)], 2).astype(np.uint8)
    block = width // BITS
    for bit in range(BITS):
        left, right = bit * block + 4, (bit + 1) * block - 4
        pixels[height // 4 : height // 2, left:right] = 255 if number >> bit & 1 else 0
    return pixels


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number that an upright picture carries."""
    height, width = pixels.shape[:2]
    block = width // BITS
    row = pixels[height * 3 // 8 - 3 : height * 3 // 8 + 3].mean((0, 2))
    return sum(int(row[bit * block + block // 2] > 128) << bit for bit in range(BITS))


def encoded(
    kind: Kind,
    pictures: Iterable[NDArray[np.uint8]],
    *,
    rate: int = 10,
    times: Sequence[int] | None = None,
    gop: int = 12,
    muxing: dict[str, str] | None = None,
    path: Path | None = None,
    **settings: Any,
) -> bytes:
    """A video of RGB pictures at a rate, or at times in milliseconds. settings: attributes of the encoder.

    path: where it is made, for what is no stream.
    """
    file = io.BytesIO()
    with av.open(file if path is None else str(path), "w", format=kind.container, options=muxing or {}) as container:
        stream = container.add_stream(kind.codec, rate=rate, options=dict(kind.options))
        context = stream.codec_context
        stream.pix_fmt = kind.pixels
        context.gop_size, context.thread_count = gop, 1
        if "x264" not in kind.codec or "open-gop" not in str(kind.options):
            context.max_b_frames = kind.b_frames
        if kind.codec in ("mpeg4", "mjpeg", "mpeg1video", "mpeg2video", "wmv2", "flv"):
            context.bit_rate = 4_000_000
        if times is not None:
            context.time_base = MILLISECOND
        for name, value in settings.items():
            setattr(context if hasattr(context, name) else stream, name, value)
        for number, pixels in enumerate(pictures):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue() if path is None else path.read_bytes()


def counting(kind: Kind, count: int, **settings: Any) -> bytes:
    """A video of the pictures 0, 1, 2, ..."""
    return encoded(kind, map(picture, range(count)), **settings)


def written_by_opencv(path: Path, code: str, count: int, rate: float) -> bytes:
    """A video of the pictures 0, 1, 2, ... by OpenCV; the container goes by the path's suffix."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, (WIDTH, HEIGHT))
    assert writer.isOpened(), f"this OpenCV writes no {code} to {path.suffix}"
    for number in range(count):
        writer.write(cv2.cvtColor(picture(number), cv2.COLOR_RGB2BGR))
    writer.release()
    return path.read_bytes()


def read_by_opencv(path: Path) -> list[NDArray[np.uint8]]:
    """Every frame as OpenCV's VideoCapture gives it, RGB, turned upright."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


def with_sound_alone() -> bytes:
    """An mp4 without a picture: half a second of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        for at in range(0, 22_050, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44_100, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
