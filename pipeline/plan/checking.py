"""What is checked before anything is written: a root may lie among the user's photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from pipeline.config import AuditConfig
from pipeline.errors import UsageError
from pipeline.kernels.boxes import BoxesFrom, parse_bounding_box
from pipeline.layout.annotations import has_boxes, read_annotations, table_name
from pipeline.layout.lists import is_given_list, source_name
from pipeline.layout.models import open_chosen
from pipeline.layout.root import Root, is_own, is_root
from pipeline.layout.snapshots import LIST, SourceRecord
from pipeline.plan.detecting import require_detecting
from pipeline.plan.yolo import is_yaml, read_set, require_places, warn_of_places
from pipeline.sources.tabular import LabelTable, read_label_table
from pipeline.stages.source_files import require_source, source_kind
from pipeline.storage import StorageConfig, SyncParams, canonical_uri, is_remote, require_usable


def named_sources(config: AuditConfig) -> tuple[SourceRecord, ...]:
    """The sources of a call, those of the split test last; in place of a YAML of YOLO the folders and lists it names.

    Raises UsageError for a YAML that is none.
    """
    named = [*((uri, "") for uri in config.sources), *((uri, "test") for uri in config.tests)]
    if not named and config.start != "features":  # names with vectors and no images
        named = [(config.embeddings, "")]
    records = []
    for address, split in named:
        uri = canonical_uri(address, config.storage)
        if is_yaml(uri, config.storage):
            places = read_set(uri, config.storage).places
            records += [_record(place.address, split or place.split, config.storage) for place in places]
        else:
            records.append(_record(uri, split, config.storage))
    return tuple(records)


def _record(uri: str, split: str, storage: StorageConfig) -> SourceRecord:
    return SourceRecord(uri, split, source_kind(uri, storage))


def require_inputs(config: AuditConfig, root: Root, given: Mapping[str, bytes]) -> None:
    """Raises UsageError, ModelError or StorageError for a call that names what cannot be audited.

    given: by key, what is to be stored in the root once the rest is known to be right. What a root that is there
    already knows is not read again: nothing new would be left in it.
    """
    sources = _as_stored(named_sources(config), root, given)
    uris = [source.uri for source in sources]
    if config.every_source:  # vectors without images may lie in the root
        _refuse_twice(root, uris)
    if config.start == "sources":
        _require_table_boxes(config, root, sources, given)
        _require_one_kind_of_boxes(config, root, given)
    if config.storage.sync_to_local:
        _require_copies_apart(config.storage, root)
    sets = _warned_sets(config)
    if is_root(root.open()):
        require_detecting(config, root.open())
        return
    if config.start == "features":
        raise UsageError(f"{root.uri}: nothing is listed or extracted there yet: run it from its sources")
    for uri in sets:
        require_places(uri, config.storage)
    for source in _others(root, sources, given):
        require_source(source, config.storage)
    if (table := config.rule.table) and _key(root, table) not in given:
        read_label_table(read_annotations(config.storage, table, []), table)
    require_detecting(config)
    if model := config.model.path:
        open_chosen(model, config.model.input, config.model.cache, config.storage)


def _key(root: Root, address: str) -> str:
    return address.removeprefix(f"{root.uri}/")


def _as_stored(sources: tuple[SourceRecord, ...], root: Root, given: Mapping[str, bytes]) -> tuple[SourceRecord, ...]:
    """The sources as they are once what is given is stored: all of that is lists, and a list is known by its file."""
    return tuple(replace(source, kind=LIST) if _key(root, source.uri) in given else source for source in sources)


def _others(root: Root, sources: tuple[SourceRecord, ...], given: Mapping[str, bytes]) -> list[SourceRecord]:
    """The sources that are there already."""
    return [source for source in sources if _key(root, source.uri) not in given]


def _require_table_boxes(
    config: AuditConfig, root: Root, sources: tuple[SourceRecord, ...], given: Mapping[str, bytes]
) -> None:
    """Raises UsageError where boxes of annotations are asked for, and neither the table, a list nor YOLO can have any.

    Whether a list has some is known once it is listed (`Listing.refuse`).
    """
    if not config.bounding_box or parse_bounding_box(config.bounding_box) is not BoxesFrom.TABLE:
        return
    has_some = any(source.kind == LIST and not is_given_list(root.uri, source.uri) for source in sources)
    has_some |= any(is_yaml(canonical_uri(uri, config.storage), config.storage) for uri in config.every_source)
    if not has_some and (table := config.rule.table):
        data = given.get(_key(root, table)) or read_annotations(config.storage, table, [])
        labels = read_label_table(data, table)
        has_some = labels.has_boxes
        _require_rotated(config, labels)
    if not has_some:
        raise UsageError(
            f"bounding_box {config.bounding_box!r} takes the boxes of annotations, and there are none: give a table "
            "with col_x, row_y, width, height or x1, y1, ..., x4, y4, a COCO file, or a list with such boxes"
        )


def _require_one_kind_of_boxes(config: AuditConfig, root: Root, given: Mapping[str, bytes]) -> None:
    """Raises UsageError where an image could have boxes of a table, and is to have another or those that are found.

    A list may name boxes beside: they are no images.
    """
    table = config.rule.table
    if not table or not config.bounding_box or parse_bounding_box(config.bounding_box) is BoxesFrom.TABLE:
        return
    if has_boxes(given.get(_key(root, table)) or read_annotations(config.storage, table, [])):
        raise UsageError(
            f"bounding_box {config.bounding_box!r} and the boxes of the table {table_name(table)}: only one of both is "
            "audited in place of the images; drop bounding_box, or give a table without columns of boxes"
        )


def _warned_sets(config: AuditConfig) -> list[str]:
    """The sources that are a YAML of YOLO; what is odd in one is said."""
    named = [canonical_uri(uri, config.storage) for uri in config.every_source]
    sets = [uri for uri in named if is_yaml(uri, config.storage)]
    for uri in sets:
        warn_of_places(uri, config.storage)
    return sets


def _require_copies_apart(storage: StorageConfig, root: Root) -> None:
    """Raises UsageError for a folder of copies that cannot be used, or that the root's files would lie in."""
    folder = Path(storage.sync_to_local).resolve()
    if not is_remote(root.uri):
        place = Path(root.uri).resolve()
        is_in_root = folder.is_relative_to(place) and is_own(f"{folder.relative_to(place)}/")
        if place.is_relative_to(folder) or is_in_root:
            raise UsageError(
                f"the sync folder {storage.sync_to_local} is where the root {root.uri} writes: choose another one."
            )
    require_usable(SyncParams(storage.sync_to_local, storage.sync_budget))


