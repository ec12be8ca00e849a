"""Choosing a space: the one that the root has while it fits, else a new one; its threshold for this audit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.kernels.threshold import describe, threshold_for
from pipeline.layout.exact import ExactSummary
from pipeline.layout.fingerprint import fingerprint, plain
from pipeline.layout.indexes import Index
from pipeline.layout.inputs import Inputs
from pipeline.layout.models import ModelRef
from pipeline.layout.siblings import LEAST_PARENTS, most_unrelated
from pipeline.layout.spaces import (
    COPY_SPACE,
    MOMENTS,
    SPACE,
    SpaceRecord,
    list_spaces,
    read_data_moments,
    read_space,
    read_space_record,
)
from pipeline.models.prior import copy_prior
from pipeline.plan.indexing import GROWTH, Searched, choose_index
from pipeline.plan.session import Session
from pipeline.runner import Task
from pipeline.stages import train

GROWTH_MATTERS_BELOW = 100_000
SPREAD_RATIO = 1.5


@dataclass(frozen=True)
class ChosenSpace:
    """The space of an audit: its folder, the threshold of candidates with the share of known edits below it, the
    index of the copy space, its record, and lines that say why.
    """

    folder: str
    threshold: float
    misses: dict[str, float]
    copy: Index
    record: SpaceRecord
    said: str
    threshold_said: str

    @property
    def is_exact(self) -> bool:
        """Whether every pair of representatives is compared."""
        return self.copy.is_exact


def choose_space(session: Session, inputs: Inputs, summary: ExactSummary, model: ModelRef) -> ChosenSpace:
    """The kept or newly trained space, with the threshold for this number of representatives."""
    key = {"features": inputs.features, "content": summary.digest}
    key |= {"siblings": str(train.SIBLINGS)} if summary.parents else {}
    moments = f"moments/{fingerprint('moments', train.VERSION, of=key)}"
    spec = train.MomentsSpec(inputs, moments)
    session.run_one("moments", moments, (MOMENTS,), Task(moments, train.take_moments, spec))
    record, said = _kept(session, inputs, moments, summary)
    if record is None:
        record = _trained(session, inputs, moments, summary, model)
    curve = None if model.key else copy_prior().curve
    rule = threshold_for(record.tail, summary.representatives, session.config.threshold, curve)
    how = session.config.verify.how
    text = describe(rule, record.tail, summary.representatives, how)
    fixed = session.config.neighbours.threshold
    if fixed is not None:
        given = f"copy similarity {fixed} on, as given; the rule says {rule.value:.3f}"
        text = f"{how} from {given}"
        rule = replace(rule, value=fixed, expected_misses={} if curve is None else curve.misses_at(fixed))
    searched = Searched(inputs, record, "", summary.digest, summary.representatives)
    return ChosenSpace(
        folder=record.folder,
        threshold=rule.value,
        misses=rule.expected_misses,
        copy=choose_index(session, searched, session.config.neighbours.copy_probes),
        record=record,
        said=said,
        threshold_said=text,
    )


def _kept(session: Session, inputs: Inputs, moments: str, summary: ExactSummary) -> tuple[SpaceRecord | None, str]:
    """The space of the root that still fits, or None and why a new one is trained."""
    newest, why = _newest(session, inputs, moments, summary)
    if newest is None:
        return None, why
    if newest.moments == moments:
        return newest, "kept: trained on these images"
    unrelated, trained = most_unrelated(summary), newest.unrelated or newest.representatives
    if unrelated > GROWTH * max(trained, 1) and trained < GROWTH_MATTERS_BELOW:
        return None, f"a new one: {unrelated:,} images, trained on {trained:,}"
    own = read_data_moments(session.store, moments)
    if summary.parents and own.embedding.count < LEAST_PARENTS:
        return newest, "kept: the spread of images of so few files says nothing"
    found = train.spread(read_space(session.store, newest.folder), own.embedding)
    ratio = found / newest.spread if newest.spread else 1.0
    if not 1 / SPREAD_RATIO <= ratio <= SPREAD_RATIO:
        return None, f"a new one: the images spread {ratio:.2f} times as far as those it was trained on"
    return newest, f"kept: trained on {trained:,} images that look like these"


def _newest(session: Session, inputs: Inputs, moments: str, summary: ExactSummary) -> tuple[SpaceRecord | None, str]:
    """The space that these very images trained, else the newest of the root, which may be asked whether it fits; or
    None and why there is none.
    """
    if session.config.neighbours.space == "new":
        return None, "a new one, as asked"
    of_model = [record for record in list_spaces(session.store) if record.features == inputs.features]
    alike = [record for record in of_model if record.params == plain(session.config.space)]
    known = [record for record in alike if record.unrelated or not summary.parents]
    if known:
        return max(known, key=lambda record: (record.moments == moments, record.snapshot, record.folder)), ""
    if alike:
        return None, "a new one: others may have been trained on frames and boxes as if they were unrelated images"
    why = "a new one: others were trained with other parameters" if of_model else "the first of this root and model"
    return None, why


def _trained(session: Session, inputs: Inputs, moments: str, summary: ExactSummary, model: ModelRef) -> SpaceRecord:
    params = session.config.space
    name = fingerprint("space", train.VERSION, moments=moments, params=params, model=model.sha256)
    counts = (summary.representatives, most_unrelated(summary))
    spec = train.SpaceSpec(inputs, moments, model, params, f"spaces/{name}", *counts)
    session.run_one("train", spec.folder, (COPY_SPACE, SPACE), Task(spec.folder, train.train_space, spec))
    return read_space_record(session.store, spec.folder)
