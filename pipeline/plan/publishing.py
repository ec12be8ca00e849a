"""From groups and neighbours to a published audit: scores, tables, summary, run.json."""

from __future__ import annotations

import datetime
import platform
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from pipeline import __version__
from pipeline.kernels.labels import LabelRule
from pipeline.kernels.outliers import OutlierRule
from pipeline.layout.annotations import read_vocabulary
from pipeline.layout.audits import FORMAT, Published, audit_folder, publish_audit
from pipeline.layout.edge_index import index_files
from pipeline.layout.fingerprint import fingerprint, plain
from pipeline.layout.groups import read_split_summary
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CLUSTERS, RECALL, TAIL
from pipeline.layout.parts import cut, part_name
from pipeline.layout.root import versions
from pipeline.layout.scores import HEADS, SCORES, SUMMED
from pipeline.layout.snapshots import Snapshot, live_between
from pipeline.layout.tables import count_rows, read_json, read_metadata
from pipeline.plan.joining import query_ranges, run_ranges
from pipeline.plan.searching import Found, summary_of
from pipeline.plan.session import Session, record_to_json
from pipeline.plan.spaces import ChosenSpace
from pipeline.runner import Task, peak_resident_bytes
from pipeline.stages import score
from pipeline.stages.certify import CERTAIN
from pipeline.stages.findings import edge_index, videos
from pipeline.stages.findings import publish as findings
from pipeline.stages.findings.context import FindingsSpec, Rules
from pipeline.stages.limit_pairs import has_limit, read_limit

TABLE_ROWS = 65_536


def publish(session: Session, snapshot: Snapshot, inputs: Inputs, space: ChosenSpace, found: Found) -> Published:
    """Scores, tables and summary of an audit; its run.json is written last."""
    rules = Rules(OutlierRule(), LabelRule(), session.config.quality, session.config.keeper, space.threshold)
    recall = _recall(session, space, found)
    scores = _score(session, snapshot, inputs, found, rules)
    audit_id = f"{snapshot.number:06d}-" + fingerprint(
        "findings", findings.VERSION, scores=scores, edges=found.edges, groups=found.groups, space=space.folder,
        rules=rules, snapshot=snapshot.digest, rows=TABLE_ROWS, recall=session.config.neighbours.recall_sample,
        format=FORMAT, **({"detections": session.detections} if session.detections else {}),
    )[:12]  # fmt: skip
    folder = audit_folder(audit_id)
    _tables(
        session, snapshot, FindingsSpec(inputs, space.folder, found.edges, found.groups, scores, rules, folder, 0, 0)
    )
    if videos.has_frames(session.store, folder):
        _videos(session, inputs, folder, snapshot.total)
    task = Task(folder, findings.summarise, findings.SummarySpec(inputs, folder, session.config.verify.pixels))
    session.run_one("summary", folder, (findings.COUNTS,), task)
    facts = _facts(session, inputs, space, recall, folder)
    facts["duplicates"] |= _about_pairs(session, space, found)
    published = Published(audit_id, snapshot.number, _recorded(session), facts, _session_record(session, snapshot))
    return publish_audit(session.store, published)


def _recall(session: Session, space: ChosenSpace, found: Found) -> dict[str, Any]:
    """Measured recall, and how many of the outlier tail are certain."""
    if space.is_exact:
        return {"text": "exact: every pair of representatives was compared in both spaces"}
    value = read_json(session.store, f"{found.recall}/{RECALL}")
    certain = int(read_metadata(session.store, f"{found.tail}/{TAIL}")[CERTAIN])
    text = "; ".join(_recall_text(name, value[name]) for name in ("copy", "semantic"))
    return {**value, "certain_outliers": certain, "text": text}


def _recall_text(name: str, found: dict[str, float]) -> str:
    if not found["total"]:
        return f"{name}: no true neighbours in the sample"
    share = found["found"] / found["total"]
    return f"{name} {share:.4f} (95% interval {found['low95']:.4f}-{found['high95']:.4f}, {found['total']:,} pairs)"


