"""The one place where NumPy arrays get other shapes and strides over the memory that they have; and bfloat16.

`numpy.lib.stride_tricks.as_strided` checks nothing: a stride that does not fit the array reads foreign memory without a
word. The linter refuses it everywhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["BFLOAT16_BITS", "bfloat16", "strided"]

# NumPy has no bfloat16. Its bits, seen so, are an image or a result of the compiled engines.
BFLOAT16_BITS = np.dtype([("bfloat16", np.uint16)])


Array = np.ndarray[Any, Any]


def strided(x: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """A read-only view of the memory of `x`, from its first element on, with this shape and these strides in bytes.

    Raises
    ------
    IndexError
        If an element of the view would begin before the first byte of `x`, or end after its last one.
    """
    if 0 not in shape:
        low, high = _extent(x.shape, x.strides, x.itemsize) if x.size else (0, 0)
        first, last = _extent(shape, strides, x.itemsize)
        if first < low or last > high:
            raise IndexError(
                f"a view of shape {tuple(shape)} with strides {tuple(strides)} reaches bytes {first} to {last} of an "
                f"array, beyond the memory of that array, which has bytes {low} to {high}: shape {x.shape}, strides "
                f"{x.strides}"
            )
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)  # noqa: TID251  checked above


def _extent(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """The bytes of an array's elements, the first and the one after the last, counted from its first element."""
    ends = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    return sum(end for end in ends if end < 0), sum(end for end in ends if end > 0) + itemsize


def bfloat16(argument: str = "dtype") -> np.dtype[Any]:
    """The dtype of the package ml_dtypes, which JAX brings; NumPy has none of its own."""
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found
    except ImportError:
        raise TypeError(
            f"`{argument}` 'bfloat16' does not exist in NumPy itself. Install ml_dtypes, which has it, or use float16 "
            "or float32, or another backend."
        ) from None
