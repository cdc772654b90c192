"""NumPy's engines on MLX's own memory, and their derivatives of any order.

MLX cannot see through NumPy: without rules of its own a derivative would silently be zero. Convolution is linear in the
image and in the weight, and so are its two gradients in what they are made of. All derivatives of the three are made of
the three again: with ``y = F(x, w)`` the gradients are ``X(w, dy)`` and ``W(x, dy)``; those of ``sum(u * X(w, dy))``
are ``W(u, dy)`` and ``F(u, w)``, and those of ``sum(v * W(x, dy))`` are ``X(v, dy)`` and ``F(x, v)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ...core.backend import PackedWeight, Plan, executed
from ...core.layout import NHWC_FROM_NCHW
from ...core.problem import Problem, TransposedProblem
from ...cpu import gradient, threads
from ...cpu.bridge import bridged, host_at_once, host_plan
from ...cpu.views import BFLOAT16_BITS
from .arrays import bits, check_tracing, dtype_named, remembered, view
from .native import MAX_ELEMENTS
from .operations import EitherPlan, traced_plan

__all__ = ["host_plan_with_derivatives", "phases_of_host"]

KEPT_BYTES = 128 << 10  # of a result that is copied from the same memory in every call: new memory of a few is cheap
WRITTEN_BYTES = 4 << 20  # of a result that is written into MLX's memory: smaller ones are copied sooner


def host_plan_with_derivatives(problem: Problem, engine: str) -> Plan:
    """One of portconv's engines on NumPy, on a CPU device."""
    nbytes = math.prod(problem.out_shape) * dtype_named(problem.result_dtype).size
    inner = host_plan(
        problem, engine, view=view, take=_take, bits=bits,
        new=_new if nbytes >= WRITTEN_BYTES and _can_be_written(problem) else None,
        kept=_kept if KEPT_BYTES <= nbytes < WRITTEN_BYTES and problem.result_dtype != "bfloat16" else None,
    )  # fmt: skip
    return _DifferentiablePlan(problem, engine, inner.workspace_bytes, inner=inner, traced=traced_plan(problem))


def phases_of_host(problem: TransposedProblem, engine: str) -> Plan | None:
    """All phases of a transposed convolution at once, of arrays that have values and no history."""
    return host_at_once(problem, engine, view=view, take=_take)


def _take(y: np.ndarray[Any, Any], p: Problem) -> Any:
    if y.dtype == BFLOAT16_BITS:
        return mx.array(y.view(np.uint16)).view(mx.bfloat16)
    return mx.array(y, dtype=dtype_named(p.result_dtype))


def _kept(p: Problem) -> np.ndarray[Any, Any]:
    """Memory for a result that is copied into MLX's at once."""
    count = math.prod(p.out_shape)
    return threads.scratch(count, np.dtype(p.result_dtype), "result")[:count].reshape(p.out_shape)


def _can_be_written(p: Problem) -> bool:
    """Whether the result is of a dtype of NumPy's, in memory that MLX can address."""
    return p.result_dtype != "bfloat16" and math.prod(p.out_shape) <= MAX_ELEMENTS - threads.ALIGNMENT


