"""What is checked before anything is written: a root may lie among the user's photos."""

from __future__ import annotations

from pipeline.config import AuditConfig
from pipeline.errors import UsageError
from pipeline.layout.models import open_chosen
from pipeline.layout.root import Root, is_own, is_root, read_address
from pipeline.layout.snapshots import SourceRecord
from pipeline.plan.detecting import require_detecting
from pipeline.sources.tabular import read_label_table
from pipeline.stages.listing import require_source, source_kind
from pipeline.storage import canonical_uri


def named_sources(config: AuditConfig) -> tuple[SourceRecord, ...]:
    """The sources of a call, the one of the split test last."""
    named = [(uri, "") for uri in config.sources] + ([(config.test, "test")] if config.test else [])
    if not named and config.start != "features":  # names with vectors and no images
        named = [(config.embeddings, "")]
    uris = [(canonical_uri(uri, config.storage), split) for uri, split in named]
    return tuple(SourceRecord(uri, split, source_kind(uri, config.storage)) for uri, split in uris)


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
    if table := config.rule.table:
        read_label_table(read_address(table, config.storage), table)
    if config.bounding_box:
        given = read_address(config.box_model, config.storage) if config.box_model else None
        require_detecting(config.bounding_box, given)
    if model := config.model.path:
        open_chosen(model, config.model.input, config.model.cache, config.storage)


def _refuse_twice(root: Root, uris: list[str]) -> None:
    for uri in uris:
        if uris.count(uri) > 1:
            raise UsageError(f"the source {uri} is named twice: name it once.")
        if root.uri == uri:
            raise UsageError(f"the root {root.uri} is a source: choose a --root beside or below it.")
        if uri.startswith(root.uri + "/") and is_own(f"{uri.removeprefix(root.uri + '/')}/"):
            raise UsageError(f"the source {uri} is where the root {root.uri} writes: choose another --root.")
        for other in uris:
            if other != uri and other.startswith(uri + "/"):
                raise UsageError(f"the source {other} lies inside {uri}: its images would be listed twice. Name one.")
