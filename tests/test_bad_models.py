"""Models that cannot be used, or not for every image: one clear error before any work, or a status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from audited import (
    by_uri,
    noise_jpeg,
    onnx_bytes,
    projection_model,
    rows,
    run,
    write_files,
)
from onnx import helper
from outcomes import assert_consistent, refused

from benchmarks.edits import decode
from pipeline.demo import demo_photos

PLAIN_INPUT = {
    "width": 32,
    "height": 32,
    "layout": "NCHW",
    "channel_order": "RGB",
    "scale": 1 / 255,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}


def with_model(tmp_path: Path, model: bytes) -> list[str]:
    """The flags of a run with this model over three photographs."""
    write_files(tmp_path, {"own.onnx": model, "input.json": json.dumps(PLAIN_INPUT).encode()})
    photos = write_files(tmp_path / "photos", {f"{seed}.jpg": noise_jpeg(seed) for seed in range(3)})
    model_flags = ["--model", str(tmp_path / "own.onnx"), "--model-input", str(tmp_path / "input.json")]
    return [str(photos), "--root", str(tmp_path / "audit"), *model_flags]


NOT_VECTORS = {
    "a feature map": ([helper.make_node("Relu", ["image"], ["output"])], ("n", 3, 32, 32)),
    "one number": ([helper.make_node("ReduceMean", ["image"], ["output"], axes=[1, 2, 3], keepdims=0)], ("n",)),
    "one vector for all": ([helper.make_node("ReduceMean", ["image"], ["output"], axes=[0, 2, 3], keepdims=0)], (3,)),
}


@pytest.mark.parametrize("name", NOT_VECTORS)
def test_model_without_a_vector(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its output is not one vector an image: 3, what it gives and what is wanted, before anything is listed."""
    nodes, output = NOT_VECTORS[name]
    message = refused(capsys, 3, *with_model(tmp_path, onnx_bytes(nodes, {}, output)))

    assert "want one float vector an image" in message
    assert not (tmp_path / "audit/catalog").exists()


def test_model_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no ONNX: 3."""
    assert "own.onnx: the model (15 bytes) is not an ONNX file" in refused(
        capsys, 3, *with_model(tmp_path, b"no model at all")
    )


def test_nan_in_an_embedding(tmp_path: Path) -> None:
    """A model that gives NaN for dark images: those get a status, the others the features that they have alone."""
    files = {f"train/a/{name}.jpg": data for name, data in list(demo_photos().items())[::3]}
    levels = sorted(brightness(data) for data in files.values())
    limit = (levels[2] + levels[3]) / 2
    dark = [uri for uri, data in files.items() if brightness(data) < limit]
    path = write_files(tmp_path, {"own.onnx": onnx_bytes(*nan_below(limit)), "sane.onnx": projection_model()})
    photos = write_files(tmp_path / "photos", files)
    own = {"path": str(path / "own.onnx"), "input": PLAIN_INPUT}
    audit = run(photos, root=tmp_path / "audit", model=own)

    invalid = by_uri(audit, "invalid")
    assert set(invalid) == set(dark)
    assert {row["status"] for row in invalid.values()} == {"unreadable"}
    assert all("NaN" in row["message"] for row in invalid.values())
    assert_consistent(audit, len(files), len(files) - len(dark))
    rest = write_files(tmp_path / "rest", {uri: data for uri, data in files.items() if uri not in dark})
    sane = run(rest, root=tmp_path / "b", model={**own, "path": str(path / "sane.onnx")})
    nearest = {row["uri"]: (row["score"], row["nearest_uri"]) for row in rows(sane, "outliers")}
    assert {row["uri"]: (row["score"], row["nearest_uri"]) for row in rows(audit, "outliers")} == nearest


def nan_below(limit: float) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], tuple[str | int, ...]]:
    """The projection, plus 0 * log(mean - limit): NaN for images darker than that."""
    weights = np.random.default_rng(5).normal(size=(48, 48)).astype(np.float32) / 7
    constants = {"weights": weights, "limit": np.float32([[limit]]), "zero": np.float32([[0.0]])}
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["vector"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "limit"], ["above"]),
        helper.make_node("Log", ["above"], ["log"]),
        helper.make_node("Mul", ["log", "zero"], ["nan"]),
        helper.make_node("Add", ["vector", "nan"], ["output"]),
    ]
    return nodes, constants, ("n", 48)


def brightness(data: bytes) -> float:
    return float(decode(data).mean() / 255)


def test_model_that_gives_nan_for_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong description or a broken export is seen on plain test images: 3 before the first photograph."""
    head = [helper.make_node("Sub", ["vector", "vector"], ["nil"]), helper.make_node("Div", ["nil", "nil"], ["output"])]
    assert "gives NaN" in refused(capsys, 3, *with_model(tmp_path, projection_model(head)))
