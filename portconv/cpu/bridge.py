"""NumPy's engines for a library whose CPU arrays NumPy can see without a copy."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from ..backend import PackedWeight, Plan
from ..spec import Problem

__all__ = ["HostPlan", "numpy_problem"]


def numpy_problem(p: Problem) -> Problem:
    """The problem as NumPy gets it: bfloat16, which it has not, comes as float32 and goes back as bfloat16."""
    x_dtype = {"bfloat16": "float32", "bool_": "bool"}.get(p.x_dtype, p.x_dtype)
    return replace(p, x_dtype=x_dtype, dtype="float32" if p.dtype == "bfloat16" else p.dtype)


@dataclass(frozen=True)
class HostPlan(Plan):
    """A NumPy plan between two conversions: `view` shows an array to NumPy, `take` makes one of NumPy's result."""

    inner: Plan = None  # type: ignore[assignment]
    view: Callable[[Any], Any] = None  # type: ignore[assignment]
    take: Callable[[Any, Problem], Any] = None  # type: ignore[assignment]

    @property
    def stamp(self) -> Hashable:
        return ("host", self.inner.stamp)

    def pack(self, weight: Any, /) -> PackedWeight:
        return replace(self.inner.pack(self.view(weight)), stamp=self.stamp)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        inner = replace(weight, stamp=self.inner.stamp)
        return self.take(
            self.inner.execute(self.view(x), inner, None if bias is None else self.view(bias)), self.problem
        )
