"""The only module that imports Ray: starts or joins a cluster and carries tasks out on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import statistics
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import AuditError, StorageError, UsageError
from pipeline.runner import ATTEMPTS, Execution, Outcome, Task, TaskError, execute, may_retry, piece_of
from pipeline.storage import StorageConfig, open_store

log = logging.getLogger(__name__)

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "OPENCV_LOG_LEVEL": "OFF",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "0",  # the budget is the driver's; Ray's default is endless
}
OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum is 75 MiB; only specs and counters pass through
NODE_LOST = (exceptions.NodeDiedError, exceptions.ObjectLostError)
PROCESS_LOST = (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.TaskCancelledError)
LOOK_SECONDS = 5.0
CONNECT_SECONDS = 10.0
STRAGGLER_SECONDS = 600.0
STRAGGLER_FACTOR = 6.0


@dataclass
class _Attempt:
    task: Task
    number: int
    started: float
    is_twin: bool = False
    twin_started: bool = False


@dataclass
class _Book:
    """The driver's account of one call of `run`."""

    waiting: deque[tuple[Task, int]]
    running: dict[Any, _Attempt] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


def start_ray(workers: int | None = None) -> RayRunner:
    """Starts Ray on this machine, one worker per core unless told otherwise."""
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    started = time.perf_counter()
    _init(
        address="local",
        num_cpus=workers or os.cpu_count() or 1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=False,
    )
    log.debug("Ray started in %.1f s", time.perf_counter() - started)
    return RayRunner(owns_cluster=True)


