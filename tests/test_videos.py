"""Videos: which frames one has, that the right one comes, and that it has the same pixels however it is asked for."""

from __future__ import annotations

import io
import math
import tracemalloc
from fractions import Fraction
from functools import cache
from itertools import repeat
from pathlib import Path

import av
import numpy as np
import pytest
import videos_made
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from videos_made import FIXED, KINDS, Kind, counting, encoded, number_of, picture, read_by_opencv, written_by_opencv

from pipeline.errors import UsageError
from pipeline.kernels.header import ImageError
from pipeline.kernels.measure import MeasureParams
from pipeline.kernels.video_frames import decode_frames
from pipeline.kernels.video_stream import probe
from pipeline.sources.videos import VideoParams, frame_name, frame_time, frame_times

LIMITS = MeasureParams()
COUNT = 40
EVERY = VideoParams(fps=200)
"""A multiple of every rate that is used here: sampling ends with the last multiple that a frame is shown at."""
REFRESH = Kind("matroska", "libx264", options=(*FIXED, ("intra-refresh", "1")))
MP4 = KINDS["mp4 h264"]
Pixels = NDArray[np.uint8]


def rate_of(kind: Kind) -> int:
    """2 frames a second, so that a seek pays; the MPEG encoders know only some rates."""
    return 25 if kind.codec in ("mpeg1video", "mpeg2video") else 2


@cache
def made(name: str, gop: int = 12) -> bytes:
    kind = REFRESH if name == "refresh" else KINDS[name]
    return counting(kind, COUNT, rate=rate_of(kind), gop=gop)


def times_of(video: bytes, params: VideoParams = EVERY) -> list[int]:
    times = list(frame_times(io.BytesIO(video), params))
    assert all(isinstance(time, int) for time in times), times
    return times  # type: ignore[return-value]


def pixels_of(video: bytes, times: list[int]) -> list[Pixels]:
    frames = list(decode_frames(io.BytesIO(video), times, LIMITS))
    assert not [str(frame) for frame in frames if isinstance(frame, ImageError)]
    assert all((frame.header.height, frame.header.width) == frame.native.shape[:2] for frame in frames)
    return [frame.native for frame in frames]


@cache
def all_pixels(name: str, gop: int = 12) -> list[Pixels]:
    return pixels_of(made(name, gop), times_of(made(name, gop)))


@pytest.mark.parametrize("name", [*KINDS, "refresh"])
def test_every_frame_is_listed_and_comes_at_its_time(name: str) -> None:
    rate = rate_of(REFRESH if name == "refresh" else KINDS[name])

    assert [round(time * rate / 1e6, 1) for time in times_of(made(name))] == [*range(COUNT)]
    assert [number_of(pixels) for pixels in all_pixels(name)] == [*range(COUNT)]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*KINDS, "refresh"]),
    gop=st.sampled_from([12, 100]),
    wanted=st.sets(st.integers(0, COUNT - 1), max_size=6),
)
def test_a_frame_has_the_same_pixels_whatever_else_is_asked_for(name: str, gop: int, wanted: set[int]) -> None:
    times = times_of(made(name, gop))
    some = pixels_of(made(name, gop), [times[number] for number in sorted(wanted)])

    assert all(np.array_equal(all_pixels(name, gop)[k], seen) for k, seen in zip(sorted(wanted), some, strict=True))


@pytest.mark.parametrize("name", ["mp4 h264 open", "mp4 hevc open", "mov mpeg4", "mkv mpeg2"])
def test_groups_of_pictures_are_open(name: str) -> None:
    """Else the two tests above would not see what makes them hard."""
    with av.open(io.BytesIO(made(name))) as container:
        stored = [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.pts is not None]
    keys = [number for number, (_, is_key) in enumerate(stored) if is_key]

    assert any(time < stored[key][0] for key in keys for time, _ in stored[key:])


@pytest.mark.parametrize("name", [name for name in KINDS if name != "avi h264 b"])
def test_keyframes_are_those_that_decode_as_such(name: str) -> None:
    with av.open(io.BytesIO(made(name))) as container:
        expected = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    times = times_of(made(name), VideoParams())

    assert [number_of(pixels) for pixels in pixels_of(made(name), times)] == expected
    assert len(expected) > 2


