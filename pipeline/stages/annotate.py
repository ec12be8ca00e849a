"""Annotate stage: gives every catalog row its split and label under the rule, and counts both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.hashing import content_hash
from pipeline.kernels.sampling import mix
from pipeline.layout.annotations import CODES, NAMES, NONE, SCHEMA, STEM, VOCABULARY, load_table
from pipeline.layout.lists import load_given
from pipeline.layout.lookups import lookup_name, write_lookup
from pipeline.layout.parts import list_parts, part_name
from pipeline.layout.root import Root
from pipeline.layout.snapshots import Snapshot, SourceRecord, catalog_rows, read_snapshot, removed_ids, whole_path
from pipeline.layout.tables import json_bytes, read_table, write_table
from pipeline.runner import Counters
from pipeline.sources.addresses import is_absolute
from pipeline.sources.fragments import fragment_uri, list_name, rule_path, shown_name, table_name
from pipeline.sources.labels import Columns, RuleParams, Told, assign, matched
from pipeline.sources.sorted_list import Given
from pipeline.sources.splits import split_of_name, split_of_place
from pipeline.sources.tabular import LabelTable, asked_names, known_names

VERSION = 8
A_BOX = "#(xywh|corners)=[^#]*$"
Name: TypeAlias = tuple[str, "bytes | None", "str | None"]
"""uri, raw_key and fragment of a catalog row."""


@dataclass(frozen=True)
class AnnotateSpec:
    """Offsets [lo, hi) of a snapshot, annotated into a folder; table_hash: of the rule's table as the root has it;
    given: `Snapshot.given`, of which an earlier snapshot of the same rows may have another.
    """

    root: Root
    snapshot: int
    folder: str
    rule: RuleParams
    table_hash: str
    lo: int
    hi: int
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class VocabularySpec:
    """The annotations folder of a snapshot, to be counted; rule and table_hash as in AnnotateSpec."""

    root: Root
    snapshot: int
    folder: str
    rule: RuleParams
    table_hash: str


def annotate(spec: AnnotateSpec) -> Counters:
    """Commits the split and label of offsets [lo, hi); before them, the catalog's rows where they are looked up."""
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    rows = catalog_rows(store, snapshot, spec.lo, spec.hi)
    table = load_table(store, spec.table_hash, spec.rule.table) if spec.rule.table else None
    columns = [rows[column].to_pylist() for column in ("uri", "raw_key", "fragment")]
    named = [*zip(*columns, strict=True)]
    source = rows["source"].to_numpy()
    samples = np.array([label or None for label in rows["label"].to_pylist()], object)
    splits: list[str | None] = [None] * len(named)
    labels: list[str | None] = [None] * len(named)
    rule_rows = np.full(len(named), -1, np.int64)
    for index, record in enumerate(snapshot.sources):
        at = np.flatnonzero(source == index)
        of_source = [named[row] for row in at]
        given = load_given(store, spec.given[index]) if any(spec.given[index : index + 1]) else None
        paths = _paths(of_source, given)
        asked = _asked(of_source, record, given, table) if table else paths
        rule = source_rule(spec.rule, record, snapshot)
        own = _own_splits(of_source, record, given)
        told = Told(own, _listed(of_source, record, given), samples[at].tolist() if samples.any() else None)
        found_splits, found_labels = assign(paths, rule, table, told, asked)
        rule_rows[at] = matched(asked, rule, table)
        for row, split, label in zip(at, found_splits, found_labels, strict=True):
            splits[row], labels[row] = split, label
    values = {
        "image_id": rows["image_id"],
        "split": pa.array(splits, pa.string()).dictionary_encode(),
        "label": pa.array(labels, pa.string()).dictionary_encode(),
        "rule_row": pa.array(rule_rows, mask=rule_rows < 0),
    }
    write_lookup(store, names_key(spec.folder, spec.lo, spec.hi), rows.drop_columns(["image_id"]))
    key = f"{spec.folder}/{part_name(STEM, spec.lo, spec.hi)}"
    write_table(store, key, pa.table(values, schema=SCHEMA))
    return {"images": len(named)}


def _paths(named: Sequence[Name], given: Given | None) -> list[str]:
    """The paths that give catalog rows their splits and labels; whole ones of a list begin below the folder that all of
    these lie in.
    """
    return [_below(rule_path(*name), given) for name in named]


