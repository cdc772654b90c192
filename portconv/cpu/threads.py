"""One pool of threads for the whole process, made when it is first needed and made anew in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, local
from typing import TypeVar

__all__ = ["num_threads", "run"]

T = TypeVar("T")

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_inside = local()  # a task that runs tasks of its own runs them itself: waiting for its own pool would be a deadlock


def num_threads() -> int:
    """Threads that this process may use: its cores, or `OMP_NUM_THREADS` where that is lower, as in BLAS libraries."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


def _shared_pool(threads: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="portconv")
        return _pool


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, Lock()  # a fork copies neither the threads nor a sane lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _work(task: Callable[[T], None], queue: Iterator[T]) -> None:
    _inside.busy = True
    try:
        for item in queue:
            task(item)
    finally:
        _inside.busy = False


class _SharedIterator(Iterator[T]):
    """An iterator that several threads may draw from; it runs dry for all of them when one of them fails."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    def close(self) -> None:
        with self._lock:
            self._items = iter(())


def run(task: Callable[[T], None], items: list[T], threads: int) -> None:
    """Call `task` on every item, on up to `threads` threads, the calling one among them. Raises what a task raised."""
    threads = min(threads, len(items))
    if threads < 2 or getattr(_inside, "busy", False):
        for item in items:
            task(item)
        return
    queue = _SharedIterator(items)
    pool = _shared_pool(num_threads())
    others: list[Future[None]] = [pool.submit(_work, task, queue) for _ in range(threads - 1)]
    try:
        _work(task, queue)
    finally:
        queue.close()
        for other in others:
            if not other.cancel():
                other.exception()  # wait: no task may outlive the call
    for other in others:
        if not other.cancelled() and (error := other.exception()) is not None:
            raise error
