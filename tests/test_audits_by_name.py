"""Audits with a model that goes by a name."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from audited import rows, run, write_files
from tiny_model import DATA, INPUT, NAME, tiny

from pipeline.demo import demo_photos
from pipeline.errors import ModelError, UsageError
from pipeline.kernels.graph_output import with_output
from pipeline.models import named


def test_an_audit_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name gives the tables that the cut file gives by its path; without its file no root is made."""
    nowhere = "http://127.0.0.1:9/model.onnx"
    table = {NAME: tiny(nowhere), "other": tiny(nowhere, name="other")}
    monkeypatch.setattr(named, "NAMED", MappingProxyType(table))
    photos = write_files(tmp_path / "photos", dict(list(demo_photos().items())[:12]))
    write_files(
        tmp_path, {"cache/tiny.onnx": DATA, "cache/other.onnx": DATA[:-1], "cut.onnx": with_output(DATA, "pooled")}
    )
    by_name = run(photos, root=tmp_path / "a", model={"path": NAME, "cache": str(tmp_path / "cache")})
    description = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(INPUT).items()}
    by_path = run(photos, root=tmp_path / "b", model={"path": str(tmp_path / "cut.onnx"), "input": description})
    assert rows(by_name, "outliers") == rows(by_path, "outliers")
    with pytest.raises(ModelError, match="damaged or another file"):
        run(photos, root=tmp_path / "c", model={"path": "other", "cache": str(tmp_path / "cache")})
    assert not (tmp_path / "c").exists()
    with pytest.raises(UsageError, match="its description"):
        run(photos, root=tmp_path / "c", model={"path": "other", "input": description})
