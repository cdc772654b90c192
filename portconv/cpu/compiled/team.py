"""The team: the threads that run compiled kernels, and the jobs that they get.

One caller at a time gets the team; another one that comes meanwhile works alone, so that cores are not shared. A forked
child makes a team of its own.

Where the team has all cores, each of its threads keeps to one of them, and the one whose core the caller has rests. The
system would else wake threads on the caller's own core whenever others seem taken, as they do after a product of
NumPy's, whose threads wait at work for the next one.
"""

from __future__ import annotations

import inspect
import os
import time
from contextlib import suppress
from threading import Lock, Thread, local
from typing import Any

import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from .. import threads
from . import jobs

__all__ = ["compile_ahead", "launch"]

ALERT_SECONDS = 200e-6  # that a thread waits at work for a job: longer than what lies between two layers
# The same where another library's threads work between two layers, and wait at work as well.
BRIEF_SECONDS = 20e-6
PATIENT_SECONDS = 100e-6  # that a caller waits at work for the others' last tasks
PAUSE_SECONDS = 20e-6  # between two looks whether they are done

_lock = Lock()
_team: _Team | None = None
# The kernels that a team needs besides those of its jobs, with arguments of their types.
_KERNELS = {
    jobs.serve: (0, 0, 0, True),
    jobs.pauses: (0, 0),
    jobs.active: (0,),
    jobs.is_open: (0,),
    jobs.current_core: (0,),
}


class _Team:
    """The threads, and the block of words that they share."""

    def __init__(self) -> None:
        self.most = threads.usable_cores()  # threads that a job may have, which may have been planned for more
        self.block, self._memory = _new_block(self.most)
        self.size = 1
        self._cores: list[int] = []
        self.asleep: dict[int, Any] = {}  # threads that only Python can wake: each has a lock that somebody releases
        pause = _pause_seconds(self.block)
        self.patience = int(PATIENT_SECONDS / pause)
        self._alert = {False: int(ALERT_SECONDS / pause), True: int(BRIEF_SECONDS / pause)}
        self.be_brief(False)
        self.openmp: threads.OpenMP | None = None

    def lend(self, openmp: threads.OpenMP | None) -> None:
        """Have the next jobs done by the threads of an OpenMP library, or by one's own again."""
        self.openmp = openmp
        self._memory[jobs.PARALLEL], self._memory[jobs.NUMBER] = openmp or (0, 0)

    def be_brief(self, brief: bool) -> None:
        """Have the threads sleep sooner, or not."""
        self.brief = brief
        self._memory[jobs.ALERT] = self._alert[brief]

    def call(self, parts: int) -> None:
        """See to it that there are so many threads, the calling one among them, and that they will look for a job."""
        if self.size < parts:
            self._grow(parts)
        for which in list(self.asleep):
            if (bell := self.asleep.pop(which, None)) is not None:
                bell.release()

    def _grow(self, parts: int) -> None:
        self._cores = sorted(os.sched_getaffinity(0)) if jobs.CAN_SLEEP else []
        for core in self._cores if len(self._cores) == parts else [jobs.ANYWHERE] * (parts - self.size):
            thread = Thread(target=self._serve, args=(core,), name="portconv-team", daemon=True)
            with suppress(RuntimeError):  # there can be no more threads, as at the end of the process
                thread.start()
        self.size = parts

    def _serve(self, core: int) -> None:
        if core != jobs.ANYWHERE and not _settled(core, self.block):
            if core == self._cores[0]:
                return  # the caller is one of the team, so without cores of their own there is one thread too many
            core = jobs.ANYWHERE
        last, bell = 0, Lock()
        bell.acquire()
        while True:
            last = jobs.serve(self.block, core, last, jobs.CAN_SLEEP)
            self.asleep[id(bell)] = bell
            # A caller that looked before that line counts on this thread, and has opened its job.
            if jobs.is_open(self.block) and self.asleep.pop(id(bell), None) is not None:
                continue
            bell.acquire()


def launch(job: Any, parts: int, *arguments: Any) -> None:
    """Run a job of compiled kernels, on up to `parts` threads."""
    global _team
    others = openmp = None
    if parts > 1:
        others = threads.others_threads()
        if others is None:
            parts = min(parts, threads.get_num_threads())
        else:
            parts, openmp = min(parts, threads.allowed_threads()), threads.others_openmp()
    if parts < 2 or threads.within_task() or not _lock.acquire(blocking=False):
        job(_own.block, 1, 0, *arguments)
        return
    left = 1
    try:
        if _team is None:
            _team = _Team()
        parts = min(parts, _team.most)
        if _team.openmp is not openmp:
            _team.lend(openmp)
        if openmp is None:
            if _team.brief is not (others is not None):
                _team.be_brief(others is not None)
            if _team.size < parts or _team.asleep:
                _team.call(parts)
        left = job(_team.block, parts, _team.patience, *arguments)
    finally:
        if _team is not None:  # nobody may be at work when the caller gets its arrays back, whatever has happened
            while left:  # asleep, so that a thread whose core is taken can have this one
                time.sleep(PAUSE_SECONDS)
                left = jobs.active(_team.block)
        _lock.release()


def _new_block(parts: int) -> tuple[int, Any]:
    """Its address and its words for so many threads. The first word begins a line of the cache."""
    words = np.zeros(jobs.COUNTERS + parts * jobs.APART + threads.ALIGNMENT // 8, np.int64)
    words = words[-words.ctypes.data % threads.ALIGNMENT // 8 :]
    return words.ctypes.data, words


class _Own(local):
    """The block of each thread that works alone."""

    def __init__(self) -> None:
        self.block, self._memory = _new_block(1)


_own = _Own()


def _settled(core: int, block: int) -> bool:
    """Keep this thread to a core; False where that cannot be had, as in a sandbox that only says it did so."""
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        return False
    time.sleep(0)
    return os.sched_getaffinity(0) == {core} and jobs.current_core(block) == core


def _pause_seconds(block: int) -> float:
    """What a pause takes, at best: a thread may lose its core meanwhile."""
    jobs.pauses(block, 1)  # loads the code
    found = []
    for _ in range(5):
        before = time.perf_counter()
        jobs.pauses(block, 400)
        found.append((time.perf_counter() - before) / 400)
    return min(found)


def _forget_team() -> None:
    global _team, _lock
    _team, _lock = None, Lock()  # a fork copies neither the threads nor a sane lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)


def compile_ahead(job: Any, parts: int, *arguments: Any) -> list[str]:
    """What `launch` does, but nothing is run: the kernels are compiled for such arguments, or loaded.

    Returns
    -------
    list of str
        The names of the kernels that had to be compiled.
    """
    compiled = []
    with global_compiler_lock:  # what another thread compiles does not count
        for function, given in {job: (0, parts, 0, *arguments), **_KERNELS}.items():
            before = function.stats.cache_misses.total()
            bound = inspect.signature(function.py_func).bind(*given).arguments.values()
            function.compile(tuple(map(function.typeof_pyval, bound)))
            if function.stats.cache_misses.total() > before:
                compiled.append(function.__name__)
    return compiled
