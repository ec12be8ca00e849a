"""What a Python caller gives in memory: lists of files and annotations, in any number, by several callers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import LOCAL, noise_jpeg, rows, run, write_files

import pipeline
from pipeline.audit import Audit
from pipeline.errors import IncompleteError, NotFound, UsageError
from pipeline.given import with_given

FILES = {f"{place}/{at}.jpg": noise_jpeg(10 * at + len(place)) for at in range(3) for place in ("x", "yy")}


def paths(audit: Audit) -> set[str]:
    return {row["path"] for row in rows(audit, "images")}


def test_a_hundred_thousand_names_take_seconds(tmp_path: Path) -> None:
    """With work that grows with the square of the names this test would take minutes."""
    names = [f"/photos/{at // 1000}/{at}.jpg" for at in range(100_000)]
    _, given = with_given([names], {"root": str(tmp_path)})
    (text,) = given.values()
    assert text.decode().splitlines() == sorted(names)


def test_annotations_name_the_files_of_a_list(tmp_path: Path) -> None:
    """By their whole paths, which two of them share the last part of; a file alone has its folder as the base."""
    files = [write_files(tmp_path / "in", FILES) / name for name in FILES]
    table = {"filename": list(map(str, files)), "label": [f"label {at}" for at in range(len(files))]}
    audit = run(files, root=tmp_path / "audit", annotations=table)
    found = {row["path"]: row["label"] for row in rows(audit, "images")}
    assert found == dict(zip(table["filename"], table["label"], strict=True))
    alone = run(files[0], root=tmp_path / "alone", annotations={"filename": [str(files[0])], "label": ["one"]})
    assert [row["label"] for row in rows(alone, "images")] == ["one"]


def test_an_identical_call_prepares_nothing_anew(tmp_path: Path) -> None:
    files = [write_files(tmp_path / "in", FILES) / name for name in FILES]
    first = run(files, root=tmp_path / "audit")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "audit/catalog").rglob("*")}
    second = run(files[::-1], root=tmp_path / "audit")
    assert second.audit_id == first.audit_id
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "audit/catalog").rglob("*")} == before
    stages = {stage["stage"] for stage in second.published.session["stages"] if stage["state"] == "done"}
    assert "prepare lists" not in stages


def test_callers_with_other_lists_audit_their_own(tmp_path: Path) -> None:
    """On one root at once; the list is one source of it, whoever comes later. Where one removes images that the other
    still extracts, that one ends as incomplete and does it again, as its message says.
    """

    def own(files: list[Path]) -> Audit:
        with suppress(IncompleteError):
            return run(files, root=tmp_path / "audit")
        return run(files, root=tmp_path / "audit")

    folder = write_files(tmp_path / "in", FILES)
    lists = [[folder / name for name in FILES if name.startswith(start)] for start in "xy"]
    with ThreadPoolExecutor(2) as pool:
        audits = list(pool.map(own, lists))
    for audit, files in zip(audits, lists, strict=True):
        assert paths(audit) == set(map(str, files))
    again = run(lists[0], root=tmp_path / "audit")
    assert paths(again) == set(map(str, lists[0]))


def test_a_file_that_its_folder_leaves_out_stays(tmp_path: Path) -> None:
    """No image by its name, or hidden: named by itself it is audited; the others are listed once, by their folder."""
    write_files(tmp_path / "mix", {"a.jpg": noise_jpeg(1), "b.bin": noise_jpeg(2), ".c.jpg": noise_jpeg(3)})
    named = [tmp_path / "mix" / name for name in ("", "a.jpg", "b.bin", ".c.jpg")]
    audit = run(named, root=tmp_path / "audit")
    assert sorted(row["path"] for row in rows(audit, "images")) == sorted(map(str, named[1:]))


def test_what_is_given_beside_a_folder_that_holds_the_root(tmp_path: Path) -> None:
    """A root keeps what it is given: where it lies below a source, that is no part of the source."""
    folder, other = (write_files(tmp_path / name, {f"{name}.jpg": noise_jpeg(at)}) for at, name in enumerate("ab"))
    for source in ([folder, other / "b.jpg"], [folder, coco([str(other / "b.jpg")])]):
        audit = run(*source, root=folder / "audit" / str(len(source[1:])) / type(source[1]).__name__)
        assert paths(audit) == {str(folder / "a.jpg"), str(other / "b.jpg")}
        audit = run(source, root=folder / "audit" / "list" / type(source[1]).__name__)
        assert paths(audit) == {str(folder / "a.jpg"), str(other / "b.jpg")}


@pytest.mark.parametrize("config", [{"model": {"path": "none.onnx"}}, {"bounding_box": "xywh_bbox"}, {"treshold": 1}])
def test_a_refused_call_leaves_nothing(config: dict[str, object], tmp_path: Path) -> None:
    photo = write_files(tmp_path / "in", {"a.jpg": noise_jpeg(1)}) / "a.jpg"
    table = {"filename": [str(photo)], "label": ["x"]}
    for source in (tmp_path / "in", [photo]):
        with pytest.raises(pipeline.errors.AuditError):
            pipeline.run(source, root=tmp_path / "root", where=LOCAL, annotations=table, **config)
        assert not (tmp_path / "root").exists()
    with pytest.raises(UsageError):
        pipeline.run([photo], root=tmp_path / "root", where=LOCAL, annotations={"filename": [], "label": []})
    assert not (tmp_path / "root").exists()


def coco(names: list[str], *annotations: dict[str, object]) -> dict[str, object]:
    """Images of 64 x 64 with ids from 1, and annotations of them."""
    return {
        "images": tuple({"id": at, "file_name": name} for at, name in enumerate(names, 1)),
        "annotations": iter([{"category_id": 7, **annotation} for annotation in annotations]),
        "categories": [{"id": 7, "name": "cat", "supercategory": {1, 2}}],
        "info": {"year": 2026},
    }


def told(audit: Audit, place: Path) -> dict[str, tuple[object, ...]]:
    """What is said of each image, by its path below a folder."""
    wanted = ("image_id", "status", "label", "split")
    return {row["path"].removeprefix(f"{place}/"): tuple(row[name] for name in wanted) for row in rows(audit, "images")}


def test_a_coco_dict_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others, with its own boxes, labels and split; names lie below the working folder. Another dict in its
    place is the same source: what is still there keeps its id.
    """
    write_files(tmp_path, {f"in/{name}": data for name, data in FILES.items()})
    monkeypatch.chdir(tmp_path)
    good, bad = np.array([8, 8, np.int64(20), 30]), [0, 0, float("nan"), 5]
    first = coco(
        ["in/x/0.jpg", str(tmp_path / "in/x/1.jpg")], {"image_id": 1, "bbox": good}, {"image_id": 2, "bbox": bad}
    )
    audit = run(["in/yy", first], root="audit", test=coco(["in/x/2.jpg"], {"image_id": 1}))
    assert told(audit, tmp_path / "in") == {
        "yy/0.jpg": (0, "ok", None, "train"),
        "yy/1.jpg": (1, "ok", None, "train"),
        "yy/2.jpg": (2, "ok", None, "train"),
        "x/0.jpg#xywh=8,8,20,30": (3, "ok", "cat", "train"),
        "x/1.jpg#xywh=0,0,nan,5": (4, "unreadable", "cat", "train"),
        "x/2.jpg": (5, "ok", "cat", "test"),
    }
    second = coco(
        ["in/x/0.jpg", "in/x/1.jpg"], {"image_id": 1, "bbox": [8, 8, 20, 30]}, {"image_id": 2, "bbox": [1, 1, 9, 20]}
    )
    again = run(["in/yy", second], root="audit", test=[coco(["in/x/2.jpg"], {"image_id": 1})])
    assert told(again, tmp_path / "in") == {
        **{name: row for name, row in told(audit, tmp_path / "in").items() if "nan" not in name},
        "x/1.jpg#xywh=1,1,9,20": (6, "too_small", "cat", "train"),
    }
    alone = run(coco(["in/x/0.jpg"]), root="alone")
    assert told(alone, tmp_path / "in") == {"x/0.jpg": (0, "ok", None, None)}


