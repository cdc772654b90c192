"""JAX: its own convolution, portconv's engines in its operations, and on a CPU NumPy's over its arrays' memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from ...core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted
from ...core.problem import Problem, TransposedProblem
from ...core.windows import WindowOperation
from ...cpu import windows
from ...cpu.bridge import host_at_once, host_candidates, host_plan
from ...cpu.gradient import host_vjp
from ...cpu.machine import host_environment, version
from ...engines.finished import Finisher
from ..base import ArrayApiBackend, name_of
from .derivatives import differentiated
from .host import EagerFinisher, placed, view
from .native import NativePlan, native_candidate
from .operations import OpsPlan, full_precision, is_tracer, when_compiled, with_values

__all__ = ["backend"]

_name_of = lru_cache(maxsize=64)(name_of)  # NumPy makes the name of a dtype anew whenever it is asked: microseconds


class JaxBackend(ArrayApiBackend):
    """JAX: NumPy's engines for eager arrays on a CPU, seen without a copy; `jax.numpy` and XLA's own for all others.

    Operations that are not compiled together are compiled one by one in JAX, for every shape; a first call would take
    seconds.
    """

    namespace = "jax.numpy"
    writable = False

    def describe(self, x: Any, /) -> ArrayInfo:
        self._check(x)
        if is_tracer(x):
            return ArrayInfo(tuple(x.shape), name_of(x.dtype), "", traced=True)
        device = x.device
        name = str(device)
        self._devices.setdefault(name, device)
        return ArrayInfo(tuple(x.shape), _name_of(x.dtype), name)

    def _new_device(self, name: str) -> Any:
        if not name:  # traced: wherever the compiled function will run
            return None
        kind, _, index = name.partition(":")
        return jax.devices(kind)[int(index or 0)]

    def _platform(self, problem: Problem) -> str:
        """That of the device: "cpu", "gpu", "tpu"; empty for traced arrays."""
        return "" if problem.traced else str(getattr(self._device(problem.device), "platform", ""))

    def _on_host(self, problem: Problem) -> bool:
        return self._platform(problem) == "cpu"

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        native = native_candidate(problem, self._platform(problem))
        if self._on_host(problem):
            return [native, *host_candidates(problem)]
        engines = self._engines(problem)
        return [native, *(when_compiled(engines, problem) if problem.traced else engines)]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        self._check_wide("out_dtype", problem.result_dtype)
        if engine == "native":
            steps, platform = self._steps_on(problem.device), self._platform(problem)
            return NativePlan(problem, "native", steps=steps, platform=platform)
        if not self._on_host(problem):
            return OpsPlan.of(super().build(problem, engine))
        return host_plan(problem, engine, view=view, take=self._take, bits=np.asarray)

    def at_once(self, problem: TransposedProblem, engine: str, /) -> Plan | None:
        """See `portconv.extending.Assembling`."""
        return host_at_once(problem, engine, view=view, take=self._take) if self._on_host(problem) else None

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        p, arrays = plan.problem, (x, weight, bias)
        if p.traced:
            return differentiated(plan, arrays, wanted)
        if self._on_host(p):
            y, pullback = host_vjp(self, plan, *arrays, wanted, pack, take=partial(self._taken, device=p.device))
        else:
            y, pullback = super().vjp(plan, *arrays, wanted, pack)

        def vjp(dy: Any) -> tuple[Any, Any, Any]:
            if is_tracer(dy):
                traced = self._planned(replace(p, traced=True, device=""))
                return differentiated(traced, arrays, wanted)[1](dy)
            with full_precision(), with_values():
                return pullback(dy)

        return y, vjp

    def fuses(self, problem: Problem, engine: str, /) -> bool:
        """See `portconv.extending.Finishing`."""
        return self._on_host(problem) and engine != "native"

    def finisher(self, problem: Problem, /) -> Finisher:
        """See `portconv.extending.Finishing`."""
        if self._on_host(problem):
            return EagerFinisher(self, partial(self._taken, device=problem.device), self._steps_on(""))
        return self._steps_on(problem.device)

    def windowed(self, x: Any, info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """See `portconv.extending.Windowing`."""
        if info.traced or self._device(info.device).platform != "cpu":
            return super().windowed(x, info, operation)
        return self._taken(windows.applied(view(x), operation), info.dtype, info.device)

    def _take(self, y: np.ndarray[Any, Any], problem: Problem) -> Any:
        return self._taken(y, problem.result_dtype, problem.device)

    def _taken(self, y: np.ndarray[Any, Any], dtype: str, device: str) -> Any:
        taken = placed(y, self._device(device))
        if _name_of(y.dtype) == dtype:
            return taken
        with with_values():  # a function may be traced around the call
            return taken.astype(dtype)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None if is_tracer(weight) else 0  # JAX arrays cannot change

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        self._check_wide("dtype", dtype or np.asarray(x).dtype.name)
        with with_values():  # a layer keeps the converted weight beyond a trace
            return super().from_numpy(x, dtype=dtype, device=device)

    @staticmethod
    def _check_wide(argument: str, dtype: str) -> None:
        if dtype in ("float64", "int64", "uint64") and not jax.config.jax_enable_x64:
            raise TypeError(f"`{argument}`: JAX makes 32-bit numbers of {dtype}. Set `jax_enable_x64` for 64-bit ones.")

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return view(x)

    def synchronize(self, x: Any, /) -> None:
        x.block_until_ready()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        kind = str(getattr(self._device(problem.device), "device_kind", ""))
        return {"jax": version("jax"), "device kind": kind, **host_environment()}


def backend(name: str) -> JaxBackend:
    """The adapter of JAX."""
    return JaxBackend(name)
