"""Frames of a video whose packets say when they are shown: each from the last keyframe at or before it.

A decoder is flushed before each keyframe that frames are decoded from, and what follows a keyframe in the file but is
shown before it (an open group of pictures) counts to the one before. A keyframe itself is decoded alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from pipeline.kernels.header import ImageError
from pipeline.kernels.video_stream import (
    DAMAGED,
    INDEXED,
    Live,
    Video,
    absent,
    damaged,
    decoded,
    opened,
    packets,
    sized,
    translated,
)

if TYPE_CHECKING:
    import av
    from av.video.frame import VideoFrame

_JUMP = 5_000
"""Milliseconds from which on a seek is tried instead of reading on: 5 MB at 8 Mbit/s."""

_STEP_BACK = 1_000  # where a seek landed behind the keyframe: indexes know when pictures are decoded, not when shown
_HELD_BYTES, _HELD_PACKETS = 64 << 20, 4_096  # while it is open which keyframe a frame is decoded from
_DELAYED = 64  # a decoder holds at most 16 pictures back; a picture may come in two packets
_LONG_AGO = -(1 << 62)
_INTRA = 1


class _Item(NamedTuple):
    """A packet and the milliseconds that name its frame (_LONG_AGO without a time)."""

    ms: int
    packet: av.Packet[Any]

    @property
    def is_key(self) -> bool:
        return self.packet.is_keyframe and self.ms != _LONG_AGO


@dataclass
class _Reading:
    """A file read packet by packet: `back` is read again first, `at` is the latest time that was read.

    lost: earlier packets than the next ones are wanted. worn: the decoder met damage, which changed even later
    keyframes in spite of a flush. broke: it could not be read on. sought: what the latest seek was for.
    renewed: what the file was opened once more for.
    """

    stream: BinaryIO
    video: Video
    max_pixels: int
    stack: ExitStack
    live: Live
    source: Iterator[av.Packet[Any]]
    is_indexed: bool
    back: deque[_Item] = field(default_factory=deque)
    at: int = 0
    jump: int = _JUMP
    lost: bool = False
    worn: bool = False
    broke: bool = False
    sought: int = -1
    renewed: int = -1


@dataclass
class _Run:
    """A decoder that began at the keyframe `anchor`: frames that it handed out, packets since a later keyframe.

    is_straight: later keyframes begin no other run. is_left: one did. is_sound: it began with a keyframe.
    is_false: with another picture (one from which pictures recover slowly shows none at first).
    """

    anchor: int
    is_straight: bool = False
    pending: deque[tuple[int, VideoFrame | ImageError]] = field(default_factory=deque)
    later: list[_Item] = field(default_factory=list)
    held: int = 0
    damage: str = ""
    began: bool = False
    is_sound: bool = False
    is_false: bool = False
    is_left: bool = False
    is_over: bool = False

    def is_left_by(self, item: _Item, ms: int) -> bool:
        """Whether the frame is to be decoded from this packet's keyframe and not by this run."""
        return not self.is_straight and item.is_key and self.anchor < item.ms <= ms


def keyed_frames(
    stream: BinaryIO, video: Video, wanted: list[int], max_pixels: int
) -> Iterator[VideoFrame | ImageError]:
    """The frame of each of some ascending milliseconds, or what is wrong with it.

    Raises ImageError where the file cannot be opened, and whatever reading it raises.
    """
    with ExitStack() as stack:
        live = stack.enter_context(opened(stream, video, max_pixels))
        indexed = video.container in INDEXED
        reading = _Reading(stream, video, max_pixels, stack, live, packets(live), indexed)
        run: _Run | None = None
        for ms in wanted:
            frame, run = _frame_at(reading, run, ms)
            yield frame


