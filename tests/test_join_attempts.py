"""Attempts in the search by lists that die, come twice, late or with other bits, and drivers beside each other."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import crashing
import numpy as np
import pytest
import stops
from audited import assert_equal_tables
from chaos import copy_of, many_parts, run_all
from dying import PROCESSES, committed
from graphs import Remembers
from held import environment
from stops import IMAGES, SIZE, Stopped, StopsAt, intermediates, stop

from pipeline import cluster
from pipeline.audit import Audit
from pipeline.errors import ArtifactError, AuditError, IncompleteError
from pipeline.layout.joined import Joined
from pipeline.layout.parts import cut
from pipeline.layout.root import Root
from pipeline.plan import joining
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Outcome, Task, execute
from pipeline.stages import assign, join, merge
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


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        runner = cluster.start_ray(2)
        yield
        runner.close()


POISONED = [
    (join, "join", crashing.poisoned_join, "join copy", "hits-000001-000000-000001.shuffle"),
    (
        merge,
        "merge_semantic",
        crashing.poisoned_merge,
        "merge semantic",
        f"neighbours-{SIZE:012d}-{2 * SIZE:012d}.parquet",
    ),
]


def test_poison(undisturbed: Audit, root: Path, ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose process dies every time is tried twice, then named with the command that resumes; all other parts
    of its stage are done, and only that one is left for the run without the poison.
    """
    for module, name, poisoned, stage, part in POISONED:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, poisoned)
            with pytest.raises(IncompleteError) as raised:
                run_all(root, lambda: cluster.start_ray(2), SilentReporter())
        said = str(raised.value)
        assert raised.value.exit_code == 4
        assert re.search(rf"stage {stage}: 1 of \d+ parts failed; the others are kept", said)
        assert part in said
        assert "its process died or hung twice" in said
        assert said.endswith("Resume with: the same command")
        assert not list(root.rglob(part))
        assert len(list(root.rglob(part[:4] + "*"))) >= 3

    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)


@pytest.mark.slow  # cutting is test_runner_unit's
def test_poisoned_queries_are_cut_down_to_their_range(
    undisturbed: Audit, root: Path, ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All queries of a partition in one part, of which range 0 kills its process: only that one is left to do."""
    monkeypatch.setattr(joining, "LEAST_JOIN_TASKS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(join, "join", crashing.poisoned_join)
        with pytest.raises(IncompleteError, match="stage join copy: 1 of "):
            run_all(root, lambda: cluster.start_ray(2), SilentReporter())
    runner = Remembers()
    audit = run_all(root, lambda: runner, SilentReporter())

    left = [task.name for task in runner.tasks if "/hits-" in task.name]
    assert [name.rpartition("/")[2] for name in left[:1]] == ["hits-000001-000000-000001.shuffle"]
    assert len({name.rpartition("/")[0] for name in left[1:]}) == 1  # the other space's
    assert left[0].rpartition("/")[0] != left[1].rpartition("/")[0]
    assert_equal_tables(audit, undisturbed)


def test_queries_that_were_joined_whole_and_cut(
    undisturbed: Audit, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole part that ends after its halves were made: each hit counts once."""
    monkeypatch.setattr(joining, "LEAST_JOIN_TASKS", 1)
    runner = Remembers()
    with pytest.raises(Stopped):
        run_all(root, lambda: runner, StopsAt("merge copy"))
    specs = [task.spec for task in runner.tasks if task.function is join.join]
    assert {(spec.first, spec.last) for spec in specs} == {(0, 4)}
    assert len(specs) > 1
    for half in (half for spec in specs for half in join.halves(spec)):
        assert execute(join.join, half).error is None
    assert len(list(root.glob("work/*/hits-*"))) == 3 * len(specs)

    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)


def test_lost_hits_are_named(root: Path) -> None:
    """Hits that go between the join and the merge: none is missing unseen."""
    stop(root, "merge copy", is_done=False)
    joined = _joined_of(root)
    lost = max(root.glob("work/*/hits-000001-*"))
    lost.unlink()

    with pytest.raises(ArtifactError, match=re.escape(lost.name)):
        joined.saturated_keys()
    last = len(joined.ranges) - 1
    with pytest.raises(ArtifactError, match=r"it is gone\. Run again to make it anew"):
        joined.found(last)


def _joined_of(root: Path) -> Joined:
    (folder,) = {path.parent for path in root.glob("work/*/hits-*")}
    ranges = tuple(cut(0, IMAGES, SIZE))
    partitions = 1 + max(int(path.name.split("-")[1]) for path in folder.glob("hits-*"))
    return Joined(Root(str(root), StorageConfig()), str(folder.relative_to(root)), ranges, partitions)


