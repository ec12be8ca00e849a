"""Commits the tables of a range, and the summary of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.kernels.leaks import LEAKING
from pipeline.layout.inputs import Inputs
from pipeline.layout.parts import part_name
from pipeline.layout.root import kept
from pipeline.layout.scores import SUMMED, totals_from_bytes
from pipeline.layout.tables import json_bytes, read_json, read_object, read_table, write_table
from pipeline.runner import Counters
from pipeline.schemas import CHECKS, KIND_ORDER, TABLES, Kind, Status
from pipeline.stages.findings.context import FindingsSpec, Range
from pipeline.stages.findings.group_tables import GroupImages, groups_table, label_conflicts_table
from pipeline.stages.findings.image_tables import (
    images_table,
    invalid_table,
    labels_table,
    outliers_table,
    quality_table,
)
from pipeline.stages.findings.pair_tables import duplicates_table, leaks_table
from pipeline.stages.findings.videos import COUNTS as VIDEO_COUNTS
from pipeline.stages.findings.videos import FRAMES, frames_table
from pipeline.storage import Store

VERSION = 5  # 5: an edge of siblings of which one has a copy elsewhere names that copy
PART = "part"
MARKER = "images"
"""The table that is written last: its part marks the range as done."""
WRITTEN = (
    "duplicates", "leaks", "groups", "label_conflicts", "outliers", "labels", "quality", "invalid", MARKER
)  # fmt: skip
COUNTS = "findings.json"


@dataclass(frozen=True)
class SummarySpec:
    """The tables of an audit, to be summed up in its folder. pixels: whether pairs were to be compared by theirs."""

    inputs: Inputs
    folder: str
    pixels: bool = True


def publish_range(spec: FindingsSpec) -> Counters:
    """Commits every table of a range."""
    found = Range(spec)
    key = f"{spec.scores}/{SUMMED}"
    totals = kept(found.store, key, lambda: read_object(found.store, key, totals_from_bytes))
    members = GroupImages(found)
    tables = {
        "duplicates": duplicates_table(found),
        "leaks": leaks_table(found),
        "groups": groups_table(found, members),
        "label_conflicts": label_conflicts_table(found, members),
        "outliers": outliers_table(found, totals),
        "labels": labels_table(found, totals),
        "quality": quality_table(found, totals),
        "invalid": invalid_table(found),
        MARKER: images_table(found),
    }
    if (frames := frames_table(found)) is not None:
        write_table(found.store, f"{spec.folder}/{FRAMES}/{part_name(PART, spec.lo, spec.hi)}", frames)
    for name in WRITTEN:
        write_table(found.store, table_key(spec.folder, name, spec.lo, spec.hi), tables[name])
    return {"images": tables[MARKER].num_rows}


def table_key(folder: str, name: str, lo: int, hi: int) -> str:
    """Key of the part of a table that holds offsets [lo, hi)."""
    return f"{folder}/tables/{name}/{part_name(PART, lo, hi)}"


def summarise(spec: SummarySpec) -> Counters:
    """Commits the counts over all tables, reading only the columns that are counted."""
    store = spec.inputs.root.open()
    facts = {
        "duplicates": _duplicates(store, spec.folder) | ({} if spec.pixels else {"unread": 0}),
        "leaks": _leaks(store, spec.folder, _ok_images(store, spec.folder, spec.inputs.vocabulary().splits)),
        "outliers": {"flagged": _count_true(store, spec.folder, "outliers", "is_outlier")},
        "labels": {
            "issues": _count_true(store, spec.folder, "labels", "is_label_issue"),
            "conflicts": sum(t.num_rows for t in _parts(store, spec.folder, "label_conflicts", ["image_id"])),
        },
        "quality": {check: _count_true(store, spec.folder, "quality", f"is_{check}_issue") for check in CHECKS},
        "videos": _videos(store, spec),
    }
    store.put(f"{spec.folder}/{COUNTS}", json_bytes(facts))
    return {}


def _parts(store: Store, folder: str, name: str, columns: list[str]) -> Iterator[pa.Table]:
    """One part at a time: each holds all rows of its images and groups, so that counts of parts add up."""
    for info in store.list(f"{folder}/tables/{name}/"):
        yield read_table(store, info.key, columns)


def _count_true(store: Store, folder: str, name: str, column: str) -> int:
    return sum(pc.sum(part[column]).as_py() or 0 for part in _parts(store, folder, name, [column]))


def _videos(store: Store, spec: SummarySpec) -> dict[str, int]:
    """The counts of the videos; where there are none the table gets its one part here, for every table has one."""
    key = f"{spec.folder}/{VIDEO_COUNTS}"
    if store.exists(key):
        return dict(read_json(store, key))
    write_table(
        store, table_key(spec.folder, "videos", 0, spec.inputs.opened_snapshot().total), TABLES["videos"].empty()
    )
    return dict.fromkeys(("videos", "frames", "sharing", "pairs"), 0)


def _duplicates(store: Store, folder: str) -> dict[str, object]:
    counts: Counter[str] = Counter()
    unread = 0
    for part in _parts(store, folder, "duplicates", ["kind", "is_verified"]):
        counts.update({item["values"]: item["counts"] for item in pc.value_counts(part["kind"]).to_pylist()})
        alike = pc.equal(part["kind"], Kind.LOOK_ALIKE.value)
        unread += pc.sum(pc.and_(alike, pc.invert(part["is_verified"]))).as_py() or 0
    groups = images = largest = 0
    for part in _parts(store, folder, "groups", ["group_id", "group_size"]):
        groups += pc.count_distinct(part["group_id"]).as_py()
        images += part.num_rows
        largest = max(largest, pc.max(part["group_size"]).as_py() or 0)
    return {
        "unread": unread,  # look-alikes only because an image could not be read again: any of them may be a copy
        "pairs": {kind.value: counts[kind.value] for kind in KIND_ORDER if kind.value in counts},
        "groups": groups,
        "grouped_images": images,
        "largest_group": largest,
    }


def _ok_images(store: Store, folder: str, splits: Sequence[str]) -> dict[str, int]:
    """How many ok images each split has: one that cannot be read cannot leak."""
    counts = Counter(dict.fromkeys(splits, 0))
    for part in _parts(store, folder, MARKER, ["split", "status"]):
        ok = part.filter(pc.equal(part["status"], Status.OK.value))["split"].drop_null()
        counts.update({item["values"]: item["counts"] for item in pc.value_counts(ok).to_pylist()})
    return dict(sorted(counts.items()))


def _leaks(store: Store, folder: str, sizes: dict[str, int]) -> dict[str, object]:
    """Images that leak by split, and by pair of splits: an image has one row per other split.

    `headline` has every split, `images` and `splits` what leaks; shares are of the split's ok images.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    leaking: Counter[str] = Counter()
    for part in _parts(store, folder, "leaks", ["image_id", "split", "match_split", "severity"]):
        serious = part.filter(pc.greater_equal(part["severity"], LEAKING))
        for row in serious.group_by(["split", "match_split"]).aggregate([([], "count_all")]).to_pylist():
            pairs[row["split"], row["match_split"]] += row["count_all"]
        for row in serious.group_by("split").aggregate([("image_id", "count_distinct")]).to_pylist():
            leaking[row["split"]] += row["image_id_count_distinct"]
    return {
        "images": dict(sorted(leaking.items())),
        "headline": [
            {"split": split, "images": size, "leaking": leaking[split], "share": leaking[split] / max(size, 1)}
            for split, size in sizes.items()
        ],
        "splits": [
            {"split": split, "other": other, "images": sizes[split], "leaking": count, "share": count / sizes[split]}
            for (split, other), count in sorted(pairs.items())
        ],
    }
