"""Graphs of verified pairs in a root without photographs: what the component stages read, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pipeline.config import config_from
from pipeline.kernels.moments import moments_of
from pipeline.kernels.space import (
    CopySpace,
    SpaceParams,
    normalise_embeddings,
    normalise_signatures,
    space_to_bytes,
    train_copy_space,
)
from pipeline.layout.exact import ExactGroups, Representatives
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import EDGES
from pipeline.layout.parts import part_name
from pipeline.layout.root import Root
from pipeline.layout.spaces import COPY_SPACE
from pipeline.layout.tables import write_table
from pipeline.plan.components import components
from pipeline.plan.session import Session
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Outcome, Task
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.schemas import Kind
from pipeline.storage import StorageConfig

Int64 = NDArray[np.int64]
THRESHOLD = 0.5
LATENT = 24


@dataclass(frozen=True)
class Snapshot:
    """As much of one as the components ask for."""

    total: int


@dataclass(frozen=True)
class Population:
    """Images by a latent direction: embedding and signature both follow it."""

    latent: NDArray[np.float64]

    def take(self, ids: Int64) -> Representatives:
        """Features of some images."""
        embeddings, signatures = features(self.latent[ids])
        nothing = np.zeros(len(ids), np.int64)
        return Representatives(ids, embeddings, signatures, nothing.astype(np.uint64), nothing.astype(np.int32))


@dataclass(frozen=True)
class PlantedInputs(Inputs):
    """Inputs whose snapshot, exact groups and features are planted."""

    total: int = 0
    exact_of: Any = field(default=None, hash=False, compare=False)
    latent: Any = field(default=None, hash=False, compare=False)

    def opened_snapshot(self) -> Any:
        """The number of images."""
        return Snapshot(self.total)

    def exact_groups(self) -> ExactGroups:
        """The planted exact groups."""
        representative = np.array(self.exact_of if self.exact_of is not None else np.arange(self.total), np.int64)
        size = np.bincount(representative, minlength=self.total)
        ids = np.flatnonzero(size[representative] > 1)
        codes = np.zeros(len(ids), np.int32)
        return ExactGroups(ids, representative[ids], ids, codes, codes, np.full(len(ids), -1))

    def population(self) -> Any:
        """The planted features."""
        return Population(self.latent)


@dataclass(frozen=True)
class Space:
    """As much of a chosen space as the components ask for."""

    folder: str
    threshold: float = THRESHOLD


class Recorder(SilentReporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Keeps the line."""
        self.lines.append(line)


class Dying(LocalRunner):
    """Its process ends after so many tasks; `done`: names of those that were carried out, whoever asked."""

    def __init__(self, after: int | None = None, done: list[str] | None = None) -> None:
        self._left = after
        self.done = done if done is not None else []

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields outcomes until the end."""
        for task in tasks:
            if self._left == 0:
                raise KeyboardInterrupt
            if self._left is not None:
                self._left -= 1
            for outcome in super().run([task]):
                if outcome.error is not None:
                    raise outcome.error
                self.done.append(f"{task.function.__name__} {task.name}")
                yield outcome


class Remembers(LocalRunner):
    """Remembers its tasks."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task."""
        listed = [*tasks]
        self.tasks += listed
        return super().run(listed)


@dataclass
class Graph:
    """A root with the verified pairs of a graph."""

    root: Root
    total: int
    edges: str = "edges/how/features/pairs"
    exact: Any = None
    latent: Any = None
    said: list[str] = field(default_factory=list)

    def group(self, cuts: Any = None, runner: LocalRunner | None = None, **limits: Any) -> str:
        """Folder of the groups, made by a session of its own; none is split unless a max_size is among the limits."""
        values = {"sources": ("photos",), "root": self.root.uri, "groups": {"max_size": 10**6, **limits}}
        recorder = Recorder()
        session = Session(config_from(values), self.root, runner or LocalRunner(), recorder, "again")
        inputs = PlantedInputs(self.root, 1, "", "", "", 8, self.total, self.exact, self.latent)
        found = components(session, inputs, self.edges, {"content": "planted"}, Space("spaces/planted"), cuts)
        self.said = recorder.lines
        return found


