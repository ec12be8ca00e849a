"""What is checked before anything is written: a root may lie among the user's photos."""

from __future__ import annotations

from pipeline.config import AuditConfig
from pipeline.errors import UsageError
from pipeline.kernels.boxes import BoxesFrom, parse_bounding_box
from pipeline.layout.annotations import read_annotations
from pipeline.layout.lists import GIVEN_LIST
from pipeline.layout.models import open_chosen
from pipeline.layout.root import Root, is_own, is_root, read_address
from pipeline.layout.snapshots import LIST, SourceRecord
from pipeline.plan.detecting import require_detecting
from pipeline.plan.yolo import is_yaml, read_set
from pipeline.sources.tabular import read_label_table
from pipeline.stages.listing import require_source, source_kind
from pipeline.storage import StorageConfig, canonical_uri


def named_sources(config: AuditConfig) -> tuple[SourceRecord, ...]:
    """The sources of a call, those of the split test last; in place of a YAML of YOLO the folders and lists it names.

    Raises UsageError for a YAML that is none.
    """
    named = [(uri, "") for uri in config.sources] + ([(config.test, "test")] if config.test else [])
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


def require_inputs(config: AuditConfig, root: Root) -> None:
    """Raises UsageError, ModelError or StorageError for a call that names what cannot be audited.

    What a root that is there already knows is not read again: nothing new would be left in it.
    """
    sources = named_sources(config)
    uris = [source.uri for source in sources]
    if config.sources or config.test:  # vectors without images may lie in the root
        _refuse_twice(root, uris)
    if is_root(root.open()):
        return
    if config.start == "features":
        raise UsageError(f"{root.uri}: nothing is listed or extracted there yet: run it from its sources")
    for source in sources:
        require_source(source, config.storage)
    has_boxes = any(source.kind == LIST for source in sources)
    named = filter(None, (*config.sources, config.test))
    has_boxes |= any(is_yaml(canonical_uri(uri, config.storage), config.storage) for uri in named)
    if table := config.rule.table:
        has_boxes |= read_label_table(read_annotations(config.storage, table), table).has_boxes
    if config.bounding_box:
        _require_boxes(config, has_boxes)
    if model := config.model.path:
        open_chosen(model, config.model.input, config.model.cache, config.storage)


def _require_boxes(config: AuditConfig, has_boxes: bool) -> None:
    """Raises UsageError where there are no boxes, or no detector, of the kind that is asked for."""
    given = read_address(config.box_model, config.storage) if config.box_model else None
    require_detecting(config.bounding_box, given)
    if parse_bounding_box(config.bounding_box) is BoxesFrom.TABLE and not has_boxes:
        raise UsageError(
            f"bounding_box {config.bounding_box!r} takes the boxes of annotations, and there are none: give a table "
            "with col_x, row_y, width, height or x1, y1, ..., x4, y4, a COCO file, or a list with such boxes"
        )


def _refuse_twice(root: Root, uris: list[str]) -> None:
    for uri in uris:
        if uris.count(uri) > 1:
            raise UsageError(f"the source {uri} is named twice: name it once.")
        if root.uri == uri:
            raise UsageError(f"the root {root.uri} is a source: choose a --root beside or below it.")
        if uri == f"{root.uri}/{GIVEN_LIST}":
            continue
        if uri.startswith(root.uri + "/") and is_own(f"{uri.removeprefix(root.uri + '/')}/"):
            raise UsageError(f"the source {uri} is where the root {root.uri} writes: choose another --root.")
        for other in uris:
            if other != uri and other.startswith(uri + "/"):
                raise UsageError(f"the source {other} lies inside {uri}: its images would be listed twice. Name one.")
