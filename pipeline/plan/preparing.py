"""From sources to features: the catalog, the annotations and the extracted shards."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np

from pipeline.errors import IncompleteError, UsageError
from pipeline.kernels.boxes import BoxesFrom, UprightBox, box_name, parse_bounding_box
from pipeline.kernels.measure import MeasureParams
from pipeline.layout.annotations import CODES, STEM, VOCABULARY, load_boxes, read_vocabulary, table_name
from pipeline.layout.exact import MAX_SPLITS
from pipeline.layout.features import (
    FeatureSet,
    is_settled,
    list_features,
    missing_features,
    next_attempt,
    read_feature_rows,
)
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.images import image_object
from pipeline.layout.models import ModelRef
from pipeline.layout.parts import Slice, cover, cut, part_name, shard_size
from pipeline.layout.root import versions
from pipeline.layout.snapshots import (
    Snapshot,
    catalog_rows_of,
    first_alike,
    live_between,
    removed_ids,
)
from pipeline.plan.checking import named_sources
from pipeline.plan.detecting import DETECT, DetectedBoxes, detecting
from pipeline.plan.expanding import EXPAND, PREPARE, expand_parents
from pipeline.plan.listing import listed_counts, require_match, say_listed, say_rule
from pipeline.plan.session import SHOWN_FAILURES, RunnerStart, Session, StageWork
from pipeline.plan.touched import KnownContent
from pipeline.runner import Task
from pipeline.schemas import TRANSIENT, Status
from pipeline.sources.boxed import Boxes, ListedBoxes, SameBox
from pipeline.stages import annotate, extract
from pipeline.stages.catalog import Wanted, update_catalog
from pipeline.stages.listing import Taken

ANNOTATION_ROWS = 131_072
RETRY_IDS = 1024


def take_snapshot(session: Session, start_runner: RunnerStart) -> Snapshot:
    """Lists the sources and pins the snapshot of this audit; a runner is started where there are files to look into."""
    config = session.config
    record = session.timed("catalog", "catalog")
    started, cpu = time.perf_counter(), time.process_time()
    expand = partial(expand_parents, session, start_runner)
    known = KnownContent(session.root)
    how = detecting(session)
    found = None if how is None else DetectedBoxes(session, start_runner, how)
    needs_boxes = bool(config.bounding_box) and parse_bounding_box(config.bounding_box) is BoxesFrom.TABLE
    boxes = _boxes(session)
    table = table_name(config.rule.table or "") if isinstance(boxes, ListedBoxes) else ""
    taken = Taken(config.select, boxes, found, config.video, needs_boxes, table)
    wanted = Wanted(named_sources(config), taken, config.accept_empty)
    update = update_catalog(session.root, wanted, known, expand)
    if found is not None:
        found.warn_of_none()
    snapshot = first_alike(session.store, update.snapshot)
    record.counters = listed_counts(update)
    inside = sum(other.seconds for other in session.records if other.stage in (EXPAND, PREPARE, DETECT))
    session.close(record, time.perf_counter() - started - inside, time.process_time() - cpu, snapshot.live)
    say_listed(session, snapshot, update)
    return snapshot


def _boxes(session: Session) -> Boxes | None:
    """The boxes that are audited in place of the images: one of all, or those of annotations that have any."""
    config = session.config
    asked = parse_bounding_box(config.bounding_box) if config.bounding_box else None
    if isinstance(asked, UprightBox):
        return SameBox(box_name(asked))
    return load_boxes(session.store, session.table_hash) if session.table_hash else None


def annotate_snapshot(session: Session, snapshot: Snapshot) -> str:
    """Gives every row its split and label; returns the annotations folder."""
    rule = session.config.rule
    table_hash = session.table_hash
    of = {"snapshot": snapshot.digest, "rule": replace(rule, table=None), "table": table_hash}
    of |= {"given": snapshot.given} if snapshot.given else {}
    name = fingerprint("annotate", annotate.VERSION, **of)
    folder = f"annotations/{name}"
    have = {info.key for info in session.store.list(f"{folder}/")}
    tasks = []
    for lo, hi in cut(0, snapshot.total, ANNOTATION_ROWS):
        key, names = f"{folder}/{part_name(STEM, lo, hi)}", annotate.names_key(folder, lo, hi)
        spec = annotate.AnnotateSpec(session.root, snapshot.number, folder, rule, table_hash, lo, hi, snapshot.given)
        live = live_between(session.store, snapshot, lo, hi)
        tasks.append(Task(key, annotate.annotate, spec, live, beside=(names,)))
    waiting = [task for task in tasks if not have.issuperset((task.name, *task.beside))]
    session.run(StageWork("annotate", folder, waiting, snapshot.live, len(tasks)))
    counted = annotate.VocabularySpec(session.root, snapshot.number, folder, rule, table_hash)
    task = Task(f"{folder}/{VOCABULARY}", annotate.count_vocabulary, counted)
    session.run_one("vocabulary", folder, (CODES, VOCABULARY), task)
    vocabulary = read_vocabulary(session.store, folder)
    say_rule(session, snapshot, vocabulary)
    require_match(session, snapshot, vocabulary)
    if len(vocabulary.splits) > MAX_SPLITS:
        raise UsageError(
            f"{len(vocabulary.splits)} splits ({', '.join(vocabulary.splits[:3])}, ...), want at most {MAX_SPLITS}: "
            "check the rule that names them, or merge some."
        )
    return folder


def features_folder(session: Session, model: ModelRef) -> str:
    """Folder of the features of this model, preprocessing and decoders."""
    measured = measure_params(session, model)
    boxes = session.config.boxes
    of = {"model": model.sha256, "input": model.input, "measure": measured, "boxes": boxes, "versions": versions()}
    name = fingerprint("extract", extract.VERSION, **of)
    return f"features/{name}"


def measure_params(session: Session, model: ModelRef) -> MeasureParams:
    """What is measured, for the input size of this model."""
    return replace(session.config.measure, input_width=model.input.width, input_height=model.input.height)


def extract_range(session: Session, snapshot: Snapshot, model: ModelRef, lo: int, hi: int) -> FeatureSet:
    """Extracts what is missing of [lo, hi), then tries again what an attempt could not read."""
    folder = features_folder(session, model)
    size = session.config.shard_size or shard_size(snapshot.total)
    have = list_features(session.store, folder)
    whole = _extract_spec(session, snapshot, model, lo, hi)
    specs = [
        replace(whole, lo=start, hi=stop) for gap in missing_features(have, lo, hi) for start, stop in cut(*gap, size)
    ]
    parts = len(cover(have.base, lo, hi)) + len(specs)
    tasks = [_extract_task(spec, live_between(session.store, snapshot, spec.lo, spec.hi)) for spec in specs]
    session.run(StageWork("extract", folder, tasks, live_between(session.store, snapshot, lo, hi), parts))
    _extract_again(session, snapshot, model, cover(have.base, lo, hi))
    return list_features(session.store, folder)


def _extract_again(session: Session, snapshot: Snapshot, model: ModelRef, earlier: list[Slice]) -> None:
    """Tries the images of earlier sessions again whose status was a property of the attempt."""
    folder = features_folder(session, model)
    features = list_features(session.store, folder)
    gone = removed_ids(session.store, snapshot)
    transient = [status.value for status in TRANSIENT]
    tasks = []
    for piece in earlier:
        if is_settled(session.store, piece.part):
            continue
        rows = read_feature_rows(session.store, features, piece.lo, piece.hi, ["image_id", "status"])
        statuses = rows["status"].to_numpy().astype(str)
        failed = rows["image_id"].to_numpy()[np.isin(statuses, transient)]
        deadly = rows["image_id"].to_numpy()[statuses == Status.CRASHED.value]
        ids = np.setdiff1d(failed, gone)
        for at in range(0, len(ids), RETRY_IDS):
            only = tuple(int(image_id) for image_id in ids[at : at + RETRY_IDS])
            lo, hi = only[0], only[-1] + 1
            whole = _extract_spec(session, snapshot, model, lo, hi)
            task = _extract_task(replace(whole, only=only, attempt=next_attempt(features, lo, hi)), len(only))
            tasks.append(replace(task, is_suspect=bool(np.isin(deadly, only).any())))
    if tasks:
        items = sum(task.items for task in tasks)
        session.run(StageWork("extract again", folder, tasks, items, len(tasks)))


def count_statuses(session: Session, snapshot: Snapshot, features: FeatureSet, lo: int, hi: int) -> Counter[str]:
    """Live images of [lo, hi) per status."""
    gone = removed_ids(session.store, snapshot)
    counts: Counter[str] = Counter()
    for start, stop in cut(lo, hi, ANNOTATION_ROWS):
        rows = read_feature_rows(session.store, features, start, stop, ["image_id", "status"])
        live = ~np.isin(rows["image_id"].to_numpy(), gone)
        counts.update(rows["status"].to_numpy()[live].tolist())
    return counts


def require_enough(
    session: Session, snapshot: Snapshot, features: FeatureSet, statuses: dict[str, int], lo: int, hi: int
) -> None:
    """Raises IncompleteError where more images of [lo, hi) than the config allows could not be read in this attempt."""
    live = sum(statuses.values())
    counts = {status: count for status, count in statuses.items() if status in {item.value for item in TRANSIENT}}
    failed = sum(counts.values())
    session.count_failed_images("extract", failed)
    if live and failed / live > session.config.max_failed_share:
        listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        raise IncompleteError(
            f"{failed} of {live} images could not be read ({listed}), over the {session.config.max_failed_share:.0%} "
            "that max_failed_share allows; everything else is kept and they are tried again by the next run:\n"
            + "".join(f"  {line}\n" for line in _first_failed(session, snapshot, features, lo, hi))
            + (f"  (+{failed - SHOWN_FAILURES} more)\n" if failed > SHOWN_FAILURES else "")
            + "Mend what they name, such as the right to read them, or let more fail: --max-failed-share "
            f"(max_failed_share) of at least {math.ceil(1000 * failed / live) / 1000}.\n"
            f"Resume with: {session.resume_command}"
        )


def _first_failed(session: Session, snapshot: Snapshot, features: FeatureSet, lo: int, hi: int) -> list[str]:
    """The first images of [lo, hi) that an attempt could not read, each with where it is and why."""
    transient = [status.value for status in TRANSIENT]
    gone = removed_ids(session.store, snapshot)
    shown: list[str] = []
    for piece in cover(features.base, lo, hi):
        if is_settled(session.store, piece.part):
            continue
        rows = read_feature_rows(session.store, features, piece.lo, piece.hi, ["image_id", "status", "message"])
        ids = rows["image_id"].to_numpy()
        at = np.flatnonzero(np.isin(rows["status"].to_numpy().astype(str), transient) & ~np.isin(ids, gone))
        at = at[: SHOWN_FAILURES - len(shown)]
        images = catalog_rows_of(session.store, snapshot, ids[at]).to_pylist()
        for image, row in zip(images, rows.take(at).to_pylist(), strict=True):
            place = image_object(image, snapshot).name
            shown.append(f"{place}: {row['status']} ({(row['message'] or '').replace(place, 'it')})")
        if len(shown) == SHOWN_FAILURES:
            break
    return shown


def _extract_spec(session: Session, snapshot: Snapshot, model: ModelRef, lo: int, hi: int) -> extract.ExtractSpec:
    folder, measured = features_folder(session, model), measure_params(session, model)
    return extract.ExtractSpec(session.root, snapshot.number, folder, model, measured, session.config.boxes, lo, hi)


def _extract_task(spec: extract.ExtractSpec, items: int) -> Task:
    return Task(extract.part_key(spec), extract.extract, spec, items, extract.halves, extract.quarantine)
