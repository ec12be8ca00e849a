"""Frames of one video are no random pairs and no variance of the set: what is beside them is found all the same."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from audited import rows, run, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from videos_made import KINDS, encoded

from pipeline.audit import Audit
from pipeline.demo import demo_photos
from pipeline.kernels.sampling import one_of_each, stable_sample_limit
from pipeline.layout import siblings
from pipeline.layout.served import read_recipe
from pipeline.layout.spaces import SpaceRecord, list_spaces
from pipeline.stages.train import head_ids, unrelated_sample
from pipeline.storage import open_store

EVERY_FRAME: dict[str, Any] = {"video": {"fps": 10}}
MJPEG = KINDS["avi mjpeg"]
WIDTH, HEIGHT = 128, 96
Int64 = NDArray[np.int64]
Pixels = NDArray[np.uint8]


@functools.cache
def photos() -> list[Pixels]:
    """The photographs of the demo, RGB, twice as wide and high as the images of the tests."""
    found = []
    for data in demo_photos().values():
        with Image.open(io.BytesIO(data)) as image:
            found.append(np.asarray(image.convert("RGB").resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS)))
    return found


def resized(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def edited(pixels: Pixels) -> Pixels:
    """A copy cut at two sides and brighter."""
    return np.asarray(np.clip(resized(pixels[12:, 16:]) * 1.1 + 8, 0, 255), np.uint8)


def jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def pan(photo: Pixels, count: int, step: float) -> Iterator[Pixels]:
    """Frames of a camera that moves slowly over a photo."""
    for number in range(count):
        shift = np.array([[1, 0, -step * number], [0, 1, -step * number / 2]])
        yield np.asarray(cv2.warpAffine(photo, shift, (WIDTH, HEIGHT)), np.uint8)


def re_encoded(video: bytes) -> bytes:
    """The frames of a video, cut at two sides, by another codec."""
    with av.open(io.BytesIO(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return encoded(KINDS["mov mpeg4"], (resized(frame[3:, 4:]) for frame in frames), rate=10)


def parent_of(uri: str) -> str:
    return uri.partition("#")[0]


def leaks(audit: Audit) -> set[tuple[str, str]]:
    """Pairs of files, train first, of which one is a copy of the other, or a frame of a frame of it."""
    pairs = [row for row in rows(audit, "leaks") if row["kind"] in ("same_pixels", "near_identical", "edited")]
    names = [sorted((parent_of(row["uri"]), parent_of(row["match_uri"]))) for row in pairs]
    return {(one, other) for one, other in names}


def threshold(audit: Audit) -> float:
    return float(audit.summary()["threshold"]["value"])


def spaces(root: Path) -> list[SpaceRecord]:
    return sorted(list_spaces(open_store(root)), key=lambda record: record.snapshot)


@st.composite
def owned(draw: st.DrawFn) -> tuple[Int64, Int64]:
    ids = draw(st.lists(st.integers(0, 2**40), unique=True, max_size=60))
    owners = draw(st.lists(st.integers(-1, 6), min_size=len(ids), max_size=len(ids)))
    return np.array(ids, np.int64), np.array(owners, np.int64)


@settings(max_examples=50, deadline=None)
@given(owned(), st.randoms(use_true_random=False))
def test_one_of_each_owner_whatever_the_shards(given: tuple[Int64, Int64], random: Any) -> None:
    ids, owners = given
    kept = one_of_each(ids, owners)
    assert kept[owners < 0].all()
    assert sorted(owners[kept & (owners >= 0)].tolist()) == sorted({*owners[owners >= 0].tolist()})
    order = np.array(random.sample(range(len(ids)), len(ids)), np.int64)
    shards = (order[::3], order[1::3], order[2::3])
    at = np.concatenate([shard[one_of_each(ids[shard], owners[shard])] for shard in shards])
    assert {*ids[at][one_of_each(ids[at], owners[at])].tolist()} == {*ids[kept].tolist()}


def test_an_owner_of_many_is_drawn_no_more_often() -> None:
    """Half of the owners have one id and half a hundred."""
    owners = np.concatenate([np.arange(2000), np.repeat(np.arange(2000, 4000), 100)])
    ids = np.arange(len(owners))
    kept = one_of_each(ids, owners)
    for salt in (0, 2):  # of the moments and of the null
        drawn = owners[kept][stable_sample_limit(ids[kept], 1000, salt)]
        assert abs((drawn >= 2000).mean() - 0.5) < 0.06  # four standard deviations


LEAKING = 20


@functools.cache
def planted() -> dict[str, bytes]:
    """Photos, of which some have an edited copy in the other split."""
    files = {f"train/{number:02}.jpg": jpeg(resized(photo)) for number, photo in enumerate(photos())}
    copies = {f"val/{number:02}.jpg": jpeg(edited(photo), 70) for number, photo in enumerate(photos()[:LEAKING])}
    return files | copies


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("plain")
    return run(write_files(folder / "files", planted()), root=folder / "audit", **EVERY_FRAME)


@pytest.fixture(scope="module")
def with_video(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """The photos, and beside them a video with more frames than there are photos."""
    folder = tmp_path_factory.mktemp("video")
    video = encoded(MJPEG, pan(photos()[40][::-1], 180, 0.05), rate=10)
    write_files(folder / "files", planted() | {"train/pan.avi": video})
    return run(folder / "files", root=folder / "audit", **EVERY_FRAME)


def test_a_video_beside_photos_hides_no_leak_of_theirs(plain: Audit, with_video: Audit) -> None:
    assert len(leaks(plain)) >= LEAKING - 1
    assert leaks(with_video) == leaks(plain)
    assert threshold(with_video) == threshold(plain) == 0.35


def test_the_sample_of_a_set_with_videos(plain: Audit, with_video: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files, and of the frames one; the same however the ids are cut."""
    inputs = read_recipe(with_video.root, with_video.audit_id).inputs
    every = head_ids(inputs, None)
    parents = inputs.parents(0, len(every))[every]
    ids, count = unrelated_sample(inputs, 10**6, 0)
    assert len(ids) == count == (parents < 0).sum() + 1
    assert {*every[parents < 0].tolist()} < {*ids.tolist()}
    half, _ = unrelated_sample(inputs, 50, 0)
    assert {*half.tolist()} < {*ids.tolist()}
    monkeypatch.setattr(siblings, "READ_BLOCK", 7)
    assert unrelated_sample(inputs, 10**6, 0)[0].tolist() == ids.tolist()
    assert unrelated_sample(inputs, 50, 0)[0].tolist() == half.tolist()
    inputs = read_recipe(plain.root, plain.audit_id).inputs
    assert unrelated_sample(inputs, 10**6, 0)[0].tolist() == head_ids(inputs, None).tolist()


