"""What a range of the findings reads of edges and scores, against a look at all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.kernels.labels import Confidence
from pipeline.kernels.outliers import LabelCounts
from pipeline.layout import edge_index
from pipeline.layout.edge_index import edges_at, index_files
from pipeline.layout.exact import ExactGroups
from pipeline.layout.parts import cut, part_name
from pipeline.layout.root import Root
from pipeline.layout.scores import (
    SCHEMA,
    SCORES,
    Totals,
    read_scores,
    totals_from_bytes,
    totals_to_bytes,
    write_heads,
)
from pipeline.layout.tables import write_table
from pipeline.schemas import EDGES, Kind
from pipeline.stages.findings.edge_index import EdgeIndexSpec, index_edges
from pipeline.storage import StorageConfig, open_store

PAIR = st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] < pair[1])


def edge_table(pairs: list[tuple[int, int]]) -> pa.Table:
    values: dict[str, Any] = {
        "image_id": [a for a, _ in pairs],
        "match_id": [b for _, b in pairs],
        "kind": [Kind.EDITED.value] * len(pairs),
        "is_verified": [True] * len(pairs),
        "is_mirrored": [None] * len(pairs),
    }
    numbers = [float(a * 100 + b) for a, b in pairs]
    return pa.table({field.name: values.get(field.name, numbers) for field in EDGES.schema}, schema=EDGES.schema)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(PAIR, max_size=60), st.lists(st.integers(0, 45), max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_edges_by_either_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pairs: set[tuple[int, int]],
    ids: list[int],
    part_rows: int,
    file_rows: int,
) -> None:
    """Each edge once, in the folder's order, with all of its columns; whatever the sizes of parts and files."""
    monkeypatch.setattr(edge_index, "ROWS_PER_FILE", file_rows)
    monkeypatch.setattr(edge_index, "ENDS_PER_FILE", 2 * file_rows)
    monkeypatch.setattr(edge_index, "IDS_PER_BIN", 1 + file_rows // 2)
    folder = f"edges/how/features/{abs(hash((frozenset(pairs), part_rows, file_rows)))}"
    root, listed = Root(str(tmp_path), StorageConfig()), sorted(pairs)
    store, table = root.open(), edge_table(listed)
    for lo, hi in cut(0, len(listed), part_rows):
        write_table(store, f"{folder}/{part_name('edges', lo, hi)}", table.slice(lo, hi - lo))
    Path(tmp_path, folder).mkdir(parents=True, exist_ok=True)
    index_edges(EdgeIndexSpec(root, folder))
    names = index_files(store, folder)
    assert {info.key for info in store.list(f"{folder}/")} >= {f"{folder}/{name}" for name in names}
    assert sum(name.startswith("indexed-") for name in names) == -(-len(listed) // file_rows)

    found = edges_at(store, folder, np.array(ids, np.int64))
    expected = [at for at, pair in enumerate(listed) if not set(pair).isdisjoint(ids)]
    assert found.schema.equals(EDGES.schema)
    assert found.to_pylist() == table.take(pa.array(expected, pa.int64())).to_pylist()


def test_scores_of_a_range_and_of_heads_elsewhere(tmp_path: Path) -> None:
    """Copies of images anywhere get their representative's scores; the others are in the range."""
    rng, store = np.random.default_rng(3), open_store(tmp_path)
    ids = np.flatnonzero(rng.random(200) < 0.8)
    shares = [rng.random(n % 4).tolist() for n in ids.tolist()]
    columns = [
        ids, rng.random(len(ids)), ids + 1, rng.random(len(ids)), ids % 2 == 0, (ids % 5).astype(np.int16),
        [[int(label) for label in range(len(share))] for share in shares], shares,
    ]  # fmt: skip
    every = pa.table(columns, schema=SCHEMA)
    for lo, hi in cut(0, 200, 32):
        inside = (ids >= lo) & (ids < hi)
        write_table(store, f"scores/s/{part_name(SCORES, lo, hi)}", every.filter(pa.array(inside)))
    heads = np.sort(rng.permutation(ids)[:15])
    write_heads(store, "scores/s", heads)

    own = ids[(ids >= 64) & (ids < 130)]
    for asked in (own, np.union1d(own, heads), heads[:1], np.empty(0, np.int64)):
        found = read_scores(store, "scores/s", asked)
        assert found.rows.to_pylist() == every.filter(pa.array(np.isin(ids, asked))).to_pylist()
        assert found.votes().start.tolist() == np.r_[0, np.cumsum([n % 4 for n in asked.tolist()])].tolist()


def test_members_of_representatives() -> None:
    rng = np.random.default_rng(2)
    ids = np.sort(rng.permutation(1000)[:300])
    heads = ids[rng.integers(0, 40, 300)]
    exact = ExactGroups(ids, heads, ids, np.zeros(300, np.int32), np.zeros(300, np.int32), np.full(300, -1))
    asked = np.unique(rng.integers(0, 1000, 500))
    expected = sorted((int(h), int(i)) for i, h in zip(ids, heads, strict=True) if h in asked)
    rows = exact.rows_of(asked)
    assert [*zip(heads[rows].tolist(), ids[rows].tolist(), strict=True)] == expected


def test_totals_survive_a_round_trip() -> None:
    rng = np.random.default_rng(4)

    def histogram(bins: int) -> NDArray[np.int64]:
        counts = np.zeros(bins, np.int64)
        counts[rng.integers(0, bins, 50)] = rng.integers(1, 2**40, 50)
        return counts

    by_label = LabelCounts(np.array([0, 0, 7]), np.array([3, 65535, 0]), np.array([1, 2, 3]))
    totals = Totals(histogram(65536), histogram(100), by_label, Confidence(np.array([2**41, 0]), np.array([9, 0])))
    found = totals_from_bytes(totals_to_bytes(totals))
    assert np.array_equal(found.outliers, totals.outliers)
    assert np.array_equal(found.areas, totals.areas)
    for ours, theirs in ((found.by_label, by_label), (found.confidence, totals.confidence)):
        for name in vars(theirs):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
            assert getattr(ours, name).dtype == np.int64
