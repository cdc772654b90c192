"""Making arrays. `device` is read by `devices.placed`, within which these functions run."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from .dtypes import COMPLEX, DEFAULT_COMPLEX, DEFAULT_FLOAT, DEFAULT_INT, INTEGERS, convert, iinfo, name_of

__all__ = [
    "arange", "asarray", "empty", "empty_like", "eye", "from_dlpack", "full", "full_like", "linspace", "meshgrid",
    "ones", "ones_like", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
    if isinstance(obj, mx.array):
        if dtype is not None and dtype != obj.dtype:
            if copy is False:
                raise ValueError(f"`copy` is False, but `obj` is {name_of(obj.dtype)}, and {name_of(dtype)} is asked.")
            return obj.astype(dtype)
        return mx.array(obj) if copy else obj
    if copy is False:
        raise ValueError(f"`copy` is False, but MLX copies what is no MLX array; `obj` is {type(obj).__name__}.")
    if isinstance(obj, (bool, int, float, complex)) and not isinstance(obj, np.generic):
        return convert(obj, _default_of(obj) if dtype is None else dtype)
    if isinstance(obj, (list, tuple)):
        return _from_sequence(obj, dtype)
    if not isinstance(obj, (np.ndarray, np.generic)) and hasattr(obj, "__dlpack__"):
        try:
            obj = np.from_dlpack(obj)
        except (BufferError, RuntimeError, TypeError, ValueError):  # bfloat16, another device: NumPy cannot, MLX may
            return mx.asarray(obj, dtype=dtype)
    return _from_numpy(np.asarray(obj), dtype)


def _default_of(value: Any) -> Any:
    if isinstance(value, bool):
        return mx.bool_
    if isinstance(value, int):
        limits = iinfo(DEFAULT_INT)
        return DEFAULT_INT if limits.min <= value <= limits.max else mx.int64
    return DEFAULT_FLOAT if isinstance(value, float) else DEFAULT_COMPLEX


def _from_sequence(obj: list[Any] | tuple[Any, ...], dtype: Any) -> Any:
    if _holds_arrays(obj):
        return mx.array(obj) if dtype is None else mx.array(obj, dtype=dtype)
    # of integers in both halves of uint64 NumPy makes float64, unless it knows better
    values = np.asarray(obj, dtype=None if dtype is None or dtype not in INTEGERS else name_of(dtype))
    if dtype is None:  # the library's defaults are for Python numbers only, an element of NumPy's keeps its dtype
        python = {"int64": DEFAULT_INT, "float64": DEFAULT_FLOAT, "complex128": DEFAULT_COMPLEX}
        dtype = python.get(values.dtype.name)
        limits = iinfo(DEFAULT_INT)
        if values.dtype == np.int64 and values.size and (values.min() < limits.min or values.max() > limits.max):
            dtype = mx.int64
    return _from_numpy(values, dtype)


def _holds_arrays(obj: Any) -> bool:
    if isinstance(obj, (list, tuple)):
        return any(_holds_arrays(item) for item in obj)
    return isinstance(obj, mx.array)


def _from_numpy(values: Any, dtype: Any) -> Any:
    """A copy; of the same dtype unless one is given. MLX alone would make float32 of float64."""
    if dtype is None:
        if values.dtype.kind not in "biufc" or not hasattr(mx, values.dtype.name.replace("bool", "bool_")):
            raise TypeError(f"`obj` is {values.dtype}, which MLX does not have; name another `dtype`.")
        dtype = mx.bool_ if values.dtype == np.bool_ else getattr(mx, values.dtype.name)
    elif values.dtype.kind == "c" and dtype not in COMPLEX:
        raise TypeError(f"`obj` is complex and does not convert to {name_of(dtype)}.")
    if values.dtype.kind not in "biufc":
        raise TypeError(f"`obj` must hold numbers or truth values, but its elements are {values.dtype}.")
    if dtype in INTEGERS or dtype == mx.bool_:
        values = values.astype(name_of(dtype))
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if not values.size:  # MLX hangs in sums and products of what it made of an empty NumPy array of the same dtype
        return mx.zeros(values.shape, dtype)
    return mx.array(values, dtype=dtype)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Any:
    if isinstance(x, mx.array):
        return mx.array(x)
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"`x` must have the method `__dlpack__`, but got {type(x).__name__}.")
    return asarray(x, copy=copy)


def arange(start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Any:
    start, stop = (0, start) if stop is None else (start, stop)
    if dtype is None:
        whole = all(isinstance(value, int) for value in (start, stop, step))
        wide = whole and max(abs(start), abs(stop)) > iinfo(DEFAULT_INT).max
        dtype = (mx.int64 if wide else DEFAULT_INT) if whole else DEFAULT_FLOAT
    if step == 0:
        raise ValueError("`step` must not be 0.")
    # NumPy counts in the dtype, MLX in floats that lose the last digits of int64
    counted = name_of(dtype) if dtype in INTEGERS else "float64"
    return _from_numpy(np.arange(start, stop, step, dtype=counted), dtype)


def linspace(
    start: Any, stop: Any, /, num: int, *, dtype: Any = None, device: Any = None, endpoint: bool = True
) -> Any:
    if dtype is None:
        dtype = DEFAULT_COMPLEX if isinstance(start, complex) or isinstance(stop, complex) else DEFAULT_FLOAT
    return _from_numpy(np.linspace(start, stop, num, endpoint=endpoint), dtype)


def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Any:
    n_cols = n_rows if n_cols is None else n_cols
    dtype = DEFAULT_FLOAT if dtype is None else dtype
    return _mask(n_rows, n_cols, k, mx.equal).astype(dtype)


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, mx.array) else _default_of(fill_value)
    return mx.full(shape, convert(fill_value, dtype))


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype)


def zeros(shape: Any, *, dtype: Any = None, device: Any = None) -> Any:
    return mx.zeros(shape, DEFAULT_FLOAT if dtype is None else dtype)


def zeros_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    return mx.zeros(x.shape, x.dtype if dtype is None else dtype)


def ones(shape: Any, *, dtype: Any = None, device: Any = None) -> Any:
    return mx.ones(shape, DEFAULT_FLOAT if dtype is None else dtype)


def ones_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    return mx.ones(x.shape, x.dtype if dtype is None else dtype)


def empty(shape: Any, *, dtype: Any = None, device: Any = None) -> Any:
    return zeros(shape, dtype=dtype)


def empty_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
    return zeros_like(x, dtype=dtype)


def tril(x: Any, /, *, k: int = 0) -> Any:
    return _where_mask(x, k, mx.less_equal)


def triu(x: Any, /, *, k: int = 0) -> Any:
    return _where_mask(x, k, mx.greater_equal)


def _where_mask(x: Any, k: int, compare: Any) -> Any:
    """`x` where column and row + k compare, and zero elsewhere, even where `x` is NaN or infinite there."""
    if x.ndim < 2:
        raise ValueError(f"`x` must have at least two dimensions, but its shape is {x.shape}.")
    return mx.where(_mask(x.shape[-2], x.shape[-1], k, compare), x, mx.array(0, x.dtype))


def _mask(n_rows: int, n_cols: int, k: int, compare: Any) -> Any:
    """Where column and row + k compare."""
    k = max(-n_rows, min(k, n_cols))  # further off there are no more elements, and indices would overflow
    return compare(mx.arange(n_cols).reshape(1, -1), mx.arange(n_rows).reshape(-1, 1) + k)


def meshgrid(*arrays: Any, indexing: str = "xy") -> tuple[Any, ...]:
    if indexing not in ("xy", "ij"):
        raise ValueError(f"`indexing` must be 'xy' or 'ij', but got {indexing!r}.")
    if len(arrays) < 2:
        return tuple(a.reshape(-1) for a in arrays)
    return tuple(mx.meshgrid(*arrays, indexing=indexing))
