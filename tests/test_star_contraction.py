"""Components in rounds over ranges of ids and in a tree of forests: equal to scipy's, whatever ends the process."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from graphs import Dying, Graph, scipy_labels, shapes, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_servers import moto_port, new_store, quick, use_credentials

from pipeline.kernels.components import Forest, empty_forest, labels_for
from pipeline.kernels.star_contraction import contract
from pipeline.layout.groups import FOREST, labels_of, read_forest, stars_between
from pipeline.layout.parts import list_parts
from pipeline.layout.root import Root
from pipeline.plan.components import Cuts

SIZE = 400
TINY = Cuts(pairs=100, fan_in=3, ids=80)
NAMES = list(shapes(60))
Files = dict[str, bytes]


def in_rounds(pairs: np.ndarray, bounds: list[tuple[int, int]]) -> tuple[list[Forest], int]:
    """The rounds as the stages run them, in memory: the forests of the ranges, and how many rounds it took."""
    own = [empty_forest() for _ in bounds]
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    keep = low < high
    sent = [Forest(high[keep], low[keep])]
    for count in range(1, 100):
        before = Forest(*(np.concatenate([forest[side] for forest in own]) for side in (0, 1)))
        done = []
        for (lo, hi), mine in zip(bounds, own, strict=True):
            strays = []
            for forest in sent:
                inside = (forest.child >= lo) & (forest.child < hi)
                strays.append(Forest(forest.child[inside], forest.root[inside]))
            done.append(contract(lo, hi, mine, strays, lambda ids, before=before: labels_for(ids, before)))
        own, sent = [found.own for found in done], [found.strays for found in done]
        if all(found.is_settled for found in done):
            return own, count
    raise AssertionError("the rounds do not end")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60),
    st.lists(st.integers(1, 40), max_size=6, unique=True),
)
def test_rounds_end_with_the_components_of_any_graph_and_ranges(edges, cuts) -> None:
    pairs = np.array(edges, np.int64).reshape(-1, 2)

    own, _ = in_rounds(pairs, list(pairwise([0, *sorted(cuts), 41])))

    found = np.arange(41)
    for forest in own:
        assert (forest.root < forest.child).all()
        found[forest.child] = forest.root
    assert found.tolist() == scipy_labels(41, pairs).tolist()
    assert (found[found] == found).all()


@pytest.mark.parametrize("name", NAMES)
def test_rounds_are_few_and_each_range_holds_its_own(name: str) -> None:
    """A chain in random order over 4,000 ids in 40 ranges takes the most: rounds grow with the logarithm."""
    pairs = shapes(4000)[name]
    bounds = [(lo, lo + 100) for lo in range(0, 4000, 100)]

    own, count = in_rounds(pairs, bounds)

    assert count <= 14
    for (lo, hi), forest in zip(bounds, own, strict=True):
        assert len(forest.child) <= hi - lo
        assert ((forest.child >= lo) & (forest.child < hi)).all()


def groups_of(graph: Graph, folder: str) -> np.ndarray:
    return labels_for(np.arange(graph.total), read_forest(graph.root.open(), folder))


def committed(graph: Graph, folder: str) -> Files:
    store = graph.root.open()
    return {info.key: store.read(info.key) for info in store.list(f"{folder}/")}


@pytest.mark.parametrize("memory", [1, 10_000_000])
@pytest.mark.parametrize("name", NAMES)
def test_stages_give_the_components_whatever_memory_they_have(name: str, memory: int, tmp_path: Path) -> None:
    pairs = shapes(SIZE)[name]
    graph = write_graph(tmp_path / "root", SIZE, pairs, part=200)
    done: list[str] = []

    folder = graph.group(TINY, Dying(done=done), memory_bytes=memory)

    assert groups_of(graph, folder).tolist() == scipy_labels(SIZE, pairs).tolist()
    is_in_rounds = any("contract_range" in task for task in done)
    assert is_in_rounds == (memory == 1 and len(pairs) > TINY.pairs)
    store = graph.root.open()
    assert len(list_parts(store, folder, FOREST)) == SIZE // TINY.ids
    assert not [*store.list(f"{folder}/work/")]
    other = write_graph(tmp_path / "other", SIZE, pairs, part=1000)
    assert other.group(Cuts(ids=TINY.ids)) == folder
    assert committed(graph, folder) == committed(other, folder)


def test_a_union_over_touched_ids_alone(tmp_path: Path) -> None:
    """Too many ids for a root each, few enough with an edge: no rounds."""
    pairs = shapes(SIZE)["cliques and bridges"][:400]
    graph = write_graph(tmp_path / "root", 3_000_000, pairs)
    done: list[str] = []

    folder = graph.group(Cuts(pairs=128, fan_in=3, ids=1_000_000), Dying(done=done), memory_bytes=1_000_000)

    assert not any("contract_range" in task for task in done)
    assert [task.split()[0] for task in done].count("unite_stars") == 1
    forest = read_forest(graph.root.open(), folder)
    assert labels_for(np.arange(SIZE), forest).tolist() == scipy_labels(SIZE, pairs).tolist()


def test_readers_of_a_range_and_of_some_ids(tmp_path: Path) -> None:
    pairs = shapes(40_000)["random"]
    graph = write_graph(tmp_path / "root", 40_000, pairs, part=10_000)
    folder = graph.group(Cuts(ids=25_000))
    store, expected = graph.root.open(), scipy_labels(40_000, pairs)
    rng = np.random.default_rng(3)

    for ids in (np.array([39_999, 0, 0, 24_999, 25_000]), rng.integers(0, 40_000, 50), np.empty(0, np.int64)):
        np.testing.assert_array_equal(labels_of(store, folder, ids), expected[ids])
    whole = read_forest(store, folder)
    for lo, hi in ((0, 40_000), (24_990, 25_010), (8_000, 8_001), (5, 5), (39_000, 90_000)):
        found = [*stars_between(store, list_parts(store, folder, FOREST), lo, hi)]
        inside = (whole.child >= lo) & (whole.child < hi)
        assert [child for part in found for child in part.child.tolist()] == whole.child[inside].tolist()
        assert [root for part in found for root in part.root.tolist()] == whole.root[inside].tolist()


def test_an_object_store_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    pairs = shapes(150)["shuffled chain"]
    cuts = Cuts(pairs=60, fan_in=3, ids=50)
    local = write_graph(tmp_path / "root", 150, pairs)
    remote = write_graph(Root(new_store(moto_port()).uri, quick()), 150, pairs, part=100)

    folder = local.group(cuts, memory_bytes=1)

    assert remote.group(cuts, memory_bytes=1) == folder
    assert committed(remote, folder) == committed(local, folder)
    store, expected = remote.root.open(), scipy_labels(150, pairs)
    assert labels_of(store, folder, np.array([149, 3, 60])).tolist() == expected[[149, 3, 60]].tolist()
    found = [*stars_between(store, list_parts(store, folder, FOREST), 40, 110)]
    inside = [child for part in found for child in part.child.tolist()]
    assert inside == read_forest(store, folder).child[39:109].tolist()


def test_a_run_that_is_killed_between_any_two_tasks_goes_on_where_it_was(tmp_path: Path) -> None:
    """Every part is made once, in whatever session; the groups are those of the run that nothing disturbed."""
    pairs = shapes(400)["shuffled chain"]
    cuts = Cuts(pairs=128, fan_in=3, ids=100)
    whole = write_graph(tmp_path / "whole", 400, pairs)
    made: list[str] = []
    folder = whole.group(cuts, Dying(done=made), memory_bytes=1)
    assert len({task for task in made if "contract_range" in task}) >= 16
    graph = write_graph(tmp_path / "killed", 400, pairs)

    done: list[str] = []
    for _ in made[:-1]:
        with pytest.raises(KeyboardInterrupt):
            graph.group(cuts, Dying(1, done), memory_bytes=1)
        rounds = {info.key.split("/")[3] for info in graph.root.open().list(f"{folder}/work/round-")}
        assert len(rounds) <= 3
    graph.group(cuts, Dying(1, done), memory_bytes=1)

    assert done == made
    assert committed(graph, folder) == committed(whole, folder)
    graph.group(cuts, Dying(0), memory_bytes=1)


@pytest.mark.parametrize("after", [3, 6, 9, 14])
def test_a_task_that_died_between_two_of_its_files_is_done_again(after: int, tmp_path: Path) -> None:
    """What it sent to the other ranges is there, its own forest is not."""
    pairs = shapes(400)["shuffled chain"]
    cuts = Cuts(pairs=128, fan_in=3, ids=100)
    whole = write_graph(tmp_path / "whole", 400, pairs)
    folder = whole.group(cuts, memory_bytes=1)
    graph = write_graph(tmp_path / "killed", 400, pairs)
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        graph.group(cuts, Dying(after, done), memory_bytes=1)
    graph.root.open().delete(done[-1].split()[1])

    graph.group(cuts, memory_bytes=1)

    assert committed(graph, folder) == committed(whole, folder)
