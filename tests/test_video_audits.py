"""Videos end to end: which frames are rows, what is found across videos, and what is wrong with some."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import crashing
import cv2
import numpy as np
import pytest
from audited import assert_equal_tables, by_uri, noise_jpeg, rows, run, write_files
from fault_proxy import FaultProxy, Rule
from held import environment
from numpy.typing import NDArray
from s3_servers import moto_port, new_store, use_credentials
from videos_made import BITS, KINDS, encoded, number_of, picture, read_by_opencv

import pipeline
import pipeline.cli
from pipeline.audit import Audit, summary_lines
from pipeline.errors import ObjectChanged
from pipeline.kernels.crop import BoxParams
from pipeline.kernels.hashing import pixel_hash
from pipeline.kernels.measure import MeasureParams
from pipeline.kernels.pillow_decode import Decoded
from pipeline.layout.features import list_features, read_feature_rows
from pipeline.layout.images import ImageObject, image_object, image_objects_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.pixels import Cutting, frames_as_extracted
from pipeline.layout.served import read_recipe
from pipeline.layout.snapshots import catalog_rows, latest_snapshot
from pipeline.plan import preparing
from pipeline.sources.fragments import parent_kind
from pipeline.stages import extract
from pipeline.stages.reads import read_images
from pipeline.storage import Store

RATE, FRAMES, TRIM = 10, 48, 20
STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}
FIVE: dict[str, Any] = {"video": {"fps": 5}, "verify": {"skip_similarity": 1.0}}
CUTTING, MAX_BYTES = Cutting(MeasureParams(), BoxParams()), MeasureParams().max_bytes


def scene(number: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture that no other number has, which carries it."""
    noise = np.random.default_rng((seed, number)).integers(0, 256, (12, 24, 3), np.uint8)
    pixels = cv2.resize(noise, (192, 96), interpolation=cv2.INTER_CUBIC)
    marked = picture(number)
    block = 192 // BITS
    for bit in range(BITS):
        pixels[24:48, bit * block + 4 : (bit + 1) * block - 4] = marked[24:48, bit * block + 4 : (bit + 1) * block - 4]
    return pixels


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A video, a copy of its frames from 20 on in another codec and container, another video, and a photograph."""
    path = tmp_path_factory.mktemp("made") / "whole.mp4"
    whole = encoded(KINDS["mp4 h264"], map(scene, range(FRAMES)), rate=RATE, gop=12, path=path)
    copy = encoded(KINDS["mkv mpeg2"], read_by_opencv(path)[TRIM:44], rate=RATE, gop=8)
    other = encoded(KINDS["avi mjpeg"], (scene(number, 1) for number in range(12)), rate=RATE)
    return {
        "train/a/whole.mp4": whole,
        "test/b/copy.MKV": copy,
        "train/a/other.avi": other,
        "test/b/x.jpg": noise_jpeg(5),
    }


@pytest.fixture(scope="module")
def audited(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("videos")
    return run(write_files(folder / "files", files), root=folder / "audit", shard_size=7, **FIVE)


def frames(name: str, numbers: range) -> dict[str, int]:
    """The uri of frames of a video -> their number."""
    return {f"{name}#t={number / RATE:.3f}": number for number in numbers}


def loaded(audit: Audit) -> Iterator[tuple[str, Decoded, bytes]]:
    """Name, pixels and extracted pixel hash of every frame."""
    store = audit.root.open()
    snapshot = latest_snapshot(store)
    (folder,) = {info.key.rpartition("/")[0] for info in store.list("features/")}
    hashes = read_feature_rows(store, list_features(store, folder), 0, snapshot.total, ["content_hash", "pixel_hash"])
    for row, hashed in zip(
        catalog_rows(store, snapshot, 0, snapshot.total).to_pylist(), hashes.to_pylist(), strict=True
    ):
        if row["parent_kind"] == "video":
            (pixels,) = read_images(audit.root, [image_object(row, snapshot)], MAX_BYTES, CUTTING)
            assert isinstance(pixels, Decoded)
            assert hashed["content_hash"] is None
            yield row["uri"], pixels, hashed["pixel_hash"]


def test_frames_are_rows(audited: Audit) -> None:
    """Every second frame of each video, whatever shards cut it into; each is the frame that its name says."""
    wanted = frames("train/a/whole.mp4", range(0, FRAMES, 2)) | frames("test/b/copy.MKV", range(0, 24, 2))
    wanted |= frames("train/a/other.avi", range(0, 12, 2))
    images = by_uri(audited, "images")
    assert set(images) == {*wanted, "test/b/x.jpg"}
    assert {row["status"] for row in images.values()} == {"ok"}
    place = audited.root.uri.removesuffix("audit") + "files"
    for uri in wanted:
        split, label, _ = uri.split("/")
        assert (images[uri]["split"], images[uri]["label"]) == (split, label)
        assert images[uri]["path"] == f"{place}/{uri}"
    assert {row["uri"] for row in rows(audited, "quality") if row["size_bytes"] is not None} == {"test/b/x.jpg"}
    found = [*loaded(audited)]
    assert {uri for uri, _, _ in found} == set(wanted)
    for uri, pixels, hashed in found:
        assert number_of(pixels.native) == wanted[uri] + TRIM * ("copy" in uri)
        assert pixel_hash(pixels.native, pixels.space) == hashed


def test_pairs_are_across_videos(audited: Audit) -> None:
    """Every frame of the copy is verified against its frame; two of one video are same_parent and join no group."""
    video_of = {row["image_id"]: row["uri"].partition("#")[0] for row in rows(audited, "images")}
    pairs = rows(audited, "duplicates")
    for row in pairs:
        same = video_of[row["image_id"]] == video_of[row["match_id"]]
        assert same == (row["kind"] == "same_parent")
        assert row["is_verified"]
    copies = {row["uri"]: row["match_uri"] for row in pairs if row["kind"] in ("near_identical", "edited")}
    numbers = range(0, 24, 2)
    shifted = frames("train/a/whole.mp4", range(TRIM, 44, 2))
    assert copies == dict(zip(frames("test/b/copy.MKV", numbers), shifted, strict=True))
    groups: dict[int, set[str]] = {}
    for row in rows(audited, "groups"):
        groups.setdefault(row["group_id"], set()).add(video_of[row["image_id"]])
    assert [*groups.values()] == [{"test/b/copy.MKV", "train/a/whole.mp4"}] * 12


def test_videos_that_share_frames(audited: Audit, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(audited, "videos")
    ids = {row["uri"]: row["image_id"] for row in rows(audited, "images")}
    whole = {"video": "train/a/whole.mp4", "split": "train", "label": "a"}
    copy = {"video": "test/b/copy.MKV", "split": "test", "label": "b"}
    one = {"frame_count": 24, "shared_frames": 12, "share": 0.5, "video_id": ids["train/a/whole.mp4#t=0.000"]} | whole
    other = {"frame_count": 12, "shared_frames": 12, "share": 1.0, "video_id": ids["test/b/copy.MKV#t=0.000"]} | copy

    def row(subject: dict[str, Any], match: dict[str, Any], offset: float) -> dict[str, Any]:
        return {**subject, **{f"match_{name}": value for name, value in match.items()}, "offset": offset}

    assert found == [row(other, one, TRIM / RATE), row(one, other, -TRIM / RATE)]
    (line,) = [line for line in summary_lines(audited.summary()) if line.startswith("videos")]
    assert line.split(maxsplit=1)[1].startswith("3 (42 frames), 2 of which")
    assert pipeline.cli.main(["show", "videos", "--root", audited.root.uri]) == 0
    assert "test/b/copy.MKV" in capsys.readouterr().out


def test_videos_on_an_object_store(
    audited: Audit, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same tables, through faults; a video on its own is a source as well."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "videos")
    for name, data in files.items():
        store.put(name, data)
    with FaultProxy(moto_port()) as proxy:
        proxy.inject(
            Rule("status:503:SlowDown", "GET", r"/whole", count=3),
            Rule("truncate:700", "GET", r"/copy", count=3),
            Rule("reset", "GET", r"/other", count=2),
        )
        uri = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}"
        audit = run(uri, root=tmp_path / "one", storage=STORAGE, shard_size=5, **FIVE)
        assert sum(bool(fault) for _, _, fault in proxy.log) == 8
        assert len(proxy.log) < 60  # 477 where each seek of the decoder dropped what was read
    assert_equal_tables(audit, audited)
    alone = run(f"{store.uri}/train/a/whole.mp4", root=tmp_path / "other", storage=STORAGE)
    assert set(by_uri(alone, "images")) == set(frames("whole.mp4", range(0, FRAMES, 12)))


def test_keyframes_and_rates(files: dict[str, bytes], tmp_path: Path) -> None:
    """Keyframes unless told otherwise; another sampling is another list, of which what both have keeps its id."""
    folder = write_files(tmp_path / "files", {"whole.mp4": files["train/a/whole.mp4"]})
    first = run(folder, root=tmp_path / "audit")
    keys = {row["uri"]: row["image_id"] for row in rows(first, "images")}
    assert set(keys) == set(frames("whole.mp4", range(0, FRAMES, 12)))
    assert [number_of(pixels.native) for _, pixels, _ in loaded(first)] == [*range(0, FRAMES, 12)]
    second = run(folder, root=tmp_path / "audit", video={"fps": 2.5, "max_frames": 5})
    sampled = {row["uri"]: row["image_id"] for row in rows(second, "images")}
    assert set(sampled) == set(frames("whole.mp4", range(0, 20, 4)))
    assert {uri: sampled[uri] for uri in keys if uri in sampled} == {
        f"whole.mp4#t={time}": keys[f"whole.mp4#t={time}"] for time in ("0.000", "1.200")
    }
    assert run(folder, root=tmp_path / "audit", video={"fps": 2.5, "max_frames": 5}).audit_id == second.audit_id


def test_flags_name_the_frames(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = write_files(tmp_path / "files", {"other.avi": files["train/a/other.avi"]})
    words = [
        "run",
        str(folder),
        "--root",
        str(tmp_path / "audit"),
        "--runner",
        "local",
        "--quiet",
        "--until",
        "features",
    ]
    assert pipeline.cli.main([*words, "--fps", "5", "--max-frames", "3"]) == 0
    store = pipeline.layout.root.Root(str(tmp_path / "audit"), pipeline.storage.StorageConfig()).open()
    listed = catalog_rows(store, latest_snapshot(store), 0, 3)
    assert set(listed["uri"].to_pylist()) == set(frames("other.avi", range(0, 6, 2)))
    assert pipeline.cli.main([*words, "--fps", "0"]) == 2


def test_broken_videos_beside_good_ones(files: dict[str, bytes], tmp_path: Path) -> None:
    """Each has a row that says so, before the frames that it gives; nothing changes for the runs after it."""
    whole, copy = files["train/a/whole.mp4"], files["test/b/copy.MKV"]
    broken = {
        "cut.mp4": whole[: len(whole) // 2],
        "cut.mkv": copy[: len(copy) // 2],
        "none.avi": b"",
        "text.mpg": b"text" * 99,
    }
    folder = write_files(
        tmp_path / "files", {**broken, "good.avi": files["train/a/other.avi"], ".v.mp4": b"", "mp4": b""}
    )
    audit = run(folder, root=tmp_path / "audit", **FIVE)
    invalid = {uri: row["status"] for uri, row in by_uri(audit, "invalid").items() if "#" not in uri}
    assert invalid == {"cut.mp4": "truncated", "cut.mkv": "truncated", "none.avi": "empty", "text.mpg": "unsupported"}
    images = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert {uri for uri in images if uri.startswith("good")} == set(frames("good.avi", range(0, 12, 2)))
    assert sum(uri.startswith("cut.mkv#") and images[uri] == "ok" for uri in images) >= 4
    os.utime(folder / "cut.mkv", ns=(1, 1))  # its frames are new rows, in another run of the catalog than its own row
    second = run(folder, root=tmp_path / "audit", **FIVE)
    assert {row["uri"]: row["status"] for row in rows(second, "images")} == images
    assert run(folder, root=tmp_path / "audit", **FIVE).audit_id == second.audit_id


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("a/b.MP4", "video"),
        ("x.dav", "video"),
        (".mp4", ""),
        ("a/.b.mp4", ""),
        ("mp4", ""),
        ("b.mp4.jpg", ""),
        ("b.mp4.zip", "zip"),
    ],
)
def test_what_a_video_is_by_its_name(key: str, kind: str) -> None:
    assert parent_kind(key) == kind


WITHOUT = "import sys; sys.modules['av'] = None; from pipeline import cli; sys.exit(cli.main(sys.argv[1:]))"


def test_without_the_library(files: dict[str, bytes], tmp_path: Path) -> None:
    """A row names what to install, and the first run that has it looks into the video."""
    folder = write_files(tmp_path / "files", {"other.avi": files["train/a/other.avi"], "x.jpg": noise_jpeg(5)})
    words = ["run", str(folder), "--root", str(tmp_path / "audit"), "--runner", "local", "--quiet"]
    subprocess.run([sys.executable, "-c", WITHOUT, *words], env=environment(), check=True, stdout=subprocess.DEVNULL)
    without = pipeline.open(tmp_path / "audit")
    assert rows(without, "videos") == []
    assert not any(line.startswith("videos") for line in summary_lines(without.summary()))
    assert "videos" not in {stage["stage"] for stage in without.published.session["stages"]}
    (row,) = rows(without, "invalid")
    assert (row["uri"], row["status"]) == ("other.avi", "unsupported")
    assert "pip install 'image-audit[video]'" in row["message"]
    audit = run(folder, root=tmp_path / "audit", **FIVE)
    assert set(by_uri(audit, "images")) == {*frames("other.avi", range(0, 12, 2)), "x.jpg"}


def replaced(store: Store, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the listing the video becomes another one."""
    taken = pipeline.plan.take_snapshot

    def take_and_replace(*arguments: Any) -> Any:
        snapshot = taken(*arguments)
        store.put("v.avi", data)
        monkeypatch.setattr(pipeline.plan, "take_snapshot", taken)
        return snapshot

    monkeypatch.setattr(pipeline.plan, "take_snapshot", take_and_replace)


