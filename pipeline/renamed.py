"""Words that users of fastdup know, and what is to be written here."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

RENAMED = {
    "nnf_mode": "neighbours.index takes auto, Flat, IVF<n> and HNSW<m>",
    "nnf_param": "lists are trained by spherical k-means with a fixed seed, nothing of it is to be set; their number "
    "is neighbours.index IVF<n>",
    "nprobe": "neighbours.copy_probes and neighbours.semantic_probes",
    "nearest_neighbors_k": "neighbours.semantic_k, and neighbours.copy.k for duplicates",
    "distance": "neighbours.distance",
    "ccthreshold": "neighbours.threshold, which decides what is compared; pixels decide what joins a group",
    "cc_threshold": "neighbours.threshold, which decides what is compared; pixels decide what joins a group",
    "lower_threshold": "outliers are told by the distances of the whole set, no percentile is to be set; table "
    "outliers has the percentile of every image",
    "outlier_percentile": "outliers are told by the distances of the whole set, no percentile is to be set; table "
    "outliers has the percentile of every image",
    "turi_param": "it spoke to fastdup's own search; here it is neighbours (docs/config.toml)",
    "batch_size": "shard_size, the images of one part of the work; a model takes batches by itself",
    "compute": "models run on the CPU",
    "license": "no licence key is needed",
    "run_mode": "start and until, and image-audit search",
    "resume": "every run resumes: what is there is not done again",
    "overwrite": "nothing is overwritten, and what is there is used where it fits; for a new start take another root",
    "data_type": "images are whole unless bounding_box asks for boxes; videos are told by their names",
    "d": "the dimension follows from the model or the embeddings",
    "num_threads": "workers of pipeline.api.Where, --workers on the command line; each takes one core",
    "verbose": "progress of pipeline.run, --quiet on the command line",
    "run_cc": "groups are made by every audit; they take a thousandth of its time",
    "run_stats": "statistics come with the one decode of an image, 0.3 ms of its 7.5",
    "num_images": "select.num_images",
    "subset": "select.subset",
    "find_regex": "select.find_regex",
    "min_file_size": "select.min_file_size",
    "tar_only": "select.tar_only",
    "min_input_image_width": "measure.min_width",
    "min_input_image_height": "measure.min_height",
    "augmentation_horiz": "boxes.horizontal",
    "augmentation_vert": "boxes.vertical",
    "augmentation_additive_margin": "boxes.margin",
    "model_path": "model.path",
    "high_accuracy": "model.path 'high_accuracy', --high-accuracy on the command line",
    "sync_s3_to_local": "storage.sync_to_local",
    "input_dir": "sources",
    "test_dir": "test",
    "work_dir": "root",
}
"""Words of fastdup and what they are called here."""
CLOSE = 0.8
"""Likeness of a name to one that is meant: that of `treshold` is 0.94, that of `foo` to `floor` 0.75."""


def unknown_key(name: str, known: Iterable[str]) -> str:
    """What to write in place of a key: `known` ones may be `section.key`."""
    if name in RENAMED:
        return RENAMED[name]
    plain: dict[str, str] = {}
    for key in known:
        plain.setdefault(key.rpartition(".")[2], key)
    guesses = "".join(f"did you mean {plain[near]}? " for near in get_close_matches(name, plain, 1, CLOSE))
    return f"{guesses}docs/config.toml has every key"


def unknown_words(words: Iterable[str]) -> str:
    """What to write in place of fastdup's flags among words that no parser took; "" where none is among them."""
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    named = [(flag, flag.lstrip("-").replace("-", "_")) for flag in flags]
    return "; ".join(f"{flag} is not a flag here: {RENAMED[name]}" for flag, name in named if name in RENAMED)
