"""What the benchmarks that write a record share: their options, their folder, their document."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fastdup_peer
from benchmarks.report import Owed, begin, finish

Found = dict[str, Any]


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """--peer and its interpreter, --work, --json."""
    parser.add_argument("--peer", choices=("fastdup",), help="measure it side by side, on the same photos")
    parser.add_argument("--fastdup-python", type=Path, default=Path("python3"), help="interpreter that has fastdup")
    parser.add_argument("--work", type=Path, help="folder for everything that is made, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write all numbers there")


def carry_out(
    benchmark: str,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], Found],
    details: Callable[[Found], str],
    owed: Callable[[Found], Sequence[Owed]],
) -> None:
    """Measures in the folder of the options, prints the details and the table, writes the document.

    Raises SystemExit before anything is measured where the peer that is asked for is not installed.
    """
    if options.peer:
        fastdup_peer.require_fastdup(options.fastdup_python)
    document = begin(benchmark)
    with tempfile.TemporaryDirectory(prefix=f"{benchmark}-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        document["results"] = found = measure(options, work)
        sys.stdout.write(f"\n{details(found)}\n")
        finish(document, owed(found), options.json)
