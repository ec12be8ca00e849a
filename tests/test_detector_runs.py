"""Runs with a detector: what makes it look again, and a model that is none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import LOCAL, by_uri, run, write_files
from test_box_audits import OBJECTS, PLAIN, squares
from test_detect_object import model

import pipeline
from pipeline.cli import main

FINDER = model(np.array([OBJECTS], np.float32), names={0: "cat", 1: "dog"})


def test_other_margins_are_cut_out_of_the_boxes_that_were_found(tmp_path: Path, decodes: Counter[int]) -> None:
    """The detector looks again where the least size of a box is another one: that decides what is found."""
    files = {f"{at}.jpg": squares(at) for at in range(2)}
    finder = tmp_path / "finder.onnx"
    finder.write_bytes(FINDER)
    folder, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    arguments: dict[str, Any] = {"bounding_box": "object", "box_model": str(finder)}
    run(folder, root=root, boxes=PLAIN, **arguments)
    for boxes, looks, wider in (
        ({**PLAIN, "margin": 3}, 0, 6),
        ({"horizontal": 0.1, "vertical": 0.0}, 0, 40),
        ({**PLAIN, "min_width": 9}, 1, 0),
    ):
        decodes.clear()
        config: dict[str, Any] = {"boxes": boxes, **arguments}
        assert pipeline.run(folder, root=root, where=LOCAL, until="features", **config) is None
        assert decodes == {hash(data): 1 + looks for data in files.values()}
        audit = run(folder, root=root, **config)
        assert by_uri(audit, "quality")["0.jpg#xywh=100,100,200,200"]["width"] == 200 + wider
        assert audit.crops()["confidence"].to_pylist() == pytest.approx([0.9, 0.8, 0.7] * 2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"junk", "the model (4 bytes) is not an ONNX file"),
        (model(np.zeros((1, 1000), np.float32)), "the object model gives output0 float32 (1, 1000)"),
        (model(np.zeros((1, 300, 6), np.uint8)), "the object model gives output0 uint8 (1, 300, 6)"),
    ],
    ids=["junk", "classifier", "uint8"],
)
def test_a_model_that_finds_no_objects_is_said_before_any_work(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the name of its file, on a new root and on a used one, in which nothing is left of it."""
    folder, root, bad = write_files(tmp_path / "photos", {"a.jpg": squares(1)}), tmp_path / "audit", tmp_path / "b.onnx"
    bad.write_bytes(data)
    (tmp_path / "finder.onnx").write_bytes(FINDER)
    call = ["run", str(folder), "--root", str(root), "--runner", "local", "--quiet", "--bounding-box", "object"]
    assert main([*call, "--box-model", str(bad)]) == 3
    assert f"image-audit: b.onnx: {said}" in capsys.readouterr().err
    assert not root.exists()
    assert main([*call, "--box-model", str(tmp_path / "finder.onnx")]) == 0
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*call, "--box-model", str(bad)]) == 3
    assert f"image-audit: b.onnx: {said}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
