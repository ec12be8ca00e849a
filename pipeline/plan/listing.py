"""What a run says of the listing of its sources: what changed, what was left out, which source has no image."""

from __future__ import annotations

import logging

from pipeline.layout.snapshots import Snapshot
from pipeline.plan.session import Session
from pipeline.sources.folder import IMAGE_SUFFIXES, together
from pipeline.stages.catalog import Update

log = logging.getLogger(__name__)


def listed_counts(update: Update) -> dict[str, float]:
    """The counters of the catalog stage."""
    left_out = together(update.left_out)
    changes = {"added": update.added, "changed": update.changed, "removed": update.removed}
    return {**changes, "left_out": left_out.files, "hidden": left_out.hidden}


def say_listed(session: Session, snapshot: Snapshot, update: Update) -> None:
    """Says what the snapshot holds, and warns, even of a quiet run, of each source without an image."""
    left_out = together(update.left_out)
    images = f"{snapshot.live:,} image{'s'[: snapshot.live != 1]}"
    session.reporter.say(f"catalog: {images} in snapshot {snapshot.number}{_since(snapshot, update)}")
    if left_out.files or left_out.hidden:
        session.reporter.say(f"left out {left_out}")
    for source, found in zip(snapshot.sources, update.left_out, strict=True):
        if not found.images:
            result = "" if snapshot.live else ": every table is empty"
            wanted = ", ".join(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
            seen = (
                f"there {'is' if found.files == 1 else 'are'} {found}; wanted {wanted}"
                if found.files or found.hidden
                else "there are no files"
            )
            log.warning("no images found in %s%s (%s)", source.uri, result, seen)


def _since(snapshot: Snapshot, update: Update) -> str:
    if snapshot.number <= update.since:
        return ", as before"
    if not update.since:
        return ""
    counts = f"{update.added:,} added, {update.changed:,} changed, {update.removed:,} removed"
    return f" ({counts} since snapshot {update.since})"
