"""Which split and label the images of a list get: its columns, its name, and folders, in that order."""

from __future__ import annotations

from pathlib import Path

import pytest
from audited import rows, run, small_set, write_files

from pipeline.audit import Audit

FILES = small_set(10)
CATS = [name for name in FILES if name.startswith("train/a/")]


def splits(audit: Audit) -> list[str | None]:
    return [row["split"] for row in rows(audit, "images")]


def lines(*names: str) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


@pytest.mark.parametrize("start", ["", "../set/", "{photos}/"])
@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_the_name_of_a_list_goes_before_folders(start: str, ending: str, tmp_path: Path) -> None:
    """`train.txt` and `val.txt` over files of one `train` folder: the image that both name is a leak."""
    photos = write_files(tmp_path / "set", FILES)
    folder = photos if not start else tmp_path / "lists"
    names = [start.format(photos=photos) + name for name in (*CATS[:2], "train/b/b00.jpg")]
    header = b"filename\n" if ending == "csv" else b""
    write_files(folder, {f"train.{ending}": header + lines(*names[:2]), f"val.{ending}": header + lines(*names[1:])})
    audit = run(folder / f"train.{ending}", folder / f"val.{ending}", root=tmp_path / "audit")
    assert splits(audit) == ["train", "train", "val", "val"]
    leaks = {(row["split"], row["match_split"]) for row in rows(audit, "leaks") if row["uri"] == row["match_uri"]}
    assert leaks == {("train", "val"), ("val", "train")}


def test_a_column_goes_before_the_name_of_a_list(tmp_path: Path) -> None:
    """Which speaks for the rows whose cell is empty."""
    listed = b"filename,split\n" + lines(f"{CATS[0]},test", f"{CATS[1]},")
    photos = write_files(tmp_path / "set", {**FILES, "val.csv": listed})
    assert splits(run(photos / "val.csv", root=tmp_path / "audit")) == ["test", "val"]


def test_the_folder_of_whole_paths_says_nothing_of_relative_ones(tmp_path: Path) -> None:
    """Nor does the folder of the list say anything of whole paths."""
    elsewhere = write_files(tmp_path / "other", FILES)
    set_folder = write_files(tmp_path / "test", {f"photos/{number}.jpg": FILES[CATS[number]] for number in range(2)})
    write_files(set_folder, {"l.txt": lines("photos/0.jpg", "photos/1.jpg", f"{elsewhere}/{CATS[2]}")})
    audit = run(set_folder / "l.txt", root=tmp_path / "audit")
    by_start = {row["uri"][0]: row["split"] for row in rows(audit, "images")}
    assert by_start == {"/": None, "p": "test"}

    plain = write_files(tmp_path / "plain", {f"photos/{number}.jpg": FILES[CATS[number]] for number in range(2)})
    write_files(plain, {"l.txt": lines("photos/0.jpg", "photos/1.jpg", f"{elsewhere}/train/2.jpg")})
    write_files(elsewhere, {"train/2.jpg": FILES[CATS[2]]})
    audit = run(plain / "l.txt", root=tmp_path / "plain-audit")
    assert {row["uri"][0]: row["split"] for row in rows(audit, "images")} == {"/": "train", "p": None}
