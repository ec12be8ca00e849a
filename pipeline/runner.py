"""Tasks and the runner that carries them out in this process.

A runner takes tasks and gives an outcome for each, in the order in which they end. A task is a module-level function
and a small picklable spec; it commits its own output and returns counters only.
"""

from __future__ import annotations

import logging
import os
import pickle
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from pipeline.layout.root import forget_kept
from pipeline.threads import single_thread

Counters = Mapping[str, float]

FATAL = (BadCredentials, ModelError, StorageFull, UsageError)
"""Causes that every other task would meet as well, and that running again does not mend: the stage stops at the first.
"""

ATTEMPTS = 3
PATIENCE_SECONDS = 600.0
"""An attempt that takes longer, and a second longer per item, is taken for one that hangs."""

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
    """Largest resident size of this process since its latest task began, in bytes; elsewhere than on Linux ever."""
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
            command, input=pickle.dumps((function, spec)), stdout=subprocess.PIPE, env=variables, timeout=seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    if ended.returncode:
        log.warning("its process ended with %d", ended.returncode)
        return "crashed"
    done: Execution = pickle.loads(ended.stdout)  # noqa: S301 - of our own child
    return done


def answer() -> None:
    """The other side of `execute_apart`: the task comes on standard input, its execution goes to standard output."""
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not come between
    function, spec = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own parent
    with os.fdopen(output, "wb") as sink:
        pickle.dump(execute(function, spec), sink)


def piece_of(task: Task, pieces: Sequence[Any], index: int) -> Task:
    """One of the pieces that a task was cut into."""
    items = task.items * (index + 1) // len(pieces) - task.items * index // len(pieces)
    return replace(task, name=f"{task.name}/{index}", spec=pieces[index], items=items)


def _outcome(task: Task, done: Execution, attempts: int) -> Outcome:
    return Outcome(task, done.counters, done.error, done.seconds, done.cpu_seconds, done.peak_bytes, attempts)


class LocalRunner:
    """Runs tasks one after the other in this process, but for those in which one died before."""

    name = "local"
    workers = 1

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task, in order; a suspect one is cut down to what kills its process, as on Ray."""
        has_died = False
        for task in tasks:
            if not (task.is_suspect or has_died):
                yield self._run_one(task)
                continue
            for outcome in self._run_apart(task):
                has_died = has_died or outcome.attempts > 1
                yield outcome

    def _run_apart(self, task: Task) -> Iterator[Outcome]:
        seconds = PATIENCE_SECONDS + task.items
        done = execute_apart(task.function, task.spec, seconds)
        attempt = 1
        while not isinstance(done, str):
            if done.error is None or not may_retry(done.error) or attempt >= ATTEMPTS:
                yield _outcome(task, done, attempt)
                return
            attempt += 1
            done = execute_apart(task.function, task.spec, seconds)
        log.warning("%s: its process %s", task.name, "died" if done == "crashed" else f"took over {seconds:,.0f} s")
        pieces = task.halves(task.spec) if task.halves else []
        if len(pieces) > 1:
            for index in range(len(pieces)):
                yield from self._run_apart(piece_of(task, pieces, index))
            return
        done = execute_apart(task.function, task.spec, seconds)  # the first may have died of something else
        if isinstance(done, str) and task.quarantine is not None:
            done = execute(task.quarantine, task.spec, done)
        if isinstance(done, str):
            yield Outcome(task, error=TaskError("its process died or hung twice"), attempts=2)
        else:
            yield _outcome(task, done, 2)

    def _run_one(self, task: Task) -> Outcome:
        attempt = 0
        while True:
            attempt += 1
            done = execute(task.function, task.spec)
            if done.error is None or not may_retry(done.error) or attempt >= ATTEMPTS:
                return _outcome(task, done, attempt)

    def close(self) -> None:
        """Nothing was started."""
