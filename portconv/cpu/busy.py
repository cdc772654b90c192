"""Whether other programs use the cores that a measurement counts on.

An engine on several threads waits for the slowest of them: with one core of two taken, compiled engines were seen to
take up to 180 times as long, others twice as long. The load average tells of the last minute and knows no container; so
the threads ask for the cores, for some milliseconds, and compare what the processor gave them with the clock on the
wall. On an idle machine that is all of it; a busy loop on one of two cores leaves half a core to one of two threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import numpy as np

__all__ = ["disturbed", "least_share"]

ENOUGH = 0.8  # of a core
SECONDS = 0.3 if sys.platform == "win32" else 0.015  # Windows counts a thread's time in units of 16 ms
TRIES = 2  # threads that have just woken may share a core until the system moves one of them
ELEMENTS = 1 << 16  # of an operation, during which NumPy leaves Python's lock to others


def disturbed(threads: int) -> bool:
    """Whether something else uses a core that as many threads of this process would need now."""
    return all(least_share(_granted(threads)) < ENOUGH for _ in range(TRIES))


def least_share(threads: int) -> float:
    """The least share of a core that one of so many threads gets, while all of them compute."""
    shares = [1.0] * threads
    barrier = threading.Barrier(threads)

    def compute(which: int) -> None:
        values = np.ones(ELEMENTS)
        barrier.wait()
        wall, processor = time.perf_counter(), time.thread_time()
        while (spent := time.perf_counter() - wall) < SECONDS:
            np.sqrt(values, out=values)
        shares[which] = (time.thread_time() - processor) / spent

    others = [threading.Thread(target=compute, args=(which,)) for which in range(1, threads)]
    for other in others:
        other.start()
    compute(0)
    for other in others:
        other.join()
    return min(shares)


def _granted(threads: int) -> int:
    """The threads that can compute at the same time at all: a container may have fewer cores than it sees."""
    from pathlib import Path  # `import portconv` loads this file, and needs no paths

    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        threads = min(threads, int(quota) // int(period))  # "max", without a limit, is no number
    return max(threads, 1)
