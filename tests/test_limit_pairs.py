"""More candidates than may be compared: the most similar ones are, and the others are counted and said."""

from __future__ import annotations

from pathlib import Path

import pytest
from audited import LOCAL, rows, run, small_set, write_files

import pipeline
from pipeline.plan import searching

FLOOR = {"threshold": 0.05}


def test_the_most_similar_pairs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_files(tmp_path / "photos", small_set(20))
    every = run(photos, root=tmp_path / "all", neighbours=FLOOR)
    ranked = sorted(
        (row["similarity"] for row in rows(every, "duplicates") if row["kind"] != "same_bytes"), reverse=True
    )
    images = every.summary()["images"]["live"]
    assert len(ranked) > images  # else nothing would be left out
    assert every.summary()["duplicates"]["left_out"] == 0

    monkeypatch.setattr(searching, "LEAST_LIMIT", 1)
    limited = pipeline.run(photos, root=tmp_path / "few", where=LOCAL, neighbours=FLOOR | {"pairs_per_image": 1.0})

    assert limited is not None
    facts = limited.summary()["duplicates"]
    kept = sorted(
        (row["similarity"] for row in rows(limited, "duplicates") if row["kind"] != "same_bytes"), reverse=True
    )
    assert kept == ranked[: len(kept)]
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
