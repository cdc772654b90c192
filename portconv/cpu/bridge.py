"""NumPy's engines for any library whose CPU arrays NumPy can see without a copy.

A backend, a third party's too, gets all of portconv's engines from here in two lines:

    def candidates(self, problem):
        return host_candidates(problem)

    def build(self, problem, engine):
        return host_plan(problem, engine, view=self.to_numpy, take=self._from_result)

`machine.host_environment` is what its `environment` returns: what the times of these engines depend on.

MLX's room builds on the same plan, and adds derivatives.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from .. import engines
from ..core.backend import Candidate, EnginePlan, PackedWeight, Plan
from ..core.problem import Problem, TransposedProblem
from ..engines.costs import CPU, Costs
from .compiled.costs import COMPILED, CompiledCosts
from .steps import NumpySteps

__all__ = [
    "AtOncePlan",
    "HostPlan",
    "bridged",
    "host_at_once",
    "host_candidates",
    "host_plan",
    "numpy_plan",
    "numpy_steps",
    "phases_at_once",
]


@lru_cache(maxsize=1)
def numpy_steps() -> NumpySteps:
    """The steps, with the scratch memory of every thread."""
    return NumpySteps()


def bridged(p: Problem) -> Problem:
    """The problem as NumPy gets it: bfloat16, which it has not, comes as float32 and goes back as bfloat16."""
    x_dtype = {"bfloat16": "float32", "bool_": "bool"}.get(p.x_dtype, p.x_dtype)
    out_dtype = "float32" if p.out_dtype == "bfloat16" else p.out_dtype
    return replace(p, x_dtype=x_dtype, dtype="float32" if p.dtype == "bfloat16" else p.dtype, out_dtype=out_dtype)


def host_candidates(problem: Problem, costs: Costs = CPU, compiled_costs: CompiledCosts = COMPILED) -> list[Candidate]:
    """The estimates of portconv's engines on NumPy, the compiled ones where there are.

    Examples
    --------
    >>> import portconv
    >>> from portconv.extending import host_candidates
    >>> problem = portconv.plan_conv2d((1, 4, 20, 20), (8, 4, 3, 3)).problem
    >>> sorted(candidate.engine for candidate in host_candidates(problem))
    ['direct', 'fft', 'gemm', 'winograd']
    """
    plain = engines.candidates(problem, numpy_steps(), costs)
    if not jit_enabled():
        return plain
    from .compiled import plans

    found = plans.candidates(problem, compiled_costs)
    return [found.get(candidate.engine, candidate) for candidate in plain]


def numpy_plan(problem: Problem, engine: str) -> EnginePlan:
    """A plan for NumPy arrays: compiled, where Numba is installed and has a kernel for it."""
    if jit_enabled():
        from .compiled import plans

        if (plan := plans.build(problem, engine)) is not None:
            return plan
    return engines.build(problem, engine, numpy_steps(), CPU)


def phases_at_once(problem: TransposedProblem, engine: str) -> EnginePlan | None:
    """A plan for all phases of a transposed convolution together, where there is a compiled one."""
    if not jit_enabled():
        return None
    from .compiled import plans

    return plans.at_once(problem, engine)


def host_at_once(
    problem: TransposedProblem,
    engine: str,
    *,
    view: Callable[[Any], Any],
    take: Callable[[Any, Problem], Any],
    kind: type[AtOncePlan] | None = None,
) -> AtOncePlan | None:
    """The same for another library's arrays, see `host_plan`; `kind` is the class of the plan if it has its own."""
    seen: Any = bridged(problem)
    inner = None if problem.traced else phases_at_once(seen, engine)
    if inner is None:
        return None
    return (kind or AtOncePlan)(problem, engine, inner.workspace_bytes, inner=inner, view=view, take=take)


@lru_cache(maxsize=1)
def jit_enabled() -> bool:
    """Whether there is the compiled tier: Numba can be imported, and `PORTCONV_JIT` is not 0."""
    return os.environ.get("PORTCONV_JIT", "1") != "0" and importlib.util.find_spec("numba") is not None


