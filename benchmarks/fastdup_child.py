"""Runs fastdup and writes what it took; run by fastdup's own interpreter, so it imports nothing of this project.

`python fastdup_child.py INPUT WORK_DIR JSON [KEY=NUMBER ...]`: the keys go to `fastdup.run`; without any, its defaults.
"""

import json
import resource
import sys
import time


def main() -> None:
    given, work, target = sys.argv[1:4]
    options = {name: float(value) for name, value in (word.split("=") for word in sys.argv[4:])}
    started = time.perf_counter()
    import fastdup

    imported = time.perf_counter()
    fastdup.run(input_dir=given, work_dir=work, **options)
    ended = time.perf_counter()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    document = {
        "version": fastdup.__version__,
        "import_seconds": imported - started,
        "run_seconds": ended - imported,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak_bytes": max(usage.ru_maxrss for usage in usages) * 1024,
    }
    with open(target, "w", encoding="utf-8") as sink:  # noqa: PTH123 - as few imports as can be
        json.dump(document, sink)


if __name__ == "__main__":
    main()
