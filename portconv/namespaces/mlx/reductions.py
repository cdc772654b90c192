"""Sums, extremes, truth, and other functions of a whole axis."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .dtypes import DEFAULT_INT, DEFAULT_UINT, INDEX, SIGNED, UNSIGNED, result_type

__all__ = [
    "all", "any", "argmax", "argmin", "count_nonzero", "cumulative_prod", "cumulative_sum", "diff", "max", "mean",
    "min", "prod", "std", "sum", "var",
]  # fmt: skip


def _accumulated(x: Any, dtype: Any) -> Any:
    """`x` in the dtype of its sum: that asked for, and integers in at least the default integer."""
    if dtype is None:
        dtype = x.dtype
        if dtype in SIGNED and dtype.size < DEFAULT_INT.size:
            dtype = DEFAULT_INT
        elif dtype in UNSIGNED and dtype.size < DEFAULT_UINT.size:
            dtype = DEFAULT_UINT
    return x if x.dtype == dtype else x.astype(dtype)


def sum(x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    x = _accumulated(x, dtype)
    return mx.sum(x, axis, keepdims).astype(x.dtype)


def prod(x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    x = _accumulated(x, dtype)
    return mx.prod(x, axis, keepdims).astype(x.dtype)


def max(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.max(x, axis, keepdims)


def min(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.min(x, axis, keepdims)


def mean(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.mean(x, axis, keepdims)


def var(x: Any, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    count = 1
    for a in axes:
        count *= x.shape[a]
    centred = x - mx.mean(x, axes, True)
    squares = mx.sum(centred * centred, axes, keepdims)
    return squares / mx.array(count - correction if count > correction else 0, x.dtype)


def std(x: Any, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    return mx.sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


def all(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.all(x, axis, keepdims)


def any(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.any(x, axis, keepdims)


def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    return mx.argmax(x, axis, keepdims).astype(INDEX)


def argmin(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    return mx.argmin(x, axis, keepdims).astype(INDEX)


def count_nonzero(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return mx.sum((x != 0).astype(INDEX), axis, keepdims)


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
    result = function(x, axis).astype(x.dtype)
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
