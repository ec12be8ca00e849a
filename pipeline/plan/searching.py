"""From features to groups and neighbours: exact groups, space, join, verify, components."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.layout.annotations import read_vocabulary
from pipeline.layout.edges import AGAIN, each_in_order, edges_folder, unsettled_cause
from pipeline.layout.exact import FEATURES, MEMBERS, SUMMARY, ExactSummary, read_summary
from pipeline.layout.features import FeatureSet, next_number
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATES, EDGES, KNOWN, NEIGHBOURS, PAIRS, SATURATED
from pipeline.layout.parts import Slice, cover, cut, list_parts, missing, part_name
from pipeline.layout.root import decoders
from pipeline.layout.snapshots import Snapshot, live_between
from pipeline.layout.tables import count_rows
from pipeline.plan.components import components
from pipeline.plan.session import Session, StageWork
from pipeline.plan.spaces import ChosenSpace
from pipeline.runner import Task
from pipeline.schemas import Status
from pipeline.stages import exact_groups, join, known, pairs, settle, verify

JOIN_ROWS = 8192  # queries per task: 14,000 images make two, a million 123
VERIFY_PAIRS = 512  # 2-4 s of one core
MOST_VERIFY_PAIRS = 8192  # a minute
VERIFY_PARTS = 1024  # each is a file that the components and the findings open
RETRY_PAIRS = 512
EARLIER_EDGES = 4  # folders asked for verdicts: the newest holds last night's, others those of another threshold
UNSETTLED_CAUSES = (verify.UNREAD, Status.CRASHED.value, Status.TIMEOUT.value)


@dataclass(frozen=True)
class Found:
    """Folders of what the search gave: candidates, verified edges, groups, semantic neighbours."""

    candidates: str
    edges: str
    groups: str
    neighbours: str


def group_exact(session: Session, snapshot: Snapshot, features: FeatureSet, annotations: str, dimension: int) -> Inputs:
    """Groups exact copies; returns the inputs that every later stage shares."""
    held = [(piece.part.key, piece.lo, piece.hi) for piece in cover(features.base, 0, snapshot.total)]
    name = fingerprint(
        "exact", exact_groups.VERSION, snapshot=snapshot.digest, annotations=annotations, features=held,
        again=[part.key for part in features.again],
    )  # fmt: skip
    folder = f"exact/{name}"
    spec = exact_groups.ExactSpec(session.root, snapshot.number, features, annotations, folder)
    session.run_one(
        "exact groups",
        folder,
        (FEATURES, MEMBERS, SUMMARY),
        Task(folder, exact_groups.group_exact, spec, snapshot.live),
    )
    return Inputs(session.root, snapshot.number, features.folder, annotations, folder, dimension)


def summary_of(session: Session, inputs: Inputs) -> ExactSummary:
    """The summary of the exact groups."""
    return read_summary(session.store, inputs.exact)


def search(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace) -> Found:
    """Candidates, their kinds, the groups, and the semantic neighbours outside them."""
    summary = summary_of(session, inputs)
    key = {"features": inputs.features, "content": summary.digest}
    candidates = _join_copy(session, snapshot, inputs, space, key)
    found_pairs = f"pairs/{fingerprint('pairs', pairs.VERSION, candidates=candidates)}"
    spec = pairs.PairsSpec(inputs, space.folder, candidates, space.threshold, found_pairs)
    session.run_one("pairs", found_pairs, (PAIRS,), Task(found_pairs, pairs.collect_pairs, spec))
    edges = _verify(session, inputs, found_pairs)
    groups = components(session, inputs, edges, key, space)
    neighbours = _join_semantic(session, snapshot, inputs, space, groups)
    return Found(candidates, edges, groups, neighbours)


def _join_copy(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace, key: dict[str, str]) -> str:
    params = session.config.neighbours.copy
    folder = "neighbours/" + fingerprint(
        "join copy",
        join.VERSION,
        space=space.folder,
        index=space.copy,
        threshold=space.threshold,
        params=params,
        of=key,
        splits=read_vocabulary(session.store, inputs.annotations).split_digest,
        ranges=query_ranges(snapshot.total),
    )

    def task(lo: int, hi: int) -> Task:
        spec = join.CopyJoinSpec(inputs, space.folder, space.copy, space.threshold, params, folder, lo, hi)
        beside = (f"{folder}/{part_name(SATURATED, lo, hi)}",)
        live = live_between(session.store, snapshot, lo, hi)
        return Task(f"{folder}/{part_name(CANDIDATES, lo, hi)}", join.join_copy, spec, live, beside=beside)

    run_ranges(session, "join copy", folder, [task(lo, hi) for lo, hi in query_ranges(snapshot.total)])
    return folder


def _join_semantic(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace, groups: str) -> str:
    k = session.config.neighbours.semantic_k
    ranges = query_ranges(snapshot.total)
    of = {"groups": groups, "index": space.semantic, "k": k, "ranges": ranges}
    folder = "neighbours/" + fingerprint("join semantic", join.VERSION, **of)

    def task(lo: int, hi: int) -> Task:
        spec = join.SemanticJoinSpec(inputs, groups, space.semantic, k, folder, lo, hi)
        live = live_between(session.store, snapshot, lo, hi)
        return Task(f"{folder}/{part_name(NEIGHBOURS, lo, hi)}", join.join_semantic, spec, live)

    run_ranges(session, "join semantic", folder, [task(lo, hi) for lo, hi in ranges])
    return folder


def pairs_per_task(count: int) -> int:
    """Pairs per part: a function of their number alone, for at most about a thousand parts up to 8 million pairs."""
    size = VERIFY_PAIRS
    while count > size * VERIFY_PARTS and size < MOST_VERIFY_PAIRS:
        size *= 2
    return size


def _verify(session: Session, inputs: Inputs, found_pairs: str) -> str:
    """Kinds of the pairs. Folders side by side hold the edges of all audits that compare pixels in the same way."""
    params, max_pixels = session.config.verify, session.config.measure.max_pixels
    how = fingerprint("verify", verify.VERSION, params=params, max_pixels=max_pixels, decoders=decoders())
    count = count_rows(session.store, f"{found_pairs}/{PAIRS}")
    of = {"pairs": found_pairs, "rows": pairs_per_task(count)}
    folder = edges_folder(how, inputs.features, fingerprint("edges", verify.VERSION, **of))
    have = list_parts(session.store, folder, EDGES)
    ranges = [bounds for gap in missing(have, 0, count) for bounds in cut(*gap, pairs_per_task(count))]
    whole = verify.VerifySpec(inputs, found_pairs, folder, params, max_pixels, "", 0, count)
    asks = ranges and params.pixels
    spec = replace(whole, known=_earlier_verdicts(session, found_pairs, folder, count) if asks else "")
    tasks = [_verify_task(replace(spec, lo=lo, hi=hi), hi - lo) for lo, hi in ranges]
    session.run(StageWork("verify", folder, tasks, count, len(cover(have, 0, count)) + len(ranges)))
    if reused := int(session.records[-1].counters.get("reused", 0)):
        session.reporter.say(f"verify: the pixels of {reused:,} of {count:,} pairs were compared by earlier audits")
    _verify_again(session, whole, cover(have, 0, count))
    _say_unsettled(session)
    if not list_parts(session.store, folder, AGAIN):
        return folder
    return _settled(session, whole, of)


def _verify_task(spec: verify.VerifySpec, items: int) -> Task:
    return Task(verify.part_key(spec), verify.verify, spec, items, verify.halves, verify.quarantine)


def _verify_again(session: Session, whole: verify.VerifySpec, earlier: list[Slice]) -> None:
    """Compares the pairs of earlier sessions whose process died, or whose images could not be read."""
    store = session.store
    again = list_parts(store, whole.folder, AGAIN)
    tasks = []
    causes = each_in_order(store, earlier, lambda piece: unsettled_cause(store, piece.part.key))
    for piece, cause in zip(earlier, causes, strict=True):
        rows = settle.unsettled_rows(store, piece, again, whole.params).tolist() if cause else []
        for at in range(0, len(rows), RETRY_PAIRS):
            only = tuple(rows[at : at + RETRY_PAIRS])
            spec = replace(whole, lo=only[0], hi=only[-1] + 1, only=only)
            spec = replace(spec, attempt=next_number(again, spec.lo, spec.hi))
            tasks.append(replace(_verify_task(spec, len(only)), is_suspect=cause != verify.UNREAD))
    if tasks:
        items = sum(task.items for task in tasks)
        session.run(StageWork("verify again", whole.folder, tasks, items, len(tasks)))


def _settled(session: Session, whole: verify.VerifySpec, of: dict[str, Any]) -> str:
    """Folder of the edges with what later attempts saw: another one, so that what was made of the first stays so."""
    store = session.store
    again = tuple(list_parts(store, whole.folder, AGAIN))
    names = [part.key.rpartition("/")[2] for part in again]
    folder = f"{whole.folder.rpartition('/')[0]}/" + fingerprint("edges", verify.VERSION, **of, again=names)
    tasks = []
    for piece in cover(list_parts(store, whole.folder, EDGES), 0, whole.hi):
        key = f"{folder}/{part_name(EDGES, piece.lo, piece.hi)}"
        spec = settle.SettleSpec(session.root, piece, again, folder)
        tasks.append(Task(key, settle.settle, spec, piece.hi - piece.lo))
    run_ranges(session, "later verdicts", folder, tasks)
    return folder


def _say_unsettled(session: Session) -> None:
    """How many pairs this session could not compare, and why."""
    counters = [record.counters for record in session.records if record.stage in ("verify", "verify again")]
    causes = {cause: int(sum(found.get(cause, 0) for found in counters)) for cause in UNSETTLED_CAUSES}
    if listed := ", ".join(f"{count:,} {cause}" for cause, count in causes.items() if count):
        session.reporter.say(
            f"verify: pairs judged by similarity alone, which misses edited copies: {listed}; the next run compares "
            "them again"
        )


def _earlier_verdicts(session: Session, found_pairs: str, folder: str, count: int) -> str:
    """Key of what earlier audits found of these pairs; "" where that is nothing."""
    written: dict[str, int] = {}
    for info in session.store.list("/".join(folder.split("/")[:-2]) + "/"):
        other = info.key.rpartition("/")[0]
        written[other] = max(written.get(other, 0), info.mtime_ns)
    written.pop(folder, None)
    if not written:
        return ""
    newest = sorted(written, key=lambda name: (-written[name], name))[:EARLIER_EDGES]
    spec = known.KnownSpec(session.root, found_pairs, count, tuple(newest), folder)
    session.run_one("earlier verdicts", folder, (KNOWN,), Task(folder, known.collect_known, spec, count))
    return f"{folder}/{KNOWN}"


def run_ranges(session: Session, name: str, folder: str, tasks: list[Task]) -> None:
    """Carries those tasks of a stage out whose files are not all there; one listing."""
    have = {info.key for info in session.store.list(f"{folder}/")}
    waiting = [task for task in tasks if not have.issuperset((task.name, *task.beside))]
    session.run(StageWork(name, folder, waiting, sum(task.items for task in tasks), len(tasks)))


def query_ranges(total: int) -> list[tuple[int, int]]:
    """Ranges of queries of about equal size, cut at multiples of 1,024: a function of the snapshot's size alone.

    They are part of the fingerprint of a folder of such ranges: a later version that cuts otherwise must not add its
    parts to those of this one.
    """
    tasks = max(1, -(-total // JOIN_ROWS))
    size = max(1024, -(-total // (tasks * 1024)) * 1024)
    return cut(0, total, size)
