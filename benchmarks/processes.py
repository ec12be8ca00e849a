"""Running a command in a process of its own and accounting for it and everything it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
INTERVAL = 0.25
WORKER = ("default_worker.py", "ray::")
RAYS_OWN = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "gcs_server", "raylet", "ray/dashboard", "monitor.py")


class CommandFailed(RuntimeError):
    """A measured command ended with another exit code than 0; holds the end of its output."""


@dataclass
class Usage:
    """CPU seconds and peak resident bytes of the processes of one role (the largest of them), last seen alive."""

    processes: int = 0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass
class Measured:
    """One command: wall seconds from start to exit, output, and what each role used.

    Roles: `main` is the command itself; `workers` are processes that Ray started to run tasks; `ray` is what Ray runs
    for itself; `other` is the rest. A process is sampled every 0.25 s, so its last moments are not counted.
    """

    seconds: float
    output: str
    roles: dict[str, Usage] = field(default_factory=dict)


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Runs a command to its end. Raises CommandFailed unless it exits with 0."""
    started = time.perf_counter()
    child = subprocess.Popen(
        list(command),
        env={**os.environ, **product_environment(), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    seen: dict[tuple[int, float], tuple[str, float, int]] = {}
    ended = threading.Event()
    sampler = threading.Thread(target=_sample, args=(child.pid, ended, seen), daemon=True)
    sampler.start()
    output, _ = child.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    sampler.join()
    if child.returncode:
        raise CommandFailed(f"{' '.join(command)} exited with {child.returncode}:\n{output[-3000:]}")
    return Measured(seconds, output, _by_role(seen))


def product_environment() -> dict[str, str]:
    """What the product's processes need to import this checkout."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def _sample(pid: int, ended: threading.Event, seen: dict[tuple[int, float], tuple[str, float, int]]) -> None:
    while not ended.wait(INTERVAL):
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in tree:
            try:
                times, resident = process.cpu_times(), process.memory_info().rss
                role = "main" if process.pid == pid else _role(" ".join(process.cmdline()))
                key = (process.pid, process.create_time())
            except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                continue
            # a worker is renamed to ray::<task> after it started
            known = seen.get(key, ("", 0.0, 0))
            named = known[0] if known[0] == "workers" else role
            seen[key] = (named, times.user + times.system, max(known[2], resident))


def _role(command: str) -> str:
    """Ray renames its processes: an agent and a worker that runs a task are both `ray::<name>`."""
    program = command.partition(" --")[0]
    if any(word in program for word in RAYS_OWN):
        return "ray"
    return "workers" if any(word in program for word in WORKER) else "other"


def _by_role(seen: Mapping[tuple[int, float], tuple[str, float, int]]) -> dict[str, Usage]:
    roles: dict[str, Usage] = {}
    for role, cpu, resident in seen.values():
        usage = roles.setdefault(role, Usage())
        usage.processes += 1
        usage.cpu_seconds += cpu
        usage.peak_bytes = max(usage.peak_bytes, resident)
    return roles
