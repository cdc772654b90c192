"""The steps of `portconv/steps.py` for NumPy: windows filled in place, results written where they belong, threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import local
from typing import Any, TypeVar

import numpy as np

from ..layout import FROM_CBHW, reorder
from ..shapes import AxisSource
from ..spec import Problem
from ..steps import Block, Steps, accumulate
from . import separable, threads

__all__ = ["NumpySteps"]

T = TypeVar("T")
Array = np.ndarray[Any, Any]


class NumpySteps(Steps):
    """Steps for NumPy arrays, read-only ones included."""

    pack_dtype = "float64"

    def __init__(self) -> None:
        super().__init__(np, writable=True, workspace_bytes=24 << 20, block_bytes=8 << 20)
        self._kept = local()

    def _pad(self, x: Array, block: Block, rows: AxisSource, cols: AxisSource, mode: str, dtype: str) -> Array:
        x = x[block.channels, block.batch]
        above, below, before, after = len(rows.lead), len(rows.trail), len(cols.lead), len(cols.trail)
        if not (above or below or before or after):
            return self.cast(x[:, :, rows.inner, cols.inner], dtype)
        if mode != "zeros":
            whole = Block(slice(None), slice(None), block.rows, block.cols)
            padded: Array = super()._pad(x, whole, rows, cols, mode, dtype)
            return padded
        height, width = block.rows.stop - block.rows.start, block.cols.stop - block.cols.start
        out = np.empty((*x.shape[:2], height, width), dtype)
        # only the border is cleared: clearing all of it first would write most elements twice
        out[:, :, :above] = 0
        out[:, :, height - below :] = 0
        middle = out[:, :, above : height - below]
        middle[..., :before] = 0
        middle[..., width - after :] = 0
        middle[..., before : width - after] = x[:, :, rows.inner, cols.inner]
        return out

    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(np.dtype(dtype), copy=False)

    def quiet(self) -> AbstractContextManager[object]:
        return np.errstate(all="ignore")

    def keep(self, x: Array) -> Array:
        # a weight that can change is packed for one call alone, and a view of it does; read-only ones are kept
        return np.ascontiguousarray(x) if x.flags.writeable else np.array(x, order="C")

    def factors(self, weight: Array) -> tuple[Array, Array] | None:
        return separable.factors(weight, weight.dtype.name)

    def stack(self, views: list[Array]) -> Array:
        first = views[0]
        shape = (first.shape[0], len(views), *first.shape[1:])
        return np.stack(views, axis=1, out=self._buffer("stack", shape, first.dtype))

    def product(self, role: str, a: Array, b: Array) -> Array:
        out = self._buffer(role, _product_shape(a, b, "matmul"), b.dtype)
        return np.matmul(a, b, out=out)

    def sum_of_products(self, pairs: Iterable[tuple[Array, Array]], product: str, role: str = "sum") -> Array:
        """As in `Steps`; the sum is good until the next call in this thread."""
        multiply: Any = getattr(np, product)
        roles = iter((role,))  # partial sums beyond the first few terms are new arrays

        def add(total: Array | None, pair: tuple[Array, Array]) -> Array:
            if total is None:
                name = next(roles, None)
                out = None if name is None else self._buffer(name, _product_shape(*pair, product), pair[0].dtype)
                return np.asarray(multiply(*pair, out=out))
            total += multiply(*pair, out=self._buffer("product", total.shape, total.dtype))
            return total

        return np.asarray(accumulate(pairs, add))

    def _buffer(self, role: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Scratch memory of this thread, the same in every call.

        New arrays of some megabytes are new pages to the operating system, and touching those takes longer than
        filling them: a 7x7 stem took 6.5 ms with new stacks for every call.
        """
        kept = self._kept.__dict__
        count = math.prod(shape)
        if role not in kept or kept[role].nbytes < count * dtype.itemsize:
            kept[role] = np.empty(count * dtype.itemsize, np.uint8)
        buffer: Array = kept[role][: count * dtype.itemsize].view(dtype).reshape(shape)
        return buffer

    def contiguous(self, x: Array) -> Array:
        return np.ascontiguousarray(x)

    def assemble(
        self,
        problem: Problem,
        bias: Any,
        tasks: Sequence[T],
        compute: Callable[[T], Iterable[tuple[Block, Any]]],
        *,
        parallel: bool,
    ) -> Array:
        order = FROM_CBHW[problem.layout]
        bias = self.bias(bias, problem.compute_dtype)
        y = np.empty(problem.out_shape, np.dtype(problem.dtype))

        def task_into_y(task: T) -> None:
            with self.quiet():  # in here, since the setting is the thread's own
                for block, value in compute(task):
                    target = y[reorder(block, order)]
                    value = value.transpose(order)
                    if bias is None:
                        np.copyto(target, value, casting="unsafe")
                    else:
                        np.add(value, bias[block.channels].transpose(order), out=target, casting="unsafe")

        threads.run(task_into_y, list(tasks), threads.get_num_threads() if parallel else 1)
        return y


def _product_shape(a: Array, b: Array, product: str) -> tuple[int, ...]:
    if product == "multiply":
        return np.broadcast_shapes(a.shape, b.shape)
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
