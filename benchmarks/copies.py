"""How well planted copies are found: `python benchmarks/copies.py --data DIR --json FILE [--large DIR]`.

600 photos, nine edits of each and 2,400 distractors, in one folder, audited with the defaults: the spaces by kind of
edit, the product's own recall and precision; one planted edit in folders of 2 to 3,000 photos; the same photo at 1/4
to 4 times its size. DIR is any folder of some 3,000 photos or more.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.command import add_shared_options, carry_out
from benchmarks.copy_space import CopyScores, score_copies
from benchmarks.edits import EDITS
from benchmarks.peer_copies import peer_copies
from benchmarks.planting import Planted, choose, plant_copies, plant_one, plant_scales
from benchmarks.product import Features, account, audit_once, features_of, opened, space_of
from benchmarks.report import Owed, at_least, say
from pipeline import api
from pipeline import run as run_audit
from pipeline.audit import Audit
from pipeline.kernels.space import CopySpace, pair_similarities, project_copy, project_semantic

SIZES = (2, 10, 30, 100, 300, 3000)
NEAR = ("near_identical", "edited")
EXACT = ("same_bytes", "same_pixels")
SHOWN = 50
COPY_SIMILARITY = 0.95


def copies_part(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The planted folder: spaces, the product's own recall and precision, fastdup where asked for."""
    folder, root = work / "copies", work / "copies-root"
    say(f"planting {options.originals} photos x {len(EDITS)} edits, {options.distractors} distractors")
    planted = plant_copies(options.data, folder, options.originals, options.distractors, options.seed)
    say("image-audit: copies")
    measured, driver = audit_once(root, str(folder))
    audit = opened(root)
    found = {
        "run": account(measured, driver, audit),
        "spaces": spaces_table(features_of(audit), space_of(audit), planted),
        "product": product_scores(audit, planted),
    }
    if options.peer:
        say("fastdup: copies")
        found["fastdup"] = peer_copies(options.fastdup_python, folder, work / "copies-fastdup", planted)
    return found


def spaces_table(features: Features, space: CopySpace, planted: Planted) -> dict[str, Any]:
    """uAP, recall at 90% precision and similarities by edit, for each set of vectors."""
    place = {uri: row for row, uri in enumerate(features.uris)}
    base = [name for name, kind in planted.edit.items() if not kind]
    copies = [name for name, kind in planted.edit.items() if kind]
    originals = np.array([base.index(planted.photo[name]) for name in copies])
    edits = np.array([planted.edit[name] for name in copies])
    rows = np.array([place[name] for name in copies]), np.array([place[name] for name in base])
    table = {}
    for name, vectors in all_vectors(features, space).items():
        scores = score_copies(vectors[rows[0]], vectors[rows[1]], originals)
        table[name] = _scores(scores, edits)
    return table


def all_vectors(features: Features, space: CopySpace) -> dict[str, NDArray[np.float32]]:
    """Unit vectors of each kind: as stored, whitened, the signature alone, and the copy space."""
    copy = project_copy(space, features.embeddings, features.signatures)
    cut = space.embedding.matrix.shape[1]
    return {
        "embedding": project_semantic(features.embeddings),
        "whitened embedding": _unit(copy[:, :cut]),
        "whitened signature": _unit(copy[:, cut:]),
        "copy space": copy,
    }


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


def _scores(scores: CopyScores, edits: NDArray[np.str_]) -> dict[str, Any]:
    middle = {str(edit): float(np.median(scores.positives[edits == edit])) for edit in EDITS}
    low = {str(edit): float(np.quantile(scores.positives[edits == edit], 0.05)) for edit in EDITS}
    return {
        "uap": scores.uap,
        "recall_at_p90": scores.recall_at_p90,
        "median_similarity": middle,
        "similarity_p05": low,
    }


