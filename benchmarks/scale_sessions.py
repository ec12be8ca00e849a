"""The account of a benchmark that may be stopped and called again: each session writes its own while it runs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.plan.session import Session
from pipeline.runner import peak_resident_bytes

INTERVAL = 5.0
FEATURES = "features"


class Sessions:
    """The sessions so far, the running one last, as a file that a killed session leaves behind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def write(self) -> None:
        """Writes all of them, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        waiting = self.path.with_suffix(".writing")
        waiting.write_text(json.dumps(self.sessions, indent=1))
        waiting.replace(self.path)

    def account(self, images: int) -> dict[str, Any]:
        """Sums of seconds and largest peaks over all sessions, in all and by stage."""
        stages: defaultdict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for stage in (stage for session in self.sessions for stage in session["stages"]):
            known = stages[stage["stage"]]
            for name in ("wall_seconds", "cpu_seconds", "attempts"):
                known[name] += stage[name]
            known["cpu_ms_per_image"] = 1e3 * known["cpu_seconds"] / images
            known["peak_task_bytes"] = max(known["peak_task_bytes"], stage["peak_task_bytes"])
        total = {name: sum(session[name] for session in self.sessions) for name in ("wall_seconds", "cpu_seconds")}
        peaks = ("peak_task_bytes", "driver_bytes", "peak_disk_bytes", "peak_disk_bytes_without_features")
        return {
            "images": images,
            **total,
            "cpu_ms_per_image": 1e3 * total["cpu_seconds"] / images,
            **{name: max(session[name] for session in self.sessions) for name in peaks},
            "stages": {name: dict(values) for name, values in stages.items()},
        }


class Watch:
    """Keeps the account of a running session, and looks at the disk, every five seconds."""

    def __init__(self, session: Session, sessions: Sessions) -> None:
        self._session, self._sessions = session, sessions
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._disk, self._disk_without = 0, 0
        self._looking = threading.Lock()
        sessions.sessions.append({})

    def __enter__(self) -> None:
        self._look()
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _look_on(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        with self._looking:
            features, others = disk_bytes(self._sessions.path.parents[1])
            self._disk = max(self._disk, features + others)
            self._disk_without = max(self._disk_without, others)
            self._sessions.sessions[-1] = self._account()
            self._sessions.write()

    def _account(self) -> dict[str, Any]:
        records = [record for record in list(self._session.records) if record.attempts]
        in_tasks = sum(record.cpu_seconds for record in records)
        driver = time.process_time() - self._cpu
        is_local = self._session.runner.name == "local"
        return {
            "started_at": self._session.started_at,
            "runner": self._session.runner.name,
            "workers": self._session.runner.workers,
            "wall_seconds": time.perf_counter() - self._started,
            "cpu_seconds": driver if is_local else in_tasks + driver,
            "driver_cpu_seconds": driver - in_tasks if is_local else driver,
            "driver_bytes": peak_resident_bytes(),
            "peak_task_bytes": max((record.peak_task_bytes for record in records), default=0),
            "peak_disk_bytes": self._disk,
            "peak_disk_bytes_without_features": self._disk_without,
            "stages": [
                {
                    "stage": record.stage,
                    "wall_seconds": record.seconds,
                    "cpu_seconds": record.cpu_seconds,
                    "peak_task_bytes": record.peak_task_bytes,
                    "attempts": record.attempts,
                    "counters": dict(record.counters),
                }
                for record in records
            ],
        }


def disk_bytes(root: Path) -> tuple[int, int]:
    """Bytes of the files under a root: of its features, and of all others. What vanishes meanwhile counts nothing."""
    features = _folder_bytes(root / FEATURES)
    return features, _folder_bytes(root) - features


def _folder_bytes(folder: Path) -> int:
    total, waiting = 0, [str(folder)]
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                total += _size(entry)
    return total


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [*entries]
    except FileNotFoundError:
        return []


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
