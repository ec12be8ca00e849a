"""What a driver knows of the tasks that it has out: attempts, and how long one may take."""

from __future__ import annotations

import math
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pipeline.runner import Task

STRAGGLER_SECONDS = 600.0
LAST_SECONDS = 120.0  # of a twin, and of a piece of a task that hung
STRAGGLER_FACTOR = 6.0
UNKNOWN_SECONDS = 0.25  # per item while no part of the stage is done: 30 times what an extraction takes
NODES = 5  # that may die under a task before it is taken for the cause; a spot fleet loses some for its own reasons
FAILURES = 5  # of Ray itself to carry a task out, such as a node that comes or goes and cannot set a worker up


@dataclass
class Attempt:
    """A try of a task. `begun`: when a worker was first seen to be at it, None while it waits for a core.

    `is_last`: an attempt before it, or the task that it is a piece of, hung; it is given less time, and no twin.
    `nodes`: that died under it; `failures`: of Ray to carry it out.
    """

    task: Task
    number: int = 1
    nodes: int = 0
    failures: int = 0
    is_last: bool = False
    key: str = ""
    submitted: float = 0.0
    begun: float | None = None
    twin: Attempt | None = None


@dataclass
class Book:
    """The driver's account of one call of `run`.

    `resting`: attempts that are tried again from the next look on. `rates`: seconds per item of the parts that are
    done; `rate`: their median at the latest look. `is_idle`: no node was left to work then. `silent`: attempts in a row
    for which a store had no answer.
    """

    waiting: deque[Attempt]
    resting: list[Attempt] = field(default_factory=list)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    submitted: int = 0
    looked: float = 0.0
    is_idle: bool = False
    silent: int = 0
    running: dict[Any, Attempt] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    rates: list[float] = field(default_factory=list)
    rate: float | None = None


def patience(book: Book, attempt: Attempt) -> float:
    """Seconds that an attempt may take, by what others of its stage took; for ever where nothing is known to compare
    with and nothing can be cut, such as the one task of a stage over all images.
    """
    task = attempt.task
    if book.rate is None and task.halves is None:
        return math.inf
    per_item = UNKNOWN_SECONDS if book.rate is None else STRAGGLER_FACTOR * book.rate
    return (LAST_SECONDS if attempt.is_last else STRAGGLER_SECONDS) + per_item * task.items
