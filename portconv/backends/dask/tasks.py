"""What Dask's tasks do: put a window together from pieces of chunks, and convolve it by the plan of its own library.

A task is pickled and sent to other processes. So it holds sizes and names, no plan and no array: what was compiled, and
what weights were packed to, each process makes for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from ...core.backend import Backend, PackedWeight, Plan
from ...core.problem import Problem
from ...cpu.threads import at_most, get_num_threads
from .windows import AxisWindow

__all__ = ["Chunk", "Inner", "Weight", "convolve"]


class Inner(NamedTuple):
    """How the arrays in the chunks are convolved: their back end, and the plan that it has for a problem.

    Both are functions of modules, which a pickle names.
    """

    backend_of: Callable[[Any], Backend]
    plan: Callable[[Backend, Problem, str], Plan]


@dataclass(frozen=True)
class Chunk:
    """How a chunk of the result is computed.

    `problem` is that of its window, with the padding that the window leaves to the plan.
    """

    inner: Inner
    problem: Problem
    engine: str
    rows: AxisWindow
    cols: AxisWindow


class Weight:
    """A weight, which is packed once in each process for each plan that needs another form."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._packed: dict[Hashable, PackedWeight] = {}
        self._lock = Lock()

    def packed(self, plan: Plan) -> PackedWeight:
        """The weight as the plan reads it."""
        with self._lock:
            found = self._packed.get(plan.stamp)
            if found is None:
                found = self._packed[plan.stamp] = plan.pack(self.value)
            return found

    def __reduce__(self) -> tuple[type[Weight], tuple[Any]]:
        return Weight, (self.value,)

    def __sizeof__(self) -> int:
        return int(self.value.nbytes)


def convolve(chunk: Chunk, weight: Weight, bias: Any, *blocks: Any) -> Any:
    """A chunk of the result, from the blocks of the image that it reads, row by row."""
    library = chunk.inner.backend_of(weight.value)
    x = _window(chunk, blocks, library)
    problem = replace(chunk.problem, device=library.describe(x).device)
    plan = _planned(chunk.inner.plan, library, problem, chunk.engine)
    with _shared_threads():
        return plan.execute(x, weight.packed(plan), bias)


@lru_cache(maxsize=1024)
def _planned(plan: Callable[[Backend, Problem, str], Plan], library: Backend, problem: Problem, engine: str) -> Plan:
    return plan(library, problem, engine)


def _window(chunk: Chunk, blocks: tuple[Any, ...], library: Backend) -> Any:
    p, (rows, cols) = chunk.problem, (chunk.rows, chunk.cols)
    if not blocks:
        return library.from_numpy(np.zeros(p.x_shape), dtype=p.x_dtype)
    if len(rows.pieces) == len(cols.pieces) == 1:
        (row,), (col,) = rows.pieces, cols.pieces
        x = blocks[0][_index(row.source, col.source, p.layout)]
        if x.shape == p.x_shape:
            return x
    xp = array_api_compat.array_namespace(blocks[0])
    x = xp.empty(p.x_shape, dtype=blocks[0].dtype, device=array_api_compat.device(blocks[0]))
    for row in rows.pieces:
        for col in cols.pieces:
            block = blocks[row.block * len(cols.blocks) + col.block]
            x[_index(row.target, col.target, p.layout)] = block[_index(row.source, col.source, p.layout)]
    return x


def _index(rows: slice, cols: slice, layout: str) -> tuple[slice, ...]:
    return (slice(None), rows, cols) if layout == "NHWC" else (slice(None), slice(None), rows, cols)


_at_work: set[object] = set()  # one for each task that computes in this process


@contextmanager
def _shared_threads() -> Iterator[None]:
    """Within it, this task uses its share of the threads that a single convolution would use.

    Dask's threads run one task each. Where all of them convolve, each has one thread; a task that is alone has all.
    """
    mine = object()
    _at_work.add(mine)
    try:
        with at_most(max(get_num_threads() // len(_at_work), 1)):
            yield
    finally:
        _at_work.discard(mine)
