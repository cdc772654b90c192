"""Dtypes: what promotes to what, limits, conversion."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

__all__ = ["astype", "can_cast", "finfo", "iinfo", "isdtype", "result_type"]

SIGNED = (mx.int8, mx.int16, mx.int32, mx.int64)
UNSIGNED = (mx.uint8, mx.uint16, mx.uint32, mx.uint64)
INTEGERS = SIGNED + UNSIGNED
REALS = (mx.float16, mx.bfloat16, mx.float32, mx.float64)
COMPLEX = (mx.complex64,)
KINDS = {
    "bool": (mx.bool_,),
    "signed integer": SIGNED,
    "unsigned integer": UNSIGNED,
    "integral": INTEGERS,
    "real floating": REALS,
    "complex floating": COMPLEX,
    "numeric": INTEGERS + REALS + COMPLEX,
}
INDEX, DEFAULT_INT, DEFAULT_UINT, DEFAULT_FLOAT, DEFAULT_COMPLEX = (
    mx.int64,
    mx.int32,
    mx.uint32,
    mx.float32,
    mx.complex64,
)


def name_of(dtype: Any) -> str:
    """The standard's name of a dtype."""
    return str(dtype).rpartition(".")[2].removesuffix("_")


def isdtype(dtype: Any, kind: Any) -> bool:
    if isinstance(kind, tuple):
        return any(isdtype(dtype, part) for part in kind)
    if isinstance(kind, str):
        if kind not in KINDS:
            raise ValueError(f"`kind` must be a dtype or one of {', '.join(map(repr, KINDS))}, but got {kind!r}.")
        return dtype in KINDS[kind]
    return bool(dtype == kind)


def result_type(*arrays_and_dtypes: Any) -> Any:
    scalars = [a for a in arrays_and_dtypes if isinstance(a, (bool, int, float, complex))]
    dtypes = [_dtype_of(a) for a in arrays_and_dtypes if not isinstance(a, (bool, int, float, complex))]
    if not dtypes:
        raise TypeError("At least one of the arguments must be an array or a dtype; Python numbers follow its dtype.")
    dtype = functools.reduce(_promoted, dtypes)
    for value in scalars:
        kind: Any = type(value)
        dtype = _with_scalar(dtype, kind)
    return dtype


def _dtype_of(value: Any) -> Any:
    if isinstance(value, mx.array):
        return value.dtype
    if isinstance(value, mx.Dtype):
        return value
    raise TypeError(
        f"Arguments must be MLX arrays or Python numbers, but got {type(value).__name__}; convert it with `asarray`."
    )


@functools.cache
def _promoted(a: Any, b: Any) -> Any:
    if a == b:
        return a
    if a in INTEGERS and b in INTEGERS:
        if mx.uint64 not in (a, b) or (a in UNSIGNED and b in UNSIGNED):
            return mx.result_type(a, b)
    elif a in REALS + COMPLEX and b in REALS + COMPLEX:
        if mx.float64 in (a, b) and mx.complex64 in (a, b):
            raise TypeError("float64 and complex64 promote to complex128, which MLX does not have; use float32.")
        return mx.result_type(a, b)
    raise TypeError(
        f"{name_of(a)} and {name_of(b)} have no dtype to which both promote; convert one of them with `astype`."
    )


@functools.cache
def _with_scalar(dtype: Any, kind: type) -> Any:
    """The dtype of an array combined with a Python number: the array's, but a complex number makes it complex."""
    if issubclass(kind, bool) or (issubclass(kind, int) and dtype != mx.bool_):
        return dtype
    if issubclass(kind, float) and dtype in REALS + COMPLEX:
        return dtype
    if issubclass(kind, complex) and dtype in REALS + COMPLEX:
        return _promoted(dtype, mx.complex64)
    raise TypeError(
        f"A Python {kind.__name__} does not combine with an array of {name_of(dtype)}; convert the array with `astype`."
    )


def operands(*values: Any) -> list[Any]:
    """The arguments as arrays of the dtype to which they promote."""
    dtype = result_type(*values)
    return [convert(value, dtype) for value in values]


def convert(value: Any, dtype: Any) -> Any:
    """An array or a Python number as an array of the dtype."""
    if isinstance(value, mx.array):
        return value if value.dtype == dtype else value.astype(dtype)
    if dtype in INTEGERS and isinstance(value, int):
        limits = iinfo(dtype)
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"{value} is out of the range of {name_of(dtype)}.")
        if value > iinfo(mx.int64).max:  # MLX reads Python ints as int64
            return mx.array(np.asarray(value, np.uint64))
    return mx.array(value, dtype)


def can_cast(from_: Any, to: Any, /) -> bool:
    try:
        return bool(result_type(from_, to) == to)
    except TypeError:
        return False


def check_dtype(dtype: Any) -> None:
    """Refuse other libraries' dtypes, and names of dtypes."""
    if not isinstance(dtype, mx.Dtype):
        raise TypeError(f"`dtype` must be a dtype of MLX, such as `xp.float32`, but got {dtype!r}.")


def astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Any:
    check_dtype(dtype)
    if x.dtype in COMPLEX and dtype not in COMPLEX:
        raise TypeError(f"`x` is complex and does not convert to {name_of(dtype)}; take its `real` part or its `abs`.")
    return x if x.dtype == dtype and not copy else x.astype(dtype)


@dataclass(frozen=True)
class FloatLimits:
    """What `finfo` returns: Python floats."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: Any


@dataclass(frozen=True)
class IntegerLimits:
    """What `iinfo` returns: Python ints."""

    bits: int
    max: int
    min: int
    dtype: Any


def finfo(type: Any, /) -> FloatLimits:
    dtype = _dtype_of(type)
    if dtype not in REALS + COMPLEX:
        raise TypeError(f"`type` must be a floating dtype, but got {name_of(dtype)}; `iinfo` is for integers.")
    return _finfo(dtype)


@functools.cache
def _finfo(dtype: Any) -> FloatLimits:
    if dtype == mx.bfloat16:  # 8 bits of exponent as in float32, 7 of mantissa
        largest = float((2 - 2**-7) * 2.0**127)
        return FloatLimits(16, 2.0**-7, largest, -largest, 2.0**-126, dtype)
    info = np.finfo(name_of(dtype))
    eps, largest, least, normal = (float(v) for v in (info.eps, info.max, info.min, info.smallest_normal))
    return FloatLimits(info.bits, eps, largest, least, normal, mx.float32 if dtype in COMPLEX else dtype)


def iinfo(type: Any, /) -> IntegerLimits:
    dtype = _dtype_of(type)
    if dtype not in INTEGERS:
        raise TypeError(f"`type` must be an integer dtype, but got {name_of(dtype)}; `finfo` is for floats.")
    return _iinfo(dtype)


@functools.cache
def _iinfo(dtype: Any) -> IntegerLimits:
    info = np.iinfo(name_of(dtype))
    return IntegerLimits(info.bits, int(info.max), int(info.min), dtype)
