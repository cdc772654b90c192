"""Sums, extremes, truth, and other functions of a whole axis."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from .dtypes import DEFAULT_FLOAT, DEFAULT_INT, DEFAULT_UINT, INDEX, INTEGERS, SIGNED, UNSIGNED, result_type

__all__ = [
    "all", "any", "argmax", "argmin", "count_nonzero", "cumulative_prod", "cumulative_sum", "diff", "max", "mean",
    "min", "prod", "std", "sum", "var",
]  # fmt: skip


MANY_TERMS = 256


def _accumulated(x: Any, dtype: Any) -> Any:
    """`x` in the dtype of its sum: that asked for, and integers and truths in at least the default integer."""
    if dtype is None:
        dtype = x.dtype
        if dtype == mx.bool_ or (dtype in SIGNED and dtype.size < DEFAULT_INT.size):
            dtype = DEFAULT_INT
        elif dtype in UNSIGNED and dtype.size < DEFAULT_UINT.size:
            dtype = DEFAULT_UINT
    return x if x.dtype == dtype else x.astype(dtype)


def _wide(x: Any, terms: int) -> Any:
    """`x` in a dtype that long sums keep their digits in.

    MLX's CPU build adds one term after the other: in float32 the mean of 12 million numbers was wrong by 1 %.
    """
    if terms <= MANY_TERMS or x.dtype not in (mx.float16, mx.bfloat16, mx.float32):
        return x
    return x.astype(_widest())


def _widest() -> Any:
    return mx.float64 if mx.default_device().type == mx.cpu else mx.float32


def _terms(x: Any, axis: Any) -> int:
    """How many elements a reduction makes one of."""
    return math.prod(x.shape[a] for a in _axes(x, axis))


def _axes(x: Any, axis: Any) -> list[int]:
    """The axes that are reduced."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if not isinstance(a, int) or not -x.ndim <= a < x.ndim:
            raise ValueError(f"`axis` must be from {-x.ndim} to {x.ndim - 1}, or several such ints, but got {axis!r}.")
    return [a % x.ndim for a in axes]


def sum(x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    x = _accumulated(x, dtype)
    if not x.size:
        return _of_nothing(x, axis, keepdims, 0)
    return mx.sum(_wide(x, _terms(x, axis)), axis, keepdims).astype(x.dtype)


def prod(x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    x = _accumulated(x, dtype)
    if not x.size:
        return _of_nothing(x, axis, keepdims, 1)
    return mx.prod(x, axis, keepdims).astype(x.dtype)


def _of_nothing(x: Any, axis: Any, keepdims: bool, value: Any, dtype: Any = None) -> Any:
    """The reduction of an array that has no elements: `value` everywhere.

    MLX's own reductions hang, or give 0, for some empty arrays that were made from NumPy arrays.
    """
    return mx.full(_reduced(x, axis, keepdims), mx.array(value, x.dtype if dtype is None else dtype))


def _reduced(x: Any, axis: Any, keepdims: bool) -> list[int]:
    """The shape that a reduction gives."""
    gone = _axes(x, axis)
    return [1 if a in gone else size for a, size in enumerate(x.shape) if keepdims or a not in gone]


def max(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.max(x, axis, keepdims)


def min(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.min(x, axis, keepdims)


def mean(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    wide, dtype = _floating(x, _terms(x, axis))
    if not x.size:
        return _of_nothing(x, axis, keepdims, math.nan, dtype)
    return mx.mean(wide, axis, keepdims).astype(dtype)


def _floating(x: Any, terms: int) -> tuple[Any, Any]:
    """`x` for sums of so many terms, and the dtype of what is made of them: the default one for integers and truths."""
    if x.dtype == mx.bool_ or x.dtype in INTEGERS:
        return x.astype(_widest()), DEFAULT_FLOAT
    return _wide(x, terms), x.dtype


def var(x: Any, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    count = _terms(x, axis)
    wide, dtype = _floating(x, count)
    if not x.size:
        return _of_nothing(x, axis, keepdims, math.nan, dtype)
    centred = wide - mx.mean(wide, axis, True)
    squares = mx.sum(centred * centred, axis, keepdims)
    return (squares / mx.array(count - correction if count > correction else 0, wide.dtype)).astype(dtype)


def std(x: Any, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    return mx.sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def all(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.all(x, axis, keepdims) if x.size else _of_nothing(x, axis, keepdims, True, mx.bool_)


def any(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.any(x, axis, keepdims) if x.size else _of_nothing(x, axis, keepdims, False, mx.bool_)


def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    return _index_of(mx.argmax, x, axis, keepdims)


def argmin(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    return _index_of(mx.argmin, x, axis, keepdims)


def _index_of(function: Any, x: Any, axis: int | None, keepdims: bool) -> Any:
    if not x.ndim or (not x.size and axis is not None and x.shape[axis]):  # MLX refuses both
        return mx.zeros(_reduced(x, axis, keepdims), INDEX)
    return function(x, axis, keepdims).astype(INDEX)


def count_nonzero(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return sum((x != 0).astype(INDEX), axis=axis, keepdims=keepdims)


def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Any:
    return _cumulative(mx.cumsum, 0, x, axis, dtype, include_initial)


def cumulative_prod(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Any:
    return _cumulative(mx.cumprod, 1, x, axis, dtype, include_initial)


def _cumulative(function: Any, initial: int, x: Any, axis: int | None, dtype: Any, include_initial: bool) -> Any:
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"`axis` must be given, since `x` has {x.ndim} dimensions.")
        axis = 0
    x = _accumulated(x, dtype)
    result = function(_wide(x, x.shape[axis]), axis).astype(x.dtype)
    if include_initial:
        shape = list(x.shape)
        shape[axis] = 1
        result = mx.concatenate([mx.full(shape, mx.array(initial, x.dtype)), result], axis)
    return result


def diff(x: Any, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Any:
    parts = [part for part in (prepend, x, append) if part is not None]
    if len(parts) > 1:
        dtype = result_type(*parts)
        x = mx.concatenate([part.astype(dtype) for part in parts], axis)
    return mx.diff(x, n, axis)
