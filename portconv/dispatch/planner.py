"""From candidates to a plan. The backends propose, the planner decides: by sizes, without arrays, clock or file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from ..core import hints
from ..core.backend import Backend, Candidate, Plan
from ..core.errors import UnsupportedError
from ..core.problem import Problem, TransposedProblem
from ..engines import separable
from ..engines.cropped import CroppedPlan, cropped
from ..engines.finished import FinishedPlan, sums_of
from ..engines.phases import TransposedPlan

__all__ = ["Choice", "able", "cheapest", "least", "plan"]

# How one of the engines is chosen where the user names none.
Choice: TypeAlias = Callable[[Backend, Problem], Plan]


def cheapest(backend: Backend, problem: Problem) -> Plan:
    """The plan of the candidate that costs least by its estimate."""
    candidates = tuple(backend.candidates(problem))
    return least(backend, problem, candidates, able(backend, problem, candidates), "heuristic")


def plan(backend: Backend, problem: Problem, engine: str = "auto", choose: Choice = cheapest) -> Plan:
    """The plan for a problem: of the engine named, or of the one that `choose` finds.

    Raises
    ------
    UnsupportedError
        If the engine named, or every engine, cannot run the problem. The message gives the reasons.
    """
    if (sums := sums_of(problem)) is not None:
        from ..cpu.finisher import finisher_of  # not before it is needed: it imports NumPy's engines

        inner = plan(backend, sums, engine, choose)
        fuses: Any = getattr(backend, "fuses", None)
        build = (
            backend.build
            if fuses is not None and all(fuses(problem, name) for name in inner.engine.split("+"))
            else None
        )
        return FinishedPlan.of(problem, inner, finisher_of(backend, problem), build)
    if isinstance(problem, TransposedProblem):
        steps: Any = getattr(backend, "steps", None)
        if steps is None:
            raise UnsupportedError(f"The backend {backend.name!r} has no transposed convolutions: it lacks `steps`.")
        at_once: Any = getattr(backend, "at_once", None)
        return TransposedPlan.of(problem, lambda phase: plan(backend, phase, engine, choose), steps(problem), at_once)
    crop = cropped(problem)
    if crop is not None and (engine == "auto" or _offered(backend, crop.problem, engine)):
        inner = _planned(backend, crop.problem, engine, choose)
        return CroppedPlan.of(problem, crop, inner, backend.candidates(problem))
    return _planned(backend, problem, engine, choose)


def _offered(backend: Backend, problem: Problem, engine: str) -> bool:
    return any(c.engine == engine and c.why_not is None for c in backend.candidates(problem))


def _planned(backend: Backend, problem: Problem, engine: str, choose: Choice) -> Plan:
    if engine == "auto":
        return choose(backend, problem)
    candidates = tuple(backend.candidates(problem))
    return _bound(backend, problem, candidates, _named(backend, candidates, engine), "the caller")


def able(backend: Backend, problem: Problem, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that can run, one at least."""
    found = [c for c in candidates if c.why_not is None]
    if not found:
        reasons = "; ".join(f"{c.engine}: {c.why_not}" for c in candidates)
        raise UnsupportedError(
            f"No engine of the backend {backend.name!r} can run this on {problem.device}. {reasons}."
        )
    return found


def least(
    backend: Backend, problem: Problem, candidates: tuple[Candidate, ...], among: Sequence[Candidate], by: str
) -> Plan:
    """The plan of the candidate in `among` that costs least; for separable kernels with two passes beside it."""
    chosen = min(among, key=lambda c: c.seconds)
    bound = _bound(backend, problem, candidates, chosen, by)
    for c in candidates:
        two_passes = None if c.why_not is not None or c.if_separable is None else c.if_separable * c.seconds
        if two_passes is not None and separable.worth_it(chosen.seconds, two_passes):
            return separable.LowRankPlan.of(bound, backend.build(problem, c.engine))
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
    offered = ", ".join(repr(c.engine) for c in candidates)
    raise UnsupportedError(
        f"`engine` must be 'auto' or one that the backend {backend.name!r} has, {offered}, but got {engine!r}."
        f"{hints.word('engine', engine, [c.engine for c in candidates])}"
    )
