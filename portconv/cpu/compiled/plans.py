"""The compiled engines: which of them has a plan for a problem, and what it would cost."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ...core.backend import Candidate
from ...core.problem import Problem, TransposedProblem
from .. import threads
from .base import CompiledPlan
from .channels_last.plan import CompiledChannelsLastPlan
from .costs import COMPILED, CompiledCosts
from .depthwise.plan import CompiledDepthwisePlan
from .direct.plan import CompiledDirectPlan
from .gemm.plan import CompiledGemmPlan
from .stencil.plan import CompiledStencilPlan
from .transposed.plan import CompiledTransposedPlan
from .winograd.plan import CompiledWinogradPlan

__all__ = ["at_once", "build", "candidates"]

MAX_WORKSPACE_BYTES = 56 << 20
ALONE_SECONDS = 5e-6  # of work: another thread would come too late to be of help
MAX_AXIS = 1 << 20  # elements of a padded axis
MAX_TABLE = 1 << 17  # terms of an output: there is a table of them

# The compiled forms of an engine; the one that takes least time is used.
FORMS: dict[str, tuple[type[CompiledPlan], ...]] = {
    "gemm": (CompiledGemmPlan, CompiledChannelsLastPlan),
    "winograd": (CompiledWinogradPlan,),
    "direct": (CompiledDirectPlan, CompiledDepthwisePlan, CompiledStencilPlan),
}


@lru_cache(maxsize=256)
def build(problem: Problem, engine: str) -> CompiledPlan | None:
    """The compiled plan, or None where the plain one has to do: its tables and strips suit images, not long rows."""
    top, bottom, left, right = problem.padding
    axes = problem.height + top + bottom, problem.width + left + right
    terms = problem.in_channels // problem.groups * problem.kernel[0] * problem.kernel[1]
    if max(axes) > MAX_AXIS or terms > MAX_TABLE or problem.batch == 0:
        return None
    plan = _made(problem, engine)
    if plan is None or plan.workspace_bytes > MAX_WORKSPACE_BYTES:
        return None
    work = (plan.seconds(COMPILED) - COMPILED.launch) * min(plan.parts, threads.get_num_threads())
    return replace(plan, parts=1) if work < ALONE_SECONDS else plan


@lru_cache(maxsize=256)
def at_once(problem: TransposedProblem, engine: str) -> CompiledPlan | None:
    """The compiled plan for all phases of a transposed convolution, or None where each has one of its own."""
    terms = problem.in_channels // problem.groups * problem.kernel[0] * problem.kernel[1]
    if engine != "gemm" or max(problem.out_size) > MAX_AXIS or terms > MAX_TABLE:
        return None
    return CompiledTransposedPlan.make(problem)


def _made(problem: Problem, engine: str) -> CompiledPlan | None:
    plans = [plan for form in FORMS.get(engine, ()) if (plan := form.make(problem)) is not None]
    return min(plans, key=lambda plan: plan.estimate(COMPILED), default=None)


def candidates(problem: Problem, costs: CompiledCosts = COMPILED) -> dict[str, Candidate]:
    """The estimates of the engines that have a compiled form for the problem, by name."""
    found = {}
    for engine in FORMS:
        if (plan := build(problem, engine)) is not None:
            found[engine] = Candidate(
                engine,
                plan.estimate(costs),
                plan.workspace_bytes,
                note=plan.note,
                if_separable=plan.if_separable,
                tier="compiled",
            )
    return found
