"""Dask: each chunk of the result is a task, which convolves what it reads by the plan of the library in the chunks.

`windows` says which chunks of the image a chunk of the result reads, `graph` makes the tasks of it, `tasks` is what
they do. Nothing is computed while a graph is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import dask.array
import numpy as np

from ...core.array_types import library_of
from ...core.backend import ArrayInfo, Backend, Candidate, PackedWeight, Plan, Pullback, Wanted
from ...core.problem import Problem
from ...core.windows import WindowOperation
from ...cpu.machine import version
from ...engines.finished import Finisher
from ...engines.steps import Steps
from . import operations
from .derivatives import value_and_pullback
from .finisher import ChunkFinisher
from .graph import DaskPlan, typical
from .pooling import windowed
from .tasks import Inner

__all__ = ["backend"]

CPU = "cpu"  # the device of NumPy's chunks; that of others is the name of their library


class _DaskSteps(Steps):
    """Dask's dtypes are NumPy's, of which the namespace has not all."""

    def dtype(self, name: str) -> Any:
        return np.dtype(name)  # bfloat16, too, where the package that has it was imported


_STEPS = _DaskSteps(operations, writable=False)


class DaskBackend:
    """See `portconv.extending.Backend`. Its candidates are those of the library in the chunks."""

    name = "dask"
    operations = operations  # what is made of results by them comes without a warning

    def __init__(self, inner: Inner) -> None:
        self._inner = inner

    def describe(self, x: Any, /) -> ArrayInfo:
        if library_of(x) != self.name or not isinstance(x, dask.array.Array):
            raise TypeError(f"expected an array of Dask, but got {type(x).__module__}.{type(x).__name__}.")
        if not all(isinstance(size, int) for size in x.shape):
            raise ValueError(f"its shape {x.shape} is not known yet. Call `compute_chunk_sizes()` on it first.")
        library = self._inner.backend_of(x._meta)
        dtype = library.describe(x._meta).dtype
        return ArrayInfo(x.shape, dtype, CPU if library.name == "numpy" else library.name)

    def _library(self, device: str) -> Backend:
        """The back end of the chunks on a device."""
        try:
            return self._inner.backend_of("numpy" if device == CPU else device)
        except ValueError:
            raise ValueError(
                f"`device` of Dask's arrays is the library in their chunks: {CPU!r} for NumPy, 'cupy' for CuPy, but "
                f"got {device!r}."
            ) from None

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        library = self._library(problem.device)
        part = typical(problem, library)
        chunks = problem.flops / part.flops if part.flops else 1.0
        # of two passes each chunk's own plan decides
        return [replace(c, seconds=c.seconds * chunks, if_separable=None) for c in library.candidates(part)]

    def sample(self, problem: Problem, /) -> Problem:
        """What is timed in the place of a problem, whose arrays may be larger than memory: one chunk."""
        return replace(typical(problem, self._library(problem.device)), device=problem.device)

    def build(self, problem: Problem, engine: str, /) -> Plan:
        library = self._library(problem.device)
        workspace = library.build(typical(problem, library), engine).workspace_bytes
        return DaskPlan(problem, engine, workspace, inner=self._inner, library=library)

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        return value_and_pullback(self._inner, plan, x, weight, bias, wanted, pack())

    def steps(self, _problem: Problem, /) -> Steps:
        """See `portconv.extending.Assembling`."""
        return _STEPS

    def finisher(self, _problem: Problem, /) -> Finisher:
        """See `portconv.extending.Finishing`."""
        return ChunkFinisher(self._inner)

    def windowed(self, x: Any, _info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """See `portconv.extending.Windowing`."""
        return windowed(self._inner, x, operation)

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return str(weight.name)  # which an assignment changes

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        # a copy: NumPy's owner can change the values before they are computed with
        chunk = self._library(device or CPU).from_numpy(np.array(x), dtype=dtype)
        return dask.array.from_array(chunk, chunks=chunk.shape, asarray=False)

    def to_numpy(self, x: Any, /) -> Any:
        return self._inner.backend_of(x._meta).to_numpy(x.compute())

    def synchronize(self, x: Any, /) -> None:
        self._inner.backend_of(x._meta).synchronize(x.compute())  # chunks may be a GPU's

    def environment(self, problem: Problem, /) -> dict[str, str]:
        return {**self._library(problem.device).environment(problem), "dask": version("dask")}


def backend(
    _name: str, backend_of: Callable[[Any], Backend], plan: Callable[[Backend, Problem, str], Plan]
) -> DaskBackend:
    """The adapter of Dask, which is handed how back ends are found and how plans are made."""
    return DaskBackend(Inner(backend_of, plan))
