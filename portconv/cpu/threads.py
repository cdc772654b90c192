"""How many threads portconv uses on a CPU, and those of the plain tier: one pool of Python threads for the process.

The compiled tier has a team of its own, in `compiled/team.py`. A forked child makes a pool of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, local
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..core.integers import integer

__all__ = [
    "ALIGNMENT",
    "OpenMP",
    "allowed_threads",
    "at_most",
    "get_num_threads",
    "others_openmp",
    "others_threads",
    "run",
    "scratch",
    "set_num_threads",
    "usable_cores",
    "within_task",
]

ALIGNMENT = 64  # bytes: of a cache line, and of the widest vector

T = TypeVar("T")

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_inside = local()  # a task that runs tasks of its own runs them itself: waiting for its own pool would be a deadlock


_limit: int | None = None  # what `set_num_threads` or the environment said
_kept = local()  # scratch memory of each thread, by its use and the character of its dtype


def usable_cores() -> int:
    """Cores that this process may run on.

    Examples
    --------
    >>> from portconv import machine
    >>> machine.usable_cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_num_threads() -> int:
    """How many threads a convolution on a CPU may use.

    It is what `set_num_threads` said last, else the environment's ``PORTCONV_NUM_THREADS``, else the number of cores
    that the process may run on, or ``OMP_NUM_THREADS`` where that is lower, as in BLAS libraries.

    Raises
    ------
    ValueError
        If ``PORTCONV_NUM_THREADS`` is not a positive integer.

    Examples
    --------
    >>> import portconv
    >>> portconv.get_num_threads() >= 1
    True
    """
    global _limit
    if _limit is None:
        cores = usable_cores()
        own = os.environ.get("PORTCONV_NUM_THREADS", "").strip()
        blas = os.environ.get("OMP_NUM_THREADS", "")
        if own and not (own.isascii() and own.isdigit() and int(own) > 0):
            raise ValueError(f"`PORTCONV_NUM_THREADS` must be a positive integer, but got {own!r}.")
        _limit = (
            min(cores, int(own))
            if own
            else max(1, min(cores, int(blas)))
            if blas.isascii() and blas.isdigit()
            else cores
        )
    return _limit


def set_num_threads(count: int) -> None:
    """Let convolutions on a CPU use up to `count` threads, in this process and from now on.

    It concerns portconv's own engines: on NumPy arrays, and on arrays of MLX, PyTorch and JAX on a CPU. A count above
    the number of cores that the process may run on has the effect of that number. NumPy's BLAS, where portconv calls
    it, is limited for the time of the call. PyTorch and XLA keep their own settings; on PyTorch's tensors there are no
    more threads than `torch.get_num_threads()`, either.

    Parameters
    ----------
    count
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If `count` is not an integer, or less than 1.

    Examples
    --------
    >>> import portconv
    >>> before = portconv.get_num_threads()
    >>> portconv.set_num_threads(1)
    >>> portconv.get_num_threads()
    1
    >>> portconv.set_num_threads(before)
    """
    global _limit
    _limit = min(integer("count", count, 1), usable_cores())


def others_threads() -> int | None:
    """How many threads another library has that use the cores between the calls of this thread; None: there is none."""
    most: int | None = getattr(_inside, "most", None)
    return most


class OpenMP(NamedTuple):
    """Addresses of two functions of the library by which another library has its threads."""

    parallel: int  # `GOMP_parallel`
    number: int  # `omp_get_thread_num`


def others_openmp() -> OpenMP | None:
    """Where those threads are OpenMP's, which may be asked to do our work, too: how to call them."""
    found: OpenMP | None = getattr(_inside, "openmp", None)
    return found


def allowed_threads() -> int:
    """How many threads a convolution may use that this thread calls."""
    most = others_threads()
    return get_num_threads() if most is None else min(most, get_num_threads())


class at_most:  # a function of `contextlib`'s would take three times as long
    """For this thread, and as long as it lasts: no more threads than another library has, which uses them, too.

    If those threads are OpenMP's, the compiled tier has them do its jobs.
    """

    __slots__ = ("_before", "_count", "_openmp")

    def __init__(self, count: int, openmp: OpenMP | None = None) -> None:
        self._count, self._openmp = count, openmp

    def __enter__(self) -> None:
        self._before = others_threads(), others_openmp()
        _inside.most, _inside.openmp = self._count, self._openmp

    def __exit__(self, *error: object) -> None:
        _inside.most, _inside.openmp = self._before


def scratch(count: int, dtype: np.dtype[Any], use: str = "") -> np.ndarray[Any, Any]:
    """So many elements or more, the scratch memory of this thread: new pages cost more than what is done with them.

    Each use has a memory of its own.
    """
    kept, name = _kept.__dict__, use + dtype.char
    found = kept.get(name)
    if found is None or found.size < count:
        kept[name] = found = None  # free the old one first
        nbytes = count * dtype.itemsize
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        kept[name] = found = memory[start : start + nbytes].view(dtype)
    return found


def within_task() -> bool:
    """Whether this thread is at one of the tasks that `run` calls."""
    return getattr(_inside, "busy", False)


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
    if threads < 2 or within_task():
        for item in items:
            task(item)
        return
    queue = _SharedIterator(items)
    pool = _shared_pool(usable_cores())
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
