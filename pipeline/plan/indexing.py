"""Choosing how each space is searched: exactly up to a number of images, by trained lists beyond it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.kernels.routing import TWO_LEVELS_FROM, choose_nlist
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.indexes import LISTS, Index, exact_index, read_partitions
from pipeline.layout.inputs import Inputs
from pipeline.layout.spaces import SpaceRecord
from pipeline.plan.joining import run_ranges
from pipeline.plan.session import Session
from pipeline.runner import Task
from pipeline.stages import train_lists
from pipeline.stages.train_lists import ListsSpec, PartitionsSpec

GRAPH_ROWS = 262_144  # vectors of a graph, which holds them as float32, once for each split: 0.4 GB and its links
LISTS_PER_TASK = 512  # 10 s of one core


def choose_index(session: Session, spec: ListsSpec, representatives: int, probes: int) -> Index:
    """How a space is searched that holds so many representatives; trained lists are kept while the space is."""
    params = session.config.neighbours
    kind, number = params.kind
    is_small = not representatives or (kind == "auto" and choose_nlist(representatives, params.exact_limit) == 1)
    if is_small or kind in ("Flat", "HNSW"):
        links = number if kind == "HNSW" else 0
        most = min(params.partition_rows, GRAPH_ROWS) if links else params.partition_rows
        metric = "" if spec.space else params.metric
        return exact_index(max(1, -(-representatives // most)), links, metric)
    if kind == "IVF":
        nlist = min(number, representatives)
        spec = replace(spec, nlist=nlist, folder=_folder(spec.inputs, spec.space, nlist))
    _train(session, spec)
    name = _group(session, spec, representatives)
    of = read_partitions(session.store, f"{spec.folder}/{name}")
    return Index(spec.folder, name, len(of), int(of.max(initial=0)) + 1, min(probes, len(of)))


def lists_of_space(inputs: Inputs, record: SpaceRecord, groups: str | None) -> ListsSpec:
    """The lists of the copy space, or, of heads of `groups`, of the semantic one: as many as when it was trained."""
    nlist = choose_nlist(record.representatives, 0)
    space = record.folder if groups is None else ""
    return ListsSpec(inputs, space, groups or "", nlist, _folder(inputs, space, nlist))


def _folder(inputs: Inputs, space: str, nlist: int) -> str:
    of: dict[str, Any] = {"space": space, "features": inputs.features, "lists": nlist}
    return "indexes/" + fingerprint("index", train_lists.VERSION, **of)


def _train(session: Session, spec: ListsSpec) -> None:
    """Trains the lists where they are missing."""
    name = spec.name
    is_large = spec.nlist >= TWO_LEVELS_FROM
    if is_large and not session.store.exists(f"{spec.folder}/{LISTS}"):
        supers = Task(spec.folder, train_lists.train_supers, spec)
        session.run_one(f"train super lists ({name})", spec.folder, (train_lists.SAMPLE, train_lists.SUPERS), supers)
        _train_below(session, spec)
    task = Task(spec.folder, train_lists.stack if is_large else train_lists.train_one_level, spec)
    session.run_one(f"train lists ({name})", spec.folder, (LISTS,), task)


def _train_below(session: Session, spec: ListsSpec) -> None:
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
