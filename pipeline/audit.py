"""An audit that was made: its summary and its tables, read from the root."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NotFound, UsageError
from pipeline.kernels.groups import TRAIN
from pipeline.layout.audits import Published, audit_folder, latest_audit, read_audit, table_keys
from pipeline.layout.root import Root, is_root
from pipeline.layout.served import read_recipe
from pipeline.layout.tables import read_table
from pipeline.plan.asking import Images, ask, require_call, together
from pipeline.plan.crops import crops_of
from pipeline.plan.serving import once, require_served, serving_session
from pipeline.plan.session import Session
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner
from pipeline.schemas import TABLES
from pipeline.storage import StorageConfig, canonical_uri

FINDINGS = (
    "leaks", "duplicates", "groups", "outliers", "labels", "label_conflicts", "quality", "videos", "invalid", "images"
)  # fmt: skip
"""The tables of an audit."""


@dataclass(frozen=True)
class Audit:
    """A published audit. Every method reads what is stored; nothing is computed anew."""

    root: Root
    published: Published

    @property
    def audit_id(self) -> str:
        """Identity of the audit: its snapshot and what decided its tables."""
        return self.published.audit_id

    @property
    def tables_uri(self) -> str:
        """Where the tables lie, as Parquet."""
        return f"{self.root.uri}/{audit_folder(self.audit_id)}/tables"

    def summary(self) -> dict[str, Any]:
        """What was found, in numbers: images by status, pairs by kind, leaks by split, the threshold, recall.

        `left_out`, `hidden`: files that the latest listing of the sources left out, being no images by name, or hidden;
        `unselected`: images that its selection did not take.
        """
        stages = {stage["stage"]: stage["counters"] for stage in self.published.session["stages"]}
        left_out = {name: int(stages.get("catalog", {}).get(name, 0)) for name in ("left_out", "hidden")}
        return {**self.published.facts, **left_out, "unselected": self.published.session.get("unselected", 0)}

    def table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002 - the word of pyarrow, which takes it
        limit: int | None = None,
    ) -> pa.Table:
        """A table by name, as Arrow: these `columns` (None: all), the first `limit` rows (None: all).

        `filter` is a pyarrow expression such as `pyarrow.compute.field("severity") >= 3`, applied part by part. Raises
        UsageError for a table, a column or a limit that cannot be.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"limit {limit}, want at least 0, or None for every row")
        schema = _checked(name, columns, filter)
        batches, rows = [], 0
        for part in self._batches(name, columns, filter) if limit != 0 else ():
            batches.append(part if limit is None else part.slice(0, limit - rows))
            rows += batches[-1].num_rows
            if limit is not None and rows >= limit:
                break
        return pa.concat_tables(batches).cast(schema) if batches else schema.empty_table()

    def batches(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
    ) -> Iterator[pa.Table]:
        """The parts of a table, one at a time: for tables larger than memory. Raises UsageError as `table` does."""
        _checked(name, columns, filter)
        return self._batches(name, columns, filter)

    def _batches(self, name: str, columns: Sequence[str] | None, wanted: pc.Expression | None) -> Iterator[pa.Table]:
        store = self.root.open()
        for key in table_keys(store, self.published, name):
            if wanted is None:
                yield read_table(store, key, columns)
            else:
                part = read_table(store, key).filter(wanted)  # not pyarrow.dataset: it imports pandas, 0.3 s
                yield part if columns is None else part.select(list(columns))

    def leaks(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Images with a match in another split, by severity: 3 and more are leaks. Arguments as in `table`."""
        return self.table("leaks", columns, filter, limit)

    def duplicates(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Pairs of duplicates and near-duplicates, and the pairs that only look alike. Arguments as in `table`."""
        return self.table("duplicates", columns, filter, limit)

    def groups(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Images in groups of duplicates, with the one to keep. Arguments as in `table`."""
        return self.table("groups", columns, filter, limit)

    def outliers(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Every ok image with how unlike its neighbours it is. Arguments as in `table`."""
        return self.table("outliers", columns, filter, limit)

    def labels(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Every labelled ok image with how well its label agrees with its neighbours. Arguments as in `table`."""
        return self.table("labels", columns, filter, limit)

    def label_conflicts(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Images that occur under several labels. Arguments as in `table`."""
        return self.table("label_conflicts", columns, filter, limit)

    def quality(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Every ok image with its statistics and quality checks. Arguments as in `table`."""
        return self.table("quality", columns, filter, limit)

    def videos(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Videos of which at least half of the frames are in another one. Arguments as in `table`."""
        return self.table("videos", columns, filter, limit)

    def invalid(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Every image that is not ok, with why. Arguments as in `table`."""
        return self.table("invalid", columns, filter, limit)

    def images(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,  # noqa: A002
        limit: int | None = None,
    ) -> pa.Table:
        """Every image of the snapshot. Arguments as in `table`."""
        return self.table("images", columns, filter, limit)

    def crops(self, rotated: bool = False) -> pa.Table:
        """Boxes as fastdup's atrain_crops.csv lists them: index (the image_id), filename (of the image), crop_filename
        (the uri of the box), col_x, row_y, width, height, label, confidence; of rotated boxes x1, y1, ..., x4, y4.

        The label is what a detector said of the box, with its confidence; else that of the audit, without one.
        """
        return pa.concat_tables(self.crop_batches(rotated))

    def crop_batches(self, rotated: bool = False) -> Iterator[pa.Table]:
        """The same some at a time; the first one has no rows."""
        recipe = read_recipe(self.root, self.audit_id)
        return crops_of(recipe.inputs, recipe.detections, rotated)

    def search(self, images: Images, k: int = 10, space: str = "semantic") -> pa.Table:
        """The k images of the audit that are nearest to each query, nearest first; columns as in docs/search.md.

        `images`: a path, `s3://` address or bytes of an image, a folder or prefix of them, a list of these, or an array
        of embeddings (n, d) of the audit's model. `space`: "semantic" for what shows the same, "copy" for copies. The
        index is made by the first search, in this process; `image-audit index` makes it ahead, on a cluster. An image
        that cannot be read or decoded is a row with its status. Raises UsageError for a k, a space or vectors that
        cannot be, NotFound for an image that is not there.
        """
        recipe = read_recipe(self.root, self.audit_id)
        require_call(recipe, images, k, space)

        def start() -> Session:
            return serving_session(self.root, LocalRunner(), SilentReporter(), "audit.search(...)")

        with once(start) as session:
            return together(ask(recipe, lambda: require_served(recipe, space, session), images, k))

    def __repr__(self) -> str:
        return f"<Audit {self.audit_id} in {self.root.uri}>\n" + "\n".join(summary_lines(self.summary()))


def open_audit(
    root: str | os.PathLike[str], audit_id: str | None = None, storage: StorageConfig | Mapping[str, Any] | None = None
) -> Audit:
    """The latest audit of a root, or the one of that id; `storage` as in `run`. Raises NotFound where there is none."""
    config = storage if isinstance(storage, StorageConfig) else StorageConfig(**(storage or {}))
    place = Root(canonical_uri(root, config), config)
    store = place.open()
    if not is_root(store):
        raise NotFound(f"{place.uri} is not the root of an audit. Make one: image-audit run SOURCE --root {root}")
    published = latest_audit(store) if audit_id is None else read_audit(store, audit_id)
    if published is None:
        raise NotFound(f"{place.uri} holds no finished audit. Make one: image-audit run SOURCE --root {root}")
    return Audit(place, published)


def summary_lines(facts: dict[str, Any]) -> list[str]:
    """The summary as text."""
    images = facts["images"]
    why = ", ".join(f"{status} {count:,}" for status, count in sorted(images["statuses"].items()) if status != "ok")
    invalid = f"{images['invalid']:,} invalid{why and f': {why}'}"
    others = [(facts["left_out"], "other"), (facts["hidden"], "hidden")]
    counted = " and ".join(f"{count:,} {kind} file{'s'[: count != 1]}" for count, kind in others if count)
    beside = f"; {counted} left out" if counted else ""
    lines = [f"images      {images['live']:,} ({images['ok']:,} ok, {invalid}){beside}"]
    if unselected := facts.get("unselected"):
        lines.append(f"selection   {unselected:,} images are not selected and have no row")
    without = images["live"] - sum(images["splits"].values())
    if images["splits"] and without:
        splits = ", ".join(f"{name} {count:,}" for name, count in images["splits"].items())
        lines.append(f"splits      {splits}, none {without:,}, which are in no leak")
    duplicates = facts["duplicates"]
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in duplicates["pairs"].items())
    unread = f"; {duplicates['unread']:,} could not be compared" if duplicates["unread"] else ""
    lines.append(f"pairs       {kinds or 'none'}{unread}")
    lines.append(
        f"groups      {duplicates['groups']:,} with {duplicates['grouped_images']:,} images, largest "
        f"{duplicates['largest_group']:,}"
    )
    lines.extend(f"leaks       {line}" for line in leak_lines(facts["leaks"]))
    lines.append(f"outliers    {facts['outliers']['flagged']:,}")
    lines.append(f"labels      {facts['labels']['issues']:,} suspect, {facts['labels']['conflicts']:,} in conflict")
    checks = ", ".join(f"{check} {count:,}" for check, count in facts["quality"].items() if count)
    lines.append(f"quality     {checks or 'no issues'}")
    videos = facts["videos"]
    if videos["videos"]:
        sharing = f"{videos['sharing']:,} of which another one holds at least half of the frames"
        lines.append(f"videos      {videos['videos']:,} ({videos['frames']:,} frames), {sharing}")
    lines.append(f"threshold   {facts['threshold']['text']}")
    lines.append(f"recall      {facts['recall']['text']}")
    return lines


def leak_lines(leaks: dict[str, Any]) -> list[str]:
    """One line per evaluation split, which is every split but train: how many of its ok images leak into any other."""
    found = leaks["headline"]
    if len(found) < 2:
        where = f"every image that has a split is in {found[0]['split']}" if found else "no image has a split"
        return [f"none can be found: {where}"]
    lines = []
    for split in (item for item in found if item["split"] != TRAIN):
        others = [
            f"{pair['other']} ({pair['leaking']:,})" for pair in leaks["splits"] if pair["split"] == split["split"]
        ]
        lines.append(
            f"{split['leaking']:,} of {split['images']:,} {split['split']} images ({split['share']:.2%}) have a "
            f"duplicate or near-duplicate in {', '.join(others) or 'another split'}"
        )
    return lines


def table_to_show(facts: dict[str, Any]) -> str:
    """The name of the table of findings to look at first: one that has rows, where any has."""
    found = {
        "leaks": facts["leaks"]["images"],
        "duplicates": facts["duplicates"]["pairs"],
        "labels": facts["labels"]["issues"],
        "outliers": facts["outliers"]["flagged"],
        "quality": any(facts["quality"].values()),
        "invalid": facts["images"]["invalid"],
    }
    return next((name for name, rows in found.items() if rows), "images")


def _checked(name: str, columns: Sequence[str] | None, wanted: pc.Expression | None) -> pa.Schema:
    """The schema of what is asked for. Raises UsageError for a table, a column or a filter that cannot be."""
    if name not in FINDINGS:
        raise UsageError(f"no table {name!r}; there are: {', '.join(FINDINGS)}")
    schema = TABLES[name].schema
    if isinstance(columns, str):
        raise UsageError(f"columns {columns!r}, want a list of names: columns=[{columns!r}]")
    if wanted is not None and not isinstance(wanted, pc.Expression):
        raise UsageError(f"filter {wanted!r}, want an expression such as pyarrow.compute.field('uri') == 'a.jpg'")
    try:
        if wanted is not None:
            schema.empty_table().filter(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = str(error).partition(" in image_id:")[0]  # else the schema follows, a column a line
        raise UsageError(f"filter {wanted}: {why}. Table {name} has: {', '.join(schema.names)}") from error
    unknown = [column for column in columns or () if column not in schema.names]
    if unknown:
        raise UsageError(f"table {name} has no column {', '.join(unknown)}; it has: {', '.join(schema.names)}")
    return schema if columns is None else pa.schema([schema.field(column) for column in columns])
