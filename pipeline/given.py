"""What a Python caller gives in place of files: lists of sources, annotations and embeddings, stored in the root."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import AuditConfig, config_from
from pipeline.errors import NotFound, UsageError
from pipeline.layout.annotations import GIVEN, TABLES
from pipeline.layout.lists import given_coco_key, given_list_key
from pipeline.layout.models import FOLDER as MODELS
from pipeline.layout.root import Root
from pipeline.sources.annotated import plain_table
from pipeline.sources.coco_given import coco_file
from pipeline.sources.folder import is_image_key
from pipeline.sources.fragments import parent_kind
from pipeline.sources.list_kinds import is_list_name
from pipeline.sources.list_warnings import list_warnings
from pipeline.sources.listed import Tally
from pipeline.sources.python_lists import listed_from
from pipeline.storage import canonical_uri, is_remote

log = logging.getLogger(__name__)

Given = dict[str, bytes]
"""By key, what is to be stored in the root."""


def with_given(sources: Sequence[Any], values: dict[str, Any]) -> tuple[dict[str, Any], Given]:
    """The configuration of a call, and what it gives in memory, to be stored in the root. Raises UsageError."""
    listed = list(sources[0]) if len(sources) == 1 and isinstance(sources[0], (list, tuple)) else None
    every = list(sources) if listed is None else listed
    if listed is not None and not listed:
        raise UsageError("the list of sources is empty: name a folder or a file")
    annotations, given = values.pop("annotations", None), Given()
    every, values = _with_coco(every, dict(values), given)
    wrong = [source for source in every if not isinstance(source, (str, os.PathLike))]
    if wrong:
        raise UsageError(
            f"source {repr(wrong[0])[:80]}, want text, a path or a COCO dict; several go one by one, or as one list: "
            "run(*sources, root=...) or run([...], root=...)"
        )
    values = {**values, "sources": tuple(os.fspath(source) for source in every)}
    if not isinstance(values.get("embeddings", ""), (str, os.PathLike)):
        values = _with_embeddings(values)
    if listed is not None:
        values = _with_list(values, given)
    return (values if annotations is None else _with_annotations(values, annotations, given)), given


def _with_coco(sources: list[Any], values: dict[str, Any], given: Given) -> tuple[list[Any], dict[str, Any]]:
    """The sources and `test` with the key of a COCO file, to be stored, in place of each COCO dict."""
    test = values.get("test", ())
    tests = list(test) if isinstance(test, (list, tuple)) else [test] * (test is not None)
    if not any(isinstance(source, Mapping) for source in [*sources, *tests]):
        return sources, values
    root = _root(config_from({"root": values["root"], "storage": values.get("storage", {}), "sources": ("given",)}))
    found, count = list[Any](), 0
    for source in [*sources, *tests]:
        if isinstance(source, Mapping):
            count += 1
            data = coco_file(source, f"the COCO dict (number {count})", canonical_uri(".", root.storage))
            given[key := given_coco_key(data, count)] = data
            source = f"{root.uri}/{key}"  # noqa: PLW2901
        found.append(source)
    return found[: len(sources)], {**values, "test": tuple(found[len(sources) :])}


def _root(config: AuditConfig) -> Root:
    return Root(canonical_uri(config.root, config.storage), config.storage)


def _with_list(values: dict[str, Any], given: Given) -> dict[str, Any]:
    """With the files among the sources as one list, which stays one source whatever it names; folders stay sources.

    A file that the listing of one of these folders takes is left out, unless it is not there: then it is a row. Raises
    NotFound where nothing else is listed.
    """
    config = config_from(values)
    uris = list(dict.fromkeys(canonical_uri(source, config.storage) for source in config.sources))
    files = [uri for uri in uris if _is_file(uri)]
    listed = set(files)
    folders = [uri for uri in uris if uri not in listed]
    inside = [f"{folder.rstrip('/')}/" for folder in folders if not is_list_name(folder)]
    within = {uri for uri in files if any(_has(folder, uri) for folder in inside)}
    gone = sorted(uri for uri in within if not (is_remote(uri) or os.path.lexists(uri)))
    files = sorted({*files} - within) + gone
    if not files:
        return {**values, "sources": tuple(folders)}
    if len(gone) == len(files):
        raise NotFound(f"source {gone[0]} is not there, of {len(gone):,} such files: correct or leave out its name")
    broken = [uri for uri in files if "\n" in uri]
    if broken:
        raise UsageError(f"source {broken[0]!r} has a line break in its name: rename it, or name its folder")
    root = _root(config)
    data = "".join(f"{uri}\n" for uri in files).encode("utf-8", "surrogateescape")
    key = given_list_key(data)
    given[key] = data
    return {**values, "sources": (f"{root.uri}/{key}", *folders)}


def _has(folder: str, uri: str) -> bool:
    """Whether the listing of a folder takes a file."""
    key = uri.removeprefix(folder)
    return key != uri and (is_image_key(key) or bool(parent_kind(key)))


def _is_file(uri: str) -> bool:
    """Whether a source goes into the list: what has the name of an image or archive (one that is gone is a row that
    says so), and any other file on a disk. A list, or a YAML of YOLO, stays a source.
    """
    name = uri.rpartition("/")[2]
    if is_list_name(name):
        return False
    if is_image_key(name) or parent_kind(name):
        return is_remote(uri) or not os.path.isdir(uri)  # noqa: PTH112 - making a path of each takes longer
    return not is_remote(uri) and os.path.isfile(uri)  # noqa: PTH113


def _with_annotations(values: dict[str, Any], annotations: Any, given: Given) -> dict[str, Any]:
    """With annotations as the rule's table: a file of them, or a DataFrame, an Arrow table or COCO, to be stored."""
    rule = values.get("rule") or {}
    if not isinstance(rule, Mapping) or rule.get("table") or rule.get("pattern"):
        raise UsageError("annotations and a table or pattern in rule: only one can rule; drop the other")
    if isinstance(annotations, (str, os.PathLike)):
        return {**values, "rule": {**rule, "table": os.fspath(annotations)}}
    config = config_from({name: value for name, value in values.items() if name != "embeddings"})
    root = _root(config)
    first = canonical_uri(config.sources[0], config.storage) if config.sources else root.uri
    base = first.rpartition("/")[0] or "/" if is_list_name(first) or _is_file(first) else first
    tally = Tally()
    data, repeats = plain_table(listed_from(annotations, base, tally), "annotations")
    for said in list_warnings("annotations", tally, repeats):
        log.warning("%s", said)
    key = _given_key(TABLES, data, "parquet")
    given[key] = data
    return {**values, "rule": {**rule, "table": f"{root.uri}/{key}"}}


def _with_embeddings(values: dict[str, Any]) -> dict[str, Any]:
    """With an array or a table of embeddings stored."""
    given = values["embeddings"]
    if not isinstance(given, (np.ndarray, pa.Table)):
        raise UsageError(f"embeddings {type(given).__name__}, want a path, an array (n, d) or an Arrow table")
    config = config_from({**values, "embeddings": "given"})
    sink = io.BytesIO()
    if isinstance(given, pa.Table):
        pq.write_table(given, sink)
    else:
        np.save(sink, given, allow_pickle=False)
    suffix = "parquet" if isinstance(given, pa.Table) else "npy"
    root, key = _root(config), _given_key(MODELS, sink.getvalue(), suffix)
    root.open().put_if_absent(key, sink.getvalue())
    return {**values, "embeddings": f"{root.uri}/{key}"}


def _given_key(folder: str, data: bytes, suffix: str) -> str:
    return f"{folder}/{GIVEN}{hashlib.sha256(data).hexdigest()[:20]}.{suffix}"
