"""Tables of labels without boxes: names as the tables of an audit have them, whole paths, and cells without a value."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives_made import tar_of
from audited import by_uri, noise_jpeg, rows, run, write_files
from lists_made import csv_of, parquet_of
from videos_made import KINDS, encoded, picture

from pipeline.audit import Audit
from pipeline.errors import UsageError
from pipeline.sources.annotated import normal_table
from pipeline.sources.list_kinds import read_list
from pipeline.sources.listed import Tally
from pipeline.sources.tabular import read_label_table

NAMES = ["arc.tar#m#0.jpg", "x #1.jpg", "y%20.jpg", "plain/2.jpg"]


def set_of(folder: Path) -> Path:
    files = {name: noise_jpeg(number) for number, name in enumerate(NAMES[1:], 1)}
    return write_files(folder / "set", {**files, "arc.tar": tar_of([("m#0.jpg", noise_jpeg(0))])})


def labels(audit: Audit) -> dict[str, tuple[str | None, str | None]]:
    return {uri: (row["split"], row["label"]) for uri, row in by_uri(audit, "images").items()}


def test_the_uris_of_an_audit_are_names_of_a_table(tmp_path: Path) -> None:
    """Of members of archives and of names that are escaped in a uri; the own name goes first where both are there."""
    folder = set_of(tmp_path)
    uris = sorted(by_uri(run(folder, root=tmp_path / "audit"), "images"))
    assert uris == ["arc.tar#m%230.jpg", "plain/2.jpg", "x %231.jpg", "y%2520.jpg"]
    table = "filename,label\n" + "".join(f"{uri},{number}\n" for number, uri in enumerate(uris))
    (tmp_path / "uris.csv").write_text(table)
    audit = run(folder, root=tmp_path / "audit", rule={"table": str(tmp_path / "uris.csv")})
    assert [row[1] for _, row in sorted(labels(audit).items())] == ["0", "1", "2", "3"]

    (tmp_path / "own.csv").write_text("filename,label\narc.tar/m#0.jpg,own\nx #1.jpg,own\nx %231.jpg,other\n")
    audit = run(folder, root=tmp_path / "audit", rule={"table": str(tmp_path / "own.csv")})
    assert {row[1] for uri, row in labels(audit).items() if "m%" in uri or "x %" in uri} == {"own"}


def test_a_table_is_made_out_once_and_anew_once_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the check, the stored copy and the boxes of a first run; what is to be said of it is said by each run."""
    folder, table = set_of(tmp_path), tmp_path / "labels.csv"
    made = list[str]()

    def counted(data: bytes, address: str, base: str, said: list[str]) -> bytes:
        made.append(address)
        return normal_table(data, address, base, said)

    monkeypatch.setattr("pipeline.layout.annotations.normal_table", counted)
    for label in ("cat", "dog"):
        table.write_text(f"filename,label\nplain/2.jpg,{label}\nplain/2.jpg,other\n")
        caplog.clear()
        audit = run(folder, root=tmp_path / label, rule={"table": str(table)})
        assert labels(audit)["plain/2.jpg"] == (None, label)
        assert made == [str(table)]
        assert sum("labels.csv" in line for line in caplog.messages) == 1
        made.clear()


def test_whole_paths_behind_a_relative_name(tmp_path: Path) -> None:
    folder = set_of(tmp_path)
    table = f"filename,label\nplain/2.jpg,relative\n{folder}/x #1.jpg,whole\n{folder}/y%20.jpg,whole\n"
    (tmp_path / "t.csv").write_text(table)
    audit = run(folder, root=tmp_path / "audit", rule={"table": str(tmp_path / "t.csv")})
    assert [row[1] for row in labels(audit).values() if row[1]] == ["relative", "whole", "whole"]


def boxes_of(names: list[str]) -> bytes:
    rows = "".join(f"{name},{at},2,2,60,60\n" for at, name in enumerate(names))
    return f"filename,label,col_x,row_y,width,height\n{rows}".encode()


def test_frames_and_repeated_members_by_their_own_names(tmp_path: Path) -> None:
    """As the tables of an audit name them, with and without boxes; a video stands for its frames."""
    video = encoded(KINDS["avi mjpeg"], map(picture, range(3)), rate=1)
    tar = tar_of([("x.jpg", noise_jpeg(1)), ("x.jpg", noise_jpeg(2)), ("y#z.jpg", noise_jpeg(3))])
    folder = write_files(tmp_path / "set", {"v.avi": video, "a.tar": tar})
    every: dict[str, Any] = {"root": tmp_path / "audit", "video": {"fps": 1}}
    images = by_uri(run(folder, **every), "images")
    assert list(images) == [
        "a.tar#x.jpg",
        "a.tar#x.jpg#2",
        "a.tar#y%23z.jpg",
        *(f"v.avi#t={at}.000" for at in range(3)),
    ]
    wanted = dict(zip(images, "012345", strict=True))
    for name, names in (("uris", [*images]), ("paths", [row["path"] for row in images.values()])):
        table = "filename,label\n" + "".join(f"{text},{at}\n" for at, text in enumerate(names))
        write_files(tmp_path, {f"{name}.csv": table.encode(), f"{name}-boxes.csv": boxes_of(names)})
        audit = run(folder, rule={"table": str(tmp_path / f"{name}.csv")}, **every)
        assert {uri: row[1] for uri, row in labels(audit).items()} == wanted
        boxed = run(folder, rule={"table": str(tmp_path / f"{name}-boxes.csv")}, **every)
        assert {uri.partition("#xywh")[0]: row[1] for uri, row in labels(boxed).items()} == wanted

    (tmp_path / "video.csv").write_text("filename,label\nv.avi,all\nv.avi#t=1.000,own\n")
    audit = run(folder, rule={"table": str(tmp_path / "video.csv")}, **every)
    assert [row[1] for uri, row in labels(audit).items() if "#t=" in uri] == ["all", "own", "all"]


