"""Fingerprints: the name of an artifact is a hash of the stage, its version, its parameters and its inputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

DIGITS = 20


def fingerprint(stage: str, version: int, **inputs: Any) -> str:
    """20 hex digits over stage, version and inputs.

    Inputs are JSON values, enums or (nested) dataclasses; never workers, cores, paths of the root or times.
    """
    payload = json.dumps({"stage": stage, "version": version, "inputs": plain(inputs)}, sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:DIGITS]


def plain(value: Any) -> Any:
    """JSON-ready copy of nested dataclasses, enums, tuples and mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    return value
