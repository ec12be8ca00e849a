"""The plan of an audit: which stages run, in which order, on what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.config import AuditConfig
from pipeline.layout.annotations import store_table
from pipeline.layout.audits import Published, has_audit
from pipeline.layout.features import list_features, missing_features
from pipeline.layout.models import ModelRef, store_model
from pipeline.layout.own_vectors import own_model
from pipeline.layout.root import Root, claim
from pipeline.layout.served import Recipe, write_recipe
from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.layout.snapshots import Snapshot
from pipeline.plan.checking import require_inputs
from pipeline.plan.detecting import detections_of
from pipeline.plan.embedding import open_embeddings, place_embeddings
from pipeline.plan.exact import group_exact
from pipeline.plan.preparing import (
    annotate_snapshot,
    count_statuses,
    extract_range,
    features_folder,
    measure_params,
    require_enough,
    take_snapshot,
)
from pipeline.plan.publishing import publish
from pipeline.plan.searching import search, summary_of
from pipeline.plan.session import RunnerStart, Session
from pipeline.plan.spaces import choose_space
from pipeline.plan.stored import known_snapshot, require_extracted, stored_or_extracted, without_sources
from pipeline.plan.yolo import with_yolo_boxes
from pipeline.progress import Reporter
from pipeline.runner import LocalRunner
from pipeline.storage import ARCHIVES, FILES, SyncParams, begin_run, canonical_uri, remove_copies

SEARCHED_PER_EXTRACTED = 4
"""So many images are searched, scored and written in the CPU time that extracts one (1.6 of 7.5 ms at 14,034)."""


@dataclass(frozen=True)
class Call:
    """How an audit is called: who carries it out, who is told, the command that resumes it; and, by key, what a Python
    caller gives in memory, which is stored in the root once the call is known to be right.
    """

    start_runner: RunnerStart
    reporter: Reporter
    resume_command: str
    given: Mapping[str, bytes] = field(default_factory=dict)


def run_audit(config: AuditConfig, call: Call) -> Published | None:
    """Audits the sources of a config into its root; None where only a range was asked for.

    Does only what is missing: every stage lists its artifact first. Raises an AuditError; what was committed stays.
    """
    root = Root(canonical_uri(config.root, config.storage), config.storage)
    file = open_embeddings(config)
    is_alone = config.start == "sources" and not config.every_source
    require_inputs(config, root, call.given)
    if config.storage.sync_to_local:
        begin_run(SyncParams(config.storage.sync_to_local, config.storage.sync_budget))
    claim(root)
    for key, data in call.given.items():
        root.open().put_if_absent(key, data)
    config = with_yolo_boxes(config, root)
    session = Session(config, root, LocalRunner(), call.reporter, call.resume_command)
    model = own_model(file, is_alone) if file else _store_model(root, config)
    if config.rule.table:  # before the listing, which may take hours
        session.table_hash = store_table(root, config.rule.table)
    try:
        snapshot = take_snapshot(session, call.start_runner) if config.start == "sources" else known_snapshot(session)
        model = place_embeddings(session, snapshot, file, model) if file else model
        return _extract_and_audit(session, snapshot, model, call.start_runner)
    finally:
        session.runner.close()


def _extract_and_audit(
    session: Session, snapshot: Snapshot, model: ModelRef, start_runner: RunnerStart
) -> Published | None:
    if session.config.start == "features":
        require_extracted(session, snapshot, model)
    without_sources(session, snapshot, model)
    lo, hi = _range(session.config, snapshot)
    waiting = missing_features(list_features(session.store, features_folder(session, model)), lo, hi)
    if isinstance(session.runner, LocalRunner):
        work = _work(session, snapshot, sum(stop - start for start, stop in waiting))
        session.runner = start_runner(work, session.root)
    if session.config.is_range:
        _extract_only(session, snapshot, model, lo, hi)
        _remove_copies(session.config)
        return None
    published = _audit(session, snapshot, model)
    _remove_copies(session.config)
    return published


def _remove_copies(config: AuditConfig) -> None:
    kinds = [kind for kind, is_asked in ((FILES, config.delete_img), (ARCHIVES, config.delete_tar)) if is_asked]
    if kinds:
        remove_copies(SyncParams(config.storage.sync_to_local, config.storage.sync_budget), kinds)


def _work(session: Session, snapshot: Snapshot, extracted: int) -> int:
    """What there is to do, in images to extract. A snapshot that has an audit is taken as searched."""
    if session.config.is_range or (not extracted and has_audit(session.store, snapshot.number)):
        return extracted
    return extracted + snapshot.live // SEARCHED_PER_EXTRACTED


def _range(config: AuditConfig, snapshot: Snapshot) -> tuple[int, int]:
    lo, hi = config.min_offset or 0, snapshot.total if config.max_offset is None else config.max_offset
    return min(lo, snapshot.total), min(hi, snapshot.total)


def _store_model(root: Root, config: AuditConfig) -> ModelRef:
    return store_model(root, config.model.path, config.model.input, config.model.cache)


def _extract_only(session: Session, snapshot: Snapshot, model: ModelRef, lo: int, hi: int) -> None:
    if lo == hi:
        session.reporter.say(
            f"no offset from {session.config.min_offset or 0} on: snapshot {snapshot.number} ends at "
            f"{snapshot.total:,}; nothing was extracted or published"
        )
        return
    features = extract_range(session, snapshot, model, lo, hi)
    statuses = count_statuses(session, snapshot, features, lo, hi)
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
    session.reporter.say(
        f"offsets [{lo}, {hi}) of snapshot {snapshot.number} ({snapshot.total:,} images) are extracted "
        f"({counts or 'all were removed'}); nothing was published"
    )
    require_enough(session, snapshot, features, statuses, lo, hi)


def _audit(session: Session, snapshot: Snapshot, model: ModelRef) -> Published:
    annotations = annotate_snapshot(session, snapshot)
    features = stored_or_extracted(session, snapshot, model)
    inputs = group_exact(session, snapshot, features, annotations, model.dimension)
    summary = summary_of(session, inputs)
    require_enough(session, snapshot, features, summary.statuses, 0, snapshot.total)
    space = choose_space(session, inputs, summary, model)
    session.reporter.say(f"space: {space.said}")
    session.reporter.say(f"threshold: {space.threshold_said}")
    found = search(session, snapshot, inputs, space)
    session.detections = detections_of(session, snapshot)
    published = publish(session, snapshot, inputs, space, found)
    measured = measure_params(session, model)
    made_of = (inputs, model, measured, space.folder, space.copy, found.semantic, summary.representatives)
    recipe = Recipe(*made_of, session.detections)
    write_recipe(session.store, published.audit_id, recipe)
    if not any(record.attempts for record in session.records if record.folder != CATALOG):
        session.reporter.say("nothing had to be done: every stage was done before")
    return published