@pytest.mark.parametrize("fps", [0.3, 1, 2, 2.5, 7, 29.97, 240])
@pytest.mark.parametrize("name", ["mp4 h264", "mkv h264", "flv h264", "avi mjpeg", "avi mpeg4 b", "mpeg mpeg2"])
def test_fps_takes_the_frame_that_is_shown_then(name: str, fps: float) -> None:
    """By definition: at each k / fps up to the last frame the last frame at or before it, once each."""
    rate = 30 if name != "mpeg mpeg2" else 25
    video = counting(KINDS[name], 75, rate=rate)
    shown = [Fraction(number, rate) for number in range(75)]
    nominal = [Fraction(k) / Fraction(fps) for k in range(math.floor(shown[-1] * Fraction(fps)) + 1)]
    expected = sorted({max(number for number, time in enumerate(shown) if time <= moment) for moment in nominal})

    assert [round(time * rate / 1e6) for time in times_of(video, VideoParams(fps=fps))] == expected


def test_a_variable_frame_rate_gives_no_frame_twice() -> None:
    moments = [0, 40, 80, 1000, 1010, 1020, 5500, 9000, 9040]
    video = encoded(KINDS["mkv h264"], map(picture, range(9)), times=moments)

    assert times_of(video) == [moment * 1000 for moment in moments]
    assert times_of(video, VideoParams(fps=1)) == [0, 1_000_000, 1_020_000, 5_500_000, 9_000_000]
    assert times_of(video, VideoParams(fps=1, max_frames=2)) == [0, 1_000_000]
    assert [number_of(pixels) for pixels in pixels_of(video, [1_020_000, 9_000_000])] == [5, 7]


def test_frames_of_one_millisecond_are_one() -> None:
    with av.open(io.BytesIO(), "w", format="mp4") as container:
        file = container.file.file
        stream = container.add_stream("mpeg4", rate=10_000)
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p"
        stream.codec_context.gop_size = 1
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode(None))
        container.close()
        video = file.getvalue()

    names = [frame_name(time) for time in times_of(video, VideoParams())]

    assert names == ["t=0.000", "t=0.001", "t=0.002", "t=0.003"]
    assert len(pixels_of(video, [frame_time(name) for name in names])) == 4


