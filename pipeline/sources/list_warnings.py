"""What is to be said of a list, or of annotations, once all of it is read."""

from __future__ import annotations

from pipeline.sources.coco_rows import NAMELESS, SEVERAL
from pipeline.sources.listed import BAD, BLANK, COMMENTS, Tally
from pipeline.sources.repeats import Repeats
from pipeline.sources.yolo_rows import BEYOND

_LABELS = {
    NAMELESS: "their label is its id",
    BEYOND: "their label is its number",
    SEVERAL: "they have no label of it",
}
"""Kinds that are not left out, and what label they get."""


def list_warnings(name: str, tally: Tally, repeats: Repeats) -> list[str]:
    """Lines for what was left out, for odd labels and bad boxes, and for rows that say otherwise than what stays."""
    kinds = [kind for kind in tally.counts if kind not in (BLANK, COMMENTS, BAD, *_LABELS)]
    said = [f"{name}: left out {tally.only(kinds)}"] if kinds else []
    said += [f"{name}: {tally.only([kind])}; {label}" for kind, label in _LABELS.items() if tally.counts[kind]]
    if tally.counts[BAD]:
        said.append(f"{name}: {tally.only([BAD])}; most of them become rows with a status")
    if repeats.conflicts:
        first = repeats.conflicts[0].slice(0, 1).to_pylist()[0]
        count = sum(batch.num_rows for batch in repeats.conflicts)
        said.append(
            f"{name}: {count:,} rows give an image or box another label or split than the row that stays, such as "
            f"{first['row']:,} of {first['address']!r}, where {first['kept_row']:,} stays"
        )
    return said
