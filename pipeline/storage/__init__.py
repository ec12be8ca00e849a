"""The only module that touches bytes at rest: folders, S3 and S3-compatible stores behind one interface."""

from __future__ import annotations

import os

from pipeline.storage.ahead import read_ahead
from pipeline.storage.copies import remove_copies
from pipeline.storage.copy_folder import ARCHIVES, FILES, SyncParams, begin_run, require_usable
from pipeline.storage.counts import RequestCounts, request_counts
from pipeline.storage.interface import TEMPORARY_PREFIX, Begun, ObjectInfo, StorageConfig, Store
from pipeline.storage.leftovers import remove_leftovers
from pipeline.storage.local import LocalStore
from pipeline.storage.redact import RedactingFilter, redact
from pipeline.storage.synced import SyncedStore
from pipeline.storage.uri import canonical_uri, is_remote, parse_bucket, parse_path

__all__ = [
    "ARCHIVES",
    "FILES",
    "TEMPORARY_PREFIX",
    "Begun",
    "LocalStore",
    "ObjectInfo",
    "RedactingFilter",
    "RequestCounts",
    "StorageConfig",
    "Store",
    "SyncParams",
    "SyncedStore",
    "begin_run",
    "canonical_uri",
    "is_remote",
    "open_store",
    "read_ahead",
    "redact",
    "remove_copies",
    "remove_leftovers",
    "request_counts",
    "require_usable",
]

_DEFAULT = StorageConfig()


def open_store(uri: str | os.PathLike[str], config: StorageConfig = _DEFAULT) -> Store:
    """Return the store of a uri, without touching it: a missing folder or bucket shows on first use.

    Raises UsageError for a uri that is no store or that holds a credential.
    """
    if is_remote(uri):
        from pipeline.storage.s3 import S3Store

        return S3Store(parse_bucket(uri, config), config)
    return LocalStore(parse_path(uri))
