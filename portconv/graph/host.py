"""What libraries compute slowly on a CPU, by NumPy on the same memory: products, and many small steps in a row."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import array_api_compat.numpy as np_namespace

from ..core.array_types import library_of
from ..cpu.blas import limited
from ..dispatch.registry import get_backend

__all__ = ["alone", "on_cpu", "product"]

# Libraries whose arrays have values at once on a CPU, and take longer there for a small step than NumPy does.
SLOW_STEPS = ("mlx", "jax")


def product(xp: ModuleType, a: Any, b: Any) -> Any:
    """``a @ b``; of MLX's arrays on a CPU by NumPy, whose BLAS is several times as fast."""
    if library_of(a) != "mlx":
        return xp.matmul(a, b)
    return on_cpu(xp, lambda xp, a, b: (xp.matmul(a, b),), a, b)[0]


def on_cpu(xp: ModuleType, function: Callable[..., tuple[Any, ...]], *arrays: Any) -> tuple[Any, ...]:
    """``function(xp, *arrays)``, by NumPy where the library is slow on a CPU and the arrays are there."""
    first = arrays[0]
    if library_of(first) not in SLOW_STEPS:
        return function(xp, *arrays)
    backend = get_backend(first)
    infos = [backend.describe(a) for a in arrays if a is not None]
    if any(info.traced or info.dtype not in ("float32", "float64") or not _cpu(info.device) for info in infos):
        return function(xp, *arrays)
    try:
        values = [None if a is None else backend.to_numpy(a) for a in arrays]
    except ValueError:  # a library differentiates, or traces unseen: there are no values yet
        return function(xp, *arrays)
    return tuple(backend.from_numpy(y, device=infos[0].device) for y in function(np_namespace, *values))


def alone(function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """The function, with one thread of NumPy's BLAS: to wake another one takes longer than a small product."""

    def compute(xp: ModuleType, *arrays: Any) -> tuple[Any, ...]:
        with limited(1):
            return function(xp, *arrays)

    return compute


def _cpu(device: str) -> bool:
    return "cpu" in device.lower()
