"""CuPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.problem import Problem
from ..cpu.machine import version
from .base import ArrayApiBackend, QuietSteps

__all__ = ["backend"]


class _CupySteps(QuietSteps):
    """CuPy's own kernels take subnormal numbers for zero, and the libraries that it calls do not."""

    def is_zero(self, x: Any) -> Any:
        bits = x.view(f"i{x.dtype.itemsize}")
        return bits << 1 == 0  # all but the sign


class CupyBackend(ArrayApiBackend):
    """CuPy."""

    namespace = "array_api_compat.cupy"
    steps_type = _CupySteps

    def _new_device(self, name: str) -> Any:
        digits = "".join(ch for ch in name if ch.isdigit())
        return self._xp.cuda.Device(int(digits or 0))

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.asarray(x.get())

    def synchronize(self, x: Any, /) -> None:
        x.device.synchronize()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        properties = self._xp.cuda.runtime.getDeviceProperties(self._device(problem.device).id)
        return {"cupy": version("cupy"), "gpu": properties["name"].decode()}


def backend(name: str) -> CupyBackend:
    """The adapter of CuPy."""
    return CupyBackend(name)