def test_a_dict_of_numpy_numbers_paths_and_iterators_is_one_of_plain_values(tmp_path: Path) -> None:
    """The same source of a root, to the byte; as annotations too."""
    names = [write_files(tmp_path, FILES) / name for name in ("x/0.jpg", "yy/1.jpg")]
    plain: Any = coco([str(name) for name in names], {"image_id": 1, "bbox": [8, 8, 20, 30]}, {"image_id": 2})
    plain["annotations"] = list(plain["annotations"])
    made: list[dict[str, Any]] = []
    for box in (map(int, ["8", "8", "20", "30"]), iter([8, 8, 20, 30]), (side for side in (8, 8, 20, 30))):
        ids = np.array([1, 2, 7], np.uint16)
        images = ({"id": number, "file_name": name} for number, name in zip(ids, names, strict=False))
        boxes = iter([{"image_id": ids[0], "category_id": ids[2], "bbox": box}, {"image_id": ids[1], "category_id": 7}])
        made.append({"images": images, "annotations": boxes, "categories": ({"id": ids[2], "name": "cat"},)})
    first = run(plain, root=tmp_path / "audit")
    assert told(first, tmp_path) == {"x/0.jpg#xywh=8,8,20,30": (0, "ok", "cat", None)}
    assert [run(value, root=tmp_path / "audit").audit_id for value in made[:2]] == [first.audit_id] * 2
    assert len(list((tmp_path / "audit/catalog").glob("coco-*"))) == 1
    annotated = run(names, root=tmp_path / "annotated", annotations=made[2])
    assert told(annotated, tmp_path) == told(first, tmp_path)


