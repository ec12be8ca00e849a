"""The configuration of an audit: frozen, checked when built, readable from TOML; unknown keys are errors."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pipeline.errors import UsageError
from pipeline.kernels.boxes import parse_bounding_box
from pipeline.kernels.crop import BoxParams
from pipeline.kernels.groups import KeeperPolicy
from pipeline.kernels.hits import MOST_NEIGHBOURS, JoinParams
from pipeline.kernels.measure import MeasureParams
from pipeline.kernels.quality_checks import QualityLimits
from pipeline.kernels.space import SpaceParams
from pipeline.kernels.splitting import GroupParams
from pipeline.kernels.threshold import ThresholdParams
from pipeline.kernels.verify_params import VerifyParams
from pipeline.models.named import is_model_name
from pipeline.renamed import unknown_key
from pipeline.sources.labels import RuleParams
from pipeline.sources.selection import SelectParams
from pipeline.sources.videos import VideoParams
from pipeline.storage import StorageConfig, canonical_uri

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXACT_LIMIT = 100_000
MOST_LISTS = 2**20
MOST_LINKS = 256  # of kernels/hnsw.py, whose import would load faiss wherever a configuration is read
DISTANCES = ("cosine", "euclidean")
OTHER_DISTANCES = ("l1", "linf", "canberra", "braycurtis", "jensenshannon")  # of kernels/metrics.py, as is the limit
MOST_BY_DISTANCE = 50_000
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class ModelParams:
    """Which model embeds (docs/models.md).

    path: a file or a name, "" = the default model; input: what its graph does not say; cache: where the files of named
    models are, "" = the user's cache folder.
    """

    path: str = ""
    input: Mapping[str, Any] = field(default_factory=dict, hash=False)
    cache: str = ""

    def __post_init__(self) -> None:
        if self.input and is_model_name(self.path):
            raise UsageError(f"model: the input of {self.path} is known, drop its description")
        if self.input and not self.path:
            raise UsageError("model: its input is described and no model is named; name one or drop the description")


@dataclass(frozen=True)
class NeighbourParams:
    """How neighbours are searched.

    copy: neighbours kept per split; semantic_k: neighbours over all splits; index: "auto" compares all pairs up to
    exact_limit representatives and searches lists beyond, "Flat" compares all whatever the size, "IVF<n>" searches n
    lists, "HNSW<m>" graphs of m links inside partitions, exempt from equal rows; distance: "cosine", or "euclidean",
    which ranks unit vectors the same, or, with Flat, the user's own embeddings and at most 50,000 of them, another that
    ranks the semantic neighbours; copy_probes, semantic_probes: lists searched; partition_rows: the most vectors of
    a partition, of which a task holds one (2 kB each at its peak); pairs_per_image: the most pairs that are compared,
    the most similar ones (and 100,000 in any case); recall_sample: queries searched exactly to measure recall; space:
    "keep" a trained space while it fits or train a "new" one; threshold: a fixed candidate similarity instead of the
    rule.
    """

    copy: JoinParams = field(default_factory=JoinParams)
    semantic_k: int = 32
    index: str = "auto"
    distance: str = "cosine"
    exact_limit: int = EXACT_LIMIT
    pairs_per_image: float = 5.0
    copy_probes: int = 16
    semantic_probes: int = 32
    partition_rows: int = 1_048_576
    recall_sample: int = 5000
    space: str = "keep"
    threshold: float | None = None

    def __post_init__(self) -> None:
        problems = []
        leasts = {"exact_limit": 0, "copy_probes": 1, "semantic_probes": 1, "partition_rows": 1, "recall_sample": 1}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                problems.append(f"{name} {getattr(self, name)}, want at least {least}")
        if not 10 <= self.semantic_k < MOST_NEIGHBOURS:  # the query is among its own neighbours
            problems.append(f"semantic_k {self.semantic_k}, want 10 to {MOST_NEIGHBOURS - 1}")
        if self.copy and self.copy.threshold is not None:  # None where it has a problem of its own
            problems.append(f"copy.threshold {self.copy.threshold}: name it neighbours.threshold")
        if self.copy and self.copy.least is not None:
            problems.append(f"copy.least {self.copy.least}: it follows from neighbours.threshold; leave it out")
        problems += _index_problems(self.index, self.distance)
        if self.space not in ("keep", "new"):
            problems.append(f"space {self.space!r}, want keep or new")
        if not self.pairs_per_image > 0:
            problems.append(f"pairs_per_image {self.pairs_per_image}, want more than 0")
        if self.threshold is not None and not 0 < self.threshold < 1:
            problems.append(f"threshold {self.threshold}, want more than 0 and less than 1")
        if problems:
            raise UsageError("neighbours: " + "; ".join(problems))

    @property
    def kind(self) -> tuple[str, int]:
        """What `index` asks for: auto, Flat, IVF or HNSW, and the number behind it (0: none)."""
        word = self.index.rstrip("0123456789")
        return word, int(self.index[len(word) :] or 0)

    @property
    def metric(self) -> str:
        """The distance that ranks semantic neighbours where the cosine does not: "" for cosine and euclidean."""
        return self.distance if self.distance in OTHER_DISTANCES else ""


def _index_problems(index: str, distance: str) -> list[str]:
    problems = []
    found = re.fullmatch(r"auto|Flat|(IVF|HNSW)([0-9]{1,7})", index)
    bounds = {"IVF": (1, MOST_LISTS), "HNSW": (2, MOST_LINKS)}
    if found is None or (found[1] and not bounds[found[1]][0] <= int(found[2]) <= bounds[found[1]][1]):
        problems.append(f"index {index!r}, want auto, Flat, IVF1 to IVF{MOST_LISTS} or HNSW2 to HNSW{MOST_LINKS}")
    if distance not in (*DISTANCES, *OTHER_DISTANCES):
        problems.append(f"distance {distance!r}, want one of {', '.join((*DISTANCES, *OTHER_DISTANCES))}")
    elif distance in OTHER_DISTANCES and index != "Flat":
        problems.append(f"distance {distance!r} compares every pair: index 'Flat' goes with it, not {index!r}")
    return problems


@dataclass(frozen=True)
class AuditConfig:
    """Everything that decides the tables of an audit, and where they go. Who runs it is not part of it.

    sources: folders, buckets, archives, images or lists; test: one or several more, whose split is test; bounding_box:
    a box of every image that is audited in its place, as 'row_y=0,col_x=0,height=100,width=100'; xywh_bbox or rotated:
    those of the annotations (rule.table), which are audited anyway where they have any; or face, ocr or object: the
    boxes that a detector finds, an object by the YOLO-style ONNX file box_model; embeddings: a .npy or Parquet of the
    user's own vectors in place of a model. start: "features" lists nothing and audits the latest snapshot by what was
    extracted; until: "features" publishes nothing; min_offset, max_offset: nor does it list and extract more than this
    range of the snapshot (max_offset None = to the end). delete_img, delete_tar: remove the copies of images or
    archives that this machine keeps (storage.sync_to_local) once the audit is done; an original is never removed.
    """

    sources: tuple[str, ...]
    root: str
    test: str | tuple[str, ...] = ""
    rule: RuleParams = field(default_factory=RuleParams)
    select: SelectParams = field(default_factory=SelectParams)
    storage: StorageConfig = field(default_factory=StorageConfig)
    model: ModelParams = field(default_factory=ModelParams)
    measure: MeasureParams = field(default_factory=MeasureParams)
    boxes: BoxParams = field(default_factory=BoxParams)
    video: VideoParams = field(default_factory=VideoParams)
    space: SpaceParams = field(default_factory=SpaceParams)
    threshold: ThresholdParams = field(default_factory=ThresholdParams)
    neighbours: NeighbourParams = field(default_factory=NeighbourParams)
    verify: VerifyParams = field(default_factory=VerifyParams)
    groups: GroupParams = field(default_factory=GroupParams)
    quality: QualityLimits = field(default_factory=QualityLimits)
    keeper: KeeperPolicy = field(default_factory=KeeperPolicy)
    bounding_box: str = ""
    box_model: str = ""
    embeddings: str = ""
    start: str = "sources"
    until: str = "tables"
    min_offset: int | None = None
    max_offset: int | None = None
    shard_size: int | None = None
    max_failed_share: float = 0.01
    accept_empty: bool = False
    delete_img: bool = False
    delete_tar: bool = False

    def __post_init__(self) -> None:
        problems = []
        problems += _range_problems(self)
        problems += _box_problems(self.bounding_box)
        if not self.root:
            problems.append("no root given: --root says where the audit is kept")
        if isinstance(self.storage, StorageConfig):
            places = (*self.every_source, self.root)
            problems += [text for place in places if place and (text := _place_problem(place, self.storage))]
        problems += _idle_problems(self)
        if self.shard_size is not None and self.shard_size < 1:
            problems.append(f"shard_size {self.shard_size}, want at least 1")
        if not 0 <= self.max_failed_share <= 1:
            problems.append(f"max_failed_share {self.max_failed_share}, want 0 to 1")
        measure = self.measure  # None where it has a problem of its own
        plain = MeasureParams()
        if measure and replace(measure, input_size=plain.input_size, input_width=0, input_height=0) != measure:
            problems.append("measure.input_size, input_width and input_height follow from the model: leave them out")
        if problems:
            raise UsageError("; ".join(problems))

    @property
    def tests(self) -> tuple[str, ...]:
        """The sources whose split is test."""
        given = (self.test,) if isinstance(self.test, str) else self.test
        return tuple(filter(None, given))

    @property
    def every_source(self) -> tuple[str, ...]:
        """All sources, those of the split test last."""
        return (*self.sources, *self.tests)

    @property
    def is_range(self) -> bool:
        """Whether features are all that is made, of a range or of everything."""
        return self.min_offset is not None or self.max_offset is not None or self.until == "features"


def _range_problems(config: AuditConfig) -> list[str]:
    """What is wrong with where the work begins and ends."""
    problems = []
    if config.start not in ("sources", "features"):
        problems.append(f"start {config.start!r}, want sources or features")
    if config.until not in ("features", "tables"):
        problems.append(f"until {config.until!r}, want features or tables")
    has_sources = bool(config.every_source)
    if config.start == "features" and has_sources:
        problems.append("start at the features lists no source: name none, the root knows them")
    if config.start == "features" and config.is_range:
        problems.append("start at the features leaves nothing to extract: drop until and the offsets")
    if config.start != "features" and not config.sources and not config.embeddings:
        problems.append("no source given: name a folder, s3://bucket/prefix or minio://server/bucket/prefix")
    if config.neighbours and config.neighbours.metric and not config.embeddings:
        problems.append(
            f"neighbours.distance {config.neighbours.distance!r} without embeddings: vectors of a model are compared "
            "by their cosine; want cosine or euclidean, or embeddings of your own"
        )
    if config.embeddings and config.model and config.model.path:
        problems.append("embeddings and a model: the vectors are the one's or the other's; drop one of them")
    low, high = config.min_offset or 0, config.max_offset
    if low < 0 or (high is not None and high <= low):
        problems.append(f"offsets [{low}, {high}), want 0 <= min_offset < max_offset")
    return problems


def _idle_problems(config: AuditConfig) -> list[str]:
    """What is asked for and would do nothing."""
    problems = []
    if config.storage and not config.storage.sync_to_local:
        if config.delete_img or config.delete_tar:
            problems.append("delete_img and delete_tar remove copies: they go with storage.sync_to_local")
        if config.storage.sync_budget != StorageConfig.sync_budget:
            problems.append("storage.sync_budget is what copies may take: it goes with storage.sync_to_local")
    if config.model and config.model.cache and ("." in config.model.path or not config.model.path):  # else a name
        problems.append("model.cache is where named models are, and none is named: name one as model.path, or drop it")
    if config.box_model and config.bounding_box != "object":
        problems.append("box_model finds objects: it goes with bounding_box 'object'")
    if config.start == "features":
        idle = {"select": config.select != SelectParams(), "video": config.video != VideoParams()}
        idle["bounding_box"] = config.bounding_box not in ("", "xywh_bbox", "rotated")
        named = ", ".join(name for name, is_set in idle.items() if is_set)
        if named:
            problems.append(f"start at the features audits the images and boxes that the root has: drop {named}")
    return problems


def _box_problems(bounding_box: str) -> list[str]:
    try:
        if bounding_box:
            parse_bounding_box(bounding_box)
    except UsageError as error:
        return [str(error)]
    return []


def _place_problem(place: str, storage: StorageConfig) -> str:
    try:
        canonical_uri(place, storage).encode()
    except UnicodeEncodeError:
        return f"{place!r}: its path is not UTF-8, and every table would name it; rename it or name a link to it"
    except UsageError as error:
        return str(error)
    return ""


SECTIONS: dict[str, type[Any]] = {
    "rule": RuleParams,
    "select": SelectParams,
    "storage": StorageConfig,
    "model": ModelParams,
    "measure": MeasureParams,
    "boxes": BoxParams,
    "video": VideoParams,
    "space": SpaceParams,
    "threshold": ThresholdParams,
    "neighbours": NeighbourParams,
    "verify": VerifyParams,
    "groups": GroupParams,
    "quality": QualityLimits,
    "keeper": KeeperPolicy,
}
NESTED: dict[type[Any], dict[str, type[Any]]] = {
    NeighbourParams: {"copy": JoinParams},
}


def config_from(values: Mapping[str, Any]) -> AuditConfig:
    """The configuration of nested mappings (TOML or keywords). Raises UsageError with all problems in one message."""
    problems: list[str] = []
    built = _build(AuditConfig, dict(values), SECTIONS, "", problems)
    if problems or not isinstance(built, AuditConfig):
        raise UsageError("configuration: " + "; ".join(problems))
    return built


def read_toml(data: bytes, where: str) -> dict[str, Any]:
    """The mappings of a TOML document. Raises UsageError that names it."""
    try:
        found: dict[str, Any] = tomllib.loads(data.decode())
        return found
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{where}: not TOML ({error}). docs/config.toml has every key.") from error


def _build(
    kind: type[Any], values: dict[str, Any], sections: Mapping[str, type[Any]], prefix: str, problems: list[str]
) -> Any:
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(values) - known)
    keys = _keys(kind, sections)
    problems.extend(f"unknown key {prefix}{name} ({unknown_key(name, keys)})" for name in unknown)
    arguments: dict[str, Any] = {}
    for name in sorted(known & set(values)):
        value, section = _plain(values[name]), sections.get(name)
        if section is not None and isinstance(value, Mapping):
            arguments[name] = _build(section, dict(value), NESTED.get(section, {}), f"{prefix}{name}.", problems)
        elif _fits(hints[name], value):
            arguments[name] = value
        else:
            inside = f" ({name}={{...}})" if section is not None else ""
            also = (
                f"; the copy similarity of candidates is neighbours.{name}" if f"{prefix}{name}" == "threshold" else ""
            )
            problems.append(f"{prefix}{name} is {value!r}, want {_wanted(hints[name])}{inside}{also}")
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    if required - set(arguments):  # its own line above, or a caller's mistake
        problems.extend(f"{prefix}{name} is missing" for name in sorted(required - set(values)))
        return None
    try:
        return kind(**arguments)
    except UsageError as error:
        problems.append(str(error))
    return None


def _keys(kind: type[Any], sections: Mapping[str, type[Any]]) -> list[str]:
    """The keys that a caller may give, those of its sections last."""
    own = [item.name for item in fields(kind)] + ["annotations"] * (kind is AuditConfig)
    return own + [f"{name}.{item.name}" for name, section in sections.items() for item in fields(section)]


def _plain(value: Any) -> Any:
    """A list of TOML as a tuple, a path as text."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of an annotated type; a whole number of 64 bits is a number, true, false and NaN are none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(arm, value) for arm in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if origin is not None:
        keyed = isinstance(value, Mapping)
        return keyed and (arguments[1] is Any or all(_fits(arguments[1], item) for item in value.values()))
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, Integral):
        return hint in (int, float) and int(value) in INT64
    return isinstance(value, Real) and math.isfinite(value) if hint is float else isinstance(value, hint)


def _wanted(hint: Any) -> str:
    arms = (
        [arm for arm in get_args(hint) if arm is not type(None)] if get_origin(hint) in (Union, UnionType) else [hint]
    )
    words = {bool: "true or false", int: "a whole number of 64 bits", float: "a number", str: "text"}
    return words.get(arms[0], "a list of texts" if get_origin(arms[0]) is tuple else "a table of keys")
