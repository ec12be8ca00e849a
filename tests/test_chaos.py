"""Workers, nodes and drivers killed in the middle of the stages after extraction: the tables of an undisturbed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from audited import assert_equal_tables
from chaos import KILLED, Account, Kill, Nodes, copy_of, draw, make_features, many_parts, run_all, sabotage
from held import environment

import pipeline
from pipeline import cluster
from pipeline.audit import Audit
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner
from pipeline.storage.interface import TEMPORARY_PREFIX
from pipeline.threads import threads_given_back

SEEDS, MORE_SEEDS = range(1), range(1, 20)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_features(tmp_path_factory.mktemp("synthetic") / "features")


@pytest.fixture(scope="module")
def undisturbed(features: Path) -> Audit:
    with pytest.MonkeyPatch.context() as patch, threads_given_back():
        many_parts(patch.setattr)
        return run_all(copy_of(features, features.with_name("undisturbed")), LocalRunner, SilentReporter())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(), **cluster.WORKER_ENVIRONMENT}.items():
            patch.setenv(name, value)
        made = Nodes()
        yield made
        made.close()


def assert_as_drawn(account: Account, drawn: list[Kill]) -> None:
    """Every kill took place, the workers' in the middle of a task, and a driver ended for each that was killed."""
    assert Counter(kill.what for kill in account.kills) == Counter(kill.what for kill in drawn)
    assert {kill for kill in drawn if kill.what != "worker"} <= {*account.kills}
    assert len({kill.stage for kill in account.kills}) >= len(drawn) - 1
    assert len(account.at_work) == len(account.stages("worker"))
    assert account.codes == [KILLED] * len(account.stages("driver")) + [0]


@pytest.mark.parametrize(
    ("seed", "workers"),
    [*((seed, 2) for seed in SEEDS), *(pytest.param(seed, 4, marks=pytest.mark.slow) for seed in MORE_SEEDS)],
)
def test_killed_at_random(
    undisturbed: Audit, features: Path, nodes: Nodes, tmp_path: Path, seed: int, workers: int
) -> None:
    root, drawn = copy_of(features, tmp_path / "audit"), draw(seed, workers)
    assert {kill.what for kill in drawn} == {"worker", "node", "driver"}
    account = sabotage(nodes, root, drawn)

    assert_as_drawn(account, drawn)
    assert_equal_tables(pipeline.open(root), undisturbed)
    assert intermediates(root) == []


def intermediates(root: Path) -> list[Path]:
    """What lies in the folders of work, but for temporary files of those that were killed: they go a day later."""
    found = [path for folder in ("work", "groups/*/work") for path in root.glob(f"{folder}/**/*.*")]
    return [path for path in found if not path.name.startswith(TEMPORARY_PREFIX)]
