"""Pooling and interpolation of Dask's arrays: each chunk of the result reads its part of the image.

The result has the chunks of the image, in proportion. What a chunk reads beyond the image's chunk is gathered by Dask.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.array

from ...core.backend import Backend
from ...core.windows import WindowOperation, axes_of
from ...cpu.windows import applied_by
from .tasks import Inner

__all__ = ["windowed"]


def windowed(inner: Inner, x: Any, operation: WindowOperation) -> Any:
    """The result of an operation, which nothing is computed of yet."""
    row_axis, col_axis = axes_of(operation.layout)
    rows = _parts(x.chunks[row_axis], operation.rows.outputs)
    cols = _parts(x.chunks[col_axis], operation.cols.outputs)
    lines = []
    for row in rows:
        line = []
        for col in cols:
            index, part = operation.part(row, col)
            line.append(_block(inner, x[index].rechunk({row_axis: -1, col_axis: -1}), part))
        lines.append(dask.array.concatenate(line, axis=col_axis))
    return dask.array.concatenate(lines, axis=row_axis)


def _parts(chunks: tuple[int, ...], outputs: int) -> list[tuple[int, int]]:
    """The first output of each chunk, and the one after its last."""
    size, end, ends = sum(chunks), 0, [0]
    for chunk in chunks:
        end += chunk
        if (mine := end * outputs // size) > ends[-1]:
            ends.append(mine)
    return list(pairwise(ends))


@dataclass(frozen=True)
class _Applied:
    """What a task does; it is pickled, and finds the library of its chunk where it runs."""

    inner: Inner
    operation: WindowOperation

    def __call__(self, chunk: Any) -> Any:
        library: Backend = self.inner.backend_of(chunk)
        return applied_by(library, chunk, library.describe(chunk), self.operation)


def _block(inner: Inner, x: Any, operation: WindowOperation) -> Any:
    row_axis, col_axis = axes_of(operation.layout)
    sizes = {row_axis: (operation.rows.outputs,), col_axis: (operation.cols.outputs,)}
    chunks = tuple(sizes.get(axis, own) for axis, own in enumerate(x.chunks))
    return dask.array.map_blocks(_Applied(inner, operation), x, chunks=chunks, meta=x._meta)
