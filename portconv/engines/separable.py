"""Separable kernels under any engine: what the weight turns out to be decides when it is packed.

A planner sees sizes, and a Gaussian has the same sizes as noise. So where two passes of `direct` would be cheaper than
the engine chosen, the plan holds both, and packing the weight picks one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

from ..core.backend import PackedWeight, Plan
from ..core.problem import Problem

__all__ = ["LowRankPlan", "worth_it"]

# Looking at the weight takes some 50 us when a call packs it anew.
MIN_SECONDS = 3e-4


def worth_it(p: Problem, seconds: float, direct_seconds: float) -> bool:
    """Whether two passes could gain on a plan that takes so long, where all taps take `direct` so long."""
    kh, kw = p.kernel
    two_passes = direct_seconds * (kh + kw) / (kh * kw)
    return p.groups == p.in_channels and p.stride == (1, 1) and seconds > max(MIN_SECONDS, two_passes)


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

    def pack(self, weight: Any, /) -> PackedWeight:
        packed = self.passes.pack(weight)
        if not packed.separable:
            packed = self.general.pack(weight)
        return replace(packed, stamp=self.stamp, data=packed)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        return (self.passes if weight.separable else self.general).execute(x, weight.data, bias)

    def explain(self) -> str:
        return f"{super().explain()}\n  a separable kernel runs as two passes of {self.passes.engine} instead"
