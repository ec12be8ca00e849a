"""Certifying an approximate search: its recall measured, and the images that look furthest searched exactly."""

from __future__ import annotations

from dataclasses import replace

from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.neighbours import RECALL, TAIL
from pipeline.plan.joining import SpaceJoin, run_ranges
from pipeline.runner import Task
from pipeline.stages import certify as stage


def certify(joining: SpaceJoin, candidates: str, neighbours: str, meant: int) -> tuple[str, str]:
    """Folders of the recall and of the exact neighbours of the tail; joining: of the semantic space."""
    session = joining.session
    key = {"candidates": candidates, "neighbours": neighbours}
    recall = "neighbours/" + fingerprint("recall", stage.VERSION, **key)
    spec = stage.RecallSpec(session.root, candidates, neighbours, recall)
    session.run_one("recall", recall, (RECALL,), Task(recall, stage.measure_recall, spec))
    tail = "neighbours/" + fingerprint("tail", stage.VERSION, **key, meant=meant)
    if session.store.exists(f"{tail}/{TAIL}"):
        session.run_one("outlier tail", tail, (TAIL,), Task(tail, stage.merge_tail, None))
    else:
        _search_tail(joining, neighbours, meant, tail)
    for info in [*session.store.list(f"{tail}/")]:  # of this run, or of one that was killed right here
        if info.key != f"{tail}/{TAIL}":
            session.store.delete(info.key)
    return recall, tail


def _search_tail(joining: SpaceJoin, neighbours: str, meant: int, folder: str) -> None:
    session, visits = joining.session, joining.require_visits()
    k = session.config.neighbours.semantic_k
    spec = stage.TailSpec(joining.inputs, visits, joining.made_of, neighbours, k, meant, folder)
    session.run_one("outlier queries", folder, (stage.QUERIES,), Task(folder, stage.choose_tail, spec))
    tasks = [
        Task(stage.tail_key(folder, number), stage.search_tail, replace(spec, partition=number))
        for number in range(visits.partitions)
    ]
    run_ranges(session, "outlier search", folder, tasks)
    session.run_one("outlier tail", folder, (TAIL,), Task(folder, stage.merge_tail, spec))
