"""The product as its users run it, in a process of its own: on which photos, and what it left in its root."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

import pipeline
from benchmarks.processes import Measured, run_measured
from pipeline.audit import Audit
from pipeline.kernels.space import CopySpace
from pipeline.layout.features import list_features, read_features
from pipeline.layout.spaces import read_space

DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True)
class Features:
    """Images that are ok, in order of their id: uri, split, label, embedding float16, signature uint8."""

    uris: NDArray[np.object_]
    splits: NDArray[np.object_]
    labels: NDArray[np.object_]
    embeddings: NDArray[np.float16]
    signatures: NDArray[np.uint8]


def photos_of(data: Path, count: int) -> list[Path]:
    """At most `count` photos, the same on each call."""
    found = sorted(data.rglob("*.jpg"))[:count]
    if not found:
        raise SystemExit(f"no .jpg under {data}")
    return found


def audit_once(root: Path, *arguments: str) -> tuple[Measured, dict[str, Any]]:
    """Runs `image-audit run <arguments> --root root`; the measured process and what the driver wrote of itself."""
    usage = root.with_name(root.name + "-driver.json")
    command = [sys.executable, str(DRIVER), str(usage), "run", *arguments, "--root", str(root), "--quiet"]
    measured = run_measured(command)
    return measured, json.loads(usage.read_text())


def extract_once(root: Path, source: str, *arguments: str) -> dict[str, Any]:
    """Listing and extraction of a source by the command line, in numbers: the stage's own account of the latter."""
    measured, driver = audit_once(root, source, "--until", "features", *arguments)
    stage = json.loads((root / "status" / "extract.json").read_text())
    return {
        "images": stage["items"],
        "ok": stage["counters"]["ok"],
        "runner": stage["runner"],
        "wall_seconds": measured.seconds,
        "seconds": stage["seconds"],
        "cpu_seconds": stage["cpu_seconds"],
        "images_per_second": stage["items"] / stage["seconds"],
        "cpu_ms_per_image": 1e3 * stage["cpu_seconds"] / stage["items"],
        "peak_bytes": max(driver["peak_bytes"], stage["peak_task_bytes"]),
    }


def account(measured: Measured, driver: dict[str, Any], audit: Audit) -> dict[str, Any]:
    """One run in numbers: wall seconds, CPU by stage, driver and workers, memory, and per image."""
    session, images = audit.published.session, audit.summary()["images"]["live"]
    stages = [stage for stage in session["stages"] if stage["attempts"]]
    in_tasks = sum(stage["cpu_seconds"] for stage in stages)
    local = session["runner"] == "local"
    driver_cpu = driver["cpu_seconds"]
    workers = measured.roles.get("workers")
    whole = driver_cpu if workers is None else driver_cpu + workers.cpu_seconds
    counted = driver_cpu if local else driver_cpu + in_tasks - _driver_stages(stages)
    return {
        "images": images,
        "runner": session["runner"],
        "workers": session["workers"],
        "wall_seconds": measured.seconds,
        "seconds": driver["seconds"],
        "images_per_second": images / measured.seconds,
        "stages": {stage["stage"]: _stage(stage, images) for stage in stages},
        "cpu_seconds": {
            "tasks": in_tasks,
            "driver": driver_cpu,
            "tasks_and_driver": counted,
            "worker_processes_and_driver": whole,
            "roles": {role: asdict(usage) for role, usage in measured.roles.items()},
        },
        "cpu_ms_per_image": {
            "tasks_and_driver": 1e3 * counted / max(images, 1),
            "worker_processes_and_driver": 1e3 * whole / max(images, 1),
        },
        "peak_bytes": {
            "driver": max(driver["peak_bytes"], session["driver_peak_bytes"]),
            "worker": 0 if local else max((stage["peak_task_bytes"] for stage in stages), default=0),
        },
        "facts": audit.summary(),
    }


def _driver_stages(stages: list[dict[str, Any]]) -> float:
    """CPU seconds of the stages that the driver does itself: they are in its own usage already."""
    return sum(stage["cpu_seconds"] for stage in stages if stage["stage"] == "catalog")


def _stage(stage: dict[str, Any], images: int) -> dict[str, Any]:
    counters = {name: value for name, value in stage["counters"].items() if name != "bytes"}
    return {
        "seconds": stage["seconds"],
        "cpu_seconds": stage["cpu_seconds"],
        "cpu_ms_per_image": 1e3 * stage["cpu_seconds"] / max(images, 1),
        "peak_task_bytes": stage["peak_task_bytes"],
        "counters": counters,
    }


def opened(root: Path) -> Audit:
    """The latest audit of a root."""
    return pipeline.open(str(root))


def features_of(audit: Audit) -> Features:
    """The ok images of an audit with their stored features."""
    store = audit.root.open()
    images = audit.table("images", ["image_id", "uri", "split", "label"], pc.field("status") == "ok")
    ids = images["image_id"].to_numpy()
    (folder,) = {info.key.rsplit("/", 1)[0] for info in store.list("features/")}
    stored = read_features(store, list_features(store, folder), 0, int(ids.max()) + 1, ["image_id"])
    return Features(
        *(images[name].to_numpy(zero_copy_only=False) for name in ("uri", "split", "label")),
        np.asarray(stored.embeddings)[ids],
        np.asarray(stored.signatures)[ids],
    )


def space_of(audit: Audit) -> CopySpace:
    """The copy space that an audit used."""
    return read_space(audit.root.open(), audit.summary()["space"]["folder"])
