"""Lists and annotations end to end: the tables of a folder from a list of its files, boxes, and what is wrong."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from archives_made import tar_of
from audited import LOCAL, assert_equal_tables, by_uri, noise_jpeg, rows, run, small_set, write_files
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.audit import FINDINGS, Audit
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.layout.images import paths_of
from pipeline.layout.snapshots import Snapshot, SourceRecord
from pipeline.sources.addresses import located, resolve
from pipeline.stages import reads
from pipeline.storage import Store

FILES = small_set(10)
NAMES = list(FILES)
STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("loose")
    return run(write_files(folder / "photos", FILES), root=folder / "audit")


def csv_of(columns: dict[str, list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def parquet_of(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def folders_of(names: list[str]) -> dict[str, list[Any]]:
    """The splits and labels that folders give, as columns."""
    parts = [name.split("/") for name in names]
    return {"filename": names, "split": [part[0] for part in parts], "label": [part[1] for part in parts]}


def inventory_of(store: Store, names: list[str]) -> bytes:
    """The manifest of an S3 Inventory of these objects, whose data file is beside it."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    bucket, _, prefix = store.uri.split("/", 3)[3].partition("/")
    for name in names:
        writer.writerow([bucket, f"{prefix}/{name}" if prefix else name, store.stat(name).size, store.stat(name).etag])
    data = gzip.compress(text.getvalue().encode())
    store.put("inventory/data.csv.gz", data)
    key = "/".join(filter(None, [prefix, "inventory/data.csv.gz"]))
    files = [{"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}]
    schema = "Bucket, Key, Size, ETag"
    value = {"sourceBucket": bucket, "fileFormat": "CSV", "fileSchema": schema, "files": files}
    return json.dumps(value).encode()


def coco_of(files: dict[str, bytes], boxes: list[tuple[str, list[float], str]]) -> dict[str, Any]:
    names, kinds = list(files), sorted({kind for _, _, kind in boxes})
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": number, "name": kind} for number, kind in enumerate(kinds, 1)],
        "annotations": [
            {"id": number, "image_id": names.index(name), "category_id": kinds.index(kind) + 1, "bbox": box}
            for number, (name, box, kind) in enumerate(boxes)
        ],
    }


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


def assert_as_loose(audit: Audit, loose: Audit, prefix: str) -> None:
    """Every table is that of the loose files, but for what stands in front of names."""
    for name in FINDINGS:
        ours, theirs = (
            [{key: _without(value, prefix) for key, value in row.items() if key != "path"} for row in rows(whose, name)]
            for whose in (audit, loose)
        )
        assert ours == theirs, name


def _without(value: Any, prefix: str) -> Any:
    return value.removeprefix(prefix) if isinstance(value, str) else value


# Lists


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.txt", "\n".join(reversed(NAMES)).encode()),
        ("l.lst.gz", gzip.compress("\n".join([*NAMES, NAMES[0], "# end"]).encode())),
        ("l.csv", csv_of(folders_of(NAMES))),
        ("l.parquet", parquet_of(folders_of(NAMES))),
        ("l.json", json.dumps(coco_of(FILES, [])).encode()),
    ],
)
def test_a_list_has_the_tables_of_its_folder(name: str, data: bytes, loose: Audit, tmp_path: Path) -> None:
    """In any order, with repeats; the files beside the listed ones are no matter."""
    write_files(tmp_path, {**FILES, "other.jpg": noise_jpeg(1), name: data})
    audit = run(tmp_path / name, root=tmp_path / "audit", shard_size=5)
    assert_equal_tables(audit, loose)
    assert {row["path"] for row in rows(audit, "images")} == {f"{tmp_path}/{uri}" for uri in NAMES}


def test_whole_paths_have_the_splits_and_labels_of_their_common_folder(loose: Audit, tmp_path: Path) -> None:
    """The list lies elsewhere: a uri is the whole path, and `path` shows it once."""
    photos = write_files(tmp_path / "set", FILES)
    listed = write_files(tmp_path / "lists", {"l.txt": "\n".join(f"{photos}/{uri}" for uri in NAMES).encode()})
    audit = run(listed / "l.txt", root=tmp_path / "audit")
    assert [row["uri"] for row in rows(audit, "images")] == [f"{photos}/{uri}" for uri in NAMES]
    assert [row["path"] for row in rows(audit, "images")] == [f"{photos}/{uri}" for uri in NAMES]
    assert_as_loose(audit, loose, f"{photos}/")


