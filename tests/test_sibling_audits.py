"""Frames of one video and boxes of one image in whole audits: they hide no copy, and do not speak for each other."""

from __future__ import annotations

import functools
import io
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from audited import by_uri, rows, run, write_files
from numpy.typing import NDArray
from PIL import Image
from videos_made import KINDS, encoded

from pipeline.audit import Audit
from pipeline.demo import demo_photos
from pipeline.plan import searching

MJPEG = KINDS["avi mjpeg"]
EVERY_FRAME: dict[str, Any] = {"video": {"fps": 10}}
WIDTH, HEIGHT = 192, 144
Pixels = NDArray[np.uint8]


@functools.cache
def photo(number: int, subject: str) -> Pixels:
    """The photo of that number of a subject of the demo, RGB."""
    named = [data for name, data in demo_photos().items() if name.startswith(subject)]
    with Image.open(io.BytesIO(named[number])) as image:
        return np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def jpeg(pixels: Pixels) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def cropped(pixels: Pixels, share: float) -> Pixels:
    """The upper left part of a picture, at its size."""
    part = pixels[: int(HEIGHT * share), : int(WIDTH * share)]
    return np.asarray(cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)


def still(pixels: Pixels, count: int, seed: int = 0) -> bytes:
    """A video of a still camera: one picture and its noise."""
    rng = np.random.default_rng(seed)
    frames = (np.clip(pixels + rng.normal(0, 4.0, pixels.shape), 0, 255).astype(np.uint8) for _ in range(count))
    return encoded(KINDS["avi mjpeg"], frames, rate=10)


def others(count: int, subject: str = "building", folder: str = "train/a") -> dict[str, bytes]:
    return {f"{folder}/{subject}{number:02}.jpg": jpeg(photo(number, subject)) for number in range(count)}


def parent_of(uri: str) -> str:
    return uri.partition("#")[0]


def copies(audit: Audit) -> dict[str, set[str]]:
    """Every image that has near-duplicates -> the parents of these."""
    found: dict[str, set[str]] = {}
    for row in rows(audit, "duplicates"):
        if row["kind"] in ("near_identical", "edited", "same_pixels"):
            found.setdefault(row["uri"], set()).add(parent_of(row["match_uri"]))
            found.setdefault(row["match_uri"], set()).add(parent_of(row["uri"]))
    return found


@pytest.mark.parametrize("index", ["auto", "IVF3"])
def test_a_copy_of_a_still_video_in_the_same_split(tmp_path: Path, index: str) -> None:
    """Each frame has over ten siblings that are nearer than its copy; each copy is found, siblings stay bounded."""
    scene, count = photo(3, "building"), 14
    files = {"train/a/one.avi": still(scene, count), "train/a/other.avi": still(cropped(scene, 0.85), count, 1)}
    folder = write_files(tmp_path / "files", files | others(12, "fish"))
    audit = run(folder, root=tmp_path / "audit", neighbours={"index": index}, **EVERY_FRAME)
    uris = {row["uri"] for row in rows(audit, "images") if "#" in row["uri"]}
    assert len(uris) == 2 * count
    found = copies(audit)
    assert {uri: found.get(uri) for uri in uris} == {
        uri: {"train/a/other.avi" if "one" in uri else "train/a/one.avi"} for uri in uris
    }
    assert {row["uri"] for row in rows(audit, "groups")} == uris
    pairs = [row for row in rows(audit, "duplicates") if parent_of(row["uri"]) == parent_of(row["match_uri"])]
    assert {row["kind"] for row in pairs} == {"same_parent"}
    assert {uri for row in pairs for uri in (row["uri"], row["match_uri"])} == uris
    assert len(pairs) <= 10 * len(uris)
    shared = {row["video"]: row["shared_frames"] for row in rows(audit, "videos")}
    assert shared == {"train/a/one.avi": count, "train/a/other.avi": count}


BOXES = 16


def boxes(name: str) -> list[str]:
    """Boxes of an image that overlap, a pixel beside each other."""
    return [f"{name},train,{8 + at % 4},{10 + at // 4},120,100" for at in range(BOXES)]


