"""What a run shows while it works: bars in a terminal, plain lines elsewhere, nothing where it is not asked for."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINE_SECONDS = 10.0


class Reporter(Protocol):
    """Is told of stages and of items that were done."""

    def say(self, line: str) -> None:
        """A line for the user."""
        ...

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins; `done` of its `total` items were there already; a total of 0 is not known."""
        ...

    def advance(self, items: int) -> None:
        """Some items of the stage were done."""
        ...

    def finish(self, seconds: float) -> None:
        """The stage ended."""
        ...


class SilentReporter:
    """Says nothing."""

    def say(self, line: str) -> None:
        """Drops the line."""

    def start(self, stage: str, total: int, done: int) -> None:
        """Shows nothing."""

    def advance(self, items: int) -> None:
        """Shows nothing."""

    def finish(self, seconds: float) -> None:
        """Shows nothing."""


class LineReporter:
    """One plain line per stage, and one every ten seconds of a long one: for logs, or whatever else takes a line."""

    def __init__(self, write: Callable[[str], None] = log.info) -> None:
        self._write = write
        self._stage, self._total, self._done, self._fresh = "", 0, 0, 0
        self._started = self._said = time.monotonic()

    def say(self, line: str) -> None:
        """Writes the line."""
        self._write(line)

    def start(self, stage: str, total: int, done: int) -> None:
        """Remembers the stage."""
        self._stage, self._total, self._done, self._fresh = stage, total, done, 0
        self._started = self._said = time.monotonic()

    def advance(self, items: int) -> None:
        """Writes the count, the rate and the time left every ten seconds."""
        self._done += items
        self._fresh += items
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS:
            self._said = now
            rate = self._fresh / (now - self._started)
            left = (self._total - self._done) / rate if rate else 0.0
            self._write(f"{self._stage}: {self._done} of {self._total}, {rate:.0f}/s, {left:.0f} s left")

    def finish(self, seconds: float) -> None:
        """Writes what the stage took."""
        rate = f", {self._fresh / seconds:.0f}/s" if self._fresh and seconds > 0.01 else ""
        before = self._done - self._fresh
        done = f"{self._fresh} of {self._total - before} in " if self._total else ""
        others = f"; {before} done before" if before else ""
        self._write(f"{self._stage}: {done}{seconds:.1f} s{rate}{others}")


class BarReporter:
    """A bar per stage with its rate and the time left: for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>9}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
        )
        self._task: TaskID | None = None
        self._fresh, self._started = 0, time.monotonic()

    def say(self, line: str) -> None:
        """Prints the line above the bars."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def start(self, stage: str, total: int, done: int) -> None:
        """Adds a bar."""
        self._bar.start()
        self._task = self._bar.add_task(stage, total=total or None, completed=done, rate="")
        self._fresh, self._started = 0, time.monotonic()

    def advance(self, items: int) -> None:
        """Moves the bar."""
        self._fresh += items
        seconds = max(time.monotonic() - self._started, 1e-3)
        if self._task is not None:
            self._bar.update(self._task, advance=items, rate=f"{self._fresh / seconds:,.0f}/s")

    def finish(self, seconds: float) -> None:
        """Closes the bar."""
        self._bar.stop()
        if self._task is not None:
            self._bar.update(self._task, visible=False, description=f"{seconds:.1f} s")
        self._task = None


def visible_reporter() -> Reporter:
    """Bars on a terminal; else lines, to the log where somebody listens to it and to stderr where nobody does."""
    console = Console(stderr=True)
    if console.is_terminal:
        return BarReporter(console)
    return LineReporter(log.info if log.isEnabledFor(logging.INFO) and log.hasHandlers() else _to_stderr)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
