"""A session: one call of an audit, with its runner, its reporter and the record of every stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from pipeline.config import AuditConfig
from pipeline.errors import ArtifactError, AuditError, IncompleteError, NotFound, StorageUnavailable, TaskBug
from pipeline.layout.root import Root
from pipeline.layout.tables import read_json, write_json
from pipeline.progress import Reporter
from pipeline.runner import FATAL, LocalRunner, Outcome, Runner, Task
from pipeline.storage import Store

RunnerStart = Callable[[int, Root], Runner]
"""(images to extract or as much other work, root) -> the runner that carries the tasks out."""

STATUS_FOLDER = "status"
SHOWN_FAILURES = 5
STORE_GONE = 3  # parts in a row that no store answered, three attempts each: the others would wait as long in vain
DONE, DONE_BEFORE, FAILED, UNFINISHED, STOPPED = "done", "done before", "failed", "unfinished", "stopped"


@dataclass(frozen=True)
class StageWork:
    """A stage: its folder, the tasks that are missing, and the items and parts that it has in all."""

    name: str
    folder: str
    tasks: Sequence[Task]
    items: int
    parts: int


@dataclass
class StageRecord:
    """What a stage did in this session; seconds and CPU seconds of this session alone.

    `session`: when that began, which tells the stages of the latest run from those that others left in the root.
    `waiting`: parts that were not done when it was written, and `waiting_items` what each of them still holds.
    """

    stage: str
    folder: str
    session: str = ""
    runner: str = ""
    order: int = 0
    state: str = UNFINISHED
    items: int = 0
    parts: int = 0
    parts_done_before: int = 0
    items_done_before: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_task_bytes: int = 0
    attempts: int = 0
    waiting: list[str] = field(default_factory=list)
    waiting_items: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    failed_images: int = 0
    counters: dict[str, float] = field(default_factory=dict)


@dataclass
class Session:
    """The state of one call: nothing here decides a table, but for the annotations (`table_hash`, of the rule's table
    as the root has it).
    """

    config: AuditConfig
    root: Root
    runner: Runner
    reporter: Reporter
    resume_command: str
    started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="microseconds"))
    records: list[StageRecord] = field(default_factory=list)
    table_hash: str = ""
    detections: str = ""

    @property
    def store(self) -> Store:
        """The store behind the root."""
        return self.root.open()

    def run(self, work: StageWork) -> dict[str, float]:
        """Carries the missing tasks of a stage out; returns the sums of their counters.

        Raises a fatal cause at once; else, after every other part was tried, TaskBug where one met a bug, ArtifactError
        where a damaged file must be dealt with first, IncompleteError where running again may be enough. Where the
        latest parts failed because a store does not answer, the stage ends with StorageUnavailable.
        """
        if not work.tasks and any(record.stage == work.name for record in self.records):
            return {}  # another reader of what this session made, or found made: its record stays
        work = self._without_risk(work)
        record = self._begin(work)
        started = time.perf_counter()
        counters: defaultdict[str, float] = defaultdict(float)
        failures: list[Outcome] = []
        fatal: Outcome | None = None
        left = {task.name: task.items for task in work.tasks}
        silent = 0  # parts in a row for which a store had no answer
        for outcome in self._outcomes(work, record):
            self._account(record, outcome)
            silent = silent + 1 if isinstance(outcome.error, StorageUnavailable) else 0
            if outcome.error is None:
                take_off(left, outcome.task)
                for name, value in outcome.counters.items():
                    counters[name] += value
                self.reporter.advance(outcome.task.items)
                continue
            failures.append(outcome)
            if isinstance(outcome.error, FATAL):
                fatal = outcome
            if fatal or silent == STORE_GONE:
                break
        record.counters = dict(counters)
        record.waiting, record.waiting_items = ([*left], [*left.values()]) if failures else ([], [])
        self._end(record, failures, time.perf_counter() - started)
        if fatal is not None and fatal.error is not None:
            raise fatal.error
        if failures:
            is_gone = silent >= min(STORE_GONE, len(work.tasks))
            raise _failure(work, failures, self.resume_command, IncompleteError if not is_gone else StorageUnavailable)
        return dict(counters)

    def _outcomes(self, work: StageWork, record: StageRecord) -> Iterator[Outcome]:
        try:
            yield from self.runner.run(work.tasks) if work.tasks else ()
        except (KeyboardInterrupt, SystemExit):
            record.state = STOPPED  # on purpose: its part is not suspected of having killed the process
            self._write(record)
            raise

    def _without_risk(self, work: StageWork) -> StageWork:
        """Marks the part in which a driver that carried the tasks out itself ended without a word: it may have died
        of an image. Such a driver works in order, so it is the first part of its record that is not there.
        """
        known = self._known(work.name) if any(task.quarantine for task in work.tasks) else {}
        if known.get("state") != UNFINISHED or known.get("runner") != LocalRunner.name:
            return work
        waiting = {task.name for task in work.tasks}
        suspect = next((name for name in known["waiting"] if name in waiting), "")
        if suspect:
            self.reporter.say(f"an earlier run may have died of an image of {suspect}: it gets a process of its own")
        tasks = [replace(task, is_suspect=task.is_suspect or task.name == suspect) for task in work.tasks]
        return replace(work, tasks=tasks)

    def run_one(self, name: str, folder: str, files: Sequence[str], task: Task) -> None:
        """Carries a stage of one task out unless all of its files are there; the last one is written last."""
        keys = [f"{folder}/{file}" for file in files]
        tasks = [] if all(self.store.exists(key) for key in keys) else [replace(task, name=keys[-1])]
        self.run(StageWork(name, folder, tasks, task.items, 1))

    def timed(self, name: str, folder: str) -> StageRecord:
        """A record for work that the driver does itself; close it with `close`."""
        self.reporter.start(name, 0, 0)
        return self._begin(StageWork(name, folder, (), 0, 0))

    def close(self, record: StageRecord, seconds: float, cpu_seconds: float, items: int) -> None:
        """Ends a record that `timed` began."""
        record.items, record.cpu_seconds, record.attempts, record.parts = items, cpu_seconds, 1, 1
        self._end(record, [], seconds)

    def _begin(self, work: StageWork) -> StageRecord:
        record = StageRecord(
            work.name,
            work.folder,
            session=self.started_at,
            runner=self.runner.name,
            order=len(self.records),
            items=work.items,
            parts=work.parts,
            waiting=[task.name for task in work.tasks],
            waiting_items=[task.items for task in work.tasks],
            parts_done_before=work.parts - len(work.tasks),
            items_done_before=work.items - sum(task.items for task in work.tasks),
        )
        self.records.append(record)
        if work.tasks:
            self.reporter.start(work.name, work.items, record.items_done_before)
            self._write(record)
        return record

    def _account(self, record: StageRecord, outcome: Outcome) -> None:
        record.cpu_seconds += outcome.cpu_seconds
        record.peak_task_bytes = max(record.peak_task_bytes, outcome.peak_bytes)
        record.attempts += outcome.attempts

    def _end(self, record: StageRecord, failures: Sequence[Outcome], seconds: float) -> None:
        record.seconds = seconds
        record.failed = [outcome.task.name for outcome in failures]
        record.state = FAILED if failures else DONE if record.attempts or not record.parts else DONE_BEFORE
        record.failed_images = int(record.counters.get("transient", 0))
        if record.attempts:
            self.reporter.finish(seconds)
        self._write(record)

    def count_failed_images(self, stage: str, count: int) -> None:
        """Corrects the record of a stage by how many images it could not read in all attempts so far."""
        for record in self.records:
            if record.stage == stage and record.failed_images != count:
                record.failed_images = count
                self._write(record)

    def _write(self, record: StageRecord) -> None:
        value = record_to_json(record)
        if record.state == DONE_BEFORE:
            value |= self._took(record)
        write_json(self.store, status_key(record.stage), value)

    def _known(self, stage: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = read_json(self.store, status_key(stage))
        except (NotFound, ArtifactError):
            return {}
        return found

    def _took(self, record: StageRecord) -> dict[str, Any]:
        """What a stage with nothing left to do took in the session that did it, where that is known."""
        known = self._known(record.stage)
        if not known:
            return {}
        same = known["state"] in (DONE, DONE_BEFORE) and known["folder"] == record.folder
        return {name: known[name] for name in TOOK} if same and known["items"] == record.items else {}


TOOK = ("items_done_before", "seconds", "cpu_seconds", "peak_task_bytes", "counters")


def take_off(left: dict[str, int], task: Task) -> None:
    """Takes what a task has done off the items that are left per part; one that was cut goes with its last piece."""
    name = task.name
    while name and name not in left:  # a piece is named below what it was cut from
        name = name.rpartition("/")[0]
    if name:
        left[name] -= task.items
        if left[name] <= 0:
            del left[name]


def status_key(stage: str) -> str:
    """Key of the record of a stage."""
    return f"{STATUS_FOLDER}/{stage.replace(' ', '_')}.json"


def record_to_json(record: StageRecord) -> dict[str, Any]:
    """The document of a stage record."""
    return dict(vars(record))


def _failure(work: StageWork, failures: Sequence[Outcome], resume_command: str, least: type[AuditError]) -> AuditError:
    """The error of a stage of which parts failed: that of the gravest cause, whose parts are named first."""
    graves = (TaskBug, ArtifactError)
    kind = next((kind for kind in graves if any(isinstance(item.error, kind) for item in failures)), least)
    failures = sorted(failures, key=lambda outcome: not isinstance(outcome.error, kind))
    shown = [f"  {outcome.task.name}: {outcome.error}" for outcome in failures[:SHOWN_FAILURES]]
    more = [f"  (+{len(failures) - SHOWN_FAILURES} more)"] if len(failures) > SHOWN_FAILURES else []
    first = f"stage {work.name}: {len(failures)} of {work.parts} parts failed; the others are kept."
    last = f"Resume with: {resume_command}"
    if kind is TaskBug:
        last = f"This is a bug: please report the traceback. Another version resumes with: {resume_command}"
    return kind("\n".join([first, *shown, *more, last]))
