"""Runners: an outcome per task, whatever fails, crashes or hangs."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import crashing
import psutil
import pytest
from audited import assert_equal_tables, half_size, run, small_set, write_files
from dying import committed

import pipeline
from pipeline import cluster
from pipeline.api import Where
from pipeline.attempts import Attempt, Book, patience
from pipeline.audit import Audit
from pipeline.config import config_from
from pipeline.errors import (
    BadCredentials,
    IncompleteError,
    StorageFull,
    StorageUnavailable,
    TaskBug,
    UsageError,
)
from pipeline.layout.neighbours import edge_slices, read_edges
from pipeline.plan import Call, preparing, run_audit, verifying
from pipeline.progress import SilentReporter
from pipeline.runner import ATTEMPTS, LocalRunner, Outcome, Runner, Task, TaskError


class KeptRunner:
    """A Ray runner that several audits of this module share: closing it is left to the fixture."""

    name, workers = "ray", 2

    def __init__(self, runner: cluster.RayRunner) -> None:
        self.run = runner.run

    def close(self) -> None:
        """Stays open."""


@pytest.fixture(scope="module")
def ray_runner() -> Iterator[cluster.RayRunner]:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(":")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join(folder for folder in folders if folder))  # workers import `crashing`
        runner = cluster.start_ray(2)
        yield runner
        runner.close()


@pytest.fixture(params=["local", "ray"])
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "local":
        return LocalRunner()
    found: Runner = request.getfixturevalue("ray_runner")
    return found


def task(function: Any, spec: Any, items: int = 1, **more: Any) -> Task:
    return Task(f"{function.__name__}-{spec[1]}-{spec[2]}", function, spec, items, **more)


def ended(runner: Runner, *tasks: Task) -> dict[str, Outcome]:
    """Name -> outcome; each name came once."""
    outcomes = list(runner.run(iter(tasks)))
    found = {outcome.task.name: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


def test_each_task_has_one_outcome(runner: Runner, tmp_path: Path) -> None:
    tasks = [task(crashing.commit, (str(tmp_path), at, at + 2), items=2) for at in range(0, 24, 2)]
    found = ended(runner, *tasks)

    assert found.keys() == {item.name for item in tasks}
    assert all(outcome.error is None and outcome.counters == {"items": 2} for outcome in found.values())
    assert all((outcome.attempts, outcome.task.items) == (1, 2) for outcome in found.values())
    assert all(outcome.peak_bytes > 1e6 for outcome in found.values())
    assert len(list(tmp_path.glob("done-*"))) == 12


def test_no_tasks(runner: Runner) -> None:
    assert list(runner.run([])) == []


@pytest.mark.parametrize(
    ("kind", "times", "error", "attempts"),
    [
        ("away", ATTEMPTS - 1, None, ATTEMPTS),
        ("away", 99, StorageUnavailable, ATTEMPTS),
        ("bug", 99, TaskBug, 1),
        ("files", 99, TaskError, ATTEMPTS),
        ("memory", 1, None, 2),
        ("usage", 99, UsageError, 1),
        ("secret", 99, BadCredentials, 1),
    ],
)
def test_budget_of_attempts(
    runner: Runner, tmp_path: Path, kind: str, times: int, error: type[Exception] | None, attempts: int
) -> None:
    """What another attempt can help is tried three times, what it cannot help once; the others go on."""
    spec = (str(tmp_path), times, kind)
    found = ended(runner, task(crashing.fails, spec), task(crashing.commit, (str(tmp_path), 0, 1)))
    outcome = found[f"fails-{times}-{kind}"]

    assert outcome.error is None if error is None else type(outcome.error) is error
    assert outcome.attempts == attempts
    assert found["commit-0-1"].error is None
    if kind == "bug":
        assert "raise errors[kind]" in str(outcome.error)
        assert "ZeroDivisionError: a bug" in str(outcome.error)


@pytest.mark.usefixtures("ray_runner")
def test_store_that_is_gone_is_known_after_few_attempts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Parts that no store answers are tried again before the others, not one by one to the last, and it is said."""
    tasks = [Task(f"part-{at}", crashing.away, (str(tmp_path), f"part-{at}", 99)) for at in range(40)]
    outcomes = [*islice(cluster.RayRunner(is_ours=False, at_most=1).run(tasks), 3)]

    assert [(outcome.task.name, outcome.attempts) for outcome in outcomes] == [
        ("part-0", 3),
        ("part-1", 3),
        ("part-2", 1),
    ]
    assert all(type(outcome.error) is StorageUnavailable for outcome in outcomes)
    assert {path.name.rpartition("-")[0] for path in tmp_path.iterdir()} <= {f"part-{at}" for at in range(4)}
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == [f"part-0: read a/photo.jpg: connection refused; attempt {at} of 3" for at in (2, 3)]


