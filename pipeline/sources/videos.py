"""Which frames of a video are audited, and how they are named.

A frame is the image `video.mp4#t=12.500`: seconds after the first shown frame, with three decimals.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import BinaryIO

from pipeline.errors import UsageError
from pipeline.kernels.header import ImageError
from pipeline.kernels.video_counted import counted_frames
from pipeline.kernels.video_stream import Live, Video, library, milliseconds, opened, packets, probe
from pipeline.schemas import Status

VIDEO_SUFFIXES = frozenset(
    {"mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "3gp", "dav"}
)  # fmt: skip
"""Last parts of the names that are taken as videos, in any case. What the bytes are is for the decoder to say."""

MAX_FPS = 240

_REORDERED = 64  # a decoder holds at most 16 pictures back; a picture may come in two packets
_ROUNDING = Fraction(1, 1000)  # containers that count milliseconds show the picture of 66.667 ms at 67
_NAME = re.compile(r"t=(0|[1-9][0-9]{0,11})\.([0-9]{3})")


@dataclass(frozen=True)
class VideoParams:
    """Which frames are taken: keyframes, or `fps` a second; of these the first `max_frames` (None: all).

    fps: the frame that is shown at each multiple of 1/fps seconds, once each: a video of fewer frames gives those it
    has. Raises UsageError listing every wrong value.
    """

    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            problems.append(f"fps must be over 0 and at most {MAX_FPS}, or None for keyframes, not {self.fps}")
        if self.max_frames is not None and self.max_frames < 1:
            problems.append(f"max_frames must be at least 1, or None for all, not {self.max_frames}")
        if problems:
            raise UsageError("frames of videos: " + "; ".join(problems))


def has_library() -> bool:
    """Whether what decodes videos is installed."""
    try:
        library()
    except ImageError:
        return False
    return True


def sampling_text(params: VideoParams) -> str:
    """The parameters as text, by which lists of frames of one video are told apart."""
    fps = None if params.fps is None else float(params.fps)
    return json.dumps({"fps": fps, "max_frames": params.max_frames})


def parse_sampling(text: str) -> VideoParams:
    """The parameters of such a text; the defaults for an empty one."""
    return VideoParams(**json.loads(text)) if text else VideoParams()


def frame_name(time: int) -> str:
    """Fragment of the frame at a time in microseconds: `t=12.500`."""
    ms = milliseconds(time)
    return f"t={ms // 1000}.{ms % 1000:03d}"


def frame_time(name: str) -> int:
    """Microseconds of a frame's fragment, whole milliseconds. Raises UsageError for any other text."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name[:80]!r} names no frame of a video; wanted seconds with three decimals, as t=12.500")
    return (int(match[1]) * 1000 + int(match[2])) * 1000


def frame_times(stream: BinaryIO, params: VideoParams) -> Iterator[int | ImageError]:
    """Times of the frames that are taken, in microseconds after the first shown one, ascending, each with its own name.

    Packets are read and not decoded, but for the first frame; only where they have no times of their own (MPEG program
    streams, AVI with B-frames) all frames are. Memory does not grow with the video. An ImageError comes last, where the
    file is truncated or cannot be read on: the times before it hold.
    Raises ImageError where nothing can be had of the file, and whatever reading it raises.
    """
    video = probe(stream)
    problems: list[ImageError] = []
    with opened(stream, video) as live:
        shown = _counted(live, video, problems) if video.is_counted else _in_packets(live, problems)
        taken = _keyframes(shown) if params.fps is None else _sampled(shown, video, Fraction(params.fps))
        named = _named(video, taken)
        yield from named if params.max_frames is None else islice(named, params.max_frames)
    if video.missing:
        yield ImageError(Status.TRUNCATED, f"{video.container}: {video.missing:,} bytes are missing at its end")
    elif problems:
        yield problems[-1]


def _named(video: Video, taken: Iterator[int]) -> Iterator[int]:
    """Times from 0 on, of frames that share their name with an earlier one the first."""
    last = -1
    for ticks in taken:
        time = video.microseconds(ticks)
        if milliseconds(time) > last:
            yield time
            last = milliseconds(time)


def _keyframes(shown: Iterator[tuple[int, bool]]) -> Iterator[int]:
    return (ticks for ticks, is_key in shown if is_key)


def _sampled(shown: Iterator[tuple[int, bool]], video: Video, fps: Fraction) -> Iterator[int]:
    """The last frame at or before each k / fps seconds, up to the last frame, once each."""
    half = min(video.time_base, _ROUNDING) / 2
    a, b = video.time_base * fps, half * fps
    per_tick, less, whole = a.numerator * b.denominator, b.numerator * a.denominator, a.denominator * b.denominator
    latest, before, scaled = -1, -1, 0
    for ticks, _ in shown:
        scaled = (ticks - video.origin) * per_tick
        first = max(0, -((less - scaled) // whole))  # the first k of which this frame can be the one
        if 0 <= before < first:
            yield latest
        latest, before = ticks, first
    if 0 <= before < -((-less - scaled) // whole):
        yield latest


def _in_packets(live: Live, problems: list[ImageError]) -> Iterator[tuple[int, bool]]:
    """Time in units of time_base of every shown frame, and whether it is a keyframe, in the order shown."""
    waiting: list[tuple[int, bool]] = []
    is_cut = False
    try:
        for packet in packets(live):
            is_cut = packet.is_corrupt
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                continue
            heapq.heappush(waiting, (packet.pts, packet.is_keyframe))
            if len(waiting) > _REORDERED:
                yield heapq.heappop(waiting)
    except ImageError as error:
        problems.append(error)
    if is_cut:
        problems.append(ImageError(Status.TRUNCATED, f"{live.container.format.name}: its last picture is cut off"))
    while waiting:
        yield heapq.heappop(waiting)


def _counted(live: Live, video: Video, problems: list[ImageError]) -> Iterator[tuple[int, bool]]:
    """As `_in_packets`, of decoded frames."""
    try:
        for ticks, frame, _ in counted_frames(live, video):
            yield ticks, frame.key_frame
    except ImageError as error:
        problems.append(error)
