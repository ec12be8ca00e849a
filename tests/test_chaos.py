"""Workers, nodes and drivers killed in the middle of the stages after extraction: the tables of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from audited import assert_equal_tables
from chaos import KILLED, Account, Nodes, copy_of, draw, make_features, run_all, sabotage
from held import environment

import pipeline
from pipeline import cluster
from pipeline.audit import Audit
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, restore_threads

SEEDS, MORE_SEEDS = range(2), range(2, 20)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "features"
    make_features(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(features: Path) -> Audit:
    root = copy_of(features, features.with_name("undisturbed"))
    run_all(root, LocalRunner, SilentReporter())
    restore_threads()
    return pipeline.open(root)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(), **cluster.WORKER_ENVIRONMENT}.items():
            patch.setenv(name, value)
        made = Nodes()
        yield made
        made.close()


def assert_as_drawn(account: Account, seed: int) -> None:
    """Every kill took place, the workers' in the middle of a task, and a driver ended for each that was killed."""
    assert sorted(account.kills, key=str) == sorted(draw(seed), key=str)
    assert len(account.at_work) == len(account.stages("worker")) == 4
    assert account.codes == [KILLED] * len(account.stages("driver")) + [0]
    assert len({kill.stage for kill in account.kills}) == 6


@pytest.mark.parametrize("seed", [*SEEDS, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MORE_SEEDS)])
def test_killed_at_random(undisturbed: Audit, features: Path, nodes: Nodes, tmp_path: Path, seed: int) -> None:
    root = copy_of(features, tmp_path / "audit")
    account = sabotage(nodes, root, seed)

    assert_as_drawn(account, seed)
    assert_equal_tables(pipeline.open(root), undisturbed)
    assert not [path for folder in ("work", "groups/*/work") for path in root.glob(f"{folder}/**/*.*")]
