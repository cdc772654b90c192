"""portconv's engines in MLX's operations: on GPUs, and for arrays that have no values yet."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx

from ... import engines
from ...core.backend import Candidate, PackedWeight, Plan
from ...core.errors import UnsupportedError
from ...core.problem import Problem
from ...engines.costs import Costs
from .arrays import STEPS, check_tracing, dtype_named
from .native import MAX_ELEMENTS, TF32, TOO_LARGE, NativePlan, elements, may_use_tf32, native_candidate

__all__ = ["GPU_COSTS", "EitherPlan", "OpsPlan", "Weight", "gpu_candidates", "traced_plan"]

MAX_TRACED_TAPS = 4096  # each is an operation that MLX has to compile
# What MLX's operations cost, to rank them. Its CPU build for Linux has a reference BLAS, measured on two cores of an
# AMD EPYC (Zen 4); nothing was measured on a GPU, where `strategy="measure"` knows better.
CPU_COSTS = Costs(gemm_flop=2.1e-10, fft_flop=2e-10, element=2e-10, row=1e-9, call=2e-5, task=1e-4, threads=1)
GPU_COSTS = Costs(gemm_flop=3e-13, fft_flop=2e-12, element=5e-11, row=1e-10, call=1e-5, task=3e-4, threads=1)


def gpu_candidates(p: Problem) -> list[Candidate]:
    """The engines in MLX's operations, on a GPU."""
    why_not = None
    if p.dtype == "float64":
        why_not = "MLX has float64 on its CPU device only; use `mx.set_default_device(mx.cpu)`"
    elif max(elements(p)) > MAX_ELEMENTS:
        why_not = TOO_LARGE
    offers = engines.candidates(p, STEPS, GPU_COSTS)
    if why_not is not None:
        return [Candidate(offer.engine, why_not=why_not) for offer in offers]
    if not may_use_tf32():
        return offers
    why_not = f"its products may be of {TF32}" if p.accuracy == "elementwise" else None
    return [
        replace(offer, why_not=why_not, note=TF32)
        if offer.engine in ("gemm", "winograd") and offer.why_not is None
        else offer
        for offer in offers
    ]


def traced_plan(p: Problem) -> Plan | None:
    """What convolves arrays that have no values (`mx.compile`, `mx.vmap`): nothing that would look at them.

    On a CPU `mx.conv2d` is seldom faster than its other operations, never by much, and has neither a forward derivative
    nor a gradient that `mx.vmap` takes.
    """
    native, many = native_candidate(p), p.kernel[0] * p.kernel[1] > MAX_TRACED_TAPS
    if many and native.why_not is not None:
        return None
    costs = CPU_COSTS if p.device == "cpu" else GPU_COSTS
    offers = [c for c in engines.candidates(p, STEPS, costs) if c.engine in ("gemm", "direct")]
    if p.device != "cpu":
        offers.append(native)
    best = native if many else min(offers, key=lambda c: (c.why_not is not None, c.seconds))
    return NativePlan(p, "native", 0) if best.engine == "native" else engines.build(p, best.engine, STEPS, costs)


class Weight(NamedTuple):
    """A weight in both forms that a plan may need."""

    packed: PackedWeight | None  # None where the weight has no values yet
    weight: Any


@dataclass(frozen=True, kw_only=True)
class EitherPlan(Plan):
    """A plan for arrays that have values, and another one, if there is any, for those that have none yet."""

    inner: Plan
    traced: Plan | None = None

    @cached_property
    def stamp(self) -> Hashable:
        return ("mlx", self.inner.stamp)

    def warmup(self) -> tuple[str, ...]:
        return self.inner.warmup()

    def pack(self, weight: Any, /) -> PackedWeight:
        try:
            packed = self.inner.pack(self._entering(weight))
        except ValueError as error:
            check_tracing(error)
            return PackedWeight(self.stamp, Weight(None, weight), 0)
        return PackedWeight(self.stamp, Weight(packed, weight), packed.nbytes, packed.separable)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        packed, original = weight.data
        return self._convolved(packed, x, original, bias)

    def _convolved(self, packed: PackedWeight | None, x: Any, original: Any, bias: Any = None) -> Any:
        if packed is not None:
            try:
                return self.inner.execute(self._entering(x), packed, bias)
            except ValueError as error:
                check_tracing(error)
        return self._traced(x, original, bias)

    def _traced(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """The convolution of arrays that have no values, for transformations of functions."""
        if self.traced is None:
            raise UnsupportedError(
                f"`weight` has more than {MAX_TRACED_TAPS} taps, too many for mx.compile and mx.vmap, where the fft "
                f"engine cannot look at values. Convolve outside of them."
            )
        packed = self.traced.pack(_wide(weight, self.problem))
        return self.traced.execute(_wide(x, self.problem), packed, bias)

    def _entering(self, array: Any) -> Any:
        """An image or a weight in the form that `inner` is to get."""
        return array


class OpsPlan(EitherPlan):
    """One of portconv's engines in MLX's operations. Those that look at values leave traced arrays to another plan."""

    def _entering(self, array: Any) -> Any:
        return _wide(array, self.problem)


def _wide(array: Any, p: Problem) -> Any:
    """The array in the dtype of the computation, if it may be differentiated: gradients are summed where it is used."""
    return array.astype(dtype_named(p.compute_dtype)) if mx.issubdtype(array.dtype, mx.floating) else array
