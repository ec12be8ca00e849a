"""The only module that imports Ray: starts or joins a cluster and carries tasks out on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import statistics
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import ray
from ray import exceptions
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.attempts import FAILURES, NODES, Attempt, Book, patience
from pipeline.errors import AuditError, ClusterError, NotFound, StorageError, StorageUnavailable, UsageError
from pipeline.layout.snapshots import SourceRecord
from pipeline.runner import ATTEMPTS, HUNG_CUTS, Execution, Outcome, Task, TaskError, execute, may_retry, pieces_of
from pipeline.sources.folder import is_image_key
from pipeline.sources.fragments import parent_kind
from pipeline.stages.source_files import source_kind, source_objects
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
TOKEN_BYTES = 4096  # of a file that every node must read alike
TOKEN_TRIES = 100  # images that are looked at for one that can be read
OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum is 75 MiB; only specs and counters pass through
NODE_LOST = (exceptions.NodeDiedError, exceptions.ObjectLostError)
PROCESS_LOST = (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.TaskCancelledError)
NOTES = "image-audit"  # namespace of what workers say, in the cluster's key-value store
LOOK_SECONDS = 5.0
CONNECT_SECONDS = 10.0


def start_ray(workers: int | None = None) -> RayRunner:
    """Starts Ray on this machine, one worker per core unless told otherwise; takes the one that this process is on."""
    if ray.is_initialized():
        return RayRunner(is_ours=False, at_most=workers)
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
    return RayRunner(is_ours=True)


def _init(**options: Any) -> None:
    """Starts or joins Ray, which answers SIGTERM with exit code 15; the handler of the command line is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray").setLevel(logging.ERROR)  # Ray's own level for it comes after its notice on tokens
    ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _present(address: str) -> RayRunner:
    present = ray.get_runtime_context().gcs_address
    if address not in ("auto", present):
        raise UsageError(
            f"this process is on the Ray cluster at {present!r} and is to join {address!r}: leave the address out, or "
            "call ray.shutdown() first."
        )
    return RayRunner(is_ours=False)


def join_ray(address: str) -> RayRunner:
    """Joins the cluster at `address` ("auto" or host:port). Raises ClusterError within a minute where there is none.

    A process that is on a cluster already stays there; UsageError where that is another one.
    """
    if ray.is_initialized():
        return _present(address)
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
    return RayRunner(is_ours=True)


def _execute(key: str, function: Callable[..., Any], *arguments: Any) -> Execution:
    """Runs on a worker; says first that it has begun, since Ray's own task states need the dashboard."""
    internal_kv._internal_kv_put(key, b"begun", namespace=NOTES)
    return execute(function, *arguments)


def _read_token(root: str, storage: StorageConfig, key: str) -> bytes:
    try:
        return open_store(root, storage).read_range(key, 0, TOKEN_BYTES)
    except StorageError:  # whatever the cause: this node does not see what the others write
        return b""


def _first_readable(source: SourceRecord, storage: StorageConfig) -> tuple[str, bytes]:
    """Key and first bytes of an image, archive or video that has any; nothing where there is none: a blind node reads
    nothing too.
    """
    with suppress(NotFound):  # the catalog was told that the source is gone
        listed = (info.key for info in source_objects(source, storage) if info.size)
        is_file = source.kind != "folder"
        for key in islice((key for key in listed if is_file or is_image_key(key) or parent_kind(key)), TOKEN_TRIES):
            if token := _read_token(source.place, storage, key):
                return key, token
    return "", b""


def _working_nodes() -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in every if node["Alive"] and node["Resources"].get("CPU")]


