"""More candidates than may be compared: the most similar ones are, and the others are counted and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from audited import LOCAL, rows, run, small_set, write_files

import pipeline
from pipeline.audit import Audit
from pipeline.layout.neighbours import CANDIDATE_SCHEMA
from pipeline.layout.pairs import pairs_key
from pipeline.layout.root import Root
from pipeline.layout.tables import read_table, write_table
from pipeline.plan import searching
from pipeline.stages import limit_pairs
from pipeline.storage import StorageConfig, open_store

FLOOR = {"threshold": 0.05}


def pairs_of(audit: Audit) -> list[tuple[float, int, int]]:
    """Similarity and images of the pairs whose pixels were compared."""
    found = [row for row in rows(audit, "duplicates") if row["kind"] != "same_bytes"]
    return [(row["similarity"], row["image_id"], row["match_id"]) for row in found]


def test_equal_pairs_over_the_limit_are_kept_and_counted(tmp_path: Path) -> None:
    """Five of similarity 1 where two may be: nothing tells them apart, so all five stay and the others are left out."""
    store, ranges = open_store(str(tmp_path), StorageConfig()), ((0, 10), (10, 20))
    similarity = np.array([1.0, 0.5, 1.0, 1.0, 0.999, 1.0, 1.0])
    for number, (lo, hi) in enumerate(ranges):
        part = slice(0, 4) if number == 0 else slice(4, 7)
        count = len(similarity[part])
        columns = [np.arange(lo, lo + count), np.arange(lo, lo + count) + 50, *[similarity[part]] * 3]
        write_table(store, pairs_key("pairs/found", lo, hi), pa.table(columns, schema=CANDIDATE_SCHEMA))
    spec = limit_pairs.LimitSpec(Root(str(tmp_path), StorageConfig()), "pairs/found", ranges, 2, "pairs/kept")

    assert limit_pairs.decide(spec) == {"left_out": 2}
    kept = []
    for number, (lo, hi) in enumerate(ranges):
        limit_pairs.keep_similar(replace(spec, number=number))
        kept += read_table(store, pairs_key("pairs/kept", lo, hi))["image_id"].to_pylist()
    assert kept == [0, 2, 3, 11, 12]


def test_the_most_similar_pairs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_files(tmp_path / "photos", small_set(20))
    every = run(photos, root=tmp_path / "all", neighbours=FLOOR)
    ranked = sorted(pairs_of(every), reverse=True)
    images = every.summary()["images"]["live"]
    assert len(ranked) > images  # else nothing would be left out
    assert every.summary()["duplicates"]["left_out"] == 0

    monkeypatch.setattr(searching, "LEAST_LIMIT", 1)
    limited = pipeline.run(photos, root=tmp_path / "few", where=LOCAL, neighbours=FLOOR | {"pairs_per_image": 1.0})

    assert limited is not None
    facts = limited.summary()["duplicates"]
    kept = sorted(pairs_of(limited), reverse=True)
    assert kept == [pair for pair in ranked if pair[0] >= kept[-1][0]]
    assert images - 3 <= len(kept) <= images  # equal similarities stay together
    assert facts["left_out"] == len(ranked) - len(kept)
    assert facts["is_complete"] is False


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_files(tmp_path / "photos", small_set(6))
    first = run(photos, root=tmp_path / "root")
    assert first.summary()["duplicates"]["is_complete"] is True
    monkeypatch.setattr(searching, "LEAST_LIMIT", len(rows(first, "duplicates")))
    second = run(photos, root=tmp_path / "root", neighbours={"pairs_per_image": 1e-3})
    assert second.audit_id == first.audit_id
