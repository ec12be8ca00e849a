"""Verifying the pairs: which are compared, which an earlier audit compared, and which are tried again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.layout.edges import AGAIN, each_in_order, edges_folder, unsettled_cause
from pipeline.layout.exact import read_summary
from pipeline.layout.features import next_number
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import EDGES, KNOWN
from pipeline.layout.pairs import count_pairs
from pipeline.layout.parts import Slice, cover, cut, list_parts, missing, part_name
from pipeline.layout.root import decoders
from pipeline.layout.siblings import together_key
from pipeline.plan.joining import run_ranges
from pipeline.plan.session import Session, StageWork
from pipeline.runner import Task
from pipeline.schemas import Status
from pipeline.stages import known, settle, verify

VERIFY_PAIRS = 512  # 2-4 s of one core
MOST_VERIFY_PAIRS = 8192  # a minute
VERIFY_PARTS = 1024  # each is a file that the components and the findings open
RETRY_PAIRS = 512
EARLIER_EDGES = 4  # folders asked for verdicts: the newest holds last night's, others those of another threshold
UNSETTLED_CAUSES = (verify.UNREAD, Status.CRASHED.value, Status.TIMEOUT.value)


def pairs_per_task(count: int) -> int:
    """Pairs per part: a function of their number alone, for at most about a thousand parts up to 8 million pairs."""
    size = VERIFY_PAIRS
    while count > size * VERIFY_PARTS and size < MOST_VERIFY_PAIRS:
        size *= 2
    return size


def verify_pairs(session: Session, inputs: Inputs, found_pairs: str) -> str:
    """Kinds of the pairs. Folders side by side hold the edges of all audits that compare pixels in the same way."""
    params, max_pixels = session.config.verify, session.config.measure.max_pixels
    boxes = session.config.boxes
    how = fingerprint("verify", verify.VERSION, params=params, max_pixels=max_pixels, boxes=boxes, decoders=decoders())
    count = count_pairs(session.store, found_pairs)
    has_parents = bool(read_summary(session.store, inputs.exact).parents)
    of = {"pairs": found_pairs, "rows": pairs_per_task(count), **together_key(has_parents)}
    folder = edges_folder(how, inputs.features, fingerprint("edges", verify.VERSION, **of))
    have = list_parts(session.store, folder, EDGES)
    ranges = [bounds for gap in missing(have, 0, count) for bounds in cut(*gap, pairs_per_task(count))]
    whole = verify.VerifySpec(inputs, found_pairs, folder, params, max_pixels, boxes, "", 0, count)
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
