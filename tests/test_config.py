"""The configuration: the documented file is the defaults, and every problem is said at once."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from audited import LOCAL, run, small_set, write_files

import pipeline
from pipeline.config import SECTIONS, AuditConfig, config_from, read_toml
from pipeline.errors import AuditError, UsageError
from pipeline.kernels.verify_params import VerifyParams
from pipeline.schemas import CHECKS

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
    if section == "verify" and name not in ("skip_similarity", "skip_signature", "pixels", "near_similarity"):
        module = Path(__file__).parents[1] / "pipeline/kernels/verify_params.py"
        assert f"{name}:" in module.read_text(encoding="utf-8")
        return
    if key == "neighbours.copy.least":  # refused: it follows from the threshold
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"delete_img": "yes"}, "delete_img is 'yes'"),
        ({"delete_tar": 1}, "delete_tar is 1"),
        ({"select": {"tar_only": "yes"}}, "select.tar_only is 'yes'"),
        ({"accept_empty": None}, "accept_empty is None"),
        (read_toml(b'[verify]\npixels = "false"\n', "audit.toml"), "verify.pixels is 'false'"),
    ],
)
def test_a_switch_wants_true_or_false(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_from({"sources": ["photos/"], "root": "audit/", **values})
    assert str(caught.value) == f"configuration: {said}, want true or false"


def test_file_that_is_not_toml_is_named() -> None:
    """A broken file is a usage error with its name."""
    with pytest.raises(UsageError, match=r"audit\.toml: not TOML"):
        read_toml(b"root = ", "audit.toml")


EXTREMES: list[Any] = [
    0,
    -1,
    1,
    2**62,
    -(2**62),
    2**80,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    True,
    "",
    "x",
    [],
    {},
]
"""Of every type that TOML has; of them a key takes those of its type and range."""
TAKEN = {
    "test": ["", "x", []],
    "root": ["x"],
    "rule.table": ["x"],
    "model.path": ["", "x"],
    "model.cache": [""],
    "embeddings": ["", "x"],
    "rule.split": ["x"],
    "rule.default_split": ["x"],
    "model.input": [{}],
    "storage.endpoints": [{}],
    "storage.region": ["", "x"],
    "storage.max_attempts": [1, 2**62],
    "storage.read_timeout": [1, 1e-300],
    "storage.connect_timeout": [1, 1e-300],
    "storage.backoff": [0, 1, 1e-300],
    "storage.sync_to_local": [""],
    "storage.sync_budget": [],
    "keeper.splits": [[]],
    "measure.max_pixels": [1, 2**62],
    "measure.max_bytes": [1, 2**62],
    "measure.max_memory": [1, 2**62],
    "measure.min_width": [1, 2**62],
    "measure.min_height": [1, 2**62],
    "measure.input_width": [0],
    "measure.input_height": [0],
    "min_offset": [0, 1, 2**62],
    "max_offset": [1, 2**62],
    "shard_size": [1, 2**62],
    "max_failed_share": [0, 1, 1e-300],
    "select.num_images": [0, 1, 2**62],
    "select.find_regex": ["", "x"],
    "select.subset": [],
    "select.min_file_size": [0, 1, 2**62],
    "select.tar_only": [True],
    "bounding_box": [""],
    "box_model": [""],
    "boxes.horizontal": [0, 1, 1e-300],
    "boxes.vertical": [0, 1, 1e-300],
    "boxes.margin": [0, 1, 2**62],
    "boxes.min_width": [1, 2**62],
    "boxes.min_height": [1, 2**62],
    "video.fps": [1, 1e-300],
    "video.max_frames": [1, 2**62],
    "accept_empty": [True],
    "delete_img": [],
    "delete_tar": [],
    "verify.pixels": [True],
    "space.embedding_dims": [1, 2**62],
    "space.signature_dims": [1, 2**62],
    "space.embedding_weight": [1e-300],
    "space.regulariser": [1, 2**62, 1e-300, 1e300],
    "space.prior": [0, 1, 2**62],
    "threshold.false_per_image": [1, 2**62, 1e-300, 1e300],
    "threshold.false_in_all": [0, 1, 2**62, 1e-300, 1e300],
    "threshold.floor": [0, -1, 1e-300],
    "threshold.ceiling": [1],
    "neighbours.copy.k_cross": [0, 1],
    "neighbours.copy.overfetch": [1],
    "neighbours.exact_limit": [0, 1, 2**62],
    "neighbours.copy_probes": [1, 2**62],
    "neighbours.semantic_probes": [1, 2**62],
    "neighbours.recall_sample": [1, 2**62],
    "neighbours.partition_rows": [1, 2**62],
    "neighbours.pairs_per_image": [1, 2**62, 1e-300, 1e300],
    "neighbours.threshold": [1e-300],
    "groups.max_size": [2**62],
    "groups.far_below": [0, 1, 1e-300],
    "groups.max_far_share": [0, 1, 1e-300],
    "groups.step": [1],
    "groups.max_split": [0, 1, 2**62],
    "groups.memory_bytes": [1, 2**62],
    **{f"quality.{check}": [1] for check in CHECKS if check != "odd_aspect"},
}
SHARES = [0, 1, 1e-300]
ABOVE_0 = {
    "least_windows": [1, 2**62],
    "least_inliers": [1, 2**62],
    "scene_inliers": [1, 2**62],
    **{
        name: [1, 2**62, 1e-300, 1e300]
        for name in ("skew", "clean_skew", "turn", "flat_difference", "drift", "tolerance")
    },
}
KEYS = [*leaves(AuditConfig(("photos/",), "audit/"))]


def with_value(key: str, value: Any, **given: Any) -> dict[str, Any]:
    """The nested mappings that give one key a value."""
    *sections, name = key.split(".")
    nested: dict[str, Any] = {name: value}
    for section in reversed(sections):
        nested = {section: nested}
    return {"sources": ["photos/"], "root": "audit/", **given, **nested}


def is_accepted(key: str, value: Any) -> bool:
    """Whether the configuration takes a value; a refusal is a usage error of the whole configuration."""
    try:
        config_from(with_value(key, value))
    except UsageError as error:
        if not str(error).startswith("configuration: "):
            raise
        return False
    return True


def accepted(key: str) -> list[Any]:
    """The extreme values that the configuration takes for a key."""
    return [value for value in EXTREMES if is_accepted(key, value)]


@pytest.mark.parametrize("key", KEYS)
def test_extreme_values_of_every_key(key: str) -> None:
    """Zero, negative, tiny, huge, NaN, infinite and of a wrong type: taken where a run can do with it, else refused."""
    section, _, name = key.rpartition(".")
    wanted = TAKEN.get(key, [])
    if section == "verify" and name not in ("side", "pixels"):
        wanted = ABOVE_0.get(name, SHARES)

    assert list(map(repr, accepted(key))) == [repr(value) for value in EXTREMES if repr(value) in map(repr, wanted)]


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("neighbours.semantic_k", 10, 999),
        ("neighbours.copy.k", 3, 1000),
        ("neighbours.copy.overfetch", 1, 1000),
        ("verify.side", 64, 1024),
        ("quality.grey", 1e-6, 1e6),
    ],
)
def test_ends_of_a_range(key: str, least: float, most: float) -> None:
    """Both ends are taken, and what lies beyond is refused with the range."""
    for value in (least, most):
        config_from(with_value(key, value))
    for value in (least - 1, most + 1):
        with pytest.raises(UsageError, match=f"{key.rpartition('.')[2]}.* want"):
            config_from(with_value(key, value))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Where a small audit is: its sources and root."""
    folder = tmp_path_factory.mktemp("config")
    places = {"sources": (str(write_files(folder / "photos", small_set(12))),), "root": str(folder / "audit")}
    run(*places["sources"], root=places["root"])
    return places


