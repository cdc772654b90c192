"""Plans with what follows the sums: a residual, an activation, another dtype.

The plan inside has sums with their bias, in the dtype of the computation, so that a result is rounded once. What
follows is done in the operations of the array's library, which can differentiate and trace them; or where results are
stored, by a plan that can, as long as nothing watches the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from ..core.backend import EnginePlan, PackedWeight, Plan, executed
from ..core.problem import Problem

__all__ = ["FinishedPlan", "Finisher", "sums_of"]


class Finisher(Protocol):
    """What `Steps` has for it, and what a back end may have instead."""

    def finished(self, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """A whole array of sums, bias and all, as the result has it: residual, activation, dtype."""

    def pulled_back(self, dy: Any, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """The cotangent of the sums, in the dtype of the computation, from that of the result."""


def sums_of(p: Problem) -> Problem | None:
    """The problem of the sums alone, or None where nothing follows them."""
    if p.epilogue.activation is None and not p.epilogue.residual:
        return None
    wide = p.compute_dtype if p.compute_dtype != p.dtype else None
    return replace(p, epilogue=p.epilogue.linear, out_dtype=wide)


@dataclass(frozen=True, kw_only=True)
class FinishedPlan(Plan):
    """A plan of the sums, and what makes the result of them."""

    inner: Plan
    finisher: Finisher
    fused: Plan | None = None  # one that stores results with all that follows, and packs weights as `inner` does

    @classmethod
    def of(
        cls, problem: Problem, inner: Plan, finisher: Finisher, build: Callable[[Problem, str], Plan] | None = None
    ) -> FinishedPlan:
        """The plan of a problem from that of its sums; see `sums_of`. `build` is a back end's, if it can fuse them."""
        fused = None if build is None else inner.rebuilt(partial(_followed, problem), build)
        if fused is not None and fused.stamp != inner.stamp:
            fused = None
        return cls(
            problem, inner.engine, inner.workspace_bytes, inner.candidates, inner.chosen_by, inner=inner,
            finisher=finisher, fused=fused,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        return self.inner.stamp

    @property
    def tier(self) -> str:
        return self.inner.tier

    def warmup(self) -> tuple[str, ...]:
        return (self.fused or self.inner).warmup()

    def pack(self, weight: Any, /) -> PackedWeight:
        return self.inner.pack(weight)

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if self.fused is not None and self.fused.fuses(x, weight, bias, residual):
            return executed(self.fused, x, weight, bias, residual, out)
        y = self.finisher.finished(self.inner.execute(x, weight, bias), self.problem, residual)
        if out is None:
            return y
        out[...] = y
        return out

    def ready(self, weight: PackedWeight, bias: Any = None, /) -> Callable[..., Any]:
        if self.fused is None:
            return super().ready(weight, bias)
        run, fuses = self.fused.ready(weight, bias), self.fused.fuses

        # NumPy's arrays are all alike to a plan: nobody differentiates them
        always = isinstance(self.fused, EnginePlan) and fuses(None, weight, bias)

        def finished(x: Any, residual: Any = None) -> Any:
            if (always and residual is None) or fuses(x, weight, bias, residual):
                return run(x, residual)
            return self.execute(x, weight, bias, residual=residual)

        return finished

    def explain(self) -> str:
        how = "in operations of the library" if self.fused is None else "where results are stored"
        return f"{self.inner.explain()}\n  then {self.problem.epilogue}, {how}"


def _followed(whole: Problem, sums: Problem) -> Problem:
    """A problem of sums with what follows those of another one."""
    return replace(sums, epilogue=whole.epilogue, out_dtype=whole.out_dtype)
