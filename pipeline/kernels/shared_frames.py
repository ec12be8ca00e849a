"""Which videos share frames: how many frames of one are in a group with a frame of the other, and at what offset.

Pairs come from the rare frames: for `min_share` of a video's frames to be in another, one of its rarest ones must be
(all but min_share of them, and one more). So a black frame or a title that thousands of videos have makes no pairs,
unless a video holds little else; and what is found is the same as by counting every pair. This is the prefix filter of
set similarity joins: Chaudhuri, Ganti, Kaushik, "A primitive operator for similarity joins", ICDE 2006.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Array = NDArray[Any]

_PER_MATCH = 16
"""Candidates of a video that are counted for each match that is kept: those that have the most of its rare frames."""

_BLOCK = 1 << 20
"""Candidates, and frames of candidates, that are held at a time: under 150 MB beside the input."""


@dataclass(frozen=True)
class SharedParams:
    """min_share: of a video's frames, and of its pictures, that are in another one, from which on it is a match. All
    its frames in one group are one picture, so that a slide or a black intro that lasts is no copy by itself.
    most: matches of a video that are kept, those of the largest share. Raises UsageError listing every wrong value.
    """

    min_share: float = 0.5
    most: int = 100

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.min_share <= 1:
            problems.append(f"min_share must be over 0 and at most 1, not {self.min_share}")
        if self.most < 1:
            problems.append(f"most must be at least 1, not {self.most}")
        if problems:
            raise UsageError("shared frames: " + "; ".join(problems))


@dataclass(frozen=True)
class GroupedFrames:
    """Frames that are in a group, in any order: group and video int64, time int64 in microseconds, (n,) each; and all
    videos, ascending int64, with their number of frames, grouped or not, int64, (v,) each.

    Raises UsageError for unequal lengths, an unknown video, or more grouped frames of a video than it has.
    """

    group: Array
    video: Array
    time: Array
    videos: Array
    frames: Array

    def __post_init__(self) -> None:
        lengths = {len(self.group), len(self.video), len(self.time)}
        if len(lengths) > 1 or len(self.videos) != len(self.frames):
            raise UsageError(f"shared frames: columns of {sorted(lengths)} frames, want equal lengths")
        place = np.searchsorted(self.videos, self.video)
        if len(place) and (place.max() == len(self.videos) or (self.videos[place] != self.video).any()):
            raise UsageError("shared frames: a frame is of a video that is not among the videos")
        if (np.bincount(place, minlength=len(self.videos)) > self.frames).any():
            raise UsageError("shared frames: a video has more grouped frames than frames")


@dataclass(frozen=True)
class SharedFrames:
    """One row per video and match, sorted by video_id, then by share (largest first), then by match_id; (m,) each.

    shared_frames int64: frames of the video whose group has a frame of the match; share float64: of all its frames.
    match_shared_frames, match_share: the same the other way round. offset int64: median over the shared groups of the
    first frame's time in the match less that in the video, microseconds; of an even number the lower one.
    """

    video_id: Array
    match_id: Array
    shared_frames: Array
    share: Array
    match_shared_frames: Array
    match_share: Array
    offset: Array


@dataclass(frozen=True)
class _Held:
    """Distinct (video, group) as places and codes, sorted by video, then by group; frames and first time of each.

    start: of each video, (v + 1,). members: the entries sorted by group, `first` of each group, (g + 1,).
    """

    video: Array
    group: Array
    count: Array
    time: Array
    start: Array
    members: Array
    first: Array
    key: Array

    @property
    def groups(self) -> int:
        """Distinct groups."""
        return len(self.first) - 1


def shared_frames(given: GroupedFrames, params: SharedParams) -> SharedFrames:
    """The matches of every video: those that at least `min_share` of its frames are in, and of its pictures.

    Of a video with over 16 times `most` candidates those with the most of its rare frames are counted; else all are.
    Memory: the input four times, the matches, and blocks of 2^20 candidates (one video at least is a block: 50 bytes
    for every frame of its rare groups in others). Raises UsageError as its arguments do.
    """
    held = _held(given)
    parts = [_counted(held, given, params, left, right) for left, right in _candidates(held, given, params)]
    columns = zip(*parts, strict=True) if parts else [[np.empty(0, np.int64)]] * 5
    left, right, shared, back, offset = (np.concatenate(list(column)) for column in columns)
    frames = given.frames.astype(np.float64)
    return SharedFrames(
        given.videos[left], given.videos[right], shared, shared / frames[left], back, back / frames[right], offset
    )


def _held(given: GroupedFrames) -> _Held:
    place = np.searchsorted(given.videos, given.video)
    names, code = np.unique(given.group, return_inverse=True)
    order = np.lexsort((given.time, code, place))
    place, code, time = place[order], code[order], given.time[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (place[1:] != place[:-1]) | (code[1:] != code[:-1])
    at = np.flatnonzero(is_first)
    video, group = place[at], code[at]
    return _Held(
        video,
        group,
        np.diff(np.append(at, len(order))),
        time[at],
        np.searchsorted(video, np.arange(len(given.videos) + 1)),
        np.argsort(group, kind="stable"),
        np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(names)))]),
        video * max(1, len(names)) + group,
    )


def _candidates(held: _Held, given: GroupedFrames, params: SharedParams) -> Iterator[tuple[Array, Array]]:
    """Pairs of video places, distinct, sorted, that can be matches; all of one left video in one block."""
    span = np.diff(held.first)[held.group]
    order = np.lexsort((held.group, span, held.video))
    # frames before an entry in its video, rarest first: those that are in no group come before all others
    ungrouped = _ungrouped(held, given)
    total = np.cumsum(held.count[order]) - held.count[order]
    starts = total[np.minimum(held.start[:-1], max(0, len(total) - 1))] if len(total) else np.zeros(0, np.int64)
    before = total - starts[held.video[order]] + ungrouped[held.video[order]]
    least = np.ceil(given.frames * params.min_share * (1 - 1e-12)).astype(np.int64)
    is_rare = before <= (given.frames - least)[held.video[order]]
    rare = order[is_rare & (span[order] > 1)]
    rare = rare[np.argsort(held.video[rare], kind="stable")]
    for part in _blocks(held.video[rare], span[rare]):
        left, right = _expanded(held, rare[part])
        pairs, hits = np.unique((left * len(given.videos) + right)[left != right], return_counts=True)
        if len(pairs):
            left, right = pairs // len(given.videos), pairs % len(given.videos)
            kept = _best(left, -hits, right, _PER_MATCH * params.most)
            yield left[kept], right[kept]


def _ungrouped(held: _Held, given: GroupedFrames) -> Array:
    """Frames of each video that are in no group."""
    ungrouped: Array = given.frames - np.bincount(held.video, held.count, len(given.frames)).astype(np.int64)
    return ungrouped


def _blocks(video: Array, size: Array) -> Iterator[slice]:
    """Slices of entries sorted by video, of whole videos, with sizes of about _BLOCK together."""
    ends = np.flatnonzero(np.diff(video, append=-1)) + 1
    total = np.cumsum(size)
    start = place = 0
    while start < len(video):
        limit = (total[start - 1] if start else 0) + _BLOCK
        place = max(place + 1, int(np.searchsorted(total[ends - 1], limit, "right")))
        end = int(ends[place - 1])
        yield slice(start, end)
        start = end


def _expanded(held: _Held, entries: Array) -> tuple[Array, Array]:
    """For every entry its video, once for each video that has its group, and that video."""
    first = held.first[held.group[entries]]
    size = held.first[held.group[entries] + 1] - first
    return np.repeat(held.video[entries], size), held.video[held.members[_ranges(first, size)]]


def _ranges(first: Array, size: Array) -> Array:
    """first[0], first[0] + 1, ... of `size[0]` numbers, and so on."""
    ranges: Array = np.arange(size.sum()) + np.repeat(first - (np.cumsum(size) - size), size)
    return ranges


def _counted(
    held: _Held, given: GroupedFrames, params: SharedParams, left: Array, right: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Matches among candidates: left, right, shared frames of either, offset; the best `most` of each left one."""
    size = np.diff(held.start)[left]
    pictures = np.diff(held.start) + _ungrouped(held, given)
    parts = []
    for part in _blocks(np.arange(len(left)), size):
        number = np.repeat(np.arange(part.stop - part.start), size[part])
        entry = _ranges(held.start[left[part]], size[part])
        key = right[part][number] * max(1, held.groups) + held.group[entry]
        other = np.minimum(np.searchsorted(held.key, key), len(held.key) - 1)
        is_in = held.key[other] == key
        number, entry, other = number[is_in], entry[is_in], other[is_in]
        count = part.stop - part.start
        shared, back = (np.bincount(number, held.count[side], count).astype(np.int64) for side in (entry, other))
        same = np.bincount(number, minlength=count)
        parts.append((shared, back, same, _medians(number, held.time[other] - held.time[entry], count)))
    shared, back, same, offset = (np.concatenate(column) for column in zip(*parts, strict=True))
    share = shared / given.frames[left]
    kept = np.flatnonzero(np.minimum(share, same / pictures[left]) >= params.min_share)
    order = kept[_best(left[kept], -share[kept], right[kept], params.most)]
    return left[order], right[order], shared[order], back[order], offset[order]


def _best(left: Array, cost: Array, right: Array, most: int) -> Array:
    """Rows of the least cost, at most `most` of each left one, by left, then cost, then right."""
    order = np.lexsort((right, cost, left))
    rank = np.arange(len(order)) - np.searchsorted(left[order], left[order])
    best: Array = order[rank < most]
    return best


def _medians(number: Array, value: Array, count: int) -> Array:
    """The lower median of the values of each number below `count`; 0 where it has none."""
    order = np.lexsort((value, number))
    start, end = (np.searchsorted(number[order], np.arange(count), side) for side in ("left", "right"))
    has = end > start
    medians = np.zeros(count, np.int64)
    medians[has] = value[order][(start + (end - start - 1) // 2)[has]]
    return medians