def _frame_at(reading: _Reading, run: _Run | None, ms: int) -> tuple[VideoFrame | ImageError, _Run | None]:
    """The frame, and the decoder to go on with."""
    while True:
        if run is not None and _reaches(reading, run, ms):
            found = _run_to(reading, run, ms)
            if found is not None:
                return found, run
            if run.damage and not run.is_left:
                return damaged(reading.video, ms, run.damage), run
            if run.is_sound and not run.is_left:
                return absent(reading.video, ms), run
            if not run.is_left:
                return _from_before(reading, ms, run.anchor), None
        begun = _gathered(reading, ms, ms, -1 if run is None else run.anchor)
        if not begun:
            return absent(reading.video, ms), None
        reading.back.extendleft(reversed(begun))
        if begun[0].ms == ms and not begun[0].packet.is_discard:
            alone = _alone(reading, begun[0])
            return (_from_before(reading, ms, ms) if alone is None else alone), None
        run = _begun(reading, begun[0])


def _begun(reading: _Reading, key: _Item, *, is_straight: bool = False) -> _Run:
    reading.live.stream.codec_context.flush_buffers()
    return _Run(key.ms, is_straight)


def _alone(reading: _Reading, key: _Item) -> VideoFrame | ImageError | None:
    """The frame of a keyframe's packet; None where it is none."""
    run = _begun(reading, key)
    _decode(reading, run, key)
    _decode(reading, run, None)
    reading.live.stream.codec_context.flush_buffers()
    return None if run.is_false else next((frame for ms, frame in run.pending if ms == key.ms), None)


def _from_before(reading: _Reading, ms: int, anchor: int) -> VideoFrame | ImageError:
    """The frame by way of the keyframe before: where the last one is only called so, or pictures recover slowly."""
    reading.lost = True
    begun = _gathered(reading, ms, anchor - 1, -1)
    found = None
    if begun:
        reading.back.extendleft(reversed(begun))
        found = _run_to(reading, _begun(reading, begun[0], is_straight=True), ms)
    reading.lost = True
    return absent(reading.video, ms) if found is None else found


def _reaches(reading: _Reading, run: _Run, ms: int) -> bool:
    """Whether the run comes to the frame before a keyframe does from which it is to be decoded; reads ahead to see."""
    if run.pending and run.pending[-1][0] >= ms:
        return True
    if run.later:
        if not run.is_left_by(run.later[0], ms):
            return True
        reading.back.extendleft(reversed(run.later))
        return False
    if reading.is_indexed and ms - reading.at > reading.jump:
        return False
    ahead: list[_Item] = []
    held = 0
    while (item := _next(reading)) is not None:
        if run.is_left_by(item, ms):
            reading.back.appendleft(item)
            return False
        ahead.append(item)
        held += item.packet.size
        if item.ms >= ms or _is_full(ahead, held):
            break
    reading.back.extendleft(reversed(ahead))
    return not _may_seek(reading, ms)


def _may_seek(reading: _Reading, ms: int) -> bool:
    """Whether the file broke off, and what is wanted may still be found behind that place."""
    return reading.broke and reading.is_indexed and reading.sought != ms


def _hold(run: _Run, item: _Item | None) -> None:
    """Keeps what is decoded after a later keyframe: a run that begins there decodes it again."""
    if item is not None and not run.is_straight and (run.later or (item.is_key and item.ms > run.anchor)):
        run.later.append(item)
        run.held += item.packet.size
    is_late = len(run.later) > _DELAYED and any(later.is_key for later in run.later[1:])
    run.is_over = item is None or is_late or _is_full(run.later, run.held)


def _run_to(reading: _Reading, run: _Run, ms: int) -> VideoFrame | ImageError | None:
    """Decodes up to a frame; None where the run has none of that time, or is left for a later keyframe."""
    while not run.is_false:
        while run.pending and run.pending[0][0] < ms:
            run.pending.popleft()
        if run.pending:
            shown, frame = run.pending[0]
            return frame if shown == ms else None
        if run.is_over:
            return None
        item = _next(reading)
        if item is not None and run.is_left_by(item, ms):
            reading.back.appendleft(item)
            run.is_left = True
            return None
        _hold(run, item)
        _decode(reading, run, item)
    return None


