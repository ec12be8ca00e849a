"""`show` in every format: the table itself, whatever the names in it; a file is written part by part."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audited import SEED, Audited, noise_jpeg, planted_audit, rows, run, small_set, write_files
from dying import small_parts
from outcomes import shown
from planted import HOSTILE_NAMES, RAW_NAMES

from pipeline import printing
from pipeline import show as shows
from pipeline.audit import FINDINGS
from pipeline.cli import main
from pipeline.schemas import TABLES


@pytest.fixture(scope="module")
def planted() -> Audited:
    return planted_audit(SEED)


@pytest.mark.parametrize("name", FINDINGS)
def test_every_format_gives_the_table(
    name: str, planted: Audited, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Parquet and JSON hold the table itself, CSV its texts; to a file the same bytes as to standard output."""
    table = planted.audit.table(name)
    show = ["show", name, "--root", str(planted.root)]
    printed = {form: shown(capfdbinary, *show, f"--{form}") for form in ("parquet", "json", "csv")}

    assert pq.read_table(io.BytesIO(printed["parquet"])).equals(table)
    assert [json.loads(line) for line in printed["json"].splitlines()] == table.to_pylist()
    header, *lines = csv.reader(io.StringIO(printed["csv"].decode(), newline=""))
    assert header == table.column_names
    assert lines == [[as_cell(value) for value in row.values()] for row in table.to_pylist()]
    for form, data in printed.items():
        place = tmp_path / f"out.{form}"
        assert shown(capfdbinary, *show, f"--{form}", "--output", str(place)) == b""
        assert place.read_bytes() == data


def test_a_file_is_written_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every format a part of the table is a piece of the file; together they are the table."""
    small_parts(monkeypatch.setattr)
    audit = run(write_files(tmp_path / "photos", small_set(24)), root=tmp_path / "audit")
    parts = sum(1 for _ in audit.batches("images"))
    for form in ("csv", "json", "parquet"):
        pieces = [*shows._pieces(audit, shows.Request("images", None, None, form, "out"), None)]
        assert sum(bool(piece) for piece in pieces) > parts >= 3
        if form == "parquet":
            assert pq.read_table(io.BytesIO(b"".join(pieces))).equals(audit.images())


def as_cell(value: object) -> str:
    """A value as CSV holds it: text that a spreadsheet would take for a formula begins with a quote."""
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and text[:1] in set("=+-@\t\r\n") else text


def test_hostile_names_survive(planted: Audited, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Names with newlines, quotes, formulas and no UTF-8 come back from CSV and JSON; text shows one line a row."""
    show = ["show", "images", "--root", str(planted.root), "--columns", "uri"]
    listed = list(csv.reader(io.StringIO(shown(capfdbinary, *show, "--csv").decode(), newline="")))[1:]
    names = {uri.rpartition("/")[2] for (uri,) in listed}
    objects = [json.loads(line) for line in shown(capfdbinary, *show, "--json").splitlines()]

    assert {*HOSTILE_NAMES, *RAW_NAMES} <= names
    assert [item["uri"] for item in objects] == [uri for (uri,) in listed]
    lines = shown(capfdbinary, *show, "--top", "1000").decode().splitlines()
    assert len(lines) == 2 + planted.audit.table("images").num_rows + 1
    assert max(map(len, planted.audit.images()["uri"].to_pylist())) <= max(map(len, lines))  # a pipe has room for all
    assert any("new\\nline.jpg" in line for line in lines)
    assert not any("\u202e" in line for line in lines)


