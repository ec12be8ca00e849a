"""What a run says of a list, of annotations and of label files: what it left out, and the line of what is bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audited import by_uri, noise_jpeg, run, write_files

FILES = {f"images/{number}.jpg": noise_jpeg(number, 100) for number in range(4)}
BOX = [0, 0, 50, 50]
COCO: dict[str, Any] = {
    "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(4)],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 1, "bbox": BOX},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "iscrowd": 1},
        {"id": 2, "image_id": 2, "category_id": 9, "bbox": BOX},
        {"id": 3, "image_id": 99, "category_id": 1, "bbox": BOX},
        {"id": 4, "image_id": 3, "category_id": 1, "bbox": [0, 0, -5, 50]},
        {"id": 5, "image_id": 0, "category_id": 9, "bbox": BOX},
    ],
}
SAID = (
    "1 crowds (first:",
    "1 annotations of images that are not listed (first:",
    "annotations of categories without a name (first:",
    "annotations[4]",
    "1 bad boxes (first:",
    "width -5",
    "1 rows give an image or box another label or split",
)


@pytest.mark.parametrize("given", ["source", "table", "python"])
def test_coco_says_what_it_leaves_out(given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a source, as `--labels` and as `annotations=`."""
    folder = write_files(tmp_path, {**FILES, "images/coco.json": json.dumps(COCO).encode()}) / "images"
    sources = [folder / "coco.json"] if given == "source" else [folder]
    more: dict[str, Any] = {"table": {"rule": {"table": str(folder / "coco.json")}}, "python": {"annotations": COCO}}
    run(*sources, root=tmp_path / "audit", max_failed_share=1.0, **more.get(given, {}))
    said = "\n".join(caplog.messages)
    for words in SAID:
        assert words.replace("annotations[4]", "annotation 4") in said
    assert said.count("1 crowds") == 1


def test_a_bad_line_of_a_table_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = b"filename,label,col_x,row_y,width,height\n0.jpg,a,0,0,50,50\n1.jpg,b,0,0,5x,50\n2.jpg,b,,0,50,50\n"
    folder = write_files(tmp_path, {**FILES, "images/t.csv": table}) / "images"
    run(folder / "t.csv", root=tmp_path / "audit", max_failed_share=1.0)
    assert any(
        "2 bad boxes (first:" in line and "t.csv line 3: width '5x' is no number" in line for line in caplog.messages
    )


def test_a_bad_line_of_a_label_file_is_named_and_keeps_its_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = b"0 0.5 0.5 0.5 0.5\n1 0.5 0.5 1.2 0.5\ncat 1 1 1 1\nx\n"
    text = b"train: images\nnames: [cat, dog]\n"
    write_files(tmp_path, {**FILES, "labels/0.txt": labels, "set.yaml": text})
    audit = run(tmp_path / "set.yaml", root=tmp_path / "audit", bounding_box="xywh_bbox", max_failed_share=1.0)
    assert by_uri(audit, "images")["0.jpg#xywh=-10,25,120,50"]["label"] == "dog"
    said = next(line for line in caplog.messages if "bad boxes" in line)
    assert "3 bad boxes (first:" in said
    assert "labels/0.txt line 2: 1.2 is no share of the width or height" in said


def test_a_class_beyond_the_names_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the first place; its number is the label. Without any names numbers are the labels, and nothing is odd."""
    labels = b"0 0.5 0.5 0.5 0.5\n9 0.5 0.5 0.6 0.5\n3 0.5 0.5 0.7 0.5\n"
    write_files(tmp_path, {**FILES, "labels/0.txt": labels})
    for name, names in (("bare", b""), ("named", b"names: [cat, dog, cow]\n")):
        caplog.clear()
        place = write_files(tmp_path, {f"{name}.yaml": b"train: images\n" + names}) / f"{name}.yaml"
        audit = run(place, root=tmp_path / name, bounding_box="xywh_bbox")
        found = {row["label"] for row in by_uri(audit, "images").values()}
        assert found >= {"cat" if names else "0", "9", "3"}
        said = [line for line in caplog.messages if "classes beyond the names" in line]
        assert len(said) == bool(names)
    assert "2 boxes of classes beyond the names (first: " in said[0]
    assert "labels/0.txt line 2: class 9 of 3); their label is its number" in said[0]


@pytest.mark.parametrize("given", ["source", "table", "python"])
def test_images_of_several_categories_are_counted(given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [(0, 1), (0, 1), (1, 1), (1, 2), (2, 2), (2, 1), (2, 1)]
    coco = {
        **COCO,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": at, "image_id": image, "category_id": kind} for at, (image, kind) in enumerate(pairs)],
    }
    folder = write_files(tmp_path, {**FILES, "images/coco.json": json.dumps(coco).encode()}) / "images"
    sources = [folder / "coco.json"] if given == "source" else [folder]
    more: dict[str, Any] = {"table": {"rule": {"table": str(folder / "coco.json")}}, "python": {"annotations": coco}}
    audit = run(*sources, root=tmp_path / "audit", **more.get(given, {}))
    assert [row["label"] for _, row in sorted(by_uri(audit, "images").items())] == ["cat", None, None, None]
    (said,) = [line for line in caplog.messages if "several categories" in line]
    assert "2 images of several categories without a box (first: " in said
    assert "images[1])" in said
