"""From features to groups and neighbours: exact groups, space, join, verify, components."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.kernels.database import FLOAT16_ERROR
from pipeline.kernels.hits import JoinParams
from pipeline.kernels.outliers import OutlierRule
from pipeline.layout.annotations import read_vocabulary
from pipeline.layout.exact import ExactSummary, read_summary
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.indexes import Index
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATES, CLUSTERS, FURTHEST, NEIGHBOURS, SATURATED, TRUTH
from pipeline.layout.pairs import count_pairs, index_pairs, pairs_key
from pipeline.layout.parts import part_name
from pipeline.layout.root import WORK
from pipeline.layout.siblings import are_apart, together_key
from pipeline.layout.snapshots import Snapshot, live_between
from pipeline.layout.spaces import read_space
from pipeline.plan.certifying import certify
from pipeline.plan.components import components
from pipeline.plan.indexing import Searched, choose_index
from pipeline.plan.joining import SpaceJoin, delete_folder, lists_of, missing_tasks, query_ranges, run_ranges
from pipeline.plan.session import Session
from pipeline.plan.spaces import ChosenSpace
from pipeline.plan.verifying import verify_pairs
from pipeline.runner import Task
from pipeline.stages import assign, clusters, join, limit_pairs, merge, pairs

MADE_BY = (assign.VERSION, join.VERSION, clusters.VERSION)
"""Versions of what else makes candidates and neighbours: a folder of them is named by all."""
SIBLINGS = 1
"""Version of how frames of one video and boxes of one image are told apart from other images."""
LEAST_LIMIT = 100_000  # pairs: 10 minutes of one core


@dataclass(frozen=True)
class Found:
    """Folders of what the search gave: candidates, pairs, verified edges, groups, semantic neighbours, and
    the measured recall and the outlier tail, "" where the search is exact.
    """

    candidates: str
    pairs: str
    edges: str
    groups: str
    neighbours: str
    recall: str
    tail: str
    semantic: Index


def summary_of(session: Session, inputs: Inputs) -> ExactSummary:
    """The summary of the exact groups."""
    return read_summary(session.store, inputs.exact)


def search(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace) -> Found:
    """Candidates, their kinds, the groups, and the semantic neighbours outside them."""
    summary = summary_of(session, inputs)
    key = {"features": inputs.features, "content": summary.digest}
    candidates = _join_copy(session, snapshot, inputs, space, key)
    found_pairs = _limited(session, snapshot, inputs, _collect_pairs(session, snapshot, inputs, space, candidates))
    edges = verify_pairs(session, inputs, found_pairs)
    groups = components(session, inputs, edges, key, space)
    searched = Searched(inputs, space.record, groups, summary.digest, summary.representatives)
    semantic = choose_index(session, searched, session.config.neighbours.semantic_probes)
    neighbours, recall, tail = _join_semantic(session, snapshot, inputs, semantic, candidates, groups)
    return Found(candidates, found_pairs, edges, groups, neighbours, recall, tail, semantic)


def siblings_key(are_told_apart: bool) -> dict[str, int]:
    """What names neighbours that were found with siblings told apart; nothing where there are none."""
    return {"siblings": SIBLINGS} if are_told_apart else {}


def _join_copy(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace, key: dict[str, str]) -> str:
    """Folder of the candidates and of the clusters that the saturated queries are in."""
    config = session.config.neighbours
    params = replace(config.copy, threshold=space.threshold, least=space.threshold - FLOAT16_ERROR)
    splits = read_vocabulary(session.store, inputs.annotations).split_digest
    summary = summary_of(session, inputs)
    of = {**key, "splits": splits, **together_key(bool(summary.parents))}
    dimension = read_space(session.store, space.folder).dimension
    joining = SpaceJoin(
        session, snapshot, inputs, "copy", space.copy, space.folder, assign.assign_copy, dimension, params,
        summary.representatives, config.recall_sample, of, bool(summary.parents),
    )  # fmt: skip
    folder = "neighbours/" + fingerprint(
        "join copy", merge.VERSION, made_by=MADE_BY, space=space.folder, index=lists_of(space.copy), params=params,
        of=of, ranges=joining.ranges, share=joining.share,
    )  # fmt: skip
    if not session.store.exists(f"{folder}/{CLUSTERS}"):
        joining.require_hits()
    tasks = []
    for number, (lo, hi) in enumerate(joining.ranges):
        spec = merge.CopyMergeSpec(joining.joined, params, folder, number)
        beside = tuple(f"{folder}/{part_name(name, lo, hi)}" for name in (SATURATED, TRUTH))
        name = f"{folder}/{part_name(CANDIDATES, lo, hi)}"
        tasks.append(Task(name, merge.merge_copy, spec, joining.live(number), beside=beside))
    joining.merge(folder, tasks)
    _collect_clusters(session, joining, folder)
    joining.clear()
    return folder


def _collect_clusters(session: Session, joining: SpaceJoin, folder: str) -> None:
    """One forest of all saturated queries, in the folder of the candidates."""
    keys: tuple[str, ...] = ()
    if not session.store.exists(f"{folder}/{CLUSTERS}"):
        merged = (f"{folder}/{part_name(SATURATED, lo, hi)}" for lo, hi in joining.ranges)
        keys = (*joining.joined.saturated_keys(), *merged)
    collected = clusters.ClustersSpec(session.root, keys, folder)
    session.run_one("clusters", folder, (CLUSTERS,), Task(folder, clusters.collect_clusters, collected))


def _collect_pairs(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace, candidates: str) -> str:
    """Folder of the pairs that are verified."""
    ranges = tuple(query_ranges(snapshot.total))
    folder = f"pairs/{fingerprint('pairs', pairs.VERSION, candidates=candidates)}"
    thinned = f"{WORK}/{fingerprint('thin', pairs.VERSION, candidates=candidates)}"
    thin, collect = [], []
    for number, (lo, hi) in enumerate(ranges):
        live = live_between(session.store, snapshot, lo, hi)
        first = pairs.ThinSpec(inputs, space.folder, candidates, thinned, ranges, number)
        thin.append(Task(pairs.thinned_key(thinned, lo, hi), pairs.thin, first, live))
        second = pairs.PairsSpec(inputs, space.folder, thinned, space.threshold, folder, ranges, number)
        collect.append(Task(pairs_key(folder, lo, hi), pairs.collect_pairs, second, live))
    if missing_tasks(session, folder, collect):
        run_ranges(session, "thin", thinned, thin)
    run_ranges(session, "pairs", folder, collect)
    index_pairs(session.store, folder, ranges)
    delete_folder(session.store, thinned)
    return folder


def _limited(session: Session, snapshot: Snapshot, inputs: Inputs, found: str) -> str:
    """Folder of as many of the pairs as may be compared, the most similar ones: mostly that of all."""
    most = max(LEAST_LIMIT, int(session.config.neighbours.pairs_per_image * snapshot.live))
    count = count_pairs(session.store, found)
    if count <= most:
        return found
    has_siblings = bool(summary_of(session, inputs).parents)
    key = {"pairs": found, "most": most, **together_key(has_siblings)}
    folder = f"pairs/{fingerprint('limit pairs', limit_pairs.VERSION, **key)}"
    ranges = tuple(query_ranges(snapshot.total))
    siblings = inputs if has_siblings else None
    spec = limit_pairs.LimitSpec(session.root, found, ranges, most, folder, siblings=siblings)
    limit = (limit_pairs.limit_key(folder).rpartition("/")[2],)
    session.run_one("limit pairs", folder, limit, Task(folder, limit_pairs.decide, spec))
    tasks = [
        Task(pairs_key(folder, lo, hi), limit_pairs.keep_similar, replace(spec, number=number))
        for number, (lo, hi) in enumerate(ranges)
    ]
    run_ranges(session, "keep similar pairs", folder, tasks)
    index_pairs(session.store, folder, ranges)
    decided = limit_pairs.read_limit(session.store, folder)
    if decided["left_out"]:  # with siblings there may be more pairs than are ever compared
        session.reporter.say(
            f"pairs: {decided['left_out']:,} of {count:,} are left out, those of a copy similarity under "
            f"{decided['least']:.4f}: at most {session.config.neighbours.pairs_per_image:g} an image are compared "
            "(neighbours.pairs_per_image)"
        )
    return folder


def _join_semantic(
    session: Session, snapshot: Snapshot, inputs: Inputs, semantic: Index, candidates: str, groups: str
) -> tuple[str, str, str]:
    """Folders of the neighbours, of the measured recall and of the outlier tail; "" where the search is exact."""
    config = session.config.neighbours
    summary = summary_of(session, inputs)
    meant, apart = OutlierRule().neighbours_among(summary.representatives), are_apart(inputs, groups)
    joining = SpaceJoin(
        session, snapshot, inputs, "semantic", semantic, groups, assign.assign_semantic, inputs.dimension,
        JoinParams(k=config.semantic_k + 1, k_cross=0), summary.representatives, config.recall_sample,
        {"groups": groups, **siblings_key(apart)}, apart,
    )  # fmt: skip
    folder = "neighbours/" + fingerprint(
        "join semantic", merge.VERSION, made_by=MADE_BY, groups=groups, index=lists_of(semantic), k=config.semantic_k,
        ranges=joining.ranges, share=joining.share, meant=meant, **siblings_key(apart),
    )  # fmt: skip
    tasks = []
    for number, (lo, hi) in enumerate(joining.ranges):
        spec = merge.SemanticMergeSpec(joining.joined, groups, config.semantic_k, meant, folder, number)
        beside = tuple(f"{folder}/{part_name(name, lo, hi)}" for name in (TRUTH, FURTHEST))
        name = f"{folder}/{part_name(NEIGHBOURS, lo, hi)}"
        tasks.append(Task(name, merge.merge_semantic, spec, joining.live(number), beside=beside))
    joining.merge(folder, tasks)
    recall, tail = certify(joining, candidates, folder, meant) if not semantic.is_exact else ("", "")
    joining.clear()
    return folder, recall, tail
