"""The folders that the YAML of a YOLO set names: one that is not there, and those that Roboflow means."""

from __future__ import annotations

from pathlib import Path

import pytest
from audited import noise_jpeg, rows, run, write_files

from pipeline.errors import NotFound

FILES = {f"{split}/images/{number}.jpg": noise_jpeg(number) for number, split in enumerate(["train", "valid"])}


def test_a_folder_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    text = b"train: train/images\nval: valid/images\ntest: test/images\n"
    folder = write_files(tmp_path / "set", {**FILES, "data.yaml": text})
    with pytest.raises(NotFound, match=r"data\.yaml: its test is .*/set/test/images, and nothing is there"):
        run(folder / "data.yaml", root=tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_the_folders_of_roboflow_lie_beside_the_yaml(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """But where `../train/images` is there, it is meant."""
    text = b"train: ../train/images\nval: ../valid/images\n"
    folder = write_files(tmp_path / "set", {**FILES, "data.yaml": text})
    found = rows(run(folder / "data.yaml", root=tmp_path / "audit"), "images")
    assert [(row["path"], row["split"]) for row in found] == [
        (f"{folder}/train/images/0.jpg", "train"),
        (f"{folder}/valid/images/1.jpg", "val"),
    ]
    assert any(f"{folder}/train/images is taken, as Roboflow means it" in line for line in caplog.messages)
    write_files(tmp_path, FILES)
    other = rows(run(folder / "data.yaml", root=tmp_path / "other"), "images")
    assert [row["path"] for row in other] == [f"{tmp_path}/train/images/0.jpg", f"{tmp_path}/valid/images/1.jpg"]
