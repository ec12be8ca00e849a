"""Tables with a row per image: images, invalid, quality, outliers, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.kernels.histogram import percentile_of
from pipeline.kernels.labels import judge, label_issues
from pipeline.kernels.outliers import SCORE_BINS, label_percentiles, outlier_fence
from pipeline.kernels.quality_checks import QualityMeasures, quality_issues, quality_scores
from pipeline.layout.annotations import names_of
from pipeline.layout.scores import Totals
from pipeline.schemas import Status
from pipeline.stages.findings.context import Range, as_table, subject_columns


def images_table(found: Range) -> pa.Table:
    """Every image of the snapshot in the range, whatever its status."""
    subjects = found.subjects
    ids = subjects["image_id"].to_numpy()
    mask = ~found.ok
    columns = {
        **subject_columns(subjects),
        "source": subjects["source"],
        "path": found.paths(),
        "status": found.features["status"],
        "representative_id": pa.array(found.graph.exact.representatives_of(ids), mask=mask),
        "group_id": pa.array(found.graph.groups_of(ids), mask=mask),
    }
    return as_table("images", columns).filter(pa.array(found.live))


def invalid_table(found: Range) -> pa.Table:
    """Every image of the snapshot in the range that is not ok, with why."""
    columns = {
        **subject_columns(found.subjects),
        "status": found.features["status"],
        "message": found.features["message"],
    }
    bad = found.features["status"].to_numpy() != Status.OK.value
    return as_table("invalid", columns).filter(pa.array(found.live & bad))


def quality_table(found: Range, totals: Totals) -> pa.Table:
    """Statistics and quality checks of every ok image; a name with a vector alone has none."""
    keep = pa.array(found.ok & found.features["width"].is_valid().to_numpy())
    subjects, rows = found.subjects.filter(keep), found.features.filter(keep)
    names = QualityMeasures.__dataclass_fields__
    measured = QualityMeasures(*(rows[name].to_numpy() for name in names))
    scores = quality_scores(measured, totals.areas, found.spec.rules.quality)
    issues = quality_issues(scores)
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names} | subject_columns(subjects)
    for check, values in scores.items():
        columns[f"{check}_score"], columns[f"is_{check}_issue"] = values, issues[check]
    return as_table("quality", columns)


def outliers_table(found: Range, totals: Totals) -> pa.Table:
    """How unlike its neighbours every ok image is; copies share their representative's score."""
    keep = pa.array(found.ok)
    subjects = found.subjects.filter(keep)
    label = found.codes.label[found.ok]
    scored, row = found.scored
    score, nearest = scored.column("score")[row], scored.column("nearest_id")[row]
    fence = outlier_fence(totals.outliers, found.spec.rules.outliers)
    known = ~np.isnan(score)
    percentile = np.full(len(score), np.nan)
    percentile[known] = 100 * percentile_of(score[known], totals.outliers, SCORE_BINS)
    columns = {
        **subject_columns(subjects),
        "score": score,
        "is_outlier": known & (score > fence),
        "percentile": np.round(percentile, 4),
        "label_percentile": np.round(100 * label_percentiles(totals.by_label, label, score), 4),
        "nearest_id": pa.array(nearest, mask=nearest < 0),
        "nearest_uri": found.uris_of(nearest),
        "nearest_similarity": scored.column("nearest_similarity")[row],
        "is_exact": scored.column("is_exact")[row],
    }
    return as_table("outliers", columns)


def labels_table(found: Range, totals: Totals) -> pa.Table:
    """How well the label of every labelled ok image agrees with the vote of its neighbours."""
    keep = found.ok & (found.codes.label >= 0)
    subjects, given = found.subjects.filter(pa.array(keep)), found.codes.label[keep]
    scored, row = found.scored
    votes, query = scored.votes(), row[keep[found.ok]]
    judged = judge(votes, query, given)
    suggested = judged.suggested
    columns = {
        **subject_columns(subjects),
        "score": judged.score,
        "is_label_issue": label_issues(judged, given, totals.confidence, found.spec.rules.labels),
        "suggested_label": names_of(suggested, found.vocabulary.labels),
        "suggested_confidence": np.where(suggested >= 0, np.round(judged.other_share, 6), np.nan),
        "vote_count": votes.count[query],
    }
    return as_table("labels", columns)
