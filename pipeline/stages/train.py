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
from pipeline.layout.exact import Representatives
from pipeline.layout.fingerprint import plain
from pipeline.layout.inputs import READ_BLOCK, Inputs
from pipeline.layout.models import ModelRef, read_model
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
SAMPLE = 20_000
NULL_SAMPLE = 8192


@dataclass(frozen=True)
class MomentsSpec:
    """The representatives whose moments are taken, into a folder."""

    inputs: Inputs
    folder: str


@dataclass(frozen=True)
class SpaceSpec:
    """Moments of a data set and the model whose shipped ones they are blended with, into a folder."""

    inputs: Inputs
    moments: str
    model: ModelRef
    params: SpaceParams
    folder: str
    representatives: int


def take_moments(spec: MomentsSpec) -> Counters:
    """Commits the moments of a stable sample of at most 20,000 representatives."""
    rows = sample(spec.inputs, SAMPLE, 0)
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
    own_tail = _own_tail(spec, space)
    shipped = copy_prior().tail if model.embedding_moments is not None else None
    tail = blend_null(own_tail, shipped, spec.representatives)
    record = {
        "features": spec.inputs.features,
        "moments": spec.moments,
        "representatives": spec.representatives,
        "snapshot": spec.inputs.snapshot,
        "spread": spread(space, embedding),
        "params": plain(spec.params),
        "tail": None if tail is None else dict(vars(tail)),
    }
    store.put_if_absent(f"{spec.folder}/{SPACE}", json_bytes(record))
    return {"sampled": own.embedding.count}


def sample(inputs: Inputs, limit: int, salt: int, forest: Forest | None = None) -> Representatives:
    """A stable sample of representatives: the ids of smallest hash, whatever the shards; heads of a forest's groups."""
    return inputs.population().take(sample_ids(inputs, limit, salt, forest))


def sample_ids(inputs: Inputs, limit: int, salt: int, forest: Forest | None = None) -> NDArray[np.int64]:
    """The ids of a sample, ascending."""
    population = inputs.population()
    total = inputs.opened_snapshot().total
    ids = [population.ids(lo, min(lo + READ_BLOCK, total)) for lo in range(0, max(total, 1), READ_BLOCK)]
    every = np.concatenate(ids)
    if forest is not None:
        every = every[labels_for(every, forest) == every]
    return np.asarray(every[stable_sample_limit(every, limit, salt)])


def spread(space: CopySpace, moments: Moments) -> float:
    """Mean squared length of the whitened embeddings of a data set with these moments: what the space was made for."""
    shift = moments.mean - space.embedding.mean
    matrix = space.embedding.matrix
    return float(np.einsum("ij,ik,kj->", matrix, moments.cov, matrix) + ((shift @ matrix) ** 2).sum())


def _own_tail(spec: SpaceSpec, space: CopySpace) -> NullTail | None:
    rows = sample(spec.inputs, NULL_SAMPLE, 2)
    vectors = project_copy(space, rows.embeddings, rows.signatures)
    vectors = vectors[distinct_rows(vectors)]
    # pairs of other classes only would leave out the look-alikes of one class, which become candidates too
    return fit_null(null_histogram(vectors, None), spec.representatives, "random pairs")
