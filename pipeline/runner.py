"""Tasks and the runner that carries them out in this process.

A runner takes tasks and gives an outcome for each, in the order in which they end. A task is a module-level function
and a small picklable spec; it commits its own output and returns counters only.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import (
    AuditError,
    BadCredentials,
    ModelError,
    StorageFull,
    StorageUnavailable,
    TaskBug,
    UsageError,
)
from pipeline.kernels.native_decode import leave_hung
from pipeline.layout.root import forget_kept
from pipeline.pulse import watched
from pipeline.threads import single_thread

Counters = Mapping[str, float]

FATAL = (BadCredentials, ModelError, StorageFull, UsageError)
"""Causes that every other task would meet as well, and that running again does not mend: the stage stops at the first.
"""

ATTEMPTS = 3
PATIENCE_SECONDS = 600.0
"""An attempt in a process of its own that takes longer, and a second longer per item, is taken for one that hangs."""
IMAGE_SECONDS, APART_SECONDS = 120.0, 60.0
"""So is one that looks at a single image for longer, here or there: the largest that is decoded takes a few."""
HUNG_CUTS = 4  # a task that hung is cut in 16 at once: each level costs the patience once more

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A unit of work, retry and commit: `function(spec)` commits the part `name` last and returns counters.

    `beside`: keys of what else it commits; the task is done when all of them are there too.
    `halves(spec)` cuts a task whose process died twice; `quarantine(spec, cause)` settles a task that cannot be cut.
    `is_suspect`: a process died in it before, so that it must not be carried out in the driver's own.
    """

    name: str
    function: Callable[[Any], Counters]
    spec: Any
    items: int = 1
    halves: Callable[[Any], list[Any]] | None = None
    quarantine: Callable[[Any, str], Counters] | None = None
    beside: tuple[str, ...] = ()
    is_suspect: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `error` is None when its part is committed."""

    task: Task
    counters: Counters = field(default_factory=dict)
    error: AuditError | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    attempts: int = 1


class Runner(Protocol):
    """Where tasks run. `workers` is how many at once; nothing in any output depends on it."""

    name: str
    workers: int

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task, in the order in which they end."""
        ...

    def close(self) -> None:
        """Gives back what the runner started."""
        ...


class TaskError(AuditError):
    """A part failed for a reason outside of the program: memory, its process, the machine."""


@dataclass(frozen=True)
class Execution:
    """What one call of a task's function gave and cost: seconds, CPU seconds, peak resident bytes of its process."""

    counters: Counters
    error: AuditError | None
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def execute(function: Callable[..., Counters], *arguments: Any) -> Execution:
    """Calls a task's function on one thread per library and measures it. Errors are returned, never raised."""
    single_thread()
    _begin(function)
    started, cpu_started = time.perf_counter(), time.process_time()
    counters: Counters = {}
    error: AuditError | None = None
    try:
        counters = function(*arguments)
    except AuditError as cause:
        error = cause
    except MemoryError:
        error = TaskError("out of memory: give the worker more, or lower --shard-size")
    except OSError:  # not of a store, which names its cause: descriptors, processes, a disk under a library
        error = TaskError(traceback.format_exc(limit=-6))
    except Exception:  # noqa: BLE001 - the one place where any failure of a part becomes its outcome
        error = TaskBug(traceback.format_exc(limit=-6))
    return Execution(
        counters, error, time.perf_counter() - started, time.process_time() - cpu_started, peak_resident_bytes()
    )


def _begin(function: Callable[..., Counters]) -> None:
    """Lets go of what tasks of another stage kept in this process, and counts the peak of memory from here on."""
    if function not in _LATEST:
        _LATEST[:] = [function]
        forget_kept()
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_bytes(b"5")


_LATEST: list[Callable[..., Counters]] = []
"""The function of the latest task in this process."""