def audits(values: dict[str, Any]) -> None:
    """A run with this configuration has a row for every image of the small set, in the tables that it should be in."""
    audit = pipeline.run(*values.pop("sources"), **values, where=LOCAL)
    if "min_offset" in values or "max_offset" in values:
        assert audit is None
        return
    assert audit is not None
    counts = {name: audit.table(name).num_rows for name in ("images", "invalid", "quality", "outliers", "labels")}
    assert counts["images"] == 15
    assert counts["quality"] == counts["outliers"] == counts["labels"] == 15 - counts["invalid"]
    assert counts["invalid"] == (15 if MEASURED_OUT & set(values.get("measure", {}).items()) else 1)


MEASURED_OUT = {("max_pixels", 1), ("max_bytes", 1), ("max_memory", 1), ("min_width", 2**62), ("min_height", 2**62)}
FILES = ("root", "sources", "test", "rule.table", "model.path", "embeddings")
SELECTING = [key for key in KEYS if key.startswith("select.")]
RUNNABLE = [key for key in KEYS if key not in (*FILES, *SELECTING)]


@pytest.mark.slow
@pytest.mark.parametrize("key", RUNNABLE)
def test_extreme_values_that_are_taken_run(key: str, audited: dict[str, Any]) -> None:
    """Each value that the configuration takes makes an audit of all images."""
    for value in accepted(key):
        audits(with_value(key, value, **audited))


