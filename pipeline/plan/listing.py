"""What a run says of its sources: what changed, what was left out, which source has no image, what the rule gave."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import zip_longest

from pipeline.errors import UsageError
from pipeline.layout.annotations import Vocabulary, table_name
from pipeline.layout.lists import load_given
from pipeline.layout.snapshots import Snapshot
from pipeline.plan.session import Session
from pipeline.sources.folder import IMAGE_SUFFIXES, together
from pipeline.sources.labels import describe
from pipeline.stages.annotate import name_split, own_split, source_rule
from pipeline.stages.catalog import Update

log = logging.getLogger(__name__)


def listed_counts(update: Update) -> dict[str, float]:
    """The counters of the catalog stage."""
    left_out = together(update.left_out)
    changes = {"added": update.added, "changed": update.changed, "removed": update.removed}
    beside = {"left_out": left_out.files, "hidden": left_out.hidden, "unselected": left_out.unselected}
    return {**changes, **beside}


def say_listed(session: Session, snapshot: Snapshot, update: Update) -> None:
    """Says what the snapshot holds, and warns, even of a quiet run, of each source without an image."""
    left_out = together(update.left_out)
    images = f"{snapshot.live:,} image{'s'[: snapshot.live != 1]}"
    session.reporter.say(f"catalog: {images} in snapshot {snapshot.number}{_since(snapshot, update)}")
    if left_out.files or left_out.hidden or left_out.unselected:
        session.reporter.say(f"left out {left_out}")
    for source, found in zip(snapshot.sources, update.left_out, strict=True):
        if not found.images:
            result = "" if snapshot.live else ": every table is empty"
            wanted = ", ".join(f".{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
            seen = (
                f"there {'is' if found.files == 1 else 'are'} {found}; wanted {wanted}"
                if found.files or found.hidden or found.unselected
                else "there are no files"
            )
            log.warning("no images found in %s%s (%s)", source.uri, result, seen)


def say_rule(session: Session, snapshot: Snapshot, vocabulary: Vocabulary) -> None:
    """Says which rule gave the splits and labels, how many there are, and what it left out."""
    table = table_name(session.config.rule.table) if session.config.rule.table else None
    for source, key in zip_longest(snapshot.sources, snapshot.given):
        rule = replace(source_rule(session.config.rule, source, snapshot), table=table)
        given = load_given(session.store, key) if key else None
        named = {"splits": given.split_texts, "labels": given.label_texts} if given else {}
        listed = " and ".join(name for name, texts in named.items() if texts)
        said = f"{listed} as the list gives them; else " if listed else ""
        if given and (split := name_split(source)):
            said += f"split {split} as the name of the list says; else "
        session.reporter.say(f"rule for {source.uri}: {said}{describe(rule, own_split(source, given))}")
    counts = dict(zip(vocabulary.splits, vocabulary.split_counts, strict=True))
    without = snapshot.live - sum(counts.values())
    counts |= {"none": without} if counts and without else {}
    splits = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    session.reporter.say(f"splits: {splits or 'none'}; labels: {len(vocabulary.labels)}")
    if vocabulary.splits and without:
        log.warning(
            "%s of %s images have no split: they are in no leak; name their split, or give the rest one with "
            "rule.default_split", f"{without:,}", f"{snapshot.live:,}",
        )  # fmt: skip
    if vocabulary.unmatched:
        log.warning(
            "%s of %s images are not named by the table or pattern, such as %r",
            f"{vocabulary.unmatched:,}", f"{snapshot.live:,}", vocabulary.unmatched_name,
        )  # fmt: skip
    if vocabulary.unused and snapshot.unselected:
        session.reporter.say(f"{vocabulary.unused:,} rows of the table {table} match no selected image")
    elif vocabulary.unused:
        log.warning(
            "%s rows of the table %s match no image, such as %r",
            f"{vocabulary.unused:,}", table, vocabulary.unused_name,
        )  # fmt: skip
    if vocabulary.unboxed:
        session.reporter.say(
            f"{vocabulary.unboxed:,} rows of the table {table} have no box: their images are not audited, as the table "
            "gives boxes in place of images"
        )


def require_match(session: Session, snapshot: Snapshot, vocabulary: Vocabulary) -> None:
    """Raises UsageError where a table or pattern matches none of the images: nobody wants an audit without labels."""
    rule = session.config.rule
    if not snapshot.live or vocabulary.unmatched < snapshot.live:
        return
    seen = f"none of the {snapshot.live:,} images"
    if rule.table is None:
        raise UsageError(
            f"the pattern {rule.pattern!r} matches {seen}: the source has {vocabulary.unmatched_name!r}. It is "
            "searched in each path relative to its source: correct it."
        )
    holds = f"the table has {vocabulary.unused_name!r}" if vocabulary.unused else "the table has no rows"
    raise UsageError(
        f"the table {table_name(rule.table)} names {seen}: {holds}, the source has {vocabulary.unmatched_name!r}. "
        "Write each filename as the path relative to the source, or as a file name that one row has."
    )


def _since(snapshot: Snapshot, update: Update) -> str:
    if snapshot.number <= update.since:
        return ", as before"
    if not update.since:
        return ""
    counts = f"{update.added:,} added, {update.changed:,} changed, {update.removed:,} removed"
    return f" ({counts} since snapshot {update.since})"
