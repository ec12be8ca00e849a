"""Choosing how each space is searched: exactly up to a number of images, by trained lists beyond it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.kernels.routing import TWO_LEVELS_FROM, choose_nlist
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.indexes import LISTS, Index, exact_index, read_partitions
from pipeline.layout.inputs import Inputs
from pipeline.layout.spaces import SpaceRecord
from pipeline.plan.session import Session, StageWork
from pipeline.runner import Task
from pipeline.stages import train_lists
from pipeline.stages.train_lists import ListsSpec, PartitionsSpec

LISTS_PER_TASK = 512  # 10 s of one core
SPACES = ("copy", "semantic")


def choose_indexes(session: Session, inputs: Inputs, record: SpaceRecord, representatives: int) -> tuple[Index, Index]:
    """The index of the copy space and that of the semantic one; trained lists are kept while the space is."""
    params = session.config.neighbours
    if choose_nlist(representatives, params.exact_limit) == 1:
        exact = exact_index(max(1, -(-representatives // params.partition_rows)))
        return exact, exact
    specs = [_spec(inputs, record, name) for name in SPACES]
    _train(session, specs)
    keys = _group(session, specs, representatives)
    probes = (params.copy_probes, params.semantic_probes)
    copy, semantic = (_index(session, spec, name, count) for spec, name, count in zip(specs, keys, probes, strict=True))
    return copy, semantic


def _spec(inputs: Inputs, record: SpaceRecord, name: str) -> ListsSpec:
    is_copy = name == "copy"
    nlist = choose_nlist(record.representatives, 0)
    of: dict[str, Any] = {"space": record.folder if is_copy else "semantic", "features": inputs.features}
    folder = "indexes/" + fingerprint("index", train_lists.VERSION, **of, lists=nlist, copy=is_copy)
    return ListsSpec(inputs, record.folder if is_copy else "", nlist, folder)


def _train(session: Session, specs: list[ListsSpec]) -> None:
    """Trains what lists are missing, both spaces at once."""
    waiting = [spec for spec in specs if not session.store.exists(f"{spec.folder}/{LISTS}")]
    large = [spec for spec in waiting if spec.nlist >= TWO_LEVELS_FROM]
    if large:
        tasks = [Task(f"{spec.folder}/{train_lists.SUPERS}", train_lists.train_supers, spec) for spec in large]
        missing = [task for task in tasks if not session.store.exists(task.name)]
        session.run(StageWork("train super lists", "indexes", missing, len(tasks), len(tasks)))
        _train_below(session, large)
    tasks = [
        Task(
            f"{spec.folder}/{LISTS}",
            train_lists.stack if spec.nlist >= TWO_LEVELS_FROM else train_lists.train_one_level,
            spec,
        )
        for spec in waiting
    ]
    session.run(StageWork("train lists", "indexes", tasks, len(specs), len(specs)))


def _train_below(session: Session, specs: list[ListsSpec]) -> None:
    tasks = []
    for spec in specs:
        supers, _ = train_lists.read_supers(spec)
        step = max(1, len(supers) * LISTS_PER_TASK // spec.nlist)
        for first in range(0, len(supers), step):
            part = replace(spec, first=first, last=first + step)
            tasks.append(Task(train_lists.below_key(spec.folder, first), train_lists.train_below, part))
    missing = [task for task in tasks if not session.store.exists(task.name)]
    session.run(StageWork("train lists below", "indexes", missing, len(tasks), len(tasks)))


def _group(session: Session, specs: list[ListsSpec], representatives: int) -> list[str]:
    """Names of the partition maps; they depend on how many vectors there are now, the lists do not."""
    most = session.config.neighbours.partition_rows
    names = [f"partitions-{most}-{representatives}.npy" for _ in specs]
    tasks = []
    for spec, name in zip(specs, names, strict=True):
        made = PartitionsSpec(spec.inputs, spec.folder, representatives, most, name)
        tasks.append(Task(f"{spec.folder}/{name}", train_lists.partition, made))
    missing = [task for task in tasks if not session.store.exists(task.name)]
    session.run(StageWork("group lists", "indexes", missing, len(tasks), len(tasks)))
    return names


def _index(session: Session, spec: ListsSpec, name: str, probes: int) -> Index:
    of = read_partitions(session.store, f"{spec.folder}/{name}")
    return Index(spec.folder, name, len(of), int(of.max(initial=0)) + 1, min(probes, len(of)))
