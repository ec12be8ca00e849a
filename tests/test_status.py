"""What `status` says of a stage that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crashing
import pytest
from audited import half_size, run, small_set, write_files

from pipeline.api import status
from pipeline.errors import AuditError, BadCredentials, IncompleteError, StorageUnavailable
from pipeline.plan import preparing, verifying
from pipeline.plan.session import take_off
from pipeline.runner import Task, TaskError, piece_of
from pipeline.show import status_text
from pipeline.stages.extract import ExtractSpec
from pipeline.stages.verify import VerifySpec


@pytest.mark.parametrize(
    ("error", "parts_done", "failed"), [(BadCredentials("expired"), 1, 1), (StorageUnavailable("refused"), 0, 3)]
)
def test_status_of_a_failed_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: AuditError, parts_done: int, failed: int
) -> None:
    """What the stage did not come to is missing like what failed, and no item of either is counted as done."""
    photos, root = write_files(tmp_path / "photos", small_set(12)), tmp_path / "audit"

    def extract(spec: ExtractSpec) -> Any:
        if spec.lo >= 3 * parts_done:
            raise error
        return crashing.real_extract(spec)

    monkeypatch.setattr(preparing.extract, "extract", extract)
    with pytest.raises(type(error)):
        run(photos, root=root, shard_size=3)
    (row,) = [row for row in status(str(root), {}) if row["stage"] == "extract"]
    (shown,) = [line for line in status_text(status(str(root), {})).splitlines() if line.startswith("extract")]

    assert (row["state"], row["parts"], row["missing"], len(row["failed"])) == ("failed", 5, 5 - parts_done, failed)
    assert (row["items"], row["items_in_all"]) == (3 * parts_done, 15)
    assert (
        shown.split()[:9] == f"extract failed {parts_done}/5 {5 - parts_done} 0 {failed} {3 * parts_done} of 15".split()
    )


def test_status_of_a_failed_stage_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part is there, and its pairs alone are done; the next run does the others."""
    files = small_set(16)
    files |= {uri.replace("/a/a", "/a/half"): half_size(data) for uri, data in files.items() if "train/a/a" in uri}
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    monkeypatch.setattr(verifying, "VERIFY_PAIRS", 2)

    def verify(spec: VerifySpec) -> Any:
        if spec.lo:
            raise TaskError("out of memory")
        return crashing.real_verify(spec)

    monkeypatch.setattr(verifying.verify, "verify", verify)
    with pytest.raises(IncompleteError, match="stage verify"):
        run(photos, root=root)
    (row,) = [row for row in status(str(root), {}) if row["stage"] == "verify"]
    monkeypatch.undo()
    run(photos, root=root)

    assert (row["state"], row["parts"] - row["missing"], row["missing"]) == ("failed", 1, len(row["failed"]))
    assert (row["items"], row["items_in_all"] - row["items"] > 0) == (2, True)
    assert [row["state"] for row in status(str(root), {}) if row["stage"] == "verify"] == ["done"]


def test_a_part_that_was_cut_is_done_with_its_last_piece() -> None:
    whole = Task("features/a/rows-0", crashing.commit, None, 5)
    left = {whole.name: 5, "features/a/rows-5": 0}
    take_off(left, piece_of(whole, [0, 1], 0))
    take_off(left, piece_of(piece_of(whole, [0, 1], 1), [0, 1], 0))
    assert left == {whole.name: 2, "features/a/rows-5": 0}
    take_off(left, piece_of(piece_of(whole, [0, 1], 1), [0, 1], 1))
    assert left == {"features/a/rows-5": 0}
    take_off(left, Task("features/a/rows-5", crashing.commit, None, 0))
    assert left == {}