def test_a_dict_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a later call leaves it out, and where none of its images is there, at once or any more."""
    monkeypatch.chdir(write_files(tmp_path, FILES))
    run(coco(["x/0.jpg"]), coco(["yy/1.jpg"]), root="audit")
    shown = r"the COCO dict \(number {}\) that pipeline.run was given"
    with pytest.raises(UsageError, match=f"that this call leaves out: {shown.format(2)}. Name them too"):
        run(coco(["x/0.jpg"]), root="audit")
    (tmp_path / "yy/1.jpg").rename(tmp_path / "away.jpg")
    with pytest.raises(NotFound, match=f"^{shown.format(2)}: no image is left of the 1 that the root"):
        run(coco(["x/0.jpg"]), coco(["yy/1.jpg"]), root="audit")
    with pytest.raises(NotFound, match=f"^{shown.format(1)}: none of the 2 files .* lie below the folder that Python"):
        run(coco(["x.jpg", "y.jpg"]), root="other")
    with pytest.raises(
        NotFound, match=r"^the files that pipeline.run\(\[...\]\) listed: none of the 2 files .* below the"
    ):
        run(["x.jpg", "y.jpg"], root="listed")


@pytest.mark.parametrize("place", ["alone", "second", "test"])
def test_the_boxes_of_a_dict_are_boxes_of_annotations(place: str, tmp_path: Path) -> None:
    """On a new root, on one that has another dict in its place, and on one that has had this one before."""
    write_files(tmp_path, {"in/0.jpg": noise_jpeg(0), "in/1.jpg": noise_jpeg(1), "more/2.jpg": noise_jpeg(2)})
    beside = {} if place == "alone" else {"more/2.jpg": (0, "ok", None, "train" if place == "test" else None)}
    first, split = len(beside), "test" if place == "test" else None
    for side, image_id in ((40, first), (41, first + 1), (40, first)):
        boxed: Any = coco([str(tmp_path / "in/0.jpg")], {"image_id": 1, "bbox": [0, 0, side, side]})
        sources = [tmp_path / "more"] * (place != "alone") + [boxed] * (place != "test")
        test = boxed if place == "test" else ()
        audit = run(*sources, root=tmp_path / "audit", test=test, bounding_box="xywh_bbox")
        box = {f"in/0.jpg#xywh=0,0,{side},{side}": (image_id, "ok", "cat", split)}
        assert told(audit, tmp_path) == {**beside, **box}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"images": []}, r"the COCO dict \(number 1\) has nothing and no images"),
        ({"images": [{"id": 1}]}, r"the COCO dict \(number 1\), images\[0\] has the file_name None; wanted a path"),
        ({"images": [{"id": 1, "file_name": "http://a/b.jpg"}]}, r"\(number 1\), images\[0\]: .*http"),
        ({"images": "a.jpg"}, r"\(number 1\): images is str; wanted an array"),
        ({"images": {"1": {"id": 1, "file_name": "a.jpg"}}}, r"\(number 1\): images is dict; wanted an array"),
        ({1: {2: "x" * 9000}}, r"\(number 1\) has 1 and no images"),
        (7, "source 7, want text, a path or a COCO dict"),
        ([["x" * 9000]], r"source \['x{70,80}, want text"),
    ],
)
def test_a_dict_that_is_no_source(source: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        pipeline.run(source, root=tmp_path / "audit", where=LOCAL)  # type: ignore[arg-type]
    assert len(str(error.value)) < 400
    assert not (tmp_path / "audit").exists()


def test_a_named_file_that_is_gone_is_a_row(tmp_path: Path) -> None:
    """Also where its folder is named, which cannot tell that anything is missing; alone it is an error."""
    folder, other = write_files(tmp_path / "in", FILES), write_files(tmp_path / "other", {"a.jpg": noise_jpeg(99)})
    given = [folder, folder / "x/0.jpg", folder / "x/gone.jpg"]
    audit = run([*given, other / "a.jpg"], root=tmp_path / "audit", max_failed_share=0.5)
    found = {row["path"].removeprefix(f"{tmp_path}/"): row["status"] for row in rows(audit, "images")}
    assert found == {
        **dict.fromkeys([*(f"in/{name}" for name in FILES), "other/a.jpg"], "ok"),
        "in/x/gone.jpg": "missing",
    }
    with pytest.raises(NotFound, match=r"source .*in/x/gone\.jpg is not there"):
        run(given, root=tmp_path / "another")
