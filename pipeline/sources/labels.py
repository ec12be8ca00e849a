"""The rule that gives each path its split and its label: from folders, from a pattern, or from a table.

The label of a path is the first folder below the one that names its split (`train/cat/siamese/1.jpg` -> `cat`, as in
ImageFolder), or the first folder of the source where none names a split. Of a file that lies directly in its split
folder it is the folder above that (`cat/train/1.jpg` -> `cat`), unless that only says that it holds images; without one
it has no label. What a pattern or a table leaves out (say, it names only labels) comes from folders.

An archive stands in the path of its members like a folder (`shards/train-0012.tar/cat/1.jpg`). Its name is a split
where one of its words is (`train-0012`, `ILSVRC2012_img_val`). Else it is a label where its members lie in no folder of
their own (`n01440764.tar/1.jpg`), unless a number of its own ends it, as it ends the names of shards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.sources.fragments import archive_stem
from pipeline.sources.splits import canonical_split, find_split, split_of_name
from pipeline.sources.tabular import LabelTable, match_rows, values_at

Column: TypeAlias = list[str | None]
Columns: TypeAlias = "tuple[Column | None, Column | None]"
"""Splits and labels that a list gives; None where it gives none at all."""
_GROUPS = frozenset({"split", "label"})
_WORDS = re.compile(r"[^A-Za-z]+")
_SHARD = re.compile(r"(^|[^A-Za-z0-9])\d+$")
HOLDERS = frozenset({"data", "dataset", "image", "images", "img", "imgs", "jpegimages", "photos", "pictures"})
"""Folders above a split that are no label, in lower case: `images/train/1.jpg` is how YOLO lays its sets out."""


class Told(NamedTuple):
    """What a source says of its images beside their paths.

    splits: what its own folder names (`splits.split_of_place`), which goes behind the folders in their paths. listed:
    what its list gives, which goes before folders. labels: what WebDataset samples give, which goes before folders and
    behind a list. None where there are none.
    """

    splits: Column | None = None
    listed: Columns = (None, None)
    labels: Column | None = None


NOTHING_TOLD = Told()


@dataclass(frozen=True)
class RuleParams:
    """How the paths of one source get their split and label.

    pattern: a regular expression, searched in the relative path, with the named groups `split`, `label` or both.
    table: address of a CSV or Parquet file with the columns `filename` and `split`, `label` or both.
    split: the split of every path, whatever else names one (the source given as `--test`).
    default_split: the split of a path that nothing else gives one.
    Raises UsageError for a pattern beside a table, a pattern that does not compile or that names other groups.
    """

    pattern: str | None = None
    table: str | None = None
    split: str | None = None
    default_split: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.pattern is not None:
            problems += _pattern_problems(self.pattern)
            if self.table is not None:
                problems.append(
                    f"a pattern ({self.pattern!r}) and a table ({self.table!r}) were both given for splits and labels, "
                    "but only one can rule: drop one of them"
                )
        for field in ("table", "split", "default_split"):
            if getattr(self, field) == "":
                problems.append(f"{field} of the split and label rule is empty: give it a value or leave it out")
        if problems:
            raise UsageError("; ".join(problems))


def _pattern_problems(pattern: str) -> list[str]:
    try:
        groups = set(re.compile(pattern).groupindex)
    except re.error as error:
        return [f"pattern {pattern!r} is not a regular expression ({error}): correct it at that position"]
    if not groups or groups - _GROUPS:
        named = ", ".join(sorted(groups)) or "none"
        return [
            f"pattern {pattern!r} names the groups: {named}; wanted `split`, `label` or both: "
            "write them as (?P<split>...) and (?P<label>...)"
        ]
    return []


def assign(
    paths: Sequence[str],
    rule: RuleParams,
    table: LabelTable | None = None,
    told: Told = NOTHING_TOLD,
    names: Sequence[str] | None = None,
) -> tuple[Column, Column]:
    """Split and label of each path (relative to its source, `/` between folders); None where there is none.

    `table` is what `tabular.read_label_table` made of `rule.table`; `told` goes behind what the rule says of a path;
    `names` what the table is asked for, where that is not the path. A pure function of each path alone, so any cut of a
    listing into chunks gives the same. Raises UsageError where the rule names a table and none is passed.
    """
    splits, labels = _from_folders(paths)
    splits = _filled(splits, told.splits)
    if told.labels is not None:
        labels = _filled(told.labels, labels)
    given = told.listed
    splits, labels = given[0] or splits, given[1] or labels
    if rule.table is not None:
        splits, labels = _from_table(names or paths, _loaded(rule, table), splits, labels)
    elif rule.pattern is not None:
        splits, labels = _from_pattern(paths, rule.pattern, splits, labels)
    splits, labels = _filled(splits, given[0]), _filled(_filled(labels, given[1]), told.labels)
    if rule.split is not None:
        return [rule.split] * len(splits), labels
    if rule.default_split is not None:
        return [split or rule.default_split for split in splits], labels
    return splits, labels


def matched(paths: Sequence[str], rule: RuleParams, table: LabelTable | None = None) -> npt.NDArray[np.int64]:
    """Row of the table that names each path, int64 (len(paths),), -1 where none; 0 where a pattern matches it.

    Folders match every path: 0.
    """
    if rule.table is not None:
        return match_rows(paths, _loaded(rule, table))
    if rule.pattern is not None:
        search = re.compile(rule.pattern).search
        return np.fromiter((-(search(path) is None) for path in paths), np.int64, len(paths))
    return np.zeros(len(paths), np.int64)


def describe(rule: RuleParams, own: str | None = None) -> str:
    """One line that names the rule, for the run to print; `own`: the split that the folder of the source names."""
    folder_split = "split = the first folder named train, val, test, dev, eval or holdout"
    folder_split += f", else {own} as the source's own folder says" if own else ""
    folder_label = "label = the folder below it, else the one above it; the first folder where none names a split"
    if rule.table is not None:
        text = f"splits and labels from the table {rule.table}; what it has no column for, from folders"
    elif rule.pattern is not None:
        groups = re.compile(rule.pattern).groupindex
        parts = [f"{' and '.join(sorted(groups, reverse=True))} from the pattern {rule.pattern}"]
        parts += [folder_split] if "split" not in groups else []
        parts += [folder_label.replace("it,", "the split folder,", 1)] if "label" not in groups else []
        text = "; ".join(parts)
    else:
        text = f"splits and labels from folder names: {folder_split}; {folder_label}"
    if rule.split is not None:
        return f"{text}; every image of this source is in split {rule.split}"
    return f"{text}; split {rule.default_split} where none is named" if rule.default_split is not None else text


def _loaded(rule: RuleParams, table: LabelTable | None) -> LabelTable:
    if table is None:
        raise UsageError(f"the rule takes splits and labels from {rule.table}, which was not loaded: load it first")
    return table


def _filled(column: Column, given: Column | None) -> Column:
    """What the first column says of each path, else the second."""
    return column if given is None else [own or listed for own, listed in zip(column, given, strict=True)]


def _from_folders(paths: Sequence[str]) -> tuple[Column, Column]:
    found = [_folder_rule(path.rpartition("/")[0]) for path in paths]
    return [split for split, _ in found], [label for _, label in found]


# A listing is sorted, so neighbours share their folder: 0.3 us per path with the cache, 1.9 us without.
@lru_cache(maxsize=65_536)
def _folder_rule(folder: str) -> tuple[str | None, str | None]:
    folders = _without_archives([name for name in folder.split("/") if name not in ("", ".", "..")])
    found = find_split(folders)
    if found is None:
        return None, folders[0] if folders else None
    place, split = found
    if place + 1 < len(folders):
        return split, folders[place + 1]
    above = folders[place - 1] if place else None
    return split, None if above and above.lower() in HOLDERS else above


def _without_archives(folders: list[str]) -> list[str]:
    """The folders, each archive among them replaced by what its name says."""
    at = next((at for at, name in enumerate(folders) if archive_stem(name)), None)
    if at is None:
        return folders
    stem, inside = archive_stem(folders[at]), folders[at + 1 :]
    if split := next(filter(None, map(split_of_name, _WORDS.split(stem))), None):
        return [*folders[:at], split, *inside[bool(inside) and split_of_name(inside[0]) == split :]]
    if inside:
        return [*folders[:at], *inside[len(inside) > 1 and inside[0] == stem :]]
    is_label = not _SHARD.search(stem) and stem.lower() not in HOLDERS
    return [*folders[:at], stem] if is_label else folders[:at]


def _from_pattern(paths: Sequence[str], pattern: str, splits: Column, labels: Column) -> tuple[Column, Column]:
    compiled = re.compile(pattern)
    matches = [compiled.search(path) for path in paths]
    if "split" in compiled.groupindex:
        named = [match["split"] if match else None for match in matches]
        splits = [canonical_split(name) if name else None for name in named]
    if "label" in compiled.groupindex:
        labels = [(match["label"] or None) if match else None for match in matches]
    return splits, labels


def _from_table(paths: Sequence[str], table: LabelTable, splits: Column, labels: Column) -> tuple[Column, Column]:
    rows = match_rows(paths, table)
    splits = splits if table.splits is None else values_at(table.splits, rows)
    return splits, labels if table.labels is None else values_at(table.labels, rows)
