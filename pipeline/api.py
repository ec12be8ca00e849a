"""What the command line and Python users call: run an audit, open one, ask for its status, make the demo."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from pipeline import audit as audits
from pipeline.audit import Audit
from pipeline.config import AuditConfig, config_from
from pipeline.errors import ArtifactError, NotFound, UsageError
from pipeline.given import with_given
from pipeline.layout.features import list_features, missing_features
from pipeline.layout.parts import cut, shard_size
from pipeline.layout.root import Root, is_root
from pipeline.layout.snapshots import latest_snapshot, live_between
from pipeline.layout.tables import read_json
from pipeline.plan import Call, run_audit
from pipeline.plan.session import DONE, DONE_BEFORE, STATUS_FOLDER, UNFINISHED
from pipeline.progress import Reporter, SilentReporter, visible_reporter
from pipeline.runner import LocalRunner, Runner
from pipeline.storage import StorageConfig, Store, canonical_uri, is_remote, open_store
from pipeline.threads import threads_given_back

RAY_PAYS_FROM = 3000
"""Images to extract, or as much other work, from which the second core earns Ray's start and stop (5 s) back."""


@dataclass(frozen=True)
class Where:
    """Where an audit runs: runner auto, local or ray; address of a Ray cluster; workers on this machine.

    Raises UsageError for what contradicts itself, and for `ray://`, which needs Ray's client: plain Ray has none.
    """

    runner: str = "auto"
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.runner not in ("auto", "local", "ray"):
            problems.append(f"runner {self.runner!r}, want auto, local or ray")
        if self.address and self.runner == "local":
            problems.append(f"address {self.address!r} with the local runner: drop one of them")
        if self.runner == "local" and (self.workers or 1) > 1:
            problems.append(f"workers {self.workers} with the local runner, which is one process: drop one of them")
        if self.address and self.address != "auto" and not re.fullmatch(r"[^/]+:\d+", self.address):
            client = "ray:// needs Ray's client, which is not installed with image-audit; "
            problems.append(
                f"address {self.address!r}: {client * self.address.startswith('ray://')}run on a node of the cluster "
                "and give auto, or the host:port of its head, such as 10.0.0.7:6379"
            )
        if self.workers is not None and self.workers < 1:
            problems.append(f"workers {self.workers}, want at least 1")
        if self.workers is not None and self.address:
            problems.append("workers and address: a cluster brings its own workers; drop one of them")
        if problems:
            raise UsageError("; ".join(problems))


def run(
    *sources: str | os.PathLike[str] | Mapping[str, Any] | Sequence[str | os.PathLike[str] | Mapping[str, Any]],
    root: str | os.PathLike[str],
    where: Where | None = None,
    progress: bool = False,
    **config: Any,
) -> Audit | None:
    """Audits sources into a root and returns the audit; None where only a range of offsets was asked for.

    `sources`: folders, buckets, archives, images and lists (docs/sources.md), one by one; or one list of folders and
    files, of which the files are one source of the root, so that another list of files can follow. A COCO dict is one
    too, with its own boxes and labels.

    `where`: `pipeline.api.Where(runner, address, workers)`; `progress`: bars on a terminal, else lines on stderr or in
    the log, where one takes them. `config`:

    - `test`: one or several more sources, whose split is test
    - `rule`: {"table": CSV or Parquet with filename and label, split or both} or {"pattern": regular expression}
    - `annotations`: labels, splits or boxes in place of `rule`: a DataFrame, an Arrow table or a dict of columns with
      `filename` and `label`, `split` or a box (`col_x`, `row_y`, `width`, `height` or `x1`, ..., `y4`), a COCO dict, or
      the path of a file of these. Boxes are audited in place of the images
    - `select`: {"num_images": at most so many, "order": "first" or "sample", "find_regex": searched in each name,
      "subset": these names alone, "min_file_size": bytes, "tar_only": images in archives alone}
    - `bounding_box`: boxes in place of images: 'row_y=..,col_x=..,height=..,width=..', 'face', 'ocr' or 'object', which
      `box_model`, a YOLO-style ONNX file, finds; `boxes`: the margins around them
    - `video`: {"fps": frames a second of videos, None = keyframes, "max_frames": of each at most so many}
    - `model`: {"path": ONNX or ORT file, "input": {...}} instead of the default model
    - `embeddings`: .npy (n, d) in the order of the sorted listing, or Parquet with a column of names and one of
      vectors, in place of a model; or such an array or Arrow table. Names without sources are audited without images
    - `start`: "features" audits the latest snapshot from what is stored, `until`: "features" makes no more than that
    - `neighbours`: {"space": "keep" or "new", "threshold": copy similarity of candidates, ...}
    - `min_offset`, `max_offset`: list and extract these offsets only, publish nothing
    - `shard_size`: images per shard
    - `storage`: {"region": ..., "endpoint_url": ..., "endpoints": {name: url}}
    - `delete_img`, `delete_tar`: remove the copies that `storage`'s `sync_to_local` keeps, once done
    - `accept_empty`: whether a source that had images may have none now
    - `max_failed_share` and the tables of limits, see `pipeline.config.AuditConfig`: `measure`, `space`, `threshold`,
      `verify`, `groups`, `quality`, `keeper`

    Does only what is missing. Raises an AuditError whose message says what to do next.
    """
    values, given = with_given(sources, {"root": root, **config})
    reporter = visible_reporter() if progress else SilentReporter()
    resume_command = "pipeline.run(...) with the same arguments"
    return run_config(config_from(values), where or Where(), reporter, resume_command, given)


