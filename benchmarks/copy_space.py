"""How well vectors find edited copies: micro-average precision, recall at 90% precision, similarities by kind of edit.

Functions over arrays only, imported by `benchmarks/copies.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]
QUERY_BLOCK = 512


@dataclass(frozen=True)
class CopyScores:
    """`uap`: micro-average precision over the one ranked list of all pairs; `recall_at_p90`: largest recall at a
    precision of at least 0.9; `positives`: similarity of each edit with its original, in query order."""

    uap: float
    recall_at_p90: float
    positives: NDArray[np.float32]


def score_copies(queries: Float, database: Float, originals: NDArray[np.int64]) -> CopyScores:
    """Rank all query x database pairs by similarity; the one true match of query k is row `originals[k]`.

    Unit vectors (q, d) and (n, d). A tie counts against: a false pair that is as similar as a true one ranks first.
    Every other pair is false, so originals that occur twice in the database lower the scores of everybody alike.
    """
    positives = np.einsum("ij,ij->i", queries, database[originals]).astype(np.float32)
    ranked = np.sort(positives)
    above = np.zeros(len(ranked) + 1, dtype=np.int64)
    for start in range(0, len(queries), QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        similarities = (queries[rows] @ database.T).astype(np.float32)
        similarities[np.arange(len(similarities)), originals[rows]] = -np.inf
        # A false pair counts against every positive at or below it: positions 0..p-1 of the ascending list.
        hits = similarities[similarities >= ranked[0]]
        above += np.bincount(np.searchsorted(ranked, hits, side="right"), minlength=len(above))
    false_before = np.cumsum(above[::-1])[::-1][1:][::-1]  # per positive, most similar first
    true_before = np.arange(1, len(ranked) + 1)
    precision = true_before / (true_before + false_before)
    good = np.flatnonzero(precision >= 0.9)
    recall = 0.0 if good.size == 0 else float(true_before[good[-1]] / len(ranked))
    return CopyScores(float(precision.mean()), recall, positives)


def recall_by_edit(positives: Float, edits: NDArray[np.str_], threshold: float) -> dict[str, float]:
    """Share of the pairs (edit, original) with a similarity of at least `threshold`, per kind of edit, and `all`."""
    found = positives >= threshold
    shares = {str(edit): float(found[edits == edit].mean()) for edit in np.unique(edits)}
    return {**shares, "all": float(found.mean())}


def candidates_per_image(vectors: Float, thresholds: tuple[float, ...]) -> dict[float, float]:
    """Pairs at or over each threshold, per image, from all pairs of unit vectors (n, d)."""
    counts = dict.fromkeys(thresholds, 0)
    for start in range(0, len(vectors), QUERY_BLOCK):
        similarities = vectors[start : start + QUERY_BLOCK] @ vectors.T
        for threshold in thresholds:
            counts[threshold] += int((similarities >= threshold).sum())
    return {t: (c - len(vectors)) / 2 / max(len(vectors), 1) for t, c in counts.items()}


def markdown_table(rows: Mapping[str, CopyScores]) -> str:
    """The table of the design: one row per space."""
    lines = ["| vectors | uAP | R@P90 |", "|---|---|---|"]
    lines += [f"| {name} | {score.uap:.3f} | {score.recall_at_p90:.3f} |" for name, score in rows.items()]
    return "\n".join(lines)
