"""One video stream of a file: opened, with its start found, and read packet by packet.

FFmpeg through PyAV, with the containers that are meant and no other: FFmpeg also takes playlists, which name other
files and addresses, for videos. Nothing of what it logs is printed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from pipeline.kernels.header import ImageError
from pipeline.kernels.video_pixels import ROTATIONS, orientation
from pipeline.kernels.video_promises import is_video, missing_bytes
from pipeline.schemas import Status

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CONTAINERS = "mp4,matroska,avi,asf,flv,mpeg,mpegts,mpegvideo,m4v,dhav,h264,hevc"
"""Demuxers of FFmpeg that are tried, by one of their names (mp4 is mov, m4v and 3gp as well, matroska webm)."""

INDEXED = frozenset({"mp4", "matroska", "avi", "asf", "flv"})
"""Containers in which a packet has the same time after a seek as when read from the start."""

MAX_PIXELS = 1 << 26
"""Larger pictures are not decoded while a file is opened; whether they are at all is for the caller's limits."""

DAMAGED = "FFmpeg: the picture is damaged"

_LEADING_PACKETS = 64  # a decoder holds at most 16 pictures back; a picture may come in two packets
_GENERATE_TIMES = 1  # a flag that PyAV sets: it reads ahead without bound, and guesses H.264 in AVI wrong
_TIMES, _HEADROOM = 8, 64 << 20
_ERROR = 16  # AV_LOG_ERROR
_SILENT = frozenset({"mjpeg"})  # hands out damaged pictures without a mark, with what memory held before
_INT_MAX = (1 << 31) - 1
_SMALL = 8  # bytes that even an empty packet counts for


class Video(NamedTuple):
    """What is known of a file's video: upright size in pixels, codec, container, duration in seconds (None: unknown).

    rotation: degrees clockwise that its pixels are turned to be upright. missing: bytes promised past its end.
    track, time_base, rate: of the stream. origin: time of the first shown frame in units of time_base.
    is_counted: some packets have no time of their own, so frames are counted from the start instead.
    """

    container: str
    codec: str
    width: int
    height: int
    duration: float | None
    rotation: int
    missing: int
    track: int
    time_base: Fraction
    rate: Fraction
    origin: int
    is_counted: bool
    pixel_bits: int

    def microseconds(self, ticks: int) -> int:
        """Time after the first shown frame of a time in units of time_base, rounded."""
        twice = 2 * (ticks - self.origin) * self.time_base.numerator * 1_000_000
        return (twice + self.time_base.denominator) // (2 * self.time_base.denominator)

    def milliseconds(self, ticks: int) -> int:
        """The whole milliseconds that name the frame of a time in units of time_base."""
        return milliseconds(self.microseconds(ticks))


def milliseconds(microseconds: int) -> int:
    """The whole milliseconds that name the frame of a time."""
    return (microseconds + 500) // 1000


def absent(video: Video, ms: int) -> ImageError:
    """No frame of that time, which a listing gave: the file is another one, or damaged."""
    return ImageError(Status.UNREADABLE, f"{video.codec}: no frame can be decoded at {ms / 1000:.3f} s")


def damaged(video: Video, ms: int, said: str) -> ImageError:
    """A frame that comes after damage in its group of pictures."""
    return ImageError(Status.UNREADABLE, f"{video.codec}: damaged between its keyframe and {ms / 1000:.3f} s. {said}")


class Bounded:
    """A file for FFmpeg to read: without a name, at most `budget` bytes for a packet, and with what its reads raised.

    FFmpeg turns an exception of a read into an end of file, and a broken file can make it read in circles. A file whose
    streams are not interleaved is read at two places in turn, 32 KB for a packet of any size: so packets are counted
    apart.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = stream.seek(0, os.SEEK_END)
        self.failed: BaseException | None = None
        self.renew()

    def renew(self) -> None:
        """Give as many bytes as reading the file several times takes."""
        self.budget = _TIMES * self.size + _HEADROOM

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        try:
            data = self.stream.read(size)[:size]
        except BaseException as error:
            self.failed = error
            raise
        self.budget -= len(data) + 64
        if self.budget < 0:
            self.failed = in_circles()
            raise self.failed
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Position after the seek."""
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        """Position."""
        return self.stream.tell()


def in_circles() -> ImageError:
    """A file of which FFmpeg reads more than it holds."""
    return ImageError(Status.UNREADABLE, "its parts point at one another: it is read in circles")


class Live(NamedTuple):
    """An open container, its video stream and the file that it reads."""

    container: InputContainer
    stream: VideoStream
    file: Bounded