def test_a_copy_of_boxes_in_the_same_split(tmp_path: Path) -> None:
    """Overlapping boxes of one image are nearer to each other than to the same boxes of a darker copy of it."""
    scene = photo(5, "building")
    darker = np.clip(cv2.GaussianBlur(scene, (0, 0), 1.2) * 0.7 + 10, 0, 255).astype(np.uint8)
    lines = ["filename,split,col_x,row_y,width,height", *boxes("a.jpg"), *boxes("b.jpg")]
    files = {"a.jpg": jpeg(scene), "b.jpg": jpeg(darker)}
    for number in range(10):
        files[f"f{number}.jpg"] = jpeg(photo(number, "fish"))
        lines.append(f"f{number}.jpg,train,0,0,150,130")
    folder = write_files(tmp_path / "files", files | {"list.csv": "\n".join(lines).encode()})
    audit = run(folder / "list.csv", root=tmp_path / "audit", boxes={"horizontal": 0, "vertical": 0})
    found = copies(audit)
    boxed = {row["uri"] for row in rows(audit, "images") if row["uri"][0] in "ab"}
    assert len(boxed) == 2 * BOXES
    assert {uri for uri in boxed if found.get(uri)} == boxed
    for row in rows(audit, "duplicates"):
        assert (row["kind"] == "same_parent") == (parent_of(row["uri"]) == parent_of(row["match_uri"]))


def test_siblings_take_no_place_of_other_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pairs are limited, those of one video are more similar than any copy, and cost no comparison."""
    monkeypatch.setattr(searching, "LEAST_LIMIT", 1)
    scene, count = photo(3, "building"), 14
    files = {"train/a/one.avi": still(scene, count), "train/b.jpg": jpeg(cropped(scene, 0.85))}
    folder = write_files(tmp_path / "files", files | others(4, "fish"))
    audit = run(folder, root=tmp_path / "audit", neighbours={"pairs_per_image": 0.75}, **EVERY_FRAME)
    kinds = Counter(row["kind"] for row in rows(audit, "duplicates"))
    assert kinds["same_parent"] > 0.75 * (count + 5)
    assert len(copies(audit)) == count + 1


@pytest.fixture(scope="module", params=["Flat", "IVF4"])
def semantic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Buildings and fish, of which a video of a building is labelled fish; and a video of something else."""
    folder = tmp_path_factory.mktemp("semantic")
    files = others(26, "building", "building") | others(26, "fish", "fish")
    files |= {
        "fish/wrong.avi": still(photo(30, "building"), 20),
        "fish/right.avi": still(photo(26, "fish"), 20),
        "building/odd.avi": still(photo(0, "other_baseball"), 20),
    }
    write_files(folder / "files", files)
    index = {"index": request.param, "semantic_probes": 4}
    return run(folder / "files", root=folder / "audit", neighbours=index, **EVERY_FRAME)


def test_an_odd_video_is_an_outlier(semantic: Audit) -> None:
    found = {parent_of(row["uri"]) for row in rows(semantic, "outliers") if row["is_outlier"]}
    odd = [row for row in rows(semantic, "outliers") if row["uri"].startswith("building/odd")]
    assert len(odd) == 20
    assert all(row["is_outlier"] and "odd" not in row["nearest_uri"] for row in odd)
    assert not {"fish/wrong.avi", "fish/right.avi"} & found
    for row in rows(semantic, "outliers"):
        assert row["score"] is not None
        assert parent_of(row["uri"]) != parent_of(row["nearest_uri"])


def test_a_wrong_label_of_a_video_is_found_from_others(semantic: Audit) -> None:
    issues = {row["uri"]: row["suggested_label"] for row in rows(semantic, "labels") if row["is_label_issue"]}
    assert sum(uri.startswith("fish/wrong.avi") for uri in issues) == 20
    assert {label for uri, label in issues.items() if uri.startswith("fish/wrong.avi")} == {"building"}
    assert not any(uri.startswith("fish/right.avi") for uri in issues)


