"""The join over one Faiss index: `python benchmarks/ivf_peer.py --images N [--queries N] [--nprobe 16] [--json FILE]`.

One core, in memory, the same vectors (the copy space of synthetic features), the same centroids and the same nprobe:
routing, building and joining of the product beside `IndexIVFFlat.add` and `.search`. Recall at 10 of both is against an
exact search of 1,000 queries. With --queries, that many images drawn at random search, and the seconds of all follow.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import at_least, at_most, begin, finish, say
from benchmarks.synthetic import World, block_residuals, embeddings_of, signatures_of, white_vectors
from pipeline.kernels.join import Hits, JoinParams, build_database, join_lists
from pipeline.kernels.moments import blend, moments_of
from pipeline.kernels.routing import choose_nlist, route, split_long_lists, train_centroids
from pipeline.kernels.space import (
    SpaceParams,
    normalise_embeddings,
    normalise_signatures,
    project_copy,
    train_copy_space,
)
from pipeline.models import default_model
from pipeline.threads import single_thread

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

BLOCK = 65_536
K = 10
TRUTH_QUERIES = 1000
ROWS_PER_LIST = 64
SEED = 7


def copy_vectors(world: World) -> Float16:
    """Every image of a world in its copy space, float16 (n, d)."""
    found: list[Float16] = []
    for lo in range(0, world.images, BLOCK):
        ids = np.arange(lo, min(lo + BLOCK, world.images))
        white = white_vectors(world, ids, block_residuals(world, lo, int(ids[-1]) + 1))
        embeddings, signatures = embeddings_of(white), signatures_of(white, ids)
        if lo == 0:
            drawn = slice(None, None, max(1, len(ids) // 20_000))
            model = default_model()
            params = SpaceParams()
            space = train_copy_space(
                blend(moments_of(normalise_embeddings(embeddings[drawn])), model.embedding_moments, params.prior),
                blend(moments_of(normalise_signatures(signatures[drawn])), model.signature_moments, params.prior),
                params,
            )
        found.append(project_copy(space, embeddings, signatures).astype(np.float16))
    return np.concatenate(found)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns and its CPU seconds."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def recall(ids: Int64, truth: Int64) -> float:
    """Share of the true neighbours (n, K) among the found ones (n, K)."""
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, truth, strict=True)]) / K)


def without_self(queries: Int64, ids: Int64) -> Int64:
    """The first K of each row of ids (n, K + 1) that are not the query."""
    others = np.argsort(ids == queries[:, None], axis=1, kind="stable")[:, :K]
    return np.take_along_axis(ids, others, axis=1)


def true_neighbours(x: Float16, queries: Int64) -> Int64:
    """Ids of the K nearest of each query by exact search."""
    heap = faiss.ResultHeap(len(queries), K + 1, keep_max=True)
    asked = x[queries].astype(np.float32)
    for lo in range(0, len(x), BLOCK):
        rows = x[lo : lo + BLOCK].astype(np.float32)
        similarity, found = faiss.knn(asked, rows, K + 1, faiss.METRIC_INNER_PRODUCT)
        heap.add_result(similarity, found + lo)
    heap.finalize()
    return without_self(queries, heap.I)


def join_seconds(x: Float16, centroids: Float32, queries: Int64, nprobe: int) -> tuple[Hits, dict[str, float]]:
    """The product's hits and its CPU seconds: for rows (routing, building) and for queries."""
    (own, probes), routing = timed(lambda: route(x, centroids, nprobe))
    ids, mask = np.arange(len(x)), np.ones(len(x), dtype=np.uint64)
    database, building = timed(lambda: build_database(ids, x, mask, own))
    params = JoinParams(k=K, k_cross=0)
    hits, joining = timed(lambda: join_lists(database, queries, x[queries], mask[queries], probes[queries], params))
    return hits, {"rows": routing + building, "queries": joining}


def faiss_seconds(x: Float16, centroids: Float32, queries: Int64, nprobe: int) -> tuple[Int64, dict[str, float]]:
    """Ids that Faiss finds and its CPU seconds: for rows (adding) and for queries."""
    coarse = faiss.IndexFlatIP(x.shape[1])
    coarse.add(centroids)
    index = faiss.IndexIVFFlat(coarse, x.shape[1], len(centroids), faiss.METRIC_INNER_PRODUCT)
    index.nprobe = nprobe
    started = time.process_time()
    for lo in range(0, len(x), BLOCK):
        index.add(x[lo : lo + BLOCK].astype(np.float32))
    adding = time.process_time() - started
    asked = x[queries].astype(np.float32)
    (_, ids), searching = timed(lambda: index.search(asked, K + 1))
    return without_self(queries, ids), {"rows": adding, "queries": searching}


def compare(images: int, asked: int, nprobe: int) -> dict[str, Any]:
    """CPU seconds for all images and recall at 10 of both."""
    x, seconds = timed(lambda: copy_vectors(World(images)))
    say(f"{images} vectors of {x.shape[1]} dimensions in {seconds:.0f} s")
    nlist = choose_nlist(images, 0)
    sample = x[:: max(1, images // (ROWS_PER_LIST * nlist))]
    centroids, training = timed(lambda: split_long_lists(sample, train_centroids(sample, nlist, SEED), SEED))
    rng = np.random.default_rng(SEED)
    queries = np.sort(rng.choice(images, min(asked, images), replace=False))
    checked = np.sort(rng.choice(len(queries), min(TRUTH_QUERIES, len(queries)), replace=False))
    truth = true_neighbours(x, queries[checked])
    say(f"{len(centroids)} lists trained in {training:.0f} s; exact search of {len(checked)} queries done")
    hits, ours = join_seconds(x, centroids, queries, nprobe)
    say(f"ours: {ours}")
    found, theirs = faiss_seconds(x, centroids, queries, nprobe)
    say(f"faiss: {theirs}")
    scale = images / len(queries)
    return {
        "images": images,
        "queries": len(queries),
        "lists": len(centroids),
        "nprobe": nprobe,
        "training_seconds": training,
        "ours": {**ours, "all": ours["rows"] + scale * ours["queries"]},
        "faiss": {**theirs, "all": theirs["rows"] + scale * theirs["queries"]},
        "recall": {
            "ours": recall(hits.match_id.reshape(-1, K)[checked], truth),
            "faiss": recall(found[checked], truth),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="images (default 200,000)")
    parser.add_argument("--queries", type=int, help="images that search (default all)")
    parser.add_argument("--nprobe", type=int, default=16, help="lists searched (default 16)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    single_thread()
    document = begin("ivf_peer")
    found = compare(options.images, options.queries or options.images, options.nprobe)
    document.update(found)
    ratio = found["ours"]["all"] / found["faiss"]["all"]
    rows = [
        at_most("CPU of all, over that of Faiss IVF,Flat", 1.0, ratio),
        at_least("recall at 10, less that of Faiss", -0.001, found["recall"]["ours"] - found["recall"]["faiss"]),
    ]
    finish(document, rows, options.json)


if __name__ == "__main__":
    main()
