"""Videos stage: which videos share frames, from the groups of their frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.shared_frames import GroupedFrames, SharedFrames, SharedParams, shared_frames
from pipeline.layout.annotations import names_of
from pipeline.layout.images import PARENT_COLUMNS, parents_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.tables import json_bytes, read_table, write_table
from pipeline.runner import Counters
from pipeline.sources.fragments import VIDEO
from pipeline.stages.findings.context import Range, as_table
from pipeline.storage import Store

FRAMES, COUNTS = "frames", "videos.json"
ALONE = -1
FRAME_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), False),
        pa.field("video", pa.int64(), False),
        pa.field("group_id", pa.int64(), False),
        pa.field("time", pa.int64(), False),
        pa.field("split", pa.int32(), False),
        pa.field("label", pa.int32(), False),
    ]
)
"""An ok frame: hash of its video, group (ALONE: none of two or more), microseconds, codes of split and label."""
_FACTS = {"image_id": ("count", "min"), "split": ("min", "max"), "label": ("min", "max")}
_MERGED = ["image_id_count", "image_id_min", "split_min", "split_max", "label_min", "label_max"]
_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class VideosSpec:
    """The frames of an audit, in its folder, and the key of the table of videos that share some."""

    inputs: Inputs
    folder: str
    key: str


def frames_table(found: Range) -> pa.Table | None:
    """The ok frames of a range as FRAME_SCHEMA; None where it has no video, which the kinds of its files tell."""
    spec = found.spec
    kinds = spec.inputs.catalog_rows(spec.lo, spec.hi, ["parent_kind"])["parent_kind"].combine_chunks()
    if kinds.null_count == len(kinds):
        return None
    is_frame = pc.fill_null(pc.equal(kinds, VIDEO), fill_value=False).to_numpy(zero_copy_only=False) & found.ok
    at = np.flatnonzero(is_frame)
    if not len(at):
        return None
    rows = spec.inputs.catalog_rows(spec.lo, spec.hi, [*PARENT_COLUMNS, "position"]).take(pa.array(at))
    ids = at + spec.lo
    groups = found.graph.groups_of(ids)
    groups[(groups == ids) & ~np.isin(ids, found.graph.roots_in(spec.lo, spec.hi))] = ALONE
    columns = [ids, parents_of(rows), groups, rows["position"], found.codes.split[at], found.codes.label[at]]
    return pa.table(dict(zip(FRAME_SCHEMA.names, columns, strict=True)), schema=FRAME_SCHEMA)


def has_frames(store: Store, folder: str) -> bool:
    """Whether an audit has frames of videos: one listing."""
    return next(iter(store.list(f"{folder}/{FRAMES}/")), None) is not None


def publish_videos(spec: VideosSpec) -> Counters:
    """Commits the table of videos that share frames, and how many videos and frames there are (the done-marker).

    Memory: 180 bytes for each frame in a group (283 MB for 1.6M, 1 s), 48 for each video of each range.
    """
    store = spec.inputs.root.open()
    every, grouped = _read(store, spec.folder)
    first = every["image_id_min"].to_numpy()
    order = np.argsort(first)
    by_hash = np.argsort(every["video"].to_numpy())
    hashes = every["video"].to_numpy()[by_hash]
    owner = first[by_hash[np.searchsorted(hashes, grouped["video"].to_numpy())]]
    frames = GroupedFrames(
        grouped["group_id"].to_numpy(), owner, grouped["time"].to_numpy(), first[order],
        every["image_id_count"].to_numpy()[order],
    )  # fmt: skip
    table = _table(spec.inputs, shared_frames(frames, SharedParams()), every.take(pa.array(order)))
    write_table(store, spec.key, table)
    counts = {"videos": every.num_rows, "frames": int(frames.frames.sum())}
    sharing = {"sharing": pc.count_distinct(table["video_id"]).as_py(), "pairs": table.num_rows}
    store.put(f"{spec.folder}/{COUNTS}", json_bytes(counts | sharing))
    return counts


def _read(store: Store, folder: str) -> tuple[pa.Table, pa.Table]:
    """What is known of each video (columns _MERGED beside `video`), and the grouped frames of all."""
    facts, grouped = [], []
    for info in store.list(f"{folder}/{FRAMES}/"):
        rows = read_table(store, info.key)
        asked = [(name, kind) for name, kinds in _FACTS.items() for kind in kinds]
        facts.append(rows.group_by("video").aggregate(asked))
        kept = rows.filter(pc.not_equal(rows["group_id"], ALONE))
        grouped.append(kept.select(["video", "group_id", "time"]))
    merged = pa.concat_tables(facts).group_by("video")
    asked = [(name, "sum" if name.endswith("count") else name[-3:]) for name in _MERGED]
    found = merged.aggregate(asked)
    columns = {name: found[f"{name}_{kind}"].combine_chunks() for name, kind in asked}
    return pa.table({"video": found["video"].combine_chunks(), **columns}), pa.concat_tables(grouped)


def _table(inputs: Inputs, shared: SharedFrames, every: pa.Table) -> pa.Table:
    """The matches as rows. `every`: what is known of each video, by its first image."""
    columns: dict[str, Any] = {
        "shared_frames": shared.shared_frames,
        "share": shared.share,
        "match_shared_frames": shared.match_shared_frames,
        "match_share": shared.match_share,
        "offset": shared.offset / 1e6,
    }
    for prefix, ids in (("", shared.video_id), ("match_", shared.match_id)):
        columns |= {f"{prefix}{name}": column for name, column in _named(inputs, ids, every).items()}
    order = np.lexsort((shared.match_id, shared.video_id))
    return as_table("videos", columns).take(pa.array(order))


def _named(inputs: Inputs, ids: _Ids, every: pa.Table) -> dict[str, Any]:
    """The columns that name the video of each first image; a split or label where all of its frames have one."""
    facts = every.take(pa.array(np.searchsorted(every["image_id_min"].to_numpy(), ids)))
    uris = inputs.catalog_rows_of(ids, ["uri"])["uri"]
    vocabulary = inputs.vocabulary()
    named: dict[str, Any] = {
        "video_id": ids,
        "video": pc.replace_substring_regex(uris, "#.*$", ""),  # a # of the name itself is %23
        "frame_count": facts["image_id_count"],
    }
    for name, words in (("split", vocabulary.splits), ("label", vocabulary.labels)):
        low, high = (facts[f"{name}_{end}"].to_numpy() for end in ("min", "max"))
        named[name] = names_of(np.where(low == high, low, -1).astype(np.int32), words)
    return named
