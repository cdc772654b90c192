"""The steps of `portconv/steps.py` for NumPy: windows filled in place, results written where they belong, threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import local
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..layout import FROM_CBHW, reorder
from ..shapes import AxisSource
from ..spec import Problem
from ..steps import Block, Steps, accumulate
from . import blas, separable, threads

__all__ = ["NumpySteps"]

# Terms that `einsum` adds one after the other, before the sums are added in pairs.
MAX_TERMS = 32
RUN = 150  # elements that a run of its innermost loop costs beyond its length

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

    def stack(self, views: list[Array], axis: int = 1) -> Array:
        first = views[0]
        shape = (*first.shape[:axis], len(views), *first.shape[axis:])
        return np.stack(views, axis=axis, out=self._buffer("stack", shape, first.dtype))

    def product(self, role: str, a: Array, b: Array) -> Array:
        out = self._buffer(role, _product_shape(a, b, "matmul"), b.dtype)
        return np.matmul(a, b, out=out)

    def correlation(
        self, flat: Array, weight: Array, dilation: tuple[int, int], line: int, length: int, role: str = "sum"
    ) -> Array:
        """As in `Steps`. By `einsum`, which multiplies and adds in one pass: a column of the kernel at a time."""
        g, inputs, images, _ = flat.shape
        outputs, _, kh, kw = weight.shape[1:]
        rows, cols = length // line, line - (kw - 1) * dilation[1]
        # the runs of its innermost loop: along the image, or along the channels, if those are many and rows few
        if inputs == outputs == images == 1 and rows * line == length:
            along_image, along_channels = g * (RUN + length), rows * cols * (RUN + g) + 8 * flat.size // (kh * kw)
            if along_channels < along_image:
                return self._channels_last(flat, weight, dilation, line, rows, cols, role)
        count = max(1, MAX_TERMS // inputs)
        size = flat.itemsize
        steps = (*flat.strides[:3], dilation[0] * line * size, size)

        def columns() -> Iterable[tuple[Array, Array]]:
            for r in range(0, kh, count):
                n = min(count, kh - r)
                for c in range(kw):
                    start = flat[..., r * dilation[0] * line + c * dilation[1] :]
                    view = as_strided(start, (g, inputs, images, n, length), steps)
                    yield view, weight[:, :, :, r : r + n, c]

        return self.sum_of_products(columns(), "columns", role)

    def _channels_last(
        self, flat: Array, weight: Array, dilation: tuple[int, int], line: int, rows: int, cols: int, role: str
    ) -> Array:
        """One input and output per group, of one image, with the groups along the innermost axis."""
        g, (kh, kw), size = flat.shape[0], weight.shape[3:], flat.itemsize
        used = (rows + (kh - 1) * dilation[0]) * line
        image = self._buffer("image", (used, g), flat.dtype)
        image[:] = flat.reshape(g, -1)[:, :used].T
        taps = np.ascontiguousarray(weight.reshape(g, kh, kw).transpose(1, 2, 0))
        steps = (dilation[0] * line * g * size, dilation[1] * g * size, line * g * size, g * size, size)
        count = max(1, MAX_TERMS // kw)

        def parts() -> Iterable[tuple[Array, Array]]:
            for r in range(0, kh, count):
                n = min(count, kh - r)
                yield as_strided(image[r * dilation[0] * line :], (n, kw, rows, cols, g), steps), taps[r : r + n]

        value = self.sum_of_products(parts(), "taps", "last")
        result = self._buffer(role, (g, 1, 1, rows * line), flat.dtype)
        result.reshape(g, rows, line)[:, :, :cols] = value.transpose(2, 0, 1)
        return result

    def sum_of_products(self, pairs: Iterable[tuple[Array, Array]], product: str, role: str = "sum") -> Array:
        """As in `Steps`; the sum is good until the next call in this thread."""
        multiply: Any = {"columns": _columns, "taps": _taps}.get(product) or getattr(np, product)
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
        products: bool = False,
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

        count = min(threads.get_num_threads(), len(tasks)) if parallel else 1
        if products and count > 1:
            if not blas.can_limit():  # its own threads are all that there is to gain
                count = 1
            else:
                with blas.single_threaded():
                    threads.run(task_into_y, list(tasks), count)
                return y
        threads.run(task_into_y, list(tasks), count)
        return y


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
