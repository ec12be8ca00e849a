"""Audits of synthetic features on a Ray cluster of several nodes, and a saboteur that kills what carries them out.

The saboteur follows the progress that the driver tells: no kill waits for a time, so every seed hits the stages that
were drawn for it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from dying import PROCESSES, small_parts
from held import environment

import pipeline
from benchmarks.synthetic import World
from benchmarks.synthetic_root import Place, write_synthetic
from pipeline.audit import Audit
from pipeline.config import AuditConfig, config_from
from pipeline.layout.models import store_model
from pipeline.layout.parts import cut
from pipeline.layout.root import Root, claim
from pipeline.plan import Call, joining, preparing, publishing, run_audit, searching, verifying
from pipeline.plan.components import Cuts, components
from pipeline.plan.preparing import features_folder
from pipeline.plan.session import Session
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Runner

IMAGES, FRAMES = 3_000, 100
KILLED = -9
MOST_LIVES = 12
STAGES = (
    "annotate", "exact groups", "moments", "train", "train lists (copy)", "assign copy", "join copy", "merge copy",
    "clusters", "thin", "pairs", "verify", "stars", "unite", "components", "train lists (semantic)",
    "assign semantic", "join semantic", "join semantic (further)", "merge semantic", "recall", "outlier queries",
    "outlier search",
    "outlier tail", "score", "totals", "findings", "summary",
)  # fmt: skip
OF_MANY_PARTS = (
    "annotate", "assign copy", "join copy", "merge copy", "thin", "pairs", "verify", "stars", "components",
    "assign semantic", "join semantic", "join semantic (further)", "merge semantic", "outlier search", "score",
    "findings",
)  # fmt: skip


def config_of(root: Path) -> AuditConfig:
    """Search by lists in several partitions, recall and tail included; no pixels."""
    neighbours = {
        "exact_limit": 0, "partition_rows": 900, "copy_probes": 2, "semantic_probes": 2, "recall_sample": 300,
    }  # fmt: skip
    values = {"sources": (), "root": str(root), "start": "features", "verify": {"pixels": False}}
    return config_from({**values, "neighbours": neighbours})


def make_features(root: Path, images: int = IMAGES) -> Path:
    """A root with the catalog and the features of synthetic images."""
    config = config_of(root)
    session = Session(config, Root(str(root), config.storage), LocalRunner(), SilentReporter(), "")
    claim(session.root)
    folder = features_folder(session, store_model(session.root, "", {}))
    write_synthetic(World(images), FRAMES, Place(session.root, f"{root}-images", folder, 1024), 1)
    return root


def run_all(root: Path, start: Callable[[], Runner], reporter: SilentReporter) -> Audit:
    """Every stage after extraction."""
    published = run_audit(config_of(root), Call(lambda images, of: start(), reporter, "the same command"))
    assert published is not None
    return pipeline.open(root)


def many_parts(set_to: Callable[[Any, str, Any], None] = setattr, size: int = 512) -> None:
    """Makes several parts of every stage that can have them."""
    small_parts(set_to)
    for module in (joining, searching, publishing):
        set_to(module, "query_ranges", lambda total: cut(0, total, size))
    set_to(joining, "LEAST_JOIN_TASKS", 12)
    set_to(verifying, "VERIFY_PAIRS", size)
    set_to(preparing, "ANNOTATION_ROWS", 1024)
    set_to(searching, "components", partial(components, cuts=Cuts(pairs=2 * size, fan_in=2, ids=2 * size)))


class Telling(SilentReporter):
    """Tells the saboteur (stage, outcomes so far) as they come, and goes on when it is told to."""

    def __init__(self, told: Any) -> None:
        self._told, self._stage, self._parts = told, "", 0

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins."""
        self._stage, self._parts = stage, 0
        self._tell()

    def advance(self, items: int) -> None:
        """An outcome."""
        self._parts += 1
        self._tell()

    def _tell(self) -> None:
        self._told.send((self._stage, self._parts))
        self._told.recv()


def _live(root: str, address: str, told: Any) -> None:
    os.environ.update(environment())
    from pipeline.cluster import join_ray

    many_parts()
    run_all(Path(root), lambda: join_ray(address), Telling(told))


@dataclass(frozen=True)
class Kill:
    """What is killed (worker, node or driver) in which stage, after so many of its outcomes."""

    what: str
    stage: str
    after: int


@dataclass
class Account:
    """What a saboteur did: kills in order, the titles of workers that died at work, and how each driver ended."""

    kills: list[Kill] = field(default_factory=list)
    at_work: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def stages(self, what: str) -> list[str]:
        """Stages in which such a thing was killed."""
        return [kill.stage for kill in self.kills if kill.what == what]


