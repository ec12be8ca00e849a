"""Train stage: the moments of the data set, and the copy space with its null.

Of two audits that train one thing at once the first stays: tasks of the other may have read it already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for
from pipeline.kernels.moments import Moments, blend, moments_of
from pipeline.kernels.sampling import stable_sample_limit
from pipeline.kernels.space import (
    CopySpace,
    SpaceParams,
    normalise_embeddings,
    normalise_signatures,
    project_copy,
    space_to_bytes,
    train_copy_space,
)
from pipeline.kernels.threshold import NullTail, blend_null, distinct_rows, fit_null, null_histogram
from pipeline.layout.fingerprint import plain
from pipeline.layout.inputs import READ_BLOCK, Inputs
from pipeline.layout.models import ModelRef, read_model
from pipeline.layout.siblings import one_of_each_parent
from pipeline.layout.spaces import (
    COPY_SPACE,
    MOMENTS,
    SPACE,
    DataMoments,
    data_moments_to_bytes,
    read_data_moments,
)
from pipeline.layout.tables import json_bytes
from pipeline.models.prior import copy_prior
from pipeline.runner import Counters

VERSION = 3
SIBLINGS = 1
"""Version of how frames of one video and boxes of one image are sampled: it names what sets that have any train."""
SAMPLE = 20_000
NULL_SAMPLE = 8192


@dataclass(frozen=True)
class MomentsSpec:
    """The representatives whose moments are taken, into a folder."""

    inputs: Inputs
    folder: str


@dataclass(frozen=True)
class SpaceSpec:
    """Moments of a data set and the model whose shipped ones they are blended with, into a folder.

    unrelated: how many of the representatives are no siblings of another, for the record.
    """

    inputs: Inputs
    moments: str
    model: ModelRef
    params: SpaceParams
    folder: str
    representatives: int
    unrelated: int


def take_moments(spec: MomentsSpec) -> Counters:
    """Commits the moments of a stable sample of at most 20,000 representatives, no two of them siblings."""
    ids, _ = unrelated_sample(spec.inputs, SAMPLE, 0)
    rows = spec.inputs.population().take(ids)
    found = sample_moments(rows.embeddings, rows.signatures)
    spec.inputs.root.open().put_if_absent(f"{spec.folder}/{MOMENTS}", data_moments_to_bytes(found))
    return {"sampled": len(rows.ids)}


def sample_moments(embeddings: NDArray[np.float16], signatures: NDArray[np.uint8]) -> DataMoments:
    """Moments of the images of a sample that are no near-copies of one another.

    What a tenth of the images share is a direction of large variance, which whitening shrinks: of 20,000 frames of a
    still camera among 200,000 images 1,278 were left at .95 of the first, too few to be told from the null, and the
    threshold went to its ceiling (.95, wanted .60). 2.7 s for 20,000 rows.
    """
    embedding, signature = normalise_embeddings(embeddings), normalise_signatures(signatures)
    both = np.concatenate([math.sqrt(0.65) * embedding, math.sqrt(0.35) * signature], axis=1).astype(np.float32)
    kept = distinct_rows(both)
    return DataMoments(moments_of(embedding[kept]), moments_of(signature[kept]))


def train_space(spec: SpaceSpec) -> Counters:
    """Commits the copy space and, as its done-marker, the record with the null that it was given."""
    store = spec.inputs.root.open()
    own = read_data_moments(store, spec.moments)
    model = read_model(store, spec.model)
    prior = spec.params.prior
    embedding = blend(own.embedding, model.embedding_moments, prior)
    space = train_copy_space(embedding, blend(own.signature, model.signature_moments, prior), spec.params)
    store.put_if_absent(f"{spec.folder}/{COPY_SPACE}", space_to_bytes(space))
    own_tail, unrelated = _own_tail(spec, space)
    shipped = copy_prior().tail if model.embedding_moments is not None else None
    tail = blend_null(own_tail, shipped, unrelated)
    record = {
        "features": spec.inputs.features,
        "moments": spec.moments,
        "representatives": spec.representatives,
        "snapshot": spec.inputs.snapshot,
        "spread": spread(space, embedding),
        "params": plain(spec.params),
        "tail": None if tail is None else dict(vars(tail)),
        "unrelated": spec.unrelated,
    }
    store.put_if_absent(f"{spec.folder}/{SPACE}", json_bytes(record))
    return {"sampled": own.embedding.count}


def sample_ids(inputs: Inputs, limit: int, salt: int) -> NDArray[np.int64]:
    """The ids of a stable sample of representatives, ascending: those of smallest hash, whatever the shards."""
    every = head_ids(inputs, None)
    return np.asarray(every[stable_sample_limit(every, limit, salt)])


def unrelated_sample(inputs: Inputs, limit: int, salt: int) -> tuple[NDArray[np.int64], int]:
    """The ids of a sample of the representatives of which no two are siblings, ascending, and how many these are.

    Siblings are no random pairs, and what they share is no variance of the set. With all 1,280 frames of five videos
    beside 1,060 photos the threshold went from .35 to its ceiling, and of 61 leaks of the photos 8 were left.
    """
    every = one_of_each_parent(inputs, head_ids(inputs, None))
    return np.asarray(every[stable_sample_limit(every, limit, salt)]), len(every)


def head_ids(inputs: Inputs, forest: Forest | None) -> NDArray[np.int64]:
    """All representatives, ascending; heads of a forest's groups."""
    population = inputs.population()
    total = inputs.opened_snapshot().total
    ids = [population.ids(lo, min(lo + READ_BLOCK, total)) for lo in range(0, max(total, 1), READ_BLOCK)]
    every = np.concatenate(ids)
    if forest is not None:
        every = every[labels_for(every, forest) == every]
    return every


def spread(space: CopySpace, moments: Moments) -> float:
    """Mean squared length of the whitened embeddings of a data set with these moments: what the space was made for."""
    shift = moments.mean - space.embedding.mean
    matrix = space.embedding.matrix
    return float(np.einsum("ij,ik,kj->", matrix, moments.cov, matrix) + ((shift @ matrix) ** 2).sum())


def _own_tail(spec: SpaceSpec, space: CopySpace) -> tuple[NullTail | None, int]:
    """The null of the images, and of how many unrelated ones it is: two siblings tell of it what one does."""
    ids, unrelated = unrelated_sample(spec.inputs, NULL_SAMPLE, 2)
    rows = spec.inputs.population().take(ids)
    vectors = project_copy(space, rows.embeddings, rows.signatures)
    vectors = vectors[distinct_rows(vectors)]
    # pairs of other classes only would leave out the look-alikes of one class, which become candidates too
    return fit_null(null_histogram(vectors, None), unrelated, "random pairs"), unrelated
