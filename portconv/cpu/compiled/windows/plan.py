"""Compiled pooling and interpolation, bound to the shape and the dtype of an image: see `kernels.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ....core.dtypes import compute_dtype
from ....core.layout import sizes
from ....core.windows import Pooling, Samples, Taps, WindowOperation
from ... import threads
from .. import team
from ..base import Array, Ints, memory_of, one_array, read_only, round_up, usual_numbers
from ..epilogue import neutral_records
from . import kernels
from .geometry import MeanGeometry, PoolingGeometry, ResizingGeometry

__all__ = ["CompiledMean", "CompiledWindows"]

DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "uint16", "int16")
ALONE_BYTES = 64 << 10  # of image and result, which one thread is done with before another one has begun
TASKS = 8  # for each thread, at least
MAX_WORKSPACE_BYTES = 56 << 20
MOST_PIXELS = 4096  # of float32 that are averaged by vectors, a quarter of them where channels are in the lanes
TASK_BYTES = 32 << 10  # of the image
SHARED_BYTES = 512 << 10  # of an image that is worth a second thread


@dataclass(frozen=True)
class CompiledWindows:
    """It holds no arrays but tables."""

    kernel: Any
    dtype: np.dtype[Any]  # of the computation
    out_shape: Ints
    layout: str
    parts: int
    part_size: int  # elements of a thread's scratch memory
    tables: tuple[Array, ...]
    geometry: Ints
    usual_x: Ints
    usual_y: Ints
    usual: Array  # the numbers of a call with usual arrays

    @classmethod
    @lru_cache(maxsize=256)
    def make(cls, operation: WindowOperation, shape: Ints, dtype: np.dtype[Any]) -> CompiledWindows | None:
        """The plan, or None for dtypes that have no compiled form, no results, and long rows, for which is no room."""
        out_shape, layout = operation.out_shape(shape), operation.layout
        if dtype.name not in DTYPES or 0 in out_shape:
            return None
        wide = np.dtype(compute_dtype(dtype.name))
        n, c, height, width = sizes(shape, layout)
        planes, cell = (c, 1) if layout == "NCHW" else (1, c)
        parts = threads.usable_cores()
        elements = n * c * (height * width + operation.rows.outputs * operation.cols.outputs)
        if elements * dtype.itemsize < ALONE_BYTES:
            parts = 1
        strips = min(operation.rows.outputs, -(-TASKS * parts // (n * planes)))
        neutral = neutral_records(1, wide)
        neutral[0] = -0.0  # which leaves a zero its sign
        neutral = read_only(neutral)
        kernel: Any
        geometry: PoolingGeometry | ResizingGeometry
        if isinstance(operation, Pooling):
            kernel, tables = kernels.pool, [_counts(operation, wide)]
            geometry = _pooling(operation, n, planes, cell, strips)
        else:
            kernel, tables = kernels.resize, _samples(operation.rows, operation.cols, wide)
            geometry = _resizing(operation.rows, operation.cols, n, planes, cell, strips)
        if parts * geometry.part_size * wide.itemsize > MAX_WORKSPACE_BYTES:
            return None
        usual_x, usual_y = usual_numbers(shape, layout, wide), usual_numbers(out_shape, layout, wide)
        usual = read_only(np.array((*usual_x, *usual_y, *geometry), np.int64))
        return cls(
            kernel, wide, out_shape, layout, parts, geometry.part_size, (*tables, neutral), geometry, usual_x, usual_y,
            usual,
        )  # fmt: skip

    def compute(self, x: Array) -> Array:
        """The result, of the dtype of the image in the machine's byte order."""
        if self.layout == "NHWC" and x.strides[2] != x.shape[3] * x.strides[3]:
            x = np.ascontiguousarray(x)  # rows are read as one run
        y = np.empty(self.out_shape, x.dtype if x.dtype.isnative else x.dtype.newbyteorder("="))
        memory, numbers = memory_of(x, self.layout, self.dtype, self.usual_x)
        y_memory, y_numbers = memory_of(y, self.layout, self.dtype, self.usual_y)
        given = self.usual
        if numbers is not self.usual_x or y_numbers is not self.usual_y:
            given = read_only(np.array((*numbers, *y_numbers, *self.geometry), np.int64))
        scratch = threads.scratch(self.parts * self.part_size, self.dtype)
        team.launch(self.kernel, self.parts, read_only(memory), y_memory, *self.tables, given, scratch)
        return y