def host_plan(
    problem: Problem,
    engine: str,
    *,
    view: Callable[[Any], Any],
    take: Callable[[Any, Problem], Any],
    bits: Callable[[Any], Any] | None = None,
    new: Callable[[Problem], tuple[Any, Any] | None] | None = None,
    kept: Callable[[Problem], Any] | None = None,
) -> HostPlan:
    """A plan for another library's arrays.

    Parameters
    ----------
    problem, engine
        As in `Backend.build`.
    view
        Shows one of the library's arrays to NumPy; bfloat16 as float32. NumPy's own it leaves as they are.
    take
        Makes the library's array, of ``problem.result_dtype`` on ``problem.device``, of NumPy's result. That of a
        bfloat16 problem is float32; with `bits` it may be of the dtype `bits` gives, or of ml_dtypes' bfloat16.
    bits
        Shows an image of bfloat16 without a cast: as `views.BFLOAT16_BITS` or ml_dtypes' bfloat16, which the compiled
        engines read, and write results of.
    new
        Makes an array of the library's for the result, of any values, and NumPy's view of it, which the engine then
        writes into; or None for problems whose result `take` is to take.
    kept
        NumPy's memory for a result that `take` copies: it may be the same in every call of a thread.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> from portconv.extending import host_plan
    >>> problem = portconv.plan_conv2d((1, 4, 20, 20), (8, 4, 3, 3)).problem
    >>> plan = host_plan(problem, "gemm", view=np.asarray, take=lambda y, problem: y.tolist())  # to lists
    >>> packed = plan.pack(np.ones((8, 4, 3, 3), np.float32))
    >>> plan.execute(np.ones((1, 4, 20, 20), np.float32), packed)[0][0][0][0]
    36.0
    """
    inner = None if bits is None else _of_bfloat16(problem, engine)
    if inner is None:
        inner, bits = numpy_plan(bridged(problem), engine), None
    return HostPlan(
        problem, engine, inner.workspace_bytes, inner=inner, view=view, take=take, bits=bits, new=new, kept=kept
    )


def _of_bfloat16(p: Problem, engine: str) -> EnginePlan | None:
    """The compiled plan of a problem with an image or a result of bfloat16, if there is one."""
    if "bfloat16" not in (p.x_dtype, p.result_dtype) or not jit_enabled():
        return None
    from .compiled import plans

    return plans.build(replace(p, x_dtype="bool") if p.x_dtype == "bool_" else p, engine)


@dataclass(frozen=True, kw_only=True)
class HostPlan(Plan):
    """A NumPy plan between two conversions; see `host_plan`."""

    inner: EnginePlan
    view: Callable[[Any], Any]
    take: Callable[[Any, Problem], Any]
    bits: Callable[[Any], Any] | None = None
    new: Callable[[Problem], tuple[Any, Any] | None] | None = None
    kept: Callable[[Problem], Any] | None = None

    @cached_property
    def stamp(self) -> Hashable:
        return ("host", self.inner.stamp)

    def cut(self, array: Any, index: tuple[Any, ...]) -> Any:
        return self.view(array)[index]

    def warmup(self) -> tuple[str, ...]:
        return self.inner.warmup()

    def pack(self, weight: Any, /) -> PackedWeight:
        packed = self.inner.pack(self.view(weight))
        return PackedWeight(self.stamp, packed, packed.nbytes, packed.separable)

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        return self.inner.fuses(x, weight.data, bias, residual)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        show = self.view if self.bits is None or self.problem.x_dtype != "bfloat16" else self.bits
        image, shift = show(x), None if bias is None else self.view(bias)
        added = None if residual is None else self.view(residual)
        made = None if self.new is None else self.new(self.problem)
        if made is None:
            memory = None if self.kept is None else self.kept(self.problem)
            return self.take(self.inner.execute(image, weight.data, shift, residual=added, out=memory), self.problem)
        y, memory = made
        self.inner.execute(image, weight.data, shift, residual=added, out=memory)
        return y


@dataclass(frozen=True, kw_only=True)
class AtOncePlan(HostPlan):
    """One of all phases of a transposed convolution."""

    def rebuilt(self, change: Callable[[Problem], Problem], build: Callable[[Problem, str], Plan]) -> Plan:
        inner: Any = self.inner.rebuilt(lambda problem: bridged(change(problem)), build)
        return replace(self, problem=change(self.problem), inner=inner)
