"""Serving: the index of an audit that searches read, made once from its features and lists, and used from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipeline.config import AuditConfig
from pipeline.errors import ArtifactError, NotFound
from pipeline.layout.annotations import read_vocabulary
from pipeline.layout.exact import read_summary
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.indexes import Index, exact_index, read_partitions
from pipeline.layout.root import WORK, Root
from pipeline.layout.served import SERVED, Recipe, ServedSpace, served_key
from pipeline.layout.snapshots import live_between
from pipeline.layout.spaces import read_space
from pipeline.layout.tables import json_bytes, read_json
from pipeline.layout.visits import visits_key
from pipeline.plan.joining import delete_folder, missing_tasks, query_ranges, run_ranges
from pipeline.plan.session import STATUS_FOLDER, Session, StageWork
from pipeline.progress import Reporter
from pipeline.runner import Runner, Task
from pipeline.stages import serve, train_lists
from pipeline.threads import threads_given_back

SERVED_ROWS = 65_536
"""Vectors of a served partition: 43 MB, what a machine far from the root copies at least. A query of 16 lists touches
some three of them."""
EXACT_ROWS = 131_072
SERVED_PER_EXTRACTED = 40
"""So many images are served in the CPU time that extracts one."""
SPACES = ("copy", "semantic")


def served_space(recipe: Recipe, name: str) -> ServedSpace:
    """Where the served index of a space is, or will be."""
    inputs = recipe.inputs
    store = inputs.root.open()
    is_copy = name == "copy"
    index = _index(recipe, recipe.copy if is_copy else recipe.semantic)
    of = {
        "features": inputs.features,
        "content": read_summary(store, inputs.exact).digest,
        "splits": read_vocabulary(store, inputs.annotations).split_digest,
        "lists": replace(index, probes=0, count=0, metric=""),
        "space": recipe.space if is_copy else "",
    }
    folder = "indexes/" + fingerprint("served", serve.VERSION, of=of)
    dimension = read_space(store, recipe.space).dimension if is_copy else inputs.dimension
    return ServedSpace(inputs.root, folder, recipe.space if is_copy else "", index, dimension)


def require_served(recipe: Recipe, name: str, start: Callable[[], Session]) -> ServedSpace:
    """The served index of a space, made where it is not there; `start` is called only then."""
    store = recipe.inputs.root.open()
    if recipe.copy.folder or recipe.semantic.folder:
        _require_partitions(recipe, start)
    served = _counted(served_space(recipe, name))
    have = {info.key for info in store.list(f"{served.folder}/")}
    parts = (served_key(served.folder, partition) for partition in range(served.index.count))
    if have.issuperset((f"{served.folder}/{SERVED}", *parts)):
        return served
    _build(start(), recipe, served)
    return served


@contextmanager
def once(start: Callable[[], Session]) -> Iterator[Callable[[], Session]]:
    """`start`, called at most once and only where there is something to make; its runner is closed at the end."""
    begun: list[Session] = []

    def session() -> Session:
        if not begun:
            begun.append(start())
        return begun[0]

    with threads_given_back():
        try:
            yield session
        finally:
            for item in begun:
                item.runner.close()


def serving_session(root: Root, runner: Runner, reporter: Reporter, resume_command: str) -> Session:
    """A session on a root with finished audits; its stages are listed beside those of the latest run."""
    session = Session(AuditConfig((root.uri,), root.uri, storage=root.storage), root, runner, reporter, resume_command)
    session.started_at = _latest_session(session)
    return session


def _latest_session(session: Session) -> str:
    """When the session began whose stages `status` shows: what is served is no run of its own."""
    key = f"{STATUS_FOLDER}/catalog.json"
    try:
        return str(read_json(session.store, key).get("session") or session.started_at)
    except (NotFound, ArtifactError):
        return session.started_at


def _build(session: Session, recipe: Recipe, served: ServedSpace) -> None:
    store, inputs = session.store, recipe.inputs
    snapshot = inputs.opened_snapshot()
    ranges = tuple(query_ranges(snapshot.total))
    work = f"{WORK}/{fingerprint('route', serve.VERSION, served=served.folder, ranges=ranges)}"
    routed, made = [], []
    for lo, hi in ranges:
        spec = serve.RouteSpec(inputs, served, work, lo, hi)
        routed.append(Task(visits_key(work, lo, hi), serve.route_owned, spec, live_between(store, snapshot, lo, hi)))
    rows = max(1, recipe.representatives // served.index.count)
    for partition in range(served.index.count):
        one = serve.ServeSpec(served, work, ranges, partition)
        made.append(Task(served_key(served.folder, partition), serve.serve_partition, one, rows))
    waiting = missing_tasks(session, served.folder, made)
    if waiting:
        run_ranges(session, f"route {served.name}", work, routed)
    session.run(StageWork(f"index {served.name}", served.folder, waiting, rows * len(made), len(made)))
    value = {"space": served.name, "partitions": served.index.count, "dimension": served.dimension}
    store.put_if_absent(f"{served.folder}/{SERVED}", json_bytes({**value, "representatives": recipe.representatives}))
    delete_folder(store, work)


def _index(recipe: Recipe, index: Index) -> Index:
    """The audit's own lists, grouped for serving; exact search keeps its vectors in a few partitions of one list."""
    if not index.folder:
        return exact_index(max(1, -(-recipe.representatives // EXACT_ROWS)), metric=index.metric)
    return replace(index, partitions=f"partitions-{SERVED_ROWS}-{recipe.representatives}.npy", count=0)


def _counted(served: ServedSpace) -> ServedSpace:
    """With how many partitions the lists were grouped into."""
    index = served.index
    if not index.folder:
        return served
    of = read_partitions(served.root.open(), f"{index.folder}/{index.partitions}")
    return replace(served, index=replace(index, count=int(of.max(initial=0)) + 1))


def _require_partitions(recipe: Recipe, start: Callable[[], Session]) -> None:
    """Groups the lists of both spaces into partitions for serving, where that was not done."""
    store, tasks = recipe.inputs.root.open(), []
    for index in filter(lambda item: item.folder, (recipe.copy, recipe.semantic)):
        made = _index(recipe, index)
        key = f"{made.folder}/{made.partitions}"
        spec = train_lists.PartitionsSpec(
            recipe.inputs, made.folder, recipe.representatives, SERVED_ROWS, made.partitions
        )
        if not store.exists(key):
            tasks.append(Task(key, train_lists.partition, spec))
    if tasks:
        start().run(StageWork("group lists", "indexes", tasks, len(tasks), len(tasks)))
