"""What the tables say of a component that was split: its pieces, their similarity, and the pairs between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from audited import run
from planted import build

from pipeline.audit import Audit

LOOSE = {"pixels": False, "near_similarity": 0.3}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Every pair from .3 on is near-identical, and groups of over three images have members under .2 to the medoid."""
    folder: Path = tmp_path_factory.mktemp("split")
    build(folder / "photos", 7)
    limits = {"max_size": 3, "far_below": 0.0}
    return run(folder / "photos", root=folder / "audit", verify=LOOSE, neighbours={"threshold": 0.2}, groups=limits)


def test_pieces_say_so(split: Audit) -> None:
    rows = split.table("groups").to_pylist()

    pieces = [row for row in rows if row["is_split"]]
    assert pieces
    assert len(pieces) < len(rows)
    assert all((row["split_similarity"] is not None) == row["is_split"] for row in rows)
    assert all(0.2 < row["split_similarity"] <= 1 for row in pieces)
    assert {row["group_size"] for row in pieces} <= set(range(2, 9))


def test_pairs_between_pieces_stay_duplicates_without_a_group(split: Audit) -> None:
    group = {row["image_id"]: row["group_id"] for row in split.table("images").to_pylist()}
    joined = [row for row in split.table("duplicates").to_pylist() if row["kind"] == "near_identical"]

    between = [row for row in joined if group[row["image_id"]] != group[row["match_id"]]]
    assert between
    assert all(row["group_id"] is None for row in between)
    assert all(row["group_id"] == group[row["match_id"]] for row in joined if row not in between)
    for row in split.table("leaks").to_pylist():
        assert row["group_id"] in (None, group[row["match_id"]])
        assert not row["is_transitive"] or row["group_id"] is not None
