"""JAX."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted
from ..core.problem import Problem
from ..cpu.bridge import host_candidates, host_plan
from ..cpu.gradient import host_vjp
from ..cpu.machine import host_environment, version
from .base import ArrayApiBackend, OuterPlan, by_argument, name_of, replaced

__all__ = ["backend"]


class _JaxPlan(OuterPlan):
    """An engine whose products of float32 are products of float32.

    On GPUs and TPUs JAX rounds their factors to TF32 or bfloat16 unless it is asked for more; whoever has set
    `jax_default_matmul_precision` gets what it says. Derivatives of a product have the product's precision.

    Traced images of 16 bits are cast as a whole: what JAX differentiates it adds in the dtype of the image where it is
    used. Under `jax.jit` the cast costs nothing.

    Arrays that have values give arrays that have values, also while a function around the call is traced: their packed
    weight is kept for other calls, and some engines look at values.
    """

    def cut(self, array: Any, index: tuple[Any, ...]) -> Any:
        with self._values():
            return array[index]

    def pack(self, weight: Any, /) -> PackedWeight:
        with _full_precision(), self._values():
            return self.inner.pack(weight)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        p = self.problem
        if p.traced and p.x_dtype in ("float16", "bfloat16"):
            x = x.astype(p.compute_dtype)
        with _full_precision(), self._values():
            return self.inner.execute(x, weight, bias)

    def _values(self) -> AbstractContextManager[object]:
        return nullcontext() if self.problem.traced else _with_values()


def _jax() -> Any:
    return importlib.import_module("jax")


def _with_values() -> AbstractContextManager[object]:
    """JAX computes what it can at once, instead of leaving it to the function that it is tracing."""
    at_once: AbstractContextManager[object] = _jax().ensure_compile_time_eval()
    return at_once


def _full_precision() -> AbstractContextManager[object]:
    jax = _jax()
    if jax.config.jax_default_matmul_precision is not None:
        return nullcontext()
    precise: AbstractContextManager[object] = jax.default_matmul_precision("highest")
    return precise


class JaxBackend(ArrayApiBackend):
    """JAX: NumPy's engines for eager arrays on a CPU, seen without a copy; `jax.numpy` for all others.

    Operations that are not compiled together are compiled one by one in JAX, for every shape; a first call would take
    seconds.
    """

    namespace = "jax.numpy"
    writable = False

    def describe(self, x: Any, /) -> ArrayInfo:
        self._check(x)
        if _is_tracer(x):
            return ArrayInfo(tuple(x.shape), name_of(x.dtype), "", traced=True)
        return super().describe(x)

    def _new_device(self, name: str) -> Any:
        if not name:  # traced: wherever the compiled function will run
            return None
        kind, _, index = name.partition(":")
        return _jax().devices(kind)[int(index or 0)]

    def _on_host(self, problem: Problem) -> bool:
        return not problem.traced and getattr(self._device(problem.device), "platform", "") == "cpu"

    def _engines(self, problem: Problem) -> list[Candidate]:
        return host_candidates(problem) if self._on_host(problem) else super()._engines(problem)

    def build(self, problem: Problem, engine: str, /) -> Plan:
        self._check_wide("out_dtype", problem.result_dtype)
        if not self._on_host(problem):
            return _JaxPlan.of(super().build(problem, engine))
        return host_plan(problem, engine, view=self.to_numpy, take=self._take, bits=np.asarray)

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        p, arrays = plan.problem, (x, weight, bias)
        if p.traced:
            return _differentiated(plan, arrays, wanted)
        if self._on_host(p):
            y, pullback = host_vjp(self, plan, *arrays, wanted, pack, take=partial(self._taken, device=p.device))
        else:
            y, pullback = super().vjp(plan, *arrays, wanted, pack)

        def vjp(dy: Any) -> tuple[Any, Any, Any]:
            if _is_tracer(dy):
                traced = self._planned(replace(p, traced=True, device=""))
                return _differentiated(traced, arrays, wanted)[1](dy)
            with _full_precision(), _with_values():
                return pullback(dy)

        return y, vjp

    def _take(self, y: np.ndarray[Any, Any], problem: Problem) -> Any:
        return self._taken(y, problem.result_dtype, problem.device)

    def _taken(self, y: np.ndarray[Any, Any], dtype: str, device: str) -> Any:
        # not `jnp.asarray(y, device=...)`: that is compiled for every new shape
        taken = _jax().device_put(y, self._device(device))
        if _is_tracer(taken):  # a function is being traced around the call; the context costs a tenth of small calls
            with _with_values():
                return self._taken(y, dtype, device)
        return taken if y.dtype.name == dtype else taken.astype(dtype)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None if _is_tracer(weight) else 0  # JAX arrays cannot change

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        self._check_wide("dtype", dtype or np.asarray(x).dtype.name)
        with _with_values():  # a layer keeps the converted weight beyond a trace
            return super().from_numpy(x, dtype=dtype, device=device)

    @staticmethod
    def _check_wide(argument: str, dtype: str) -> None:
        if dtype in ("float64", "int64", "uint64") and not _jax().config.jax_enable_x64:
            raise TypeError(f"`{argument}`: JAX makes 32-bit numbers of {dtype}. Set `jax_enable_x64` for 64-bit ones.")

    def synchronize(self, x: Any, /) -> None:
        x.block_until_ready()

    def environment(self, problem: Problem, /) -> dict[str, str]:
        kind = str(getattr(self._device(problem.device), "device_kind", ""))
        return {"jax": version("jax"), "device kind": kind, **host_environment()}


def _differentiated(plan: Plan, arrays: tuple[Any, Any, Any], wanted: Wanted) -> tuple[Any, Pullback]:
    """By JAX, of what it can trace."""

    def function(*values: Any) -> Any:
        x, weight, bias = replaced(arrays, wanted, values)
        return plan.execute(x, plan.pack(weight), bias)

    y, pullback = _jax().vjp(function, *(array for array, want in zip(arrays, wanted, strict=True) if want))
    return y, lambda dy: by_argument(pullback(dy), wanted)


def _is_tracer(x: Any) -> bool:
    """Whether `x` stands for values that are being traced (`jax.jit`, `jax.grad`, `jax.vmap`)."""
    return "Tracer" in type(x).__name__


def backend(name: str) -> JaxBackend:
    """The adapter of JAX."""
    return JaxBackend(name)
