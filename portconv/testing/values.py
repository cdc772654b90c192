"""The values of a problem's arrays: ordinary ones, and those at which arithmetic goes wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .problems import Problem

__all__ = ["KERNELS", "VALUES", "Data", "make_data", "rounded"]

Array = np.ndarray[Any, Any]

# Of an image: "range" spans many orders of magnitude, "saturated" has one pixel far above the others, "overflow" comes
# near to the largest number in the sums.
VALUES = ("normal", "positive", "constant", "zero", "range", "denormal", "saturated", "overflow", "nan", "inf")
# Of a weight: "peak" has one tap far above the others.
KERNELS = ("normal", "constant", "separable", "sparse", "zero", "range", "denormal", "peak", "nan", "inf")

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3e38, "float32": 3.4e38, "float64": 1e290}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}
# How far values that span orders of magnitude go: products of them must not overflow.
_RANGE = {"float16": (-3, 2), "bfloat16": (-15, 15), "float32": (-15, 15), "float64": (-60, 60)}


class Data(NamedTuple):
    """Values that the dtypes of a problem have, the image in NCHW and in NumPy dtypes that hold them."""

    x: Array
    weight: Array
    bias: Array | None
    dy: Array | None  # the cotangent of the result, if gradients are asked for; NCHW
    residual: Array | None  # NCHW


def make_data(p: Problem) -> Data:
    """The values of a problem, the same on every machine.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import Problem, make_data
    >>> data = make_data(Problem((1, 3, 9, 9), (4, 3, 3, 3), data="constant"))
    >>> data.x.shape, data.weight.shape, bool((data.x == data.x[0, 0, 0, 0]).all())
    ((1, 3, 9, 9), (4, 3, 3, 3), True)
    """
    rng = np.random.default_rng([p.seed, *p.x_shape, *p.weight_shape])
    x_dtype, dtype, bias_dtype = p.dtypes
    x = _image(rng, p.x_shape, x_dtype, p.data)
    weight = _weight(rng, p.weight_shape, dtype, p.kernel)
    if p.data == "overflow" and "float" in x_dtype and x.size:
        # so that the sum of all magnitudes stays below the largest number of the sums, but not by much
        room = 0.2 * _LARGEST["float64" if p.promoted_dtype == "float64" else "float32"]
        sums = np.abs(weight).reshape(p.weight_shape[0], -1).sum(axis=1).max() * np.abs(x).max()
        x = x * min(room / max(sums, 1e-300), 0.9 * _LARGEST[x_dtype] / max(np.abs(x).max(), 1e-300))
    bias = dy = residual = None
    if p.bias_shape is not None:
        bias = rounded(rng.standard_normal(p.bias_shape), bias_dtype)
    if p.gradient:
        dy = rounded(rng.standard_normal(p.out_shape), p.result_dtype)
    if p.residual:
        residual = rounded(rng.standard_normal(p.out_shape), dtype)
    return Data(rounded(x, x_dtype), rounded(weight, dtype), bias, dy, residual)


def _image(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> Array:
    if "float" not in dtype:
        low, high = {"bool": (0, 1), "int8": (-128, 127)}.get(dtype, (0, 255))
        if kind in ("constant", "zero"):
            return np.full(shape, high if kind == "constant" else 0)
        return rng.integers(low, high + 1, shape)
    if kind == "positive":
        return rng.random(shape)
    values = _values(rng, shape, dtype, kind)
    if kind == "saturated" and values.size:
        values.reshape(-1)[rng.integers(values.size)] = 1e4
    return values


def _weight(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> Array:
    values = _values(rng, shape, dtype, kind)
    if kind == "separable":
        values = np.einsum("...i,...j->...ij", rng.standard_normal(shape[:-1]), rng.standard_normal(shape[-1]))
        # whole numbers, so that the products are exact and the kernel is found to be separable
        values = np.rint(values * 4)
    if kind == "sparse":
        values = values * (rng.random(shape) < 0.2)
    if kind == "peak":
        values = values * 1e-3
        values[..., shape[-2] // 2, shape[-1] // 2] = 1
    return values * max(math.prod(shape[-3:]), 1) ** -0.5 if kind == "normal" else values


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> Array:
    values = rng.standard_normal(shape)
    if kind == "constant":
        # so few digits that sums in float64 are exact, while those in float32 round at every step
        return np.full(shape, round(float(rng.uniform(0.09, 0.11)) * 2**20) / 2**20)
    if kind == "zero":
        return np.zeros(shape)
    if kind == "range":
        low, high = _RANGE[dtype]
        return np.sign(values) * 10.0 ** rng.uniform(low, high, shape)
    if kind == "denormal":
        return values * _SMALLEST[dtype] * 100
    if kind in ("nan", "inf") and values.size:
        flat = values.reshape(-1)
        where = [0, flat.size - 1, int(rng.integers(flat.size))]
        flat[where] = [np.inf, -np.inf, np.inf] if kind == "inf" else [np.nan, -np.inf, np.nan]
    return values


def rounded(values: Array, dtype: str) -> Array:
    """The nearest values that a dtype has. bfloat16, which NumPy has not, comes as float32."""
    if dtype != "bfloat16":
        with np.errstate(all="ignore"):
            return np.asarray(values).astype(dtype)
    bits = np.asarray(values).astype(np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    upper = (bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(values), upper.view(np.float32), np.asarray(values).astype(np.float32))
