"""NumPy: portconv's own engines on CPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ..core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted, check_result
from ..core.problem import Problem, TransposedProblem
from ..core.windows import WindowOperation
from ..cpu import windows
from ..cpu.bridge import host_candidates, numpy_plan, numpy_steps, phases_at_once
from ..cpu.gradient import host_vjp
from ..cpu.machine import host_environment
from ..cpu.views import bfloat16
from ..engines.finished import Finisher
from ..engines.steps import Steps

__all__ = ["NumpyBackend", "backend"]

MAX_WORK = 1000  # solutions that NumPy tries for whether strided arrays meet


class NumpyBackend:
    """See `portconv.extending.Backend`."""

    name = "numpy"

    def describe(self, x: Any, /) -> ArrayInfo:
        if type(x) is not np.ndarray:
            if isinstance(x, (np.ma.MaskedArray, np.matrix)):
                raise TypeError(
                    f"numpy.{type(x).__name__} is not supported: its mask or its matrix rules would be lost. "
                    f"Pass `numpy.asarray(x)` (for a masked array, `x.filled(value)`)."
                )
            if x is None:
                raise TypeError("expected a NumPy array, but got NoneType.")
            if not isinstance(x, np.ndarray):
                kind = f"{type(x).__module__}.{type(x).__name__}"
                raise TypeError(f"expected a NumPy array, but got {kind}. Convert it by `numpy.asarray`.")
        return ArrayInfo(x.shape, _name(x.dtype), "cpu")

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        native = Candidate("native", why_not="NumPy has no convolution of its own")
        return [*host_candidates(problem), native]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if problem.out_dtype == "bfloat16":
            bfloat16("out_dtype")
        return numpy_plan(problem, engine)

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        return host_vjp(self, plan, x, weight, bias, wanted, pack)

    def fuses(self, _problem: Problem, _engine: str, /) -> bool:
        """See `portconv.extending.Finishing`."""
        return True

    def at_once(self, problem: TransposedProblem, engine: str, /) -> Plan | None:
        """See `portconv.extending.Assembling`."""
        return phases_at_once(problem, engine)

    def steps(self, _problem: Problem, /) -> Steps:
        """See `portconv.extending.Assembling`."""
        return numpy_steps()

    def finisher(self, _problem: Problem, /) -> Finisher:
        """See `portconv.extending.Finishing`."""
        return numpy_steps()

    def windowed(self, x: Any, _info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """See `portconv.extending.Windowing`."""
        return windows.applied(x, operation)

    def cache_token(self, weight: np.ndarray[Any, Any], /) -> Hashable | None:
        # Whoever owns a read-only array can make it writeable, change it and set the flag again. Bytes cannot change.
        base: Any = weight
        while isinstance(base, np.ndarray):
            base = base.base
        return 0 if isinstance(base, bytes) else None

    def shown(self, weight: np.ndarray[Any, Any], /) -> np.ndarray[Any, Any]:
        """See `portconv.extending.Showing`."""
        return weight

    def check_out(self, out: np.ndarray[Any, Any], problem: Problem, arguments: Mapping[str, Any], /) -> None:
        """Whether an array can become a problem's result; `arguments` are the others of the call, or None."""
        check_result(self.describe(out), problem)
        if not out.flags.writeable:
            raise ValueError("`out` must be writeable, but its flag says that it is not.")
        if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.strides, strict=True)):
            raise ValueError("`out` must have memory for each of its elements, but an axis of it has stride 0.")
        for name, array in arguments.items():
            if array is not None and np.may_share_memory(out, array) and _share(out, array):
                raise ValueError(f"`out` must not share memory with `{name}`, which is read while `out` is written.")

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> np.ndarray[Any, Any]:
        if device not in (None, "cpu"):
            raise ValueError(f"`device` must be None or 'cpu' for the backend 'numpy', but got {device!r}.")
        return np.asarray(x, dtype=bfloat16() if dtype == "bfloat16" else dtype)

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.asarray(x, dtype=np.float32) if x.dtype.name == "bfloat16" else np.asarray(x)

    def synchronize(self, x: Any, /) -> None:
        """NumPy computes at once."""

    def environment(self, problem: Problem, /) -> dict[str, str]:
        return host_environment()


def _share(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays share memory; also where NumPy would take long to find out."""
    shares: Any = np.shares_memory  # whose annotations know two values of `max_work`
    try:
        return bool(shares(a, b, max_work=MAX_WORK))
    except np.exceptions.TooHardError:
        return True


@lru_cache(maxsize=256)
def _name(dtype: np.dtype[Any]) -> str:
    """NumPy makes the name anew whenever it is asked, which takes a microsecond."""
    return dtype.name


_BACKEND = NumpyBackend()


def backend(_name: str) -> NumpyBackend:
    """The one NumPy backend."""
    return _BACKEND
