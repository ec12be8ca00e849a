"""Columns of the tables computed again from what the root holds: brute force over all pairs, in code of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import SEED, Rows, jpeg, planted_audit, rows, run, write_files
from PIL import Image
from planted import decode

from pipeline.audit import Audit
from pipeline.demo import demo_photos
from pipeline.layout.features import list_features, read_features
from pipeline.layout.spaces import read_space

Matrix = np.ndarray[Any, Any]
BINS = 65_536


def unit(vectors: Matrix) -> Matrix:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Recomputed:
    """Every pair's similarity, and what follows from them and from the columns that other tests check."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.images = {row["image_id"]: row for row in rows(audit, "images")}
        self.ok = sorted(i for i, row in self.images.items() if row["status"] == "ok")
        self.representatives = [i for i in self.ok if self.images[i]["representative_id"] == i]
        self.heads = [i for i in self.representatives if self.images[i]["group_id"] == i]
        store = audit.root.open()
        (folder,) = {info.key.split("/")[1] for info in store.list("features/")}
        features = read_features(store, list_features(store, f"features/{folder}"), 0, len(self.images))
        self.embeddings = np.asarray(features.embeddings).astype(float)
        self.thumbnails = np.asarray(features.signatures).astype(float)
        self.space = read_space(store, audit.summary()["space"]["folder"])

    @cached_property
    def semantic(self) -> Matrix:
        vectors = np.zeros_like(self.embeddings)
        vectors[self.ok] = unit(self.embeddings[self.ok])
        return vectors @ vectors.T

    @cached_property
    def signature(self) -> Matrix:
        correlation = np.zeros((len(self.images), len(self.images)))
        correlation[np.ix_(self.ok, self.ok)] = np.corrcoef(self.thumbnails[self.ok])
        return correlation

    @cached_property
    def copy(self) -> Matrix:
        away = (np.arange(16) - 7.5) / 8
        taper = np.exp(-(away[:, None] ** 2 + away[None, :] ** 2) / (2 * 0.4**2)).ravel()
        taper /= taper.sum()
        thumbnails = self.thumbnails[self.ok]
        signatures = unit((thumbnails - (thumbnails @ taper)[:, None]) * np.sqrt(taper))
        sides = ((unit(self.embeddings[self.ok]), self.space.embedding), (signatures, self.space.signature))
        whitened = [unit((side - transform.mean) @ transform.matrix) for side, transform in sides]
        weighted = [np.sqrt(weight) * side for weight, side in zip((0.65, 0.35), whitened, strict=True)]
        vectors = np.hstack(weighted)
        found = np.zeros((len(self.images), len(self.images)))
        found[np.ix_(self.ok, self.ok)] = vectors @ vectors.T
        return found

    def outside(self, image: int, among: list[int]) -> list[int]:
        """Those of other groups than the image's, nearest first, equal ones by id."""
        group = self.images[image]["group_id"]
        others = [other for other in among if self.images[other]["group_id"] != group]
        return sorted(others, key=lambda other: (-round(self.semantic[image, other], 6), other))

    @cached_property
    def scores(self) -> dict[int, tuple[float, int]]:
        """Outlier score and nearest image of every representative."""
        meant = min(10, max(3, len(self.representatives) // 6))
        found = {}
        for image in self.representatives:
            near = self.outside(image, self.heads)
            mean = np.mean([round(self.semantic[image, other], 6) for other in near[:meant]])
            found[image] = round(min(max(1 - float(mean), 0.0), 1.0), 6), near[0]
        return found

    def shares(self, representative: int) -> dict[str, float]:
        """What a representative votes: the labels of the images with its bytes or pixels."""
        counts = Counter(
            row["label"] for row in self.images.values() if row["representative_id"] == representative and row["label"]
        )
        return {label: count / counts.total() for label, count in counts.items()}

    @cached_property
    def votes(self) -> dict[int, tuple[dict[str, float], int]]:
        """Share of each label in the vote on every representative, and how many voted."""
        found = {}
        for image in self.representatives:
            voters = [other for other in self.outside(image, self.heads)[:32] if self.shares(other)][:30]
            total: Counter[str] = Counter()
            for other in voters:
                weight = math.exp((round(self.semantic[image, other], 6) - 1) / 0.1)
                for label, share in self.shares(other).items():
                    total[label] += weight * share
            whole = sum(total.values())
            found[image] = {label: value / whole for label, value in total.items()}, len(voters)
        return found


def progressive_crops(folder: Path) -> Path:
    """One photograph cropped a little more from the right each time, and twelve other photographs."""
    photos = demo_photos()
    first, *others = sorted(photos)
    picture = Image.fromarray(decode(photos[first]))
    files = {f"{name}.jpg": photos[name] for name in others[:12]}
    for step in range(7):
        width = round(picture.width * (1 - 0.05 * step))
        files[f"crop{step}.jpg"] = jpeg(picture.crop((0, 0, width, picture.height)))
    return write_files(folder, files)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Recomputed:
    folder = tmp_path_factory.mktemp("chain")
    photos = progressive_crops(folder / "photos")
    return Recomputed(run(photos, root=folder / "audit", neighbours={"threshold": 0.7}))


@pytest.fixture(scope="module")
def planted() -> Recomputed:
    return Recomputed(planted_audit(SEED).audit)


@pytest.fixture(params=["planted", "chain"])
def audited(request: pytest.FixtureRequest) -> Recomputed:
    found: Recomputed = request.getfixturevalue(request.param)
    return found


def grouped(table: Rows) -> Iterator[Rows]:
    for group in sorted({row["group_id"] for row in table}):
        yield [row for row in table if row["group_id"] == group]


def test_similarities_of_pairs(audited: Recomputed) -> None:
    """All three similarities of every pair in duplicates and leaks are those of the stored vectors."""
    for name in ("duplicates", "leaks"):
        for row in rows(audited.audit, name):
            if row["similarity"] is None:
                continue
            pair = tuple(audited.images[row[side]]["representative_id"] for side in ("image_id", "match_id"))
            found = [row["similarity"], row["semantic_similarity"], row["signature_similarity"]]
            wanted = [audited.copy[pair], audited.semantic[pair], audited.signature[pair]]
            assert found == pytest.approx([round(value, 6) for value in wanted], abs=1e-9), (name, row)


def test_medoids_and_what_is_chained(audited: Recomputed) -> None:
    """The medoid is the representative nearest to all others; every member's similarity to it, and the smallest."""
    threshold = audited.audit.summary()["threshold"]["value"]
    edges = {frozenset((row["image_id"], row["match_id"])) for row in rows(audited.audit, "duplicates")}
    for members in grouped(rows(audited.audit, "groups")):
        heads = sorted({audited.images[row["image_id"]]["representative_id"] for row in members})
        sums = [round(sum(audited.copy[head, other] for other in heads if other != head), 9) for head in heads]
        medoid = heads[sums.index(max(sums))]
        assert {row["medoid_id"] for row in members} == {medoid}
        similarities = [
            round(audited.copy[audited.images[row["image_id"]]["representative_id"], medoid], 6) for row in members
        ]
        assert [row["similarity_to_medoid"] for row in members] == pytest.approx(similarities, abs=1e-9)
        assert {row["group_min_similarity"] for row in members} == {min(row["similarity_to_medoid"] for row in members)}
        for row, similarity in zip(members, similarities, strict=True):
            head = audited.images[row["image_id"]]["representative_id"]
            linked = head == medoid or frozenset((head, medoid)) in edges
            assert row["is_chained"] == (similarity < threshold and not linked)


def test_planted_chain_and_medoids_are_not_trivial(planted: Recomputed, chain: Recomputed) -> None:
    """The two audits hold what the test above is about: a chained image, a medoid that is not the first member."""
    chained = [row["is_chained"] for row in rows(chain.audit, "groups")]
    medoids = [row["medoid_id"] != row["group_id"] for table in (planted, chain) for row in rows(table.audit, "groups")]

    assert len(chained) == 7
    assert {True, False} == set(chained) == set(medoids)


def test_keepers_and_their_reasons(audited: Recomputed) -> None:
    """By split, pixels, bytes, length of the uri and id; with the first rule that tells it from its rival."""
    sizes = {row["image_id"]: row for row in rows(audited.audit, "quality")}
    splits = ["test", "val", "other", "train", None]
    words = [
        ("split first", "split later"), ("more pixels", "fewer pixels"), ("larger file", "smaller file"),
        ("shorter uri", "longer uri"), ("smaller id", "larger id"),
    ]  # fmt: skip
    reasons = set()
    for members in grouped(rows(audited.audit, "groups")):
        keys = {}
        for row in members:
            size = sizes[row["image_id"]]
            rank = splits.index(row["split"] if row["split"] in splits else "other")
            keys[row["image_id"]] = (
                rank, -size["width"] * size["height"], -size["size_bytes"], len(row["uri"]), row["image_id"],
            )  # fmt: skip
        keeper, runner_up = sorted(keys, key=lambda image: keys[image])[:2]
        for row in members:
            rival = runner_up if row["image_id"] == keeper else keeper
            rule = next(n for n in range(5) if keys[row["image_id"]][n] != keys[rival][n])
            assert row["is_keeper"] == (row["image_id"] == keeper)
            assert row["keeper_reason"] == words[rule][row["image_id"] != keeper]
            reasons.add(row["keeper_reason"])
    assert len(reasons) >= (6 if None not in {row["split"] for row in audited.images.values()} else 2)


def test_outliers(audited: Recomputed) -> None:
    """Score, nearest image, percentiles and flag of every image, from the similarities of all pairs."""
    scores = audited.scores
    bins = {image: min(int(score * BINS), BINS - 1) for image, (score, _) in scores.items()}
    first, third = np.quantile([score for score, _ in scores.values()], [0.25, 0.75], method="inverted_cdf")
    fence = 1 - min((1 - third) * ((1 - third) / (1 - first)) ** 2.5, (1 - third) - 0.05)
    for row in rows(audited.audit, "outliers"):
        head = audited.images[row["image_id"]]["representative_id"]
        score, nearest = scores[head]
        assert row["score"] == pytest.approx(score, abs=1.1e-6)
        assert (row["nearest_id"], row["nearest_uri"]) == (nearest, audited.images[nearest]["uri"])
        assert row["nearest_similarity"] == pytest.approx(audited.semantic[head, nearest], abs=6e-7)
        in_label = [other for other in scores if audited.images[other]["label"] == row["label"]]
        for column, among in (("percentile", list(scores)), ("label_percentile", in_label)):
            if column == "label_percentile" and row["label"] is None:
                assert row[column] is None
                continue
            below = sum(bins[other] < bins[head] for other in among)
            same = sum(bins[other] == bins[head] for other in among)
            assert row[column] == pytest.approx(100 * (below + same / 2) / len(among), abs=6e-5), row
        if abs(score - fence) > 1e-3:
            assert row["is_outlier"] == (score > fence), row


def test_votes_on_labels(planted: Recomputed) -> None:
    """Score, suggestion, its confidence and the number of votes, from the similarities of all pairs."""
    for row in rows(planted.audit, "labels"):
        shares, voters = planted.votes[planted.images[row["image_id"]]["representative_id"]]
        given = shares.get(row["label"], 0.0)
        label, best = max(
            ((label, share) for label, share in shares.items() if label != row["label"]),
            key=lambda item: (item[1], item[0]),
            default=(None, 0.0),
        )
        assert row["vote_count"] == voters == 30
        assert row["score"] == pytest.approx(50 * (1 + given - best), abs=1e-3)
        assert row["suggested_label"] == (label if best > given else None)
        assert row["suggested_confidence"] == (pytest.approx(best, abs=2e-5) if best > given else None)


def test_label_conflicts(planted: Recomputed) -> None:
    """The other label's first image, the number of labels, their shares and the majority, from the images' rows."""
    of_group: dict[int, Rows] = {}
    for row in planted.images.values():
        if row["status"] == "ok" and row["label"]:
            of_group.setdefault(row["group_id"], []).append(row)
    table = {row["image_id"]: row for row in rows(planted.audit, "label_conflicts")}
    wanted = {row["image_id"] for group in of_group.values() for row in group if len({m["label"] for m in group}) > 1}
    assert set(table) == wanted
    for image, row in table.items():
        group = of_group[row["group_id"]]
        counts = Counter(member["label"] for member in group)
        others = [member for member in group if member["label"] != row["label"]]
        twins = [member for member in others if member["representative_id"] == row["representative_id"]]
        other = min(twins or others, key=lambda member: member["image_id"])
        best = [label for label, count in counts.items() if count == max(counts.values())]
        assert row["representative_id"] == planted.images[image]["representative_id"]
        assert row["is_certain"] == bool(twins)
        assert (row["conflict_id"], row["conflict_uri"]) == (other["image_id"], other["uri"])
        assert (row["conflict_split"], row["conflict_label"]) == (other["split"], other["label"])
        assert (row["label_count"], row["majority_label"]) == (len(counts), best[0] if len(best) == 1 else None)
        assert row["label_share"] == pytest.approx(counts[row["label"]] / len(group), abs=1e-6)