@dataclass(frozen=True)
class CompiledMean:
    """Averages of whole images that lie in memory in the order of their layout."""

    out_shape: Ints
    parts: int
    divisor: Array
    numbers: Array

    @classmethod
    @lru_cache(maxsize=256)
    def make(cls, operation: Pooling, shape: Ints, dtype: np.dtype[Any]) -> CompiledMean | None:
        """The plan, or None for large images and other dtypes: sums of many numbers are made in pairs elsewhere."""
        n, c, height, width = sizes(shape, operation.layout)
        pixels, size = height * width, dtype.itemsize
        most = MOST_PIXELS if operation.layout == "NCHW" else MOST_PIXELS // 4
        if dtype.char not in "fd" or not dtype.isnative or not 0 < pixels * size <= most * 4 or not n * c:
            return None
        planes, blocks, images = n * c, 0, 1
        some = max(1, TASK_BYTES // (pixels * size))
        if operation.layout == "NHWC":
            planes, images = c, n
            some = round_up(some, 64)
            blocks = -(-c // some)
        tasks = images * -(-planes // some)
        parts = min(threads.usable_cores(), tasks) if n * c * pixels * size >= SHARED_BYTES else 1
        numbers = read_only(np.array(MeanGeometry(tasks, blocks, planes, some, pixels), np.int64))
        return cls(operation.out_shape(shape), parts, read_only(np.array([pixels], dtype)), numbers)

    def compute(self, x: Array) -> Array:
        """The result, of an image in C order."""
        y = np.empty(self.out_shape, x.dtype)
        team.launch(kernels.mean, self.parts, read_only(x.ravel()), y.ravel(), self.divisor, self.numbers)
        return y


def _pooling(p: Pooling, batch: int, planes: int, cell: int, strips: int) -> PoolingGeometry:
    rows, cols = p.rows, p.cols
    # columns whose windows lie in the image
    first = min(-(-cols.before // cols.stride), cols.outputs)
    wholes = max(min((cols.size + cols.before - _reach(cols)) // cols.stride + 1, cols.outputs) - first, 0)
    # loads of a vector: of each window, or of a line and of windows of the line
    rows_first = cell == 1 or rows.kernel * cols.kernel > cols.stride * (rows.kernel + 1) + cols.kernel + 1
    row_size = cols.size * cell
    line = row_size
    if cell == 1:
        line = max(cols.before + cols.size, (cols.outputs - 1) * cols.stride + _reach(cols))
    line, out = round_up(line, 16), round_up(cols.outputs * cell, 16) + 16  # `put` may read a vector more
    part = 2 * line + out
    return PoolingGeometry(
        batch, planes, cell, strips, rows.size, cols.size, rows.outputs, cols.outputs, rows.kernel, cols.kernel,
        rows.stride, cols.stride, rows.dilation, cols.dilation, rows.before, cols.before,
        kernels.LARGEST if p.kind == "max" else kernels.SUM, int(rows_first), first, wholes, part, line,
        row_size,
    )  # fmt: skip


def _reach(taps: Taps) -> int:
    return (taps.kernel - 1) * taps.dilation + 1


def _counts(p: Pooling, dtype: np.dtype[Any]) -> Array:
    """How many numbers are in the sums of each row, and of each column."""
    return read_only(np.array(p.rows.counts(p.count_padding) + p.cols.counts(p.count_padding), dtype))


def _resizing(rows: Samples, cols: Samples, batch: int, planes: int, cell: int, strips: int) -> ResizingGeometry:
    line, row_size = cols.outputs * cell, cols.size * cell
    part = round_up(3 * line + row_size, 16) + 16
    row_kind, col_kind = (kernels.LINEAR if samples.share else kernels.NEAREST for samples in (rows, cols))
    return ResizingGeometry(
        batch, planes, cell, strips, cols.size, rows.outputs, cols.outputs, row_kind, col_kind, part, line, row_size
    )


def _samples(rows: Samples, cols: Samples, dtype: np.dtype[Any]) -> list[Array]:
    """The elements that outputs lie between, of rows and of columns, and their shares."""
    ends = (np.array(axis, np.int64) for samples in (rows, cols) for axis in (samples.low, samples.high))
    shares = np.concatenate([np.array(s.share or np.zeros(s.outputs), dtype) for s in (rows, cols)])
    rests = 1 - shares[rows.outputs :]
    return [one_array(*ends, np.arange(2)), read_only(np.concatenate([shares, rests]))]