def test_a_video_that_is_replaced_after_the_listing(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "replaced-video")
    store.put("v.avi", files["train/a/other.avi"])
    replaced(store, files["test/b/copy.MKV"], monkeypatch)
    first = run(store.uri, root=tmp_path / "root", storage=STORAGE, max_failed_share=1.0, **FIVE)
    assert {row["uri"]: row["status"] for row in rows(first, "images")} == dict.fromkeys(
        frames("v.avi", range(0, 12, 2)), "changed"
    )


def objects(audit: Audit) -> list[ImageObject]:
    recipe = read_recipe(audit.root, audit.audit_id)
    inputs: Inputs = recipe.inputs
    ids = np.array([row["image_id"] for row in rows(audit, "images")], np.int64)
    return [image for image in image_objects_of(inputs, ids).values() if image.is_frame]


def test_boxes_of_a_touched_video_are_compared_by_their_pixels(files: dict[str, bytes], tmp_path: Path) -> None:
    """Between extraction and verify: touched, it is the same; one of the same size with other pixels is not."""
    box = "row_y=0,col_x=0,height=96,width=192"
    folder = write_files(tmp_path / "files", {"v.avi": files["train/a/other.avi"]})
    audit = run(folder, root=tmp_path / "audit", bounding_box=box, **FIVE)
    assert {row["uri"].partition("#xywh")[2] for row in rows(audit, "images")} == {"=0,0,192,96"}
    images, hashes = objects(audit), [hashed for _, _, hashed in loaded(audit)]
    os.utime(folder / "v.avi", ns=(1, 1))
    found = [*frames_as_extracted(audit.root, images, CUTTING, hashes.__getitem__)]
    assert [number_of(frame.native) for frame in found if isinstance(frame, Decoded)] == [*range(0, 12, 2)]
    found = [*frames_as_extracted(audit.root, images, CUTTING, lambda number: hashes[number - 1])]
    assert {type(frame) for frame in found} == {ObjectChanged}
    again = run(folder, root=tmp_path / "audit", bounding_box=box, **FIVE)
    assert {row["uri"] for row in rows(again, "images")} == {row["uri"] for row in rows(audit, "images")}