def peak_resident_bytes() -> int:
    """Largest resident size of this process since its latest task began, in bytes; elsewhere than on Linux ever.

    There it is not `ru_maxrss`, which a process has from the one that started it: man 2 getrusage, man 5 proc.
    """
    with suppress(OSError):
        if found := re.search(rb"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_bytes(), re.MULTILINE):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def may_retry(error: AuditError) -> bool:
    """Whether another attempt can help: an unreachable store, a lack of memory; not a wrong input, not a bug."""
    return isinstance(error, (StorageUnavailable, TaskError))


def execute_apart(function: Callable[..., Counters], spec: Any, seconds: float) -> Execution | str:
    """`execute` in a process of its own, which takes a second to start; `crashed` or `timeout` where that did."""
    command = [sys.executable, "-c", "from pipeline.runner import answer; answer()"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        ended = subprocess.run(  # noqa: S603 - this interpreter
            command, input=pickle.dumps((function, spec, APART_SECONDS)), stdout=subprocess.PIPE, env=variables,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    if ended.returncode:
        log.warning("its process ended with %d", ended.returncode)
        return "crashed"
    done: Execution | None = pickle.loads(ended.stdout)  # noqa: S301 - of our own child
    return "timeout" if done is None else done


def answer() -> None:
    """The other side of `execute_apart`: the task comes on standard input, its execution goes to standard output; None
    where it hangs.
    """
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not come between
    function, spec, seconds = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own parent
    done = watched(partial(execute, function, spec), seconds, leave_hung)
    with os.fdopen(output, "wb") as sink:
        pickle.dump(done, sink)
    if done is None:
        os._exit(0)  # an interpreter that ends in order may crash under the thread that hangs


def piece_of(task: Task, pieces: Sequence[Any], index: int) -> Task:
    """One of the pieces that a task was cut into."""
    items = task.items * (index + 1) // len(pieces) - task.items * index // len(pieces)
    return replace(task, name=f"{task.name}/{index}", spec=pieces[index], items=items)


def pieces_of(task: Task, cuts: int) -> list[Task]:
    """The task cut in halves so many times, as far as it can be cut."""
    if task.halves is None:
        return [task]
    specs = [task.spec]
    for _ in range(cuts):
        specs = [half for spec in specs for half in task.halves(spec)]
    return [piece_of(task, specs, index) for index in range(len(specs))]


def _outcome(task: Task, done: Execution, attempts: int) -> Outcome:
    return Outcome(task, done.counters, done.error, done.seconds, done.cpu_seconds, done.peak_bytes, attempts)


def _fails_for_now(done: Execution | str) -> bool:
    return not isinstance(done, str) and done.error is not None and may_retry(done.error)


class LocalRunner:
    """Runs tasks one after the other in this process, but for those in which one died before or one hangs."""

    name = "local"
    workers = 1

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task, in order; a suspect one, and one that hangs here, is cut down to what kills or
        hangs its process, as on Ray.
        """
        has_died = False
        for task in tasks:
            if not (task.is_suspect or has_died):
                outcome = self._run_one(task)
                if outcome is not None:
                    yield outcome
                    continue
                has_died = True
                log.warning("%s: over %.0f s at one image; going on in other processes", task.name, IMAGE_SECONDS)
                yield from self._cut(task, "timeout", has_hung=False)
                continue
            for outcome in self._run_apart(task, has_hung=False):
                has_died = has_died or outcome.attempts > 1
                yield outcome

    def _run_apart(self, task: Task, *, has_hung: bool) -> Iterator[Outcome]:
        """`has_hung`: the task that it is a piece of did, so that it need not do so twice."""
        seconds, attempt = PATIENCE_SECONDS + task.items, 1
        done = execute_apart(task.function, task.spec, seconds)
        while _fails_for_now(done) and attempt < ATTEMPTS:
            attempt += 1
            done = execute_apart(task.function, task.spec, seconds)
        if isinstance(done, str):
            log.warning("%s: its process %s", task.name, "died" if done == "crashed" else "hung")
            yield from self._cut(task, done, has_hung=has_hung)
        else:
            yield _outcome(task, done, attempt)

    def _cut(self, task: Task, cause: str, *, has_hung: bool) -> Iterator[Outcome]:
        """Goes on with the pieces of a task that killed or hung its process; one that cannot be cut is settled."""
        pieces = pieces_of(task, HUNG_CUTS if cause == "timeout" else 1)
        if len(pieces) > 1:
            for piece in pieces:
                yield from self._run_apart(piece, has_hung=cause == "timeout")
            return
        done: Execution | str = cause
        if not (has_hung and cause == "timeout"):  # the first may have died of something else
            done = execute_apart(task.function, task.spec, PATIENCE_SECONDS + task.items)
        if isinstance(done, str) and task.quarantine is not None:
            done = execute(task.quarantine, task.spec, done)
        if isinstance(done, str):
            yield Outcome(task, error=TaskError("its process died or hung twice"), attempts=2)
        else:
            yield _outcome(task, done, 2)

    def _run_one(self, task: Task) -> Outcome | None:
        """None where it hangs. What has no image to be set aside is not watched."""
        call = partial(execute, task.function, task.spec)
        attempt = 0
        while True:
            attempt += 1
            done = call() if task.quarantine is None else watched(call, IMAGE_SECONDS, leave_hung)
            if done is None:
                return None
            if not _fails_for_now(done) or attempt >= ATTEMPTS:
                return _outcome(task, done, attempt)

    def close(self) -> None:
        """Nothing was started."""
