"""Large groups that only chains hold together are split at a higher similarity; clusters of any size are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import LATENT, THRESHOLD, Dying, Graph, Remembers, features, space, unit, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError, UsageError
from pipeline.kernels.components import SpanningRows, labels_for, spanning_rows, star_forest
from pipeline.kernels.space import project_copy
from pipeline.kernels.splitting import UNCUT, GroupParams, far_shares, is_sampled, split_wide
from pipeline.layout.groups import read_forest, read_split_summary, read_splits
from pipeline.plan.components import Cuts
from pipeline.runner import execute
from pipeline.schemas import Kind

EDGES = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25), st.integers(0, 5)), max_size=50)
LIMITS: dict[str, Any] = {"max_size": 50}
CUTS = [Cuts(), Cuts(pairs=64, fan_in=3, ids=128), Cuts(pairs=1000, fan_in=2, ids=1000)]


def rows_of(edges: list[tuple[int, int, int]]) -> SpanningRows:
    a, b, level = np.array(edges, np.int64).reshape(-1, 3).T
    return SpanningRows(a, b, level.astype(np.int16))


@settings(max_examples=60, deadline=None)
@given(EDGES, st.integers(0, 5), st.integers(1, 4))
def test_spanning_rows_join_what_all_edges_join_at_every_level(edges, level, shards) -> None:
    whole = rows_of(edges)
    parts = [spanning_rows(rows_of(edges[at::shards])) for at in range(shards)]
    merged = spanning_rows(SpanningRows(*(np.concatenate(column) for column in zip(*parts, strict=True))))

    assert len(merged.a) <= 25
    for reduced in (spanning_rows(whole), merged):
        forests = [star_forest(r.a[r.level >= level], r.b[r.level >= level]) for r in (whole, reduced)]
        np.testing.assert_array_equal(*(labels_for(np.arange(26), forest) for forest in forests))


@settings(max_examples=60, deadline=None)
@given(EDGES, st.integers(2, 6))
def test_pieces_are_components_at_the_first_level_at_which_they_are_small_enough(edges, most) -> None:
    """With every larger piece too wide, an image's piece is its component at the first level of at most `most`."""
    rows = rows_of([edge for edge in edges if edge[0] != edge[1]])
    ids = np.unique(np.r_[rows.a, rows.b])

    pieces = split_wide(rows, GroupParams(max_size=most), lambda ids, groups: np.ones(len(np.unique(groups))))

    assert pieces.image_id.tolist() == ids.tolist()
    levels = sorted({level + 1 for level in rows.level.tolist()})
    for image, piece, level in zip(*(column.tolist() for column in pieces), strict=True):
        for tried in levels:
            stays = rows.level >= tried
            labels = labels_for(ids, star_forest(rows.a[stays], rows.b[stays]))
            label = labels[ids == image]
            if (labels == label).sum() <= most:
                break
        assert (piece, level) == (label[0], tried)


def test_the_level_of_an_edge_is_how_far_the_demand_may_rise() -> None:
    params = GroupParams()
    levels = params.levels(np.array([0.5, 0.519999, 0.52, 0.6, 1.0, 0.4, 0.3]), 0.5, np.array([False] * 6 + [True]))

    assert levels.tolist() == [0, 0, 1, 5, 25, 0, UNCUT]
    assert [params.demand(level, 0.5) for level in (0, 1, 25, 40)] == [0.5, 0.52, 1.0, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_far_shares_are_those_of_all_pairs(seed) -> None:
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, 4, 80))
    vectors = unit(rng.normal(size=(80, 6)) + 0.8).astype(np.float32)

    found = far_shares(group, vectors, 0.6)

    for share, label in zip(found, np.unique(group), strict=True):
        similarity = vectors[group == label].astype(np.float64) @ vectors[group == label].T.astype(np.float64)
        medoid = similarity.sum(axis=1).argmax()
        assert share == np.mean(similarity[medoid] < 0.6)
    assert len(far_shares(group[:0], vectors[:0], 0.6)) == 0