def _below(path: str, given: Given | None) -> str:
    return path.removeprefix(f"{given.folder}/") if given and given.folder else path


def _own_splits(named: Sequence[Name], record: SourceRecord, given: Given | None) -> list[str | None]:
    """The split that the folder of each row names: its source's, and for whole paths of a list that of all of these."""
    inside = split_of_place(record.place if given else record.uri)
    if not given:
        return [inside] * len(named)
    outside = split_of_place(given.folder)
    return [outside if is_absolute(uri) else inside for uri, _, _ in named]


def _listed(named: Sequence[Name], record: SourceRecord, given: Given | None) -> Columns:
    """The splits and labels that a list gives rows; the split that its name says where a row has none of its own."""
    if given is None:
        return None, None
    splits, labels = given.values_of([list_name(*name) for name in named])
    split = name_split(record)
    if split:
        splits = [own or split for own in splits] if splits else [split] * len(named)
    return splits, labels


def _asked(named: Sequence[Name], record: SourceRecord, given: Given | None, table: LabelTable) -> list[str]:
    """What a table is asked for: the paths, whole ones where it has these; a box by its own name where it has boxes.

    A frame and the second member of a name may stand in the table by themselves, and are then asked for before their
    video and the first one; a name that is escaped in its uri may stand there either way.
    """
    boxes = [list_name(*name)[1] if table.has_boxes else "" for name in named]
    texts = [shown_name(*name) for name in named], [uri for uri, _, _ in named]
    ends = [f"#{box}" if box else "" for box in boxes]
    shown, uris = ([table_name(text.removesuffix(end)) for text, end in zip(some, ends, strict=True)] for some in texts)
    usual = shown if table.has_boxes else [table_name(rule_path(*name)) for name in named]
    columns = [usual, *(some for some in (uris, usual, shown) if uris != usual or shown != usual)]
    relative = [[_below(name, given) for name in some] for some in columns]
    whole = [[whole_path(record, name) for name in some] for some in columns] if table.has_whole else relative
    names, paths = (_known([_boxed(some, boxes) for some in every], table) for every in (relative, whole))
    return asked_names(names, paths, table)


def _known(columns: Sequence[list[str]], table: LabelTable) -> list[str]:
    """Of each row the name of the last column that the table has, else that of the first one."""
    return reduce(lambda names, others: known_names(names, others, table), columns[1:], columns[0])


def _boxed(names: Sequence[str], boxes: Sequence[str]) -> list[str]:
    return [fragment_uri(name, box) for name, box in zip(names, boxes, strict=True)]


def names_key(folder: str, lo: int, hi: int) -> str:
    """Key of the catalog rows of offsets [lo, hi)."""
    return f"{folder}/{lookup_name(NAMES, lo, hi)}"


def source_rule(rule: RuleParams, record: SourceRecord, snapshot: Snapshot) -> RuleParams:
    """The rule of one source: all of it in its given split; beside such a source, the others are train by default."""
    if record.split:
        return replace(rule, split=record.split)
    if any(source.split for source in snapshot.sources) and rule.default_split is None:
        return replace(rule, default_split="train")
    return rule


def own_split(record: SourceRecord, given: Given | None) -> str | None:
    """The split that a source's own folder names; of a list, the folder of its whole paths where it has some."""
    return split_of_place(given.folder or record.place if given else record.uri)


def name_split(record: SourceRecord) -> str | None:
    """The split that the name of a list says (`train.txt`)."""
    return split_of_name(record.uri.rpartition("/")[2].partition(".")[0])


