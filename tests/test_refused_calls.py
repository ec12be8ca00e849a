"""Calls that are refused leave nothing where the root would be: it may lie among somebody's photos."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from audited import noise_jpeg, rows, run, write_files

import pipeline
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.layout.root import FOLDERS, MARKER, Root, claim, is_own
from pipeline.storage import StorageConfig

PHOTOS = {"A/x.jpg": noise_jpeg(1), "A/train/y.jpg": noise_jpeg(2), "B/z.jpg": noise_jpeg(3), "table.csv": b"name\n"}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["A"], 2, "is a source: choose a --root beside or below it"),
        (["B", "B"], 2, "is named twice"),
        (["B", "--test", "B"], 2, "is named twice"),
        ([".", "B"], 2, "lies inside"),
        (["A/features"], 2, "is where the root"),
        (["B", "C"], 3, "C: No such file or directory. Check the path"),
        (["table.csv"], 2, "wanted one of filename"),
        (["B", "--labels", "none.csv"], 3, "none.csv"),
        (["B", "--labels", "table.csv"], 2, "filename"),
        (["B", "--model", "none.onnx"], 3, "none.onnx"),
        (["B", "--model", "table.csv"], 3, "table.csv"),
    ],
)
def test_nothing_is_left_by_a_call_that_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    """Every file and folder is as before, and the message is the one that a root of its own would give."""
    write_files(tmp_path, PHOTOS)
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert main(["run", *words, "--root", "A", "--runner", "local", "--quiet"]) == code
    assert said in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_root_that_is_there_is_refused_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run says what the first one says."""
    write_files(tmp_path, PHOTOS)
    root, call = str(tmp_path / "root"), ["--runner", "local", "--quiet"]
    claim(Root(root, StorageConfig()))
    for words in (["B", "B"], ["C"], ["B", "--labels", f"{tmp_path}/table.csv"]):
        assert main(["run", *(f"{tmp_path}/{w}" if w in "BC" else w for w in words), "--root", root, *call]) in (2, 3)
    said = capsys.readouterr().err
    assert "is named twice" in said
    assert f"{tmp_path}/C: No such file or directory" in said
    assert "filename" in said


def test_images_around_the_root_are_audited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A root in a folder of images takes its own folders and marker out of the source, and says what that hides."""
    photos = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1), "train/b.jpg": noise_jpeg(2)})
    write_files(photos / "train", {"dogs/c.jpg": noise_jpeg(3), "featured/d.jpg": noise_jpeg(4)})
    root = photos / "train"
    listed = ["a.jpg", "train/b.jpg", "train/dogs/c.jpg", "train/featured/d.jpg"]
    first = run(photos, root=root)
    assert [row["uri"] for row in rows(first, "images")] == listed
    assert run(photos, root=root).audit_id == first.audit_id
    assert first.summary()["left_out"] == 0  # its own tables are no files of the source
    with caplog.at_level(logging.WARNING):
        write_files(photos / "train/models", {"e.jpg": noise_jpeg(5), "e.txt": b"x"})
        assert run(photos, root=root).audit_id == first.audit_id
    (said,) = [line for line in caplog.messages if "left out" in line]
    assert f"{photos}: images in folders that the root {root} takes as its own are left out: 1, " in said
    assert "the first is 'train/models/e.jpg'. Choose another --root" in said


def test_own_keys() -> None:
    assert is_own(MARKER)
    assert all(is_own(f"{folder}/x") for folder in FOLDERS)
    assert not any(is_own(key) for key in ("features", "feature/x", "a/features/x", "a/root.json", "root.json/x", ""))


@pytest.mark.parametrize("root", [None, 7])
def test_a_root_that_is_no_path_is_one_clear_error(root: Any, tmp_path: Path) -> None:
    """Of `run`, with annotations and lists too, and of `open`."""
    photo = write_files(tmp_path, {"a.jpg": noise_jpeg(1)}) / "a.jpg"
    for source in (tmp_path, [photo]):
        with pytest.raises(UsageError, match=f"root is {root}, want text"):
            pipeline.run(source, root=root, annotations={"filename": ["a.jpg"], "label": ["cat"]})
    with pytest.raises(UsageError, match=f"{root} is no path; wanted a folder"):
        pipeline.open(root)
