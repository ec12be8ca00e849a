"""Which lists an audit gets: as many as its space was made for, kept by later audits, anew after much growth."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pyarrow.parquet as pq
from audited import run
from test_bad_neighbours import clouds, names
from test_embeddings import named

from pipeline.audit import Audit
from pipeline.layout.inputs import Inputs
from pipeline.layout.served import read_recipe
from pipeline.layout.spaces import SpaceRecord
from pipeline.plan.indexing import Searched

COUNT = 60
LISTS = {"index": "IVF4", "copy_probes": 2, "semantic_probes": 2}


def test_lists_follow_growth_by_fours() -> None:
    """One per 400 of 120,000; four times as many from 480,001 representatives on, again from 1,920,001."""
    record = SpaceRecord("spaces/one", "", "", 120_000, 1, 1.0, None, {})
    counts = (1, 120_000, 480_000, 480_001, 1_920_000, 1_920_001, 11_582_724)
    nlist = [Searched(cast(Inputs, None), record, "", "", count).nlist for count in counts]

    assert nlist == [300, 300, 300, 1_200, 1_200, 4_800, 19_200]


def folders(audit: Audit) -> tuple[str, str]:
    """Of the lists of both spaces."""
    recipe = read_recipe(audit.root, audit.audit_id)
    return recipe.copy.folder, recipe.semantic.folder


def test_lists_are_kept_with_their_space(tmp_path: Path) -> None:
    """By another threshold too, whose groups are others. An audit that is repeated in a root of its own trains its own:
    both are named by what they were trained on.
    """
    own = tmp_path / "own.parquet"
    pq.write_table(named(names(COUNT), clouds(COUNT)), own)
    root = tmp_path / "root"
    first = run(root=root, embeddings=own, neighbours=LISTS)
    higher = run(root=root, embeddings=own, neighbours={**LISTS, "threshold": 0.99999})
    alone = run(root=tmp_path / "alone", embeddings=own, neighbours={**LISTS, "threshold": 0.99999})

    assert first.table("groups").num_rows > higher.table("groups").num_rows
    assert folders(higher) == folders(first)
    assert folders(alone)[0] == folders(first)[0]
    assert folders(alone)[1] != folders(first)[1]  # of the heads of other groups
    again = run(root=root, embeddings=own, neighbours={**LISTS, "space": "new"})
    assert folders(again)[0] == folders(first)[0]  # the same images give the same space


def test_lists_that_are_gone_are_trained_on_what_there_is(tmp_path: Path) -> None:
    """Their folder is another one where the images are, so that nothing that was made of the old lists is reused."""
    own = tmp_path / "own.parquet"
    pq.write_table(named(names(COUNT), clouds(COUNT)), own)
    root = tmp_path / "root"
    first = run(root=root, embeddings=own, neighbours=LISTS)
    for folder in folders(first):
        (root / folder / "lists.npz").unlink()
    higher = run(root=root, embeddings=own, neighbours={**LISTS, "threshold": 0.99999})

    assert folders(higher)[0] == folders(first)[0]  # the same images
    assert folders(higher)[1] != folders(first)[1]  # the heads of other groups
    assert all((root / folder / "lists.npz").exists() for folder in folders(higher))