def on_disk(folder: Path) -> Root:
    """A new root in a folder."""
    folder.mkdir(parents=True)
    return Root(str(folder), StorageConfig())


def write_graph(
    place: Path | Root,
    total: int,
    pairs: Int64,
    similarity: NDArray[np.float64] | None = None,
    kinds: Iterable[Kind] | None = None,
    part: int = 50,
) -> Graph:
    """A root with these pairs (n, 2), all near-identical unless told otherwise, in parts of `part`."""
    graph = Graph(place if isinstance(place, Root) else on_disk(place), total)
    store = graph.root.open()
    store.put(f"spaces/planted/{COPY_SPACE}", space_to_bytes(space()))
    values = similarity if similarity is not None else np.full(len(pairs), 0.9)
    names = [kind.value for kind in kinds] if kinds is not None else [Kind.NEAR_IDENTICAL.value] * len(pairs)
    for lo in range(0, len(pairs), part):
        rows = slice(lo, min(lo + part, len(pairs)))
        count = rows.stop - rows.start
        columns: dict[str, Any] = {name: pa.nulls(count, kind) for name, kind in _types()}
        columns |= {
            "image_id": pairs[rows, 0], "match_id": pairs[rows, 1], "kind": names[rows], "similarity": values[rows],
            "semantic_similarity": values[rows], "signature_similarity": values[rows],
            "is_verified": np.ones(count, bool),
        }  # fmt: skip
        table = pa.table({name: columns[name] for name in EDGES_TABLE.schema.names}, schema=EDGES_TABLE.schema)
        write_table(store, f"{graph.edges}/{part_name(EDGES, rows.start, rows.stop)}", table)
    return graph


def _types() -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in EDGES_TABLE.schema]


@lru_cache(maxsize=1)
def space() -> CopySpace:
    """A copy space for planted features."""
    embeddings, signatures = features(unit(np.random.default_rng(9).normal(size=(4000, LATENT))))
    moments = moments_of(normalise_embeddings(embeddings)), moments_of(normalise_signatures(signatures))
    return train_copy_space(*moments, SpaceParams(embedding_dims=LATENT - 2, signature_dims=LATENT - 2))


@lru_cache(maxsize=1)
def _maps() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(8)
    return rng.normal(size=(LATENT, 64)), rng.normal(size=(LATENT, 256))


def features(latent: NDArray[np.float64]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Embeddings and signatures of latent directions (n, LATENT)."""
    one, other = _maps()
    return (latent @ one).astype(np.float16), np.clip(128 + 25 * (latent @ other), 0, 255).astype(np.uint8)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def scipy_labels(total: int, pairs: Int64) -> Int64:
    """The smallest id of the component of each id."""
    ones = np.ones(len(pairs), np.int8)
    count, label = connected_components(coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(total, total)), False)
    first = np.full(count, total)
    np.minimum.at(first, label, np.arange(total))
    return np.asarray(first[label], np.int64)


def shapes(size: int, seed: int = 0) -> dict[str, Int64]:
    """Graphs over `size` ids that components have trouble with, as pairs (n, 2)."""
    rng = np.random.default_rng(seed)
    ids = np.arange(size)
    order = rng.permutation(size)
    chain = np.stack([ids[:-1], ids[1:]], axis=1)
    cliques = [(a + at, b + at) for at in range(0, size - 20, 20) for a in range(20) for b in range(a)]
    bridges = [(at + 3, at + 17) for at in range(0, size - 60, 40)]
    return {
        "sorted chain": chain,
        "reversed chain": chain[::-1, ::-1].copy(),
        "shuffled chain": rng.permutation(order[chain]),
        "star": np.stack([np.full(size - 1, size - 1), ids[:-1]], axis=1),
        "cliques and bridges": rng.permutation(np.array(cliques + bridges)),
        "random": rng.integers(0, size, (size // 2, 2)),
        "dense": rng.integers(0, size, (2 * size, 2)),
        "empty": np.empty((0, 2), np.int64),
        "a pair": np.array([[size // 2, 1]]),
    }