@pytest.mark.parametrize("kind", ["text", "csv", "whole", "inventory"])
def test_lists_on_an_object_store(kind: str, loose: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), f"lists-{kind}")
    for name, data in FILES.items():
        store.put(name, data)
    sizes = {"size_bytes": [len(data) for data in FILES.values()]}
    data, name = {
        "text": lambda: ("\n".join(NAMES).encode(), "l.txt"),
        "csv": lambda: (csv_of({**folders_of(NAMES), **sizes}), "l.csv"),
        "whole": lambda: ("\n".join(f"{store.uri}/{name}" for name in NAMES).encode(), "l.txt"),
        "inventory": lambda: (inventory_of(store, NAMES), "manifest.json"),
    }[kind]()
    store.put(name, data)
    on_disk = write_files(tmp_path, {name: data}) / name
    source = str(on_disk) if kind == "whole" else f"{store.uri}/{name}"
    audit = run(source, root=tmp_path / "root", storage=STORAGE)
    assert [row["path"] for row in rows(audit, "images")] == [f"{store.uri}/{uri}" for uri in NAMES]
    assert_as_loose(audit, loose, f"{store.uri}/")


def test_sizes_that_a_list_tells_are_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "told")
    for name, data in FILES.items():
        store.put(name, data)
    store.put("manifest.json", inventory_of(store, NAMES))
    with FaultProxy(moto_port()) as proxy:
        uri = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}/manifest.json"
        pipeline.run(uri, root=tmp_path / "root", where=LOCAL, storage=STORAGE)
        heads = [path for method, path, _ in proxy.log if method == "HEAD" and path.endswith(".jpg")]
        gets = [path for method, path, _ in proxy.log if method == "GET" and path.endswith(".jpg")]
    assert not heads
    assert len(set(gets)) == len(FILES)


def test_archives_in_a_list_are_looked_into(loose: Audit, tmp_path: Path) -> None:
    write_files(tmp_path / "tars", {"set.tar": tar_of(FILES.items()), "x.JPG": noise_jpeg(5)})
    write_files(tmp_path / "lists", {"l.txt": b"../tars/set.tar\n../tars/x.JPG\n"})
    audit = run(tmp_path / "lists" / "l.txt", root=tmp_path / "audit")
    assert set(ids(audit)) == {f"{tmp_path}/tars/set.tar#{uri}" for uri in NAMES} | {f"{tmp_path}/tars/x.JPG"}
    write_files(tmp_path / "lists", {"l.txt": b"../tars/set.tar\n"})
    assert_as_loose(run(tmp_path / "lists" / "l.txt", root=tmp_path / "other"), loose, f"{tmp_path}/tars/set.tar#")


def ids(audit: Audit) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in rows(audit, "images")}


def labels(audit: Audit) -> dict[str, str]:
    return {row["uri"]: row["label"] for row in rows(audit, "images")}


def states(audit: Audit) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in audit.published.session["stages"]}


def test_a_list_that_changes(tmp_path: Path) -> None:
    """A label alone, one image more, one less: what stays keeps its id and is not extracted again."""
    folder, root = write_files(tmp_path / "set", FILES), tmp_path / "audit"
    columns = {"filename": NAMES, "label": ["x"] * len(NAMES)}
    source = write_files(folder, {"l.csv": csv_of(columns)}) / "l.csv"
    first = run(source, root=root)
    assert set(labels(first).values()) == {"x"}
    again = run(source, root=root)
    assert states(again)["annotate"] == "done before"

    source.write_bytes(csv_of({**columns, "label": ["y", *["x"] * (len(NAMES) - 1)]}))
    other = run(source, root=root)
    assert ids(other) == ids(first)
    assert states(other)["extract"] == "done before"
    assert labels(other) == {**labels(first), NAMES[0]: "y"}
    stored = run(root=root, start="features")
    assert labels(stored) == labels(other)

    write_files(folder, {"new/n.jpg": noise_jpeg(3)})
    source.write_bytes(csv_of({"filename": [*NAMES, "new/n.jpg"], "label": ["x"] * (len(NAMES) + 1)}))
    assert ids(run(source, root=root)) == {**ids(first), "new/n.jpg": len(NAMES)}
    source.write_bytes(csv_of({"filename": [*NAMES[1:], "new/n.jpg"], "label": ["x"] * len(NAMES)}))
    fewer = run(source, root=root)
    assert ids(fewer) == {uri: number for uri, number in {**ids(first), "new/n.jpg": 13}.items() if uri != NAMES[0]}


