"""Choosing how each space is searched: exactly up to a number of images, by trained lists beyond it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.kernels.routing import TWO_LEVELS_FROM, choose_nlist
from pipeline.layout.exact import LARGE_PARENT, read_summary
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.indexes import LISTS, Index, exact_index, read_partitions
from pipeline.layout.inputs import Inputs
from pipeline.layout.siblings import are_apart
from pipeline.layout.spaces import SpaceRecord
from pipeline.layout.tables import read_json, write_json
from pipeline.plan.joining import run_ranges
from pipeline.plan.session import Session
from pipeline.runner import Task
from pipeline.stages import train_lists
from pipeline.stages.train_lists import ListsSpec, PartitionsSpec

GRAPH_ROWS = 262_144  # vectors of a graph, which holds them as float32, once for each split: 0.4 GB and its links
GROWTH = 4
LISTS_PER_TASK = 512  # 10 s of one core


@dataclass(frozen=True)
class Searched:
    """What is searched: so many representatives of some content (a digest), in the copy space of a record, or, of one
    of each group, in the semantic one. groups: their folder, "" for the copy space.
    """

    inputs: Inputs
    record: SpaceRecord
    groups: str
    content: str
    representatives: int

    @property
    def space(self) -> str:
        """Folder of the copy space, "" for the semantic one."""
        return "" if self.groups else self.record.folder

    @property
    def nlist(self) -> int:
        """Lists: one per 400 representatives that the space was trained on; four times as many, once or again, where
        there are over four times as many now, so that nightly additions leave the lists as they are.
        """
        trained = max(1, self.record.representatives)
        while self.representatives > GROWTH * trained:
            trained *= GROWTH
        return choose_nlist(trained, 0)


def choose_index(session: Session, searched: Searched, probes: int) -> Index:
    """How a space is searched; trained lists are kept while the space is."""
    params, representatives = session.config.neighbours, searched.representatives
    kind, number = params.kind
    is_small = not representatives or (kind == "auto" and choose_nlist(representatives, params.exact_limit) == 1)
    if is_small or kind in ("Flat", "HNSW"):
        links = number if kind == "HNSW" else 0
        most = min(params.partition_rows, GRAPH_ROWS) if links else params.partition_rows
        metric = "" if searched.space else params.metric
        return exact_index(max(1, -(-representatives // most)), links, metric)
    spec = _require_lists(session, searched, min(number, representatives) if kind == "IVF" else searched.nlist)
    name = _group(session, spec, representatives)
    of = read_partitions(session.store, f"{spec.folder}/{name}")
    return Index(spec.folder, name, len(of), int(of.max(initial=0)) + 1, min(probes, len(of)))


def _require_lists(session: Session, searched: Searched, nlist: int) -> ListsSpec:
    """The lists that an earlier audit trained in this space, or new ones, which later audits keep.

    Their folder is named by all that they are trained on: where they are gone, those of these images are others.
    """
    store, space = session.store, searched.space
    kept = f"{searched.record.folder}/{'copy' if space else 'semantic'}-lists-{nlist}.json"
    known = read_json(store, kept) if store.exists(kept) else {}
    if known and store.exists(f"{known['folder']}/{LISTS}"):
        return ListsSpec(searched.inputs, space, known["groups"], nlist, known["folder"])
    of: dict[str, Any] = {"space": searched.record.folder, "groups": searched.groups, "content": searched.content}
    summary = read_summary(store, searched.inputs.exact)
    if searched.groups and summary.large and are_apart(searched.inputs, searched.groups):
        of["siblings"] = LARGE_PARENT
    folder = "indexes/" + fingerprint("index", train_lists.VERSION, lists=nlist, **of)
    spec = ListsSpec(searched.inputs, space, searched.groups, nlist, folder)
    _train(session, spec)
    write_json(store, kept, {"folder": folder, "groups": searched.groups})
    return spec


def _train(session: Session, spec: ListsSpec) -> None:
    """Trains the lists where they are missing."""
    name = spec.name
    is_large = spec.nlist >= TWO_LEVELS_FROM
    if is_large and not session.store.exists(f"{spec.folder}/{LISTS}"):
        supers = Task(spec.folder, train_lists.train_supers, spec)
        session.run_one(f"train super lists ({name})", spec.folder, (train_lists.SUPERS,), supers)
        _train_below(session, spec)
    task = Task(spec.folder, train_lists.stack if is_large else train_lists.train_one_level, spec)
    session.run_one(f"train lists ({name})", spec.folder, (LISTS,), task)


def _train_below(session: Session, spec: ListsSpec) -> None:
    deals = []
    for first, last in train_lists.deals(spec.nlist):
        part = replace(spec, first=first, last=last)
        deals.append(Task(train_lists.sample_key(spec.folder, first), train_lists.deal, part, last - first))
    run_ranges(session, f"deal sample ({spec.name})", spec.folder, deals)
    supers, _ = train_lists.read_supers(spec)
    step = max(1, len(supers) * LISTS_PER_TASK // spec.nlist)
    tasks = []
    for first in range(0, len(supers), step):
        part = replace(spec, first=first, last=first + step)
        tasks.append(Task(train_lists.below_key(spec.folder, first), train_lists.train_below, part))
    run_ranges(session, f"train lists below ({spec.name})", spec.folder, tasks)


def _group(session: Session, spec: ListsSpec, representatives: int) -> str:
    """Name of the partition map; it depends on how many vectors there are now, the lists do not."""
    most = session.config.neighbours.partition_rows
    name = f"partitions-{most}-{representatives}.npy"
    made = PartitionsSpec(spec.inputs, spec.folder, representatives, most, name)
    session.run_one(f"group lists ({spec.name})", spec.folder, (name,), Task(spec.folder, train_lists.partition, made))
    return name
