"""The compiled engines: which of them has a plan for a problem, and what it would cost."""

from __future__ import annotations

from functools import lru_cache

from ...backend import Candidate
from ...engines import winograd
from ...spec import Problem
from .base import JitPlan
from .costs import JIT, JitCosts
from .depthwise_plan import DepthwisePlan
from .direct_plan import DirectPlan
from .gemm_plan import GemmPlan
from .winograd_plan import WinogradPlan

__all__ = ["build", "candidates"]

MAX_WORKSPACE_BYTES = 56 << 20
MAX_AXIS = 1 << 20  # elements of a padded axis
MAX_TERMS = 1 << 17  # of a sum: there is a table of them


@lru_cache(maxsize=256)
def build(problem: Problem, engine: str) -> JitPlan | None:
    """The compiled plan, or None where the plain one has to do: its tables and strips suit images, not long rows."""
    top, bottom, left, right = problem.padding
    axes = problem.height + top + bottom, problem.width + left + right
    terms = problem.in_channels // problem.groups * problem.kernel[0] * problem.kernel[1]
    if max(axes) > MAX_AXIS or terms > MAX_TERMS or problem.batch == 0:
        return None
    plan = _made(problem, engine)
    return plan if plan is None or plan.workspace_bytes <= MAX_WORKSPACE_BYTES else None


def _made(problem: Problem, engine: str) -> JitPlan | None:
    if engine == "winograd":
        return WinogradPlan.make(problem)
    if engine == "direct":
        forms = [plan for plan in (DirectPlan.make(problem), DepthwisePlan.make(problem)) if plan is not None]
        return min(forms, key=lambda plan: plan.seconds(JIT), default=None)
    return GemmPlan.make(problem) if engine == "gemm" else None


def candidates(problem: Problem, costs: JitCosts = JIT) -> dict[str, Candidate]:
    """The estimates of the engines that have a compiled form for the problem, by name."""
    found = {}
    for engine in ("gemm", "winograd", "direct"):
        if engine == "winograd" and winograd.why_not(problem) is not None:
            continue
        if (plan := build(problem, engine)) is not None:
            found[engine] = Candidate(engine, plan.seconds(costs), plan.workspace_bytes, note=plan.note)
    return found
