"""Exact groups: which images share their bytes or pixels, in one task or, of a large set, by ranges and buckets."""

from __future__ import annotations

from pipeline.layout.exact import FEATURES, MEMBERS, REPRESENTATIVES, SIZES, SUMMARY
from pipeline.layout.features import FeatureSet, pinned_to_json
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.inputs import Inputs
from pipeline.layout.lookups import lookup_name
from pipeline.layout.parts import cover, cut
from pipeline.layout.snapshots import Snapshot, live_between
from pipeline.layout.tables import json_bytes
from pipeline.plan.session import Session, StageWork
from pipeline.runner import Task
from pipeline.stages import exact_groups


def group_exact(session: Session, snapshot: Snapshot, features: FeatureSet, annotations: str, dimension: int) -> Inputs:
    """Groups exact copies; returns the inputs that every later stage shares."""
    held = [(piece.part.key, piece.lo, piece.hi) for piece in cover(features.base, 0, snapshot.total)]
    name = fingerprint(
        "exact", exact_groups.VERSION, snapshot=snapshot.digest, annotations=annotations, features=held,
        again=[part.key for part in features.again],
    )  # fmt: skip
    folder = f"exact/{name}"
    ranges = cut(0, snapshot.total, exact_groups.RANGE)
    if len(ranges) <= 1:
        spec = exact_groups.ExactSpec(session.root, snapshot.number, features, annotations, folder)
        task = Task(folder, exact_groups.group_exact, spec, snapshot.live)
        sizes = [lookup_name(SIZES, 0, snapshot.total)]
    else:
        merged = exact_groups.MergeSpec(session.root, snapshot.number, annotations, folder)
        task = Task(folder, exact_groups.merge_exact, merged, snapshot.live)
        sizes = []
        _group_by_buckets(session, snapshot, features, folder)
    listed = [lookup_name(REPRESENTATIVES, lo, hi) for lo, hi in ranges or [(0, 0)]]
    session.run_one("exact groups", folder, (FEATURES, *sizes, *listed, MEMBERS, SUMMARY), task)
    for info in [*session.store.list(f"{folder}/{exact_groups.HASHES}-")]:
        session.store.delete(info.key)  # 48 bytes an image; the forests of the buckets stay
    return Inputs(session.root, snapshot.number, features.folder, annotations, folder, dimension)


def _group_by_buckets(session: Session, snapshot: Snapshot, features: FeatureSet, folder: str) -> None:
    """The hashes of every range, then what is equal in every bucket; neither where the groups are there already."""
    store, buckets = session.store, exact_groups.bucket_count(snapshot.total)
    if not store.exists(f"{folder}/{FEATURES}"):
        store.put(f"{folder}/{FEATURES}", json_bytes(pinned_to_json(features)))
    have = {info.key for info in store.list(f"{folder}/")}
    forests = [exact_groups.forests_key(folder, number) for number in range(buckets)]
    merged = f"{folder}/{SUMMARY}" in have and f"{folder}/{MEMBERS}" in have
    is_grouped = have.issuperset(forests) or merged
    ranges, tasks = cut(0, snapshot.total, exact_groups.RANGE), []
    for lo, hi in ranges:
        spec = exact_groups.HashSpec(session.root, snapshot.number, folder, buckets, lo, hi)
        hashes, sizes = exact_groups.hashes_key(folder, lo, hi), f"{folder}/{lookup_name(SIZES, lo, hi)}"
        name, beside = exact_groups.facts_key(folder, lo, hi), (sizes,) if is_grouped else (sizes, hashes)
        if not have.issuperset((name, *beside)):
            live = live_between(store, snapshot, lo, hi)
            tasks.append(Task(name, exact_groups.hash_range, spec, live, beside=beside))
    session.run(StageWork("hashes", folder, tasks, snapshot.live, len(ranges)))
    waiting = [] if merged else [number for number, key in enumerate(forests) if key not in have]
    reduced = [
        Task(
            forests[number],
            exact_groups.group_bucket,
            exact_groups.BucketSpec(session.root, snapshot.total, folder, number),
        )
        for number in waiting
    ]
    session.run(StageWork("equal hashes", folder, reduced, buckets, buckets))
