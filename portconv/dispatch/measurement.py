"""The choice of an engine by the clock: the candidates are timed on this machine, or what was measured is recalled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..core.backend import Backend, Candidate, Plan
from ..core.problem import Problem
from ..cpu import busy
from . import planner, wisdom
from .planner import able, least

__all__ = ["fastest", "measure"]

# A candidate whose estimate is so many times the least is not worth its measurement.
WORTH_MEASURING = 30.0
MEASURED_SECONDS = 0.25  # to time one candidate, in so many turns of at most so many calls
TURNS, CALLS = 3, 10
NOT_MEASURED = "not measured: its estimate is too high"
ATTEMPTS, PAUSE = 3, 0.1  # to measure while nothing else uses a core; seconds between them
MEASURED = "measurement"  # as `chosen_by`, or else why the estimates decided:
DISTURBED = "heuristic, since something else used a core whenever the engines were timed"


@lru_cache(maxsize=4096)  # a problem is measured once
def fastest(backend: Backend, problem: Problem) -> Plan:
    """The plan of the candidate that takes least time, as measured here, now or before; a `Choice` of the planner."""
    return measure(backend, problem, recall=True)


def measure(backend: Backend, problem: Problem, *, recall: bool = False, remember: bool = True) -> Plan:
    """The plan of the candidate that takes least time on this machine, by the clock or by what was measured before.

    Where there is nothing to time, in a trace or without any image, the estimates decide. Times that were taken while
    something else used a core are not believed, and not kept: after some attempts the estimates decide, and `chosen_by`
    is `DISTURBED`.

    Parameters
    ----------
    backend, problem
        As in `planner.plan`.
    recall
        Whether times of an earlier process will do: see `portconv.wisdom`.
    remember
        Whether later processes may use what is measured now.

    Raises
    ------
    UnsupportedError
        If no engine can run the problem. The message gives the reasons.
    """
    if problem.traced or not problem.batch:
        return planner.cheapest(backend, problem)
    candidates = tuple(backend.candidates(problem))
    found = able(backend, problem, candidates)
    environment = {"backend": backend.name, **backend.environment(problem)}
    chosen_by = "wisdom"
    timed = _recalled(found, wisdom.recall(environment, problem)) if recall else None
    if timed is None:
        timed, chosen_by = _measured_in_quiet(backend, problem, found, int(environment.get("threads", 1)))
        if timed is None:
            return least(backend, problem, candidates, found, chosen_by)
        if remember:
            wisdom.remember(environment, problem, {c.engine: c.seconds for c in timed if c.measured})
    unable = [c for c in candidates if c.why_not is not None]
    return least(backend, problem, (*timed, *unable), [c for c in timed if c.measured], chosen_by)


def _worth_measuring(found: Sequence[Candidate]) -> set[str]:
    least = min(c.seconds for c in found)
    return {c.engine for c in found if c.seconds <= WORTH_MEASURING * least}


def _recalled(found: Sequence[Candidate], seconds: Mapping[str, float] | None) -> list[Candidate] | None:
    """The candidates with the times remembered; None unless these cover what would be measured, and no more."""
    if seconds is None or not _worth_measuring(found) <= set(seconds) <= {c.engine for c in found}:
        return None
    return _with_times(found, seconds)


def _with_times(found: Sequence[Candidate], seconds: Mapping[str, float]) -> list[Candidate]:
    return [
        replace(c, seconds=seconds[c.engine], measured=True) if c.engine in seconds else replace(c, note=NOT_MEASURED)
        for c in found
    ]


def _measured_in_quiet(
    backend: Backend, problem: Problem, found: Sequence[Candidate], threads: int
) -> tuple[list[Candidate] | None, str]:
    """What `_measured` finds when nothing else uses a core before and after it, and who chooses then."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE)
        if busy.disturbed(threads):
            continue
        timed = _measured(backend, problem, found)
        if timed is None:
            return None, "heuristic"
        if not busy.disturbed(threads):
            return timed, MEASURED
    return None, DISTURBED


def _measured(backend: Backend, problem: Problem, found: Sequence[Candidate]) -> list[Candidate] | None:
    """The candidates with the time that each took here, on random data; None where a library makes no values now."""
    rng = np.random.default_rng(0)
    sample = getattr(backend, "sample", None)  # of arrays that may be larger than memory
    p = problem if sample is None else sample(problem)

    def array(values: np.ndarray[Any, Any], dtype: str) -> Any:
        return backend.from_numpy(values, dtype=dtype, device=p.device)

    x = array(rng.random(p.x_shape, np.float32) * 4, p.x_dtype if p.x_dtype != "bool_" else "bool")
    weight = array(rng.standard_normal(p.weight_shape, np.float32), p.dtype)
    bias = array(np.zeros((1, p.out_channels, 1, 1), np.float32), p.dtype) if p.epilogue.bias else None
    if backend.describe(x).traced:
        return None
    worth = _worth_measuring(found)
    calls = {}
    for c in found:
        if c.engine in worth:
            bound = backend.build(p, c.engine)
            calls[c.engine] = partial(_finish, backend, bound, (x, bound.pack(weight), bias))
    return _with_times(found, _fastest(calls, min(found, key=lambda c: c.seconds).engine))


def _finish(backend: Backend, bound: Plan, arguments: tuple[Any, ...]) -> None:
    backend.synchronize(bound.execute(*arguments))


def _fastest(calls: Mapping[str, Callable[[], object]], expected: str) -> dict[str, float]:
    """Seconds of each; where the fastest is another than expected, both are timed again.

    On a machine that is busy for a moment an engine can seem ten times as slow as it is.
    """
    seconds = _turns(calls)
    fastest = min(seconds, key=lambda engine: seconds[engine])
    if fastest != expected:
        again = _turns({engine: calls[engine] for engine in (expected, fastest)})
        seconds |= {engine: min(seconds[engine], again[engine]) for engine in again}
    return seconds


def _turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the fastest of several calls of each, taking turns: what else the machine does then hits them alike.

    The first call of each, which may compile, does not count, and a slow one is called only once more.
    """
    for call in calls.values():
        call()
    best, spent = dict.fromkeys(calls, math.inf), dict.fromkeys(calls, 0.0)
    for turn in range(1, TURNS + 1):
        for engine, call in calls.items():
            for _ in range(CALLS):
                if spent[engine] >= MEASURED_SECONDS * turn / TURNS:
                    break
                start = time.perf_counter()
                call()
                seconds = time.perf_counter() - start
                best[engine], spent[engine] = min(best[engine], seconds), spent[engine] + seconds
    return best
