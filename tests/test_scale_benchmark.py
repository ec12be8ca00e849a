"""The scale benchmark: its data set follows from the seed, and its account of leaks is that of brute force."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from benchmarks.scale_sessions import Sessions, disk_bytes
from benchmarks.scale_truth import (
    Stars,
    are_found,
    are_over,
    joined_leaks,
    leak_key,
    leaking_pairs,
    measure,
    stored_near,
)
from benchmarks.synthetic import SPLITS, World, tree_path
from benchmarks.synthetic_plants import Role, plant
from benchmarks.synthetic_root import Truth, make_features, read_truth
from pipeline.audit import Audit
from pipeline.kernels.moments import blend
from pipeline.kernels.space import SpaceParams, project_copy, train_copy_space
from pipeline.kernels.threshold import ThresholdParams, distinct_rows, fit_null, null_histogram, threshold_for
from pipeline.layout.features import list_features, read_features
from pipeline.layout.spaces import read_space
from pipeline.models import default_model
from pipeline.sources.labels import RuleParams, assign
from pipeline.stages.train import sample_moments

ROOT = Path(__file__).parents[1]
IMAGES = 3_000
KEYS = {
    "images", "wall_seconds", "cpu_seconds", "peak_task_bytes", "driver_bytes", "peak_disk_bytes", "recall",
    "pairs_planted", "pairs_found", "leaks_planted", "leaks_found", "stages", "sessions", "threshold", "machine",
}  # fmt: skip


def run(root: Path, target: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--images", str(IMAGES), "--frames", "100", *more]
    command += ["--root", str(root), "--runner", "local", "--workers", "1", "--json", str(target)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(target.read_text())
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("scale")
    return folder / "root", run(folder / "root", folder / "scale.json")


@pytest.fixture(scope="module")
def audit(measured: tuple[Path, dict[str, Any]]) -> Audit:
    return pipeline.open(str(measured[0]))


def truth_of(world: World, frames: int = 100) -> Truth:
    table = plant(world, frames)
    return Truth(*(table[name].to_numpy() for name in table.column_names))


def test_everything_planted_is_found_and_accounted_for(measured: tuple[Path, dict[str, Any]]) -> None:
    """Exact search finds all; seconds, memory and disk are there, in all and by stage."""
    root, found = measured
    assert set(found) >= KEYS
    assert found["images"] == IMAGES
    assert found["pairs_found"] == found["pairs_planted"] > 300
    assert found["leaks_found"] == found["leaks_planted"] > 300
    assert found["leaks_missing"] == []
    assert found["outliers_flagged"] == found["outliers_planted"] == 3
    assert all(row["found"] == row["over_threshold"] for row in found["pairs_by_role"].values())
    assert found["pairs_by_role"]["frame"]["planted"] == 99
    assert {"annotate", "exact groups", "join copy", "verify", "components", "findings"} <= set(found["stages"])
    assert found["cpu_seconds"] >= sum(stage["cpu_seconds"] for stage in found["stages"].values()) > 0
    assert found["peak_disk_bytes"] > found["peak_disk_bytes_without_features"] > 0
    assert found["peak_disk_bytes"] >= sum(disk_bytes(root)) - 20_000
    assert found["driver_bytes"] > 1e8
    assert found["tables"]["duplicates"]["unread"] == 0


def test_sessions_add_up(measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A second call has nothing to do, and its seconds are added; the findings are the same."""
    root, first = measured
    again = run(root, tmp_path / "again.json", "--against", str(root.with_name("scale.json")))

    assert len(again["sessions"]) == len(first["sessions"]) + 1
    assert again["sessions"][-1]["stages"] == []
    assert again["wall_seconds"] > first["wall_seconds"]
    assert again["stages"] == first["stages"]
    for key in ("pairs_found", "leaks_found", "leaks_listed", "tables"):
        assert again[key] == first[key]
    assert again["against"]["cpu_seconds"] == first["cpu_seconds"]
    (growth,) = [row for row in again["owed"] if row["what"].startswith("CPU seconds")]
    assert growth["ok"]
    assert len(Sessions(root / "scale/sessions.json").sessions) == len(again["sessions"])


def test_leaks_are_those_of_brute_force(measured: tuple[Path, dict[str, Any]], audit: Audit) -> None:
    """All pairs over the threshold, and exact copies: the table has these leaks, and the planted ones are of them."""
    world, truth = World(IMAGES), read_truth(audit.root)
    store, facts = audit.root.open(), audit.summary()
    (folder,) = {info.key.rsplit("/", 1)[0] for info in store.list("features/")}
    features = list_features(store, folder)
    stored = read_features(store, features, 0, IMAGES)
    space = read_space(store, facts["space"]["folder"])
    vectors = project_copy(space, stored.embeddings, stored.signatures).astype(np.float64)
    is_close = vectors @ vectors.T >= facts["threshold"]["value"]
    exact = np.arange(IMAGES)
    copies = truth.role <= Role.SAME_PIXELS
    exact[truth.image_id[copies]] = truth.source_id[copies]
    split, _, _ = world.cells(np.arange(IMAGES))
    brute = set()
    for other in range(len(SPLITS)):
        in_other = split == other
        # a copy of an image has the matches of the image: of its representative, and of its whole exact group
        reached = is_close[:, exact[in_other]].any(axis=1)[exact] | np.isin(exact, exact[in_other])
        brute |= {int(key) for key in leak_key(np.flatnonzero(reached & ~in_other), np.int64(other))}
    listed = {
        int(leak_key(np.array([row["image_id"]]), np.int64(SPLITS.index(row["match_split"])))[0])
        for row in audit.table("leaks").to_pylist()
    }
    near = stored_near(store, features, truth, space)
    stars, threshold = measure(near, truth), facts["threshold"]["value"]
    planted = set(joined_leaks(world, stars, are_over(stars, threshold)).tolist())
    planted |= set(leaking_pairs(world, truth, near, threshold).tolist())

    chained = {
        int(leak_key(np.array([row["image_id"]]), np.int64(SPLITS.index(row["match_split"])))[0])
        for row in audit.table("leaks").to_pylist()
        if row["is_transitive"]
    }
    assert brute <= listed
    assert listed - brute <= chained
    assert planted <= brute
    assert len(planted) == measured[1]["leaks_planted"]