def product_scores(audit: Audit, planted: Planted) -> dict[str, Any]:
    """Share of edits in their original's group, by edit, and precision of the near-duplicate pairs."""
    group = {row["uri"]: row["group_id"] for row in audit.groups(columns=["uri", "group_id"]).to_pylist()}
    copies = [name for name, kind in planted.edit.items() if kind]
    found = {name: name in group and group[name] == group.get(planted.photo[name]) for name in copies}
    listed = audit.duplicates(columns=["uri", "match_uri", "kind", "similarity"]).to_pylist()
    near = [row for row in listed if row["kind"] in NEAR]
    false = [row for row in near if planted.photo[row["uri"]] != planted.photo[row["match_uri"]]]
    by_edit = {kind: float(np.mean([found[name] for name in copies if planted.edit[name] == kind])) for kind in EDITS}
    pair_kinds: dict[str, Counter[str]] = {kind: Counter() for kind in EDITS}
    for row in listed:
        for copy, other in ((row["uri"], row["match_uri"]), (row["match_uri"], row["uri"])):
            if planted.edit[copy] and other == planted.photo[copy]:
                pair_kinds[planted.edit[copy]][row["kind"]] += 1
    sizes = Counter(group.values())
    return {
        "recall": float(np.mean([*found.values()])),
        "recall_by_edit": by_edit,
        "kinds_with_original": {kind: dict(counts) for kind, counts in pair_kinds.items()},
        "near_duplicate_pairs": len(near),
        "false_pairs": len(false),
        "precision": 1 - len(false) / max(len(near), 1),
        "false_pairs_shown": false[:SHOWN],
        "mixed_groups": _mixed_groups(group, planted),
        "largest_group": max(sizes.values(), default=0),
        "threshold": audit.summary()["threshold"],
    }


def _mixed_groups(group: dict[str, int], planted: Planted) -> int:
    """Groups that hold more than one photo."""
    photos: dict[int, set[str]] = {}
    for name, number in group.items():
        photos.setdefault(number, set()).add(planted.photo[name])
    return sum(len(names) > 1 for names in photos.values())


