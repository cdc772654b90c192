"""The algorithms: `gemm`, `winograd`, `fft`, `direct`. They import no array library; `Steps` hands them one."""

from __future__ import annotations

from ..backend import Candidate, EnginePlan
from ..errors import UnsupportedError
from ..spec import Problem
from ..steps import Steps
from . import direct, fft, gemm, winograd
from .costs import Costs

__all__ = ["build", "candidates"]


def candidates(problem: Problem, steps: Steps, costs: Costs) -> list[Candidate]:
    """Every engine's estimate for a problem."""
    offers = [
        gemm.candidate(problem, costs, steps.block_bytes),
        winograd.candidate(problem, costs, steps.block_bytes),
        direct.candidate(problem, costs),
    ]
    if hasattr(steps.xp, "fft"):
        offers.append(fft.candidate(problem, costs, steps.workspace_bytes))
    else:
        offers.append(Candidate(fft.NAME, why_not="the library's namespace has no `fft` extension"))
    return offers


def build(problem: Problem, engine: str, steps: Steps, costs: Costs) -> EnginePlan:
    """The plan of one engine."""
    if engine == gemm.NAME:
        return gemm.plan(problem, steps)
    if engine == winograd.NAME:
        return winograd.plan(problem, steps, costs)
    if engine == fft.NAME:
        return fft.plan(problem, steps, costs)
    if engine == direct.NAME:
        return direct.plan(problem, steps, costs)
    raise UnsupportedError(f"`engine` {engine!r} is none of portconv's own engines: gemm, winograd, fft, direct.")
