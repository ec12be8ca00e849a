"""image-audit: finds what is wrong with very large image datasets, on CPUs.

`run` audits sources into a root, `open` reads the latest audit of a root; both give an `Audit`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import run
    from pipeline.audit import Audit
    from pipeline.audit import open_audit as open  # noqa: A004 - pipeline.open reads as what it does

# onnxruntime 1.31 keeps a device id and events of each session in the user's cache, to send them to its makers
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["Audit", "__version__", "open", "run"]

_PLACES = {
    "run": ("pipeline.api", "run"),
    "open": ("pipeline.audit", "open_audit"),
    "Audit": ("pipeline.audit", "Audit"),
}


def __getattr__(name: str) -> Any:
    """Imports the public names at first use: workers import this package without the driver's half."""
    if name not in _PLACES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
