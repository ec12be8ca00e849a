"""The commands that serve an audit: search it, make its index ahead, export it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import api
from pipeline.audit import Audit
from pipeline.errors import UsageError
from pipeline.flags import add_command, add_root, add_runner, command, reporter, say, storage_values
from pipeline.layout.served import Recipe, ServedSpace, read_recipe
from pipeline.plan.asking import ask, ask_vectors, require_call, require_width, together
from pipeline.plan.exporting import faiss_pieces, file_bytes, named_parts
from pipeline.plan.serving import SERVED_PER_EXTRACTED, SPACES, once, require_served, serving_session
from pipeline.plan.session import Session
from pipeline.printing import aligned, as_csv, as_json, as_parquet, format_of, is_terminal, write
from pipeline.sources.vectors import VectorFile, names_or_rows, open_vectors
from pipeline.storage import StorageConfig, canonical_uri, open_store

READABLE = ["query", "rank", "similarity", "semantic_similarity", "uri", "split", "label", "copies"]
FORMATS = {"json": "one object per line", "csv": "all columns", "parquet": "all columns, with their types"}


def add_commands(commands: Any) -> None:
    """Adds the parsers."""
    _add_search(commands)
    _add_index(commands)
    _add_export(commands)


def _add_search(commands: Any) -> None:
    parser = add_command(commands, "search", "find the images of an audit that are nearest to others")
    parser.set_defaults(command=_search)
    parser.add_argument("images", nargs="*", help="images, folders of them, or s3://bucket/prefix")
    parser.add_argument("--features", help=".npy (n, d) or Parquet of embeddings of the audit's model, not images")
    parser.add_argument("-k", type=int, default=10, help="images to find for each (default: 10)")
    parser.add_argument(
        "--space", choices=SPACES, default="semantic", help="semantic: what shows the same (default); copy: copies"
    )
    _add_audit(parser)
    form = parser.add_mutually_exclusive_group()
    for name, of in FORMATS.items():
        form.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=of)
    parser.add_argument("--output", help="file to write, .csv, .json or .parquet by its name; also on s3://")
    add_runner(parser)
    add_root(parser)


def _add_index(commands: Any) -> None:
    parser = add_command(commands, "index", "make the index that search and export read, ahead of the first of them")
    parser.set_defaults(command=_index)
    parser.add_argument("--space", choices=SPACES, help="of one space (default: of both)")
    _add_audit(parser)
    add_runner(parser)
    add_root(parser)


def _add_export(commands: Any) -> None:
    parser = add_command(commands, "export", "write the index as one Faiss file, with a Parquet of what its ids are")
    parser.set_defaults(command=_export)
    parser.add_argument("--space", choices=SPACES, default="semantic", help="default: semantic")
    parser.add_argument("--output", required=True, help="file to write, NAME.faiss; also on s3://")
    _add_audit(parser)
    add_runner(parser)
    add_root(parser)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audit", help="id of an audit (default: the latest)")


def _search(options: argparse.Namespace, given: list[str]) -> int:
    if bool(options.images) == bool(options.features):
        raise UsageError("search for images or for --features: name the one or the other")
    audit, recipe = _opened(options)
    storage = StorageConfig(**storage_values(options))
    file: VectorFile | None = None
    if options.features:
        file = _vectors(options.features, storage)
        require_call(recipe, np.empty((0, recipe.inputs.dimension)), options.k, options.space)
        require_width(recipe, file.dimension, options.features)
    else:
        require_call(recipe, options.images, options.k, options.space)

    with once(_starter(options, given, audit, recipe)) as session:

        def served() -> ServedSpace:
            return require_served(recipe, options.space, session)

        if file is None:
            parts = ask(recipe, served, options.images, options.k)
        else:
            parts = _ask_file(recipe, served, file, options)
        write(options.output, _pieces(parts, options), storage)
    return 0


def _ask_file(
    recipe: Recipe, served: Callable[[], ServedSpace], file: VectorFile, options: argparse.Namespace
) -> Iterator[pa.Table]:
    names, at = names_or_rows(file), 0
    for block in file.blocks():
        yield from ask_vectors(recipe, served, names[at : at + len(block)], block, options.k)
        at += len(block)


def _pieces(parts: Iterator[pa.Table], options: argparse.Namespace) -> Iterator[bytes]:
    form = options.format or format_of(options.output)
    if form == "text":
        return iter([_text(together(parts), options.output).encode()])
    first = iter([next(parts)])  # what is wrong with the call is said before a file is begun
    every = (part for each in (first, parts) for part in each)
    if form == "parquet":
        return as_parquet(every, options.output)
    return as_json(every) if form == "json" else as_csv(every)


def _text(found: pa.Table, output: str | None) -> str:
    """The rows as text; a query that found nothing says why below them."""
    room = shutil.get_terminal_size().columns if output is None and is_terminal() else None
    matched = [row for row in found.to_pylist() if row["image_id"] is not None]
    lines: list[str] = []
    if matched:
        listed, left_out = aligned([{name: row[name] for name in READABLE} for row in matched], room, may_drop=True)
        lines = [*listed, *([f"no room for {', '.join(left_out)}"] if left_out else [])]
    for row in found.to_pylist():
        if row["image_id"] is None:
            why = row["message"] or "nothing is similar"
            lines.append(f"{row['query']}: {why if row['status'] == 'ok' else row['status'] + ': ' + why}")
    return "\n".join([*lines, ""])


def _index(options: argparse.Namespace, given: list[str]) -> int:
    audit, recipe = _opened(options)
    with once(_starter(options, given, audit, recipe)) as session:
        for space in [options.space] if options.space else SPACES:
            served = require_served(recipe, space, session)
            say(f"{space}: {recipe.representatives:,} representatives in {audit.root.uri}/{served.folder}")
    return 0


def _export(options: argparse.Namespace, given: list[str]) -> int:
    audit, recipe = _opened(options)
    storage = StorageConfig(**storage_values(options))
    names = f"{options.output}.names.parquet"  # no name that somebody has for another file
    if not options.output.endswith(".faiss"):
        raise UsageError(f"--output {options.output}: a Faiss file is written: want a name that ends in .faiss")
    with once(_starter(options, given, audit, recipe)) as session:
        served = require_served(recipe, options.space, session)
    size = file_bytes(recipe, served) / 1e9
    say(
        f"{recipe.representatives:,} vectors of {served.dimension}: {size:,.3f} GB, and as much memory for who reads it"
    )
    if metric := served.index.metric:
        say(f"this audit ranks by {metric}; who reads the file ranks by the inner product of unit vectors")
    write(options.output, faiss_pieces(served), storage)
    write(names, as_parquet(named_parts(recipe), names), storage)
    say(f"index  {options.output}\nnames  {names}")
    return 0


def _opened(options: argparse.Namespace) -> tuple[Audit, Recipe]:
    audit = api.open_audit(options.root or "audit", options.audit, storage_values(options))
    return audit, read_recipe(audit.root, audit.audit_id)


def _starter(options: argparse.Namespace, given: list[str], audit: Audit, recipe: Recipe) -> Callable[[], Session]:
    where = api.Where(options.runner, options.address, options.workers)

    def start() -> Session:
        runner = api.start_runner(where, recipe.representatives // SERVED_PER_EXTRACTED, audit.root)
        return serving_session(audit.root, runner, reporter(options.quiet), command(given))

    return start


def _vectors(address: str, storage: StorageConfig) -> VectorFile:
    place, slash, key = canonical_uri(address, storage).rpartition("/")
    return open_vectors(open_store(place or slash, storage), key, address)
