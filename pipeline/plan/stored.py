"""Beginning at what is stored: the latest snapshot with its features, and audits whose images are away."""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import StorageError, UsageError
from pipeline.layout.features import FeatureSet, list_features, missing_features
from pipeline.layout.models import ModelRef
from pipeline.layout.snapshots import Snapshot, SourceRecord, first_alike, latest_snapshot, live_between
from pipeline.plan.preparing import extract_range, features_folder
from pipeline.plan.session import Session
from pipeline.runner import FATAL
from pipeline.stages.source_files import source_objects

SHOWN = 5


def known_snapshot(session: Session) -> Snapshot:
    """The latest snapshot of the root, without a listing. Raises UsageError where there is none."""
    snapshot = latest_snapshot(session.store)
    if not snapshot.number:
        raise UsageError(f"{session.store.uri}: nothing is listed or extracted there yet: run it from its sources")
    session.reporter.say(f"catalog: {snapshot.live:,} images in snapshot {snapshot.number}; no source is listed")
    return first_alike(session.store, snapshot)


def require_extracted(session: Session, snapshot: Snapshot, model: ModelRef) -> None:
    """Raises UsageError where images have no features of this model: others may have been extracted."""
    folder = features_folder(session, model)
    gaps = missing_features(list_features(session.store, folder), 0, snapshot.total)
    missing = sum(live_between(session.store, snapshot, lo, hi) for lo, hi in gaps)
    if not missing:
        return
    others = sorted({info.key.split("/")[1] for info in session.store.list("features/")} - {folder.split("/")[1]})
    ranges = ", ".join(f"[{lo}, {hi})" for lo, hi in gaps[:SHOWN]) + ", ..." * (len(gaps) > SHOWN)
    raise UsageError(
        f"{missing:,} of {snapshot.live:,} images, at the offsets {ranges}, have no features of the model {model.name} "
        f"({model.dimension} numbers, {folder}); the root has {len(others)} folders of other features"
        f"{': ' * bool(others)}{', '.join(others)}. Features of another model, of other decoders or limits do not "
        "count: name the model that they were made with (--model, --embeddings), or run from the sources"
    )


def stored_or_extracted(session: Session, snapshot: Snapshot, model: ModelRef) -> FeatureSet:
    """The features of a snapshot: what is missing is extracted, unless the work begins with what is stored."""
    if session.config.start == "features":
        return list_features(session.store, features_folder(session, model))
    return extract_range(session, snapshot, model, 0, snapshot.total)


def without_sources(session: Session, snapshot: Snapshot, model: ModelRef) -> None:
    """Lets similarity alone judge the pairs of an audit whose images are away, or that has none, and says so."""
    config = session.config
    if not config.verify.pixels or not (model.is_alone or config.start == "features"):
        return
    why = "there are no images" if model.is_alone else _away(session, snapshot)
    if why:
        session.reporter.say(f"{why}: pairs are judged by similarity alone")
        session.config = replace(config, verify=replace(config.verify, pixels=False))


def _away(session: Session, snapshot: Snapshot) -> str:
    """Why the images cannot be compared: the first source that is away or empty; "" where all are there."""
    return next(filter(None, (_why_away(session, source) for source in snapshot.sources)), "")


def _why_away(session: Session, source: SourceRecord) -> str:
    uri = source.uri
    try:
        is_empty = next(iter(source_objects(source, session.root.storage)), None) is None
    except FATAL:
        raise
    except StorageError as error:
        return f"{uri} cannot be listed ({type(error).__name__})"
    return f"{uri} is empty" if is_empty else ""
