"""Are the findings of an audit of the Intel scenes right: exact leaks, fastdup's own pairs, labels by neighbours."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import faiss
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.fastdup_peer import SimilarPair, read_features, read_similarity
from benchmarks.floor import photos_in
from benchmarks.product import Features
from pipeline.audit import Audit
from pipeline.kernels.space import project_semantic

NEIGHBOURS = 5
LISTED_FROM = 0.98
SIDE = 150
SAME_PHOTO = 0.97
"""Correlation of aligned luminance from which an unlisted pair counts as one photo."""


class Labelled(NamedTuple):
    """Unit vectors and labels of the database and of the queries."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.object_]
    queries: NDArray[np.float32]
    query_labels: NDArray[np.object_]


def our_vectors(features: Features, valid: str) -> Labelled:
    """The semantic space: the raw embeddings, one part of them (the set whose folder is `valid`) asked."""
    vectors = project_semantic(features.embeddings)
    asked = np.array([uri.startswith(f"{valid}/") for uri in features.uris])
    return Labelled(vectors[~asked], features.labels[~asked], vectors[asked], features.labels[asked])


def peer_vectors(works: list[Path]) -> Labelled:
    """fastdup's own features of two runs; the label is the folder of a photo."""
    parts: list[Any] = []
    for work in works:
        names, vectors = read_features(work)
        parts += [vectors, np.array([Path(name).parent.name for name in names], object)]
    return Labelled(*parts)


def label_accuracy(found: Labelled, k: int = NEIGHBOURS) -> float:
    """Share of queries whose label is that of most of their k nearest neighbours; a tie goes to the nearer ones."""
    similarity, rows = faiss.knn(found.queries, found.vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    right = 0
    for near, scores, label in zip(found.labels[rows], similarity, found.query_labels, strict=True):
        votes: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for name, score in zip(near, scores, strict=True):
            votes[name][0] += 1
            votes[name][1] += float(score)
        right += max(votes, key=lambda name: votes[name]) == label
    return right / len(found.query_labels)


def check_exact_leaks(audit: Audit, photos: Path) -> dict[str, Any]:
    """Pairs of equal pixels across the two sets, found by decoding every file here, against the leaks table."""
    by_pixels: defaultdict[bytes, list[str]] = defaultdict(list)
    for path in photos_in(photos):
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if pixels is not None:
            by_pixels[pixels.tobytes()].append(str(path.relative_to(photos)))
    there = []
    for names in by_pixels.values():
        sets = sorted({name.split("/")[0] for name in names})
        if len(sets) > 1:
            there += [name for name in names if name.startswith(f"{sets[-1]}/")]
    wanted = ["uri", "match_uri", "kind", "severity", "label", "match_label"]
    rows = audit.leaks(columns=wanted, filter=pc.is_in(pc.field("kind"), pc_strings("same_bytes", "same_pixels")))
    listed = [row for row in rows.to_pylist() if row["uri"] in there]
    return {"there": len(there), "listed": len({row["uri"] for row in listed}), "rows": listed}


def pc_strings(*values: str) -> Any:
    """Options for `pyarrow.compute.is_in`."""
    import pyarrow as pa

    return pa.array(values)


def check_listed_pairs(audit: Audit, lists: Path, photos: Path, picture: Path) -> dict[str, Any]:
    """Every pair of fastdup's lists at 0.98 or more: the kind we give it, or how alike its pixels are."""
    pairs = _listed_pairs(lists, photos)
    kinds = _our_kinds(audit)
    by_kind: defaultdict[str, int] = defaultdict(int)
    unlisted, weaker = [], []
    for pair in pairs:
        kind = kinds.get((pair.a, pair.b))
        by_kind[kind or "not listed"] += 1
        if kind in (None, "same_scene", "look_alike"):
            alike = aligned_correlation(_luminance(photos / pair.a), _luminance(photos / pair.b))
            entry = {**vars(pair), "kind": kind, "aligned_correlation": alike}
            (unlisted if kind is None else weaker).append(entry)
    _draw_pairs([*unlisted, *weaker], photos, picture)
    return {
        "pairs": len(pairs),
        "by_kind": dict(by_kind),
        "unlisted_same_photo": [row for row in unlisted if row["aligned_correlation"] >= SAME_PHOTO],
        "unlisted": unlisted,
        "same_scene_or_look_alike": weaker,
    }


def _listed_pairs(lists: Path, photos: Path) -> list[SimilarPair]:
    """Pairs of all lists below a folder whose photos are both here, names relative to the folder of both sets."""
    best: dict[tuple[str, str], float] = {}
    for listing in sorted(lists.glob("**/similarity.csv")):
        for pair in read_similarity(listing, LISTED_FROM):
            names = tuple(sorted("/".join(Path(name).parts[-3:]) for name in (pair.a, pair.b)))
            if all((photos / name).exists() for name in names):
                key = (names[0], names[1])
                best[key] = max(best.get(key, -1.0), pair.similarity)
    return [SimilarPair(a, b, similarity) for (a, b), similarity in sorted(best.items())]


def _our_kinds(audit: Audit) -> dict[tuple[str, str], str]:
    """Kind of every pair of the duplicates table, and of every two images of one group (`same group`)."""
    kinds: dict[tuple[str, str], str] = {}
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for row in audit.groups(columns=["group_id", "uri"]).to_pylist():
        groups[row["group_id"]].append(row["uri"])
    for names in groups.values():
        kinds.update({(a, b): "same group" for a in names for b in names if a < b})
    for row in audit.duplicates(columns=["uri", "match_uri", "kind"]).to_pylist():
        a, b = sorted((row["uri"], row["match_uri"]))
        kinds[a, b] = row["kind"]
    return kinds


def _luminance(path: Path) -> NDArray[np.float32]:
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise SystemExit(f"{path}: not an image that OpenCV reads")
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def aligned_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Correlation of two rasters after the affine transform that raises it most (ECC), plain or mirrored.

    Another method than the product's, on purpose: it checks what the product did not list.
    """
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-5)
    best = -1.0
    for other in (b, np.ascontiguousarray(b[:, ::-1])):
        best = max(best, float(np.corrcoef(a.ravel(), other.ravel())[0, 1]))
        try:
            start = np.eye(2, 3, dtype=np.float32)
            found, _ = cv2.findTransformECC(a, other, start, cv2.MOTION_AFFINE, criteria, None, 5)
        except cv2.error:  # it does not converge for pictures that have nothing in common
            continue
        best = max(best, float(found))
    return best


def _draw_pairs(rows: list[dict[str, Any]], photos: Path, picture: Path) -> None:
    """The pairs side by side, most alike first, to be looked at."""
    if not rows:
        return
    tiles = []
    for row in sorted(rows, key=lambda item: -item["aligned_correlation"])[:60]:
        pair = [cv2.resize(cv2.imread(str(photos / row[side])), (SIDE, SIDE)) for side in ("a", "b")]
        tile = np.full((SIDE + 16, 2 * SIDE + 6, 3), 255, np.uint8)
        tile[:SIDE, : 2 * SIDE] = np.hstack(pair)
        said = f"{row['kind']} fd {row['similarity']:.3f} ecc {row['aligned_correlation']:.3f}"
        cv2.putText(tile, said, (2, SIDE + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 5)
    cv2.imwrite(str(picture), np.vstack([np.hstack(tiles[at : at + 5]) for at in range(0, len(tiles), 5)]))