@pytest.mark.parametrize(("code", "suffix"), [("MJPG", ".avi"), ("mp4v", ".mp4"), ("mp4v", ".mov"), ("mp4v", ".mkv")])
def test_what_opencv_writes_is_read_as_opencv_reads_it(code: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"video{suffix}"
    video = written_by_opencv(path, code, 30, 12.5)
    times = times_of(video)
    found = pixels_of(video, times)

    assert [number_of(pixels) for pixels in found] == [*range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(found, read_by_opencv(path), strict=True))
    assert [time // 1000 for time in times] == [number * 80 for number in range(30)]


@pytest.mark.parametrize(
    ("kind", "tags", "tolerance"),
    [
        (MP4, {}, 0),
        (MP4._replace(pixels="yuv444p"), {}, 0),
        (MP4, {"colorspace": 1, "color_range": 1}, 0),
        (MP4, {"colorspace": 5, "color_range": 2}, 0),
        (Kind("mp4", "libx265", "yuv420p10le", options=(("x265-params", "log-level=none"),)), {}, 8),
        (Kind("mkv", "ffv1", "yuv422p")._replace(container="matroska"), {}, 0),
        (Kind("avi", "mjpeg", "yuvj422p"), {}, 0),
        (Kind("avi", "rawvideo", "rgb24"), {}, 0),
        (KINDS["webm vp9"], {}, 0),
    ],
)
def test_colours_are_those_of_opencv(kind: Kind, tags: dict[str, int], tolerance: int, tmp_path: Path) -> None:
    video = counting(kind, 3, **tags)
    (tmp_path / "video").write_bytes(video)
    theirs = read_by_opencv(tmp_path / "video")
    ours = pixels_of(video, times_of(video))

    assert len(ours) == 3
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(ours, theirs, strict=True)) <= tolerance


@pytest.mark.parametrize(("space", "red", "blue"), [(5, 0.299, 0.114), (1, 0.2126, 0.0722), (2, 0.299, 0.114)])
def test_the_matrix_is_the_one_that_the_stream_is_tagged_with(space: int, red: float, blue: float) -> None:
    """BT.601 where it has no tag. Kr and Kb of ITU-R BT.601 and BT.709, limited range."""
    y, cb, cr = 120, 90, 170
    frame = av.VideoFrame.from_ndarray(
        np.vstack(
            [np.full((96, 192), y, np.uint8), np.full((24, 192), cb, np.uint8), np.full((24, 192), cr, np.uint8)]
        ),
        format="yuv420p",
    )
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p"
        stream.codec_context.colorspace = frame.colorspace = space
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    light, u, v = (y - 16) * 255 / 219, (cb - 128) * 255 / 224, (cr - 128) * 255 / 224
    r, b = light + 2 * (1 - red) * v, light + 2 * (1 - blue) * u
    expected = [r, (light - red * r - blue * b) / (1 - red - blue), b]

    (pixels,) = pixels_of(file.getvalue(), [0])

    assert np.abs(pixels.reshape(-1, 3) - np.array(expected)).max() < 3


def turned(video: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 with another display matrix (a, b, c, d) in the head of its track (ISO/IEC 14496-12, 8.3.2)."""
    at = video.index(b"tkhd") + 4 + 40
    values = (matrix[0], matrix[1], 0, matrix[2], matrix[3], 0)
    words = [*(value << 16 for value in values), 0, 0, 1 << 30]
    return video[:at] + b"".join(word.to_bytes(4, "big", signed=True) for word in words) + video[at + 36 :]


@pytest.mark.parametrize(
    ("matrix", "turn", "degrees"),
    [
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1), 90),
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2), 180),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1), 270),
        ((-1, 0, 0, 1), np.fliplr, 0),
        ((1, 0, 0, -1), np.flipud, 0),
        ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2), 0),
    ],
)
def test_frames_are_upright(matrix: tuple[int, int, int, int], turn: object, degrees: int, tmp_path: Path) -> None:
    video = turned(made("mp4 h264"), matrix)
    times = times_of(video)[3:5]
    path = tmp_path / "turned.mp4"
    path.write_bytes(video)
    found = pixels_of(video, times)

    assert all(np.array_equal(turn(all_pixels("mp4 h264")[3 + k]), found[k]) for k in range(2))  # type: ignore[operator]
    assert probe(io.BytesIO(video))[2:4] == (found[0].shape[1], found[0].shape[0])
    assert probe(io.BytesIO(video)).rotation == degrees
    if degrees:
        assert np.array_equal(read_by_opencv(path)[3], found[0])


def test_an_edit_list_hides_frames() -> None:
    """As a cut without encoding anew makes it: what is decoded before the cut is not shown."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(made("mp4 h264"))) as source,
        av.open(file, "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = round(7 * 0.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                container.mux(packet)
    times = times_of(file.getvalue())

    assert [time // 500_000 for time in times] == [*range(COUNT - 7)]
    assert [number_of(pixels) for pixels in pixels_of(file.getvalue(), times[3:6])] == [10, 11, 12]
    assert times_of(file.getvalue(), VideoParams())[0] == 2_500_000  # frame 12: the keyframe at 0 is hidden


def test_of_several_streams_the_default_video_counts() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = []
        for disposition in ("attached_pic", "", "default"):
            stream = container.add_stream("mjpeg" if disposition == "attached_pic" else "mpeg4", rate=5)
            stream.width, stream.height = 192, 96
            stream.pix_fmt = "yuvj420p" if disposition == "attached_pic" else "yuv420p"
            stream.disposition = getattr(av.stream.Disposition, disposition, av.stream.Disposition(0))
            streams.append(stream)
        for number in range(5):
            for place, stream in enumerate(streams[1:]):
                frame = av.VideoFrame.from_ndarray(picture(number + 50 * place), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams[1:]:
            container.mux(stream.encode(None))

    video = file.getvalue()

    assert [number_of(pixels) for pixels in pixels_of(video, times_of(video))] == [50, 51, 52, 53, 54]


def test_sound_that_lies_far_from_the_pictures_is_not_read_for_each_of_them() -> None:
    """All pictures, then all sound: FFmpeg would read 32 KB at either place in turn."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        video = container.add_stream("mjpeg", rate=50)
        video.width, video.height, video.pix_fmt = 64, 32, "yuvj420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        shots = [
            p for n in range(600) for p in video.encode(av.VideoFrame.from_ndarray(picture(n % 9, 64, 32), "rgb24"))
        ]
        for number in range(600):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 160), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, number * 160
            shots += sound.encode(frame)
        for packet in shots:
            container.mux_one(packet)

    assert len(times_of(file.getvalue())) == 600


def test_what_is_known_of_a_video() -> None:
    video = probe(io.BytesIO(made("mp4 h264")))

    assert (video.container, video.codec, video.width, video.height) == ("mp4", "h264", 192, 96)
    assert (video.duration, video.rotation, video.missing) == (20.0, 0, 0)


def test_a_listing_takes_little_memory() -> None:
    """3,000 frames; a list of their times alone would take 120 KB."""
    small = encoded(Kind("avi", "mpeg4"), repeat(picture(0, 32, 16), 3000), rate=100, gop=50)
    warm = sum(1 for _ in frame_times(io.BytesIO(small), EVERY))
    tracemalloc.start()
    counted = sum(1 for _ in frame_times(io.BytesIO(small), EVERY))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (warm, counted) == (3000, 3000)
    assert peak < 80_000


def test_frames_in_vp8_that_are_never_shown_are_not_listed() -> None:
    """A picture for reference only has a packet and a time of its own."""
    video = io.BytesIO()
    with (
        av.open(io.BytesIO(made("webm vp8"))) as source,
        av.open(video, "w", format="webm") as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts in (5000, 9000):
                hidden = av.Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])
                hidden.stream, hidden.time_base = stream, packet.time_base
                hidden.pts = hidden.dts = packet.pts - 100
                container.mux(hidden)
            if packet.pts is not None:
                packet.stream = stream
                container.mux(packet)

    times = times_of(video.getvalue())

    assert times == times_of(made("webm vp8"))
    assert [number_of(pixels) for pixels in pixels_of(video.getvalue(), times)] == [*range(COUNT)]


@given(st.integers(0, 10**15))
def test_names_of_frames_lead_back(time: int) -> None:
    assert abs(frame_time(frame_name(time)) - time) <= 500
    assert frame_name(frame_time(frame_name(time))) == frame_name(time)


def test_names_of_frames() -> None:
    assert [frame_name(time) for time in (0, 499, 500, 12_500_000, 3_600_000_400)] == [
        "t=0.000", "t=0.000", "t=0.001", "t=12.500", "t=3600.000",
    ]  # fmt: skip
    for wrong in ("", "t=1", "t=1.5", "t=-1.000", "t=01.000", "t=1.000\n", "t=\u0661.000", "x=1.000", "t=1.0000"):
        with pytest.raises(UsageError, match=r"t=12\.500"):
            frame_time(wrong)


@pytest.mark.parametrize("fps", [0, -1, math.nan, math.inf, 240.01])
def test_wrong_parameters_are_told(fps: float) -> None:
    with pytest.raises(UsageError, match="fps must be") as told:
        VideoParams(fps=fps, max_frames=0)

    assert "max_frames must be at least 1" in str(told.value)


def test_a_frame_keeps_the_limits_of_images() -> None:
    small = list(decode_frames(io.BytesIO(made("mp4 h264")), [0, 500_000], MeasureParams(max_pixels=192 * 96 - 1)))

    assert [frame.status.value for frame in small if isinstance(frame, ImageError)] == ["too_large"] * 2
    assert "max_pixels" in str(small[0])


def test_times_come_in_order_and_may_repeat() -> None:
    times = times_of(made("mp4 h264"))
    assert [number_of(p) for p in pixels_of(made("mp4 h264"), [times[k] for k in (0, 0, 5, 5, 12, 12, 39, 39)])] == [
        0, 0, 5, 5, 12, 12, 39, 39,
    ]  # fmt: skip
    assert list(decode_frames(io.BytesIO(made("mp4 h264")), [], LIMITS)) == []
    with pytest.raises(ValueError, match="ascending"):
        list(decode_frames(io.BytesIO(made("mp4 h264")), [1_000_000, 0], LIMITS))


def test_a_time_without_a_frame_is_unreadable_and_the_others_come() -> None:
    wanted = [0, 250_000, 1_000_000, 900_000_000]
    found = list(decode_frames(io.BytesIO(made("mp4 h264")), wanted, LIMITS))

    assert [frame.status.value if isinstance(frame, ImageError) else number_of(frame.native) for frame in found] == [
        0, "unreadable", 2, "unreadable",
    ]  # fmt: skip
    assert "0.250 s" in str(found[1])


def test_sizes_of_the_test_pictures() -> None:
    assert number_of(picture(173)) == 173
    assert videos_made.WIDTH % videos_made.BITS == 0
