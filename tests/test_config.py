"""The configuration: the documented file is the defaults, and every problem is said at once."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import SECTIONS, AuditConfig, config_from, read_toml
from pipeline.errors import UsageError
from pipeline.kernels.verify import VerifyParams

TEXT = (Path(__file__).parents[1] / "docs" / "config.toml").read_text(encoding="utf-8")


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every key of nested dataclasses with its value."""
    found: dict[str, Any] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        nested = is_dataclass(item) and not isinstance(item, type)
        found |= leaves(item, f"{prefix}{field.name}.") if nested else {f"{prefix}{field.name}": item}
    return found


def test_documented_file_is_the_defaults() -> None:
    """docs/config.toml parses, and every value in it is the default of its key."""
    documented = config_from(read_toml(TEXT.encode(), "docs/config.toml"))

    assert documented == AuditConfig(sources=("photos/",), root="audit/")


@pytest.mark.parametrize("key", [*leaves(AuditConfig(("photos/",), "audit/"))])
def test_every_key_is_documented(key: str) -> None:
    """Each key stands in the file, commented out where it has no default; the limits of verify stand in its module."""
    section, _, name = key.rpartition(".")
    if section == "verify" and name not in ("skip_similarity", "skip_signature"):
        assert f"{name}:" in (Path(__file__).parents[1] / "pipeline/kernels/verify.py").read_text(encoding="utf-8")
        return
    if section == "neighbours.copy":
        assert re.search(rf"copy = {{.*{name} = |^# {name} = ", TEXT, flags=re.MULTILINE)
        return
    block = TEXT if not section else TEXT.split(f"[{section}]", 1)[1].split("\n[", 1)[0]
    assert re.search(rf"^(# )?{name} = ", block, flags=re.MULTILINE)


def test_all_problems_come_in_one_message() -> None:
    """Unknown keys, values out of range and wrong types of several sections are named together."""
    values = {
        "sources": ["photos/"],
        "root": "audit/",
        "sheds": 3,
        "neighbours": {"semantic_k": 1, "nprobe": 4},
        "threshold": {"false_per_image": 0},
        "measure": {"max_pixels": "many"},
    }

    with pytest.raises(UsageError) as caught:
        config_from(values)

    message = str(caught.value)
    for part in ("sheds", "semantic_k 1", "neighbours.nprobe", "false_per_image 0", "measure."):
        assert part in message


def test_file_that_is_not_toml_is_named() -> None:
    """A broken file is a usage error with its name."""
    with pytest.raises(UsageError, match=r"audit\.toml: not TOML"):
        read_toml(b"root = ", "audit.toml")


def test_sections_are_dataclasses_of_the_config() -> None:
    """Every section of the file is a field of the configuration, of that type."""
    config = AuditConfig(("photos/",), "audit/")

    assert {name: type(getattr(config, name)) for name in SECTIONS} == SECTIONS
    assert isinstance(config.verify, VerifyParams)