def test_samples_are_spread_evenly_and_small_groups_are_taken_whole() -> None:
    for size in (1, 4096, 4097, 100_000):
        chosen = is_sampled(np.arange(size), np.full(size, size))
        assert size / 2 - 1 <= chosen.sum() * -(-size // 4096) - size / 2 <= size
        assert chosen.sum() <= 4096


def test_limits_out_of_range_are_refused_together() -> None:
    with pytest.raises(
        UsageError, match=r"max_size 1.*far_below 2.*max_far_share -1.*step 0.*max_split -1.*memory_bytes 0"
    ):
        GroupParams(1, 2.0, -1.0, 0.0, -1, 0)


def drifting(count: int, turn: float, rng: np.random.Generator) -> np.ndarray:
    """Directions of which each is a little further than the one before, through all dimensions."""
    steps = rng.normal(size=(count, LATENT))
    found = [steps[0]]
    for step in steps[1:]:
        found.append(unit((found[-1] + turn * step)[None])[0])
    return unit(np.array(found))


def cluster(count: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    centre = unit(rng.normal(size=(1, LATENT)))
    return unit(centre + spread * rng.normal(size=(count, LATENT)))


def similarities(latent: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    vectors = project_copy(space(), *features(latent)).astype(np.float64)
    return np.round((vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(axis=1), 6)


def planted(folder: Path, seed: int = 5) -> tuple[Graph, dict[str, np.ndarray]]:
    """A chain of 300 drifting images with near pairs, 400 copies of one image in a star and a ring, two clusters of 60
    behind one weak pair, 30 drifting ones, and exact copies of members of each; ids shuffled within each.
    """
    rng = np.random.default_rng(seed)
    latent = [drifting(300, 0.06, rng), cluster(400, 0.03, rng), cluster(60, 0.02, rng), cluster(60, 0.02, rng)]
    latent.append(drifting(30, 0.06, rng))
    names = ["chain", "copies", "left", "right", "short"]
    starts = np.cumsum([0, *map(len, latent)])
    ids = {name: np.arange(*starts[at : at + 2]) for at, name in enumerate(names)}
    pairs = [np.stack([ids[name][:-1], ids[name][1:]], axis=1) for name in names]
    pairs.append(np.stack([ids["chain"][:-2], ids["chain"][2:]], axis=1))
    pairs.append(np.stack([np.full(399, ids["copies"][0]), ids["copies"][1:]], axis=1))
    pairs.append(np.array([[ids["left"][-1], ids["right"][0]]]))
    directions = np.concatenate(latent)
    joined = np.concatenate(pairs)
    values = np.maximum(similarities(directions, joined), THRESHOLD)
    order = rng.permutation(len(joined))
    total = len(directions)
    copied = np.array([ids["chain"][5], ids["chain"][5], ids["copies"][7], ids["left"][3]])
    graph = write_graph(folder, total + len(copied) + 1, joined[order], values[order], part=200)
    graph.exact = np.r_[np.arange(total), copied, [total + len(copied)]]
    graph.latent = np.concatenate([directions, directions[copied], directions[:1]])
    return graph, ids


def labels(graph: Graph, folder: str) -> np.ndarray:
    return labels_for(np.arange(graph.total), read_forest(graph.root.open(), folder))


def test_chains_are_split_and_clusters_stay_whole(tmp_path: Path) -> None:
    graph, ids = planted(tmp_path / "root")
    folder = graph.group(**LIMITS)
    found, splits = labels(graph, folder), read_splits(graph.root.open(), folder)

    assert set(found[ids["copies"]]) == {ids["copies"][0]}
    assert set(found[ids["short"]]) == {ids["short"][0]}
    assert set(found[ids["left"]]) == {ids["left"][0]} != set(found[ids["right"]]) == {ids["right"][0]}
    pieces, sizes = np.unique(found[ids["chain"]], return_counts=True)
    assert len(pieces) > 2
    vectors = project_copy(space(), *features(graph.latent))
    for piece, size in zip(pieces, sizes, strict=True):
        members = ids["chain"][found[ids["chain"]] == piece]
        assert members[0] == piece
        share = far_shares(np.zeros(len(members), np.int64), vectors[members], THRESHOLD - 0.1)
        assert size <= LIMITS["max_size"] or share[0] <= 0.1
    assert (found[-5:-1] == found[graph.exact[-5:-1]]).all()
    assert found[-1] == graph.total - 1
    assert set(splits.group_id) == {*pieces, ids["left"][0], ids["right"][0]}
    assert set(splits.component_id) == {ids["chain"][0], ids["left"][0]}
    assert (splits.similarity > THRESHOLD).all()
    summary = read_split_summary(graph.root.open(), folder)
    counts = {"components": 2, "different_images": 420, "largest": 300, "left_whole": 0}
    assert summary == counts | {"pieces": len(splits.group_id)}
    assert any("2 large groups of 420 different images" in line for line in graph.said)


def test_every_pair_between_pieces_is_under_the_demand_of_one_of_them(tmp_path: Path) -> None:
    """A piece is cut at its own similarity: its pairs have that, and what it was cut from has less."""
    graph, ids = planted(tmp_path / "root")
    folder = graph.group(**LIMITS)
    found, splits = labels(graph, folder), read_splits(graph.root.open(), folder)
    demand = dict(zip(splits.group_id.tolist(), splits.similarity.tolist(), strict=True))
    chain = ids["chain"]
    pairs = np.concatenate([np.stack([chain[:-step], chain[step:]], axis=1) for step in (1, 2)])
    values = np.maximum(similarities(graph.latent, pairs), THRESHOLD)

    for (a, b), value in zip(pairs.tolist(), values.tolist(), strict=True):
        one, other = demand[found[a]], demand[found[b]]
        assert found[a] == found[b] or value < max(one, other)


@pytest.mark.parametrize("cuts", CUTS[1:])
@pytest.mark.parametrize("memory", [1_000_000_000, 40_000])
def test_pieces_do_not_depend_on_how_the_work_is_cut(cuts: Cuts, memory: int, tmp_path: Path) -> None:
    graph, _ = planted(tmp_path / "root")
    other, _ = planted(tmp_path / "other")
    whole, folder = graph.group(**LIMITS), other.group(cuts, memory_bytes=memory, **LIMITS)

    np.testing.assert_array_equal(labels(graph, whole), labels(other, folder))
    for one, two in zip(
        vars(read_splits(graph.root.open(), whole)).values(),
        vars(read_splits(other.root.open(), folder)).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_a_killed_split_goes_on(tmp_path: Path) -> None:
    cuts = CUTS[2]
    whole, _ = planted(tmp_path / "whole")
    made: list[str] = []
    folder = whole.group(cuts, Dying(done=made), **LIMITS)
    graph, _ = planted(tmp_path / "killed")

    done: list[str] = []
    for _ in made[:-1]:
        with pytest.raises(KeyboardInterrupt):
            graph.group(cuts, Dying(1, done), **LIMITS)
    graph.group(cuts, Dying(1, done), **LIMITS)

    assert done == made
    assert {task.split()[0] for task in made} >= {"find_large", "reduce_spans", "split_groups", "finish"}
    np.testing.assert_array_equal(labels(whole, folder), labels(graph, folder))


@pytest.mark.parametrize("memory", [2**30, 1])
def test_attempts_that_end_when_all_is_done_change_nothing(memory: int, tmp_path: Path) -> None:
    """What they read is gone: they fail, instead of committing that nothing was split or joined."""
    graph, _ = planted(tmp_path / "root")
    runner = Remembers()
    folder = graph.group(CUTS[2], runner, memory_bytes=memory, **LIMITS)
    place = tmp_path / "root" / folder
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    assert json.loads(before["split.json"])["components"] == 2

    late = {task.function.__name__: execute(task.function, task.spec).error for task in reversed(runner.tasks)}
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    assert {name for name, error in late.items() if isinstance(error, ArtifactError)} >= {"find_large", "finish"}


def test_exact_duplicates_are_never_cut(tmp_path: Path) -> None:
    """A drifting chain whose pairs have the same pixels stays whole, whatever its width."""
    latent = drifting(120, 0.3, np.random.default_rng(1))
    pairs = np.stack([np.arange(119), np.arange(1, 120)], axis=1)
    graph = write_graph(tmp_path / "root", 120, pairs, np.full(119, 0.5), [Kind.SAME_PIXELS] * 119)
    graph.latent = latent
    folder = graph.group(**LIMITS)

    assert set(labels(graph, folder)) == {0}
    assert read_split_summary(graph.root.open(), folder)["components"] == 0
    near = write_graph(tmp_path / "near", 120, pairs, np.full(119, 0.5))
    near.latent = latent
    assert set(labels(near, near.group(**LIMITS))) == set(range(120))


@pytest.mark.parametrize("cuts", CUTS[:2])
def test_a_component_that_no_task_can_hold_stays_whole(cuts: Cuts, tmp_path: Path) -> None:
    """Of two that are too wide the smaller is split where the limit is enough for that one alone."""
    graph, ids = planted(tmp_path / "root")
    folder = graph.group(cuts, max_split=200, **LIMITS)
    found = labels(graph, folder)

    assert set(found[ids["chain"]]) == {0}
    assert found[ids["left"][0]] != found[ids["right"][0]]
    assert read_split_summary(graph.root.open(), folder)["left_whole"] == 1
    assert any("1 more stay whole" in line for line in graph.said)
