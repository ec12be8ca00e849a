"""What a run leaves behind of the threads that OpenCV, Faiss and BLAS may use in the caller's process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import cv2
import faiss
import pytest
from threadpoolctl import threadpool_info

from pipeline.threads import single_thread, threads_given_back


def threads() -> tuple[int, int, dict[str, int]]:
    """Of OpenCV, of Faiss in this thread, and of each BLAS that does not follow OpenMP at its next call."""
    pools = {
        pool["filepath"]: pool["num_threads"]
        for pool in threadpool_info()
        if pool["user_api"] == "blas" and pool["threading_layer"] != "openmp"
    }
    return cv2.getNumThreads(), faiss.omp_get_max_threads(), pools


@pytest.fixture(autouse=True)
def several() -> Iterator[None]:
    was = threads()
    cv2.setNumThreads(3)
    faiss.omp_set_num_threads(2)
    yield
    cv2.setNumThreads(was[0])
    faiss.omp_set_num_threads(was[1])


def test_given_back_after_a_run() -> None:
    was = threads()
    with threads_given_back():
        single_thread()
        single_thread()
        limited = threads()
        assert limited[:2] == (1, 1)
        assert set(limited[2].values()) == {1}
    assert threads() == was


def test_a_run_without_tasks_changes_nothing() -> None:
    was = threads()
    with threads_given_back():
        assert threads() == was
    assert threads() == was


def test_the_last_of_two_runs_at_once_gives_back() -> None:
    """One in a thread of its own ends first, between the other's tasks, and once after it."""
    was = threads()
    began, may_end = threading.Event(), threading.Event()
    own: list[tuple[int, int]] = []

    def other() -> None:
        before = faiss.omp_get_max_threads()
        with threads_given_back():
            single_thread()
            began.set()
            may_end.wait(60)
        own.append((before, faiss.omp_get_max_threads()))

    def begin() -> threading.Thread:
        began.clear()
        may_end.clear()
        thread = threading.Thread(target=other)
        thread.start()
        assert began.wait(60)
        return thread

    with threads_given_back():
        first = begin()
        single_thread()
        may_end.set()
        first.join()
        assert threads()[:2] == (1, 1)
        second = begin()
    assert cv2.getNumThreads() == 1, "the second run still goes on"
    assert faiss.omp_get_max_threads() == was[1]
    may_end.set()
    second.join()
    assert threads() == was
    assert all(before == after for before, after in own)
