"""Two Ray nodes on this machine (slow tier): one dies under its tasks, and a root must be seen by both."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crashing
import pytest
from held import environment

from pipeline import cluster
from pipeline.errors import UsageError
from pipeline.runner import Outcome, Task
from pipeline.storage import StorageConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without a core to give and two nodes of one core each; the runner joins by address."""
    from ray.cluster_utils import Cluster

    for name, value in {**environment(), **cluster.WORKER_ENVIRONMENT}.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    yield made
    made.shutdown()


def add(nodes: Any) -> Any:
    return nodes.add_node(num_cpus=1, object_store_memory=80_000_000)


def test_tasks_of_a_dead_node_run_elsewhere(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node whose task waits is removed; its death is not counted as an attempt, and every task ends once."""
    doomed = add(nodes)
    runner = cluster.join_ray(nodes.address)
    os.mkfifo(tmp_path / "pipe")
    tasks = [
        Task(f"task-{at}", crashing.first_hangs if at == 0 else crashing.commit, (str(tmp_path), at, at + 1))
        for at in range(6)
    ]
    watch = cluster.RayRunner._watch
    removed: list[bool] = []

    def watch_and_kill(self: cluster.RayRunner, book: Any) -> Iterator[Outcome]:
        if not removed and list(tmp_path.glob("waiting-*")):
            removed.append(True)
            add(nodes)
            nodes.remove_node(doomed, allow_graceful=False)
        return watch(self, book)

    monkeypatch.setattr(cluster.RayRunner, "_watch", watch_and_kill)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    outcomes = list(runner.run(tasks))
    runner.close()

    assert removed
    assert sorted(outcome.task.name for outcome in outcomes) == [task.name for task in tasks]
    assert all(outcome.error is None and outcome.attempts == 1 for outcome in outcomes)


def test_task_that_takes_its_nodes_along_is_cut_and_quarantined(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every node that item 2 of 4 runs on dies, of which there is one at a time: the others are done, it is settled."""
    working, killed = [add(nodes)], [0]
    runner = cluster.join_ray(nodes.address)
    os.mkfifo(tmp_path / "pipe")
    watch, say = cluster.RayRunner._watch, cluster._say_if_idle

    def watch_and_kill(self: cluster.RayRunner, book: Any) -> Iterator[Outcome]:
        if len(list(tmp_path.glob("waiting-*"))) > killed[0]:
            killed[0] += 1
            nodes.remove_node(working.pop(), allow_graceful=False)
        return watch(self, book)

    def say_and_add(book: Any) -> None:
        say(book)
        if book.is_idle and not working:
            working.append(add(nodes))

    monkeypatch.setattr(cluster.RayRunner, "_watch", watch_and_kill)
    monkeypatch.setattr(cluster, "_say_if_idle", say_and_add)
    monkeypatch.setattr(cluster, "NODES", 2)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    spec = (str(tmp_path), 0, 4)
    task = Task("task", crashing.waits_at_two, spec, 4, crashing.halves, crashing.quarantine)
    outcomes = {outcome.task.spec[1:]: outcome for outcome in runner.run([task])}
    runner.close()

    assert killed == [4]
    assert sorted(outcomes) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [path.name for path in tmp_path.glob("crashed-*")] == ["crashed-2-3"]
    assert [outcomes[at, at + 1].counters.get("items", 0) for at in range(4)] == [1, 1, 0, 1]
    said = [record.getMessage() for record in caplog.records]
    assert said.count("task: 2 nodes died under it") == 1
    assert any("no node is left to work: " in line for line in said)
    assert "a node joined: going on" in said


def test_nodes_that_come_later_get_work(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined without a core: tasks wait in Ray, as an autoscaler needs it; with the nodes come more, up to twice their
    cores and two.
    """
    runner = cluster.join_ray(nodes.address)
    watch, in_flight = cluster.RayRunner._watch, []

    def watch_and_grow(self: cluster.RayRunner, book: Any) -> Iterator[Outcome]:
        in_flight.append((self.workers, len(book.running)))
        if len(in_flight) < 4:
            add(nodes)
        if in_flight[-1] == (3, 8):
            gate.close()
        return watch(self, book)

    monkeypatch.setattr(cluster.RayRunner, "_watch", watch_and_grow)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)
    tasks = [Task(f"task-{at}", crashing.gated, (str(tmp_path), at, at + 1)) for at in range(60)]
    with (tmp_path / "gate").open("wb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        outcomes = list(runner.run(tasks))
    runner.close()

    assert in_flight[0] == (1, 4)
    assert (3, 8) in in_flight
    assert max(running for _, running in in_flight) == 8
    assert sorted(outcome.task.name for outcome in outcomes) == sorted(task.name for task in tasks)


def test_shared_root_is_proved_on_each_node(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both nodes share this disk, so the root is taken; sent to read elsewhere, the one without it is named."""
    add(nodes)
    add(nodes)
    (tmp_path / "root").mkdir()
    runner = cluster.join_ray(nodes.address)
    runner.require_shared_root(str(tmp_path / "root"), StorageConfig())
    read_on, seen = cluster.RayRunner._read_on, []

    def read_elsewhere(self: cluster.RayRunner, node_id: str, root: str, storage: StorageConfig, key: str) -> Any:
        seen.append(node_id)
        return read_on(self, node_id, root if len(seen) > 1 else str(tmp_path / "elsewhere"), storage, key)

    monkeypatch.setattr(cluster.RayRunner, "_read_on", read_elsewhere)
    with pytest.raises(UsageError, match="is not shared: nodes "):
        runner.require_shared_root(str(tmp_path / "root"), StorageConfig())
    runner.close()

    assert len(set(seen)) == 2
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]