CLIPS, COPIED = 30, 6


def test_copies_of_short_clips_are_found_at_a_high_rate(tmp_path: Path) -> None:
    clips = [encoded(MJPEG, pan(photo, 9, 0.5), rate=10) for photo in photos()[:CLIPS]]
    files = {f"train/{number:02}.avi": clip for number, clip in enumerate(clips)}
    wanted = {(f"train/{number:02}.avi", f"val/{number:02}.mov") for number in range(0, 4 * COPIED, 4)}
    files |= {copy: re_encoded(files[video]) for video, copy in wanted}
    audit = run(write_files(tmp_path / "files", files), root=tmp_path / "audit", **EVERY_FRAME)
    assert leaks(audit) == wanted
    assert {tuple(sorted((row["video"], row["match_video"]))) for row in rows(audit, "videos")} == wanted


def test_a_video_alone_is_searched_as_a_small_folder_is(tmp_path: Path) -> None:
    """Its null and its moments are those that ship. A second one is no reason for another space; as many photos, of
    which there are fewer than frames, are.
    """
    files = {"train/pan.avi": encoded(MJPEG, pan(photos()[40][::-1], 40, 1.2), rate=10)}
    folder = write_files(tmp_path / "files", files)
    audit = run(folder, root=tmp_path / "audit", **EVERY_FRAME)
    (alone,) = spaces(tmp_path / "audit")
    assert alone.tail is not None
    assert (alone.tail.source, alone.unrelated, alone.representatives) == ("shipped", 1, 40)
    assert threshold(audit) == 0.35
    write_files(folder, {"train/other.avi": encoded(MJPEG, pan(photos()[30], 4, 1.0), rate=10)})
    run(folder, root=tmp_path / "audit", **EVERY_FRAME)
    assert spaces(tmp_path / "audit") == [alone]
    files = {f"train/{number}.jpg": jpeg(resized(photo)) for number, photo in enumerate(photos()[:12])}
    run(write_files(folder, files), root=tmp_path / "audit", **EVERY_FRAME)
    assert [record.unrelated for record in spaces(tmp_path / "audit")] == [1, 14]


def test_a_space_of_which_it_is_not_known_is_not_kept_for_videos(tmp_path: Path) -> None:
    files = {f"train/{number}.jpg": jpeg(resized(photo)) for number, photo in enumerate(photos()[:12])}
    folder = write_files(tmp_path / "files", files)
    run(folder, root=tmp_path / "audit")
    (first,) = spaces(tmp_path / "audit")
    assert first.unrelated == first.representatives == 12
    write_files(folder, {"train/one.avi": encoded(MJPEG, pan(photos()[30], 4, 1.0), rate=10)})
    run(folder, root=tmp_path / "audit", **EVERY_FRAME)
    assert spaces(tmp_path / "audit") == [first]
    key = tmp_path / "audit" / first.folder / "space.json"
    record = json.loads(key.read_text())
    del record["unrelated"]
    key.write_text(json.dumps(record))
    run(folder, root=tmp_path / "audit", **EVERY_FRAME)
    assert [record.unrelated for record in spaces(tmp_path / "audit")] == [0, 13]