def _new(p: Problem) -> tuple[Any, np.ndarray[Any, Any]]:
    """New memory of MLX's for a result, and NumPy's view of it; aligned, so that the compiled engines can write it."""
    dtype = dtype_named(p.result_dtype)
    count = math.prod(p.out_shape)
    memory = mx.zeros(count + threads.ALIGNMENT // dtype.size, dtype)
    shown = np.array(memory, copy=False)
    some = slice(start := -shown.ctypes.data % threads.ALIGNMENT // dtype.size, start + count)
    return memory[some].reshape(p.out_shape), shown[some].reshape(p.out_shape)


def _views(*arrays: Any) -> list[np.ndarray[Any, Any]] | None:
    """NumPy's views of them, or None where they have no values yet."""
    try:
        return [view(x) for x in arrays]
    except ValueError as error:
        check_tracing(error)
        return None


def _bilinear(compute: Callable[[Any, Any], Any], vjp: Callable[..., Any], again: Callable[[Any, Any], Any]) -> Any:
    """A function of two arrays that is linear in either, with its derivatives; `again` is the function itself."""
    function = mx.custom_function(compute)
    function.vjp(vjp)
    function.jvp(lambda primals, tangents: _total(_by_parts(again, primals, tangents)))
    return function


def _by_parts(function: Callable[[Any, Any], Any], primals: Any, tangents: Any) -> list[Any]:
    """Terms of the directional derivative of a bilinear function; None is a tangent of zero."""
    (a, b), (da, db) = primals, tangents
    return [function(*pair) for pair in ((da, b), (a, db)) if pair[0] is not None and pair[1] is not None]


def _total(terms: list[Any]) -> Any:
    return sum(terms[1:], terms[0])


class _DifferentiablePlan(EitherPlan):
    """A plan behind an `mx.custom_function`, which has the derivatives."""

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        packed, original = weight.data
        arrays = [array for array in (x, original, bias, residual) if array is not None]
        return packed is not None and not remembered(*arrays) and self.inner.fuses(x, packed, bias, residual)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        packed, original = weight.data
        if packed is not None and not remembered(x, original, *(() if bias is None else (bias,))):
            return executed(self.inner, x, packed, bias, residual)
        convolve = mx.custom_function(partial(self._convolved, packed))
        convolve.vjp(self._vjp)
        convolve.jvp(self._jvp)
        return convolve(x, original) if bias is None else convolve(x, original, bias)

    def _vjp(self, primals: Any, dy: Any, _output: Any) -> Any:
        p, (x, weight, *bias) = self.problem, primals
        exact = mx.issubdtype(x.dtype, mx.floating)
        found = [self._image_gradient(weight, dy).astype(x.dtype) if exact else mx.zeros_like(x)]
        found.append(self._weight_gradient(x, dy, weight))
        for b in bias:
            # MLX's CPU build adds one term after the other: in float64, or else in pairs
            if p.dtype == "float64" and p.batch:
                images = mx.transpose(dy, NHWC_FROM_NCHW) if p.layout == "NCHW" else dy
                total = gradient.in_pairs(images.reshape(-1, p.out_channels))
            else:
                total = mx.sum(dy.astype(mx.float64), (0, 2, 3) if p.layout == "NCHW" else (0, 1, 2))
            found.append(total.astype(b.dtype).reshape(b.shape))
        return tuple(found)

    def _jvp(self, primals: Any, tangents: Any) -> Any:
        p, (*factors, db) = self.problem, (*tangents, None)[:3]
        terms = _by_parts(self._convolution, primals[:2], factors)
        if db is not None:
            shape = (1, -1, 1, 1) if p.layout == "NCHW" else (1, 1, 1, -1)
            terms.append(mx.broadcast_to(db.reshape(shape), p.out_shape).astype(dtype_named(p.dtype)))
        return _total(terms)

    # F, X and W of the text above

    def _convolution(self, x: Any, weight: Any) -> Any:
        return self.execute(x, self.pack(weight))

    def _image_gradient(self, weight: Any, dy: Any) -> Any:
        def compute(weight: Any, dy: Any) -> Any:
            views = _views(weight, dy)
            if views is not None:
                value = gradient.image_gradient(bridged(self.problem), *views)
                return mx.array(value, dtype=dtype_named(self.problem.dtype))
            # a linear function has the same gradient everywhere
            anywhere = mx.zeros(self.problem.x_shape, dtype_named(self.problem.dtype))
            return mx.vjp(lambda x: self._traced(x, weight), [anywhere], [dy])[1][0]

        def vjp(primals: Any, u: Any, _output: Any) -> Any:
            weight, dy = primals
            return self._weight_gradient(u, dy, weight), self._convolution(u, weight)

        return _bilinear(compute, vjp, self._image_gradient)(weight, dy)

    def _weight_gradient(self, x: Any, dy: Any, weight: Any) -> Any:
        """`weight` only says what shape and dtype the result has."""

        def compute(x: Any, dy: Any) -> Any:
            views = _views(x, dy)
            if views is not None:
                value = gradient.weight_gradient(bridged(self.problem), *views)
                return mx.array(value.reshape(weight.shape), dtype=weight.dtype)
            return mx.vjp(lambda w: self._traced(x, w), [mx.zeros(weight.shape, weight.dtype)], [dy])[1][0]

        def vjp(primals: Any, v: Any, _output: Any) -> Any:
            x, dy = primals
            return self._image_gradient(v, dy).astype(x.dtype), self._convolution(x, v)

        return _bilinear(compute, vjp, lambda x, dy: self._weight_gradient(x, dy, weight))(x, dy)
