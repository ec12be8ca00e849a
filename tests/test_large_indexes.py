"""Thousands of lists, trained from super lists, on a set small enough to be compared pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audited import assert_equal_tables
from test_bad_neighbours import clouds, names, of_vectors

from pipeline.audit import FINDINGS, Audit
from pipeline.layout.indexes import read_lists
from pipeline.layout.served import read_recipe
from pipeline.plan import indexing
from pipeline.stages import train_lists

COUNT = 5_000
EVERY = {"copy_probes": 8192, "semantic_probes": 8192, "partition_rows": 1_500}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return of_vectors(tmp_path_factory.mktemp("flat"), names(COUNT), clouds(COUNT))


def stages_of(audit: Audit) -> dict[str, int]:
    """Parts of the stages that the latest session carried out."""
    return {stage["stage"]: stage["parts"] for stage in audit.published.session["stages"] if stage["attempts"]}


@pytest.mark.parametrize(
    ("lists", "levels"),
    [(600, 2), pytest.param(1_500, 1, marks=pytest.mark.slow), pytest.param(4_096, 2, marks=pytest.mark.slow)],
)
def test_every_list_probed_is_the_exact_search(
    flat: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: int, levels: int
) -> None:
    """K-means of super lists and then of the rows of each, in one task or, from 4,096 lists on, in many; that many are
    trained in the slow tier, and in the other 600 as if they were.
    """
    monkeypatch.setattr(indexing, "TWO_LEVELS_FROM", min(lists, indexing.TWO_LEVELS_FROM) if levels == 2 else 4_096)
    monkeypatch.setattr(train_lists, "DEAL_ROWS", 24 * lists)
    audit = of_vectors(tmp_path, names(COUNT), clouds(COUNT), neighbours={"index": f"IVF{lists}", **EVERY})

    recipe = read_recipe(audit.root, audit.audit_id)
    stages = stages_of(audit)
    for space, index in (("copy", recipe.copy), ("semantic", recipe.semantic)):
        trained = read_lists(audit.root.open(), index.folder)
        assert 0.8 * lists <= len(trained.lists) <= 1.1 * lists
        assert len(trained.lists.supers) == (0 if levels == 1 else 2 * int(np.sqrt(lists)))
        assert index.count >= 4
        assert (f"train super lists ({space})" in stages) == (levels == 2)
        if levels == 2:
            assert stages[f"deal sample ({space})"] == 3
            assert stages[f"train lists below ({space})"] > 1
        recall = audit.summary()["recall"][space]
        assert recall["found"] == recall["total"] > 0
    assert not [*Path(audit.root.uri).glob("indexes/*/sample-*")]
    assert_equal_tables(audit, flat, {*FINDINGS} - {"outliers"})
    marked = "is_exact"  # only the worst are searched until exact
    assert audit.table("outliers").drop_columns([marked]).equals(flat.table("outliers").drop_columns([marked]))


@pytest.mark.slow
def test_few_lists_probed_find_most(flat: Audit, tmp_path: Path) -> None:
    """16 of 4,096 lists: what is found is right, and the run says how much it may have missed."""
    few = {"index": "IVF4096", "copy_probes": 16, "semantic_probes": 16}
    audit = of_vectors(tmp_path, names(COUNT), clouds(COUNT), neighbours=few)
    found, every = ({(row["image_id"], row["match_id"]) for row in _pairs(one)} for one in (audit, flat))

    assert found <= every
    assert len(found) >= 0.9 * len(every) > 0
    for space in ("copy", "semantic"):
        recall = audit.summary()["recall"][space]
        assert 0 < recall["low95"] <= recall["found"] / recall["total"] <= recall["high95"] <= 1


def _pairs(audit: Audit) -> list[dict[str, int]]:
    found: list[dict[str, int]] = audit.table("duplicates").select(["image_id", "match_id"]).to_pylist()
    return found
