"""fastdup beside us: run in its own interpreter, its files read back. Needs `pip install fastdup==2.54` there."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import run_measured

VERSION = "2.54"
DIMENSION = 576
QUIET = {"SENTRY_OPT_OUT": "True", "PYTHONPATH": ""}
"""Its environment: no telemetry, none of our paths."""
CHILD = Path(__file__).with_name("fastdup_child.py")
HINT = (
    f"python3 -m venv ~/fastdup && ~/fastdup/bin/pip install fastdup=={VERSION}, "
    "then pass --fastdup-python ~/fastdup/bin/python"
)


@dataclass(frozen=True)
class SimilarPair:
    """One pair that fastdup lists, names relative to the folder it was given, smaller name first."""

    a: str
    b: str
    similarity: float


def require_fastdup(python: Path) -> None:
    """Raises SystemExit with the way to get one where the interpreter has no fastdup."""
    if shutil.which(str(python)) is None:
        raise SystemExit(f"no interpreter {python} with fastdup in it. Make one: {HINT}")
    found = subprocess.run(
        [str(python), "-c", "import fastdup"], env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise SystemExit(f"{python} has no fastdup ({found.stderr.strip()[-200:]}). Make one: {HINT}")


def run_fastdup(python: Path, photos: Path, work: Path, **options: float) -> dict[str, Any]:
    """One run over a folder, cold; wall and CPU seconds of the whole process and of `fastdup.run` alone."""
    work.mkdir(parents=True)
    target = work.with_suffix(".json")
    words = [f"{name}={value}" for name, value in options.items()]
    command = [str(python), str(CHILD), str(photos), str(work), str(target), *words]
    measured = run_measured(command, QUIET)
    return {"wall_seconds": measured.seconds, **json.loads(target.read_text())}


def read_features(work: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Names of the good images, in the order of the features, and the features as unit vectors (n, 576)."""
    with (work / "atrain_features.dat.csv").open(encoding="utf-8", newline="") as source:
        names = [row["filename"] for row in csv.DictReader(source)]
    vectors = np.fromfile(work / "atrain_features.dat", np.float32).reshape(len(names), DIMENSION)
    return names, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def read_similarity(listing: Path, least: float) -> list[SimilarPair]:
    """The pairs of a similarity.csv at or over `least`, each once with its largest similarity, sorted by name."""
    best: dict[tuple[str, str], float] = {}
    with listing.open(encoding="utf-8", newline="") as source:
        for row in csv.DictReader(source):
            similarity = float(row["distance"])
            if similarity >= least:
                key = (min(row["from"], row["to"]), max(row["from"], row["to"]))
                best[key] = max(best.get(key, -1.0), similarity)
    return [SimilarPair(a, b, similarity) for (a, b), similarity in sorted(best.items())]
