"""What the namespace can do: `__array_namespace_info__`."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from . import dtypes as types
from .devices import as_device, devices

__all__ = ["__array_namespace_info__"]


class Info:
    """See `__array_namespace_info__` in the array API standard."""

    __module__ = "portconv.namespaces.mlx"

    def capabilities(self) -> dict[str, Any]:
        """No shape depends on values in MLX."""
        return {"boolean indexing": False, "data-dependent shapes": False, "max dimensions": None}

    def default_device(self) -> Any:
        """The device on which MLX computes unless told otherwise."""
        return mx.default_device()

    def devices(self) -> tuple[Any, ...]:
        """The devices that are here."""
        return devices()

    def default_dtypes(self, *, device: Any = None) -> dict[str, Any]:
        """The dtypes of what is created without one."""
        return {
            "real floating": types.DEFAULT_FLOAT,
            "complex floating": types.DEFAULT_COMPLEX,
            "integral": types.DEFAULT_INT,
            "indexing": types.INDEX,
        }

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, Any]:
        """The standard's dtypes by name, of a kind or of several; float64 is on the CPU device only."""
        every = [mx.bool_, *types.INTEGERS, mx.float32, mx.float64, *types.COMPLEX]
        place = mx.default_device() if device is None else as_device(device)
        return {
            types.name_of(dtype): dtype
            for dtype in every
            if (kind is None or types.isdtype(dtype, kind)) and not (dtype == mx.float64 and place.type == mx.gpu)
        }


def __array_namespace_info__() -> Info:
    """The standard's inspection of a namespace."""
    return Info()
