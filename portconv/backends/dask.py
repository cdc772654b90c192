"""Dask: graphs of NumPy's operations, which warn of nothing when they run.

Dask runs its tasks later and in threads of its own, where no setting of the caller's holds. So each array enters an
engine by a layer of its own, and whatever the engine has put between those layers and its result is made quiet: each
task sets `numpy.errstate` for itself. The user's own tasks stay as they are.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.backend import ArrayInfo, Candidate, PackedWeight, Plan, Pullback, Wanted
from ..core.problem import Problem
from ..engines.steps import Steps, Window
from .base import ArrayApiBackend, OuterPlan, QuietSteps

__all__ = ["backend"]


MAX_TERMS = 1000  # of `direct`, which makes a few tasks of each; Dask's time grows faster than their number
ENTRY = "portconv-entry-"  # begins the names of the layers by which arrays enter an engine


@dataclass(frozen=True)
class _Quiet:
    """A task's function without NumPy's warnings."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return self.function(*args, **kwargs)


def _unchanged(x: Any) -> Any:
    return x


def _entered(x: Any) -> Any:
    """The array, behind a layer at which `_quietened` stops."""
    return x.map_blocks(_unchanged, name=ENTRY + x.name, dtype=x.dtype, meta=x._meta)


def _quietened(y: Any) -> Any:
    """The array, with every task quiet that was put between it and what entered."""
    graph = y.dask
    layers, names, seen = dict(graph.layers), list(y.__dask_layers__()), set()
    while names:
        name = names.pop()
        if name not in seen and not name.startswith(ENTRY):
            seen.add(name)
            layers[name] = _quiet_layer(layers[name])
            names.extend(graph.dependencies[name])
    return type(y)(type(graph)(layers, graph.dependencies), y.name, y.chunks, meta=y._meta)


def _quiet_layer(layer: Any) -> Any:
    if hasattr(layer, "task"):  # Blockwise, whose tasks are all made of this one
        quiet = copy.copy(layer)
        quiet.task = _quiet_task(layer.task)
        quiet.__dict__.pop("_cached_dict", None)  # tasks that it may have made already
        return quiet
    if not hasattr(layer, "mapping"):  # it only moves data: those that are not written down as tasks
        return layer
    return type(layer)({key: _quiet_task(task) for key, task in layer.mapping.items()}, layer.annotations)


def _quiet_task(task: Any) -> Any:
    if isinstance(task, tuple) and task and callable(task[0]):  # the older form of a task
        return _Quiet(task[0]), *task[1:]
    if not callable(getattr(task, "func", None)):
        return task  # the name of another one, or data
    quiet = task.copy()
    quiet.func = _Quiet(task.func)
    return quiet


class _DaskSteps(QuietSteps):
    """Windows of one chunk: Dask transforms no axis that is cut into several."""

    def cut(self, x: Any, window: Window, mode: str, dtype: str) -> Any:
        return self.contiguous(super().cut(x, window, mode, dtype))

    def contiguous(self, x: Any) -> Any:
        return x.rechunk(-1)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        # in one chunk: to choose the sizes of several Dask may divide by that of an empty array
        return self.xp.zeros(shape, dtype=dtype, chunks=shape)

    def dtype(self, name: str) -> Any:
        return np.dtype(name)

    def all_finite(self, x: Any) -> bool:
        return bool(_quietened(self.xp.isfinite(self.xp.sum(x))))


class _DaskPlan(OuterPlan):
    """An engine whose tasks are quiet."""

    def pack(self, weight: Any, /) -> PackedWeight:
        return self.inner.pack(_entered(weight))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        return _quietened(self.inner.execute(_entered(x), weight, None if bias is None else _entered(bias)))


class DaskBackend(ArrayApiBackend):
    """Dask. Its arrays could be assigned to, but every assignment rewrites the graph of the whole array."""

    namespace = "array_api_compat.dask.array"
    writable = False

    def build(self, problem: Problem, engine: str, /) -> Plan:
        return _DaskPlan.of(super().build(problem, engine))

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        y, pullback = super().vjp(plan, _entered(x), _entered(weight), bias, wanted, pack)

        def quiet(dy: Any) -> tuple[Any, Any, Any]:
            dx, dweight, dbias = (None if found is None else _quietened(found) for found in pullback(_entered(dy)))
            return dx, dweight, dbias

        return y, quiet

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        terms = problem.kernel[0] * problem.kernel[1] * (problem.in_channels // problem.groups)
        reason = f"Dask would take minutes to order the tasks of its {terms} terms"
        return [
            Candidate(c.engine, why_not=reason) if c.engine == "direct" and not c.why_not and terms > MAX_TERMS else c
            for c in super().candidates(problem)
        ]

    def _dtype(self, name: str) -> Any:
        return np.dtype(name)

    def _new_steps(self, device: str) -> Steps:
        return _DaskSteps(self._xp)  # Dask's creation functions know no device

    def _place(self, device: str) -> dict[str, Any]:
        return {}

    def describe(self, x: Any, /) -> ArrayInfo:
        info = super().describe(x)._replace(device="cpu")
        if not all(isinstance(size, int) for size in info.shape):
            raise ValueError(f"its shape {info.shape} is not known yet. Call `compute_chunk_sizes()` on it first.")
        return info

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return str(weight.name)

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        x = np.asarray(x)
        if x.size == 0:  # Dask divides by the size where it chooses chunks
            empty = importlib.import_module("dask.array").from_array(
                np.zeros(x.shape, dtype or x.dtype), chunks=x.shape
            )
            self._check(empty)
            return empty
        return super().from_numpy(x, dtype=dtype, device=device)

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.asarray(x.compute())

    def synchronize(self, x: Any, /) -> None:
        x.compute()


def backend(name: str) -> DaskBackend:
    """The adapter of Dask."""
    return DaskBackend(name)
