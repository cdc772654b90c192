"""Separable kernels, products of a column and a row: how they are packed in every tier, and which plan they get.

A planner sees sizes, and a Gaussian has the same sizes as noise. So where two passes of `direct` would be cheaper than
the engine chosen, the plan holds both, and packing the weight picks one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..core.backend import PackedWeight, Plan
from ..core.problem import Problem

__all__ = ["LowRankPlan", "Passes", "in_two_passes", "may_be_separable", "share", "worth_it"]

# Looking at the weight takes some 50 us when a call packs it anew.
MIN_SECONDS = 3e-4


class Passes(NamedTuple):
    """A separable kernel, packed: the columns and the rows of all output channels, each in the form of its tier."""

    column: Any
    row: Any


def in_two_passes(stamp: Hashable, column: Any, row: Any, p: Problem) -> PackedWeight:
    """The packed weight of a separable kernel."""
    return PackedWeight(stamp, Passes(column, row), p.itemsize * p.out_channels * sum(p.kernel), separable=True)


def may_be_separable(p: Problem) -> bool:
    """Whether two passes could do what a kernel does: each output has one channel, and no stride leaves out rows."""
    return p.groups == p.in_channels and p.stride == (1, 1)


def share(p: Problem) -> float | None:
    """The share of the taps that two passes have, where they could do what a kernel does."""
    kh, kw = p.kernel
    return (kh + kw) / (kh * kw) if may_be_separable(p) else None


def worth_it(seconds: float, two_passes: float) -> bool:
    """Whether two passes that take so long could gain on a plan's seconds."""
    return seconds > max(MIN_SECONDS, two_passes)


@dataclass(frozen=True, kw_only=True)
class LowRankPlan(Plan):
    """`general` for most weights, `passes`, a plan of `direct`, for separable ones."""

    general: Plan
    passes: Plan

    @classmethod
    def of(cls, general: Plan, passes: Plan) -> LowRankPlan:
        """Both plans, as one that shows as the first."""
        return cls(
            general.problem, general.engine, max(general.workspace_bytes, passes.workspace_bytes), general.candidates,
            general.chosen_by, general=general, passes=passes,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        return ("low rank", self.general.stamp, self.passes.stamp)

    def warmup(self) -> tuple[str, ...]:
        return *self.general.warmup(), *self.passes.warmup()

    def pack(self, weight: Any, /) -> PackedWeight:
        packed = self.passes.pack(weight)
        if not packed.separable:
            packed = self.general.pack(weight)
        return replace(packed, stamp=self.stamp, data=packed)

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        return (self.passes if weight.separable else self.general).fuses(x, weight.data, bias, residual)

    def rebuilt(self, change: Callable[[Problem], Problem], build: Callable[[Problem, str], Plan]) -> Plan:
        general, passes = (plan.rebuilt(change, build) for plan in (self.general, self.passes))
        return replace(self, problem=change(self.problem), general=general, passes=passes)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, **options: Any) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        return (self.passes if weight.separable else self.general).execute(x, weight.data, bias, **options)

    def explain(self) -> str:
        return f"{super().explain()}\n  a separable kernel runs as two passes of {self.passes.engine} instead"
