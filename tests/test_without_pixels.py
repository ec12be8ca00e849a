"""Audits that compare no pixels: similarity alone decides, no image is opened after extraction, and that is settled."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audited import LOCAL, assert_equal_tables, jpeg, rows, run, small_set, write_files
from PIL import Image

import pipeline
from pipeline.audit import Audit, summary_lines
from pipeline.config import config_from
from pipeline.errors import UsageError
from pipeline.kernels.verify import is_near_without_pixels, kind_without_pixels
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.edges import edge_tables, unsettled_cause
from pipeline.plan import searching
from pipeline.schemas import EDGES, Kind
from pipeline.stages import prepared, verify

WITHOUT = VerifyParams(pixels=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set with one photo of train in val, encoded once more."""
    files = small_set(24)
    with Image.open(io.BytesIO(files["train/a/a01.jpg"])) as image:
        files["val/a/again.jpg"] = jpeg(image.convert("RGB"))
    return write_files(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture(scope="module")
def audited(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """Its root, and an audit without pixels; candidates from a similarity that several pairs have."""
    root = tmp_path_factory.mktemp("without") / "audit"
    return root, run(photos, root=root, verify={"pixels": False}, neighbours={"threshold": 0.3})


def test_similarity_alone_decides() -> None:
    """From near_similarity on a pair is near-identical, whatever its signature; with pixels both limits must be met."""
    similarity = np.array([0.949999, 0.95, 0.99, np.nan, 1.0])
    signature = np.array([1.0, 0.0, np.nan, 1.0, 1.0])

    assert is_near_without_pixels(similarity, signature, WITHOUT).tolist() == [False, True, True, False, True]
    assert is_near_without_pixels(similarity, signature, VerifyParams()).tolist() == [False, False, False, False, True]
    assert kind_without_pixels(0.95, None, WITHOUT) is Kind.NEAR_IDENTICAL
    assert kind_without_pixels(0.9, 1.0, WITHOUT) is Kind.LOOK_ALIKE
    assert kind_without_pixels(0.9, 1.0, VerifyParams(pixels=False, near_similarity=0.9)) is Kind.NEAR_IDENTICAL


def test_configuration() -> None:
    """Both keys are read; a limit that is no share is refused with its value."""
    values: dict[str, Any] = {"sources": ["x"], "root": "y"}
    assert config_from({**values, "verify": {"pixels": False}}).verify == WITHOUT
    with pytest.raises(UsageError, match=r"near_similarity is 1\.5, wanted 0 to 1"):
        config_from({**values, "verify": {"near_similarity": 1.5}})
    with pytest.raises(UsageError, match=r"verify\.pixels is 0"):
        config_from({**values, "verify": {"pixels": 0}})


def test_kinds_follow_from_similarity(audited: tuple[Path, Audit]) -> None:
    """Every pair that is no exact copy is unverified and of the kind its similarity says; a re-encoded leak is one."""
    _, audit = audited
    pairs = [row for row in rows(audit, "duplicates") if row["kind"] not in ("same_bytes", "same_pixels")]

    assert {row["kind"] for row in pairs} == {"near_identical", "look_alike"}
    for row in pairs:
        assert (row["kind"] == "near_identical") == (row["similarity"] >= WITHOUT.near_similarity)
        assert not row["is_verified"]
        assert row["correlation"] is row["overlap"] is row["is_mirrored"] is None
    again = [row for row in rows(audit, "leaks") if "again" in row["uri"] + row["match_uri"] and row["severity"] >= 4]
    assert {row["kind"] for row in again} == {"near_identical"}
    assert {row["uri"] for row in again} == {"train/a/a01.jpg", "val/a/again.jpg"}
    assert {row["severity"] for row in rows(audit, "leaks") if row["kind"] == "look_alike"} <= {1}


def test_nothing_is_unread_and_nothing_tried_again(
    photos: Path, audited: tuple[Path, Audit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pairs count as settled: nothing is said of them, and the next run has nothing to do."""
    root, audit = audited
    assert audit.summary()["duplicates"]["unread"] == 0
    assert not any("could not be compared" in line for line in summary_lines(audit.summary() | {"left_out": 0}))
    copied = shutil.copytree(root, tmp_path / "audit")
    said: list[str] = []
    again = _run_saying(photos, copied, said)

    assert "nothing had to be done: every stage was done before" in said
    assert not any("similarity alone" in line and "again" in line for line in said)
    assert_equal_tables(again, audit)
    assert "verify again" not in [record["stage"] for record in again.published.session["stages"]]
    store = audit.root.open()
    parts = [info.key for info in store.list("edges/") if info.key.endswith(".parquet")]
    assert parts
    assert {unsettled_cause(store, key) for key in parts} == {""}


def test_no_image_is_opened(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that go away after extraction change nothing, nor is the catalog asked for an image of a pair."""
    here, root = Path(shutil.copytree(photos, tmp_path / "photos")), tmp_path / "audit"
    real = searching.verify_pairs

    def gone(*arguments: Any) -> str:
        here.rename(tmp_path / "away")
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "image_objects_of", None)
            patch.setattr(verify, "image_objects_of", None)
            patch.setattr(verify, "PreparedImages", None)
            return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "verify_pairs", gone)
        audit = run(here, root=root, verify={"pixels": False}, neighbours={"threshold": 0.3})

    assert len(rows(audit, "duplicates")) > 2
    edges = pa.concat_tables([*edge_tables(audit.root.open(), _edges_folder(audit))])
    assert edges.schema.equals(EDGES.schema)
    assert not any(edges["is_verified"].to_pylist())


def test_with_pixels_is_another_audit(photos: Path, audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """The verdicts of one way are never taken for those of the other."""
    root, audit = audited
    copied = shutil.copytree(root, tmp_path / "audit")
    compared = run(photos, root=copied, neighbours={"threshold": 0.3})

    assert compared.published.audit_id != audit.published.audit_id
    (stage,) = [record for record in compared.published.session["stages"] if record["stage"] == "verify"]
    assert stage["counters"]["looked_at"] > 0
    assert stage["counters"]["reused"] == 0


def _edges_folder(audit: Audit) -> str:
    (folder,) = {info.key.rpartition("/")[0] for info in audit.root.open().list("edges/")}
    return folder


class _Listening:
    """A reporter that keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, line: str) -> None:
        self._said.append(line)

    def start(self, stage: str, total: int, done: int) -> None: ...

    def advance(self, items: int) -> None: ...

    def finish(self, seconds: float) -> None: ...


def _run_saying(photos: Path, root: Path, said: list[str]) -> Audit:
    values = {
        "sources": (str(photos),),
        "root": str(root),
        "verify": {"pixels": False},
        "neighbours": {"threshold": 0.3},
    }
    audit = pipeline.api.run_config(config_from(values), LOCAL, _Listening(said), "the same")
    assert audit is not None
    return audit
