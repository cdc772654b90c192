"""What follows the sums of Dask's arrays: chunk by chunk, by the library of the chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.array
import numpy as np

from ...core.problem import Problem
from ...cpu.finisher import finisher_of
from .tasks import Inner

__all__ = ["ChunkFinisher"]


class ChunkFinisher:
    """See `portconv.engines.finished.Finisher`. Residual and cotangent get the chunks of the sums."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner

    def finished(self, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """See `Finisher`."""
        arrays = [sums] if residual is None else [sums, residual.rechunk(sums.chunks)]
        return self._mapped("finished", arrays, problem, problem.result_dtype)

    def pulled_back(self, dy: Any, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """See `Finisher`."""
        arrays = [dy.rechunk(sums.chunks), sums]
        if residual is not None:
            arrays.append(residual.rechunk(sums.chunks))
        return self._mapped("pulled_back", arrays, problem, problem.compute_dtype)

    def _mapped(self, name: str, arrays: list[Any], problem: Problem, dtype: str) -> Any:
        library = self._inner.backend_of(arrays[0]._meta)
        meta = library.from_numpy(np.zeros((0,) * 4), dtype=dtype)
        return dask.array.map_blocks(_finished, *arrays, inner=self._inner, problem=problem, name_of=name, meta=meta)


def _finished(*blocks: Any, inner: Inner, problem: Problem, name_of: str) -> Any:
    """A chunk; `name_of` is that of the method of `Finisher`."""
    library = inner.backend_of(blocks[0])
    problem = replace(problem, device=library.describe(blocks[0]).device)
    finisher = finisher_of(library, problem)
    first, *rest = blocks
    if name_of == "finished":
        return finisher.finished(first, problem, *rest)
    sums, *residual = rest
    return finisher.pulled_back(first, sums, problem, *residual)
