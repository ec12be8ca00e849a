"""Tasks that Ray itself cannot carry out: their workers' environment is not to be had."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crashing
import pytest
import ray
from held import environment

from pipeline import cluster
from pipeline.runner import Outcome, Task, TaskError


@pytest.fixture(scope="module")
def joined() -> Iterator[cluster.RayRunner]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(BAD_RUNTIME_ENV_CACHE_TTL_SECONDS="0").items():  # else ten minutes
            patch.setenv(name, value)
        runner = cluster.start_ray(2)
        yield runner
        runner.close()


@pytest.fixture
def failing(
    joined: cluster.RayRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[cluster.RayRunner, Path]:
    """A runner whose workers need an archive, and where that is to be."""
    archive = tmp_path / "archive.zip"
    remote: Any = ray.remote(runtime_env={"py_modules": [archive.as_uri()]})
    monkeypatch.setattr(joined, "_remote", remote(cluster._execute))
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    return joined, archive


def tasks(folder: Path) -> list[Task]:
    return [Task(f"task-{at}", crashing.commit, (str(folder), at, at + 1)) for at in range(3)]


def test_what_ray_fails_at_is_tried_again(
    failing: tuple[cluster.RayRunner, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is there after the first failure: every task ends once, and none of it counts as its attempt."""
    runner, archive = failing
    failed: list[str] = []
    after = cluster.RayRunner._after_failure

    def mend(self: cluster.RayRunner, book: Any, attempt: Any, error: Exception) -> Iterator[Outcome]:
        failed.append(type(error).__name__)
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("module/there.py", "")
        return after(self, book, attempt, error)

    monkeypatch.setattr(cluster.RayRunner, "_after_failure", mend)
    outcomes = [*runner.run(tasks(tmp_path))]

    assert failed
    assert {*failed} == {"RuntimeEnvSetupError"}
    assert sorted(outcome.task.name for outcome in outcomes) == ["task-0", "task-1", "task-2"]
    assert [(outcome.error, outcome.attempts) for outcome in outcomes] == [(None, 1)] * 3


def test_what_ray_fails_at_for_good_fails_its_part(
    failing: tuple[cluster.RayRunner, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "FAILURES", 2)
    outcomes = [*failing[0].run(tasks(tmp_path))]

    assert sorted(outcome.task.name for outcome in outcomes) == ["task-0", "task-1", "task-2"]
    assert [type(outcome.error) for outcome in outcomes] == [TaskError] * 3
    assert all("archive.zip" in str(outcome.error) for outcome in outcomes)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("task-0: Ray could not")]
    assert len(said) == 1
