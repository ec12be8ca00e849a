"""From verified edges to groups: one task where the pairs fit it, else star forests in parallel, reduced in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.layout.edges import each_in_order
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.groups import (
    FOREST,
    FOREST_IDS,
    LARGE,
    PIECES,
    SPANS,
    SPLIT,
    SPLITS,
    STARS,
    forest_key,
    forest_ranges,
    read_large,
    read_split_summary,
)
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import EDGES
from pipeline.layout.parts import Part, list_parts, part_name
from pipeline.layout.tables import count_rows
from pipeline.plan.joining import delete_folder, run_ranges
from pipeline.plan.session import Session
from pipeline.plan.spaces import ChosenSpace
from pipeline.runner import Task
from pipeline.stages import contract, group, split

TOUCHED_BYTES = 20  # of an id in a union over a list of ids: the list, twice while it is made, and its root
MOST_ROUNDS = 200  # a chain in random order over a million ids took 17


@dataclass(frozen=True)
class Cuts:
    """How the work is cut; no row depends on it. pairs: per star forest; fan_in: forests that are merged at once;
    ids: per part of a forest.
    """

    pairs: int = 1 << 22
    fan_in: int = 16
    ids: int = FOREST_IDS


@dataclass(frozen=True)
class _Work:
    """The groups to be made, and how."""

    session: Session
    spec: group.GroupSpec
    cuts: Cuts
    pairs: int

    @property
    def folder(self) -> str:
        """Of what is gone once the groups are there."""
        return f"{self.spec.folder}/work"

    def pair_ranges(self) -> list[tuple[int, int]]:
        """The ranges of pairs that are reduced by one task each."""
        return [(lo, min(lo + self.cuts.pairs, self.pairs)) for lo in range(0, self.pairs, self.cuts.pairs)]


def components(
    session: Session, inputs: Inputs, edges: str, key: dict[str, str], space: ChosenSpace, cuts: Cuts | None = None
) -> str:
    """Folder of the groups: connected components of exact copies and near-duplicates, large wide ones split."""
    params, cuts = session.config.groups, cuts or Cuts()
    rule = {name: getattr(params, name) for name in ("max_size", "far_below", "max_far_share", "step", "max_split")}
    of = {"edges": edges, "exact": key, "space": space.folder, "threshold": space.threshold}
    folder = f"groups/{fingerprint('group', group.VERSION, **of, rule=rule, ids=cuts.ids)}"
    ranges = tuple(forest_ranges(inputs.opened_snapshot().total, cuts.ids))
    spec = group.GroupSpec(inputs, edges, space.folder, space.threshold, params, folder, ranges)
    pairs = max((part.hi for part in list_parts(session.store, edges, EDGES)), default=0)
    files = [SPLIT, SPLITS, *(part_name(FOREST, *bounds) for bounds in ranges)]
    if pairs <= cuts.pairs:
        session.run_one("components", folder, files, Task(folder, split.group, spec))
    else:
        _in_stages(_Work(session, spec, cuts, pairs), [f"{folder}/{name}" for name in files])
    _say_split(session, folder)
    return folder


def _say_split(session: Session, folder: str) -> None:
    found = read_split_summary(session.store, folder)
    if found["components"]:
        session.reporter.say(
            f"components: {found['components']:,} large groups of {found['different_images']:,} different images "
            f"(the largest {found['largest']:,}) were held together by chains of pairs; split into "
            f"{found['pieces']:,} at a higher similarity"
        )
    if found["left_whole"]:
        session.reporter.say(
            f"components: {found['left_whole']:,} more stay whole, for groups.max_split allows no more; their members "
            "say is_chained. A higher neighbours.threshold finds fewer pairs"
        )


def _in_stages(work: _Work, files: Sequence[str]) -> None:
    session, spec = work.session, work.spec
    tasks = []
    if not {info.key for info in session.store.list(f"{spec.folder}/")}.issuperset(files):
        near = _near(work, _merged(work, _stars(work)))
        _split(work, near)
        for lo, hi in spec.ranges:
            part = group.FinishSpec(spec, near, work.folder, lo, hi)
            tasks.append(Task(forest_key(spec.folder, (lo, hi)), group.finish, part))
    run_ranges(session, "components", spec.folder, tasks)
    delete_folder(session.store, work.folder)


def _stars(work: _Work) -> list[Part]:
    folder, root = f"{work.folder}/leaves", work.spec.inputs.root
    parts = [Part(lo, hi, 0, f"{folder}/{part_name(STARS, lo, hi)}") for lo, hi in work.pair_ranges()]
    specs = [group.StarSpec(root, work.spec.edges, folder, part.lo, part.hi) for part in parts]
    tasks = [
        Task(part.key, group.reduce_edges, spec, part.hi - part.lo) for part, spec in zip(parts, specs, strict=True)
    ]
    run_ranges(work.session, "stars", folder, tasks)
    return parts


def _merged(work: _Work, parts: list[Part]) -> list[Part]:
    """Fewer forests: up to `fan_in` neighbours at once, as long as there are many and two of them fit one task."""
    level = 0
    while len(parts) > 2 * work.cuts.fan_in:
        level += 1
        folder = f"{work.folder}/merged-{level}"
        batches = _batches(work, parts)
        if len(batches) == len(parts):
            break
        merged, tasks = [], []
        for batch in batches:
            name = part_name(STARS, batch[0].lo, batch[-1].hi)
            merged.append(Part(batch[0].lo, batch[-1].hi, 0, f"{folder}/{name}"))
            spec = replace(_unite_spec(work, batch, folder), name=name)
            tasks.append(Task(merged[-1].key, group.merge_stars, spec, batch[-1].hi - batch[0].lo))
        run_ranges(work.session, f"merge stars {level}", folder, tasks)
        parts = merged
    return parts


def _batches(work: _Work, parts: Sequence[Part]) -> list[list[Part]]:
    batches: list[list[Part]] = [[]]
    for part in parts:
        if batches[-1] and (len(batches[-1]) == work.cuts.fan_in or not _fits(work, [*batches[-1], part])):
            batches.append([])
        batches[-1].append(part)
    return batches


def _fits(work: _Work, parts: Sequence[Part]) -> bool:
    """Whether one task can hold the union of some forests: a root for every id there is, or for those with an edge."""
    budget, store = work.spec.params.memory_bytes, work.session.store
    if 4 * work.spec.total <= budget:
        return True
    rows = sum(each_in_order(store, parts, lambda part: count_rows(store, part.key)))
    return 2 * rows * TOUCHED_BYTES + work.spec.total // 4 <= budget


def _unite_spec(work: _Work, parts: Sequence[Part], folder: str) -> group.UniteSpec:
    spec = work.spec
    return group.UniteSpec(spec.inputs.root, tuple(parts), spec.total, spec.params.memory_bytes, folder)


def _near(work: _Work, parts: list[Part]) -> str:
    """Folder of the forest of all near-duplicates."""
    if not _fits(work, parts):
        return _in_rounds(work, parts)
    folder = f"{work.folder}/near"
    names = [part_name(FOREST, *bounds) for bounds in work.spec.ranges]
    spec = replace(_unite_spec(work, parts, folder), ranges=work.spec.ranges)
    work.session.run_one("unite", folder, names, Task(folder, group.unite_stars, spec, work.pairs))
    return folder


def _in_rounds(work: _Work, parts: list[Part]) -> str:
    """Rounds over files until one changes nothing; the last two are kept, and a killed run goes on with its round."""
    store, ranges = work.session.store, work.spec.ranges
    last = _last_round(work)
    while last == 0 or not _is_settled(work, last):
        if last == MOST_ROUNDS:
            raise RuntimeError(f"components: {last} rounds over {len(ranges)} ranges have not settled")
        before = _round_folder(work, last) if last else ""
        folder = _round_folder(work, last + 1)
        tasks = []
        for number, bounds in enumerate(ranges):
            spec = contract.RoundSpec(
                work.spec.inputs.root, ranges, number, before, () if last else tuple(parts), folder
            )
            beside = (contract.strays_key(folder, bounds),)
            tasks.append(Task(forest_key(folder, bounds), contract.contract_range, spec, beside=beside))
        run_ranges(work.session, f"contract {last + 1}", folder, tasks)
        last += 1
        delete_folder(store, _round_folder(work, last - 2))
    return _round_folder(work, last)


def _round_folder(work: _Work, number: int) -> str:
    return f"{work.folder}/round-{number:03d}"


def _last_round(work: _Work) -> int:
    """The last round of which every file is there; 0 before the first."""
    have = {info.key for info in work.session.store.list(f"{work.folder}/round-")}
    for number in range(MOST_ROUNDS, 0, -1):
        folder = _round_folder(work, number)
        files = (key(folder, bounds) for bounds in work.spec.ranges for key in (forest_key, contract.strays_key))
        if have.issuperset(files):
            return number
    return 0


def _is_settled(work: _Work, number: int) -> bool:
    keys = [forest_key(_round_folder(work, number), bounds) for bounds in work.spec.ranges]
    store = work.session.store
    return all([*each_in_order(store, keys, lambda key: contract.is_settled(store, key))])


def _split(work: _Work, near: str) -> None:
    session, spec = work.session, work.spec
    whole = split.LargeSpec(spec, near, work.folder)
    session.run_one("large groups", work.folder, (LARGE,), Task(work.folder, split.find_large, whole))
    if not read_large(session.store, work.folder).is_split.any():
        return
    tasks = []
    for lo, hi in work.pair_ranges():
        key = f"{work.folder}/{part_name(SPANS, lo, hi)}"
        tasks.append(Task(key, split.reduce_spans, split.SpanSpec(spec, near, work.folder, lo, hi), hi - lo))
    run_ranges(session, "spans", work.folder, tasks)
    task = Task(work.folder, split.split_groups, whole, work.pairs)
    session.run_one("split groups", work.folder, (PIECES,), task)