def _decode(reading: _Reading, run: _Run, item: _Item | None) -> None:
    """Frames of one packet (None: the last ones) into `run.pending`, in the order shown."""
    found = decoded(reading.live, None if item is None else item.packet)
    reading.worn = reading.worn or found.is_worn
    if item is None or item.ms >= run.anchor:  # else a picture that needs what came before the keyframe
        run.damage = run.damage or found.damage
    for frame in found.frames:
        shown = _LONG_AGO if frame.pts is None else reading.video.milliseconds(frame.pts)
        if shown < run.anchor:
            continue
        is_key = frame.key_frame or frame.pict_type == _INTRA
        if not run.began:
            run.began, run.is_sound, run.is_false = (
                True,
                shown == run.anchor and is_key,
                shown == run.anchor and not is_key,
            )
        run.damage = run.damage or (DAMAGED if frame.is_corrupt else "")
        run.pending.append((shown, damaged(reading.video, shown, run.damage) if run.damage else frame))


def _gathered(reading: _Reading, ms: int, bound: int, before: int) -> list[_Item]:
    """Packets from the last keyframe at or before `bound` on, up to one that shows that it is the last.

    before: the keyframe that frames were decoded from last. Where a seek lands there again, as in a video with few
    keyframes, the next one must lead twice as far.
    """
    if reading.worn and reading.is_indexed:  # elsewhere it would be read from the start for each damaged group
        if reading.renewed == ms:  # and left again: its times go back and forth
            return []
        reading.renewed = ms
        _reopen(reading)
    if reading.lost or (reading.is_indexed and bound - reading.at > reading.jump):
        begun = _sought(reading, bound)
        if begun and begun[0].ms <= before:
            reading.jump = max(reading.jump, 2 * (ms - before))
        return begun
    begun = _read_to(reading, bound)
    return _sought(reading, bound) if _may_seek(reading, bound) else begun


def _read_to(reading: _Reading, bound: int) -> list[_Item]:
    begun: list[_Item] = []
    held = 0
    while (item := _next(reading)) is not None:
        if item.is_key and item.ms <= bound:
            begun, held = [item], item.packet.size
        elif begun:
            begun.append(item)
            held += item.packet.size
        elif item.is_key:
            reading.back.appendleft(item)
            return []
        if begun and (item.ms >= bound or _is_full(begun, held)):
            return begun
    return begun


def _is_full(items: list[_Item], held: int) -> bool:
    return len(items) > _HELD_PACKETS or held > _HELD_BYTES


def _sought(reading: _Reading, bound: int) -> list[_Item]:
    """As `_read_to`, from a keyframe that the container's index names, or else from the start."""
    step, reading.sought = 0, bound
    while reading.is_indexed and bound - step > 0 and _seek(reading, bound - step):
        begun = _read_to(reading, bound)
        if begun:
            return begun
        step = 2 * step or _STEP_BACK
    _reopen(reading)
    return _read_to(reading, bound)


def _seek(reading: _Reading, ms: int) -> bool:
    """Whether the container could move to the keyframe at or before a time."""
    video, live = reading.video, reading.live
    ticks = video.origin + (2 * ms + 1) * video.time_base.denominator // (2000 * video.time_base.numerator)
    live.file.renew()
    try:
        with sized(), translated(live.file):
            live.container.seek(ticks, stream=live.stream)
    except ImageError:
        return False
    _begin(reading)
    return True


def _reopen(reading: _Reading) -> None:
    reading.stack.close()
    reading.live = reading.stack.enter_context(opened(reading.stream, reading.video, reading.max_pixels))
    reading.worn = False
    _begin(reading)


def _begin(reading: _Reading) -> None:
    reading.back.clear()
    reading.source = packets(reading.live)
    reading.at, reading.lost, reading.broke = 0, False, False


def _next(reading: _Reading) -> _Item | None:
    """The next packet; None at the end, and where the file cannot be read on."""
    if reading.back:
        return reading.back.popleft()
    try:
        packet = next(reading.source, None)
    except ImageError:
        reading.broke = True
        return None
    if packet is None:
        return None
    ms = _LONG_AGO if packet.pts is None else reading.video.milliseconds(packet.pts)
    reading.at = max(reading.at, ms)
    return _Item(ms, packet)
