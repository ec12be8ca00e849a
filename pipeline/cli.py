"""The command line: run, show, search, index, export, status, demo."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import pipeline
import pipeline.blas  # before numpy is loaded by any of the following
from pipeline import api, search_commands, show
from pipeline.audit import summary_lines, table_to_show
from pipeline.config import AuditConfig, config_from
from pipeline.errors import AuditError, Stopped, UsageError
from pipeline.flags import EXAMPLES, add_command, add_root, add_runner, command, reporter, say, storage_values
from pipeline.printing import ReaderGone, format_of
from pipeline.pulse import end_with
from pipeline.renamed import unknown_words
from pipeline.run_flags import add_run, config_values
from pipeline.storage import is_remote, redact

BUG = 70
TERMINATED = 128 + signal.SIGTERM
Made = TypeVar("Made")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Every error that a user can act on is one message on stderr."""
    return end_with(_code_of(arguments))


def _code_of(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parsed(given)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = options.command(options, given)
        return code
    except AuditError as error:
        sys.stderr.write(f"image-audit: {redact(str(error))}\n")
        return error.exit_code
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.stderr.write(f"image-audit: stopped; finished parts are kept. Resume with: {command(given)}\n")
        # the code of a SystemExit is not asked for: Ray's wait may turn ours into one of its own, with 1
        return TERMINATED if isinstance(stop, SystemExit) else Stopped.exit_code
    except ReaderGone:
        return 0
    except Exception:  # noqa: BLE001 - the border of the process: what is left is a bug, shown whole
        sys.stderr.write(f"{redact(traceback.format_exc())}image-audit: this is a bug; finished parts are kept.\n")
        return BUG


def _parsed(given: list[str]) -> argparse.Namespace:
    """What the parser makes of the words. Ends with 2 for those that it does not know; fastdup's are answered."""
    parser = build_parser()
    options, left = parser.parse_known_args(given)
    if left:
        parser.error(unknown_words(left) or f"unrecognized arguments: {' '.join(left)}")
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="image-audit",
        description="Finds duplicates, leaks, outliers, wrong labels and bad images in image datasets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"image-audit {pipeline.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands).set_defaults(command=_run)
    _add_show(commands)
    _add_status(commands)
    search_commands.add_commands(commands)
    _add_demo(commands)
    return parser


def _add_show(commands: Any) -> None:
    parser = add_command(commands, "show", "show a table of the latest audit")
    parser.set_defaults(command=_show)
    parser.add_argument("table", choices=[*show.NAMES, *show.CROPS, "summary"])
    parser.add_argument("--audit", help="id of an audit (default: the latest)")
    parser.add_argument("--top", type=int, help="so many rows, worst first (default: 20; all for the other formats)")
    parser.add_argument("--columns", help="comma-separated columns")
    form = parser.add_mutually_exclusive_group()
    for name in ("json", "csv", "parquet"):
        of = {"json": "one object per line", "csv": "all columns", "parquet": "all columns, with their types"}[name]
        form.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=of)
    parser.add_argument(
        "--output", help="file to write, .csv, .json or .parquet by its name; also on s3:// or minio://"
    )
    add_root(parser)


def _add_status(commands: Any) -> None:
    parser = add_command(commands, "status", "per stage: done, missing, failed, seconds, images/s")
    parser.set_defaults(command=_status)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    add_root(parser)


def _add_demo(commands: Any) -> None:
    parser = add_command(commands, "demo", "make a small planted photo set, audit it, say what was found")
    parser.set_defaults(command=_demo)
    parser.add_argument("--into", help="folder for the photos and the audit (default: a new temporary one)")
    add_runner(parser)


def _run(options: argparse.Namespace, given: list[str]) -> int:
    config, where = _checked(options)
    audit = api.run_config(config, where, reporter(options.quiet), command(given))
    if audit is None:
        say(f"nothing was published; when every range is extracted, finish with: {_finishing_command(given)}")
    if audit is not None:
        summary = audit.summary()
        say(json.dumps(summary, indent=1) if options.json else "\n".join(summary_lines(summary)))
        if not options.json:
            words = ["show", table_to_show(summary), "--root", config.root, *_storage_flags(config)]
            say(f"tables      {audit.tables_uri}\nshow them   {command(words)}")
    return 0


def _storage_flags(config: AuditConfig) -> list[str]:
    """What another command needs to reach the same root, wherever this one had it from."""
    if not is_remote(config.root):
        return []
    storage = config.storage
    flags = [word for name, url in storage.endpoints.items() for word in ("--endpoint", f"{name}={url}")]
    flags += ["--endpoint-url", storage.endpoint_url] if storage.endpoint_url else []
    return flags + (["--region", storage.region] if storage.region else [])


def _checked(options: argparse.Namespace) -> tuple[AuditConfig, api.Where]:
    """What a command line asks for. Raises UsageError with all of its problems in one message."""
    problems: list[str] = []
    config = _or_problem(lambda: config_from(config_values(options)), problems)
    where = _or_problem(lambda: api.Where(options.runner, options.address, options.workers), problems)
    if config is None or where is None:
        raise UsageError("; ".join(problems))
    return config, where


def _or_problem(make: Callable[[], Made], problems: list[str]) -> Made | None:
    try:
        return make()
    except UsageError as error:
        problems.append(str(error))
        return None


def _show(options: argparse.Namespace, _: list[str]) -> int:
    audit = api.open_audit(options.root or "audit", options.audit, storage_values(options))
    form = options.format or format_of(options.output)
    request = show.Request(options.table, options.top, options.columns, form, options.output)
    show.show(audit, request)
    return 0


def _status(options: argparse.Namespace, _: list[str]) -> int:
    rows = api.status(options.root or "audit", storage_values(options))
    say(json.dumps(rows, indent=1) if options.json else show.status_text(rows))
    return 0


def _demo(options: argparse.Namespace, given: list[str]) -> int:
    where = api.Where(options.runner, options.address, options.workers)
    for line in api.demo(options.into, where, reporter(options.quiet), command(given)):
        say(line)
    return 0


def _finishing_command(given: Sequence[str]) -> str:
    """The command without its range: it extracts what is left and publishes the audit."""
    kept: list[str] = []
    words = iter(given)
    for word in words:
        flag, sign, _ = word.partition("=")
        if flag not in ("--min-offset", "--max-offset", "--until"):
            kept.append(word)
        elif not sign:
            next(words, "")
    return command(kept)


def _terminate(_number: int, _frame: Any) -> NoReturn:
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
