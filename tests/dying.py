"""Audits in a process of their own that kill themselves with SIGKILL at a chosen place, and a log of what they did."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import crashing
import psutil
from held import environment

from pipeline.config import config_from
from pipeline.layout.parts import cut
from pipeline.layout.root import Root
from pipeline.plan import Call, joining, preparing, publishing, run_audit, searching, verifying
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Outcome, Runner, Task

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pipeline.api", "pipeline.plan", "onnxruntime", "cv2", "faiss"])


@dataclass(frozen=True)
class Life:
    """An audit of `photos` into `root`, and where it ends: never, or

    in `stage` after `parts` outcomes (0 = when the stage has ended), or around the commit number `commit` of a new
    file: right before it or, where `is_after`, right after. `runner`: local or ray. Every outcome goes into `log`.
    `worker_dies`: on Ray, a worker is killed in every stage of at least `of_parts` parts: before or after it commits.
    """

    photos: str
    root: str
    log: str
    stage: str = ""
    parts: int = 0
    commit: int = 0
    is_after: bool = False
    runner: str = "local"
    worker_dies: str = ""
    of_parts: int = 2
    config: tuple[tuple[str, Any], ...] = (("shard_size", 8),)


def live(life: Life) -> int:
    """Lets the audit live in a process of its own; returns its exit code, -9 where it was killed."""
    process = PROCESSES.Process(target=_audit, args=(life,))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def outcomes(log: Path) -> Counter[str]:
    """Stage -> tasks that ended well, over all lives that wrote to the log."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def committed(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every committed file but records of sessions, and what goes once it was read -> inode, time and size."""
    found = {}
    for path in _files(root):
        key = path.relative_to(root).as_posix()
        is_kept = not key.startswith(("status/", "sessions/", "work/")) and "/work/" not in key
        if is_kept and path.name != "run.json" and not path.name.startswith("."):
            status = path.stat()
            found[key] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def _files(root: Path) -> Iterable[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _audit(life: Life) -> None:
    small_parts()
    if life.commit:
        _die_at_commit(life)
    config = config_from({"sources": (life.photos,), "root": life.root, **dict(life.config)})
    run_audit(config, Call(lambda images, root: _runner(life, root), DyingReporter(life), "the same command"))


def _runner(life: Life, root: Root) -> Runner:
    if life.runner == "local":
        return LocalRunner()
    from pipeline.cluster import start_ray

    os.environ.update(environment(), IMAGE_AUDIT_LIFE=life.root)
    runner = start_ray(2)
    return DeadlyRunner(runner, life) if life.worker_dies else runner


class DeadlyRunner:
    """A runner on which a worker dies in every stage of so many parts, in the second of them."""

    name = "ray"

    def __init__(self, runner: Runner, life: Life) -> None:
        self._runner, self._life = runner, life
        self.workers, self.close = runner.workers, runner.close

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields the outcomes; an attempt more than its tasks take."""
        life, listed = self._life, [*tasks]
        if len(listed) >= life.of_parts:
            at = min(1, len(listed) - 1)
            spec = (str(Path(life.log).parent), life.worker_dies, listed[at])
            listed[at] = replace(listed[at], function=crashing.dies_once, spec=spec, halves=None, quarantine=None)
        return self._runner.run(listed)


def processes_of(life: Life) -> list[psutil.Process]:
    """Processes that a life on Ray has started and that are there still."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("IMAGE_AUDIT_LIFE") == life.root:
                found.append(process)
    return found


def small_parts(set_to: Callable[[Any, str, Any], None] = setattr) -> None:
    """Makes many parts of few images, so that every stage can die between two of them."""
    set_to(verifying, "VERIFY_PAIRS", 4)
    set_to(preparing, "ANNOTATION_ROWS", 10)
    for module in (joining, searching, publishing):
        set_to(module, "query_ranges", lambda total: cut(0, total, 12))


def die() -> None:
    """Ends this process at once, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingReporter(SilentReporter):
    """Counts the outcomes of each stage, logs them, and dies where it is told to."""

    def __init__(self, life: Life) -> None:
        self._life, self._stage, self._parts = life, "", 0

    def start(self, stage: str, total: int, done: int) -> None:
        """Remembers the stage."""
        self._stage, self._parts = stage, 0

    def advance(self, items: int) -> None:
        """Logs the outcome; dies after the wanted number of them."""
        self._parts += 1
        with Path(self._life.log).open("a") as log:
            log.write(f"{self._stage}\n")
        if (self._stage, self._parts) == (self._life.stage, self._life.parts):
            die()

    def finish(self, seconds: float) -> None:
        """Dies when the wanted stage has ended, before its record says so."""
        if (self._stage, 0) == (self._life.stage, self._life.parts):
            die()


def _die_at_commit(life: Life) -> None:
    """Wraps the two calls that make a file of a root visible; what only tells of a session is new in every life."""
    count = 0
    for name in ("link", "replace"):
        make_visible = getattr(os, name)

        def commit(source: Any, target: Any, make_visible: Any = make_visible) -> None:
            nonlocal count
            is_new = not Path(target).exists() and not {"status", "sessions"} & set(Path(target).parts)
            count += is_new
            if is_new and count == life.commit and not life.is_after:
                die()
            make_visible(source, target)
            if is_new and count == life.commit:
                die()

        setattr(os, name, commit)
