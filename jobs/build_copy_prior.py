"""Builds `pipeline/models/copy_prior.npz`: the null tail of varied photos and how similar known edits stay.

    python -m jobs.build_copy_prior --photos DIR --out pipeline/models

Run from a checkout, after `jobs.build_default_model` and whenever the model, its moments or the copy space's
parameters change. `--photos` is the folder of that job, one subfolder per source. Of a photo nothing is kept but sums.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.edits import EDITS, decode, edited_jpeg
from jobs.photos import chosen_photos
from pipeline.kernels.embed import BATCH, Embedder, embed_for_storage
from pipeline.kernels.moments import Moments
from pipeline.kernels.shrink import fitted_size, shrink
from pipeline.kernels.signature import signature
from pipeline.kernels.space import SpaceParams, pair_similarities, project_copy, train_copy_space
from pipeline.kernels.threshold import CopyPrior, fit_null, null_histogram, prior_to_bytes, recall_curve
from pipeline.models import default_model

NAME = "copy_prior.npz"
SIDE = 160
EDITED_SIDE = 224  # photos are edited at this size, as a data set's thumbnails would be: larger ones lose less
SEED = 7


@dataclass(frozen=True)
class Features:
    """Of the same images in the same order: embeddings float16 (n, d), signatures uint8 (n, 256)."""

    embeddings: NDArray[np.float16]
    signatures: NDArray[np.uint8]


def build_prior(
    moments: tuple[Moments, Moments], photos: Features, originals: Features, edited: dict[str, Features]
) -> CopyPrior:
    """The prior in the space of the shipped moments (embedding, signature): what a folder of no images would use.

    The tail comes from all pairs of `photos`, the curve from the pairs (row k of an edit, row k of `originals`).
    """
    space = train_copy_space(*moments, SpaceParams())
    histogram = null_histogram(project_copy(space, photos.embeddings, photos.signatures), None)
    tail = fit_null(histogram, len(photos.embeddings), "shipped")
    if tail is None:
        raise SystemExit(f"{len(photos.embeddings)} photos are too few for a null tail, want at least 1,000")
    sides = originals.embeddings, originals.signatures
    positives = {
        edit: pair_similarities(space, copies.embeddings, copies.signatures, *sides).copy
        for edit, copies in edited.items()
    }
    return CopyPrior(tail, recall_curve(positives))


def features_of(embedder: Embedder, images: Iterable[NDArray[np.uint8]]) -> Features:
    """Features of RGB images of any size, as the product stores them."""
    embeddings, signatures, batch = [], [], []
    for image in images:
        batch.append(shrink(image, SIDE, SIDE))
        signatures.append(signature(cv2.cvtColor(batch[-1], cv2.COLOR_RGB2GRAY)))
        if len(batch) == BATCH:
            embeddings.append(embed_for_storage(embedder, np.stack(batch)).vectors)
            batch = []
    if batch:
        embeddings.append(embed_for_storage(embedder, np.stack(batch)).vectors)
    return Features(np.concatenate(embeddings), np.stack(signatures))


def read_photo(path: Path) -> NDArray[np.uint8] | None:
    """RGB pixels, or None where OpenCV cannot decode the file or a side is under 64 pixels."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    return None if image is None or min(image.shape[:2]) < 64 else np.asarray(image, dtype=np.uint8)


def edited_features(embedder: Embedder, photos: Sequence[NDArray[np.uint8]]) -> dict[str, Features]:
    """Features of the nine edits of each photo, by edit. Blur and text are strongest on small photos."""
    return {
        edit: features_of(
            embedder,
            (decode(edited_jpeg(edit, photo, np.random.default_rng([SEED, k]))) for k, photo in enumerate(photos)),
        )
        for edit in EDITS
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the photos, build the prior, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos with one subfolder per source")
    parser.add_argument("--out", type=Path, required=True, help="where copy_prior.npz goes")
    parser.add_argument("--cap", type=int, default=150, help="photos per source for the null (default 150)")
    parser.add_argument("--edited", type=int, default=40, help="photos per source that are edited (default 40)")
    chosen = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    model = default_model()
    if model.embedding_moments is None:
        raise SystemExit("the default model has no moments: run jobs.build_default_model first")
    embedder = model.load()
    photos = features_of(embedder, _decodable(chosen_photos(chosen.photos, chosen.cap)))
    originals = [_reduced(image) for image in _decodable(chosen_photos(chosen.photos, chosen.edited))]
    moments = model.embedding_moments, model.signature_moments
    clean = features_of(embedder, originals)
    prior = build_prior(moments, photos, clean, edited_features(embedder, originals))
    (chosen.out / NAME).write_bytes(prior_to_bytes(prior))
    print(f"{len(photos.embeddings)} photos, {len(originals)} x {len(EDITS)} edits; {prior.tail}")
    for threshold in (0.4, 0.5, 0.6, 0.7):
        print(f"misses at {threshold}: {prior.curve.misses_at(threshold)}")


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    return shrink(image, *fitted_size(width, height, EDITED_SIDE))


def _decodable(paths: Iterable[Path]) -> Iterable[NDArray[np.uint8]]:
    return (image for image in map(read_photo, paths) if image is not None)


if __name__ == "__main__":
    main()
