"""Looking into files that hold many images, in tasks of some files each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.layout.fragments import FOLDER, Parent
from pipeline.layout.lists import FOLDER as LISTS
from pipeline.layout.snapshots import LIST
from pipeline.plan.session import RunnerStart, Session, StageWork
from pipeline.runner import LocalRunner, Task
from pipeline.sources.fragments import VIDEO
from pipeline.stages import expand, prepare_list
from pipeline.storage import is_remote

EXPAND, PREPARE = "expand", "prepare lists"
TASK_BYTES, TASK_FILES = 2**31, 64
READ_BYTES, SKIPPED_BYTES = 700_000, 50_000_000
"""So much of a file is looked through in the time that extracts one image: where it is read or unpacked for that
(185 MB/s), and where the headers of an archive alone are."""


def expand_parents(session: Session, start_runner: RunnerStart, parents: Sequence[Parent]) -> None:
    """Looks into files, on a runner that is started for as much work and stays for the rest of the audit; lists are
    prepared first.
    """
    _prepare([parent for parent in parents if parent.kind == LIST], session)
    parents = [parent for parent in parents if parent.kind != LIST]
    if not parents:
        return
    if isinstance(session.runner, LocalRunner):
        session.runner = start_runner(sum(map(_work, parents)), session.root)
    tasks = []
    for batch in _batches(parents):
        spec = expand.ExpandSpec(session.root, batch)
        key = expand.part_key(spec)
        tasks.append(Task(key, expand.expand, spec, len(batch), expand.halves, expand.quarantine))
    session.run(StageWork(EXPAND, FOLDER, tasks, len(parents), len(tasks)))
    session.reporter.start("catalog", 0, 0)  # which goes on


def _prepare(lists: Sequence[Parent], session: Session) -> None:
    """Prepares lists, a task each: sorting is of the whole."""
    specs = [prepare_list.PrepareSpec(session.root, parent) for parent in lists]
    tasks = [Task(prepare_list.part_key(spec), prepare_list.prepare, spec, 1) for spec in specs]
    if tasks:
        session.run(StageWork(PREPARE, LISTS, tasks, len(tasks), len(tasks)))
        session.reporter.start("catalog", 0, 0)


def _work(parent: Parent) -> int:
    is_read = parent.kind in ("tar.gz", VIDEO) or is_remote(parent.place)
    return parent.info.size // (READ_BYTES if is_read else SKIPPED_BYTES)


def _batches(parents: Sequence[Parent]) -> Iterator[tuple[Parent, ...]]:
    batch: list[Parent] = []
    size = 0
    for parent in parents:
        if batch and (len(batch) == TASK_FILES or size + parent.info.size > TASK_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(parent)
        size += parent.info.size
    yield tuple(batch)