def test_lists_near_a_long_video_hold_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists trained on all frames of a still video would be its own: those near a frame would hold nothing else."""
    for place in ("stages.exact_groups", "layout.siblings"):
        monkeypatch.setattr(f"pipeline.{place}.LARGE_PARENT", 6)
    files = others(40, "building") | {"train/a/long.avi": still(photo(41, "building"), 80)}
    folder = write_files(tmp_path / "files", files)
    index = {"index": "IVF10", "semantic_probes": 3}
    audit = run(folder, root=tmp_path / "audit", neighbours=index, **EVERY_FRAME)
    found = rows(audit, "outliers")
    assert len(found) == 120
    for row in found:
        assert row["score"] is not None
        assert parent_of(row["uri"]) != parent_of(row["nearest_uri"])


def test_frames_of_few_videos_are_compared_with_each_other(tmp_path: Path) -> None:
    """Where there is one video, or a few, its own frames are all that tells which of them is odd."""
    rng = np.random.default_rng(1)
    scene = photo(3, "building")
    frames = [np.clip(scene + rng.normal(0, 4.0, scene.shape), 0, 255).astype(np.uint8) for _ in range(40)]
    frames[17] = photo(0, "other_koala")
    folder = write_files(tmp_path / "files", {"v.avi": encoded(KINDS["avi mjpeg"], frames, rate=10)})
    audit = run(folder, root=tmp_path / "audit", **EVERY_FRAME)
    outliers = by_uri(audit, "outliers")
    assert [uri for uri, row in outliers.items() if row["is_outlier"]] == ["v.avi#t=1.700"]
    assert all(row["score"] is not None for row in outliers.values())


def test_copies_of_one_video_are_one(tmp_path: Path) -> None:
    """Twelve files of it have the scores of two: the frames of no other file could speak for these."""
    video = encoded(MJPEG, [photo(number, "building") for number in range(10)], rate=10)
    scores = []
    for count in (2, 12):
        folder = write_files(tmp_path / str(count), {f"{number:02}.avi": video for number in range(count)})
        outliers = by_uri(run(folder, root=tmp_path / f"audit-{count}", **EVERY_FRAME), "outliers")
        scores.append([row["score"] for uri, row in outliers.items() if uri.startswith("00.avi")])
    assert len(scores[0]) == 10
    assert None not in scores[0]
    assert scores[1] == scores[0]


def test_encodings_of_one_video_are_one(tmp_path: Path) -> None:
    """As exact copies are, once their frames are in groups."""
    rng = np.random.default_rng(0)
    pictures = [photo(number, "building") for number in range(10)]

    def noisy() -> bytes:
        frames = (np.clip(each + rng.normal(0, 1.5, each.shape), 0, 255).astype(np.uint8) for each in pictures)
        return encoded(MJPEG, frames, rate=10)

    folder = write_files(tmp_path / "files", {f"{number:02}.avi": noisy() for number in range(12)})
    outliers = rows(run(folder, root=tmp_path / "audit", **EVERY_FRAME), "outliers")
    assert len(outliers) == 120
    assert None not in [row["score"] for row in outliers]


def test_siblings_are_no_random_pairs(tmp_path: Path) -> None:
    """Frames of one video are similar, which says nothing of how similar two images are by chance: the threshold of
    candidates is that of a set with one frame of each video.
    """
    thresholds = []
    for count in (1, 14):
        files = others(40, "building") | others(20, "fish") | others(10, "tool")
        files |= {f"train/a/{number}.avi": still(photo(number, "windmill"), count) for number in range(12)}
        folder = write_files(tmp_path / f"files{count}", files)
        rule = {"false_per_image": 1e-3, "false_in_all": 0.0}
        config: dict[str, Any] = {"threshold": rule, "verify": {"pixels": False}, **EVERY_FRAME}
        audit = run(folder, root=tmp_path / f"audit{count}", **config)
        thresholds.append(audit.summary()["threshold"]["value"])
    assert 0.4 < thresholds[0] <= thresholds[1] < thresholds[0] + 0.25