@pytest.mark.slow
@pytest.mark.parametrize("key", SELECTING)
def test_extreme_selections_that_are_taken_run(key: str, audited: dict[str, Any]) -> None:
    """Each takes the number of images that it says, or it is said that it takes none."""
    for value in accepted(key):
        values = with_value(key, value, **audited)
        if (key, value) in TAKES_NONE:
            with pytest.raises(UsageError, match=r"select takes none of 15 images \("):
                pipeline.run(*values.pop("sources"), **values, where=LOCAL)
            continue
        audit = pipeline.run(*values.pop("sources"), **values, where=LOCAL)
        assert audit is not None
        assert audit.table("images").num_rows == (1 if (key, value) == ("select.num_images", 1) else 15)


TAKES_NONE = {("select.find_regex", "x"), ("select.tar_only", True), ("select.min_file_size", 2**62)}


@pytest.mark.parametrize("last", [False, True])
def test_extreme_values_run_together(last: bool, audited: dict[str, Any]) -> None:
    """Of every limit the first of the values that are taken, or the last."""
    values: dict[str, Any] = dict(audited)
    for key in RUNNABLE:
        section, _, name = key.partition(".")
        taken = accepted(key)
        if taken and section in ("space", "threshold", "neighbours", "verify", "quality") and key.count(".") == 1:
            values.setdefault(section, {})[name] = taken[-1 if last else 0]
    values["threshold"] = {"ceiling": 1}
    assert len(values) == 7
    audits(values)


@pytest.mark.parametrize("content", [None, b"name,label\na.jpg,cat\n", b"filename,label\na.jpg,cat,x\n"])
def test_table_of_labels_is_read_before_the_sources(content: bytes | None, tmp_path: Path) -> None:
    """One that is missing or cannot be used ends the run before anything is listed, and is not kept."""
    table = tmp_path / "labels.csv"
    if content is not None:
        table.write_bytes(content)
    photos = write_files(tmp_path / "photos", small_set(4))

    with pytest.raises(AuditError, match=r"labels\.csv"):
        run(photos, root=tmp_path / "audit", rule={"table": str(table)})

    assert not (tmp_path / "audit/catalog").exists()
    assert not (tmp_path / "audit/annotations").exists()


def test_sections_are_dataclasses_of_the_config() -> None:
    """Every section of the file is a field of the configuration, of that type."""
    config = AuditConfig(("photos/",), "audit/")

    assert {name: type(getattr(config, name)) for name in SECTIONS} == SECTIONS
    assert isinstance(config.verify, VerifyParams)
