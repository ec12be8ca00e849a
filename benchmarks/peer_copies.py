"""fastdup on the planted copies: its features ranked as ours are, and the groups that its listed pairs make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.copy_space import score_copies
from benchmarks.edits import EDITS
from benchmarks.fastdup_peer import SimilarPair, read_features, read_similarity, run_fastdup
from benchmarks.planting import Planted

THRESHOLDS = (0.9, 0.96)
"""fastdup's default for listing a pair, and its default for joining a group."""


def peer_copies(python: Path, folder: Path, work: Path, planted: Planted) -> dict[str, Any]:
    """Its run with defaults, its space scored, and recall and precision at both of its thresholds."""
    run = run_fastdup(python, folder, work)
    names, vectors = read_features(work)
    names = [Path(name).name for name in names]
    place = {name: row for row, name in enumerate(names)}
    base = [name for name, kind in planted.edit.items() if not kind]
    copies = [name for name, kind in planted.edit.items() if kind]
    edits = np.array([planted.edit[name] for name in copies])
    originals = np.array([base.index(planted.photo[name]) for name in copies])
    scores = score_copies(vectors[[place[c] for c in copies]], vectors[[place[b] for b in base]], originals)
    low = {kind: float(np.quantile(scores.positives[edits == kind], 0.05)) for kind in EDITS}
    pairs = read_similarity(work / "similarity.csv", min(THRESHOLDS))
    return {
        "run": run,
        "space": {"uap": scores.uap, "recall_at_p90": scores.recall_at_p90, "similarity_p05": low},
        "groups": {f"fastdup at {least}": groups_at(pairs, least, names, planted) for least in THRESHOLDS},
    }


def groups_at(pairs: list[SimilarPair], least: float, names: list[str], planted: Planted) -> dict[str, Any]:
    """Share of edits in their original's group and precision of the pairs, at one threshold."""
    place = {name: row for row, name in enumerate(names)}
    kept = [(Path(pair.a).name, Path(pair.b).name) for pair in pairs if pair.similarity >= least]
    group = _components(np.array([[place[a], place[b]] for a, b in kept], np.int64).reshape(-1, 2), len(names))
    found: dict[str, list[bool]] = {kind: [] for kind in EDITS}
    for name, kind in planted.edit.items():
        if kind:
            found[kind].append(bool(group[place[name]] == group[place[planted.photo[name]]]))
    false = sum(planted.photo[a] != planted.photo[b] for a, b in kept)
    return {
        "recall": float(np.mean([hit for hits in found.values() for hit in hits])),
        "recall_by_edit": {kind: float(np.mean(hits)) for kind, hits in found.items()},
        "precision": 1 - false / max(len(kept), 1),
        "pairs": len(kept),
        "largest_group": int(np.bincount(group).max()),
    }


def _components(edges: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    ones = np.ones(len(edges), bool)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels
