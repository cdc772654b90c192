"""A tiny array library: a shape, and numbers in an `array.array`; it stands for any that portconv does not know."""

from __future__ import annotations

import array
import math
from collections.abc import Iterable

__all__ = ["Array"]

_TYPECODES = {"float32": "f", "float64": "d"}


class Array:
    """Numbers of one dtype, "float32" or "float64", in C order."""

    def __init__(self, values: Iterable[float], shape: tuple[int, ...], dtype: str = "float32") -> None:
        self.data = array.array(_TYPECODES[dtype], values)
        self.shape = tuple(shape)
        self.dtype = dtype
        if math.prod(self.shape) != len(self.data):
            raise ValueError(f"{len(self.data)} values do not fill the shape {self.shape}")

    def __repr__(self) -> str:
        return f"tinyarray.Array(shape={self.shape}, dtype={self.dtype!r})"
