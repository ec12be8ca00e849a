"""What a root notes of a named model: its file, its canary, and the record that names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
from audited import noise_jpeg, rows, run, write_files
from s3_servers import free_port
from tiny_model import DATA, NAME, tiny

from pipeline.layout.models import store_model
from pipeline.layout.root import Root, forget_kept
from pipeline.models import named
from pipeline.storage import StorageConfig


def use_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in place of the table of names; nobody listens at its address."""
    row = tiny(f"http://127.0.0.1:{free_port()}/model.onnx")
    monkeypatch.setattr(named, "NAMED", MappingProxyType({row.name: row}))


@pytest.mark.parametrize("change", [None, lambda data: data[:100], lambda data: data[:-2] + b"ab"])
def test_a_canary_that_is_lost_is_made_anew(
    change: Callable[[bytes], bytes] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone, cut off, or of other numbers: from the model of the root, without a server or a cache."""
    use_tiny(monkeypatch)
    cache, photos = write_files(tmp_path / "cache", {"tiny.onnx": DATA}), tmp_path / "photos"
    options = {"root": tmp_path / "audit", "model": {"path": NAME, "cache": str(cache)}}
    first = run(write_files(photos, {f"{seed}.jpg": noise_jpeg(seed) for seed in range(4)}), **options)
    (cache / "tiny.onnx").unlink()
    (canary,) = (tmp_path / "audit/models").glob("canary-*")
    data = canary.read_bytes()
    canary.unlink()
    if change is not None:
        canary.write_bytes(change(data))
    forget_kept()
    again = run(write_files(photos, {"9.jpg": noise_jpeg(9)}), **options)
    assert canary.read_bytes() == data
    assert [row["uri"] for row in rows(again, "images")] == [row["uri"] for row in rows(first, "images")] + ["9.jpg"]
    assert {row["status"] for row in rows(again, "images")} == {"ok"}


@pytest.mark.parametrize(
    "change", [{"later": 1}, {"input": {"later": 1}}, {"input": {"width": -1, "height": 2}}, {"input": None}]
)
def test_a_record_of_another_version_is_none(
    change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is looked for again, and the record is written as this version writes it."""
    use_tiny(monkeypatch)
    options = {"path": NAME, "description": {}, "cache": str(write_files(tmp_path / "cache", {"tiny.onnx": DATA}))}
    root = Root(str(tmp_path / "audit"), StorageConfig())
    ref = store_model(root, **options)
    (record,) = (tmp_path / "audit/models").glob("tiny-*.json")
    written = record.read_bytes()
    record.write_text(json.dumps({**json.loads(written), **change}))
    assert store_model(root, **options) == ref
    assert record.read_bytes() == written
