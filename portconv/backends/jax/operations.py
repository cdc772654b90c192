"""portconv's engines in `jax.numpy`, and what all that JAX computes here needs: full precision, values where there are.

They serve traced arrays, and arrays on devices whose memory NumPy cannot see.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import jax

from ...core.backend import Candidate, PackedWeight
from ...core.problem import Problem
from ..base import OuterPlan

__all__ = ["OpsPlan", "full_precision", "is_tracer", "when_compiled", "where_it_belongs", "with_values"]

CALLS = 1000  # of a function that is compiled once: what a call bears of that


def is_tracer(x: Any) -> bool:
    """Whether `x` stands for values that are being traced (`jax.jit`, `jax.grad`, `jax.vmap`)."""
    return isinstance(x, jax.core.Tracer)


def with_values() -> AbstractContextManager[object]:
    """JAX computes what it can at once, instead of leaving it to the function that it is tracing."""
    at_once: AbstractContextManager[object] = jax.ensure_compile_time_eval()
    return at_once


def where_it_belongs(p: Problem) -> AbstractContextManager[object]:
    """Arrays that have values give arrays that have values, also while a function around the call is traced.

    Their packed weight is kept for other calls, and some engines look at values.
    """
    return nullcontext() if p.traced else with_values()


def full_precision() -> AbstractContextManager[object]:
    """Products of float32 are products of float32.

    On GPUs and TPUs JAX rounds their factors to TF32 or bfloat16 unless it is asked for more; whoever has set
    `jax_default_matmul_precision` gets what it says. Derivatives of a product have the product's precision.
    """
    if jax.config.jax_default_matmul_precision is not None:
        return nullcontext()
    precise: AbstractContextManager[object] = jax.default_matmul_precision("highest")
    return precise


class OpsPlan(OuterPlan):
    """An engine in `jax.numpy`.

    Traced images of 16 bits are cast as a whole: what JAX differentiates it adds in the dtype of the image where it is
    used. Under `jax.jit` the cast costs nothing.
    """

    def cut(self, array: Any, index: tuple[Any, ...]) -> Any:
        with where_it_belongs(self.problem):
            return array[index]

    def pack(self, weight: Any, /) -> PackedWeight:
        with full_precision(), where_it_belongs(self.problem):
            return self.inner.pack(weight)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        p = self.problem
        if p.traced and p.x_dtype in ("float16", "bfloat16"):
            x = x.astype(p.compute_dtype)
        with full_precision(), where_it_belongs(p):
            return self.inner.execute(x, weight, bias)


def when_compiled(offers: Iterable[Candidate], p: Problem) -> list[Candidate]:
    """The candidates for traced arrays, with their share of the time that XLA takes to compile them.

    Each tap is an operation of its own, which XLA was seen to compile in 0.015 s in `direct`, and in `gemm`, where
    operations are fused, in 0.0007 s for each pair of them: 35 s for a kernel of 15x15.
    """
    taps = p.kernel[0] * p.kernel[1]
    seconds = {"gemm": 7e-4 * taps**2, "direct": 1.5e-2 * taps}
    return [replace(c, seconds=c.seconds + seconds.get(c.engine, 0) / CALLS) for c in offers]
