"""The steps of `engines/steps.py` for NumPy: windows filled in place, results written where they belong, threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import local
from typing import Any, TypeVar

import numpy as np

from ..core.dtypes import INTEGERS
from ..core.epilogue import Activation
from ..core.layout import TO_CBHW
from ..core.problem import Problem
from ..engines.accuracy import RUN_TERMS, accumulate
from ..engines.steps import Block, Steps, Window
from . import activations, blas, separable, threads
from .views import bfloat16, strided

__all__ = ["NumpySteps"]

T = TypeVar("T")
Array = np.ndarray[Any, Any]


class NumpySteps(Steps):
    """Steps for NumPy arrays, read-only ones included."""

    tier = "plain"
    pack_dtype = "float64"
    banded = True
    writes = True

    def __init__(self) -> None:
        super().__init__(np, writable=True, workspace_bytes=24 << 20, block_bytes=8 << 20)
        self._kept = local()

    def dtype(self, name: str) -> Any:
        return bfloat16() if name == "bfloat16" else super().dtype(name)

    def cut(self, x: Array, window: Window, mode: str, dtype: str) -> Array:
        rows, cols = window.rows, window.cols
        above, below, before, after = len(rows.lead), len(rows.trail), len(cols.lead), len(cols.trail)
        padding = above or below or before or after
        if padding and mode != "zeros":
            padded: Array = super().cut(x, window, mode, dtype)
            return padded
        x = x[window.channels, window.batch]
        if not padding:
            return self.cast(x[:, :, rows.inner, cols.inner], dtype)
        inside = x[:, :, rows.inner, cols.inner]
        height, width = above + inside.shape[2] + below, before + inside.shape[3] + after
        out = np.empty((*x.shape[:2], height, width), dtype)
        # only the border is cleared: clearing all of it first would write most elements twice
        out[:, :, :above] = 0
        out[:, :, height - below :] = 0
        middle = out[:, :, above : height - below]
        middle[..., :before] = 0
        middle[..., width - after :] = 0
        middle[..., before : width - after] = inside
        return out

    def cbhw(self, x: Array, layout: str) -> Array:
        return x.transpose(TO_CBHW[layout])

    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(np.dtype(dtype), copy=False)

    def all_finite(self, x: Array) -> bool:
        if x.size == 0 or x.dtype.kind == "c":
            return super().all_finite(x)
        with self.quiet():  # two passes, each several times as fast as a sum
            return bool(np.isfinite(x.max()) and np.isfinite(x.min()))

    def quiet(self) -> AbstractContextManager[object]:
        return np.errstate(all="ignore")

    def keep(self, x: Array) -> Array:
        # a weight that can change is packed for one call alone, and a view of it does; read-only ones are kept
        return np.ascontiguousarray(x) if x.flags.writeable else np.array(x, order="C")

    def factors(self, weight: Array) -> tuple[Array, Array] | None:
        return separable.factors(weight, weight.dtype.name)

    def stack(self, views: list[Array], axis: int = 1) -> Array:
        first = views[0]
        shape = (*first.shape[:axis], len(views), *first.shape[axis:])
        return np.stack(views, axis=axis, out=self._scratch("stack", shape, first.dtype))

    def product(self, buffer: str, a: Array, b: Array) -> Array:
        out = self._scratch(buffer, _product_shape(a, b, "matmul"), b.dtype)
        return np.matmul(a, b, out=out)

    def correlation(
        self, flat: Array, weight: Array, dilation: tuple[int, int], line: int, length: int, buffer: str = "sum"
    ) -> Array:
        """As in `Steps`. By `einsum`, which multiplies and adds in one pass: a column of the kernel at a time."""
        g, inputs, images, _ = flat.shape
        kh, kw = weight.shape[3:]
        some = min(inputs, RUN_TERMS)
        count = max(1, RUN_TERMS // some)
        # `flat` may be a view of the user's own array, whose last axis need not be a run in memory: in a photograph's
        # HWC order it is not. `einsum` reads runs many times faster, and reads each element once for every tap.
        if flat.strides[-1] != flat.itemsize:
            flat = np.ascontiguousarray(flat)
        strides = (*flat.strides[:3], dilation[0] * line * flat.itemsize, flat.itemsize)

        def columns() -> Iterable[tuple[Array, Array]]:
            for i in range(0, inputs, some):
                for r in range(0, kh, count):
                    factors = weight[:, :, i : i + some, r : r + count]
                    for c in range(kw):
                        start = flat[:, i : i + some, :, r * dilation[0] * line + c * dilation[1] :]
                        view = strided(start, (g, *factors.shape[2:3], images, *factors.shape[3:4], length), strides)
                        yield view, factors[..., c]

        return self.sum_of_products(columns(), "columns", buffer)

    def shifted(self, x: Array, block: Block, problem: Problem, row: int, count: int, apart: int, lines: int) -> Array:
        p, cols = problem, block.cols.stop - block.cols.start
        (stride, dilation), (left, right), kw = (p.stride[1], p.dilation[1]), p.padding[2:], p.kernel[1]
        total, first = (lines - 1) * apart + count, block.cols.start * stride - left
        channels, images = (part.stop - part.start for part in block[:2])
        out = self._scratch("stack", (channels, images, lines, kw, count, cols), np.dtype(p.compute_dtype))
        if stride > 1 or p.padding_mode != "zeros" or not cols == p.out_size[1] == p.width:
            reach = slice(first, first + (cols - 1) * stride + dilation * (kw - 1) + 1)
            window = self.window(x, block._replace(rows=slice(row, row + total), cols=reach), p)
            c, b, h, w = window.strides
            np.copyto(out, strided(window, out.shape, (c, b, h * apart, w * dilation, h, w * stride)))
            return out
        # As wide as the image: rows follow each other in memory without padding, so that copies are runs of many rows.
        # What comes from the next row is cleared.
        flat = self._rows(x, block, p, row, total, left, right)
        runs, one = out.reshape(*out.shape[:4], count * cols), flat.itemsize
        np.copyto(runs, strided(flat, runs.shape, (*flat.strides[:2], apart * cols * one, dilation * one, one)))
        for k in range(kw):
            if (shift := k * dilation - left) < 0:
                out[..., k, :, :-shift] = 0
            elif shift > 0:
                out[..., k, :, max(cols - shift, 0) :] = 0
        return out

    def lines(self, x: Array, block: Block, problem: Problem) -> Array:
        p, height = problem, block.rows.stop - block.rows.start
        (stride, dilation), kh = (p.stride[0], p.dilation[0]), p.kernel[0]
        channels, images = (part.stop - part.start for part in block[:2])
        out = self._scratch("stack", (channels, images, height, kh, p.width), np.dtype(p.compute_dtype))
        total = (height - 1) * stride + (kh - 1) * dilation + 1
        flat = self._rows(x, block, p, block.rows.start * stride - p.padding[0], total)
        line, one = p.width * flat.itemsize, flat.itemsize
        np.copyto(out, strided(flat, out.shape, (*flat.strides[:2], stride * line, dilation * line, one)))
        return out

    def _rows(
        self, x: Array, block: Block, problem: Problem, row: int, total: int, before: int = 0, after: int = 0
    ) -> Array:
        """Whole rows of the image, (C, B, elements), zeros above and below it; any values `before` and `after` them."""
        p, (channels, images) = problem, (part.stop - part.start for part in block[:2])
        shape = (channels, images, before + total * p.width + after)
        flat = self._scratch("image", shape, np.dtype(p.compute_dtype))
        rows = flat[..., before : before + total * p.width].reshape(channels, images, total, p.width)
        start = min(max(-row, 0), total)
        stop = max(min(p.height - row, total), start)
        rows[:, :, :start] = 0
        rows[:, :, stop:] = 0
        rows[:, :, start:stop] = x[block.channels, block.batch, row + start : row + stop]
        return flat

    def sum_of_products(self, pairs: Iterable[tuple[Array, Array]], product: str, buffer: str = "sum") -> Array:
        """As in `Steps`. Each thread has scratch memory of its own."""
        multiply: Any = _columns if product == "columns" else getattr(np, product)
        names = iter((buffer,))  # partial sums beyond the first few terms are new arrays

        def add(total: Array | None, pair: tuple[Array, Array]) -> Array:
            if total is None:
                name = next(names, None)
                out = None if name is None else self._scratch(name, _product_shape(*pair, product), pair[0].dtype)
                return np.asarray(multiply(*pair, out=out))
            total += multiply(*pair, out=self._scratch("product", total.shape, total.dtype))
            return total

        return np.asarray(accumulate(pairs, add))

    def _scratch(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Scratch memory of this thread, the same in every call.

        New arrays of some megabytes are new pages to the operating system, and touching those takes longer than
        filling them: a 7x7 stem took 6.5 ms with new stacks for every call.
        """
        kept = self._kept.__dict__
        count = math.prod(shape)
        if name not in kept or kept[name].nbytes < count * dtype.itemsize:
            kept[name] = np.empty(count * dtype.itemsize, np.uint8)
        buffer: Array = kept[name][: count * dtype.itemsize].view(dtype).reshape(shape)
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
        residual: Any = None,
        out: Any = None,
        parallel: bool,
        products: bool = False,
    ) -> Array:
        y: Array = np.empty(problem.out_shape, np.dtype(problem.result_dtype)) if out is None else out
        blocks = y.transpose(TO_CBHW[problem.layout])
        if bias is not None:
            bias = self.bias(bias, problem.compute_dtype)
        if residual is not None:
            residual = self.cbhw(residual, problem.layout)

        def task_into_y(task: T) -> None:
            with self.quiet():  # in here, since the setting is the thread's own
                for block, value in compute(task):
                    self.finish(value, block, problem, bias, residual, out=blocks[block])

        allowed = threads.allowed_threads()
        count = min(allowed, len(tasks)) if parallel else 1
        if products and not blas.can_limit():  # its own threads are all that there is to gain
            count = 1
        with blas.limited(1 if products and count > 1 else allowed):
            if count > 1:
                threads.run(task_into_y, list(tasks), count)
            else:
                for task in tasks:
                    task_into_y(task)
        return y

    def finish(
        self, value: Array, block: Block, problem: Problem, bias: Any, residual: Any = None, *, out: Array | None = None
    ) -> Array:
        """As in `Steps`; stored into `out` on the way, if there is one."""
        if out is None:
            out = np.empty(value.shape, problem.result_dtype)
        if problem.result_dtype in INTEGERS or problem.epilogue.activation is not None or residual is not None:
            out[...] = super().finish(value, block, problem, bias, residual)
        elif bias is None:
            np.copyto(out, value, casting="unsafe")
        else:
            np.add(value, bias[block.channels], out=out, casting="unsafe")
        return out

    def activated(self, x: Array, activation: Activation) -> Array:
        """As in `Steps`, by few operations where NumPy has them."""
        found = activations.activated(x, activation)
        return np.asarray(super().activated(x, activation)) if found is None else found


def _columns(view: Array, weight: Array, out: Array | None) -> Array:
    result: Array = np.einsum("gibrt,goir->gobt", view, weight, out=out)
    return result


def _product_shape(a: Array, b: Array, product: str) -> tuple[int, ...]:
    if product == "columns":
        return (*b.shape[:2], a.shape[2], a.shape[4])
    if product == "multiply":
        return np.broadcast_shapes(a.shape, b.shape)
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