def small_folders(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One planted edit of each kind in turn, in folders of each size, for some seeds: found, and what was said."""
    results = []
    for size in options.sizes:
        for seed in range(options.seeds):
            say(f"one edit in {size} images, seed {seed}")
            rng = np.random.default_rng([options.seed, size, seed])
            place = work / f"small-{size}-{seed}"
            results += [
                one_edit(place, paths, kind, rng) for paths in [choose(options.data, size - 1, rng)] for kind in EDITS
            ]
    shares = {size: _share(row["found"] for row in results if row["images"] == size) for size in options.sizes}
    by_edit = {kind: _share(row["found"] for row in results if row["edit"] == kind) for kind in EDITS}
    missed = [row for row in results if not row["found"]]
    return {"found_by_size": shares, "found_by_edit": by_edit, "folders": len(results), "missed": missed}


def one_edit(place: Path, paths: list[Path], kind: str, rng: np.random.Generator) -> dict[str, Any]:
    """An audit of a folder with one edit. The features of a size and seed are shared; the space is trained anew."""
    original, copy = plant_one(paths, place / "photos", kind, rng)
    audit = run_audit(place / "photos", root=place / "root", where=api.Where("local"), neighbours={"space": "new"})
    if audit is None:
        raise SystemExit(f"{place}: nothing was published")
    group = {row["uri"]: row["group_id"] for row in audit.groups(columns=["uri", "group_id"]).to_pylist()}
    pairs = audit.duplicates(
        columns=["uri", "match_uri", "kind", "similarity"],
        filter=(pc.field("uri") == copy) | (pc.field("match_uri") == copy),
    ).to_pylist()
    return {
        "images": len(paths) + 1,
        "edit": kind,
        "found": copy in group and group[copy] == group.get(original),
        "photo": str(paths[int(original[:5])].name),
        "threshold": audit.summary()["threshold"]["value"],
        "copy_similarity": copy_similarity(audit, original, [copy])[0],
        "pairs": [row for row in pairs if original in (row["uri"], row["match_uri"])],
    }


def copy_similarity(audit: Audit, original: str, copies: list[str]) -> list[float]:
    """Similarity in the audit's copy space of some images with one."""
    features, space = features_of(audit), space_of(audit)
    place = {uri: row for row, uri in enumerate(features.uris)}
    i, j = np.full(len(copies), place[original]), np.array([place[name] for name in copies])
    sides = [side for rows in (i, j) for side in (features.embeddings[rows], features.signatures[rows])]
    return [float(value) for value in pair_similarities(space, *sides).copy]


def scales_part(large: Path, work: Path) -> dict[str, Any]:
    """The same photo at other sizes: copy similarity with the original, by scale."""
    say("photos at 1/4 to 4 times their size")
    sizes = plant_scales(large, work / "scales")
    audit = run_audit(work / "scales", root=work / "scales-root", where=api.Where("local"))
    if audit is None:
        raise SystemExit(f"{work}: nothing was published")
    by_scale: dict[str, list[float]] = {}
    for original, copies in sizes.items():
        for name, value in zip(copies, copy_similarity(audit, original, copies), strict=True):
            by_scale.setdefault(name.partition("-")[2].removesuffix(".jpg"), []).append(value)
    every = np.array([value for values in by_scale.values() for value in values])
    return {
        "photos": len(sizes),
        "pairs": len(every),
        "share_at_least_.95": float((every >= COPY_SIMILARITY).mean()),
        "lowest": float(every.min()),
        "by_scale": {
            scale: {
                "pairs": len(values),
                "lowest": min(values),
                "share": float(np.mean(np.array(values) >= COPY_SIMILARITY)),
            }
            for scale, values in sorted(by_scale.items())
        },
    }


def _share(found: Any) -> float:
    return float(np.mean([*found]))


def owed(found: dict[str, Any]) -> list[Owed]:
    """What the project owes against what this run measured."""
    copies, small, scales = found.get("copies"), found.get("small_folders"), found.get("scales")
    space = copies["spaces"]["copy space"] if copies else {}
    product = copies["product"] if copies else {}
    return [
        at_least("copy space, uAP", 0.99, space.get("uap")),
        at_least("copy space, recall at 90% precision", 0.98, space.get("recall_at_p90")),
        at_least("edits in their original's group", 0.90, product.get("recall")),
        at_least("precision of near-duplicate pairs", 0.98, product.get("precision")),
        at_least("one planted edit in a folder of 2 to 3,000, found", 1.0, _all_sizes(small)),
        at_least("same photo at 1/4 to 4x: similarity >= .95", 0.99, scales["share_at_least_.95"] if scales else None),
    ]


def _all_sizes(small: dict[str, Any] | None) -> float | None:
    return None if small is None else 1 - len(small["missed"]) / max(small["folders"], 1)


def details(found: dict[str, Any]) -> str:
    """The tables by vectors and by kind of edit."""
    lines: list[str] = []
    if copies := found.get("copies"):
        lines.append(f"{'vectors':<22}{'uAP':>8}{'R@P90':>8}  similarity of 95% of the edits, at least")
        spaces = {**copies["spaces"], **({"fastdup": copies["fastdup"]["space"]} if "fastdup" in copies else {})}
        for name, row in spaces.items():
            cells = "  ".join(f"{kind} {value:.2f}" for kind, value in row["similarity_p05"].items())
            lines.append(f"{name:<22}{row['uap']:>8.3f}{row['recall_at_p90']:>8.3f}  {cells}")
        lines.append("in their original's group, by edit (and precision of pairs)")
        rows = {"image-audit": copies["product"], **copies.get("fastdup", {}).get("groups", {})}
        for name, row in rows.items():
            cells = "  ".join(f"{kind} {value:.2f}" for kind, value in row["recall_by_edit"].items())
            lines.append(f"{name:<22}{row['recall']:>8.3f}{row['precision']:>8.3f}  {cells}")
    if small := found.get("small_folders"):
        cells = "  ".join(f"{size}: {share:.3f}" for size, share in small["found_by_size"].items())
        lines.append(f"one planted edit found, by images in the folder: {cells}")
        lines += [
            f"  missed: {row['edit']} of {row['photo']} in {row['images']}, similarity {row['copy_similarity']:.3f}, "
            f"threshold {row['threshold']:.3f}, {row['pairs'][0]['kind'] if row['pairs'] else 'no candidate'}"
            for row in small["missed"]
        ]
    if scales := found.get("scales"):
        lines.append(f"same photo at other sizes: lowest similarity {scales['lowest']:.3f} of {scales['pairs']} pairs")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos, searched recursively")
    parser.add_argument("--large", type=Path, help="a folder of photos of 1,500 px and more")
    parser.add_argument("--originals", type=int, default=600)
    parser.add_argument("--distractors", type=int, default=2400)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="images in the small folders")
    parser.add_argument("--seeds", type=int, default=3, help="small folders of each size and edit (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    add_shared_options(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The parts that the options ask for."""
    found: dict[str, Any] = {}
    if options.originals:
        found["copies"] = copies_part(options, work)
    if options.sizes:
        found["small_folders"] = small_folders(options, work)
    if options.large:
        found["scales"] = scales_part(options.large, work)
    return found


if __name__ == "__main__":
    carry_out("copies", parse(), measure, details, owed)