class RayRunner:
    """Bounded in-flight Ray tasks with the retry budget in the driver and twins for stragglers.

    `is_ours`: this runner started Ray or connected to it, and ends that in `close`. `at_most`: tasks at once.
    """

    name = "ray"

    def __init__(self, is_ours: bool, at_most: int | None = None) -> None:
        self._is_ours = is_ours
        self._at_most = at_most
        self._remote: Any = ray.remote(_execute)
        self.workers = self._cores()

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task as they end; one whose process dies or hangs twice is cut, then quarantined."""
        book = Book(deque(Attempt(task) for task in tasks))
        try:
            while book.waiting or book.running or book.resting:
                self._submit(book)
                for reference in _ended(book):
                    yield from self._settle(book, reference)
                if time.monotonic() - book.looked >= LOOK_SECONDS:
                    book.looked = time.monotonic()
                    self.workers = self._cores()
                    book.waiting.extend(book.resting)
                    book.resting.clear()
                    _say_if_idle(book)
                    yield from self._watch(book)
        finally:
            self._abandon(book)

    def close(self) -> None:
        """Leaves Ray where this runner started or joined it; the caller's own stays as it is."""
        if self._is_ours:
            ray.shutdown()

    def _cores(self) -> int:
        """Tasks that the cluster can run at once now; it may grow and shrink."""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, min(int(resources.get("CPU", 1)), self._at_most or sys.maxsize))

    def require_shared_root(self, root: str, storage: StorageConfig) -> None:
        """Proves that every node sees the root by having each read a token; UsageError names those that do not."""
        nodes = _working_nodes()
        if len(nodes) < 2:
            return
        store, key, token = open_store(root, storage), f"tokens/{uuid.uuid4().hex}", uuid.uuid4().bytes
        store.put(key, token)
        try:
            blind = self._blind(nodes, root, storage, key, token)
        finally:
            store.delete(key)
        if blind:
            raise UsageError(
                f"the root {root} is not shared: nodes {', '.join(sorted(blind))} do not see what this one writes "
                "there. Use an s3:// or minio:// root, or a path on a file system that every node mounts."
            )

    def require_shared_source(self, source: str, storage: StorageConfig) -> None:
        """Proves by a file with bytes in it that every node sees a source; UsageError names those that do not."""
        nodes = _working_nodes()
        record = SourceRecord(source, "", source_kind(source, storage))
        first, token = _first_readable(record, storage) if len(nodes) > 1 else ("", b"")
        blind = self._blind(nodes, record.place, storage, first, token) if token else []
        if blind:
            raise UsageError(
                f"the source {source} is not shared: nodes {', '.join(sorted(blind))} do not see {first!r} as it is "
                "here. Use s3:// or minio:// sources, or a path on a file system that every node mounts."
            )

    def _blind(
        self, nodes: list[dict[str, Any]], place: str, storage: StorageConfig, key: str, expected: bytes
    ) -> list[str]:
        """Addresses of the nodes that read something else at a key, or nothing."""
        reads = [(node["NodeManagerAddress"], self._read_on(node["NodeID"], place, storage, key)) for node in nodes]
        return [address for address, found in reads if ray.get(found) != expected]

    def _read_on(self, node_id: str, root: str, storage: StorageConfig, key: str) -> Any:
        strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        remote = ray.remote(_read_token).options(num_cpus=0, scheduling_strategy=strategy)
        return remote.remote(root, storage, key)

    def _submit(self, book: Book) -> None:
        """Keeps workers in work and some tasks waiting in Ray: an autoscaler adds nodes for what waits."""
        limit = self._at_most or 2 * self.workers + 2
        while book.waiting and len(book.running) < limit:
            attempt = book.waiting.popleft()
            if attempt.task.name not in book.finished:  # else its twin was faster
                self._start(book, attempt)

    def _start(self, book: Book, attempt: Attempt) -> None:
        book.submitted += 1
        attempt.key, attempt.submitted, attempt.begun = f"{book.name}/{book.submitted}", time.monotonic(), None
        reference = self._remote.options(name=attempt.task.name, num_cpus=1, max_retries=0).remote(
            attempt.key, attempt.task.function, attempt.task.spec
        )
        book.running[reference] = attempt

    def _settle(self, book: Book, reference: Any) -> Iterator[Outcome]:
        attempt = book.running.pop(reference)
        internal_kv._internal_kv_del(attempt.key, namespace=NOTES)
        task = attempt.task
        try:
            done: Execution = ray.get(reference)
        except NODE_LOST:
            yield from self._after_node(book, attempt)
            return
        except PROCESS_LOST as error:
            yield from self._after_crash(book, attempt, error)
            return
        except exceptions.RayError as error:
            yield from self._after_failure(book, attempt, error)
            return
        is_silent = isinstance(done.error, StorageUnavailable)
        book.silent = book.silent + 1 if is_silent else 0
        is_gone = book.silent >= ATTEMPTS * max(2, self.workers)
        if done.error is not None and may_retry(done.error) and attempt.number < ATTEMPTS and not is_gone:
            attempt.number += 1
            _try_again(book, attempt, done.error, is_first=is_silent)
            return
        self._finish(book, task)
        if done.error is None:
            book.rates.append(done.seconds / max(1, task.items))
        yield Outcome(task, done.counters, done.error, done.seconds, done.cpu_seconds, done.peak_bytes, attempt.number)

    def _finish(self, book: Book, task: Task) -> None:
        """Closes the account of a task; an attempt that still runs is ended, so that a hung one holds nothing up."""
        book.finished.add(task.name)
        for reference, attempt in list(book.running.items()):
            if attempt.task.name == task.name:
                self._end(book, reference)

    def _end(self, book: Book, reference: Any) -> None:
        attempt = book.running.pop(reference)
        ray.cancel(reference, force=True)
        internal_kv._internal_kv_del(attempt.key, namespace=NOTES)

    def _abandon(self, book: Book) -> None:
        """Ends what still runs where the caller wants no more outcomes and Ray goes on without this runner."""
        if not self._is_ours and ray.is_initialized():
            for reference in list(book.running):
                self._end(book, reference)

    def _after_node(self, book: Book, attempt: Attempt) -> Iterator[Outcome]:
        attempt.nodes += 1
        if attempt.nodes < NODES:
            log.warning("%s: its node died; trying again elsewhere", attempt.task.name)
            book.waiting.append(attempt)
            return
        reason = f"{NODES} nodes died under it"
        log.warning("%s: %s", attempt.task.name, reason)
        yield from self._cut(book, attempt, pieces_of(attempt.task, HUNG_CUTS), "crashed", reason)

    def _after_failure(self, book: Book, attempt: Attempt, error: exceptions.RayError) -> Iterator[Outcome]:
        """Tries again what Ray itself could not carry out, after a rest, for the reason may be a node that goes."""
        attempt.failures += 1
        if attempt.failures < FAILURES and not isinstance(error, exceptions.RayTaskError):  # that one is of its spec
            log.warning("%s: Ray could not carry it out (%s); trying again", attempt.task.name, _first_line(error))
            book.resting.append(attempt)
            return
        self._finish(book, attempt.task)
        yield Outcome(attempt.task, error=TaskError(str(error)), attempts=attempt.number)

    def _after_crash(self, book: Book, attempt: Attempt, error: exceptions.RayError) -> Iterator[Outcome]:
        log.warning("%s: its process died (attempt %d)", attempt.task.name, attempt.number)
        if attempt.number < 2:
            attempt.number += 1
            book.waiting.append(attempt)
            return
        yield from self._cut(book, attempt, pieces_of(attempt.task, 1), "crashed", _first_line(error))

    def _cut(self, book: Book, attempt: Attempt, pieces: list[Task], cause: str, reason: str) -> Iterator[Outcome]:
        """Goes on with the pieces of a task whose process died or hung twice; one that cannot be cut is settled."""
        task = attempt.task
        self._finish(book, task)
        if len(pieces) > 1:
            # a piece may crash twice before it is cut further, but hang only once: that takes LAST_SECONDS
            book.waiting.extend(Attempt(piece, is_last=cause == "timeout") for piece in pieces)
        elif task.quarantine is not None:
            done = execute(task.quarantine, task.spec, cause)
            yield Outcome(task, done.counters, done.error, done.seconds, done.cpu_seconds, done.peak_bytes, 2)
        else:
            error = TaskError(f"its process died or hung twice: {reason}")
            yield Outcome(task, error=error, attempts=max(2, attempt.number))

    def _watch(self, book: Book) -> Iterator[Outcome]:
        """Starts a twin of a straggler; when the twin is late too, or a piece of what hung is, the task is cut.

        Time counts from when a worker began. A twin that finds no core takes that of its straggler.
        """
        self._read_notes(book)
        book.rate = statistics.median(book.rates) if book.rates else None
        now = time.monotonic()
        for reference, attempt in list(book.running.items()):
            limit = patience(book, attempt)
            if reference not in book.running or attempt.begun is None or now - attempt.begun < limit:
                continue
            name, twin = attempt.task.name, attempt.twin
            if attempt.is_last:
                log.warning("%s: no answer after %.0f s", name, limit)
                reason = f"no answer after {limit:.0f} s"
                yield from self._cut(book, attempt, pieces_of(attempt.task, HUNG_CUTS), "timeout", reason)
            elif twin is None:
                log.warning("%s: no answer after %.0f s; starting a twin", name, limit)
                attempt.twin = Attempt(attempt.task, attempt.number, is_last=True)
                self._start(book, attempt.twin)
            elif twin.begun is None and now - twin.submitted >= patience(book, twin):
                self._end(book, reference)

    def _read_notes(self, book: Book) -> None:
        waiting = [attempt for attempt in book.running.values() if attempt.begun is None]
        if waiting:
            begun = {key.decode() for key in internal_kv._internal_kv_list(f"{book.name}/", namespace=NOTES)}
            for attempt in waiting:
                attempt.begun = time.monotonic() if attempt.key in begun else None


def _try_again(book: Book, attempt: Attempt, error: AuditError, *, is_first: bool) -> None:
    """Says why, for a worker's own log is not shown. What waits for a store goes first: the others need it as well."""
    log.warning("%s: %s; attempt %d of %d", attempt.task.name, _first_line(error), attempt.number, ATTEMPTS)
    (book.waiting.appendleft if is_first else book.waiting.append)(attempt)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _ended(book: Book) -> list[Any]:
    """What ended within LOOK_SECONDS; that long nothing where all that is left rests."""
    if not book.running:
        time.sleep(LOOK_SECONDS if book.resting else 0)
        return []
    ended: list[Any] = ray.wait(list(book.running), num_returns=1, timeout=LOOK_SECONDS)[0]
    return ended


def _say_if_idle(book: Book) -> None:
    """Says once that no node is left to work, and once that one is there again."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    is_idle = not resources.get("CPU")
    if is_idle != book.is_idle:
        count = len(book.waiting) + len(book.running)
        said = (
            f"no node is left to work: {count:,} parts wait for one to join" if is_idle else "a node joined: going on"
        )
        log.warning(said)
        book.is_idle = is_idle
