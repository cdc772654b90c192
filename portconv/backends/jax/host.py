"""JAX's arrays on a CPU as NumPy sees them, and NumPy's as arrays of JAX: without a copy, and at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from ...core.problem import Problem
from ...cpu.finisher import HostFinisher
from ...engines.finished import Finisher
from .operations import is_tracer, with_values

__all__ = ["EagerFinisher", "placed", "view"]

BFLOAT16 = np.dtype(jax.numpy.bfloat16)

try:  # what `jax.device_put` comes to: a tenth of its time, which is as much as a small convolution takes
    from jax._src.lib import xla_client

    batched_device_put = xla_client.batched_device_put
except (ImportError, AttributeError):  # a name of JAX's own, that another version may not have
    batched_device_put = None


def view(x: Any) -> np.ndarray[Any, Any]:
    """An array's memory; bfloat16 is cast to float32."""
    shown = np.asarray(x)
    return shown.astype(np.float32) if shown.dtype == BFLOAT16 else shown


def placed(y: np.ndarray[Any, Any], device: Any) -> Any:
    """An array on a device, of memory that nobody changes any more; it has values while a function is traced, too."""
    if batched_device_put is not None:
        return batched_device_put(*_place(y.shape, y.dtype, device), [y], [device])
    # not `jnp.asarray(y, device=...)`: that is compiled for every new shape
    taken = jax.device_put(y, device)
    if is_tracer(taken):  # the context costs a tenth of small calls
        with with_values():
            return jax.device_put(y, device)
    return taken


@lru_cache(maxsize=1024)
def _place(shape: tuple[int, ...], dtype: np.dtype[Any], device: Any) -> tuple[Any, Any]:
    return jax.core.ShapedArray(shape, dtype), jax.sharding.SingleDeviceSharding(device)


class EagerFinisher(HostFinisher):
    """What follows the sums, by NumPy: one by one, JAX would compile its operations for every shape.

    A cotangent may be traced where the sums are not; then JAX computes.
    """

    def __init__(self, backend: Any, take: Callable[..., Any], steps: Finisher) -> None:
        super().__init__(backend)
        self._take, self._steps = take, steps

    def pulled_back(self, dy: Any, sums: Any, problem: Problem, residual: Any = None) -> Any:
        if is_tracer(dy):
            return self._steps.pulled_back(dy, sums, problem, residual)
        return super().pulled_back(dy, sums, problem, residual)

    def _taken(self, y: Any, dtype: str, _problem: Problem) -> Any:
        return self._take(y, dtype)
