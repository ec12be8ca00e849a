"""Equal rows of a hundred thousand images searched by lists (slow tier): partitions, shards, workers, task order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from audited import assert_equal_tables
from chaos import copy_of
from held import environment

import pipeline
from benchmarks.synthetic import World
from benchmarks.synthetic_root import Place, write_synthetic
from pipeline import cluster
from pipeline.audit import Audit
from pipeline.config import AuditConfig, config_from
from pipeline.layout.features import list_features
from pipeline.layout.models import store_model
from pipeline.layout.root import Root, claim
from pipeline.plan import Call, run_audit
from pipeline.plan.preparing import features_folder
from pipeline.plan.session import Session
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Outcome, Runner, Task
from pipeline.threads import threads_given_back

pytestmark = pytest.mark.slow

IMAGES, FRAMES, SHARD = 100_000, 5_000, 7_000


def config_of(root: Path, **neighbours: int) -> AuditConfig:
    """Audit of stored features, without pixels."""
    more = {"exact_limit": 0, "partition_rows": 40_000, "recall_sample": 1_000, **neighbours}
    values = {"sources": (), "root": str(root), "start": "features", "verify": {"pixels": False}}
    return config_from({**values, "neighbours": more})


def make_features(root: Path, shard: int) -> Path:
    """A root with the catalog and features of so many images per part."""
    config = config_of(root)
    session = Session(config, Root(str(root), config.storage), LocalRunner(), SilentReporter(), "")
    claim(session.root)
    folder = features_folder(session, store_model(session.root, "", {}))
    write_synthetic(World(IMAGES), FRAMES, Place(session.root, "/synthetic/images", folder, shard), 2)
    assert len(list_features(session.store, folder).base) == -(-IMAGES // shard)
    return root


def audit_of(config: AuditConfig, start: Callable[[], Runner]) -> Audit:
    """Every stage after extraction."""
    with threads_given_back():
        published = run_audit(config, Call(lambda images, of: start(), SilentReporter(), "the same command"))
    assert published is not None
    return pipeline.open(Path(config.root))


@pytest.fixture(scope="module", autouse=True)
def variables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_features(tmp_path_factory.mktemp("synthetic") / "features", SHARD)


@pytest.fixture(scope="module")
def expected(features: Path) -> Audit:
    audit = audit_of(config_of(copy_of(features, features.with_name("expected"))), partial(cluster.start_ray, 2))
    assert partitions_of(Path(audit.root.uri)) == {3}
    assert audit.summary()["recall"]["copy"]["total"] > 0
    assert audit.table("leaks").num_rows > 0
    assert audit.table("duplicates").num_rows > IMAGES // 100
    return audit


def partitions_of(root: Path) -> set[int]:
    """How many partitions the lists of each space are grouped into."""
    return {int(np.load(path).max()) + 1 for path in root.glob("indexes/*/partitions-*.npy")}


class Shuffled(LocalRunner):
    """One process; the tasks of a stage in an order of their own."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields an outcome per task."""
        listed = [*tasks]
        return super().run(random.Random(7).sample(listed, len(listed)))


@pytest.mark.parametrize(("rows", "partitions"), [(IMAGES, 1), (16_000, 7)])
def test_partitions(features: Path, expected: Audit, tmp_path: Path, rows: int, partitions: int) -> None:
    """One and seven against three."""
    config = config_of(copy_of(features, tmp_path / "root"), partition_rows=rows)
    audit = audit_of(config, partial(cluster.start_ray, 2))

    assert partitions_of(tmp_path / "root") == {partitions}
    assert_equal_tables(audit, expected)


@pytest.mark.parametrize("shard", [1_000, 20_000])
def test_shard_sizes(expected: Audit, tmp_path: Path, shard: int) -> None:
    """Features of 1,000 and 20,000 images per part against those of 7,000."""
    config = config_of(make_features(tmp_path / "root", shard))

    assert_equal_tables(audit_of(config, partial(cluster.start_ray, 2)), expected)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers(features: Path, expected: Audit, tmp_path: Path, workers: int) -> None:
    """One and four against two."""
    config = config_of(copy_of(features, tmp_path / "root"))
    audit = audit_of(config, partial(cluster.start_ray, workers))

    assert audit.published.session["workers"] == workers
    assert_equal_tables(audit, expected)


def test_order_of_tasks(features: Path, expected: Audit, tmp_path: Path) -> None:
    """One process that takes the tasks of every stage in an order of its own."""
    config = config_of(copy_of(features, tmp_path / "root"))

    assert_equal_tables(audit_of(config, Shuffled), expected)
