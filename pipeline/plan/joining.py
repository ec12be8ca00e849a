"""Joining: the stages that find the neighbours of every representative in one space, whatever its partitions.

Visits and hits are intermediates: made only while a reader of them is not done, and deleted when all are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.kernels.hits import JoinParams
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.indexes import Index
from pipeline.layout.inputs import Inputs
from pipeline.layout.joined import Joined
from pipeline.layout.parts import cut
from pipeline.layout.root import WORK
from pipeline.layout.snapshots import Snapshot, live_between
from pipeline.layout.visits import Visits, vectors_key, visits_key
from pipeline.plan.session import Session, StageWork
from pipeline.runner import Counters, Task
from pipeline.stages import assign, join
from pipeline.storage import Store

JOIN_ROWS = 8192  # queries per range: 14,000 images make two, a million 123
MOST_RANGES = 128  # up to 16.8 million images: each is a file that every partition opens
MOST_RANGE_ROWS = 131_072  # 0.4 GB of visits
LEAST_JOIN_TASKS = 16
MOST_TASK_QUERIES = 262_144
VISITED = 3  # partitions that a vector visits, of many; without lists all of them


@dataclass(frozen=True)
class SpaceJoin:
    """What is joined in one space: representatives of a snapshot under an index.

    name: of the space. made_of, assign: see `assign`. dimension: of the vectors. of: what decides them, for names.
    params: of the search. sample: queries that recall is measured with, 0 where the search is exact. has_siblings:
    whether frames of one video and boxes of one image are told apart from other images.
    """

    session: Session
    snapshot: Snapshot
    inputs: Inputs
    name: str
    index: Index
    made_of: str
    assign: Callable[[assign.AssignSpec], Counters]
    dimension: int
    params: JoinParams
    representatives: int
    sample: int
    of: dict[str, Any]
    has_siblings: bool

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The ranges of offsets that are assigned and merged."""
        return tuple(query_ranges(self.snapshot.total))

    @property
    def share(self) -> float:
        """Of the representatives that recall is measured with."""
        return min(1.0, self.sample / max(1, self.representatives)) if not self.index.is_exact else 0.0

    @property
    def is_in_rounds(self) -> bool:
        """Whether a vector is searched in the partition of its nearest list first, for a floor elsewhere.

        Without, each of the 4.5 partitions that a vector visits at 11.6 million returned all of its neighbours there.
        """
        return self.params.threshold is None and bool(self.index.folder) and self.index.count > 1

    @property
    def visits(self) -> Visits:
        """Where the visits are, or will be."""
        name = fingerprint(
            "visits", assign.VERSION, of=self.of, made_of=self.made_of, index=self.index, ranges=self.ranges,
            share=self.share, is_by_reference=self.session.store.local_path(WORK) is not None, rounds=self.is_in_rounds,
        )  # fmt: skip
        shape = (self.ranges, self.index.count, self.dimension, self.is_in_rounds, self.has_siblings)
        return Visits(self.session.root, f"{WORK}/{name}", *shape)

    @property
    def joined(self) -> Joined:
        """Where the hits are, or will be."""
        name = fingerprint("hits", join.VERSION, visits=self.visits.folder, params=self.params)
        return Joined(self.session.root, f"{WORK}/{name}", self.ranges, self.index.count, self.is_in_rounds)

    def require_visits(self) -> Visits:
        """The visits, made where they are not there."""
        visits, inputs = self.visits, self.inputs
        tasks = []
        for lo, hi in self.ranges:
            spec = assign.AssignSpec(inputs, self.made_of, self.index, self.share, visits, lo, hi)
            live = live_between(self.session.store, self.snapshot, lo, hi)
            beside = (vectors_key(visits.folder, lo, hi),) if visits.is_by_reference else ()
            tasks.append(Task(visits_key(visits.folder, lo, hi), self.assign, spec, live, beside=beside))
        run_ranges(self.session, f"assign {self.name}", visits.folder, tasks)
        return visits

    def require_hits(self) -> Joined:
        """The hits, made where they are not all there; so are the visits then."""
        joined, rounds = self.joined, [f"join {self.name}", f"join {self.name} (further)"]
        waiting = self._join_tasks(joined)
        if waiting:
            self.require_visits()
        committed = joined.committed()
        for number, name in enumerate(rounds[: 1 + self.is_in_rounds]):
            columns = range(number * self.index.count, (number + 1) * self.index.count)
            tasks = [task for task in waiting if task.spec.column in columns]
            every = sum(len(committed[column]) for column in columns) + len(tasks)
            self.session.run(StageWork(name, joined.folder, tasks, self.snapshot.live, every))
        return joined

    def merge(self, folder: str, tasks: list[Task]) -> None:
        """Carries the merges that are missing out, and before them what they read."""
        waiting = missing_tasks(self.session, folder, tasks)
        if waiting:
            self.require_hits()
        items = sum(task.items for task in tasks)
        self.session.run(StageWork(f"merge {self.name}", folder, waiting, items, len(tasks)))

    def live(self, number: int) -> int:
        """Live images of a range."""
        return live_between(self.session.store, self.snapshot, *self.ranges[number])

    def clear(self) -> None:
        """Deletes visits and hits: every reader of them is committed. What an attempt adds that Ray could not end in
        time goes with a later run.
        """
        for folder in (self.joined.folder, self.visits.folder):
            delete_folder(self.session.store, folder)

    def _ranges_per_task(self, column: int) -> int:
        """Ranges of a slice of queries of a column.

        16 tasks at least, of 262,144 queries at most; fewer queries convert the lists to float32 more often.
        """
        visited = min(self.index.count, VISITED) if self.index.folder else self.index.count
        if self.is_in_rounds and column < self.index.count:
            visited = 1
        visits = self.snapshot.total * visited
        tasks = max(LEAST_JOIN_TASKS, -(-visits // MOST_TASK_QUERIES))
        slices = max(1, min(len(self.ranges), -(-tasks // self.index.count)))
        return max(1, -(-len(self.ranges) // slices))

    def _join_tasks(self, joined: Joined) -> list[Task]:
        """Those of what is not committed, cut at multiples of the ranges per task."""
        visits, index = self.visits, self.index
        per_range = self.snapshot.live / max(1, len(self.ranges) * index.count)
        tasks = []
        for column, start, stop in joined.gaps():
            for first, last in cut(start, stop, self._ranges_per_task(column)):
                is_measured = bool(self.share) and first == 0 and column < index.count
                spec = join.JoinSpec(
                    visits, joined, self.params, column, first, last, is_measured, index.links, index.metric
                )
                name, items = joined.hits_key(column, first, last), int(per_range * (last - first))
                tasks.append(Task(name, join.join, spec, items, join.halves))
        return tasks


def lists_of(index: Index) -> dict[str, Any]:
    """What of an index decides the neighbours that are found: how lists are grouped into partitions does not."""
    graph: dict[str, Any] = {"links": index.links, "partitions": index.count} if index.links else {}
    graph |= {"metric": index.metric} if index.metric else {}
    return {"lists": index.folder, "probes": index.probes if index.folder else 0, **graph}


def delete_folder(store: Store, folder: str) -> None:
    """Deletes what is in a folder of intermediates."""
    for info in [*store.list(f"{folder}/")]:
        store.delete(info.key)


def missing_tasks(session: Session, folder: str, tasks: list[Task]) -> list[Task]:
    """Those tasks of a stage whose files are not all there; one listing."""
    have = {info.key for info in session.store.list(f"{folder}/")}
    return [task for task in tasks if not have.issuperset((task.name, *task.beside))]


def run_ranges(session: Session, name: str, folder: str, tasks: list[Task]) -> None:
    """Carries those tasks of a stage out whose files are not all there; one listing."""
    waiting = missing_tasks(session, folder, tasks)
    session.run(StageWork(name, folder, waiting, sum(task.items for task in tasks), len(tasks)))


def query_ranges(total: int) -> list[tuple[int, int]]:
    """Ranges of queries of about equal size, cut at multiples of 1,024: a function of the snapshot's size alone.

    They are part of the fingerprint of a folder of such ranges: a later version that cuts otherwise must not add its
    parts to those of this one.
    """
    tasks = max(1, min(-(-total // JOIN_ROWS), max(MOST_RANGES, -(-total // MOST_RANGE_ROWS))))
    size = max(1024, -(-total // (tasks * 1024)) * 1024)
    return cut(0, total, size)
