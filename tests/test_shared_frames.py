"""Videos that share frames: against counting every pair, on small sets and where a group spans thousands of videos."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.shared_frames import GroupedFrames, SharedParams, shared_frames

Frame = tuple[int, int, int]
Row = tuple[int, int, int, float, int, float, int]


def grouped(frames: list[Frame], counts: dict[int, int]) -> GroupedFrames:
    """(group, video, time) of frames, and the number of frames of every video."""
    columns = np.array(frames, np.int64).reshape(-1, 3).T
    return GroupedFrames(*columns, np.array(sorted(counts)), np.array([counts[video] for video in sorted(counts)]))


def rows_of(frames: GroupedFrames, params: SharedParams) -> list[Row]:
    found = shared_frames(frames, params)
    return list(
        zip(
            *(
                getattr(found, name).tolist()
                for name in (
                    "video_id", "match_id", "shared_frames", "share", "match_shared_frames", "match_share", "offset",
                )
            ),
            strict=True,
        )
    )  # fmt: skip


def brute(frames: list[Frame], counts: dict[int, int], params: SharedParams) -> list[Row]:
    rows: list[Row] = []
    for video in sorted(counts):
        own = [(group, time) for group, of, time in frames if of == video]
        matches = []
        for match, all_theirs in counts.items():
            theirs = [(group, time) for group, of, time in frames if of == match]
            both = {group for group, _ in own} & {group for group, _ in theirs}
            shared, back = (sum(group in both for group, _ in side) for side in (own, theirs))
            pictures = len({group for group, _ in own}) + counts[video] - len(own)
            if match == video or not both or min(shared / counts[video], len(both) / pictures) < params.min_share:
                continue
            offsets = sorted(
                min(time for group, time in theirs if group == g) - min(time for group, time in own if group == g)
                for g in both
            )
            offset = offsets[(len(offsets) - 1) // 2]
            share, match_share = shared / counts[video], back / all_theirs
            matches.append((video, match, shared, share, back, match_share, offset))
        rows += sorted(matches, key=lambda row: (-row[3], row[1]))[: params.most]
    return rows


@settings(max_examples=200, deadline=None)
@given(
    frames=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(0, 50)), max_size=60),
    extra=st.lists(st.integers(0, 5), min_size=7, max_size=7),
    min_share=st.sampled_from([0.01, 0.2, 1 / 3, 0.5, 0.7, 1.0]),
    most=st.sampled_from([1, 2, 100]),
)
def test_matches_are_those_of_counting_every_pair(
    frames: list[Frame], extra: list[int], min_share: float, most: int
) -> None:
    counts = {video: sum(of == video for _, of, _ in frames) + extra[video] for video in range(7)}
    counts = {video * 10: count for video, count in counts.items() if count}
    frames = [(group * 1000 - 3, video * 10, time) for group, video, time in frames]
    params = SharedParams(min_share, most)

    assert rows_of(grouped(frames, counts), params) == brute(frames, counts, params)


def test_a_cut_copy_is_found_with_its_offset() -> None:
    """Video 2 is seconds 30 to 50 of video 1."""
    whole = [(second, 1, second * 1_000_000) for second in range(100)]
    part = [(second, 2, (second - 30) * 1_000_000) for second in range(30, 50)]

    found = rows_of(grouped(whole + part, {1: 100, 2: 20, 3: 7}), SharedParams())

    assert found == [(2, 1, 20, 1.0, 20, 0.2, 30_000_000)]


def test_one_picture_that_lasts_is_no_copy() -> None:
    """A black intro of 60 frames before 40 of their own; a lecture of five slides, one of them between two, is one."""
    intro = [(0, video, at) for video in (1, 2) for at in range(60)]
    assert rows_of(grouped(intro, {1: 100, 2: 100}), SharedParams()) == []
    slides = [(10 + slide, video, 20 * slide + at) for video in (3, 4) for slide in range(5) for at in range(19)]
    found = rows_of(grouped(intro + slides, {1: 100, 2: 100, 3: 100, 4: 96}), SharedParams())
    assert [row[:4] for row in found] == [(3, 4, 95, 0.95), (4, 3, 95, 95 / 96)]
    still = [(7, video, at) for video in (5, 6) for at in range(30)]  # nothing else is in either
    assert [row[:4] for row in rows_of(grouped(still, {5: 30, 6: 31}), SharedParams())] == [
        (5, 6, 30, 1.0), (6, 5, 30, 30 / 31),
    ]  # fmt: skip


def test_a_frame_that_all_videos_have_costs_nothing() -> None:
    """20,000 videos begin with black: 200 million pairs, of which 10 share anything else."""
    videos = np.arange(20_000)
    own = 1 + videos * 10
    own[10:20] = own[:10]
    group = np.concatenate([np.zeros(20_000, np.int64), *(own + k for k in range(9))])
    video = np.tile(videos, 10)
    frames = GroupedFrames(group, video, np.zeros_like(group), videos, np.full(20_000, 10))
    tracemalloc.start()
    found = shared_frames(frames, SharedParams())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert list(zip(found.video_id.tolist(), found.match_id.tolist(), strict=True)) == [
        *((k, k + 10) for k in range(10)), *((k + 10, k) for k in range(10)),
    ]  # fmt: skip
    assert found.shared_frames.tolist() == [10] * 20
    assert peak < 60_000_000


def test_copies_of_one_video_keep_the_best_matches_in_little_memory() -> None:
    """400 copies of 20 frames: 159,600 matches, of which 5 each are kept."""
    video = np.repeat(np.arange(400), 20)
    group = np.tile(np.arange(20), 400)
    frames = GroupedFrames(group, video, group * 1000, np.arange(400), np.full(400, 20))
    tracemalloc.start()
    found = shared_frames(frames, SharedParams(most=5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert found.match_id.reshape(400, 5)[0].tolist() == [1, 2, 3, 4, 5]
    assert (found.share == 1).all()
    assert peak < 250_000_000


def test_nothing_is_shared_by_nothing() -> None:
    assert rows_of(grouped([], {}), SharedParams()) == []
    assert rows_of(grouped([], {4: 9}), SharedParams()) == []
    assert rows_of(grouped([(1, 4, 0), (1, 4, 5)], {4: 2, 5: 1}), SharedParams()) == []


def test_wrong_input_is_told() -> None:
    with pytest.raises(UsageError, match=r"min_share.*most"):
        SharedParams(0, 0)
    with pytest.raises(UsageError, match="not among the videos"):
        grouped([(1, 5, 0)], {4: 2})
    with pytest.raises(UsageError, match="more grouped frames"):
        grouped([(1, 4, 0), (2, 4, 1)], {4: 1})
    with pytest.raises(UsageError, match="equal lengths"):
        GroupedFrames(np.zeros(2, int), np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), np.ones(1, int))