@contextmanager
def translated(file: Bounded) -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg raises as ImageError, and what reading the file raised as it was; gives what it logs as errors."""
    from av.error import FFmpegError
    from av.logging import Capture

    logs: list[tuple[int, str, str]] = []
    try:
        with Capture() as logs:
            yield logs
    except (FFmpegError, ValueError, AssertionError) as error:
        if file.failed is not None:
            raise file.failed from None
        said = complaint(logs) or str(getattr(error, "strerror", None) or error)[:200]
        if isinstance(error, MemoryError):
            raise ImageError(Status.CRASHED, f"no memory left to decode it. {said}") from error
        raise ImageError(Status.UNREADABLE, f"FFmpeg: {said}") from error
    if file.failed is not None:
        raise file.failed


@contextmanager
def sized() -> Iterator[None]:
    """No memory for what a broken header asks for is a property of the file, and not of this attempt."""
    try:
        yield
    except ImageError as error:
        if error.status is not Status.CRASHED:
            raise
        raise ImageError(Status.UNREADABLE, str(error)) from error


def complaint(logs: list[tuple[int, str, str]]) -> str:
    """The last error that FFmpeg logged; "" for none."""
    return next((said.strip()[:200] for level, _, said in reversed(logs) if level <= _ERROR and said.strip()), "")


def library() -> Any:
    """PyAV. Raises ImageError (unsupported) where it is not installed."""
    try:
        import av
    except ImportError as error:
        wanted = "videos are decoded by PyAV: pip install 'image-audit[video]'"
        raise ImageError(Status.UNSUPPORTED, wanted) from error
    if av.logging.get_level() is None:  # errors are listened to, as some decoders tell of damage in no other way
        logging.getLogger("libav").addHandler(logging.NullHandler())
        av.logging.set_skip_repeated(False)
        av.logging.set_level(_ERROR)
    return av


def probe(stream: BinaryIO) -> Video:
    """What is known of the video in a seekable file, once its first frame was decoded.

    Raises ImageError: empty, unsupported (no container or codec that is read here, no video in it), truncated where
    bytes are missing at its end, else unreadable; and whatever reading the file raises.
    """
    library()
    file = Bounded(stream)
    if not file.size:
        raise ImageError(Status.EMPTY, "the file has 0 bytes")
    missing = missing_bytes(stream, file.size)
    try:
        with _container(stream) as (container, file):
            return _described(Live(container, _video_stream(container, missing), file), missing)
    except ImageError as error:
        if not missing or error.status is not Status.UNREADABLE:
            raise
        raise ImageError(Status.TRUNCATED, f"{missing:,} bytes are missing at its end. {error}") from error


@contextmanager
def opened(stream: BinaryIO, video: Video, max_pixels: int = MAX_PIXELS) -> Iterator[Live]:
    """The file at its start, decoded by one thread, pictures of more than twice `max_pixels` not at all.

    Raises ImageError, and whatever reading the file raises.
    """
    with _container(stream) as (container, file):
        found = container.streams[video.track] if video.track < len(container.streams) else None
        if found is None or found.type != "video" or found.codec_context is None:
            raise ImageError(Status.UNREADABLE, f"{video.container}: its video stream is gone")
        _bound(found, 2 * max_pixels)
        yield Live(container, found, file)  # type: ignore[arg-type]


def _bound(track: Any, max_pixels: int) -> None:
    track.codec_context.thread_count = 1
    track.codec_context.options = {"max_pixels": str(min(max_pixels, _INT_MAX))}


@contextmanager
def _container(stream: BinaryIO) -> Iterator[tuple[InputContainer, Bounded]]:
    av = library()
    from av.stream import Discard

    stream.seek(0)
    file = Bounded(stream)
    stream.seek(0)
    asked = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    head = stream.read(12)
    stream.seek(0)
    try:
        with sized(), translated(file):
            decoders = {"threads": "1", "max_pixels": str(MAX_PIXELS)}
            container = av.open(file, "r", options=decoders, container_options=asked, metadata_errors="replace")
    except ImageError as error:
        if is_video(head):
            raise
        said = f"not a video that is read here (first bytes {head.hex()})"
        raise ImageError(Status.UNSUPPORTED, said) from error
    with container:
        container.flags &= ~_GENERATE_TIMES
        for other in container.streams:
            if other.type != "video":
                other.discard = Discard.all
        yield container, file


def _video_stream(container: InputContainer, missing: int) -> VideoStream:
    """The default video stream, or else the first; a cover picture is none. missing: bytes promised past its end."""
    from av.stream import Disposition

    cover = Disposition.attached_pic | Disposition.timed_thumbnails
    tracks = [track for track in container.streams.video if not track.disposition & cover]
    if not tracks:
        held = ", ".join(sorted({stream.type for stream in container.streams}))
        status = Status.UNSUPPORTED if held and not missing else Status.UNREADABLE  # what is missing may tell of one
        raise ImageError(status, f"{container.format.name}: no video in it, only {held or 'a header'}")
    track = next((track for track in tracks if track.disposition & Disposition.default), tracks[0])
    if track.codec_context is None:
        status = Status.UNREADABLE if missing else Status.UNSUPPORTED
        raise ImageError(status, f"{container.format.name}: no decoder for its video")
    return track


def _described(live: Live, missing: int) -> Video:
    context = live.stream.codec_context
    seconds = None if live.container.duration is None else live.container.duration / 1_000_000
    names = live.container.format.name.split(",")
    pixel = context.format
    video = Video(
        container=next((name for name in names if name in INDEXED), names[0]),
        codec=context.codec.canonical_name,
        width=context.width,
        height=context.height,
        duration=seconds,
        rotation=0,
        missing=missing,
        track=live.stream.index,
        time_base=live.stream.time_base or Fraction(1, 1000),
        rate=live.stream.average_rate or live.stream.guessed_rate or Fraction(25),
        origin=0,
        is_counted=False,
        pixel_bits=pixel.padded_bits_per_pixel if pixel is not None else 24,
    )
    return _started(live, video)


def _started(live: Live, video: Video) -> Video:
    """With origin, is_counted and rotation, by the first packets and the first frame that they decode to."""
    _bound(live.stream, MAX_PIXELS)
    times: list[int] = []
    first: VideoFrame | None = None
    is_counted = False
    small = video.width * video.height <= MAX_PIXELS
    for number, packet in enumerate(packets(live)):
        if packet.pts is None:
            is_counted = is_counted or not packet.is_corrupt
        else:
            times.append(packet.pts)
        if first is None and small:
            first = next(iter(decoded(live, packet).frames), None)
        if number >= _LEADING_PACKETS:
            break
    if first is None and small:
        first = next(iter(decoded(live, None).frames), None)
    if first is None and not video.width * video.height:
        raise ImageError(
            Status.UNREADABLE, f"{video.container}: no size of its {video.codec} video that can be decoded"
        )
    if first is None:
        return video._replace(origin=min(times, default=0), is_counted=is_counted)
    origin = min(times, default=0) if first.pts is None else first.pts
    turned = orientation(first)
    width, height = (first.width, first.height) if turned < 5 else (first.height, first.width)
    video = video._replace(width=width, height=height, rotation=ROTATIONS.get(turned, 0))
    return video._replace(origin=0 if is_counted else origin, is_counted=is_counted)


def packets(live: Live) -> Iterator[av.Packet[Any]]:
    """Packets of the video stream that are shown, as stored; ends where the file does.

    Raises ImageError where FFmpeg cannot go on, and whatever reading the file raises.
    """
    source = live.container.demux(live.stream)
    total = 0
    while True:
        with sized(), translated(live.file):
            packet = next(source, None)
        if packet is None or (packet.size == 0 and packet.dts is None and packet.pts is None):
            return
        live.file.renew()
        total += packet.size + _SMALL
        if total > _TIMES * live.file.size + _HEADROOM:
            raise in_circles()
        if not _is_hidden(live, packet):
            yield packet


def _is_hidden(live: Live, packet: av.Packet[Any]) -> bool:
    """VP8 has pictures that are for reference only, in packets of their own (RFC 6386, 9.1)."""
    return bool(live.stream.codec_context.name in _VP8 and packet.size and not bytes(packet)[0] & 0x10)


_VP8 = frozenset({"vp8", "libvpx"})


class Decoding(NamedTuple):
    """Frames that a decoder handed out (some `is_corrupt`), and the damage in what it was given ("" for none).

    is_worn: something went wrong, and what comes next, even after a flush, may depend on it.
    """

    frames: list[VideoFrame]
    damage: str
    is_worn: bool


def decoded(live: Live, packet: av.Packet[Any] | None) -> Decoding:
    """What a decoder makes of a packet (None: all that it still holds).

    Raises ImageError where no memory is left, and whatever reading the file raises.
    """
    from av.error import EOFError as Ended

    context = live.stream.codec_context
    frames: list[VideoFrame] = []
    try:
        with translated(live.file) as logs, suppress(Ended):
            frames = list(context.decode(packet))
    except ImageError as error:
        if error.status is Status.CRASHED:
            raise
        return Decoding([], str(error), True)
    said = complaint(logs)
    damage = f"FFmpeg: {said}" if said and context.codec.canonical_name in _SILENT else ""
    return Decoding(frames, damage, bool(said) or any(frame.is_corrupt for frame in frames))
