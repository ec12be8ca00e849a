"""What a measurement was made on: processor, cores, memory, versions. Every benchmark writes it beside its numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

PACKAGES = ("faiss-cpu", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow", "ray", "scipy")
FLAGS = ("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that decide what an int8 model costs: without a VNNI the default model takes more than twice as long."""


def about_machine() -> dict[str, Any]:
    """Processor, cores, flags of interest, memory in bytes and the load before the benchmark began."""
    processor, flags = _processor()
    return {
        "cpu": processor,
        "cores": os.cpu_count(),
        "flags": {name: name in flags for name in FLAGS},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": list(os.getloadavg()),
    }


def about_versions() -> dict[str, str]:
    """Versions of Python, of image-audit and of what decides its speed."""
    from pipeline import __version__

    installed = {item.name.lower(): item.version for item in distributions() if item.name}
    return {
        "python": platform.python_version(),
        "image-audit": __version__,
        **{name: installed.get(name, "unknown") for name in PACKAGES},
    }


def _processor() -> tuple[str, set[str]]:
    """Name and instruction flags; empty flags where the system does not list them as Linux does."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for line in listing.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.machine()), flags