def test_a_file_that_changes_under_its_list(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", {**FILES, "l.txt": "\n".join(NAMES).encode()})
    first = run(folder / "l.txt", root=tmp_path / "audit")
    write_files(folder, {NAMES[1]: noise_jpeg(77, 120)})
    after = ids(run(folder / "l.txt", root=tmp_path / "audit"))
    assert {uri for uri, number in after.items() if ids(first)[uri] != number} == {NAMES[1]}


def test_missing_files_are_rows_until_they_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_files(tmp_path / "set", {**FILES, "l.txt": "\n".join([*NAMES, "gone.jpg"]).encode()})
    audit = run(folder / "l.txt", root=tmp_path / "audit", max_failed_share=0.5)
    assert by_uri(audit, "invalid")["gone.jpg"]["status"] == "missing"
    assert any("1 of its files are not there or closed, such as 'gone.jpg'" in line for line in caplog.messages)
    write_files(folder, {"gone.jpg": noise_jpeg(4)})
    audit = run(folder / "l.txt", root=tmp_path / "audit")
    assert by_uri(audit, "images")["gone.jpg"]["status"] == "ok"


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_name_that_no_bucket_can_hold_is_missing(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A line that is not UTF-8, as a URL in a list on disk and as a name in one that lies in the bucket."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "bytes")
    for name, data in FILES.items():
        store.put(name, data)
    lines = [*(name.encode() for name in NAMES), b"caf\xe9.jpg", b"caf\xe9.tar"]
    prefix = f"{store.uri}/" if is_whole else ""
    data = b"\n".join(prefix.encode() + line for line in lines)
    store.put("l.txt", data)
    on_disk = write_files(tmp_path, {"l.txt": data}) / "l.txt"
    source = str(on_disk) if is_whole else f"{store.uri}/l.txt"
    audit = run(source, root=tmp_path / "root", storage=STORAGE, max_failed_share=0.5)
    found = {row["uri"].removeprefix(prefix): row["status"] for row in rows(audit, "images")}
    assert {name for name, status in found.items() if status == "missing"} == {"caf%E9.jpg", "caf%E9.tar"}
    assert len(found) == len(NAMES) + 2


def test_what_a_rule_says_goes_before_the_list(tmp_path: Path) -> None:
    """And the list before folders: the table names two files, the list all but gives the first no label."""
    listed = csv_of({"filename": NAMES, "label": ["", *["list"] * (len(NAMES) - 1)]})
    table = csv_of({"filename": NAMES[:2], "label": ["table", ""]})
    folder = write_files(tmp_path / "set", {**FILES, "l.csv": listed, "t.csv": table})
    audit = run(folder / "l.csv", root=tmp_path / "audit", rule={"table": str(folder / "t.csv")})
    assert labels(audit) == {name: "table" if name == NAMES[0] else "list" for name in NAMES}
    assert {row["split"] for row in rows(audit, "images")} == {"train", "val", "test"}


def test_names_of_any_bytes(tmp_path: Path) -> None:
    odd = [b"caf\xe9.jpg", "ü #1%41.jpg".encode(), b" blank .jpg"]
    for number, name in enumerate(odd):
        (tmp_path / os.fsdecode(name)).write_bytes(noise_jpeg(number))
    (tmp_path / "l.txt").write_bytes(b"\n".join(odd))
    by_list, by_folder = run(tmp_path / "l.txt", root=tmp_path / "a"), run(tmp_path, root=tmp_path / "b")
    assert_equal_tables(by_list, by_folder)
    assert {row["status"] for row in rows(by_list, "images")} == {"ok"}


addresses = st.text("ab./#%: ü", max_size=12)
starts = st.sampled_from(["", "/", "/d/", "s3://bkt/", "minio://h:1/bkt/", "s3://bkt/p/"])


@given(st.sampled_from(["/d", "/", "/d/e", "s3://bkt", "s3://bkt/p", "minio://h:1/bkt/p"]), starts, addresses)
@settings(max_examples=300)
def test_the_key_of_an_image_leads_back_to_its_store(base: str, start: str, address: str) -> None:
    try:
        found = resolve(start + address, base)
    except UsageError:
        return
    assert located(found.uri, base) == (found.place, found.key)
    (path,) = paths_of(
        pa.table({"source": pa.array([0], pa.int16()), "uri": [found.uri], "raw_key": pa.nulls(1, pa.binary()),
                  "fragment": pa.nulls(1, pa.string())}),
        Snapshot(1, 1, (SourceRecord(f"{base.rstrip('/')}/l.txt", "", "list"),), (), "", 0, ""),
    ).to_pylist()  # fmt: skip
    assert path == f"{found.place.rstrip('/')}/{found.key}"


# YOLO


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


# Boxes


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


# Python


def test_a_python_list_of_files_and_folders(tmp_path: Path) -> None:
    """The files are one source of the root, whatever they are the next time; a file of a named folder is in it once."""
    photos = write_files(tmp_path / "photos", FILES)
    single = write_files(tmp_path / "more", {"x.jpg": noise_jpeg(1), "y.jpg": noise_jpeg(2), "z.jpg": noise_jpeg(3)})
    sources = [single / "x.jpg", str(single / "y.jpg"), photos, photos / NAMES[0]]
    audit = run(sources, root=tmp_path / "audit")
    paths = {row["path"]: row["image_id"] for row in rows(audit, "images")}
    assert set(paths) == {f"{single}/x.jpg", f"{single}/y.jpg", *(f"{photos}/{name}" for name in NAMES)}
    again = run([single / "y.jpg", single / "z.jpg", photos], root=tmp_path / "audit")
    later = {row["path"]: row["image_id"] for row in rows(again, "images")}
    assert set(later) - set(paths) == {f"{single}/z.jpg"}
    assert all(paths[path] == number for path, number in later.items() if path in paths)


def test_one_image_is_a_source(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": noise_jpeg(1), "b.jpg": noise_jpeg(2)})
    assert list(ids(run(str(tmp_path / "a.jpg"), root=tmp_path / "r"))) == ["a.jpg"]


def test_labels_of_a_data_frame(loose: Audit, tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", FILES)
    audit = run(photos, root=tmp_path / "audit", annotations=pd.DataFrame(folders_of(NAMES)))
    assert_equal_tables(audit, loose)


# Bad input


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("l.csv", b"name,label\na.jpg,x\n", "wanted one of filename"),
        ("l.csv", b'filename,label\n"a.jpg,x\n', "line 2"),
        ("l.csv", b"filename,col_x,row_y\na.jpg,1,2\n", "width"),
        ("l.txt", b"https://example.org/a.jpg\n", "line 1"),
        ("l.txt", b"\x00\x01\x02", "neither text nor Parquet"),
        ("l.json", b'{"images": [', "l.json"),
        ("l.parquet", parquet_of({"label": ["x"]}), "wanted one of filename"),
        ("l.yaml", b"train: !!python/object/apply:os.system ['true']\n", "tag"),
        ("l.yaml", b"nc: 3\n", "wanted train, val or test"),
    ],
)
def test_what_is_no_list_is_refused(
    name: str, data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "in", {name: data, "a.jpg": noise_jpeg(1)})
    call = ["run", str(tmp_path / "in" / name), "--root", str(tmp_path / "root"), "--runner", "local", "--quiet"]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert said in error
    assert name in error
    assert not (tmp_path / "root").exists()


def test_a_folder_in_a_list_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", {**FILES, "l.txt": b"train/a/a00.jpg\nval\n"})
    with pytest.raises(UsageError, match="names the folder 'val'"):
        run(folder / "l.txt", root=tmp_path / "audit")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"annotations": [1, 2]}, "wanted a DataFrame"),
        ({"annotations": {"name": ["a.jpg"]}}, "wanted one of filename"),
        ({"annotations": {"filename": ["a.jpg"]}}, "no image a label, a split or a box"),
        ({"annotations": {"filename": ["a.jpg"], "label": ["x"]}, "rule": {"pattern": "(?P<label>.)"}}, "only one"),
        ({"bounding_box": "xywh_bbox"}, "there are none"),
    ],
)
def test_what_is_no_annotation_is_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.jpg": noise_jpeg(1)})
    with pytest.raises(UsageError, match=said):
        run(tmp_path / "in", root=tmp_path / "root", **config)
    assert not (tmp_path / "root").exists()


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