def count_vocabulary(spec: VocabularySpec) -> Counters:
    """Commits the codes of every row, and then the sorted splits and labels of the live images with their counts."""
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    gone = pa.array(removed_ids(store, snapshot))
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    matches = _Matches(len(load_table(store, spec.table_hash, spec.rule.table or "").names) if spec.table_hash else 0)
    digests = {"split": 0, "label": 0}
    codes = {name: _Coded(np.full(snapshot.total, NONE, np.int32), {}) for name in ("split", "label")}
    for part in list_parts(store, spec.folder, STEM):
        rows = read_table(store, part.key)
        for name, coded in codes.items():
            coded.add(part.lo, rows[name])
        live = rows.filter(pc.invert(pc.is_in(rows["image_id"], value_set=gone)))
        splits.update(_counts(live["split"]))
        labels.update(_counts(live["label"]))
        matches.add(live)
        for name, digest in digests.items():
            digests[name] = (digest + _digest(live["image_id"].to_numpy(), live[name])) % 2**64
    every = pa.table({name: codes[name].sorted_as(names) for name, names in (("split", splits), ("label", labels))})
    write_lookup(store, f"{spec.folder}/{CODES}", every)
    value = {
        "splits": sorted(splits),
        "labels": sorted(labels),
        "split_counts": [splits[name] for name in sorted(splits)],
        "label_counts": [labels[name] for name in sorted(labels)],
        **_match_facts(spec, snapshot, matches),
        **{f"{name}_digest": f"{digest:016x}" for name, digest in digests.items()},
    }
    store.put(f"{spec.folder}/{VOCABULARY}", json_bytes(value))
    return {
        "splits": len(splits),
        "labels": len(labels),
        "unmatched": matches.unmatched,
        "unused": int((~matches.used).sum()),
    }


@dataclass(frozen=True)
class _Coded:
    """Codes int32 of every row in the order in which names were first met, and those names."""

    codes: NDArray[np.int32]
    met: dict[str, int]

    def add(self, lo: int, column: pa.ChunkedArray) -> None:
        """Codes the rows from offset lo on."""
        coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
        of_names = np.array(
            [self.met.setdefault(name, len(self.met)) for name in coded.dictionary.to_pylist()] + [NONE]
        )
        indices = pc.fill_null(coded.indices, len(of_names) - 1).to_numpy()
        self.codes[lo : lo + len(indices)] = of_names[indices]

    def sorted_as(self, live: Iterable[str]) -> NDArray[np.int32]:
        """The codes as places among the sorted names of live images; NONE for those that no live image has."""
        place = {name: at for at, name in enumerate(sorted(live))}
        places = np.array([*(place.get(name, NONE) for name in self.met), NONE], np.int32)
        found: NDArray[np.int32] = places[self.codes]
        return found


class _Matches:
    """Which rows of the table match a live image, and how many live images nothing matches; the first one's id."""

    def __init__(self, rows: int) -> None:
        self.used = np.zeros(rows, np.bool_)
        self.unmatched, self.first = 0, -1

    def add(self, live: pa.Table) -> None:
        """Counts the annotation rows of live images."""
        rule_rows = pc.fill_null(live["rule_row"], -1).to_numpy()
        if len(self.used):
            self.used[rule_rows[rule_rows >= 0]] = True
        nowhere = np.flatnonzero(rule_rows < 0)
        self.unmatched += len(nowhere)
        if len(nowhere) and self.first < 0:
            self.first = int(live["image_id"].to_numpy()[nowhere[0]])


def _match_facts(spec: VocabularySpec, snapshot: Snapshot, matches: _Matches) -> dict[str, int | str]:
    store = spec.root.open()
    first, unused = "", ""
    if matches.unmatched:
        (row,) = catalog_rows(store, snapshot, matches.first, matches.first + 1).to_pylist()
        first = rule_path(row["uri"], row["raw_key"], row["fragment"])
    missed, unboxed = np.flatnonzero(~matches.used), 0
    if len(missed):
        table = load_table(store, spec.table_hash, spec.rule.table or "")
        if table.has_boxes:
            is_box = pc.match_substring_regex(table.names.take(pa.array(missed)), A_BOX).to_numpy(zero_copy_only=False)
            missed, unboxed = missed[is_box], int((~is_box).sum())
        unused = table.names[int(missed[0])].as_py() if len(missed) else ""
    return {
        "unmatched": matches.unmatched, "unmatched_name": first, "unused": len(missed), "unused_name": unused,
        "unboxed": unboxed,
    }  # fmt: skip


def _digest(ids: NDArray[np.int64], column: pa.ChunkedArray) -> int:
    """A sum over rows, so that it does not depend on how they were cut into parts."""
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    words = np.frombuffer(b"".join(content_hash(name.encode())[:8] for name in names) + bytes(8), np.uint64)
    codes = pc.fill_null(coded.indices, len(names)).to_numpy()
    return int(mix((mix(ids) ^ words[codes]).view(np.int64), 1).sum(dtype=np.uint64))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.cast(pa.string()).drop_null())
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