class Twins(LocalRunner):
    """Carries every task out twice at the same time; each attempt must end well."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task."""
        for task in tasks:
            with ThreadPoolExecutor(2) as pool:
                ended = [*pool.map(lambda task: execute(task.function, task.spec), [task, task])]
            yield Outcome(task, ended[0].counters, ended[0].error or ended[1].error)


def test_twins_that_both_finish(undisturbed: Audit, root: Path) -> None:
    """Every task of every stage by two workers at once: the tables of one."""
    assert_equal_tables(run_all(root, Twins, SilentReporter()), undisturbed)
    assert intermediates(root) == []


def test_stragglers_that_finish_when_all_is_done(undisturbed: Audit, root: Path) -> None:
    """Every task once more after the audit, the last ones first, so that what they read is gone: no file that counts
    has other bytes, and what they left goes with the next run.
    """
    runner = Remembers()
    run_all(root, lambda: runner, SilentReporter())
    before = kept(root)
    late = [execute(task.function, task.spec).error for task in reversed(runner.tasks)]
    assert {type(error) for error in late} == {type(None), ArtifactError}
    assert kept(root) == before
    assert intermediates(root) != []

    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)
    assert intermediates(root) == []
    assert kept(root) == before


def kept(root: Path) -> dict[str, bytes]:
    """Committed files but intermediates and records of sessions -> their bytes."""
    gone = {str(path.relative_to(root)) for path in intermediates(root)}
    return {key: (root / key).read_bytes() for key in committed(root) if key not in gone}


def test_attempts_with_other_bits(undisturbed: Audit, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt on a CPU that rounds otherwise, after the first: the first one's vectors and hits stay."""
    real_project, real_join = assign.project_copy, join.join_lists

    def project(*given: Any) -> Any:
        return real_project(*given) * np.float32(1 + 1e-3)

    def joined(*given: Any) -> Any:
        hits = real_join(*given)
        return replace(hits, similarity=hits.similarity * np.float32(1 - 1e-6))

    class Again(LocalRunner):
        def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
            for task in tasks:
                first = execute(task.function, task.spec)
                if task.function in (assign.assign_copy, join.join):
                    before = [(root / key).read_bytes() for key in (task.name, *task.beside)]
                    with monkeypatch.context() as patch:
                        patch.setattr(assign, "project_copy", project)
                        patch.setattr(join, "join_lists", joined)
                        assert execute(task.function, task.spec).error is None
                    assert [(root / key).read_bytes() for key in (task.name, *task.beside)] == before
                yield Outcome(task, first.counters, first.error)

    assert_equal_tables(run_all(root, Again, SilentReporter()), undisturbed)


class Overtaken(SilentReporter):
    """As a stage begins another driver does the whole audit."""

    def __init__(self, stage: str, root: Path) -> None:
        self._stage, self._root = stage, root
        self.exitcode: int | None = None

    def start(self, stage: str, total: int, done: int) -> None:
        """Waits for the other driver."""
        if stage == self._stage and self.exitcode is None:
            other = PROCESSES.Process(target=drive, args=(self._root,))
            other.start()
            other.join()
            self.exitcode = other.exitcode


@pytest.mark.parametrize("stage", ["join copy", "merge semantic"])
def test_a_driver_that_another_overtakes(undisturbed: Audit, root: Path, stage: str) -> None:
    """What it is about to read is gone: it says so and that running again is the way out; so it is."""
    overtaken = Overtaken(stage, root)
    with pytest.raises(ArtifactError, match=r"gone\. Run again") as raised:
        run_all(root, LocalRunner, overtaken)

    assert overtaken.exitcode == 0
    assert str(raised.value).endswith("Resume with: the same command")
    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)
    assert intermediates(root) == []


def test_two_drivers_started_together(undisturbed: Audit, root: Path) -> None:
    """Whoever is ahead: each ends well or as one that was overtaken, and the tables are those of one."""
    drivers = [PROCESSES.Process(target=drive, args=(root,)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()

    assert {driver.exitcode for driver in drivers} <= {0, ArtifactError.exit_code}
    assert_equal_tables(run_all(root, LocalRunner, SilentReporter()), undisturbed)
    assert intermediates(root) == []


def drive(root: Path) -> None:
    """A driver in a process of its own, which ends as the command does."""
    many_parts(size=SIZE)
    try:
        run_all(root, LocalRunner, SilentReporter())
    except AuditError as error:
        sys.exit(error.exit_code)
