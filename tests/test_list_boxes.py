"""Boxes of lists, of annotations and of YOLO sets end to end: audited in place of their images, with their labels."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pillow_heif
import pyarrow as pa
import pytest
import yaml
from archives_made import tar_of
from audited import assert_equal_tables, noise_jpeg, rows, run, write_files
from lists_made import FILES, NAMES, coco_of, csv_of, folders_of, ids, labels, states
from PIL import Image
from test_detect_object import model

import pipeline
from pipeline.audit import Audit
from pipeline.errors import UsageError
from pipeline.stages import reads


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often extraction decodes an image to cut boxes out of it."""
    counts: Counter[str] = Counter()
    plain = reads.decoded

    def decoded(*arguments: Any) -> Any:
        counts["decodes"] += 1
        return plain(*arguments)

    monkeypatch.setattr(reads, "decoded", decoded)
    return counts


def test_the_yaml_of_a_yolo_set_names_its_splits(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "yolo", {f"images/{name}": data for name, data in FILES.items()})
    listed = "\n".join(f"images/{name}" for name in NAMES if name.startswith("val"))
    (folder / "v.txt").write_text(listed)
    value = {"path": ".", "train": "images/train", "val": "v.txt", "test": "images/test", "names": ["a", "b"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(value))
    audit = run(folder / "data.yaml", root=tmp_path / "audit")
    splits = {row["path"].rpartition("/images/")[2]: row["split"] for row in rows(audit, "images")}
    assert splits == {name: name.split("/")[0] for name in NAMES}


def test_label_files_of_yolo_are_boxes_where_these_are_asked_for(counted: Counter[str], tmp_path: Path) -> None:
    """Images of one name in two splits, one upright only by its orientation, one without a label file."""
    folder = tmp_path / "yolo"
    turned = Image.Exif()
    turned[0x0112] = 6
    sink = io.BytesIO()
    Image.effect_noise((120, 80), 70).save(sink, format="JPEG", exif=turned)
    write_files(folder, {"images/train/1.jpg": noise_jpeg(1, 100), "images/train/2.jpg": noise_jpeg(2)})
    write_files(folder, {"images/val/1.jpg": sink.getvalue()})
    boxes = {"train": b"0 0.5 0.5 0.4 0.2\n1 0.3 0.3 0.4 0.4\n", "val": b"1 0.5 0.5 0.5 0.5\n"}
    write_files(folder, {f"labels/{split}/1.txt": data for split, data in boxes.items()})
    value = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
    write_files(folder, {"data.yaml": yaml.safe_dump(value).encode()})
    audit = run(folder / "data.yaml", root=tmp_path / "audit", bounding_box="xywh_bbox")
    found = {(row["split"], row["uri"]): row["label"] for row in rows(audit, "images")}
    assert found == {
        ("train", "1.jpg#xywh=30,40,40,20"): "cat",
        ("train", "1.jpg#xywh=10,10,40,40"): "dog",
        ("val", "1.jpg#xywh=20,30,40,60"): "dog",
    }
    assert counted["decodes"] == 2
    stored = run(root=tmp_path / "audit", start="features", bounding_box="xywh_bbox")
    assert_equal_tables(stored, audit)


def test_lines_that_give_no_numbers_are_one_row_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_files(tmp_path / "yolo", {"images/1.jpg": noise_jpeg(1, 100)})
    write_files(folder, {"labels/1.txt": b"0 0.5 0.5 0.4 0.2\nx y\n0 nan 0.5 1 1\n\n0 0.5\n"})
    write_files(folder, {"data.yaml": yaml.safe_dump({"train": "images", "names": ["cat"]}).encode()})
    audit = run(folder / "data.yaml", root=tmp_path / "audit", bounding_box="xywh_bbox")
    found = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert found == {"1.jpg#xywh=30,40,40,20": "ok", "1.jpg#xywh=nan,nan,nan,nan": "unreadable"}
    assert re.search(r"3 bad boxes \(first: .*1\.txt line 2: ", caplog.text)


def test_label_files_fit_images_of_every_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Turned by EXIF behind 64 KB, turned by the boxes of the format, and told by a library alone; one folder twice."""
    up = np.random.default_rng(3).integers(0, 256, (200, 300, 3), np.uint8)
    turned, exif = Image.fromarray(up).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    files = {}
    for kind in ("webp", "png", "tiff", "jpeg", "avif"):
        turned.save(sink := io.BytesIO(), kind, exif=exif, quality=100)
        files[f"1.{kind}"] = sink.getvalue()
    pillow_heif.from_pillow(Image.fromarray(up)).save(sink := io.BytesIO(), quality=90)
    files |= {"1.heic": sink.getvalue()}
    assert len(files["1.webp"]) > 65_536
    folder = write_files(tmp_path / "yolo", {f"images/{name}": data for name, data in files.items()})
    write_files(folder, {"labels/1.txt": b"0 0.5 0.25 0.2 0.4\n"})
    write_files(folder, {"data.yaml": yaml.safe_dump({"train": "images", "val": "images", "names": ["x"]}).encode()})
    audit = run(folder / "data.yaml", root=tmp_path / "audit", bounding_box="xywh_bbox")
    found = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert found == {f"{name}#xywh=120,10,60,80": "ok" for name in files}
    assert [record.message for record in caplog.records if "it is taken as train" in record.message] == [
        f"{folder}/data.yaml: {folder}/images is train and val: it is taken as train"
    ]


BOXES = [
    ("train/a/a00.jpg", [10.0, 20.0, 60.0, 50.0], "cat"),
    ("train/a/a00.jpg", [12.0, 22.0, 60.0, 50.0], "dog"),
    ("train/a/a00.jpg", [80.0, 60.0, 40.5, 40.0], "cat"),
    ("train/a/a01.jpg", [0.0, 0.0, 70.0, 70.0], "dog"),
    ("train/a/a01.jpg", [5.0, 5.0, -3.0, 7.0], "dog"),
    ("val/a/a03.jpg", [5000.0, 5.0, 30.0, 30.0], "cat"),
]


WANTED = {
    "train/a/a00.jpg#xywh=10,20,60,50": ("cat", "ok"),
    "train/a/a00.jpg#xywh=12,22,60,50": ("dog", "ok"),
    "train/a/a00.jpg#xywh=80,60,40.5,40": ("cat", "ok"),
    "train/a/a01.jpg#xywh=0,0,70,70": ("dog", "ok"),
    "train/a/a01.jpg#xywh=5,5,-3,7": ("dog", "unreadable"),
    "val/a/a03.jpg#xywh=5000,5,30,30": ("cat", "unreadable"),
}


BOXED = {name: FILES[name] for name in ("train/a/a00.jpg", "train/a/a01.jpg", "val/a/a03.jpg", "test/a/copy.jpg")}


def box_table() -> dict[str, list[Any]]:
    sides = zip(*(box for _, box, _ in BOXES), strict=True)
    columns = dict(zip(("col_x", "row_y", "width", "height"), map(list, sides), strict=True))
    return {"filename": [name for name, _, _ in BOXES], **columns, "label": [kind for _, _, kind in BOXES]}


def coco_list(folder: Path) -> Audit:
    (folder / "coco.json").write_text(json.dumps(coco_of(BOXED, BOXES)))
    return run(folder / "coco.json", root=folder.parent / "audit")


def csv_list(folder: Path) -> Audit:
    (folder / "boxes.csv").write_bytes(csv_of(box_table()))
    return run(folder / "boxes.csv", root=folder.parent / "audit")


def csv_labels(folder: Path) -> Audit:
    (folder.parent / "boxes.csv").write_bytes(csv_of(box_table()))
    return run(folder, root=folder.parent / "audit", rule={"table": str(folder.parent / "boxes.csv")})


def coco_labels(folder: Path) -> Audit:
    (folder.parent / "coco.json").write_text(json.dumps(coco_of(BOXED, BOXES)))
    rule = {"table": str(folder.parent / "coco.json")}
    return run(folder, root=folder.parent / "audit", rule=rule, bounding_box="xywh_bbox")


def test_rotated_boxes_are_not_those_of_a_table_of_upright_ones(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", BOXED)
    (tmp_path / "boxes.csv").write_bytes(csv_of(box_table()))
    arguments: dict[str, Any] = {"rule": {"table": str(tmp_path / "boxes.csv")}, "bounding_box": "rotated"}
    with pytest.raises(
        UsageError, match=r"'rotated' takes boxes of x1, y1, \.\.\., .*boxes\.csv has upright ones alone.*xywh_bbox"
    ):
        run(folder, root=tmp_path / "audit", **arguments)
    assert not (tmp_path / "audit").exists()
    name, (x, y, width, height), _ = BOXES[0]
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    header = "filename,x1,y1,x2,y2,x3,y3,x4,y4\n"
    (tmp_path / "boxes.csv").write_text(f"{header}{name},{','.join(map(str, corners))}\n")
    audit = run(folder, root=tmp_path / "audit", **arguments)
    assert len(audit.crops(rotated=True)) == 1


def frame(folder: Path) -> Audit:
    return run(folder, root=folder.parent / "audit", annotations=pd.DataFrame(box_table()))


def coco_dict(folder: Path) -> Audit:
    return run(folder, root=folder.parent / "audit", annotations=coco_of(BOXED, BOXES))


def arrow_table(folder: Path) -> Audit:
    return run(folder, root=folder.parent / "audit", annotations=pa.table(box_table()))


@pytest.mark.parametrize("made", [coco_list, csv_list, csv_labels, coco_labels, frame, coco_dict, arrow_table])
def test_boxes_are_audited_in_place_of_their_images(
    made: Callable[[Path], Audit], counted: Counter[str], tmp_path: Path
) -> None:
    """Each with its own label; one decode of each image; boxes of one image, which overlap, are no duplicates."""
    audit = made(write_files(tmp_path / "photos", BOXED))
    found = {row["uri"]: (row["label"], row["status"]) for row in rows(audit, "images")}
    assert found == WANTED
    assert counted["decodes"] == 3
    assert {row["kind"] for row in rows(audit, "duplicates")} == {"same_parent"}
    assert audit.table("groups").num_rows == 0
    assert {row["kind"] for row in rows(audit, "leaks")} <= {"same_scene", "look_alike"}


def test_rotated_boxes_of_members_of_archives(tmp_path: Path) -> None:
    corners = {f"{axis}{number}": [] for number in range(1, 5) for axis in "xy"}
    for name, value in zip(corners, (60, 20, 100, 60, 60, 100, 20, 60), strict=True):
        corners[name] = [value, value]
    table = {"filename": ["set.tar#train/a/a00.jpg", "test/a/copy.jpg"], **corners, "label": ["cat", "dog"]}
    photos = write_files(tmp_path / "photos", {"set.tar": tar_of(BOXED.items())})
    (tmp_path / "t.csv").write_bytes(csv_of(table))
    audit = run(photos, root=tmp_path / "audit", rule={"table": str(tmp_path / "t.csv")}, bounding_box="rotated")
    box = "corners=60,20,100,60,60,100,20,60"
    assert labels(audit) == {f"set.tar#test/a/copy.jpg#{box}": "dog", f"set.tar#train/a/a00.jpg#{box}": "cat"}
    assert {row["status"] for row in rows(audit, "images")} == {"ok"}
    assert [row["kind"] for row in rows(audit, "duplicates")] == ["same_pixels"]


def test_another_label_of_a_box_makes_no_new_one(tmp_path: Path) -> None:
    photos, table = write_files(tmp_path / "photos", BOXED), box_table()
    first = run(photos, root=tmp_path / "audit", annotations=table)
    second = run(photos, root=tmp_path / "audit", annotations={**table, "label": ["bird", *table["label"][1:]]})
    assert ids(second) == ids(first)
    assert labels(second)["train/a/a00.jpg#xywh=10,20,60,50"] == "bird"
    assert states(second)["extract"] == "done before"


@pytest.mark.parametrize("asked", ["xywh_bbox", "rotated"])
def test_boxes_that_are_wanted_and_nowhere_are_an_error(asked: str, tmp_path: Path) -> None:
    """On a new root and on one that has an audit; of a table, of a list, and of a table with boxes of other images."""
    photos = write_files(tmp_path / "photos", BOXED)
    for name, columns in (("t.csv", folders_of(list(BOXED))), ("b.csv", {**box_table(), "filename": ["x.jpg"] * 6})):
        (tmp_path / name).write_bytes(csv_of(columns))
    (photos / "l.csv").write_bytes(csv_of(folders_of(list(BOXED))))
    (tmp_path / "l.txt").write_text("".join(f"{photos}/{name}\n" for name in BOXED))
    calls: list[tuple[Path, dict[str, Any]]] = [
        (photos, {"rule": {"table": str(tmp_path / "t.csv")}}),
        (photos, {"rule": {"table": str(tmp_path / "b.csv")}}),
        (photos, {}),
        (photos / "l.csv", {}),
        (tmp_path / "l.txt", {}),
    ]
    for number, (source, config) in enumerate(calls):
        root = tmp_path / f"root-{number}"
        for _ in range(2):
            with pytest.raises(
                UsageError,
                match=r"boxes of annotations, and (there are none|none of 4 images has one)|upright ones alone",
            ):
                run(source, root=root, bounding_box=asked, accept_empty=True, **config)
            assert not list(root.glob("catalog/snapshot-*"))
            assert not list(root.glob("sessions"))
        made = run(source, root=root)
        with pytest.raises(UsageError, match=r"takes (the )?boxes of"):
            run(source, root=root, bounding_box=asked, **config)
        assert pipeline.open(root).audit_id == made.audit_id


NOWHERE: dict[str, Any] = {"filename": ["x.jpg"], "col_x": [0], "row_y": [0], "width": [50], "height": [50]}
NO_IMAGE: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "x.jpg", "width": 90, "height": 90}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]}],
    "categories": [{"id": 1, "name": "cat"}],
}


@pytest.mark.parametrize("kind", ["csv", "coco", "frame", "dict", "coco dict"])
def test_boxes_of_other_images_alone_are_an_error(kind: str, tmp_path: Path) -> None:
    """As a table of labels that names no image is, on a new root and on a used one; the table has its caller's name."""
    photos, root = write_files(tmp_path / "photos", BOXED), tmp_path / "audit"
    (tmp_path / "b.csv").write_bytes(csv_of(NOWHERE))
    (tmp_path / "c.json").write_text(json.dumps(NO_IMAGE))
    files = {"csv": str(tmp_path / "b.csv"), "coco": str(tmp_path / "c.json")}
    given = {"frame": pd.DataFrame(NOWHERE), "dict": NOWHERE, "coco dict": NO_IMAGE}
    annotations: Any = files.get(kind) or given[kind]
    said = f"the table {files.get(kind, 'annotations')} names none of the 4 images: the table has 'x.jpg', the source"
    for _ in range(2):
        with pytest.raises(UsageError, match=re.escape(said)):
            run(photos, root=root, annotations=annotations, accept_empty=True)
    assert not list(root.glob("catalog/snapshot-*"))
    made = run(photos, root=root)
    with pytest.raises(UsageError, match=re.escape(said)):
        run(photos, root=root, annotations=annotations)
    assert pipeline.open(root).audit_id == made.audit_id


@pytest.mark.parametrize("asked", ["row_y=20,col_x=10,height=50,width=60", "face", "object"])
def test_boxes_of_a_table_and_others_are_not_asked_for_together(asked: str, tmp_path: Path) -> None:
    """Neither on a new root, of which nothing is made, nor on a used one; a table of labels goes with any boxes."""
    photos, root = write_files(tmp_path / "photos", BOXED), tmp_path / "audit"
    (tmp_path / "b.csv").write_bytes(csv_of(box_table()))
    (tmp_path / "l.csv").write_bytes(csv_of({"filename": list(BOXED), "label": ["named"] * 4}))
    (tmp_path / "finder.onnx").write_bytes(model(np.array([[[100, 100, 300, 300, 0.9, 0]]], np.float32)))
    with_model = {"box_model": str(tmp_path / "finder.onnx")} if asked == "object" else {}
    config: dict[str, Any] = {"bounding_box": asked, **with_model}
    for boxes, name in ((str(tmp_path / "b.csv"), str(tmp_path / "b.csv")), (box_table(), "annotations")):
        said = f"bounding_box {asked!r} and the boxes of the table {name}: only one of both is audited in place of the"
        with pytest.raises(UsageError, match=re.escape(said)):
            run(photos, root=root, annotations=boxes, **config)
    assert not root.exists()
    run(photos, root=root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="only one of both"):
        run(photos, root=root, annotations=str(tmp_path / "b.csv"), **config)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    if asked != "face":  # which are in none of these photographs
        audit = run(photos, root=root, rule={"table": str(tmp_path / "l.csv")}, **config)
        assert {row["label"] for row in rows(audit, "images")} == {"named"}


def test_boxes_of_a_list_go_with_one_box_of_all_other_images(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", BOXED)
    listed = write_files(tmp_path / "listed", {"c.jpg": noise_jpeg(7)})
    box = {"filename": ["c.jpg"], "col_x": [5], "row_y": [6], "width": [30], "height": [40], "label": ["c"]}
    (listed / "l.csv").write_bytes(csv_of(box))
    audit = run(photos, listed / "l.csv", root=tmp_path / "audit", bounding_box="row_y=20,col_x=10,height=50,width=60")
    assert {row["uri"] for row in rows(audit, "images")} == {
        "c.jpg#xywh=5,6,30,40", *(f"{name}#xywh=10,20,60,50" for name in BOXED)
    }  # fmt: skip


def test_a_row_without_a_box_in_a_table_of_boxes_is_told_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its image is there: it is no row that matches none, which a box of another image is."""
    photos = write_files(tmp_path / "photos", {f"{name}.jpg": noise_jpeg(seed) for seed, name in enumerate("abc")})
    table = {"filename": ["a.jpg", "b.jpg", "c.jpg"]} | {name: [5, "", ""] for name in ("col_x", "row_y")}
    (tmp_path / "t.csv").write_bytes(csv_of(table | {name: [40, "", ""] for name in ("width", "height")}))
    with caplog.at_level("INFO"):
        audit = run(photos, root=tmp_path / "audit", rule={"table": str(tmp_path / "t.csv")}, progress=True)
    assert [row["uri"] for row in rows(audit, "images")] == ["a.jpg#xywh=5,5,40,40"]
    assert (
        f"2 rows of the table {tmp_path / 't.csv'} have no box: their images are not audited, as the table gives"
        in (caplog.text)
    )
    assert "match no image" not in caplog.text
    other = {**table, "filename": ["a.jpg", "b.jpg", "z.jpg"]} | {name: [5, "", 6] for name in ("col_x", "row_y")}
    (tmp_path / "u.csv").write_bytes(csv_of(other | {name: [40, "", 40] for name in ("width", "height")}))
    caplog.clear()
    run(photos, root=tmp_path / "audit", rule={"table": str(tmp_path / "u.csv")})
    said = f"1 rows of the table {tmp_path / 'u.csv'} match no image, such as 'z.jpg#xywh=6,6,40,40'"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [said]


def test_annotations_in_memory_are_called_what_their_caller_calls_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1), "b.jpg": noise_jpeg(2)})
    table = {"filename": ["a.jpg", "b.jpg", "c.jpg"], "label": ["x", "y", "x"]}
    with caplog.at_level("INFO"):
        run(photos, root=tmp_path / "audit", annotations=table, progress=True)
    assert "1 rows of the table annotations match no image, such as 'c.jpg'" in caplog.messages
    rule = f"rule for {photos}: splits and labels from the table annotations; what it has no column for, from folders"
    assert rule in caplog.messages
    with pytest.raises(UsageError, match=r"table annotations names none of the 2 images: the table has 'd\.jpg'"):
        run(photos, root=tmp_path / "audit", annotations={"filename": ["d.jpg"], "label": ["x"]})


def test_an_image_is_opened_by_pillow_as_a_box_is_cut(tmp_path: Path) -> None:
    """A box without margins has the pixels that Pillow crops."""
    image = Image.effect_noise((120, 90), 60)
    image.save(tmp_path / "a.png")
    image.crop((10, 20, 60, 70)).save(tmp_path / "b.png")
    (tmp_path / "l.csv").write_bytes(
        csv_of(
            {
                "filename": ["a.png", "b.png"],
                "col_x": [10, ""],
                "row_y": [20, ""],
                "width": [50, ""],
                "height": [50, ""],
            }
        )
    )
    audit = run(tmp_path / "l.csv", root=tmp_path / "audit", boxes={"horizontal": 0, "vertical": 0})
    assert [row["kind"] for row in rows(audit, "duplicates")] == ["same_pixels"]
