"""Real processes of `image-audit` that wait in the middle of a shard for somebody at the other end of a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HELD = """
import signal
import sys
import crashing
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a script inherit that it is ignored
from pipeline import cli
from pipeline.plan import preparing
preparing.extract.extract = crashing.held_extract
sys.exit(cli.main(sys.argv[1:]))
"""


def environment(**more: str) -> dict[str, str]:
    """The environment with this checkout and its tests importable."""
    here = Path(__file__).parent
    folders = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": ":".join(filter(None, folders)), **more}


def start(words: list[str]) -> subprocess.Popen[str]:
    """An image-audit of its own; what it says on both streams goes into one pipe."""
    return _started([sys.executable, "-m", "pipeline.cli", *words], environment())


def start_held(words: list[str], offset: int) -> subprocess.Popen[str]:
    """An image-audit whose shard with this offset waits while the pipe beside its root is held open."""
    return _started([sys.executable, "-c", HELD, *words], environment(HELD_OFFSET=str(offset)))


def _started(command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """What the process said; it ended with this code."""
    said = process.communicate()[0]
    assert process.returncode == code, said
    return said


def writer_of(pipe: Path, process: subprocess.Popen[str]) -> int:
    """The pipe opened for writing, once a worker reads from it."""
    while process.poll() is None:
        with suppress(OSError):  # nobody reads yet
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise AssertionError(process.communicate()[0])