def _require_rotated(config: AuditConfig, labels: LabelTable) -> None:
    """Raises UsageError where rotated boxes are asked for, and a table has upright ones alone."""
    if config.bounding_box.strip() != "rotated" or not labels.has_boxes:
        return
    if not pc.any(pc.match_substring(labels.names, "#corners=")).as_py():
        raise UsageError(
            "bounding_box 'rotated' takes boxes of x1, y1, ..., x4, y4, and the table "
            f"{table_name(config.rule.table or '')} has upright ones alone: use bounding_box 'xywh_bbox', or give "
            "the corners"
        )


def _refuse_twice(root: Root, uris: list[str]) -> None:
    for uri in uris:
        if uris.count(uri) > 1:
            raise UsageError(f"the source {uri} is named twice: name it once.")
        if root.uri == uri:
            raise UsageError(f"the root {root.uri} is a source: choose a --root beside or below it.")
        if source_name(root.uri, uri) != uri:
            continue
        if uri.startswith(root.uri + "/") and is_own(f"{uri.removeprefix(root.uri + '/')}/"):
            raise UsageError(f"the source {uri} is where the root {root.uri} writes: choose another --root.")
        for other in uris:
            if other != uri and other.startswith(uri + "/") and source_name(root.uri, other) == other:
                raise UsageError(f"the source {other} lies inside {uri}: its images would be listed twice. Name one.")