class Nodes:
    """A Ray cluster on this machine: the head and another node, of one core each; one that dies is replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quick = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 2000,
            "health_check_failure_threshold": 4,
        }
        head = {"num_cpus": 1, "object_store_memory": 80_000_000, "_system_config": quick}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.added = self._add()

    @property
    def address(self) -> str:
        """host:port of the head."""
        return str(self.cluster.address)

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80_000_000)

    def kill_one(self) -> None:
        """SIGKILL of the raylet of the node that is not the head, as when its machine goes; another one comes."""
        gone = self.added
        os.kill(_raylet_of(gone), signal.SIGKILL)
        self.added = self._add()
        self.cluster.remove_node(gone, allow_graceful=False)

    def busy_workers(self) -> list[psutil.Process]:
        """Processes that carry a task out now."""
        found = []
        for node in (self.cluster.head_node, self.added):
            with suppress(psutil.Error):
                found += [child for child in psutil.Process(_raylet_of(node)).children() if _task_of(child)]
        return found

    def close(self) -> None:
        """Ends all of it."""
        self.cluster.shutdown()


def _raylet_of(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


def _task_of(process: psutil.Process) -> str:
    """Name of the task that a worker carries out, "" where it waits for one."""
    with suppress(psutil.Error, IndexError):
        title = process.cmdline()[0]
        if title.startswith("ray::") and "/" in title:  # a key; else it waits, or is an agent that its raylet needs
            return title.removeprefix("ray::")
    return ""


def draw(seed: int, workers: int) -> list[Kill]:
    """So many workers, a node and a driver, each in another stage; every third seed kills the driver in a short one."""
    chance = random.Random(seed)
    many = chance.sample(OF_MANY_PARTS, workers + 1)
    others = chance.sample([stage for stage in STAGES if stage not in OF_MANY_PARTS], 2)
    kinds = ["node", "driver", *["worker"] * (workers - 1)]
    kills = [Kill(what, stage, chance.randint(0, 2)) for what, stage in zip(kinds, many, strict=True)]
    if seed % 3 == 2:
        kills[1] = Kill("driver", others[1], 0)
    return [*kills, Kill("worker", others[0], 0)]


def sabotage(nodes: Nodes, root: Path, drawn: list[Kill]) -> Account:
    """Lets one driver after the other work on the root, until one comes to its end, and kills as drawn.

    A stage of one short task may end before its worker is seen: then one of a later stage dies.
    """
    account, waiting, late = Account(), {kill.stage: kill for kill in drawn}, list[Kill]()
    for _ in range(MOST_LIVES):
        with _driver(nodes, root) as (process, told):
            latest = ""
            with suppress(EOFError, ConnectionError):
                while True:
                    stage, parts = told.recv()
                    if stage != latest and latest in waiting and waiting[latest].what == "worker":
                        late.append(waiting.pop(latest))
                    latest, is_late = stage, stage not in waiting
                    kill = waiting.get(stage, replace(late[0], stage=stage, after=0) if late else None)
                    if kill is None or kill.what != "driver" or parts < kill.after:
                        told.send("go on")  # else it could be at its end before it is killed
                    if kill is not None and parts >= kill.after and _done(nodes, kill, process, told, account):
                        account.kills.append(kill)
                        late = late[is_late:]
                        waiting.pop(stage, None)
            process.join()
            account.codes.append(process.exitcode or 0)
        if account.codes[-1] == 0:
            return account
    raise AssertionError(f"no driver came to its end: {account}")


@contextmanager
def _driver(nodes: Nodes, root: Path) -> Iterator[tuple[Any, Connection]]:
    told, tells = Pipe()
    process = PROCESSES.Process(target=_live, args=(str(root), nodes.address, tells))
    process.start()
    tells.close()
    try:
        yield process, told
    finally:
        process.kill()
        process.join()


def _done(nodes: Nodes, kill: Kill, driver: Any, told: Connection, account: Account) -> bool:
    """Whether the kill was carried out: a worker must be at work."""
    if kill.what == "driver":
        driver.kill()
        return True
    if kill.what == "node":
        nodes.kill_one()
        return True
    while not told.poll(0):
        for worker in nodes.busy_workers():
            if task := _task_of(worker):
                with suppress(psutil.Error):
                    worker.kill()
                    account.at_work.append(task)
                    return True
    return False


def copy_of(root: Path, target: Path) -> Path:
    """A root of its own with the same features."""
    shutil.copytree(root, target)
    return target