def _score(session: Session, snapshot: Snapshot, inputs: Inputs, found: Found, rules: Rules) -> str:
    summary = summary_of(session, inputs)
    meant = rules.outliers.neighbours_among(summary.representatives)
    # the folder of the exact groups names the parts that it read: a shard size must not make another audit
    vocabulary = read_vocabulary(session.store, inputs.annotations)
    exact = {"content": summary.digest, "splits": vocabulary.split_digest, "labels": vocabulary.label_digest}
    of = {"neighbours": found.neighbours, "groups": found.groups, "tail": found.tail, "exact": exact}
    folder = "scores/" + fingerprint("score", score.VERSION, meant=meant, rules=rules.labels, of=of)
    tasks = []
    for lo, hi in query_ranges(snapshot.total):
        spec = score.ScoreSpec(inputs, found.groups, found.neighbours, found.tail, meant, rules.labels, folder, lo, hi)
        beside = (score.totals_key(folder, lo, hi),)
        live = live_between(session.store, snapshot, lo, hi)
        tasks.append(Task(f"{folder}/{part_name(SCORES, lo, hi)}", score.score, spec, live, beside=beside))
    run_ranges(session, "score", folder, tasks)
    session.run_one("totals", folder, (HEADS, SUMMED), Task(folder, score.sum_scores, score.SumSpec(inputs, folder)))
    return folder


def _tables(session: Session, snapshot: Snapshot, whole: FindingsSpec) -> None:
    indexed = edge_index.EdgeIndexSpec(session.root, whole.edges)
    session.run_one(
        "edge index",
        whole.edges,
        index_files(session.store, whole.edges),
        Task(whole.edges, edge_index.index_edges, indexed),
    )
    ranges = query_ranges(snapshot.total) if snapshot.total < 4 * TABLE_ROWS else cut(0, snapshot.total, TABLE_ROWS)
    tasks = []
    for lo, hi in ranges:
        spec = replace(whole, lo=lo, hi=hi)
        *beside, marker = (findings.table_key(whole.folder, name, lo, hi) for name in findings.WRITTEN)
        live = live_between(session.store, snapshot, lo, hi)
        tasks.append(Task(marker, findings.publish_range, spec, live, beside=tuple(beside)))
    run_ranges(session, "findings", whole.folder, tasks)


def _videos(session: Session, inputs: Inputs, folder: str, total: int) -> None:
    key = findings.table_key(folder, "videos", 0, total)
    task = Task(folder, videos.publish_videos, videos.VideosSpec(inputs, folder, key))
    session.run_one("videos", folder, (key.removeprefix(f"{folder}/"), videos.COUNTS), task)


def _facts(session: Session, inputs: Inputs, space: ChosenSpace, recall: dict[str, Any], folder: str) -> dict[str, Any]:
    """What is a function of the data and the config alone."""
    summary = summary_of(session, inputs)
    vocabulary = read_vocabulary(session.store, inputs.annotations)
    return {
        "images": {
            "live": summary.live,
            "ok": summary.ok,
            "invalid": summary.live - summary.ok,
            "representatives": summary.representatives,
            "statuses": summary.statuses,
            "splits": dict(zip(vocabulary.splits, vocabulary.split_counts, strict=True)),
            "labels": len(vocabulary.labels),
        },
        **read_json(session.store, f"{folder}/{findings.COUNTS}"),
        "space": {"folder": space.folder},
        "threshold": {"value": space.threshold, "text": space.threshold_said, "misses": space.misses},
        "recall": recall,
    }


def _about_pairs(session: Session, space: ChosenSpace, found: Found) -> dict[str, Any]:
    """Whether the pairs are all there are, and what became of groups over a limit.

    Inside a large cluster a member's pair with the medoid and with its nearest of every split stands for the others.
    """
    clustered = count_rows(session.store, f"{found.candidates}/{CLUSTERS}")
    left_out = read_limit(session.store, found.pairs)["left_out"] if has_limit(session.store, found.pairs) else 0
    is_complete = space.is_exact and not clustered and not left_out
    split = read_split_summary(session.store, found.groups)
    return {"is_complete": is_complete, "saturated_images": clustered, "left_out": left_out, "split": split}


def _recorded(session: Session) -> dict[str, Any]:
    """The configuration without what only says where things are reached."""
    config = plain(session.config)
    config.pop("storage")
    return dict(config)


def _session_record(session: Session, snapshot: Snapshot) -> dict[str, Any]:
    """What depends on this session: times, machines, versions."""
    return {
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds"),
        "runner": session.runner.name,
        "workers": session.runner.workers,
        "driver_peak_bytes": peak_resident_bytes(),
        "python": platform.python_version(),
        "versions": {"image-audit": __version__, **versions(), **_package_versions()},
        "unselected": snapshot.unselected,
        "stages": [record_to_json(record) for record in session.records],
    }


@lru_cache(maxsize=1)
def _package_versions() -> dict[str, str]:
    """Versions of what spreads, searches and writes; read once, since a process may lose the right to read them."""
    return {name: version(name) for name in ("ray", "faiss-cpu", "numpy", "pyarrow")}
