"""Lists a store in a process of its own and prints what that took as JSON: `python benchmarks/s3_child.py URI`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.storage import StorageConfig, open_store, request_counts


def peak_bytes() -> int:
    """Largest resident size; where Linux tells it, without that of the process that this one was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main() -> None:
    store = open_store(sys.argv[1], StorageConfig(region="us-east-1"))
    next(iter(store.list()), None)  # the client is made, and a connection
    requests, cpu, started = request_counts(), time.process_time(), time.perf_counter()
    keys = sum(1 for _ in store.list())
    document = {
        "keys": keys,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_bytes(),
        "requests": dict((request_counts() - requests).requests),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
