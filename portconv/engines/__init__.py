"""The algorithms: `gemm`, `winograd`, `fft`, `direct`. They import no array library; `Steps` hands them one."""

from __future__ import annotations

from dataclasses import replace

from ..core.backend import Candidate, EnginePlan
from ..core.errors import UnsupportedError
from ..core.problem import Problem
from . import direct, fft, gemm, winograd
from .costs import Costs
from .engine import Engine
from .steps import Steps

__all__ = ["ENGINES", "build", "candidates"]

# The one table of engines.
ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (gemm.ENGINE, winograd.ENGINE, direct.ENGINE, fft.ENGINE)
}


def candidates(problem: Problem, steps: Steps, costs: Costs) -> list[Candidate]:
    """Every engine's estimate for a problem."""
    return [replace(engine.candidate(problem, steps, costs), tier=steps.tier) for engine in ENGINES.values()]


def build(problem: Problem, engine: str, steps: Steps, costs: Costs) -> EnginePlan:
    """The plan of one engine."""
    if engine not in ENGINES:
        raise UnsupportedError(f"`engine` {engine!r} is none of portconv's own engines: {', '.join(ENGINES)}.")
    return ENGINES[engine].build(problem, steps, costs)
