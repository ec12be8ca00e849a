"""Index files of Faiss, written piece by piece: no more of one is in memory than a list.

Faiss writes what it holds whole. Here it writes the index without its vectors, and these follow where its reader wants
them: an `IndexIDMap` ends with the vectors of its flat index and the ids, an `IndexIVFFlat` with the size of each list
and then codes and ids of one list after the other (faiss/impl/index_write.cpp).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
_SIZE = 8  # bytes of a length
_LISTS = b"ilar"


def flat_pieces(ids: Int64, dimension: int, blocks: Iterable[Float32]) -> Iterator[bytes]:
    """An IndexIDMap over IndexFlatIP: ids int64 (n,), their vectors float32 (m, d) in blocks of the same order."""
    flat = faiss.IndexFlatIP(dimension)
    mapped = faiss.IndexIDMap(flat)
    flat.ntotal = mapped.ntotal = len(ids)
    head = faiss.serialize_index(mapped).tobytes()  # ends with two empty vectors
    yield head[: -2 * _SIZE] + _length(len(ids) * dimension)
    for block in blocks:
        yield np.ascontiguousarray(block, "<f4").tobytes()
    yield _length(len(ids)) + np.ascontiguousarray(ids, "<i8").tobytes()


def ivf_pieces(
    centroids: Float32, probes: int, sizes: Int64, lists: Iterable[tuple[Int64, Float32]]
) -> Iterator[bytes]:
    """An IndexIVFFlat of inner products: centroids float32 (nlist, d), sizes int64 (nlist,), and each list in order.

    probes: its nprobe, as Faiss reads it. A list is ids int64 (m,) and vectors float32 (m, d).
    """
    nlist, dimension = centroids.shape
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, dimension, nlist, faiss.METRIC_INNER_PRODUCT)
    index.is_trained, index.nprobe, index.ntotal = True, probes, int(sizes.sum())
    head = faiss.serialize_index(index).tobytes()
    yield head[: head.rindex(_LISTS) + len(_LISTS)]
    yield _length(nlist) + _length(4 * dimension) + b"full" + _length(nlist) + sizes.astype("<u8").tobytes()
    for ids, vectors in lists:
        yield np.ascontiguousarray(vectors, "<f4").tobytes() + np.ascontiguousarray(ids, "<i8").tobytes()


def _length(value: int) -> bytes:
    return value.to_bytes(_SIZE, "little")