def test_what_is_missing_counts_as_missing(audit: Audit) -> None:
    """Pairs that no table connects are not found: two images that were never planted."""
    truth = read_truth(audit.root)
    alone = np.setdiff1d(np.arange(IMAGES), truth.image_id)[:4]
    stars = Stars(np.full(2, Role.PAIR, np.int8), alone[:2], alone[2:], np.ones(2))

    assert not are_found(audit, stars).any()


def test_data_set_follows_from_the_seed() -> None:
    """Any cut gives the same rows; another seed gives others; copies are equal and hashed alike."""
    world = World(IMAGES)
    truth = truth_of(world)
    whole = make_features(world, truth, 0, IMAGES)
    parts = [make_features(world, truth, lo, hi) for lo, hi in ((0, 1), (1, 1025), (1025, IMAGES))]

    assert all(part.rows.num_rows == len(part.embeddings) for part in parts)
    joined = [row for part in parts for row in part.rows.to_pylist()]
    assert joined == whole.rows.to_pylist()
    embeddings = np.concatenate([part.embeddings for part in parts]).astype(np.float32)
    assert np.allclose(embeddings, whole.embeddings, atol=0.02)
    assert truth_of(world).image_id.tolist() == truth.image_id.tolist()
    assert truth_of(World(IMAGES, 1)).image_id.tolist() != truth.image_id.tolist()
    rows = whole.rows.to_pylist()
    for image_id, role, source in zip(truth.image_id, truth.role, truth.source_id, strict=True):
        same = rows[image_id]["content_hash"] == rows[source]["content_hash"]
        assert same == (role == Role.SAME_BYTES or image_id == source)
        assert (rows[image_id]["status"] == "truncated") == (role == Role.INVALID)
    assert len({row["content_hash"] for row in rows}) == IMAGES - int(
        ((truth.role == Role.SAME_BYTES) & (truth.image_id != truth.source_id)).sum()
    )


def test_frames_move_neither_the_space_nor_the_threshold() -> None:
    """A tenth of a set that are frames of one camera: the threshold of a million images is that without them."""
    world, params = World(4_000), SpaceParams()
    model, wanted = default_model(), []
    for frames in (0, 400):
        made = make_features(world, truth_of(world, frames), 0, world.images)
        own = sample_moments(made.embeddings, made.signatures)
        blended = [blend(own.embedding, model.embedding_moments), blend(own.signature, model.signature_moments)]
        vectors = project_copy(train_copy_space(*blended, params), made.embeddings, made.signatures)
        tail = fit_null(null_histogram(vectors[distinct_rows(vectors)], None), 10**6, "random pairs")
        wanted.append(threshold_for(tail, 10**6, ThresholdParams()).value)
    assert wanted[1] == pytest.approx(wanted[0], abs=0.03)
    assert wanted[0] < 0.8


def test_plants_are_of_every_role_and_across_splits() -> None:
    """No image has two roles; sets hold what they should; pairs lie within a label, half of them across splits."""
    world = World(200_000)
    truth = truth_of(world, 20_000)
    split, label, _ = world.cells(truth.image_id)
    sizes = np.bincount(truth.set_id)

    assert len(np.unique(truth.image_id)) == len(truth.image_id)
    assert set(truth.role.tolist()) == {role.value for role in Role}
    assert (truth.source_id <= truth.image_id).all()
    pairs = truth.set_id[truth.role == Role.PAIR]
    assert (sizes[pairs] == 2).all()
    inside = truth.role == Role.PAIR
    assert (label[inside] == world.cells(truth.source_id[inside])[1]).all()
    across = split[inside] != world.cells(truth.source_id[inside])[0]
    assert 0.1 < across.sum() / len(np.unique(pairs)) < 0.6
    for role in (Role.SAME_BYTES, Role.CLUSTER, Role.FRAME, Role.BURST):
        largest = np.argmax(np.bincount(truth.set_id[truth.role == role]))
        assert len(set(split[truth.set_id == largest].tolist())) >= (1 if role == Role.BURST else 3)
    assert sizes[truth.set_id[truth.role == Role.FRAME][0]] == 20_000
    assert 1_000 in sizes[truth.set_id[truth.role == Role.SAME_BYTES]]


@pytest.mark.parametrize("images", [1_000, 54_321, 11_582_724])
def test_names_are_a_sorted_listing_that_the_folder_rule_reads(images: int) -> None:
    """Splits and labels as the product takes them from the names are those of the ids."""
    world = World(images)
    lo = images // 2
    uris = world.uris(0, 300) + world.uris(lo, lo + 300) + world.uris(images - 100, images)
    ids = np.r_[0:300, lo : lo + 300, images - 100 : images]
    splits, labels = assign(uris, RuleParams())
    split, label, _ = world.cells(ids)

    assert uris == sorted(uris)
    assert [SPLITS[code] for code in split] == splits
    assert len(set(labels)) == len(set(label.tolist()))
    assert (tree_path(world, ids)[0] >= 0).all()
