"""Options and session-wide fixtures of the suite."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.layout import pixels
from pipeline.storage.s3_get import PlainGets

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

MEMORY = Path("/dev/shm")
ROOM_BYTES = 8 * 2**30
"""What a whole run of the suite writes is 2 GB."""
SLOW_TIMEOUT = 1800
"""Seconds for a test of the slow tier: a hundred processes that are killed one after the other take 150 to 300."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --slow: the tier with more seeds, the second S3 server and the opt-in ones."""
    parser.addoption("--slow", action="store_true", help="run the slow tier as well")


def pytest_configure() -> None:
    """Tests write to memory where there is room: an audit syncs 250 files, a fifth of the time of many tests."""
    has_room = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    if has_room and psutil.virtual_memory().available >= ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the slow tier out of the collection unless it is asked for, so that nothing skipped looks green."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    if config.getoption("--slow"):
        for item in slow:
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))
        return
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(params=["session", "curl", "begun"])
def senders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """GETs of a bucket that is known as the main thread sends them, as the others do, and as they are begun.

    libcurl asks once more, uncounted, where a kept connection dies before an answer; it takes 6 s to give one up.
    """
    monkeypatch.setattr("pipeline.storage.s3_get.is_main_thread", lambda: request.param == "session")
    if request.param == "begun":
        get = PlainGets.get

        def begun(gets: PlainGets, wanted: dict[str, Any], most: int) -> dict[str, Any]:
            sent = gets.begin(wanted)
            if sent is None:
                return get(gets, wanted, most)
            sent.wait()
            return sent.answering(lambda: get(gets, wanted, most))

        monkeypatch.setattr(PlainGets, "get", begun)
    return str(request.param)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Decodes of the images that boxes are cut out of, by a hash of their bytes."""
    counted: Counter[int] = Counter()
    decode = pixels.decode

    def counting(data: bytes, limits: Any) -> Any:
        counted[hash(data)] += 1
        return decode(data, limits)

    monkeypatch.setattr(pixels, "decode", counting)
    return counted
