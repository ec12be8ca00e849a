"""Broken, cut off and hostile videos: each has a status, nothing hangs, nothing large is allocated, nothing is said."""

from __future__ import annotations

import io
import resource
import struct
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_videos import EVERY, made
from videos_made import KINDS, WIDTH, Kind, counting, number_of, with_sound_alone

from pipeline.errors import StorageUnavailable
from pipeline.kernels.header import ImageError
from pipeline.kernels.measure import MeasureParams
from pipeline.kernels.pillow_decode import Decoded
from pipeline.kernels.video_frames import decode_frames
from pipeline.sources.videos import VideoParams, frame_times

LIMITS = MeasureParams()
BAD = {"unreadable", "truncated", "unsupported", "empty", "too_large"}


def listed(video: bytes, params: VideoParams = EVERY) -> tuple[list[int], str, str]:
    """Times, and status and message of the file ("ok" without one)."""
    times: list[int] = []
    try:
        for time in frame_times(io.BytesIO(video), params):
            if isinstance(time, ImageError):
                return times, time.status.value, str(time)
            times.append(time)
    except ImageError as error:
        assert not times
        return times, error.status.value, str(error)
    return times, "ok", ""


def frames(video: bytes, times: list[int]) -> list[Decoded | ImageError]:
    return list(decode_frames(io.BytesIO(video), times, LIMITS))


def refused(video: bytes) -> tuple[str, str]:
    """Status and message of a file of which nothing can be had, which are those of its frames too."""
    times, status, message = listed(video)
    assert times == []
    (frame,) = frames(video, [0])
    assert isinstance(frame, ImageError)
    assert (frame.status.value, str(frame)) == (status, message)
    return status, message


def test_files_that_are_no_videos() -> None:
    assert refused(b"")[0] == "empty"
    assert refused(b"This is a text, and its name ends in mp4.\n" * 100)[0] == "unsupported"
    assert refused(b"\0" * 10_000)[0] == "unsupported"
    assert refused(b"\xff\xd8\xff\xe0" + b"\0" * 5000)[0] == "unsupported"
    status, message = refused(with_sound_alone())
    assert (status, "no video in it, only audio" in message) == ("unsupported", True)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {path}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{path}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>{path}</BaseURL></AdaptationSet></Period></MPD>',
    ],
)
def test_a_playlist_leads_nowhere(text: str, tmp_path: Path) -> None:
    """FFmpeg would open what these name."""
    path = tmp_path / "private.mp4"
    path.write_bytes(made("mp4 h264"))

    assert refused(text.format(path=path).encode())[0] == "unsupported"


