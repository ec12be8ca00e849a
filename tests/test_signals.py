"""A real `image-audit run` that is stopped by a signal while a shard is in flight, and run again."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import crashing
import pytest
from audited import assert_equal_tables, run, small_set, write_files
from dying import committed
from held import start_held, writer_of

from pipeline.api import status
from pipeline.audit import Audit


@dataclass(frozen=True)
class Stopped:
    """How a stopped run ended: its exit code, what it said, and its root."""

    code: int
    said: str
    root: Path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(write_files(folder / "photos", small_set()), root=folder / "audit")


def photos_of(audit: Audit) -> Path:
    return Path(audit.root.uri).parent / "photos"


def stopped_by(number: signal.Signals, runner: str, photos: Path, folder: Path) -> Stopped:
    """Starts a run, waits until the second shard is in a worker and another one is committed, and sends the signal to
    the group, as Ctrl-C does.

    The shard waits at the other end of a pipe, so nothing depends on how fast either side is.
    """
    pipe, root = folder / "pipe", folder / "audit"
    os.mkfifo(pipe)
    options = ["run", str(photos), "--root", str(root), "--runner", runner, "--shard-size", "5"]
    process = start_held([*options, *(["--workers", "2"] if runner == "ray" else [])], crashing.POISON)
    held = writer_of(pipe, process)
    while not [*root.glob("features/*/rows-*")]:  # of two workers the other one may still be at the first shard
        assert process.poll() is None
        time.sleep(0.05)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    said, _ = process.communicate()
    os.close(held)
    pipe.unlink()
    return Stopped(process.returncode, said, root)


CASES = [
    ("local", signal.SIGINT, 130),
    ("local", signal.SIGTERM, 143),
    ("local", signal.SIGKILL, -9),
    ("ray", signal.SIGINT, 130),
    pytest.param("ray", signal.SIGTERM, 143, marks=pytest.mark.slow),
    pytest.param("ray", signal.SIGKILL, -9, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("runner", "number", "code"), CASES)
def test_stopped_run_goes_on(
    undisturbed: Audit,
    tmp_path: Path,
    runner: str,
    number: signal.Signals,
    code: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The exit code and the command that resumes; finished shards stay, and the next run ends in the same tables."""
    caplog.set_level("INFO")
    stopped = stopped_by(number, runner, photos_of(undisturbed), tmp_path)
    kept = {key: at for key, at in committed(stopped.root).items() if key.startswith("features/") and "/rows-" in key}

    assert stopped.code == code
    if number is not signal.SIGKILL:
        assert (
            f"stopped; finished parts are kept. Resume with: image-audit run {photos_of(undisturbed)}" in stopped.said
        )
        assert "--shard-size 5" in stopped.said.splitlines()[-1]
        assert "Traceback" not in stopped.said
    assert kept
    assert "features" not in "".join(key for key in kept if "-000000000005-" in key)
    caplog.clear()
    audit = run(photos_of(undisturbed), root=stopped.root, shard_size=5, progress=True)
    was_suspect = runner == "local" and number is signal.SIGKILL  # a stop that was asked for is nobody's fault
    assert any("gets a process of its own" in line for line in caplog.messages) is was_suspect
    assert {key: at for key, at in committed(stopped.root).items() if key in kept} == kept
    assert_equal_tables(audit, undisturbed)
    (extract,) = [stage for stage in audit.published.session["stages"] if stage["stage"] == "extract"]
    assert extract["parts_done_before"] >= len(kept)


def test_status_of_a_stopped_run(undisturbed: Audit, tmp_path: Path) -> None:
    """The stage in flight is unfinished and says how many parts are missing."""
    stopped = stopped_by(signal.SIGKILL, "local", photos_of(undisturbed), tmp_path)
    stages = {row["stage"]: row for row in status(str(stopped.root), {})}

    assert (stages["annotate"]["state"], stages["annotate"]["missing"]) == ("done", 0)
    assert (stages["extract"]["state"], stages["extract"]["parts"], stages["extract"]["missing"]) == (
        "unfinished",
        6,
        5,
    )
    assert list(stages) == ["catalog", "annotate", "vocabulary", "extract"]