def _init(**options: Any) -> None:
    """Starts or joins Ray, which answers SIGTERM with exit code 15; the handler of the command line is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


class ClusterError(AuditError):
    """No Ray cluster could be joined."""

    exit_code = 3


def join_ray(address: str) -> RayRunner:
    """Joins the cluster at `address` ("auto" or host:port). Raises ClusterError within a minute where there is none."""
    place = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # one attempt of 35 s instead of 20, with Ray 2.60
    try:
        if place != "auto":  # Ray itself says nothing of an address where nobody listens and tries for 12 minutes
            host, _, port = place.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        _init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": dict(WORKER_ENVIRONMENT)},
        )
    except (OSError, ValueError, RuntimeError, exceptions.RayError) as error:
        raise ClusterError(
            f"no Ray cluster could be joined at {place!r} ({error}). Start one with 'ray start --head', check the "
            "address, and set RAY_AUTH_MODE=token with the cluster's token where it asks for one."
        ) from error
    return RayRunner(owns_cluster=False)


def _execute(function: Callable[..., Any], *arguments: Any) -> Execution:
    return execute(function, *arguments)


def _read_token(root: str, storage: StorageConfig, key: str) -> bytes:
    try:
        return open_store(root, storage).read(key)
    except StorageError:  # whatever the cause: this node does not see what the others write
        return b""


class RayRunner:
    """Bounded in-flight Ray tasks with the retry budget in the driver and twins for stragglers."""

    name = "ray"

    def __init__(self, owns_cluster: bool) -> None:
        self._owns_cluster = owns_cluster
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.workers = max(1, int(resources.get("CPU", 1)))
        self._remote: Any = ray.remote(_execute)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task as they end; a task whose process dies twice is halved, then quarantined."""
        book = _Book(deque((task, 1) for task in tasks))
        while book.waiting or book.running:
            self._submit(book)
            ready, _ = ray.wait(list(book.running), num_returns=1, timeout=LOOK_SECONDS) if book.running else ([], [])
            for reference in ready:
                yield from self._settle(book, reference)
            self._watch(book)

    def close(self) -> None:
        """Stops Ray where this runner started it, else leaves the cluster to its owner."""
        ray.shutdown()

    def require_shared_root(self, root: str, storage: StorageConfig) -> None:
        """Proves that every node sees the root by having each read a token; UsageError names those that do not."""
        every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in every if node["Alive"] and node["Resources"].get("CPU")]
        if len(nodes) < 2:
            return
        store, key, token = open_store(root, storage), f"tokens/{uuid.uuid4().hex}", uuid.uuid4().bytes
        store.put(key, token)
        try:
            reads = {node["NodeID"]: self._read_on(node["NodeID"], root, storage, key) for node in nodes}
            blind = [node["NodeManagerAddress"] for node in nodes if ray.get(reads[node["NodeID"]]) != token]
        finally:
            store.delete(key)
        if blind:
            raise UsageError(
                f"the root {root} is not shared: nodes {', '.join(sorted(blind))} do not see what this one writes "
                "there. Use an s3:// or minio:// root, or a path on a file system that every node mounts."
            )

    def _read_on(self, node_id: str, root: str, storage: StorageConfig, key: str) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        remote = ray.remote(_read_token).options(num_cpus=0, scheduling_strategy=strategy)
        return remote.remote(root, storage, key)

    def _submit(self, book: _Book) -> None:
        limit = 2 * self.workers + 2
        while book.waiting and len(book.running) < limit:
            task, number = book.waiting.popleft()
            if task.name in book.finished:  # its twin was faster
                continue
            self._start(book, _Attempt(task, number, time.monotonic()))

    def _start(self, book: _Book, attempt: _Attempt) -> None:
        reference = self._remote.options(name=attempt.task.name, num_cpus=1, max_retries=0).remote(
            attempt.task.function, attempt.task.spec
        )
        book.running[reference] = attempt

    def _settle(self, book: _Book, reference: Any) -> Iterator[Outcome]:
        attempt = book.running.pop(reference)
        task = attempt.task
        try:
            done: Execution = ray.get(reference)
        except NODE_LOST:
            log.warning("%s: its node died; trying again elsewhere", task.name)
            book.waiting.append((task, attempt.number))
            return
        except PROCESS_LOST as error:
            yield from self._after_crash(book, attempt, error)
            return
        except exceptions.RayError as error:
            self._finish(book, task)
            yield Outcome(task, error=TaskError(str(error)), attempts=attempt.number)
            return
        if done.error is not None and may_retry(done.error) and attempt.number < ATTEMPTS:
            book.waiting.append((task, attempt.number + 1))
            return
        self._finish(book, task)
        book.seconds.append(done.seconds)
        yield Outcome(task, done.counters, done.error, done.seconds, done.cpu_seconds, done.peak_bytes, attempt.number)

    def _finish(self, book: _Book, task: Task) -> None:
        """Closes the account of a task; an attempt that still runs is ended, so that a hung one holds nothing up."""
        book.finished.add(task.name)
        for reference, attempt in list(book.running.items()):
            if attempt.task.name == task.name:
                book.running.pop(reference)
                ray.cancel(reference, force=True)

    def _after_crash(self, book: _Book, attempt: _Attempt, error: exceptions.RayError) -> Iterator[Outcome]:
        task = attempt.task
        log.warning("%s: its process died (attempt %d)", task.name, attempt.number)
        if attempt.number < 2:
            book.waiting.append((task, attempt.number + 1))
            return
        self._finish(book, task)
        pieces = task.halves(task.spec) if task.halves else []
        if len(pieces) > 1:
            # a piece has one attempt already: its whole died twice
            book.waiting.extend((piece_of(task, pieces, index), 1) for index in range(len(pieces)))
        elif task.quarantine is not None:
            done = execute(task.quarantine, task.spec, "timeout" if attempt.is_twin else "crashed")
            yield Outcome(task, done.counters, done.error, done.seconds, done.cpu_seconds, done.peak_bytes, 2)
        else:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            cause = TaskError(f"its process died or hung twice: {first_line}")
            yield Outcome(task, error=cause, attempts=attempt.number)

    def _watch(self, book: _Book) -> None:
        """Starts a twin of a straggler; when the twin is late too, both are ended and count as a dead process."""
        typical = statistics.median(book.seconds) if book.seconds else 0.0
        limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * typical)
        for reference, attempt in list(book.running.items()):
            if time.monotonic() - attempt.started < limit:
                continue
            if attempt.is_twin:
                for other, its in list(book.running.items()):
                    if its.task.name == attempt.task.name:
                        ray.cancel(other, force=True)
                        if other is not reference:
                            book.running.pop(other)
                attempt.number = 2
            elif not attempt.twin_started:
                attempt.twin_started = True
                log.warning("%s: no answer after %.0f s; starting a twin", attempt.task.name, limit)
                self._start(book, _Attempt(attempt.task, attempt.number, time.monotonic(), is_twin=True))
