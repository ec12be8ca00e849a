"""The threshold rule: how similar two images must be before their pixels are compared.

The tail of the similarities of random pairs is exponential: on 14,034 scene photos every decade of the exceedance
probability from 1e-2 to 1e-5 takes .09 to .11 of similarity. Two quantiles of a sample of all pairs therefore give
the similarity at which a dataset of any size expects a given number of false candidates per image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.npz import pack_arrays, unpack_arrays

HISTOGRAM_BINS = 65_536
REFERENCE_PROBABILITY = 1e-3
TAIL_PRIOR = 100  # own tail weighs n / (n + 100): even 100 images of a foreign domain must raise the threshold
# True duplicates put c / N of all random pairs at the far end, c being copies per image: the quantiles that are read
# stay above 30 / N. Six copies of every image (600 photos, 9 edits of each, among 8,400) moved the threshold by .02.
_PAIRS_PER_IMAGE_READ = 30.0
_DEEPEST, _SHALLOWEST = 1e-3, 3e-2
_FEWEST_IN_TAIL = 100  # from 83 images on
_BLOCK = 1024
NEAR_COPY = 0.9  # rows of a sample as similar as this are taken for copies of one image


@dataclass(frozen=True)
class ThresholdParams:
    """The rule's settings.

    `false_per_image`: false candidates that one image may expect. 0.1 where pixels are compared afterwards: a twentieth
    of a comparison per image, since each pair has two. At 1e-3 the scene photos would need .64 at 14,034 and .82 at a
    million and lose 27% and 70% of nine strong edits; at 0.1 .46 and .63, and 2% and 24%. Use `unverified_params`
    where no pixels are compared.
    `false_in_all`: false candidates that a set may have however small it is. In 168 tiles of five photographs 0.1 for
    each asks for .53 and loses a fifth of the strong edits; 300 comparisons cost 2 s and none is lost.
    `floor`, `ceiling`: the value is kept between them. Of pairs near .4 none was one photo (18 of 18 looked at).
    """

    false_per_image: float = 0.1
    false_in_all: float = 300.0
    floor: float = 0.35
    ceiling: float = 0.95

    def __post_init__(self) -> None:
        problems = []
        if not self.false_per_image > 0:
            problems.append(f"false_per_image {self.false_per_image}, want more than 0")
        if not self.false_in_all >= 0:
            problems.append(f"false_in_all {self.false_in_all}, want at least 0")
        if not -1 <= self.floor <= self.ceiling <= 1:
            problems.append(f"floor {self.floor} and ceiling {self.ceiling}, want -1 <= floor <= ceiling <= 1")
        if problems:
            raise UsageError("threshold: " + "; ".join(problems))


def unverified_params() -> ThresholdParams:
    """The rule where no pixels are compared afterwards (a user's own embeddings): 1 false pair per 1,000 images."""
    return ThresholdParams(false_per_image=1e-3, false_in_all=0.0, floor=0.5)


@dataclass(frozen=True)
class NullTail:
    """`P(similarity >= t) = 1e-3 * exp(-(t - anchor) / scale)` for a pair that is no pair.

    `anchor`: similarity that one random pair in 1,000 reaches. `scale`: similarity per factor e. `pairs`: pairs that
    were counted. `source`: `random pairs`, `other class`, `shipped` or `blend`.
    """

    anchor: float
    scale: float
    pairs: int
    source: str

    def probability(self, similarity: float) -> float:
        """Share of non-pairs at or over `similarity`."""
        exponent = (self.anchor - similarity) / self.scale + math.log(REFERENCE_PROBABILITY)
        return math.exp(min(exponent, 0.0))

    def similarity(self, probability: float) -> float:
        """Similarity that this share of the non-pairs reaches: the inverse of `probability`."""
        return self.anchor + self.scale * math.log(REFERENCE_PROBABILITY / probability)


@dataclass(frozen=True)
class RecallCurve:
    """Known edits found at each threshold: `recall` float64 (edits, thresholds), both axes named."""

    edits: tuple[str, ...]
    thresholds: NDArray[np.float64]
    recall: NDArray[np.float64]

    def misses_at(self, threshold: float) -> dict[str, float]:
        """Share of each kind of edit whose similarity with its original lies below `threshold`, and `all`."""
        found = [float(np.interp(threshold, self.thresholds, row)) for row in self.recall]
        misses = {edit: 1 - share for edit, share in zip(self.edits, found, strict=True)}
        return {**misses, "all": 1 - sum(found) / len(found)}


@dataclass(frozen=True)
class Threshold:
    """The rule's answer: the similarity a candidate needs, and what that is expected to cost.

    `expected_false`: false candidates per image. `expected_misses`: share of known edits below the value, by kind and
    over `all`; empty without a shipped recall curve.
    """

    value: float
    expected_false: float
    floor_hit: bool
    ceiling_hit: bool
    expected_misses: dict[str, float]


@dataclass(frozen=True)
class CopyPrior:
    """What ships beside a model: the tail of varied photos and how similar known edits are."""

    tail: NullTail
    curve: RecallCurve


def null_histogram(vectors: NDArray[np.float32], labels: NDArray[np.int32] | None) -> NDArray[np.uint64]:
    """Similarities of all pairs of unit vectors (m, d), counted in 65,536 bins over [-1, 1], uint64.

    With labels only pairs of different labels count; a negative label is none and its pairs are left out. Such a null
    lacks the look-alikes of one class, which become candidates too: on 14,034 photos of six scene classes it gives
    .35 where all pairs give .46, and 9 times the candidates. Leave labels out to count candidates.
    Histograms of disjoint sets of pairs add. 8,192 vectors of 320 numbers take 0.7 s of one core.
    """
    counts = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
    for start in range(0, len(vectors), _BLOCK):
        similarities = vectors[start : start + _BLOCK] @ vectors[start:].T
        rows, columns = similarities.shape
        wanted = np.arange(columns)[None, :] > np.arange(rows)[:, None]
        if labels is not None:
            left, right = labels[start : start + rows, None], labels[None, start:]
            wanted &= (left != right) & (left >= 0) & (right >= 0)
        bins = ((similarities[wanted] + 1.0) * (HISTOGRAM_BINS / 2)).astype(np.int32)
        counts += np.bincount(np.clip(bins, 0, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
    return counts.astype(np.uint64)


def distinct_rows(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of a sample of unit vectors (m, d) are no near-copy (.9 or more) of an earlier one, bool (m,).

    The null is of images that are no copies. One cluster of a tenth of the images, such as the frames of a still
    camera, is a hundredth of all pairs, which are read as the tail: it moved the threshold of 200,000 images from .62
    to the ceiling. All are kept where fewer than half are distinct: then the vectors are alike because of the model.
    """
    kept = np.ones(len(vectors), dtype=bool)
    for start in range(0, len(vectors), _BLOCK):
        rows = vectors[start : start + _BLOCK]
        near = rows @ vectors[: start + len(rows)].T >= NEAR_COPY
        earlier = np.arange(start + len(rows))[None, :] < np.arange(start, start + len(rows))[:, None]
        kept[start : start + len(rows)] = ~(near & earlier).any(axis=1)
    return kept if 2 * kept.sum() >= len(kept) else np.ones(len(kept), dtype=bool)


def fit_null(histogram: NDArray[np.uint64], representatives: int, source: str) -> NullTail | None:
    """The exponential tail through two quantiles of `null_histogram`; None where there are too few pairs to tell.

    `representatives` is the size of the whole dataset (not of the sample): it says how far out its true duplicates
    can contaminate random pairs. The quantiles are p = clip(30 / representatives, 1e-3, 3e-2) and min(10 p, 0.1).
    """
    if histogram.shape != (HISTOGRAM_BINS,):
        raise UsageError(f"a null histogram has {HISTOGRAM_BINS} bins, got shape {histogram.shape}")
    pairs = int(histogram.sum())
    deep = min(max(_PAIRS_PER_IMAGE_READ / max(representatives, 1), _DEEPEST), _SHALLOWEST)
    shallow = min(10 * deep, 0.1)
    if pairs * deep < _FEWEST_IN_TAIL:
        return None
    near, far = _quantile(histogram, shallow), _quantile(histogram, deep)
    # Two quantiles in one bin (every image the same) would make the scale zero.
    scale = max(far - near, 2.0 / HISTOGRAM_BINS) / math.log(shallow / deep)
    return NullTail(far + scale * math.log(deep / REFERENCE_PROBABILITY), scale, pairs, source)


def blend_null(own: NullTail | None, shipped: NullTail | None, representatives: int) -> NullTail | None:
    """Own tail leaning on the shipped one, weight n / (n + 100) for the own; None without either."""
    if own is None or shipped is None:
        return own or shipped
    weight = representatives / (representatives + TAIL_PRIOR)
    anchor = weight * own.anchor + (1 - weight) * shipped.anchor
    return NullTail(anchor, weight * own.scale + (1 - weight) * shipped.scale, own.pairs, f"{own.source} and shipped")


def threshold_for(
    tail: NullTail | None, representatives: int, params: ThresholdParams, curve: RecallCurve | None = None
) -> Threshold:
    """The similarity at which each of N representatives expects `false_per_image` false candidates among the others.

    Solves N * P(similarity >= t) = max(false_per_image, false_in_all / N) for t and keeps it between floor and
    ceiling. Without a tail (a user's own model and too few images) it is the floor, with nothing known of false
    candidates.
    """
    others = max(representatives - 1, 1)
    allowed = max(params.false_per_image, params.false_in_all / others)
    wanted = params.floor if tail is None else tail.similarity(min(allowed / others, 1.0))
    value = round(min(max(wanted, params.floor), params.ceiling), 6)
    expected = math.nan if tail is None else others * tail.probability(value)
    misses = {} if curve is None else curve.misses_at(value)
    return Threshold(value, expected, wanted <= params.floor, wanted > params.ceiling, misses)


def recall_curve(positives: dict[str, NDArray[np.floating]]) -> RecallCurve:
    """The curve from the similarities of (edit, original) pairs, by kind of edit, at steps of .01 from 0 to 1."""
    thresholds: NDArray[np.float64] = np.linspace(0.0, 1.0, 101, dtype=np.float64)
    edits = tuple(sorted(positives))
    recall = [[float((positives[edit] >= t).mean()) for t in thresholds] for edit in edits]
    return RecallCurve(edits, thresholds, np.array(recall))


def prior_to_bytes(prior: CopyPrior) -> bytes:
    """The prior as npz; equal priors give equal bytes."""
    tail = np.array([prior.tail.anchor, prior.tail.scale])
    curve = {"edits": np.array(prior.curve.edits), "thresholds": prior.curve.thresholds, "recall": prior.curve.recall}
    return pack_arrays({"tail": tail, "pairs": np.array(prior.tail.pairs), **curve})


def prior_from_bytes(data: bytes) -> CopyPrior:
    """Read what `prior_to_bytes` wrote; ArtifactError for anything else. No pickle is read."""
    arrays = unpack_arrays(data, ("tail", "pairs", "edits", "thresholds", "recall"), "shipped copy prior")
    tail = NullTail(float(arrays["tail"][0]), float(arrays["tail"][1]), int(arrays["pairs"]), "shipped")
    edits = tuple(str(edit) for edit in arrays["edits"])
    return CopyPrior(tail, RecallCurve(edits, arrays["thresholds"], arrays["recall"]))


def describe(
    threshold: Threshold,
    tail: NullTail | None,
    representatives: int,
    how: str = "pairs are compared pixel by pixel",
) -> str:
    """One sentence for the log and the summary: the value, what it lets through, and what it loses.

    `how`: what is done with the pairs, see `VerifyParams.how`.
    """
    limit = ", the least the rule takes" if threshold.floor_hit else ""
    if threshold.ceiling_hit:
        limit = ", the most the rule takes: this model hardly separates these images"
    false = "unknown (too few images)"
    if tail is not None:
        basis = tail.source.replace("random pairs", "these images").replace("shipped", "the photos shipped for this")
        false = f"about {threshold.expected_false:.2g} per image, estimated on {basis}"
    misses = threshold.expected_misses.get("all")
    # the shipped curve is of varied photos; of scene photos 1.5 to 1.9 times as many were missed at .457 to .729
    alike = "up to twice that where photos look alike"
    missed = "" if misses is None else f"; mildly edited copies missed: at least {misses:.1%}, {alike}"
    what = f"{how} from copy similarity {threshold.value:.3f} on{limit}"
    return f"{what}; unrelated ones among {representatives:,} images: {false}{missed}"


def _quantile(histogram: NDArray[np.uint64], share: float) -> float:
    """Lower edge of the bin that the upper `share` of the counts reaches down to."""
    above = np.cumsum(histogram[::-1].astype(np.int64))
    bin_from_top = int(np.searchsorted(above, share * float(above[-1])))
    return (HISTOGRAM_BINS - 1 - bin_from_top) * (2.0 / HISTOGRAM_BINS) - 1.0
