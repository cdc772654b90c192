"""From candidates to a plan. The planner sees sizes, never arrays; the backends propose, it decides."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from .backend import Backend, Candidate, Plan
from .engines import low_rank
from .errors import UnsupportedError
from .spec import Problem

__all__ = ["plan"]

# A candidate whose estimate is so many times the least is not worth its measurement.
WORTH_MEASURING = 30.0
NOT_MEASURED = "not measured: its estimate is too high"


@lru_cache(maxsize=4096)
def plan(backend: Backend, problem: Problem, engine: str = "auto", strategy: str = "heuristic") -> Plan:
    """The plan for a problem: of the engine named, or of the candidate that costs least.

    Raises
    ------
    UnsupportedError
        If the engine named, or every engine, cannot run the problem. The message gives the reasons.
    """
    candidates = tuple(backend.candidates(problem))
    if engine != "auto":
        return _bound(backend, problem, candidates, _named(backend, candidates, engine), "the caller")
    able = [c for c in candidates if c.why_not is None]
    if not able:
        reasons = "; ".join(f"{c.engine}: {c.why_not}" for c in candidates)
        raise UnsupportedError(
            f"No engine of the backend {backend.name!r} can run this on {problem.device}. {reasons}."
        )
    if strategy == "measure" and not problem.traced and problem.batch:
        able = _measured(backend, problem, able)
        candidates = (*able, *(c for c in candidates if c.why_not is not None))
        chosen = min(able, key=lambda c: (c.note == NOT_MEASURED, c.seconds))
        return _bound(backend, problem, candidates, chosen, "measurement")
    chosen = min(able, key=lambda c: c.seconds)
    bound = _bound(backend, problem, candidates, chosen, "heuristic")
    for c in able:
        if c.engine == "direct" and low_rank.worth_it(problem, chosen.seconds, c.seconds):
            return low_rank.LowRankPlan.of(bound, backend.build(problem, "direct"))
    return bound


def _bound(backend: Backend, problem: Problem, candidates: tuple[Candidate, ...], chosen: Candidate, by: str) -> Plan:
    return replace(backend.build(problem, chosen.engine), candidates=candidates, chosen_by=by)


def _named(backend: Backend, candidates: Sequence[Candidate], engine: str) -> Candidate:
    for c in candidates:
        if c.engine == engine:
            if c.why_not is not None:
                raise UnsupportedError(
                    f"`engine` {engine!r} cannot run this with the backend {backend.name!r}: {c.why_not}."
                )
            return c
    offered = ", ".join(c.engine for c in candidates)
    raise UnsupportedError(f"`engine` {engine!r} is not offered by the backend {backend.name!r}; it has {offered}.")


def _measured(backend: Backend, problem: Problem, able: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the time that each took here, on random data: the best of three calls after a warm-up."""
    rng = np.random.default_rng(0)
    p = problem
    x_dtype = p.x_dtype if p.x_dtype != "bool_" else "bool"
    x = backend.from_numpy((rng.random(p.x_shape) * 4).astype("float32"), dtype=x_dtype, device=p.device)
    weight = backend.from_numpy(rng.standard_normal(p.weight_shape).astype("float32"), dtype=p.dtype, device=p.device)
    bias = (
        backend.from_numpy(np.zeros((1, p.out_channels, 1, 1), "float32"), dtype=p.dtype, device=p.device)
        if p.has_bias
        else None
    )
    least = min(c.seconds for c in able)
    timed = []
    for c in able:
        if c.seconds > WORTH_MEASURING * least:
            timed.append(replace(c, note=NOT_MEASURED))
            continue
        bound = backend.build(p, c.engine)
        packed = bound.pack(weight)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            backend.synchronize(bound.execute(x, packed, bias))
            seconds.append(time.perf_counter() - start)
        timed.append(replace(c, seconds=min(seconds[1:])))
    return timed
