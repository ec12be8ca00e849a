"""Neighbours of an audited synthetic set by one Faiss `IVF,Flat` index in memory, which the sharded join is up against.

`python benchmarks/scale_peer.py --root DIR --scale FILE --json FILE`, after `scale.py` on that root, which wrote FILE.
The index has as many lists as the product's rule gives, is trained on as many vectors per list, and probes as many.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pipeline
from benchmarks.report import Owed, at_least, begin, finish, say
from benchmarks.synthetic_plants import Role
from benchmarks.synthetic_root import read_truth
from pipeline.audit import Audit
from pipeline.config import NeighbourParams
from pipeline.kernels.routing import choose_nlist
from pipeline.kernels.space import project_copy, project_semantic
from pipeline.layout.features import list_features, read_features
from pipeline.layout.parts import cut
from pipeline.layout.spaces import read_space
from pipeline.runner import peak_resident_bytes

Float32 = NDArray[np.float32]

BLOCK = 65_536
TRAINED_PER_LIST = 64
SEED = 7
SAMPLE = 2_000
STAGES = {"copy": ("assign copy", "join copy", "merge copy"), "semantic": ("assign semantic", "join semantic")}


def main() -> int:
    """Reads, projects, trains, adds, searches; compares seconds and recall with the audit's."""
    options = _options()
    document = begin("scale_peer")
    audit, scale = pipeline.open(str(options.root)), json.loads(options.scale.read_text())
    faiss.omp_set_num_threads(options.threads)
    document["results"] = found = {
        name: _measured(audit, scale, name) for name in ("copy", "semantic") if options.space in ("both", name)
    }
    document |= {"images": scale["images"], "threads": options.threads, "peak_bytes": peak_resident_bytes()}
    finish(document, [row for name in found for row in _owed(name, found[name])], options.json)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--scale", type=Path, required=True, help="what scale.py wrote of this root")
    parser.add_argument("--space", choices=("copy", "semantic", "both"), default="both")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measured(audit: Audit, scale: dict[str, Any], name: str) -> dict[str, Any]:
    params = NeighbourParams()
    is_copy = name == "copy"
    k = 1 + (params.copy.k if is_copy else params.semantic_k)  # the query is among its own neighbours
    probes = params.copy_probes if is_copy else params.semantic_probes
    took: dict[str, dict[str, float]] = {}
    vectors = _timed("project", took, lambda: _vectors(audit, is_copy))
    lists = choose_nlist(len(vectors), 0)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.max_points_per_centroid, index.cp.spherical = SEED, TRAINED_PER_LIST, True
    _timed("train", took, lambda: index.train(vectors))
    _timed("add", took, lambda: index.add(vectors))
    index.nprobe = probes
    found = _timed("search", took, lambda: _searched(index, vectors, k))
    return {
        "vectors": len(vectors),
        "lists": lists,
        "probes": probes,
        "k": k,
        "took": took,
        **{f"{clock}_seconds": sum(part[f"{clock}_seconds"] for part in took.values()) for clock in ("wall", "cpu")},
        "product": _product(scale, name),
        "recall": _recall(vectors, found, k, scale["threshold"]["value"] if is_copy else -1.0),
        "product_recall": scale["recall"].get(name),
    }


def _timed(name: str, took: dict[str, dict[str, float]], work: Callable[[], Any]) -> Any:
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    took[name] = {"wall_seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    say(f"{name}: {took[name]['wall_seconds']:.1f} s")
    return result


def _vectors(audit: Audit, is_copy: bool) -> Float32:
    """Vectors of every ok image that is no exact copy of another."""
    store, truth = audit.root.open(), read_truth(audit.root)
    (folder,) = {info.key.rsplit("/", 1)[0] for info in store.list("features/")}
    features, space = list_features(store, folder), read_space(store, audit.summary()["space"]["folder"])
    is_copied = (truth.role <= Role.SAME_PIXELS) & (truth.image_id != truth.source_id)
    left_out = truth.image_id[is_copied | (truth.role == Role.INVALID)]
    pieces = []
    for lo, hi in cut(0, audit.summary()["images"]["live"], BLOCK):
        stored = read_features(store, features, lo, hi, ["image_id"])
        kept = ~np.isin(np.arange(lo, hi), left_out)
        embeddings, signatures = np.asarray(stored.embeddings)[kept], np.asarray(stored.signatures)[kept]
        pieces.append(project_copy(space, embeddings, signatures) if is_copy else project_semantic(embeddings))
    return np.concatenate(pieces)


def _searched(index: Any, vectors: Float32, k: int) -> NDArray[np.int64]:
    found = np.empty((len(vectors), k), np.int64)
    for lo, hi in cut(0, len(vectors), BLOCK):
        found[lo:hi] = index.search(vectors[lo:hi], k)[1]
    return found


def _recall(vectors: Float32, found: NDArray[np.int64], k: int, threshold: float) -> dict[str, float]:
    """Share of the true neighbours of sampled queries, those at or over the threshold, that the index gave."""
    asked = np.sort(np.random.default_rng(SEED).choice(len(vectors), min(SAMPLE, len(vectors)), replace=False))
    similarity, true = faiss.knn(vectors[asked], vectors, k, faiss.METRIC_INNER_PRODUCT)
    wanted = (similarity >= threshold) & (true != asked[:, None])
    hit = (true[:, :, None] == found[asked][:, None, :]).any(axis=2)
    return {"found": int((hit & wanted).sum()), "total": int(wanted.sum())}


def _product(scale: dict[str, Any], name: str) -> dict[str, Any]:
    """The seconds of the product's stages for the same lists; both spaces share the training, half of it is counted."""
    stages = {stage: scale["stages"][stage] for stage in STAGES[name] if stage in scale["stages"]}
    stages |= {stage: found for stage, found in scale["stages"].items() if name in stage and stage not in stages}
    trained = [found for stage, found in scale["stages"].items() if "lists" in stage]
    clocks = ("wall_seconds", "cpu_seconds")
    totals = {
        clock: sum(found[clock] for found in stages.values()) + sum(found[clock] for found in trained) / 2
        for clock in clocks
    }
    return {**totals, "stages": {stage: {clock: found[clock] for clock in clocks} for stage, found in stages.items()}}


def _owed(name: str, found: dict[str, Any]) -> list[Owed]:
    ours = found["product"]
    rows = []
    for clock in ("wall_seconds", "cpu_seconds"):
        times = found[clock] / ours[clock] if ours[clock] else None
        rows.append(at_least(f"{name}: {clock} of the one index over those of the join", 1.0, times, "{:.2f}"))
    theirs = found["recall"]["found"] / max(found["recall"]["total"], 1)
    if found["product_recall"]:
        share = found["product_recall"]["found"] / max(found["product_recall"]["total"], 1)
        rows.append(at_least(f"{name}: recall of the join over that of the one index", 1.0, share / theirs, "{:.4f}"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
