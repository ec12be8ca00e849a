"""Flags: what several commands share, and how they say what they did."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import api
from pipeline.printing import write_out
from pipeline.progress import Reporter, SilentReporter, visible_reporter
from pipeline.storage import RedactingFilter

EXAMPLES = """examples:
  image-audit run photos/ --root audit/
  image-audit run s3://bucket/train --test s3://bucket/val --root s3://bucket/audits
  image-audit show leaks --root audit/ --top 20
  image-audit search photo.jpg --root audit/
  image-audit status --root audit/
  image-audit demo

exit codes: 0 done, 2 wrong call or config, 3 storage, artifact, model or cluster, 4 incomplete (the message
holds the command that resumes), 130/143 stopped, 70 a bug"""


def add_command(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    """A command's parser; flags are never guessed from their beginning, which another flag may share one day."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.register("action", None, Once)
    return parser


class Once(argparse.Action):
    """A flag with one value, which argparse would keep the last of. A second one is refused."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - as argparse calls it
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keeps the value."""
        given = namespace.__dict__.setdefault("given_flags", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(
                self, f"given twice, and takes one value: drop {values!r} or the one before it"
            )
        given.add(self.dest)
        setattr(namespace, self.dest, values)


_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt]?)(i?)b?)?", re.IGNORECASE)


def byte_count(text: str) -> int:
    """The bytes that a flag says: `1000`, `10kB`, `1.5 GB`, `2GiB`. Raises ArgumentTypeError for anything else."""
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; wanted one such as 1000, 10kB or 1.5GB")
    number, unit, is_binary = found.groups(default="")
    return int(float(number) * (1024 if is_binary else 1000) ** " kmgt".index(unit.lower() or " "))


def add_runner(parser: argparse.ArgumentParser) -> None:
    """Where a command that does work runs."""
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--runner", choices=("auto", "local", "ray"), default="auto", help="default: by the work there is"
    )
    group.add_argument("--address", help="Ray cluster to join: auto, or host:port of its head")
    group.add_argument("--workers", type=int, help="Ray workers on this machine (default: one per core)")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_root(parser: argparse.ArgumentParser) -> None:
    """The root and how to reach it."""
    group = parser.add_argument_group("storage (credentials come the usual AWS ways)")
    group.add_argument("--root", help="where the audit is kept (default: audit)")
    group.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="server of minio://NAME/...; may be repeated",
    )
    group.add_argument("--endpoint-url", help="endpoint of s3://")
    group.add_argument("--region", help="AWS region")
    group.add_argument("--sync-to-local", metavar="FOLDER", help="keep copies of remote images and archives there")
    group.add_argument(
        "--sync-budget", type=byte_count, metavar="BYTES", help="that the copies may take (default: 100GB)"
    )


def storage_values(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of storage."""
    values: dict[str, Any] = {
        "region": options.region, "endpoint_url": options.endpoint_url,
        "sync_to_local": options.sync_to_local and str(Path(options.sync_to_local).absolute()),
        "sync_budget": options.sync_budget,
    }  # fmt: skip
    if options.endpoint:
        values["endpoints"] = dict(api.endpoint(item) for item in options.endpoint)
    return {name: value for name, value in values.items() if value is not None}


def reporter(quiet: bool) -> Reporter:
    """Who is told of the progress; logging goes to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING if quiet else logging.INFO, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter())
    return SilentReporter() if quiet else visible_reporter()


def command(given: Sequence[str]) -> str:
    """A command line of ours."""
    return f"image-audit {shlex.join(given)}"


def say(text: str) -> None:
    """Prints lines."""
    write_out([f"{text}\n".encode("utf-8", "surrogateescape")])
