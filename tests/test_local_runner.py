"""The runner of this process: a suspect task apart, a bug, a signal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import crashing
import pytest
from audited import assert_equal_tables, run, small_set, write_files

from pipeline import pulse
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.plan import preparing
from pipeline.runner import LocalRunner, Task


def test_peak_memory_is_that_of_the_task(tmp_path: Path) -> None:
    """Not of the process that started its own, whose peak a child's `ru_maxrss` begins with; not of the task before."""
    held = bytes(b"1" * 400_000_000)
    asks = "from pipeline.runner import peak_resident_bytes; print(peak_resident_bytes())"
    apart = int(subprocess.run([sys.executable, "-c", asks], check=True, capture_output=True).stdout)
    assert 10_000_000 < apart < len(held)
    del held

    specs = [(str(tmp_path), 600, 601), (str(tmp_path), 1, 2)]
    large, small = LocalRunner().run(iter([Task(f"hold-{spec[1]}", crashing.hold, spec) for spec in specs]))
    assert large.peak_bytes > small.peak_bytes + 400_000_000


def test_bug_in_a_part_is_shown_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other parts are done; the run ends with 70 and the traceback, and is like any other once it is mended."""
    photos = write_files(tmp_path / "photos", small_set())
    monkeypatch.setattr(preparing.extract, "extract", crashing.buggy_extract)
    words = ["run", str(photos), "--root", str(tmp_path / "audit"), "--runner", "local", "--shard-size", "4", "--quiet"]
    code = main(words)
    said = capsys.readouterr().err
    monkeypatch.undo()

    assert code == 70
    assert "stage extract: 1 of 7 parts failed" in said
    assert 'raise ValueError("operands could not be broadcast")' in said
    assert "This is a bug: please report the traceback." in said
    assert len(list(tmp_path.glob("audit/features/*/rows-*"))) == 6
    assert_equal_tables(run(photos, root=tmp_path / "audit", shard_size=4), run(photos, root=tmp_path / "other"))


def test_suspect_task_is_done_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies takes its task down to the one item, one that hangs counts as dead, an error comes back."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    folder = str(tmp_path)
    more = {"halves": crashing.halves, "quarantine": crashing.quarantine, "is_suspect": True}
    tasks = [
        Task("before", crashing.commit, (folder, 0, 1)),
        Task("poisoned", crashing.poisoned, (folder, 6, 8), items=2, **more),  # type: ignore[arg-type]
        Task("after", crashing.commit, (folder, 8, 9)),
        Task("fails", crashing.fails, (folder, 99, "usage")),
    ]
    outcomes = list(LocalRunner().run(tasks))

    assert (tmp_path / "done-0-1").read_text() == str(os.getpid())
    assert {(tmp_path / name).read_text() for name in ("done-6-7", "done-8-9")} & {str(os.getpid())} == set()
    assert (tmp_path / "crashed-7-8").exists()
    assert (tmp_path / "deaths").read_text().split() == ["6-8", "7-8", "7-8"]
    assert sum(outcome.task.items for outcome in outcomes) == 5
    assert isinstance(outcomes[-1].error, UsageError)
    assert [outcome.error for outcome in outcomes[:-1]] == [None] * 4


def test_suspect_task_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for for ever."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr("pipeline.runner.PATIENCE_SECONDS", 0.0)
    os.mkfifo(tmp_path / "pipe")
    task = Task("a", crashing.hung, (str(tmp_path), 7, 8), is_suspect=True)
    (outcome,) = LocalRunner().run([task])
    (settled,) = LocalRunner().run([replace(task, quarantine=crashing.quarantine)])

    assert "died or hung twice" in str(outcome.error)
    assert settled.counters == {"quarantined": 1}
    assert (tmp_path / "timeout-7-8").exists()


def test_task_that_hangs_here_is_cut_down_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has to end the run: it goes on in other processes at once, with the pieces of what hung, and says so.

    The thread that hangs ends without a commit once it goes on after all.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name in ("IMAGE_SECONDS", "APART_SECONDS"):
        monkeypatch.setattr(f"pipeline.runner.{name}", 0.0)
    os.mkfifo(tmp_path / "pipe")
    folder, here, before = str(tmp_path), str(os.getpid()), {*threading.enumerate()}
    more = {"halves": crashing.halves, "quarantine": crashing.quarantine}
    ranges = ((0, 4), (4, 8), (8, 12))
    tasks = [Task(f"{at}", crashing.hung_at_image, (folder, *at), items=4, **more) for at in ranges]  # type: ignore[arg-type]
    outcomes = list(LocalRunner().run(tasks))
    (left,) = {*threading.enumerate()} - before
    os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
    left.join()

    assert [path.name for path in tmp_path.glob("timeout-*")] == ["timeout-7-8"]
    done = {path.name: path.read_text() == here for path in tmp_path.glob("done-*")}
    assert done == {"done-0-4": True, "done-4-5": False, "done-5-6": False, "done-6-7": False, "done-8-12": False}
    waits = sorted(path.name.split("-", 1)[1].replace(here, "here") for path in tmp_path.glob("waiting-*"))
    assert [name.split("-", 1)[1] for name in waits] == ["7-8", "4-8"]
    assert waits[-1] == "here-4-8"
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert sum(outcome.task.items for outcome in outcomes) == 12
    said = [record.getMessage() for record in caplog.records]
    assert said == ["(4, 8): over 0 s at one image; going on in other processes", "(4, 8)/3: its process hung"]


def test_what_takes_long_between_images_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that waits, as on a slow store, is never taken for an image that hangs: its store has its own patience."""
    monkeypatch.setattr("pipeline.runner.IMAGE_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.pulse.LOOK_SECONDS", 0.01)
    looked = threading.Semaphore(0)

    class Looked(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            looked.release()
            return super().wait(timeout)

    def slow(spec: Any) -> Any:
        for _ in range(5):
            looked.acquire()
        return {"items": 1}

    monkeypatch.setattr(pulse.threading, "Event", Looked)
    (outcome,) = LocalRunner().run([Task("slow", slow, None, quarantine=crashing.quarantine)])

    assert (outcome.error, outcome.counters, outcome.attempts) == (None, {"items": 1}, 1)


@pytest.mark.parametrize("cause", ["away", "memory"])
def test_suspect_task_is_tried_again_like_any_other(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away for two attempts, or a lack of memory, fails no part."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    tasks = [Task(cause, crashing.fails, (str(tmp_path), 2, cause), is_suspect=True)]
    (outcome,) = LocalRunner().run(tasks)

    assert (outcome.error, outcome.attempts, outcome.counters) == (None, 3, {"tried": 3})


def test_local_runner_lets_a_signal_through() -> None:
    """Ctrl-C is no failure of a part."""

    def interrupted(spec: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalRunner().run([Task("a", interrupted, None)]))