@pytest.mark.parametrize(("name", "flag"), [("a.csv", "--csv"), ("a.JSON", "--json"), ("a.jsonl", "--json")])
def test_a_file_is_written_as_its_name_says(
    name: str, flag: str, planted: Audited, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Not as a table for the eye, cut to 20 rows; a flag goes over the name."""
    show = ["show", "images", "--root", str(planted.root)]
    wanted = shown(capfdbinary, *show, flag)
    assert shown(capfdbinary, *show, "--output", str(tmp_path / name)) == b""
    assert (tmp_path / name).read_bytes() == wanted
    assert shown(capfdbinary, *show, "--parquet", "--output", str(tmp_path / name)) == b""
    assert (tmp_path / name).read_bytes()[:4] == b"PAR1"


def test_names_that_say_no_format_are_text() -> None:
    assert [*map(printing.format_of, ("x.parquet", "x.txt", "csv", ".csv", None))] == ["parquet", *["text"] * 4]


@pytest.mark.parametrize("command", [["show", "images"], ["search", "val"]])
def test_no_photo_is_written_over(
    planted: Audited, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], command: list[str]
) -> None:
    """A name that ends in something else may be that of another file: it is refused, and stays."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"a photo")
    words = [str(planted.photos) if word == "val" else word for word in command]
    assert main([*words, "--root", str(planted.root), "--output", str(photo)]) == 2
    assert photo.read_bytes() == b"a photo"
    assert b"want a name that ends in .csv" in capfdbinary.readouterr().err


def test_formulas_are_disarmed_at_the_start_of_a_cell(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Names in the source itself, where the uri is the name: what a spreadsheet would run starts with a quote."""
    data = next(iter(small_set(4).values()))
    photos = write_files(tmp_path / "photos", {f"{start}1+1.jpg": data for start in "=+-@\t\r\n"})
    run(photos, root=tmp_path / "audit")
    printed = shown(capfdbinary, "show", "images", "--root", str(tmp_path / "audit"), "--columns", "uri", "--csv")
    cells = [row[0] for row in csv.reader(io.StringIO(printed.decode(), newline=""))][1:]

    assert sorted(cells) == sorted(f"'{start}1+1.jpg" for start in "=+-@\t\r\n")


def test_top_shows_the_worst(planted: Audited, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """`--top` takes the worst rows in every format; columns are those asked for, in that order."""
    show = ["show", "outliers", "--root", str(planted.root), "--top", "6", "--columns", "score,uri"]
    worst = [json.loads(line) for line in shown(capfdbinary, *show, "--json").splitlines()]
    scores = sorted((row["score"] for row in rows(planted.audit, "outliers")), reverse=True)

    assert [list(row) for row in worst] == [["score", "uri"]] * 6
    assert [row["score"] for row in worst] == scores[:6]
    assert {row["uri"] for row in worst} == set(planted.truth.outliers)
    text = shown(capfdbinary, *show).decode().splitlines()
    assert text[0].split() == ["score", "uri"]
    assert len(text) == 2 + 6 + 1
    *listed, footer = shown(capfdbinary, "show", "outliers", "--root", str(planted.root)).decode().splitlines()
    assert len(listed) == 2 + 20
    flagged = planted.audit.summary()["outliers"]["flagged"]
    assert footer == f"20 of {len(scores)} rows; {flagged} outliers; --top N or --csv for all"


def test_empty_tables_are_tables(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A table without rows says so as text, has its header in CSV, its schema in Parquet, nothing in JSON."""
    (tmp_path / "photos").mkdir()
    run(tmp_path / "photos", root=tmp_path / "audit")
    show = ["show", "leaks", "--root", str(tmp_path / "audit")]

    assert b"no rows in leaks: no splits are known. Name one with --test" in shown(capfdbinary, *show)
    assert shown(capfdbinary, "show", "outliers", *show[2:]) == b"no rows in outliers\n"
    assert shown(capfdbinary, *show, "--csv").decode().strip() == ",".join(TABLES["leaks"].schema.names)
    assert shown(capfdbinary, *show, "--json") == b""
    found: pa.Table = pq.read_table(io.BytesIO(shown(capfdbinary, *show, "--parquet")))
    assert found.schema.equals(TABLES["leaks"].schema)
    assert found.num_rows == 0


def test_crops_are_shown_as_any_table(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """In the order of the images, in every format; a set without rotated boxes says so."""
    folder = write_files(tmp_path / "photos", {f"{at}.jpg": noise_jpeg(at) for at in range(3)})
    boxes = {
        "filename": ["0.jpg", "2.jpg", "2.jpg"], "label": ["a", "b", "c"],
        "col_x": [1, 2, 30], "row_y": [3, 4, 5], "width": [20, 21, 22], "height": [23, 24, 25],
    }  # fmt: skip
    audit = run(folder, root=tmp_path / "audit", annotations=boxes)
    root = ["--root", str(tmp_path / "audit")]
    wanted = audit.crops()
    assert [row["crop_filename"] for row in wanted.to_pylist()] == [
        "0.jpg#xywh=1,3,20,23", "2.jpg#xywh=2,4,21,24", "2.jpg#xywh=30,5,22,25"
    ]  # fmt: skip
    listed = [json.loads(line) for line in shown(capfdbinary, "show", "crops", "--json", *root).splitlines()]
    assert listed == wanted.to_pylist()
    assert shown(capfdbinary, "show", "crops", "--csv", "--top", "2", "--columns", "crop_filename,width", *root) == (
        b'crop_filename,width\r\n"0.jpg#xywh=1,3,20,23",20.0\r\n"2.jpg#xywh=2,4,21,24",21.0\r\n'
    )
    assert main(["show", "crops", "--output", str(tmp_path / "crops.parquet"), *root]) == 0
    assert pq.read_table(tmp_path / "crops.parquet").equals(wanted)
    text = shown(capfdbinary, "show", "crops", "--top", "1", *root).decode().splitlines()
    assert text[0].split() == wanted.column_names
    assert "0.jpg#xywh=1,3,20,23" in text[2]
    assert text[-1] == "1 of 3 rows; --top N or --csv for all"
    none = shown(capfdbinary, "show", "rotated_crops", *root).decode()
    assert none == "no rows in rotated_crops: no image has a box of that kind\n"
    assert main(["show", "crops", "--columns", "score", *root]) == 2
    assert b"table crops has no column score; it has: index, filename" in capfdbinary.readouterr().err