def test_a_video_that_kills_the_process_is_set_aside_whole(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies with the shard and twice alone, not once for each frame; the other video is there."""
    folder = write_files(
        tmp_path / "files", {"bad.avi": files["train/a/other.avi"], "good.mkv": files["test/b/copy.MKV"]}
    )
    task = preparing._extract_task
    with monkeypatch.context() as patch:
        patch.setattr(preparing.extract, "extract", crashing.video_poisoned_extract)
        patch.setattr(preparing, "_extract_task", lambda *given: replace(task(*given), is_suspect=True))
        first = run(folder, root=tmp_path / "audit", max_failed_share=1.0, **FIVE)
    assert (tmp_path / "deaths").read_text().split() == ["0-18", "0-6", "0-6"]
    statuses = dict.fromkeys(frames("bad.avi", range(0, 12, 2)), "crashed")
    statuses |= dict.fromkeys(frames("good.mkv", range(0, 24, 2)), "ok")
    assert {row["uri"]: row["status"] for row in rows(first, "images")} == statuses


def test_a_task_is_cut_between_files(audited: Audit) -> None:
    """Videos of 12, 1 (a photograph), 6 and 24 frames: each piece holds whole ones, down to one."""
    snapshot = latest_snapshot(audited.root.open())
    recipe = read_recipe(audited.root, audited.audit_id)
    given = extract.ExtractSpec(audited.root, snapshot.number, "f", recipe.model, recipe.measure, BoxParams(), 0, 43)

    def leaves(spec: extract.ExtractSpec) -> list[tuple[int, int]]:
        pieces = extract.halves(spec)
        return [(spec.lo, spec.hi)] if len(pieces) == 1 else [leaf for piece in pieces for leaf in leaves(piece)]

    assert leaves(given) == [(0, 12), (12, 13), (13, 19), (19, 43)]
    assert leaves(replace(given, only=tuple(range(5, 25)), lo=5, hi=25)) == [(5, 12), (12, 13), (13, 19), (19, 25)]
    assert leaves(replace(given, lo=20, hi=40)) == [(20, 40)]