@pytest.mark.usefixtures("ray_runner")
def test_store_that_answers_in_between_is_not_gone(tmp_path: Path) -> None:
    """Each part has its three attempts as long as not six in a row had no answer."""
    times = {"a": 99, "b": 2, "c": 99, "d": 2, "e": 99}
    tasks = [Task(name, crashing.away, (str(tmp_path), name, count)) for name, count in times.items()]
    outcomes = [*cluster.RayRunner(is_ours=False, at_most=1).run(tasks)]

    assert [(outcome.task.name, outcome.attempts) for outcome in outcomes] == [(name, 3) for name in times]
    assert [outcome.error is None for outcome in outcomes] == [count == 2 for count in times.values()]


def test_result_that_cannot_be_sent_is_an_outcome(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    spec = (str(tmp_path), 0, 1)
    found = ended(ray_runner, task(crashing.no_pickle, spec), task(crashing.commit, spec))

    assert found["commit-0-1"].error is None


def test_dead_worker_is_replaced(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    """kill -9 of a worker costs its task one attempt and the others nothing."""
    folder = str(tmp_path)
    found = ended(
        ray_runner,
        *(task(crashing.die_once, (folder, at, at + 1)) for at in range(2)),
        *(task(crashing.commit, (folder, at, at + 1)) for at in range(2, 8)),
    )

    assert {name: (outcome.error, outcome.attempts) for name, outcome in found.items()} == {
        **{f"die_once-{at}-{at + 1}": (None, 2) for at in range(2)},
        **{f"commit-{at}-{at + 1}": (None, 1) for at in range(2, 8)},
    }
    assert all(int(path.read_text()) != os.getpid() for path in tmp_path.glob("done-*"))


def test_task_that_kills_twice_is_cut_down(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    """Halves are tried; the single one is quarantined, all others are done; items and outcomes add up."""
    folder = str(tmp_path)
    with_halves = {"halves": crashing.halves, "quarantine": crashing.quarantine}
    found = ended(
        ray_runner,
        task(crashing.poisoned, (folder, 5, 9), items=4, **with_halves),
        task(crashing.poisoned, (folder, 9, 18), items=9, **with_halves),
    )
    done = [path.name.split("-")[1:] for path in tmp_path.glob("done-*")]

    assert sorted(at for lo, hi in done for at in range(int(lo), int(hi))) == [at for at in range(5, 18) if at != 7]
    assert [path.name for path in tmp_path.glob("crashed-*")] == ["crashed-7-8"]
    assert all(outcome.error is None for outcome in found.values())
    assert sum(outcome.task.items for outcome in found.values()) == 13
    assert sum(outcome.counters.get("items", 0) for outcome in found.values()) == 12
    deaths = (tmp_path / "deaths").read_text().split()
    assert deaths == [at for at in ("5-9", "7-9", "7-8") for _ in range(2)]


def test_task_that_kills_twice_and_cannot_be_cut_fails(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    found = ended(
        ray_runner,
        task(crashing.poisoned, (str(tmp_path), 7, 8)),
        task(crashing.commit, (str(tmp_path), 0, 1)),
    )

    assert isinstance(found["poisoned-7-8"].error, TaskError)
    assert "its process died or hung twice" in str(found["poisoned-7-8"].error)
    assert found["commit-0-1"].error is None


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt is late as soon as all of its task that have begun are known to wait for ever, and never before.

    A twin waits for a core as long as it takes.
    """
    os.mkfifo(tmp_path / "pipe")

    def soon(book: Any, attempt: Any) -> float:
        if attempt.begun is None:
            return math.inf
        _, lo, hi = attempt.task.spec
        pids = [int(path.name.split("-")[1]) for path in tmp_path.glob(f"waiting-*-{lo}-{hi}")]
        tries = [other for other in book.running.values() if other.task.name == attempt.task.name]
        begun = [other for other in tries if other.begun is not None]
        return 0.0 if sum(map(psutil.pid_exists, pids)) >= len(begun) else math.inf

    monkeypatch.setattr(cluster, "patience", soon)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_twin_of_a_straggler_ends_its_task(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    """The first attempt never answers: its twin does, the task ends once, and nothing waits for the first."""
    found = ended(ray_runner, task(crashing.first_hangs, (str(tmp_path), 0, 1)))

    assert [(outcome.error, outcome.counters) for outcome in found.values()] == [(None, {"items": 1})]
    with pytest.raises(OSError, match="No such device"):  # nobody reads: the first attempt was ended
        _open_until_nobody_reads(tmp_path / "pipe")


def _open_until_nobody_reads(pipe: Path) -> None:
    while True:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.usefixtures("impatient")
def test_one_hung_item_of_many_is_found_in_few_waits(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    """The whole and its twin, a piece of 4 and the one item wait: a level of halves each would be 8 waits."""
    more = {"halves": crashing.halves, "quarantine": crashing.quarantine}
    found = ended(ray_runner, task(crashing.hung, (str(tmp_path), 0, 64), items=64, **more))

    assert [path.name.split("-", 2)[2] for path in tmp_path.glob("waiting-*")].count("0-64") == 2
    assert sorted({path.name.split("-", 2)[2] for path in tmp_path.glob("waiting-*")}) == ["0-64", "4-8", "7-8"]
    assert len(list(tmp_path.glob("waiting-*"))) == 4
    assert [path.name for path in tmp_path.glob("timeout-*")] == ["timeout-7-8"]
    assert sum(outcome.task.items for outcome in found.values()) == 64
    assert sum(outcome.counters.get("items", 0) for outcome in found.values()) == 63


@pytest.mark.usefixtures("impatient")
def test_what_waits_for_a_core_is_not_late(
    ray_runner: cluster.RayRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both cores hang: their twins find none, so they take those of their stragglers; what waited behind is done."""
    soon = cluster.patience
    monkeypatch.setattr(cluster, "patience", lambda book, it: 0.0 if it.begun is None else soon(book, it))
    folder, settled = str(tmp_path), {"quarantine": crashing.quarantine}
    found = ended(
        ray_runner,
        task(crashing.hung, (folder, 5, 8), **settled),
        task(crashing.hung, (folder, 7, 8), **settled),
        *(task(crashing.commit, (folder, at, at + 1), **settled) for at in range(10, 13)),
    )

    assert sorted(path.name for path in tmp_path.glob("timeout-*")) == ["timeout-5-8", "timeout-7-8"]
    healthy = [outcome for name, outcome in found.items() if name.startswith("commit")]
    assert [(outcome.counters, outcome.attempts) for outcome in healthy] == [({"items": 1}, 1)] * 3


def test_patience_follows_what_others_took() -> None:
    """Items of 0.01 s: ten minutes or, after a hang, two, and six times as long as the others; at first a guess."""
    many, one = Task("a", crashing.commit, ("", 0, 1000), 1000, crashing.halves), Task("b", crashing.commit, None)
    known, unknown = Book(deque(), rate=0.01), Book(deque())
    whole, piece = Attempt(many), Attempt(many, is_last=True)

    assert [round(patience(known, attempt)) for attempt in (whole, piece)] == [660, 180]
    assert [round(patience(unknown, attempt)) for attempt in (whole, piece)] == [850, 370]
    assert patience(unknown, Attempt(one)) == math.inf
    assert round(patience(known, Attempt(one))) == 600


@pytest.mark.usefixtures("impatient")
def test_task_that_hangs_twice_and_cannot_be_cut_fails(ray_runner: cluster.RayRunner, tmp_path: Path) -> None:
    (outcome,) = ended(ray_runner, task(crashing.hung, (str(tmp_path), 7, 8))).values()

    assert isinstance(outcome.error, TaskError)
    assert "died or hung twice" in str(outcome.error)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("small") / "photos", small_set())


def audit_with(runner: cluster.RayRunner, photos: Path, root: Path, **config: Any) -> None:
    values = {"sources": (str(photos),), "root": str(root), "shard_size": 4, **config}
    run_audit(config_from(values), Call(lambda images, _: KeptRunner(runner), SilentReporter(), "the same command"))


def test_image_that_kills_its_process_is_quarantined(
    ray_runner: cluster.RayRunner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shard goes on; over 1% ends the run as incomplete; the next run tries it again and is like any other."""
    monkeypatch.setattr(preparing.extract, "extract", crashing.poisoned_extract)
    with pytest.raises(IncompleteError, match=r"1 of 27 images could not be read \(1 crashed\)(.|\n)*Resume with"):
        audit_with(ray_runner, photos, tmp_path / "audit", shard_size=2)
    audit_with(ray_runner, photos, tmp_path / "audit", shard_size=2, max_failed_share=0.1)
    (row,) = pipeline.open(tmp_path / "audit").invalid(filter=pipeline_status("crashed")).to_pylist()
    monkeypatch.undo()
    undisturbed = run(photos, root=tmp_path / "other")
    again = run(photos, root=tmp_path / "audit", shard_size=9, neighbours={"space": "new"})

    assert row["image_id"] == crashing.POISON
    assert "died or hung twice" in row["message"]
    assert_equal_tables(again, undisturbed)


@pytest.mark.slow
def test_pair_that_kills_its_process_is_judged_without_pixels(
    ray_runner: cluster.RayRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It alone, and the log names it; the run ends well, and so does the next one, which has nothing to do."""
    files = small_set()
    plain = [uri for uri in files if uri.startswith("train/a/a")]
    files |= {uri.replace("/a/a", "/a/half"): half_size(files[uri]) for uri in plain}
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    undisturbed = edges_of(run(photos, root=tmp_path / "other"))
    monkeypatch.setattr(verifying, "VERIFY_PAIRS", 2)
    monkeypatch.setattr(verifying.verify, "verify", crashing.poisoned_verify)
    audit_with(ray_runner, photos, root)
    before, edges = committed(root), edges_of(pipeline.open(root))
    audit_with(ray_runner, photos, root)

    poison = edges.pop(crashing.POISON)
    assert poison == undisturbed.pop(crashing.POISON) | {
        "kind": "look_alike", "correlation": None, "overlap": None, "is_mirrored": None, "is_verified": False,
    }  # fmt: skip
    assert edges == undisturbed
    images = pipeline.open(root).table("images").to_pylist()
    (said,) = [record.getMessage() for record in caplog.records if "similarity alone decides" in record.getMessage()]
    assert all(images[poison[name]]["uri"] in said for name in ("image_id", "match_id"))
    assert committed(root) == before


def edges_of(audit: Audit) -> list[dict[str, Any]]:
    """All verified pairs of a root with one folder of them."""
    store = audit.root.open()
    (folder,) = {info.key.rpartition("/")[0] for info in store.list("edges/")}
    return [row for piece in edge_slices(store, folder) for row in read_edges(store, piece).to_pylist()]


def pipeline_status(status: str) -> Any:
    import pyarrow.compute as pc

    return pc.field("status") == status


def test_initialised_ray_is_used_and_left(ray_runner: cluster.RayRunner, photos: Path, tmp_path: Path) -> None:
    """A notebook's Ray carries the tasks out and is there afterwards; the address of another cluster is refused."""
    audit = pipeline.run(photos, root=tmp_path / "audit", where=Where("ray", workers=1), shard_size=9)
    joined = pipeline.run(photos, root=tmp_path / "other", where=Where(address="auto"), shard_size=9)
    with pytest.raises(UsageError, match=r"this process is on the Ray cluster at .*'127\.0\.0\.1:1'"):
        pipeline.run(photos, root=tmp_path / "audit", where=Where(address="127.0.0.1:1"))

    assert audit is not None
    assert joined is not None
    sessions = [(found.published.session["runner"], found.published.session["workers"]) for found in (audit, joined)]
    assert sessions == [("ray", 1), ("ray", 2)]
    assert_equal_tables(audit, joined)
    assert ended(ray_runner, task(crashing.commit, (str(tmp_path), 0, 1)))["commit-0-1"].error is None


@pytest.mark.usefixtures("ray_runner")
def test_nothing_runs_on_in_the_callers_ray(tmp_path: Path) -> None:
    """A run that is given up ends its tasks: the cluster that it was called on does not end with it."""
    os.mkfifo(tmp_path / "pipe")
    folder = str(tmp_path)
    tasks = [task(crashing.hung, (folder, 7, 8)), task(crashing.commit, (folder, 1, 2))]
    outcomes = cluster.start_ray().run(tasks)
    assert next(outcomes).error is None
    held = os.open(tmp_path / "pipe", os.O_WRONLY)  # comes back when the other one reads
    (path,) = tmp_path.glob("waiting-*")
    worker = psutil.Process(int(path.name.split("-")[1]))
    outcomes.close()

    assert psutil.wait_procs([worker], timeout=60) == ([worker], [])
    os.close(held)


def test_worker_killed_inside_a_shard_changes_nothing(
    ray_runner: cluster.RayRunner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies after a part of its shard was committed: the tables are those of an undisturbed run."""
    monkeypatch.setattr(preparing.extract, "extract", crashing.extract_dying_once)
    audit_with(ray_runner, photos, tmp_path / "audit")
    monkeypatch.undo()

    assert list(tmp_path.glob("tried-*"))
    assert_equal_tables(pipeline.open(tmp_path / "audit"), run(photos, root=tmp_path / "other"))


def test_full_disk_ends_the_run_at_once(
    ray_runner: cluster.RayRunner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that finds the disk full is the end of the run, with its own message; what was done is kept."""
    monkeypatch.setattr(preparing.extract, "extract", crashing.full_extract)
    with pytest.raises(StorageFull, match=r"features/.*Free space or raise the quota"):
        audit_with(ray_runner, photos, tmp_path / "audit", shard_size=7)
    monkeypatch.undo()
    before = committed(tmp_path / "audit")
    audit_with(ray_runner, photos, tmp_path / "audit", shard_size=7)

    after = committed(tmp_path / "audit")
    assert {key: after.get(key) for key in before if "/rows-" in key} == {
        k: v for k, v in before.items() if "/rows-" in k
    }
    assert_equal_tables(pipeline.open(tmp_path / "audit"), run(photos, root=tmp_path / "other"))
