"""The steps of `engines/steps.py` for NumPy: windows filled in place, results written where they belong, threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import local
from typing import Any, TypeVar

import numpy as np

from ..core.dtypes import INTEGERS
from ..core.layout import TO_CBHW
from ..core.problem import Problem
from ..engines.accuracy import RUN_TERMS
from ..engines.steps import Block, Steps, Window, accumulate
from . import blas, separable, threads
from .views import strided

__all__ = ["NumpySteps"]

RUN = 150  # elements that a run of its innermost loop costs beyond its length

T = TypeVar("T")
Array = np.ndarray[Any, Any]


class NumpySteps(Steps):
    """Steps for NumPy arrays, read-only ones included."""

    pack_dtype = "float64"

    def __init__(self) -> None:
        super().__init__(np, writable=True, workspace_bytes=24 << 20, block_bytes=8 << 20)
        self._kept = local()

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

    def small_images(self, x: Array, weight: Array, block: Block, problem: Problem) -> Array | None:
        """As in `Steps`: the channels become the innermost axis, along which `einsum` has the longer runs."""
        p, (kh, kw), (rows, cols) = problem, problem.kernel, problem.out_size
        (top, bottom, left, right), (dh, dw) = p.padding, p.dilation
        channels = block.channels.stop - block.channels.start
        padded = (p.height + top + bottom, p.width + left + right)
        images = block.batch.stop - block.batch.start
        # the runs of its innermost loop: along the image, or along the channels with two transpositions besides
        along_image = channels * (RUN + rows * padded[1])
        along_channels = rows * cols * (RUN + channels) + 6 * padded[0] * padded[1] * channels // (kh * kw)
        if p.padding_mode != "zeros" or images != 1 or along_image < along_channels:
            return None
        image = self._scratch("image", (*padded, channels), np.dtype(p.compute_dtype))
        image[:] = 0
        image[top : top + p.height, left : left + p.width] = x[block.channels, block.batch.start].transpose(1, 2, 0)
        taps = np.ascontiguousarray(weight.reshape(channels, kh, kw).transpose(1, 2, 0))
        row, col, one = image.strides
        count = max(1, RUN_TERMS // kw)

        def parts() -> Iterable[tuple[Array, Array]]:
            for r in range(0, kh, count):
                some = taps[r : r + count]
                shape, strides = (len(some), kw, rows, cols, channels), (dh * row, dw * col, row, col, one)
                yield strided(image[r * dh :], shape, strides), some

        value = self.sum_of_products(parts(), "taps")
        return value.transpose(2, 0, 1)[:, None]

    def sum_of_products(self, pairs: Iterable[tuple[Array, Array]], product: str, buffer: str = "sum") -> Array:
        """As in `Steps`. Each thread has scratch memory of its own."""
        multiply: Any = {"columns": _columns, "taps": _taps}.get(product) or getattr(np, product)
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
        out: Any = None,
        parallel: bool,
        products: bool = False,
    ) -> Array:
        y: Array = np.empty(problem.out_shape, np.dtype(problem.result_dtype)) if out is None else out
        blocks = y.transpose(TO_CBHW[problem.layout])
        if bias is not None:
            bias = self.bias(bias, problem.compute_dtype)

        def task_into_y(task: T) -> None:
            with self.quiet():  # in here, since the setting is the thread's own
                for block, value in compute(task):
                    self.finish(value, block.channels, problem, bias, out=blocks[block])

        allowed = threads.get_num_threads()
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

    def finish(self, value: Array, channels: slice, problem: Problem, bias: Any, *, out: Array | None = None) -> Array:
        """As in `Steps`; stored into `out` on the way, if there is one."""
        if out is None:
            out = np.empty(value.shape, problem.result_dtype)
        if problem.result_dtype in INTEGERS:
            out[...] = self.rounded(value if bias is None else value + bias[channels], problem.result_dtype)
        elif bias is None:
            np.copyto(out, value, casting="unsafe")
        else:
            np.add(value, bias[channels], out=out, casting="unsafe")
        return out


def _columns(view: Array, weight: Array, out: Array | None) -> Array:
    result: Array = np.einsum("gibrt,goir->gobt", view, weight, out=out)
    return result


def _taps(view: Array, weight: Array, out: Array | None) -> Array:
    result: Array = np.einsum("ijhwg,ijg->hwg", view, weight, out=out)
    return result


def _product_shape(a: Array, b: Array, product: str) -> tuple[int, ...]:
    if product == "taps":
        return (a.shape[2], a.shape[3], a.shape[4])
    if product == "columns":
        return (*b.shape[:2], a.shape[2], a.shape[4])
    if product == "multiply":
        return np.broadcast_shapes(a.shape, b.shape)
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
