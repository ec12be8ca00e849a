"""How many threads OpenCV, Faiss and BLAS may use in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_RUNS: list[int] = []
"""The runs of this process that have not ended, each by its thread."""
_SHARED: dict[str, int] = {}
"""Threads of OpenCV and of each BLAS before the first task here."""


class _Own(threading.local):
    """OpenMP, under Faiss, counts for each thread by itself."""

    openmp: int | None = None


_OWN = _Own()


def single_thread() -> None:
    """One thread for OpenCV, Faiss and BLAS: one process per core is the unit of parallelism.

    A BLAS of several threads spins on small products: a comparison of two images took 36 ms of CPU instead of 10.
    Any thread of the process may call it; left to itself, OpenBLAS obeys the first one that does.
    """
    import cv2
    import faiss
    from threadpoolctl import OpenBLASController, ThreadpoolController

    with _LOCK:
        pools = ThreadpoolController()
        for pool in pools.lib_controllers:
            _SHARED.setdefault(pool.filepath, pool.num_threads)
        _SHARED.setdefault("cv2", cv2.getNumThreads())
        if _OWN.openmp is None:
            _OWN.openmp = faiss.omp_get_max_threads()
        pools.limit(limits=1)
        OpenBLASController.clear_controlling_thread(force=True)
        cv2.setNumThreads(1)
        faiss.omp_set_num_threads(1)


@contextmanager
def threads_given_back() -> Iterator[None]:
    """Around a run in a process of the caller's: the libraries have their threads again when its last run ends."""
    with _LOCK:
        _RUNS.append(threading.get_ident())
    try:
        yield
    finally:
        with _LOCK:
            _RUNS.remove(threading.get_ident())
            if not _RUNS and _SHARED:
                _give_back_shared()
            if _OWN.openmp is not None:  # after the others: OpenMP is among them, with what another thread had
                _give_back_openmp(_OWN.openmp)


def _give_back_openmp(threads: int) -> None:
    import faiss

    faiss.omp_set_num_threads(threads)
    _OWN.openmp = None


def _give_back_shared() -> None:
    import cv2
    from threadpoolctl import OpenBLASController, ThreadpoolController

    for pool in ThreadpoolController().lib_controllers:
        pool.set_num_threads(_SHARED.get(pool.filepath, pool.num_threads))
    OpenBLASController.clear_controlling_thread(force=True)
    cv2.setNumThreads(_SHARED["cv2"])
    _SHARED.clear()
