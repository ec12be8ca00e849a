"""Runs `image-audit` here and writes what only its process knows: its own CPU, and how long Ray took to start and stop.

`python benchmarks/driver.py FILE run photos/ --root audit/`: everything after FILE is the command line of image-audit.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STARTED = time.perf_counter()


def timed(function: Callable[..., Any], into: dict[str, float], name: str) -> Callable[..., Any]:
    """The function, adding the seconds of its calls to `into[name]`."""

    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            into[name] = into.get(name, 0.0) + time.perf_counter() - started

    return call


def main() -> int:
    seconds: dict[str, float] = {}
    from pipeline import api, cli

    start_runner = api.start_runner

    def start(*arguments: Any) -> Any:
        runner = timed(start_runner, seconds, "runner_start")(*arguments)
        runner.close = timed(runner.close, seconds, "runner_stop")
        return runner

    api.start_runner = start
    seconds["imports"] = time.perf_counter() - _STARTED
    code = cli.main(sys.argv[2:])
    used = resource.getrusage(resource.RUSAGE_SELF)
    document = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    Path(sys.argv[1]).write_text(json.dumps(document))
    return code


if __name__ == "__main__":
    sys.exit(main())
