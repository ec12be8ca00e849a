"""Boxes end to end: the tables of the same pixels as files, one decode of each image, no pair within one."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from archives_made import tar_of
from audited import LOCAL, by_uri, noise_jpeg, rows, run, small_set, write_files
from PIL import Image
from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError
from test_detect_object import model

import pipeline
from pipeline.audit import Audit
from pipeline.cli import main
from pipeline.errors import ModelError, NotFound, UsageError
from pipeline.kernels.boxes import BoxesFrom
from pipeline.models import detectors
from pipeline.stages import detect

FILES = {uri: data for uri, data in small_set(10).items() if "cut" not in uri}
BOX, NAME = "row_y=8,col_x=12,height=40,width=50", "#xywh=12,8,50,40"
PLAIN = {"horizontal": 0.0, "vertical": 0.0}
MEASURES = ("width", "height", "mean", "stdv", "min", "max", "unique", "contrast", "blur", "blurry_score", "dark_score")


def cropped(data: bytes, box: tuple[int, int, int, int]) -> bytes:
    """A part of an image as a PNG of its own, by Pillow."""
    sink = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.crop(box).save(sink, "PNG")
    return sink.getvalue()


def pairs(audit: Audit) -> dict[tuple[str, str], str]:
    return {(row["uri"], row["match_uri"]): row["kind"] for row in rows(audit, "duplicates")}


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("crops")
    files = {f"{uri}.png": cropped(data, (12, 8, 62, 48)) for uri, data in FILES.items()}
    return run(write_files(folder / "photos", files), root=folder / "audit")


@pytest.mark.parametrize("place", ["loose", "in a tar"])
def test_a_box_of_each_image_is_what_a_file_of_it_is(crops: Audit, tmp_path: Path, place: str) -> None:
    files = FILES if place == "loose" else {"set.tar": tar_of(FILES.items())}
    prefix = "" if place == "loose" else "set.tar#"
    folder = write_files(tmp_path / "photos", files)
    audit = run(folder, root=tmp_path / "audit", bounding_box=BOX, boxes=PLAIN, shard_size=5)
    ours, theirs = by_uri(audit, "quality"), by_uri(crops, "quality")
    assert {uri: row["split"] for uri, row in ours.items()} == {
        f"{prefix}{uri}{NAME}": theirs[f"{uri}.png"]["split"] for uri in FILES
    }
    for uri in FILES:
        row, wanted = ours[f"{prefix}{uri}{NAME}"], theirs[f"{uri}.png"]
        assert {name: row[name] for name in MEASURES} == {name: wanted[name] for name in MEASURES}
        assert (row["label"], row["size_bytes"]) == (wanted["label"], None)

    def renamed(uri: str) -> str:
        return prefix + uri.removesuffix(".png") + NAME

    exact = {"same_bytes": "same_pixels"}
    wanted_pairs = {(renamed(a), renamed(b)): exact.get(kind, kind) for (a, b), kind in pairs(crops).items()}
    assert pairs(audit) == wanted_pairs
    assert "same_pixels" in wanted_pairs.values()
    assert [row["severity"] for row in rows(audit, "leaks")] == [row["severity"] for row in rows(crops, "leaks")]


def test_margins_are_in_the_crop_and_not_in_the_name(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", FILES)
    audit = run(
        folder, root=tmp_path / "audit", bounding_box=BOX, boxes={"horizontal": 0.1, "vertical": 0, "margin": 2}
    )
    sizes = {(row["uri"].partition("#")[2], row["width"], row["height"]) for row in rows(audit, "quality")}
    assert sizes == {("xywh=12,8,50,40", 50 + 4 + 2 * 5, 40 + 4)}
    again = run(folder, root=tmp_path / "audit", bounding_box=BOX, boxes=PLAIN)
    assert {(row["width"], row["height"]) for row in rows(again, "quality")} == {(50, 40)}
    assert {row["image_id"] for row in rows(again, "images")} == set(range(len(FILES)))


@pytest.mark.parametrize(
    ("box", "status", "said"),
    [
        ("row_y=0,col_x=5000,height=40,width=50", "unreadable", "lies outside the"),
        ("row_y=0,col_x=0,height=4,width=50", "too_small", "at least 10x10 are wanted"),
    ],
)
def test_a_box_that_cannot_be_is_a_row(tmp_path: Path, box: str, status: str, said: str) -> None:
    audit = run(write_files(tmp_path / "photos", FILES), root=tmp_path / "audit", bounding_box=box)
    invalid = rows(audit, "invalid")
    assert [row["status"] for row in invalid] == [status] * len(FILES)
    assert all(said in row["message"] for row in invalid)


def squares(seed: int) -> bytes:
    """640 x 640 pixels of noise, as a JPEG: objects found in it are told by where they are."""
    small = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(small).resize((640, 640), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=95)
    return sink.getvalue()


OBJECTS = [
    [100, 100, 300, 300, 0.9, 0],
    [104, 103, 302, 301, 0.8, 1],
    [400, 400, 600, 560, 0.7, 0],
    [5, 5, 9, 9, 0.9, 1],
]
FOUND = {"xywh=100,100,200,200", "xywh=104,103,198,198", "xywh=400,400,200,160"}


@pytest.fixture
def finder(tmp_path: Path) -> Path:
    """A detector that finds the same four objects in any image: two nearly the same, one elsewhere, one too small."""
    data = model(np.array([OBJECTS], np.float32), names={0: "cat", 1: "dog"})
    (tmp_path / "finder.onnx").write_bytes(data)
    return tmp_path / "finder.onnx"


def test_objects_of_one_image_pair_only_as_same_parent(tmp_path: Path, finder: Path) -> None:
    """Two boxes of one image that show the same make no group and no leak; those of a copy of the image do."""
    files = {f"train/{at}.jpg": squares(at) for at in range(4)} | {"test/copy.jpg": squares(2)}
    folder = write_files(tmp_path / "photos", files | {"train/broken.jpg": b"none", "train/note.txt": b""})
    audit = run(folder, root=tmp_path / "audit", bounding_box="object", box_model=str(finder), boxes=PLAIN)
    found: dict[str, set[str]] = {}
    for row in rows(audit, "images"):
        uri, _, box = row["uri"].partition("#")
        found.setdefault(uri, set()).add(box)
    assert found == {**dict.fromkeys(files, FOUND), "train/broken.jpg": {""}}
    assert {row["uri"]: row["status"] for row in rows(audit, "invalid")} == {"train/broken.jpg": "unsupported"}
    kinds: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for (one, other), kind in pairs(audit).items():
        kinds[one.partition("#")[0] == other.partition("#")[0]][kind] += 1
    assert set(kinds[True]) == {"same_parent"}
    near = {one.partition("#")[0] for one, other in pairs(audit) if one.endswith(",200,200") and "104,103" in other}
    assert near == {"test/copy.jpg", "train/0.jpg", "train/1.jpg", "train/3.jpg"}  # one of two copies stands for both
    assert kinds[False]["same_pixels"] == 3
    crops = audit.crops()
    assert crops.column_names == [
        *("index", "filename", "crop_filename", "col_x", "row_y", "width", "height", "label", "confidence")
    ]
    (second,) = [row for row in crops.to_pylist() if row["crop_filename"] == "train/1.jpg#xywh=104,103,198,198"]
    assert (second["filename"], second["col_x"], second["height"], second["label"]) == ("train/1.jpg", 104, 198, "dog")
    assert second["confidence"] == pytest.approx(0.8)
    assert second["index"] == by_uri(audit, "images")[second["crop_filename"]]["image_id"]
    assert len(crops) == 3 * len(files)
    assert len(audit.crops(rotated=True)) == 0
    grouped = {row["uri"].partition("#")[0] for row in rows(audit, "groups")}
    assert grouped == {"train/2.jpg", "test/copy.jpg"}
    leaking = {row["uri"].partition("#")[0] for row in rows(audit, "leaks") if row["severity"] >= 3}
    assert leaking == {"train/2.jpg", "test/copy.jpg"}


def test_crops_are_those_of_the_detector_of_their_audit(tmp_path: Path, finder: Path) -> None:
    """Another detector that finds the same boxes under other names: each audit keeps its own, and a table has none."""
    other = tmp_path / "other.onnx"
    other.write_bytes(model(np.array([OBJECTS], np.float32), names={0: "car", 1: "bus"}))
    folder, root = write_files(tmp_path / "photos", {"a.jpg": squares(1)}), tmp_path / "audit"

    def labels(audit: Audit) -> set[str | None]:
        return set(audit.crops()["label"].to_pylist())

    first = run(folder, root=root, bounding_box="object", box_model=str(finder))
    second = run(folder, root=root, bounding_box="object", box_model=str(other))
    assert (labels(first), labels(second)) == ({"cat", "dog"}, {"car", "bus"})
    assert labels(run(root=root, start="features")) == {"car", "bus"}
    table = tmp_path / "boxes.csv"
    table.write_text("filename,col_x,row_y,width,height\na.jpg,100,100,200,200\n")
    assert labels(run(folder, root=root, annotations=str(table))) == {None}
    assert labels(pipeline.open(root, first.audit_id)) == {"cat", "dog"}


def test_equal_boxes_of_one_image_are_no_duplicates(tmp_path: Path, finder: Path) -> None:
    """A picture that repeats itself has boxes of equal pixels: pairs of one parent, a group only with another file."""
    tile = np.asarray(Image.open(io.BytesIO(squares(1))).resize((50, 50)))
    repeated = np.tile(tile, (13, 13, 1))[:640, :640]
    sink = io.BytesIO()
    Image.fromarray(repeated).save(sink, "PNG")
    objects = [[0, 0, 100, 100, 0.9, 0], [200, 300, 300, 400, 0.8, 0], [500, 500, 600, 600, 0.7, 1]]
    finder.write_bytes(model(np.array([objects], np.float32), names={0: "cat", 1: "dog"}))
    arguments: dict[str, Any] = {"bounding_box": "object", "box_model": str(finder), "boxes": PLAIN}
    folder = write_files(
        tmp_path / "photos", {"a.png": sink.getvalue()} | {f"{at}.jpg": squares(at) for at in range(3)}
    )
    audit = run(folder, root=tmp_path / "audit", **arguments)
    own = {kind for (one, other), kind in pairs(audit).items() if one.startswith("a.png") and other.startswith("a.png")}
    assert own == {"same_parent"}
    assert rows(audit, "groups") == []
    write_files(folder, {"b.png": cropped(sink.getvalue(), (0, 0, 640, 640))})
    later = run(folder, root=tmp_path / "audit", **arguments)
    assert {row["uri"].partition("#")[0] for row in rows(later, "groups")} == {"a.png", "b.png"}
    between = {kind for (one, other), kind in pairs(later).items() if one[0] == "a" and other[0] == "b"}
    assert between == {"same_pixels"}


def test_equal_boxes_of_one_image_in_two_splits_are_no_leak(tmp_path: Path) -> None:
    """A list may put two boxes of one image into two splits: `same_parent`, unless another file has the pixels too."""
    tile = np.asarray(Image.open(io.BytesIO(squares(1))).resize((50, 50)))
    sink = io.BytesIO()
    Image.fromarray(np.tile(tile, (13, 13, 1))[:640, :640]).save(sink, "PNG")
    lines = ["filename,split,col_x,row_y,width,height", "a.png,train,0,0,100,100", "a.png,val,200,300,100,100"]
    files = {"a.png": sink.getvalue(), "list.csv": "\n".join(lines).encode()}
    folder = write_files(tmp_path / "photos", files)
    audit = run(folder / "list.csv", root=tmp_path / "audit", boxes=PLAIN)
    assert rows(audit, "leaks") == []
    assert set(pairs(audit).values()) == {"same_parent"}
    write_files(folder, {"b.png": cropped(sink.getvalue(), (0, 0, 640, 640))})
    write_files(folder, {"list.csv": "\n".join([*lines, "b.png,val,0,0,100,100"]).encode()})
    later = run(folder / "list.csv", root=tmp_path / "audit", boxes=PLAIN)
    train, val, other = "a.png#xywh=0,0,100,100", "a.png#xywh=200,300,100,100", "b.png#xywh=0,0,100,100"
    found = {row["uri"]: (row["kind"], row["severity"], row["similarity"]) for row in rows(later, "leaks")}
    assert found == {
        train: ("same_pixels", 5, 1.0), val: ("same_parent", 2, 1.0), other: ("same_pixels", 5, 1.0),
    }  # fmt: skip


def test_the_match_of_a_box_is_the_file_that_has_its_pixels_and_no_box_of_its_image(tmp_path: Path) -> None:
    """A photograph tiled twice by twice, its four boxes in three splits under two labels; itself it lies in val."""
    tile = np.asarray(Image.open(io.BytesIO(squares(1))).resize((150, 150)))
    folder = tmp_path / "photos"
    for name, pixels in (("train/t.png", np.tile(tile, (2, 2, 1))), ("val/copy.png", tile)):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        write_files(folder, {name: sink.getvalue()})
    corners = {f"train/t.png#xywh={x},{y},150,150": (x, y) for x, y in ((0, 0), (150, 0), (0, 150), (150, 150))}
    lines = [
        f"train/t.png,{split},{label},{x},{y},150,150"
        for (x, y), split, label in zip(corners.values(), ("train", "val", "train", "test"), "abab", strict=True)
    ]
    lines = ["filename,split,label,col_x,row_y,width,height", *lines, "val/copy.png,val,a,0,0,150,150"]
    write_files(folder, {"list.csv": "\n".join(lines).encode()})
    audit = run(folder / "list.csv", root=tmp_path / "audit", boxes=PLAIN)
    copy = "val/copy.png#xywh=0,0,150,150"
    first, second, third, last = corners
    found = {(row["uri"], row["match_split"]): (row["match_uri"], row["kind"]) for row in rows(audit, "leaks")}
    assert found == {
        (first, "val"): (copy, "same_pixels"),
        (first, "test"): (last, "same_parent"),
        (second, "train"): (first, "same_parent"),
        (second, "test"): (last, "same_parent"),
        (third, "val"): (copy, "same_pixels"),
        (third, "test"): (last, "same_parent"),
        (last, "train"): (first, "same_parent"),
        (last, "val"): (copy, "same_pixels"),
        (copy, "train"): (first, "same_pixels"),
        (copy, "test"): (last, "same_pixels"),
    }
    severities = {(row["kind"], row["severity"]) for row in rows(audit, "leaks")}
    assert severities == {("same_pixels", 5), ("same_parent", 2)}
    conflicts = {(row["uri"], row["conflict_uri"], row["is_certain"]) for row in rows(audit, "label_conflicts")}
    assert conflicts == {(second, copy, True), (last, copy, True), (copy, second, True)}


def test_an_image_is_decoded_once_for_all_of_its_boxes(tmp_path: Path, finder: Path, decodes: Counter[int]) -> None:
    """Once by the detector, once by extraction; a second run looks at the new image alone."""
    files = {f"{at}.jpg": squares(at) for at in range(3)}
    arguments: dict[str, Any] = {"bounding_box": "object", "box_model": str(finder), "until": "features"}
    folder, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    assert pipeline.run(folder, root=root, where=LOCAL, **arguments) is None
    assert set(decodes.values()) == {2}
    assert len(decodes) == 3
    write_files(folder, {"new.jpg": squares(9)})
    decodes.clear()
    assert pipeline.run(folder, root=root, where=LOCAL, **arguments) is None
    assert decodes == {hash(squares(9)): 2}


def test_what_kills_the_detector_is_audited_whole_and_left_alone(
    tmp_path: Path, finder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image that was set aside stays itself, is named, and no later run looks at it with this detector."""
    folder, root = write_files(tmp_path / "photos", {"a.jpg": squares(1)}), tmp_path / "audit"
    arguments: dict[str, Any] = {"bounding_box": "object", "box_model": str(finder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.plan.detecting.detect.detect", lambda spec: detect.quarantine(spec, "crashed"))
        first = run(folder, root=root, **arguments)
    assert [row["uri"] for row in rows(first, "images")] == ["a.jpg"]
    assert "a.jpg: the process that looked for boxes in it died or hung twice; it is audited whole" in caplog.text
    second = run(folder, root=root, **arguments)
    assert [row["uri"] for row in rows(second, "images")] == ["a.jpg"]
    write_files(folder, {"b.jpg": squares(2)})
    third = run(folder, root=root, **arguments)
    assert {row["uri"] for row in rows(third, "images")} == {"a.jpg", *(f"b.jpg#{box}" for box in FOUND)}


def test_what_hung_because_it_could_not_be_read_is_looked_at_later(tmp_path: Path, finder: Path) -> None:
    folder, root = write_files(tmp_path / "photos", {"a.jpg": squares(1)}), tmp_path / "audit"
    arguments: dict[str, Any] = {"bounding_box": "object", "box_model": str(finder)}

    def hung(spec: detect.DetectSpec) -> Any:
        (folder / "a.jpg").rename(folder / "away")
        found = detect.quarantine(spec, "timeout")
        (folder / "away").rename(folder / "a.jpg")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.plan.detecting.detect.detect", hung)
        first = run(folder, root=root, **arguments)
    assert [row["uri"] for row in rows(first, "images")] == ["a.jpg"]
    second = run(folder, root=root, **arguments)
    assert {row["uri"] for row in rows(second, "images")} == {f"a.jpg#{box}" for box in FOUND}


@pytest.mark.parametrize("error", [cv2.error("resize"), ModelError("Reshape of nothing"), "rapidocr"], ids=repr)
def test_an_image_that_a_detector_fails_on_is_audited_whole(
    tmp_path: Path, finder: Path, caplog: pytest.LogCaptureFixture, error: Any
) -> None:
    """The others have their boxes; the one is named, and looked at once. A model that fails on all ends the run."""
    folder, root = write_files(tmp_path / "photos", {f"{at}.jpg": squares(at) for at in range(3)}), tmp_path / "audit"
    arguments: dict[str, Any] = {"bounding_box": "object", "box_model": str(finder)}
    raised = ONNXRuntimeError("Traceback of it\nReshape") if error == "rapidocr" else error
    looked: list[int] = []
    real = detectors.load_detector(BoxesFrom.OBJECT, model=finder.read_bytes())

    def failing(_: Any) -> Any:
        raise raised

    def picky(rgb: Any) -> Any:
        looked.append(len(looked))
        if len(looked) > 1 and not is_broken:
            return real(rgb)
        return detectors._reader(failing)(rgb)

    is_broken = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detect, "load_detector", lambda *_, **__: picky)
        first = run(folder, root=root, **arguments)
        assert run(folder, root=root, **arguments).audit_id == first.audit_id
        assert len(looked) == 3
        is_broken = True
        if isinstance(error, ModelError):
            with pytest.raises(ModelError, match="Reshape of nothing"):
                run(folder, root=tmp_path / "other", **arguments)
    assert {row["uri"] for row in rows(first, "images")} == {
        "0.jpg", *(f"{at}.jpg#{box}" for at in (1, 2) for box in FOUND),
    }  # fmt: skip
    assert "0.jpg: the detector fails on it (" in caplog.text


def test_a_detector_that_never_finds_a_box_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The outputs of another kind of model look like boxes that are never sure."""
    blind = tmp_path / "blind.onnx"
    blind.write_bytes(model(np.array([[[1, 1, 99, 99, 0.01, 0]]], np.float32), names={0: "cat"}))
    folder = write_files(tmp_path / "photos", {f"{at}.jpg": noise_jpeg(at) for at in range(12)})
    pipeline.run(
        folder, root=tmp_path / "audit", where=LOCAL, bounding_box="object", box_model=str(blind), until="features"
    )
    told = [record.message for record in caplog.records if "found no box" in record.message]
    assert told == [
        "the object detector found no box in any of 12 images; check that the model's outputs are those of YOLO"
    ]


def test_images_without_a_box_are_there(tmp_path: Path) -> None:
    """A detector that finds nothing is no mount that is away, and no list of files that are not there."""
    blind = tmp_path / "blind.onnx"
    blind.write_bytes(model(np.array([[[1, 1, 99, 99, 0.01, 0]]], np.float32), names={0: "cat"}))
    folder = write_files(tmp_path / "photos", {f"{at}.jpg": noise_jpeg(at) for at in range(3)})
    write_files(folder, {"l.txt": b"0.jpg\n1.jpg\naway.jpg\n"})
    run(folder, root=tmp_path / "audit")
    found: dict[str, Any] = {"bounding_box": "object", "box_model": str(blind), "max_failed_share": 1.0}
    assert not rows(run(folder, root=tmp_path / "audit", **found), "images")
    listed = run(folder / "l.txt", root=tmp_path / "listed", **found)
    assert [row["status"] for row in rows(listed, "images")] == ["missing"]


def test_what_cannot_be_is_said_before_any_work(
    tmp_path: Path, finder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1)})
    for arguments, said in (
        ({"bounding_box": "object"}, "give a YOLO-style ONNX file with --box-model FILE"),
        ({"bounding_box": "eyes"}, "want row_y=..,col_x=..,height=..,width=.., or one of"),
        ({"bounding_box": "quick_face"}, "use bounding_box=face"),
        ({"bounding_box": "row_y=0,col_x=0,height=-1,width=3"}, "height is '-1', want a number over 0"),
        ({"boxes": {"horizontal": 2}}, "horizontal is 2, want a share from 0 to 1"),
    ):
        with pytest.raises(UsageError) as error:
            pipeline.run(folder, root=tmp_path / "audit", where=LOCAL, **arguments)  # type: ignore[arg-type]
        assert said in str(error.value)
    with pytest.raises(NotFound, match=r"read /no-such-model\.onnx"):
        pipeline.run(
            folder, root=tmp_path / "audit", where=LOCAL, bounding_box="object", box_model="/no-such-model.onnx"
        )
    assert not (tmp_path / "audit").exists()
    quiet = ["--root", str(tmp_path / "audit"), "--runner", "local", "--quiet"]
    assert main(["run", str(folder), *quiet, "--bounding-box", "object", "--box-model", str(finder)]) == 0
    assert "images      3" in capsys.readouterr().out