def test_whole_paths_of_boxes_above_the_source(tmp_path: Path) -> None:
    """Names that are many folders' are told apart, wherever the table lies, and of one source are no other's."""
    files = {f"{split}/{label}/1.jpg": noise_jpeg(at) for at, (split, label) in enumerate(product("ab", "xy"))}
    folder = write_files(tmp_path / "photos", files)
    whole = [str(folder / name) for name in files]
    write_files(tmp_path, {"t.csv": boxes_of(whole)})
    found = labels(run(folder, root=tmp_path / "file", rule={"table": str(tmp_path / "t.csv")}))
    assert {uri.partition("#")[0]: row[1] for uri, row in found.items()} == dict(zip(files, "0123", strict=True))
    given = {"filename": whole[:2], "label": ["0", "1"]}
    audit = run(folder / "a", folder / "b", root=tmp_path / "given", annotations=given)
    assert [row["label"] for row in rows(audit, "images")] == ["0", "1", None, None]


def test_a_cell_without_a_value_is_no_label_and_a_column_of_them_no_column(tmp_path: Path) -> None:
    """NaN, which is what pandas writes for a missing number, is no class of its own; lists and tables agree."""
    folder = write_files(tmp_path / "val", {f"cat/{number}.jpg": noise_jpeg(number) for number in range(2)})
    names = [f"cat/{number}.jpg" for number in range(2)]
    columns = {"filename": names, "label": np.array([3.0, np.nan]), "split": pa.nulls(2, pa.string())}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    write_files(folder, {"l.parquet": sink.getvalue(), "l.csv": b"filename,label\ncat/0.jpg,\ncat/1.jpg,\n"})
    wanted = {"numbers": [("val", "3"), ("val", None)], "empty": [("val", "cat"), ("val", "cat")]}
    for name, said in (("l.parquet", wanted["numbers"]), ("l.csv", wanted["empty"])):
        listed = run(folder / name, root=tmp_path / f"listed-{name}")
        table = run(folder, root=tmp_path / f"table-{name}", rule={"table": str(folder / name), "default_split": None})
        assert [*labels(listed).values()] == [*labels(table).values()] == said


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("given", ["source", "table", "python"])
def test_white_space_around_a_split_or_label_is_no_part_of_it(form: str, given: str, tmp_path: Path) -> None:
    """In lists, tables and annotations; a file name keeps its own."""
    names = ["0.jpg", " 1.jpg", "2.jpg"]
    columns = {"filename": names, "label": ["cat", " cat\t", "\u00a0"], "split": ["train ", " train", " Testing "]}
    folder = write_files(tmp_path / "set", {name: noise_jpeg(number) for number, name in enumerate(names)})
    table = write_files(folder, {f"t.{form}": csv_of(columns) if form == "csv" else parquet_of(columns)}) / f"t.{form}"
    more = {"source": {}, "table": {"rule": {"table": str(table)}}, "python": {"annotations": columns}}[given]
    audit = run(table if given == "source" else folder, root=tmp_path / "audit", **more)
    wanted = {"0.jpg": ("train", "cat"), " 1.jpg": ("train", "cat"), "2.jpg": ("test", None)}
    assert labels(audit) == wanted


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("given", ["source", "table", "python"])
def test_lists_tables_and_annotations_take_the_same_columns_and_repeats(
    form: str, given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Columns go by their names in any case; of rows that name an image again the first stays, with a warning where
    another says otherwise."""
    names = ["x/0.jpg", "x/1.jpg", "x/0.jpg", "./x/1.jpg", "x/0.jpg"]
    columns = {" File_Name": names, "LABEL ": ["cat", "dog", "cat", "cow", "cat"], "Split": ["train"] * 5}
    folder = write_files(tmp_path / "set", {f"x/{number}.jpg": noise_jpeg(number) for number in range(2)})
    table = write_files(folder, {f"t.{form}": csv_of(columns) if form == "csv" else parquet_of(columns)}) / f"t.{form}"
    more = {"source": {}, "table": {"rule": {"table": str(table)}}, "python": {"annotations": columns}}[given]
    audit = run(table if given == "source" else folder, root=tmp_path / "audit", **more)
    assert labels(audit) == {"x/0.jpg": ("train", "cat"), "x/1.jpg": ("train", "dog")}
    assert [line for line in caplog.messages if "1 rows give an image or box another label or split" in line]


def test_of_two_spellings_of_a_column_the_plain_one_is_read() -> None:
    table = b"Label,filename,label\n7,a.jpg,cat\n"
    (batch,) = read_list(io.BytesIO(table), "t.csv", "/data", Tally())
    assert batch["label"].to_pylist() == ["cat"]
    with pytest.raises(UsageError, match="column label more than once"):
        list(read_list(io.BytesIO(b"Label,filename,LABEL\n7,a.jpg,cat\n"), "t.csv", "/data", Tally()))


@pytest.mark.parametrize("column", ["file_name", "path", "image_path", "image", "uri"])
def test_a_table_of_labels_takes_every_name_of_the_column_of_files(column: str) -> None:
    data = f"label,{column}\ncat,b.jpg\ndog,a.jpg\ncat,b.jpg\n".encode()
    said: list[str] = []
    table = read_label_table(normal_table(data, "t.csv", "/data", said), "t.csv")
    assert (table.names.to_pylist(), said) == (["b.jpg", "a.jpg"], [])
