"""Audits of synthetic features that search by lists, stopped where a test wants it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from audited import scratch
from chaos import copy_of, make_features, many_parts, run_all

from pipeline.audit import Audit
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner

IMAGES, SIZE = 1_000, 256
ORDER = (
    "annotate", "vocabulary", "exact groups", "moments", "train", "train lists (copy)", "group lists (copy)",
    "assign copy", "join copy", "merge copy", "clusters", "thin", "pairs", "verify", "stars", "unite", "large groups",
    "components", "train lists (semantic)", "group lists (semantic)", "assign semantic", "join semantic",
    "join semantic (further)",
    "merge semantic", "recall", "outlier queries", "outlier search", "outlier tail", "score", "totals", "edge index",
    "findings", "summary",
)  # fmt: skip


class Stopped(Exception):
    """The run ends here."""


class StopsAt(SilentReporter):
    """Remembers the stages that had something to do; ends the run where one begins, or before its record is closed."""

    def __init__(self, stage: str = "", is_done: bool = False) -> None:
        self.stages: list[str] = []
        self._at, self._is_done = stage, is_done

    def start(self, stage: str, total: int, done: int) -> None:
        """Ends the run where it is told to."""
        if stage == "catalog":
            return
        self.stages.append(stage)
        if stage == self._at and not self._is_done:
            raise Stopped

    def finish(self, seconds: float) -> None:
        """Ends the run where it is told to."""
        if self.stages and self.stages[-1] == self._at and self._is_done:
            raise Stopped


@functools.cache
def features() -> Path:
    """A root with the features alone; copy it."""
    return make_features(scratch() / "join-features", IMAGES)


@functools.cache
def undisturbed() -> Audit:
    """The audit that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        many_parts(patch.setattr, SIZE)
        seen = StopsAt()
        audit = run_all(copy_of(features(), scratch() / "join-undisturbed"), LocalRunner, seen)
    assert tuple(seen.stages) == ORDER
    attempts = {stage["stage"]: stage["attempts"] for stage in audit.published.session["stages"]}
    assert [*attempts] == [stage["stage"] for stage in audit.published.session["stages"]]
    assert all(attempts[stage] >= 1 for stage in ORDER)
    return audit


def stop(root: Path, stage: str, is_done: bool = False) -> list[str]:
    """Runs until a stage begins or ends; the stages that had something to do."""
    reporter = StopsAt(stage, is_done)
    with pytest.raises(Stopped):
        run_all(root, LocalRunner, reporter)
    return reporter.stages


def intermediates(root: Path) -> list[Path]:
    """Files that go once they were read."""
    found = [path for name in ("work", "groups/*/work") for path in root.glob(f"{name}/**/*")]
    found += [path for name in ("tail-", "queries") for path in root.glob(f"neighbours/*/{name}*")]
    return [path for path in found if path.is_file()]
