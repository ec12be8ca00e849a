"""Audits that are killed and run again: the tables of an undisturbed one, and nothing done twice."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from audited import assert_equal_tables, half_size, run, small_set, write_files
from dying import Life, committed, live, outcomes, processes_of

import pipeline
from pipeline.audit import Audit
from pipeline.layout.root import FOLDERS
from pipeline.storage import TEMPORARY_PREFIX

STAGES = (
    "catalog", "annotate", "vocabulary", "extract", "exact groups", "moments", "train", "assign copy", "join copy",
    "merge copy", "clusters", "thin", "pairs", "verify", "components", "assign semantic", "join semantic",
    "merge semantic", "score", "totals", "edge index", "findings", "summary",
)  # fmt: skip
OF_MANY_PARTS = (
    "annotate", "extract", "assign copy", "join copy", "merge copy", "thin", "pairs", "verify", "assign semantic",
    "join semantic", "merge semantic", "score", "findings",
)  # fmt: skip
GONE = ("assign copy", "join copy", "thin", "assign semantic", "join semantic")
"""What these make goes once it was read: a run that finds their readers done never comes to them."""
RANGES = 3
KILLED = -9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("undisturbed")
    files = small_set()
    plain = [uri for uri in files if uri.startswith("train/a/a")]
    files |= {uri.replace("/a/a", "/a/half"): half_size(files[uri]) for uri in plain}  # pairs for three parts of verify
    return run(write_files(folder / "photos", files), root=folder / "audit")


@pytest.fixture
def life(undisturbed: Audit, tmp_path: Path) -> Life:
    photos = Path(undisturbed.root.uri).parent / "photos"
    return Life(str(photos), str(tmp_path / "audit"), str(tmp_path / "log"))


def assert_kept(before: dict[str, tuple[int, int, int]], root: Path) -> dict[str, tuple[int, int, int]]:
    """What was committed is the same file still; returns what is committed now."""
    now = committed(root)
    assert {key: now.get(key) for key in before} == before
    return now


def digests(root: Path) -> dict[str, str]:
    """Every committed file -> hash of its bytes."""
    return {key: hashlib.sha256((root / key).read_bytes()).hexdigest() for key in committed(root)}


def lives_until_done(life: Life) -> int:
    """Lets one life after the other work on the root until one comes to its end; returns how many were killed.

    No committed file ever holds other bytes, and no task that ended well is done again.
    """
    root, before = Path(life.root), {}
    for number in range(1000):
        code = live(life)
        now = digests(root)
        assert {key: now.get(key) for key in before} == before
        before = now
        if code == 0:
            parts_of = dict.fromkeys(GONE, RANGES)
            parts_of |= {stage["stage"]: stage["parts"] for stage in pipeline.open(root).published.session["stages"]}
            assert not {
                stage: count for stage, count in outcomes(Path(life.log)).items() if count > parts_of.get(stage, 1)
            }
            return number
        assert code == KILLED
    raise AssertionError("no life came to its end")


@pytest.mark.slow
def test_killed_after_each_stage_and_its_first_part(undisturbed: Audit, life: Life) -> None:
    """One root, killed 29 times: each task ends well exactly once over all runs, and every file stays as committed."""
    root, before = Path(life.root), {}
    points = [(stage, parts) for stage in STAGES for parts in ((1, 0) if stage in OF_MANY_PARTS[::2] else (0,))]
    for stage, parts in points:
        assert live(replace(life, stage=stage, parts=parts)) == KILLED, (stage, parts)
        before = assert_kept(before, root)
        assert not (root / "audits").exists() or not list((root / "audits").glob("*/run.json"))
    assert live(life) == 0
    assert_kept(before, root)

    audit = pipeline.open(root)
    assert_equal_tables(audit, undisturbed)
    assert audit.summary()["duplicates"] == undisturbed.summary()["duplicates"]
    parts_of = {stage["stage"]: stage["parts"] for stage in audit.published.session["stages"]}
    assert not parts_of.keys() & {*GONE}
    parts_of |= dict.fromkeys(GONE, RANGES)
    done = outcomes(Path(life.log))
    assert done == {stage: parts_of.get(stage, 1) for stage in STAGES if stage != "catalog"}  # a kept space: no "train"
    assert min(done[stage] for stage in OF_MANY_PARTS) >= 3
    assert [stage["attempts"] for stage in audit.published.session["stages"] if stage["attempts"]] == [1]  # the listing


@pytest.mark.slow
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_killed_around_every_fourth_commit(undisturbed: Audit, life: Life, is_after: bool) -> None:
    """Right before or after a file becomes visible: no half part is taken as done, at most one task is done twice."""
    killed = lives_until_done(replace(life, commit=4, is_after=is_after))

    assert killed > 8
    assert_equal_tables(pipeline.open(life.root), undisturbed)


@pytest.mark.parametrize(("when", "of_parts"), [("after", 2), ("before", 1)], ids=["after", "before"])
@pytest.mark.slow
def test_worker_killed_in_each_stage(undisturbed: Audit, life: Life, when: str, of_parts: int) -> None:
    """On Ray, kill -9 of a worker in every stage (of many parts): one attempt more there, and the same tables."""
    assert live(replace(life, runner="ray", worker_dies=when, of_parts=of_parts)) == 0
    audit = pipeline.open(life.root)
    stages = {stage["stage"]: stage for stage in audit.published.session["stages"] if stage["stage"] != "catalog"}

    assert {name for name, stage in stages.items() if stage["attempts"] == stage["parts"] + 1} == {
        name for name, stage in stages.items() if stage["parts"] >= of_parts
    }
    assert {name for name, stage in stages.items() if stage["parts"] >= 3} >= {*OF_MANY_PARTS}
    assert_equal_tables(audit, undisturbed)


@pytest.mark.parametrize("stage", OF_MANY_PARTS)
@pytest.mark.slow
def test_driver_killed_on_ray(undisturbed: Audit, life: Life, stage: str) -> None:
    """kill -9 of the driver in the middle of a stage takes its cluster with it; the next run, here, does the rest."""
    killed = replace(life, runner="ray", stage=stage, parts=2)
    assert live(killed) == KILLED
    _, alive = psutil.wait_procs(processes_of(killed), timeout=180)  # Ray's agents notice after some 75 s
    assert alive == []
    before = committed(Path(life.root))
    assert live(life) == 0

    assert_kept(before, Path(life.root))
    assert_equal_tables(pipeline.open(life.root), undisturbed)


def test_what_a_killed_writer_left_goes_a_day_later(life: Life, tmp_path: Path) -> None:
    """An old temporary file goes with the next run, a young one may have a writer; photographs are not touched."""
    root = Path(life.root)
    assert live(replace(life, commit=7)) == KILLED
    (left,) = root.rglob(f"{TEMPORARY_PREFIX}*")
    beside = root / "photos" / left.name  # a source may lie in the root
    beside.parent.mkdir()
    for path in (left, beside):
        path.touch()
        os.utime(path, (time.time() - 90_000,) * 2)
    young = left.with_name(f"{TEMPORARY_PREFIX}young")
    young.touch()
    assert live(life) == 0

    assert sorted(root.rglob(f"{TEMPORARY_PREFIX}*")) == sorted([young, beside])
    assert {path.name for path in root.iterdir() if path.is_dir()} <= {*FOLDERS, "photos"}


@pytest.mark.slow
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_killed_around_every_commit(undisturbed: Audit, life: Life, is_after: bool) -> None:
    """Each run commits one new file."""
    killed = lives_until_done(replace(life, commit=1 if is_after else 2, is_after=is_after))

    assert killed > 50
    assert_equal_tables(pipeline.open(life.root), undisturbed)
