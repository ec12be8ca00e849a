"""Faults in the middle of the search by lists: stops, damaged intermediates and a full disk."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stops
from audited import assert_equal_tables
from chaos import copy_of, many_parts, run_all
from stops import ORDER, SIZE, StopsAt, intermediates, stop
from test_damage import inside_a_page

from pipeline.audit import Audit
from pipeline.errors import ArtifactError, StorageFull
from pipeline.layout.root import Root, claim
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner
from pipeline.storage import StorageConfig
from pipeline.threads import threads_given_back


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    many_parts(monkeypatch.setattr, SIZE)
    with threads_given_back():
        yield


@pytest.fixture
def undisturbed() -> Audit:
    return stops.undisturbed()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return copy_of(stops.features(), tmp_path / "audit")


@pytest.mark.parametrize("is_done", [False, True], ids=["begins", "ends"])
def test_stopped_at_every_stage(undisturbed: Audit, root: Path, is_done: bool) -> None:
    """One root, stopped as each stage begins, or ends with its record open: each run goes on there, and with nothing
    that an earlier one had done, though its intermediates are gone.
    """
    for number, stage in enumerate(ORDER):
        resumed = ORDER[max(0, number - 1) : number + 1] if not is_done else (stage,)
        assert tuple(stop(root, stage, is_done)) == resumed
    last = StopsAt()
    audit = run_all(root, LocalRunner, last)

    assert last.stages == ([] if is_done else ["summary"])
    assert_equal_tables(audit, undisturbed)
    assert intermediates(root) == []


def test_intermediates_that_a_killed_run_left_go(undisturbed: Audit, root: Path) -> None:
    """Killed after the file that makes them superfluous and before they were deleted: the next run deletes them."""
    for stage in ("clusters", "pairs", "components", "outlier tail"):
        stop(root, stage, is_done=True)
        assert intermediates(root) != []
    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)

    assert intermediates(root) == []


def test_intermediates_that_nobody_needs_go_after_a_week(root: Path) -> None:
    """A folder stays as long as anything in it is younger."""
    stop(root, "merge copy")
    left = sorted(root.glob("work/*"))
    assert len(left) == 2
    old = time.time() - 8 * 24 * 3600
    for folder in left:
        for path in folder.iterdir():
            os.utime(path, (old, old))
    young = max(left[1].iterdir())
    os.utime(young)
    claim(Root(str(root), StorageConfig()))

    assert not [*left[0].iterdir()]
    assert len([*left[1].iterdir()]) > 1


DAMAGED = [
    ("join copy", "work/*/visits-*.shuffle"),
    ("merge copy", "work/*/hits-*.shuffle"),
    ("clusters", "work/*/saturated-*.parquet"),
    ("pairs", "work/*/thinned-*.shuffle"),
    ("unite", "groups/*/work/leaves/*.parquet"),
    ("join semantic", "work/*/visits-*.shuffle"),
    ("join semantic (further)", "work/*/floors-*.shuffle"),
    ("merge semantic", "work/*/hits-*.shuffle"),
    ("recall", "neighbours/*/truth-*.parquet"),
    ("outlier queries", "neighbours/*/furthest-*.parquet"),
    ("outlier search", "neighbours/*/queries.shuffle"),
    ("outlier tail", "neighbours/*/tail-*.shuffle"),
]


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damaged_intermediates_are_named_and_made_anew(undisturbed: Audit, root: Path, how: str) -> None:
    """Each is damaged before its reader: the run names it, and goes on once that file is deleted."""
    for stage, pattern in DAMAGED:
        stop(root, stage)
        path = max(root.glob(pattern), key=lambda path: path.stat().st_size)
        damage(path, how)
        with pytest.raises(ArtifactError, match=re.escape(str(path))) as raised:
            run_all(root, LocalRunner, SilentReporter())
        assert "Delete that file and run again" in str(raised.value)
        path.unlink()

    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)
    assert intermediates(root) == []


def damage(path: Path, how: str) -> None:
    """Cuts a file in half, or flips a byte of a page, or bytes all over a shuffle file: some batches nobody reads."""
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif path.suffix == ".parquet":
        data[inside_a_page(path)] ^= 0xFF
    else:
        data[len(data) // 3 :: 16] = bytes(byte ^ 0xFF for byte in data[len(data) // 3 :: 16])
    path.write_bytes(data)


@pytest.mark.parametrize(
    "stage",
    [
        "join copy",
        *(
            pytest.param(stage, marks=pytest.mark.slow)
            for stage in ("assign copy", "merge copy", "thin", "pairs", "stars", "join semantic", "outlier search")
        ),
    ],
)
def test_full_disk(undisturbed: Audit, root: Path, stage: str) -> None:
    """The kernel refuses files over 200 bytes, as a full disk does: the file is named; with space the run goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(SilentReporter):
        def start(self, name: str, total: int, done: int) -> None:
            if name == stage:
                resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))

    try:
        with pytest.raises(StorageFull, match=r"write .*Free space") as raised:
            run_all(root, LocalRunner, Fills())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert raised.value.exit_code == 3
    assert not list(root.rglob(".image-audit-tmp-*"))
    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)