def run_config(
    config: AuditConfig, where: Where, reporter: Reporter, resume_command: str, given: Mapping[str, bytes] | None = None
) -> Audit | None:
    """Runs a checked configuration; `given` as in `plan.Call`."""

    def start(images: int, root: Root) -> Runner:
        return start_runner(where, images, root, config.every_source)

    with threads_given_back():
        published = run_audit(config, Call(start, reporter, resume_command, given or {}))
    if published is None:
        return None
    return Audit(Root(canonical_uri(config.root, config.storage), config.storage), published)


def start_runner(where: Where, images: int, root: Root, sources: Sequence[str] = ()) -> Runner:
    """The runner for work like so many extractions; on several nodes it proves first that all see root and sources."""
    if where.runner == "local" or (where.runner == "auto" and not where.address and images < RAY_PAYS_FROM):
        return LocalRunner()
    from pipeline.cluster import join_ray, start_ray

    runner = join_ray(where.address) if where.address else start_ray(where.workers)
    try:
        if not is_remote(root.uri):
            runner.require_shared_root(root.uri, root.storage)
        for source in sources:
            if not is_remote(source):
                runner.require_shared_source(canonical_uri(source, root.storage), root.storage)
    except BaseException:
        runner.close()
        raise
    return runner


def open_audit(root: str, audit_id: str | None, storage: Mapping[str, Any]) -> Audit:
    """The latest audit of a root, or the one of that id."""
    return audits.open_audit(root, audit_id, StorageConfig(**storage))


def status(root: str, storage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per stage that the latest run came to: state, parts, those done before it, missing and failed ones, times.

    `items` of `items_in_all` are done; `failed_images` of them could not be read and are tried again by the next run.

    The state is done, done before (the times are then of the session that did it), failed or unfinished.
    """
    config = StorageConfig(**storage)
    store = Root(canonical_uri(root, config), config).open()
    if not is_root(store):
        raise NotFound(f"{store.uri} is not the root of an audit. Make one: image-audit run SOURCE --root {root}")
    keys = [info.key for info in store.list(f"{STATUS_FOLDER}/")]
    records = [read_json(store, key) for key in keys]
    latest = max((record.get("session", "") for record in records), default="")
    of_it = [record for record in records if record.get("session", "") == latest]  # others keep theirs in the root
    rows = [_stage_status(store, record) for record in sorted(of_it, key=lambda record: record["order"])]
    return [_of_the_snapshot(store, row) if row["stage"] == "extract" else row for row in rows]


def _stage_status(store: Store, record: dict[str, Any]) -> dict[str, Any]:
    names = record["waiting"] or record["failed"]  # of which earlier versions kept no more
    waiting = dict(zip(names, record.get("waiting_items") or repeat(0), strict=False))
    committed = {info.key for info in store.list(f"{record['folder']}/")} if waiting else set()
    left = [items for name, items in waiting.items() if name not in committed]
    items = record["items"] - sum(left)
    fresh, seconds = items - record["items_done_before"], record["seconds"]
    return {
        "stage": record["stage"],
        "state": record["state"],
        "parts": record["parts"],
        "parts_done_before": record["parts_done_before"],
        "missing": len(left),
        "failed": record["failed"],
        "items": items,
        "items_in_all": record["items"],
        "failed_images": record.get("failed_images") or 0,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(record["cpu_seconds"], 2),
        "items_per_second": round(fresh / seconds, 1) if seconds > 0.005 and fresh else None,
        "peak_task_bytes": record["peak_task_bytes"],
        "counters": record["counters"],
        "folder": record["folder"],
    }


def _of_the_snapshot(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    """The row of extract against the whole snapshot: a range that is done leaves the rest of it to do."""
    snapshot = latest_snapshot(store)
    gaps = missing_features(list_features(store, row["folder"]), 0, snapshot.total)
    left = sum(live_between(store, snapshot, lo, hi) for lo, hi in gaps)
    row |= {"items": snapshot.live - left, "items_in_all": snapshot.live}
    if gaps and row["state"] in (DONE, DONE_BEFORE):
        shards = sum(len(cut(lo, hi, shard_size(snapshot.total))) for lo, hi in gaps)
        row |= {"state": UNFINISHED, "missing": shards, "parts": row["parts"] + shards}
    return row


def demo(into: str | None, where: Where, reporter: Reporter, command: str) -> Sequence[str]:
    """Makes the planted photo set, audits it, and says what was planted and what was found."""
    from pipeline.demo import make_demo, report_demo, require_own

    place = Path(into) if into else Path(tempfile.mkdtemp(prefix="image-audit-demo-"))
    require_own(place)
    truth = make_demo(place / "photos")
    config = config_from({"sources": (str(place / "photos"),), "root": str(place / "audit")})
    audit = run_config(config, where, reporter, command)
    if audit is None:
        raise ArtifactError("the demo's audit was not published; run it again")
    tables = {name: audit.table(name) for name in audits.FINDINGS}
    return [
        *report_demo(truth, tables),
        "",
        *audits.summary_lines(audit.summary()),
        "",
        f"photos: {place / 'photos'}",
        f"look:   image-audit show leaks --root {place / 'audit'}",
    ]


def read_file(address: str, storage: Mapping[str, Any]) -> bytes:
    """The bytes of a file named on the command line; `storage` as in `run`."""
    folder, slash, name = address.rpartition("/")
    return open_store(folder or slash or ".", StorageConfig(**storage)).read(name)


def endpoint(text: str) -> tuple[str, str]:
    """NAME=URL as a pair. Raises UsageError."""
    name, sign, url = text.partition("=")
    if not sign or not name or "://" not in url:
        raise UsageError(f"--endpoint {text!r}: want NAME=URL, such as lab=http://127.0.0.1:9000")
    return name, url
