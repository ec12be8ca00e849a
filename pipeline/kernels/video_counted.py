"""Frames of a video whose packets have no times of their own: decoded from the start, and counted.

MPEG program streams, and AVI with B-frames, say in which order pictures are decoded and how long each lasts, but not
when each is shown. The k-th picture that is shown has the k-th time of the packets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from pipeline.kernels.video_stream import DAMAGED, Live, Video, decoded, packets

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


class Counted(NamedTuple):
    """A frame, its time in units of time_base after the first one, and the damage since its keyframe ("" for none)."""

    ticks: int
    frame: VideoFrame
    damage: str


def counted_frames(live: Live, video: Video) -> Iterator[Counted]:
    """Every frame in the order shown. Raises ImageError where the file cannot be read on, as `packets` does."""
    step = max(1, round(1 / (video.rate * video.time_base)))
    times: deque[int] = deque()
    last, first, damage = -step, 0, ""
    is_first = True
    for packet in chain(packets(live), (None,)):
        if packet is not None:
            last = last + step if packet.dts is None else packet.dts
            first, is_first = (last if is_first else first), False
            times.append(last)
        found = decoded(live, packet)
        damage = damage or found.damage
        for frame in found.frames:
            if frame.is_corrupt:
                damage = damage or DAMAGED
            elif frame.key_frame and not found.damage:
                damage = ""
            yield Counted((times.popleft() if times else last + step) - first, frame, damage)
