"""Label issues: the neighbours of an image vote on its label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.neighbour_lists import Neighbours, nearest_first

Array = NDArray[Any]

_MICRO = 1_000_000


@dataclass(frozen=True)
class LabelRule:
    """How neighbours vote and when their vote is an issue.

    neighbours: how many vote, at most. temperature: a neighbour's weight is exp((similarity - 1) / temperature).
    support: an issue's suggested label has at least this share of what images of that label usually get.
    doubt: its given label has under this share of what images of that one usually get.
    """

    neighbours: int = 30
    temperature: float = 0.1
    support: float = 0.8
    doubt: float = 0.1

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0 or not 0 < self.doubt < self.support <= 1:
            raise UsageError(f"{self}: want neighbours >= 1, temperature > 0 and 0 < doubt < support <= 1")


@dataclass(frozen=True)
class LabelShares:
    """What each representative votes: its group's labels, of which the shares add up to 1.

    representative int64 (r,) sorted; start int64 (r + 1,); entries start[i] to start[i + 1] of label int32 and share
    float64 are those of representative i, by label. Representatives without a labelled member are absent.
    """

    representative: Array
    start: Array
    label: Array
    share: Array


def label_shares(representative: Array, label: Array) -> LabelShares:
    """The shares of the labels among the labelled members of each exact group.

    One entry per member, in any order: representative int64 (n,), label int (n,), < 0 for none.
    """
    labelled = label >= 0
    owner, place = np.unique(representative[labelled], return_inverse=True)
    kinds = int(label.max(initial=0)) + 1
    # one number per (owner, label): rows of two take four times as long to sort
    pairs, count = np.unique(place.ravel() * kinds + label[labelled], return_counts=True)
    first = np.searchsorted(pairs // kinds, np.arange(len(owner) + 1))
    total = np.add.reduceat(count, first[:-1]) if len(owner) else count
    share = count / np.repeat(total, np.diff(first))
    return LabelShares(owner, first, (pairs % kinds).astype(np.int32), share)


@dataclass(frozen=True)
class Votes:
    """Shares of the vote of n queries: entries start[i] to start[i + 1] of label and share are query i's, by label.

    start int64 (n + 1,), label int32, share float64 (adding up to 1 per query), count int16 (n,): who voted.
    """

    start: Array
    label: Array
    share: Array
    count: Array


def vote(found: Neighbours, shares: LabelShares, rule: LabelRule) -> Votes:
    """The vote of each query's nearest labelled representatives outside its own group.

    Measured on 14,034 Intel scenes with 5% of the labels changed at random, AUROC of the score: .9905 with equal
    weights, .9911 at temperature 0.1; with 10 and 30 images per class .960 and .965 against .976 and .978. A class
    prior to the power -0.5 or -1 changed nothing on balanced classes and cost .002 and .04 on classes of 30 to 2,000.
    """
    ids, similarities = nearest_first(found, np.isin(found.ids, shares.representative))
    ids, similarities = ids[:, : rule.neighbours], similarities[:, : rule.neighbours]
    query, place = np.nonzero(ids >= 0)
    owner = np.searchsorted(shares.representative, ids[query, place])
    weight = np.exp((similarities[query, place] - 1.0) / rule.temperature)
    size = np.diff(shares.start)[owner]
    entry = np.arange(size.sum()) + np.repeat(shares.start[owner] - (np.cumsum(size) - size), size)
    kinds = int(shares.label.max(initial=0)) + 1
    key, inverse = np.unique(np.repeat(query, size) * kinds + shares.label[entry], return_inverse=True)
    # bincount adds in the order of its input, so the sums do not depend on which queries share a call
    total = np.bincount(inverse, np.repeat(weight, size) * shares.share[entry], len(key))
    voter, label = key // kinds, key % kinds
    share = total / np.bincount(voter, total, len(ids))[voter]
    start = np.searchsorted(voter, np.arange(len(ids) + 1))
    return Votes(start, label.astype(np.int32), share, (ids >= 0).sum(axis=1).astype(np.int16))


@dataclass(frozen=True)
class Judgement:
    """Per image: the vote's share of its given label and of the best other one, the latter's code, and the score.

    given_share, other_share float64 (m,); other int32 (m,), -1 where no other label got a vote; score float64 (m,), 0
    to 100, 100 = agrees; all NaN without votes. suggested int32 (m,): other where it beats the given label, else -1.
    """

    given_share: Array
    other_share: Array
    other: Array
    score: Array
    suggested: Array


def judge(votes: Votes, query: Array, given: Array) -> Judgement:
    """Compare the given label of m images with the votes on their representatives.

    query int64 (m,): the row of `votes`; given int (m,): the image's own label, 0 or more. The score is the margin
    between the given label's share and the best other's, 50 * (1 + margin), rounded to 1e-4. Equal shares: the smaller
    code, and no suggestion against the given label. Raises UsageError for an image without a label.
    """
    if (given < 0).any():
        raise UsageError(f"labels: {int((given < 0).sum())} images without a label were to be judged; leave them out")
    size = np.diff(votes.start)[query]
    image = np.repeat(np.arange(len(query)), size)
    entry = np.arange(size.sum()) + np.repeat(votes.start[query] - (np.cumsum(size) - size), size)
    label, share = votes.label[entry], votes.share[entry]
    same = label == given[image]
    given_share, other_share, other = np.zeros(len(query)), np.zeros(len(query)), np.full(len(query), -1, np.int32)
    given_share[image[same]] = share[same]
    rival = np.where(same, -1.0, share)
    best = np.full(len(query), -1.0)
    best[size > 0] = np.maximum.reduceat(rival, (np.cumsum(size) - size)[size > 0]) if len(rival) else -1.0
    at = np.flatnonzero((rival == best[image]) & ~same)  # entries are by label: the first of equal shares wins
    at = at[np.diff(image[at], prepend=-1) > 0]
    other_share[image[at]], other[image[at]] = share[at], label[at]
    margin = np.where(size > 0, given_share - other_share, np.nan)
    score = np.round(50.0 * (1.0 + margin), 4)
    suggested = np.where(margin < 0, other, -1).astype(np.int32)
    silent = size == 0
    given_share[silent], other_share[silent] = np.nan, np.nan
    return Judgement(given_share, other_share, other, score, suggested)


@dataclass(frozen=True)
class Confidence:
    """How large a share of the vote images of each label get for it: sum in millionths and count, int64 (labels,)."""

    micros: Array
    count: Array


def label_confidence(judged: Judgement, given: Array, labels: int) -> Confidence:
    """The summed share of each label's images, in whole millionths so that parts add up in any order.

    Judge an exact group's members of one label once, or its copies outweigh the other images of that label.
    """
    voted = ~np.isnan(judged.score)
    micros = np.zeros(labels, np.int64)
    np.add.at(micros, given[voted], np.round(judged.given_share[voted] * _MICRO).astype(np.int64))
    return Confidence(micros, np.bincount(given[voted], minlength=labels).astype(np.int64))


def merge_confidence(parts: Iterable[Confidence], labels: int) -> Confidence:
    """The confidence over all parts."""
    micros, count = np.zeros(labels, np.int64), np.zeros(labels, np.int64)
    for part in parts:
        micros += part.micros
        count += part.count
    return Confidence(micros, count)


def label_issues(judged: Judgement, given: Array, usual: Confidence, rule: LabelRule) -> Array:
    """Whether each image's label is an issue: bool (m,).

    Both shares are judged by what images of a label usually get, so that an image of a rare label, whose neighbours
    cannot have it often, is not suspected for that. Confident learning (Northcutt et al. 2021) asks the suggested label
    for all of its usual share; asking for less of it and less of the given label finds more with fewer false ones. With
    5% of the labels changed at random, 3 seeds, found and changed among the flagged ones: Intel scenes .83 and .85
    (with support 1 and doubt 0.15: .74 and .82), clothes .61 and .80 (.55 and .78), animals .83 and .86 (.71 and .83),
    Caltech-101, on which nothing was chosen, .87 and .86 (.70 and .87); with none changed 0.7 to 0.8% are flagged.
    """
    mean = np.divide(usual.micros / _MICRO, usual.count, out=np.full(len(usual.count), np.inf), where=usual.count > 0)
    asked = np.flatnonzero(judged.suggested >= 0)
    issue = np.zeros(len(given), bool)
    enough = judged.other_share[asked] >= rule.support * mean[judged.suggested[asked]]
    issue[asked] = enough & (judged.given_share[asked] < rule.doubt * mean[given[asked]])
    return issue