def test_an_mp4_that_was_never_finished() -> None:
    status, message = refused(made("mp4 h264")[: len(made("mp4 h264")) // 2])

    assert status == "truncated"
    assert "no moov box" in message
    assert "missing at its end" in message


@pytest.mark.parametrize("is_first", [False, True], ids=["index at the end", "index first"])
def test_an_mp4_cut_anywhere_is_truncated(is_first: bool, tmp_path: Path) -> None:
    """From the byte on by which it is known, also where its index is cut."""
    whole = made("mp4 h264")
    if is_first:
        first = {"muxing": {"movflags": "faststart"}, "path": tmp_path / "first.mp4"}
        whole = counting(KINDS["mp4 h264"], 40, rate=2, **first)
    index = whole.index(b"moov") - 4
    size = int.from_bytes(whole[index : index + 4], "big")
    for cut in {8, 24, 36, 100, *range(index, index + size, 61), len(whole) // 2, len(whole) - 1}:
        assert listed(whole[:cut])[1] == "truncated", cut
    status, message = refused(whole[: index + 68])
    assert (status, "missing at its end" in message, "nothing" in message) == ("truncated", True, False)


def test_an_mp4_with_no_box_where_its_index_may_lie_is_unreadable() -> None:
    whole = bytearray(made("mp4 h264"))
    index = whole.index(b"moov") - 4
    whole[index : index + 4] = (2).to_bytes(4, "big")
    status, message = refused(bytes(whole))
    assert (status, f"before byte {index:,}" in message) == ("unreadable", True)


@pytest.mark.parametrize(
    "name", ["mp4 first", "mkv h264", "webm vp9", "avi mjpeg", "avi mpeg4", "avi mpeg4 b", "wmv", "flv", "mpeg mpeg2"]
)
@pytest.mark.parametrize("share", [0.35, 0.8])
def test_a_video_cut_in_the_middle_gives_the_frames_that_are_there(name: str, share: float, tmp_path: Path) -> None:
    first = {"muxing": {"movflags": "faststart"}, "path": tmp_path / "first.mp4"}
    whole = made(name) if name in KINDS else counting(KINDS["mp4 h264"], 40, rate=2, **first)
    cut = whole[: int(len(whole) * share)]
    times, status, message = listed(cut)
    complete = listed(whole)[0]
    found = frames(cut, times)
    good = [frame for frame in found if isinstance(frame, Decoded)]

    assert times == complete[: len(times)]
    assert 40 * share / 2 < len(times) < 40
    assert len(good) >= len(times) - 3  # the last one may be half a picture, and B-frames need it
    assert [number_of(frame.native) for frame in good[:-2]] == [*range(len(good) - 2)]
    if name not in ("flv", "mpeg mpeg2"):  # they do not say how long they are
        assert status == "truncated", message
        assert "missing at its end" in message


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(data), name) + data


def with_samples(count: int) -> bytes:
    """An mp4 whose track has `count` samples of 1 byte, in one chunk: 12 bytes of its head say so."""
    video = made("mp4 h264")
    at = video.index(b"stsz")
    size = int.from_bytes(video[at - 4 : at], "big")
    table = struct.pack(">III", 0, 1, count)
    video = video[: at + 4] + table + video[at + 16 : at - 4 + size] + video[at - 4 + size :]
    runs = video.index(b"stsc")
    return video[: runs + 8] + struct.pack(">IIII", 1, 1, count, 1) + video[runs + 24 :]


def in_fragments(count: int) -> bytes:
    """A fragmented mp4 whose first run has `count` samples without a field of their own."""
    video = counting(KINDS["mp4 h264"], 8, muxing={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    at = video.index(b"trun")
    return video[: at + 4] + struct.pack(">II", 0x000001, count) + video[at + 12 :]


def with_edits(count: int) -> bytes:
    """An mp4 with an edit list of `count` entries, each of which shows all of it again."""
    video = made("mp4 h264")
    at = video.index(b"edts") - 4
    old = int.from_bytes(video[at : at + 4], "big")
    entries = struct.pack(">II", 0, count) + struct.pack(">Iii", 20_000, 0, 1 << 16) * count
    edits = box(b"edts", box(b"elst", entries))
    for parent in (b"moov", b"trak"):
        place = video.index(parent) - 4
        size = int.from_bytes(video[place : place + 4], "big") + len(edits) - old
        video = video[:place] + size.to_bytes(4, "big") + video[place + 4 :]
    return video[:at] + edits + video[at + old :]


@pytest.mark.parametrize("hostile", [with_samples(1_000_000_000), in_fragments(500_000_000), with_edits(900_000)])
def test_a_header_that_asks_for_a_billion_frames_is_refused_before_they_are_allocated(hostile: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, message = refused(hostile)

    assert status == "unreadable"
    assert "at most 33,554,432" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_an_avi_that_says_it_has_a_billion_frames_has_those_that_are_there() -> None:
    video = bytearray(made("avi mjpeg"))
    video[48:52] = (1_000_000_000).to_bytes(4, "little")  # dwTotalFrames
    video[video.index(b"strh") + 40 :][:4] = (1_000_000_000).to_bytes(4, "little")

    assert listed(bytes(video))[0] == listed(made("avi mjpeg"))[0]


def test_a_table_of_samples_that_points_outside_of_the_file() -> None:
    video = bytearray(made("mp4 h264"))
    at = video.index(b"stco") + 12
    video[at : at + 4] = b"\x7f\xff\xff\x00"
    times, status, _ = listed(bytes(video))

    assert (times, status) == ([], "unreadable") or all(isinstance(f, ImageError) for f in frames(bytes(video), times))


@pytest.mark.parametrize("side", [65_000, 30_000])
def test_a_huge_declared_size_is_too_large_or_unreadable(side: int) -> None:
    """Of a codec that takes its size from the container."""
    video = bytearray(counting(Kind("avi", "ffvhuff", "yuv420p"), 3))
    at = video.index(b"strf") + 12
    assert struct.unpack_from("<i", video, at) == (WIDTH,)
    struct.pack_into("<ii", video, at, side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, status, _ = listed(bytes(video))
    found = frames(bytes(video), times or [0])

    assert status in {"ok", "unreadable"}
    assert {frame.status.value for frame in found if isinstance(frame, ImageError)} <= {"too_large", "unreadable"}
    assert all(isinstance(frame, ImageError) for frame in found)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@cache
def packets_of(name: str) -> list[tuple[int, int]]:
    """Place and size in the file of every packet of a video."""
    import av

    with av.open(io.BytesIO(made(name))) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("name", ["mp4 h264", "mkv h264", "mov mpeg4", "avi mjpeg", "webm vp8", "mp4 hevc open"])
def test_damage_stays_in_its_group_and_does_not_depend_on_what_is_asked_for(name: str) -> None:
    """Group 12-23 is damaged: frames outside of it are as before, frames in it as before or bad, in any subset."""
    video = bytearray(made(name))
    start, size = packets_of(name)[15]
    video[start + size // 3 : start + size * 2 // 3] = bytes(
        value ^ 0x5A for value in video[start + size // 3 : start + size * 2 // 3]
    )
    times = listed(made(name))[0]
    intact, whole = frames(made(name), times), frames(bytes(video), times)

    def same(one: Decoded | ImageError, other: Decoded | ImageError) -> bool:
        if isinstance(one, ImageError) or isinstance(other, ImageError):
            return isinstance(one, ImageError) == isinstance(other, ImageError)
        return np.array_equal(one.native, other.native)

    assert listed(bytes(video))[0] == times
    assert all(same(intact[k], whole[k]) for k in [*range(12), *range(24, 40)])
    assert not all(same(intact[k], whole[k]) for k in range(12, 24))
    for first in (5, 13, 18, 25):
        part = frames(bytes(video), times[first::3])
        assert all(same(whole[first + 3 * k], frame) for k, frame in enumerate(part))


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from([*KINDS]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 255)), min_size=1, max_size=12),
    in_head=st.booleans(),
    keep=st.integers(10, 100),
)
def test_flipped_bits_give_a_status(name: str, flips: list[tuple[int, int]], in_head: bool, keep: int) -> None:
    video = bytearray(made(name))
    for place, mask in flips:
        video[place % (2000 if in_head else len(video))] ^= mask
    damaged = bytes(video[: len(video) * keep // 100])
    times, status, message = listed(damaged, VideoParams(fps=2))
    found = frames(damaged, times[:20])

    assert status in BAD | {"ok"}
    assert bool(message) == (status != "ok")
    assert len(found) == len(times[:20])
    assert all(frame.status.value in BAD and str(frame) for frame in found if isinstance(frame, ImageError))
    assert times == sorted(set(times))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    video = bytearray(made("mp4 h264"))
    video[3000:9000] = bytes(6000)
    frames(bytes(video), listed(bytes(video))[0])
    refused(made("avi mjpeg")[:500])

    assert capfd.readouterr() == ("", "")


def test_without_the_decoder_a_video_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    status, message = refused(b"whatever it is")

    assert (status, "pip install 'image-audit[video]'" in message) == ("unsupported", True)


class Failing(io.BytesIO):
    """A store that fails at a place."""

    def __init__(self, data: bytes, after: int) -> None:
        super().__init__(data)
        self.after = after

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > self.after:
            raise StorageUnavailable("v.mp4: 503 after 6 attempts")
        return super().read(size)


@pytest.mark.parametrize("name", ["mp4 h264", "mkv h264", "mpeg mpeg2", "avi mjpeg"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_what_the_store_raises_comes_through(name: str, share: float) -> None:
    """It says nothing of the video: the next attempt may read it."""
    video = made(name)
    times = listed(video)[0]

    with pytest.raises(StorageUnavailable):
        list(frame_times(Failing(video, int(share * len(video))), EVERY))
    with pytest.raises(StorageUnavailable):
        list(decode_frames(Failing(video, int(share * len(video))), times, LIMITS))
