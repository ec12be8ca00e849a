"""One boto3 client per process and endpoint, created on first use; credentials come only from the AWS chain."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from pipeline.storage.redact import remember
from pipeline.storage.s3_get import PlainGets
from pipeline.storage.s3_pages import read_listing_answer

POOL_SIZE = 64
"""Connections kept per process: more threads than this wait for one another."""


@dataclass(frozen=True)
class ClientKey:
    """What tells two clients of one process apart."""

    endpoint: str | None
    region: str | None
    read_timeout: float
    connect_timeout: float


_clients: dict[ClientKey, Any] = {}
_getters: dict[ClientKey, PlainGets] = {}
_lock = threading.Lock()


def client_for(key: ClientKey) -> Any:
    """Return this process's client. Raises botocore errors (no such profile, credentials that cannot be fetched)."""
    client = _clients.get(key)
    if client is None:
        with _lock:
            client = _clients.get(key) or _clients.setdefault(key, _created(key))
    return client


def gets_for(key: ClientKey) -> PlainGets:
    """Return what sends the GETs of this process's client; raises as `client_for`."""
    gets = _getters.get(key)
    if gets is None:
        client_for(key)
        gets = _getters[key]
    return gets


def forget_clients() -> None:
    """Drop every client, so that the next request reads the AWS configuration anew."""
    with _lock:
        _clients.clear()
        _getters.clear()


def is_aws(client: Any) -> bool:
    """Tell whether the client talks to Amazon itself rather than to a compatible server."""
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _created(key: ClientKey) -> Any:
    # at DEBUG botocore logs signed headers, session token included; at INFO where it found credentials, on every run
    for name in ("botocore", "boto3", "urllib3"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is not None:
        _remember_refreshed(credentials)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # ours is the only retry loop
        max_pool_connections=POOL_SIZE,
        connect_timeout=key.connect_timeout,
        read_timeout=key.read_timeout,
        tcp_keepalive=True,
        # compatible servers refuse chunked uploads with trailing checksums; Content-MD5 guards every upload instead
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported",
    )
    region = key.region or session.region_name or "us-east-1"
    client = session.client("s3", region_name=region, endpoint_url=key.endpoint, config=config)
    _getters[key] = PlainGets(client, credentials)
    if credentials is not None:
        client.meta.events.register("before-sign.s3", partial(_remember_refreshed, credentials))
    client.meta.events.register("before-parse.s3.ListObjectsV2", read_listing_answer)
    return client


def _remember_refreshed(credentials: Any, **_: Any) -> None:
    """Has what requests are signed with from now on masked: temporary credentials are replaced every few hours."""
    frozen = credentials.get_frozen_credentials()
    remember(frozen.access_key, frozen.secret_key, frozen.token)


def _forget_in_child() -> None:
    global _lock  # noqa: PLW0603 - the parent's lock may be held, its sockets must not be shared
    _lock = threading.Lock()
    _clients.clear()
    _getters.clear()


os.register_at_fork(after_in_child=_forget_in_child)
