"""MLX: its own convolution, portconv's engines in MLX's operations, and on a CPU device NumPy's over MLX's own memory.

MLX computes in NHWC with OHWI weights. An NCHW array is handed over as a transposed view, and an NCHW result is a view
of NHWC memory, so a chain of layers transposes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ... import engines
from ...core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted
from ...core.problem import Problem, TransposedProblem
from ...core.windows import WindowOperation
from ...cpu import windows as host_windows
from ...cpu.bridge import host_candidates
from ...cpu.gradient import host_vjp
from ...cpu.machine import host_environment, version
from ...engines import windows
from ...engines.finished import Finisher
from ...engines.steps import Steps
from ..base import by_argument, function_of
from .arrays import STEPS, default_device, dtype_named, name_of, remembered, view
from .host import host_plan_with_derivatives, phases_of_host
from .native import NativePlan, native_candidate
from .operations import GPU_COSTS, OpsPlan, gpu_candidates, traced_plan

__all__ = ["MlxBackend", "backend"]


class MlxBackend:
    """See `portconv.extending.Backend`. An MLX array has no device: it is where MLX computes, its default device."""

    name = "mlx"

    def describe(self, x: Any, /) -> ArrayInfo:
        if not isinstance(x, mx.array):
            raise TypeError(f"expected an mlx.core.array, but got {type(x).__name__}.")
        return ArrayInfo(x.shape, name_of(x.dtype), default_device())

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        native = native_candidate(problem)
        if problem.device == "cpu":
            return [native, *host_candidates(problem)]
        return [native, *gpu_candidates(problem)]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if engine == "native":
            return NativePlan(problem, "native", 0)
        if problem.device != "cpu":
            inner = engines.build(problem, engine, STEPS, GPU_COSTS)
            return OpsPlan(problem, engine, inner.workspace_bytes, inner=inner, traced=traced_plan(problem))
        return host_plan_with_derivatives(problem, engine)

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        arrays = (x, weight, bias)
        given = [array for array in arrays if array is not None]
        if plan.problem.device != "cpu" or remembered(*given):
            return plan.execute(x, pack(), bias), partial(_pulled_back, plan, arrays, wanted)

        y, on_host = host_vjp(self, plan, *arrays, wanted, pack)

        def vjp(dy: Any) -> tuple[Any, Any, Any]:
            return _pulled_back(plan, arrays, wanted, dy) if remembered(dy) else on_host(dy)

        return y, vjp

    def fuses(self, problem: Problem, engine: str, /) -> bool:
        """See `portconv.extending.Finishing`."""
        return problem.device == "cpu" and engine != "native"

    def at_once(self, problem: TransposedProblem, engine: str, /) -> Plan | None:
        """See `portconv.extending.Assembling`."""
        return phases_of_host(problem, engine) if problem.device == "cpu" else None

    def steps(self, _problem: Problem, /) -> Steps:
        """See `portconv.extending.Assembling`."""
        return STEPS

    def finisher(self, _problem: Problem, /) -> Finisher:
        """See `portconv.extending.Finishing`."""
        return STEPS

    def windowed(self, x: Any, info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """See `portconv.extending.Windowing`."""
        if 0 in info.shape:  # of an empty array MLX's gradient of `take` kills the process; a sum is as empty
            nothing = mx.zeros(operation.out_shape(info.shape), x.dtype)
            return nothing + mx.sum(x).astype(x.dtype)
        if info.device != "cpu" or remembered(x):
            return windows.applied(STEPS, x, operation, info.dtype)
        return self.from_numpy(host_windows.applied(view(x), operation), dtype=info.dtype)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None  # `weight[...] = value` shows nowhere

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        if device not in (None, "cpu", "gpu"):
            raise ValueError(f"`device` must be None, 'cpu' or 'gpu' for the backend 'mlx', but got {device!r}.")
        if device == "gpu" and not mx.is_available(mx.gpu):
            raise ValueError("`device` 'gpu': MLX finds no GPU on this machine.")
        name = dtype or np.asarray(x).dtype.name
        x = np.asarray(x, dtype="float32" if name == "bfloat16" else name)  # in the machine's byte order, too
        return mx.array(x, dtype=dtype_named(name))  # without a dtype MLX makes float32 of float64

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.array(view(x))

    def synchronize(self, x: Any, /) -> None:
        mx.eval(x)

    def environment(self, problem: Problem, /) -> dict[str, str]:
        here = host_environment() if problem.device == "cpu" else {"gpu": _gpu()}
        return {"mlx": version("mlx"), **here}


def _pulled_back(plan: Plan, arrays: tuple[Any, Any, Any], wanted: Wanted, dy: Any) -> tuple[Any, Any, Any]:
    """The gradients by MLX, which leaves out what nothing needs: the convolution itself, and other gradients."""
    some = [array for array, want in zip(arrays, wanted, strict=True) if want]
    return by_argument(mx.vjp(function_of(plan, arrays, wanted), some, [dy])[1], wanted)


def _gpu() -> str:
    """What MLX calls the hardware."""
    info = mx.device_info(mx.gpu) if hasattr(mx, "device_info") else mx.metal.device_info()
    return str(info.get("device_name") or info.get("architecture"))


_BACKEND = MlxBackend()


def backend(_name: str) -> MlxBackend:
    """The one MLX backend."""
    return _BACKEND
