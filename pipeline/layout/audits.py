"""Published audits: run.json and the tables of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import ArtifactError, NotFound
from pipeline.layout.tables import json_bytes, read_json, write_json
from pipeline.storage import Store

FOLDER = "audits"
RUN = "run.json"
SESSIONS = "sessions"
FORMAT = 3
"""Of run.json and the tables; raised with every change of either, so that an audit of another one is never misread."""


@dataclass(frozen=True)
class Published:
    """A finished audit: its facts are a function of the data and the config, the session is not."""

    audit_id: str
    snapshot: int
    config: dict[str, Any]
    facts: dict[str, Any]
    session: dict[str, Any]
    """Of the session that published it; later ones that found nothing to do stand beside it."""


def audit_folder(audit_id: str) -> str:
    """Folder of an audit."""
    return f"{FOLDER}/{audit_id}"


def published_to_json(published: Published) -> dict[str, Any]:
    """The document of a finished audit."""
    return {"format": FORMAT, **vars(published)}


def read_audit(store: Store, audit_id: str) -> Published:
    """A finished audit by id. Raises NotFound that lists the ids there are, ArtifactError for one of another format."""
    key = f"{audit_folder(audit_id)}/{RUN}"
    if not store.exists(key):
        known = ", ".join(sorted(audit_ids(store))) or "none"
        raise NotFound(f"{store.uri}: no finished audit {audit_id!r}; there are: {known}")
    value = read_json(store, key)
    made = value.pop("format", None)
    if made != FORMAT:
        raise ArtifactError(
            f"{store.uri}/{key}: format {made}, wanted {FORMAT}: another version of image-audit made it. Read it with "
            "that version, or run this one on the root: it reuses what was extracted and makes an audit of its own."
        )
    try:
        return Published(**value)
    except TypeError as error:
        raise ArtifactError(f"{store.uri}/{key}: not the run.json of an audit ({error}). Run again.") from error


def latest_audit(store: Store) -> Published | None:
    """The audit whose latest session finished last."""
    sessions = [info.key.split("/") for info in store.list(f"{SESSIONS}/") if info.key.endswith(".json")]
    latest = max(((name, audit_id) for _, audit_id, name in sessions), default=None)
    if latest is None:
        return None
    name, audit_id = latest
    return replace(read_audit(store, audit_id), session=read_json(store, f"{SESSIONS}/{audit_id}/{name}"))


def publish_audit(store: Store, published: Published) -> Published:
    """Commits run.json, where the first one stays, and the record of this session beside it."""
    key = f"{audit_folder(published.audit_id)}/{RUN}"
    store.put_if_absent(key, json_bytes(published_to_json(published)))
    name = published.session["finished_at"].replace(":", "")
    write_json(store, f"{SESSIONS}/{published.audit_id}/{name}.json", published.session)
    return replace(read_audit(store, published.audit_id), session=published.session)


def audit_ids(store: Store) -> list[str]:
    """Ids of the finished audits."""
    return [info.key.split("/")[1] for info in store.list(f"{FOLDER}/") if info.key.endswith(f"/{RUN}")]


def has_audit(store: Store, snapshot: int) -> bool:
    """Whether some audit of a snapshot has come to its tables."""
    return next(iter(store.list(f"{FOLDER}/{snapshot:06d}-")), None) is not None


def table_keys(store: Store, published: Published, name: str) -> list[str]:
    """Keys of the parts of a table, in order."""
    prefix = f"{audit_folder(published.audit_id)}/tables/{name}/"
    return [info.key for info in store.list(prefix) if info.key.endswith(".parquet")]
