"""The plan for Dask's arrays: a graph with one task for each chunk of the result."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from dask._task_spec import Task, TaskRef  # as its documentation has them; it exports them nowhere else yet
from dask.array import Array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ...core.backend import Backend, PackedWeight, Plan
from ...core.explain import table
from ...core.layout import shape_of, sizes
from ...core.problem import Problem
from ...core.shapes import dilated
from .tasks import Chunk, Inner, Weight, convolve
from .windows import Axis, AxisWindow, output_chunks, whole, windows

__all__ = ["DaskPlan", "typical"]

CHUNK_BYTES = 128 << 20  # of a chunk, where Dask chooses its size itself


@dataclass(frozen=True, kw_only=True)
class DaskPlan(Plan):
    """An engine for every chunk; where the user named none, each chunk's is chosen where it is computed."""

    inner: Inner
    library: Backend  # of the chunks

    @property
    def stamp(self) -> Hashable:
        return ("dask", self.problem.weight_shape)

    @property
    def chunk_engine(self) -> str:
        """What is asked of the plan of a chunk."""
        # else the user has named it, or the clock
        return "auto" if self.chosen_by.startswith("heuristic") else self.engine

    def pack(self, weight: Any, /) -> PackedWeight:
        # Nothing is computed yet. A new object, so that what is kept for a weight does not keep the weight alive.
        one = weight.rechunk(-1)
        return PackedWeight(self.stamp, Array(one.dask, one.name, one.chunks, meta=one._meta), weight.nbytes)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, engine = self.problem, self.chunk_engine
        x = x.rechunk({p.layout.index("C"): -1})
        arrays = [x, weight.data, *([] if bias is None else [bias.rechunk(-1)])]
        token = tokenize([a.name for a in arrays], repr(p), engine)
        weight_key, *bias_key = [(a.name, *[0] * a.ndim) for a in arrays[1:]]
        packed = Task(f"conv2d-weight-{token}", Weight, TaskRef(weight_key))
        shift = TaskRef(bias_key[0]) if bias_key else None
        layer = {packed.key: packed}
        name = f"conv2d-{token}"
        batches, _channels, *image = sizes(x.chunks, p.layout)
        rows, cols, padding_mode = self._windows(image[0], image[1])
        problems: dict[Problem, Problem] = {}
        for (n, batch), (i, row), (j, col) in product(enumerate(batches), enumerate(rows), enumerate(cols)):
            part = replace(
                p, batch=batch, height=row.size, width=col.size, padding_mode=padding_mode,
                padding=(row.before, row.after, col.before, col.after), device=_device(self.library),
            )  # fmt: skip
            if part not in problems and engine != "auto":
                self.inner.plan(self.library, part, engine)  # what it cannot run is refused now
            part = problems.setdefault(part, part)  # chunks of the same sizes share one, which is pickled once
            blocks = [TaskRef((x.name, *shape_of(n, 0, r, c, p.layout))) for r in row.blocks for c in col.blocks]
            key = (name, *shape_of(n, 0, i, j, p.layout))
            layer[key] = Task(key, convolve, Chunk(self.inner, part, engine, row, col), packed.ref(), shift, *blocks)
        return Array(
            HighLevelGraph.from_collections(name, layer, dependencies=arrays),
            name,
            shape_of(batches, (p.out_channels,), _outputs(p, 0, rows), _outputs(p, 1, cols), p.layout),
            meta=self.library.from_numpy(np.zeros((0,) * 4), dtype=p.result_dtype),
        )

    def _windows(self, rows: tuple[int, ...], cols: tuple[int, ...]) -> tuple[list[AxisWindow], list[AxisWindow], str]:
        """What the result's chunks read along both axes, and the mode of the padding that is left to their plans."""
        p = self.problem
        sides = (p.padding[:2], p.padding[2:])
        axes = [
            Axis(chunks, p.out_size[a], dilated(p.kernel[a], p.dilation[a]), p.stride[a], *sides[a], p.padding_mode)
            for a, chunks in enumerate((rows, cols))
        ]
        if len(rows) == len(cols) == 1:
            return whole(axes[0]), whole(axes[1]), p.padding_mode
        found = [windows(axis, output_chunks(axis)) for axis in axes]
        return found[0], found[1], "zeros"

    def explain(self) -> str:
        plan = self.inner.plan(self.library, typical(self.problem, self.library), self.chunk_engine)
        where = "a plan of its own" if self.chunk_engine == "auto" else self.engine
        intro = f"  each chunk is computed by {self.library.name}, by {where}; one of {plan.problem.x_shape}:"
        more = plan.explain().removeprefix(table(plan))  # what plans say beyond their candidates, which are as above
        return f"{super().explain()}\n{intro}\n  {plan!r}{more}"


def _outputs(p: Problem, axis: int, found: list[AxisWindow]) -> tuple[int, ...]:
    """How many outputs the windows of an axis have."""
    extent = dilated(p.kernel[axis], p.dilation[axis])
    return tuple((w.size + w.before + w.after - extent) // p.stride[axis] + 1 for w in found)


@lru_cache(maxsize=16)
def _device(library: Backend) -> str:
    """Where the library puts arrays by default, in its own words."""
    return library.describe(library.from_numpy(np.ones(1, np.float32))).device


def typical(p: Problem, library: Backend) -> Problem:
    """The problem of a chunk as Dask makes them itself, of the whole image where that is no larger."""
    part = replace(p, batch=min(p.batch, 1), device=_device(library))
    pixel_bytes = p.in_channels * np.dtype(p.x_dtype).itemsize
    # the kernel fits a part that is larger, and so does any padding
    least = [max(dilated(p.kernel[a], p.dilation[a]), *p.padding[2 * a : 2 * a + 2]) for a in range(2)]
    while part.height * part.width * pixel_bytes > CHUNK_BYTES:
        height, width = -(-part.height // 2), -(-part.width // 2)
        if height > least[0] and (part.height >= part.width or width <= least[1]):
            part = replace(part, height=height)
        elif width > least[1]:
            part = replace(part, width=width)
        else:
            break
    return part
