"""The memory-bound steps of the engines, written against the array API standard.

An engine is an algorithm: it decides what to multiply with what, block by block. How a window is cut out and padded,
and how the blocks become one result, is a step. This file's steps serve every conforming library; `cpu/steps.py`
replaces those that NumPy can do without a copy, or on several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from ..core.dtypes import integer_range
from ..core.epilogue import Activation
from ..core.layout import FROM_CBHW, TO_CBHW, reorder
from ..core.problem import Problem
from ..core.shapes import AxisSource, axis_source
from . import activations
from .accuracy import accumulate

__all__ = ["Block", "Steps", "Window", "window_of"]

T = TypeVar("T")

# Kernels whose largest weight is below or above are multiplied as they are. Between the smallest normal number and
# this are as many bits as a weight has, and some for the sums of a transform.
SMALLEST_TRANSFORMED = {"float32": 2.0**-96, "float64": 2.0**-960}
LARGEST_TRANSFORMED = 2.0**20
SMALL = dict.fromkeys(("int8", "uint8", "int16", "uint16"), "int32")  # what results of small integers are first


class Block(NamedTuple):
    """A part of the result, in the engines' order of axes (O, B, H, W)."""

    channels: slice
    batch: slice
    rows: slice
    cols: slice


class Window(NamedTuple):
    """A part of the padded image, (C, B, H, W), and where its elements come from. Plans hold them: they are sizes."""

    channels: slice
    batch: slice
    rows: AxisSource
    cols: AxisSource


def window_of(problem: Problem, block: Block) -> Window:
    """The part `block` of the padded image.

    Rows and columns count from the first pixel: padding has negative ones. Those of the block may have a step.
    """
    (top, bottom, left, right), mode = problem.padding, problem.padding_mode
    rows = axis_source(block.rows, problem.height, top, bottom, mode)
    return Window(block.channels, block.batch, rows, axis_source(block.cols, problem.width, left, right, mode))


class Steps:
    """Steps for the namespace `xp` of an array API library, on one device.

    Parameters
    ----------
    xp
        Array API namespace.
    device
        What the namespace's creation functions take as `device=`; `None` leaves it out.
    writable
        Whether arrays can be assigned to. If not, blocks are concatenated.
    workspace_bytes
        What an engine may use for its scratch arrays.
    block_bytes
        What the operands of one matrix product may take: on a CPU, what its caches hold.
    """

    tier = "array API"  # what plans say of how they are carried out
    threads = 1
    banded = False  # whether one call multiplies many small matrices about as fast as large ones
    adds_in_pairs = False  # whether the library's `mean` does, as far as its errors show
    writes = False  # whether plans on them take `out=`, any memory that is to have the result
    pack_dtype: str | None = None  # what weights are transformed in, where it is not the dtype of the computation

    def __init__(
        self,
        xp: ModuleType,
        *,
        device: Any = None,
        writable: bool = False,
        workspace_bytes: int = 32 << 20,
        block_bytes: int = 8 << 20,
    ) -> None:
        self.xp = xp
        self.device = {} if device is None else {"device": device}
        self.place = f"{xp.__name__} {device}" if device is not None else xp.__name__
        self.writable = writable
        self.workspace_bytes = workspace_bytes
        self.block_bytes = block_bytes

    @property
    def elementwise(self) -> ModuleType:
        """The namespace of elementwise functions, where that is another one."""
        return self.xp

    def records(self, *arrays: Any) -> bool:
        """Whether the library may differentiate what is made of these arrays, or of one of them."""
        return False

    def assigns(self) -> bool:
        """Whether parts of a new array can be assigned, here and now."""
        return self.writable

    def seen(self, *arrays: Any) -> bool:
        """Whether NumPy can see the values of CPU arrays, and nobody records what is made of them."""
        return True

    def dtype(self, name: str) -> Any:
        """The namespace's dtype object of a standard name."""
        try:
            return getattr(self.xp, name)
        except AttributeError:
            raise TypeError(f"`dtype` {name!r} does not exist in {self.xp.__name__}.") from None

    def cast(self, x: Any, dtype: str) -> Any:
        """`x` in the dtype of this name; `x` itself if it has it."""
        wanted = self.dtype(dtype)
        return x if x.dtype == wanted else self.xp.astype(x, wanted)

    def cbhw(self, x: Any, layout: str) -> Any:
        """The image as (C, B, H, W)."""
        return self.xp.permute_dims(x, TO_CBHW[layout])

    def window(self, x: Any, block: Block, problem: Problem) -> Any:
        """The part `block` of the padded image, as `window_of` describes it, in the dtype of the computation.

        `x` is the whole image as (C, B, H, W).
        """
        return self.cut(x, window_of(problem, block), problem.padding_mode, problem.compute_dtype)

    def padded(self, x: Any, problem: Problem, dtype: str | None = None) -> Any:
        """The whole padded image, in the dtype of the computation unless another is named."""
        top, bottom, left, right = problem.padding
        rows, cols = slice(-top, problem.height + bottom), slice(-left, problem.width + right)
        window = window_of(problem, Block(slice(None), slice(None), rows, cols))
        return self.cut(x, window, problem.padding_mode, dtype or problem.compute_dtype)

    def cut(self, x: Any, window: Window, mode: str, dtype: str) -> Any:
        """The window of the image (C, B, H, W), in this dtype; `mode` is the padding's."""
        # cut before padding and casting: only the block of a photograph is copied and becomes float
        needed, cols = _needed(window.cols)
        x = x[window.channels, window.batch, :, needed]
        for axis, source in ((2, window.rows), (3, cols)):
            pieces = [
                self._outside(x, source.lead, axis),
                self._cut(x, source.inner, axis),
                self._outside(x, source.trail, axis),
            ]
            pieces = [piece for piece in pieces if piece is not None]
            x = pieces[0] if len(pieces) == 1 else self.xp.concat(pieces, axis=axis)
        return self.cast(x, dtype)

    @staticmethod
    def _cut(x: Any, inner: slice, axis: int) -> Any:
        if inner.start == inner.stop:
            return None
        return x[:, :, inner, :] if axis == 2 else x[:, :, :, inner]

    def _outside(self, x: Any, sources: tuple[int | None, ...], axis: int) -> Any:
        """Elements in the padding: zeros, or copies of the elements that `sources` lists."""
        if not sources:
            return None
        if sources[0] is None:  # zero padding is all zeros: `axis_source` mixes no modes
            shape = [len(sources) if a == axis else size for a, size in enumerate(x.shape)]
            return self.zeros(tuple(shape), x.dtype)
        return self.xp.take(x, self.xp.asarray(sources, **self.device), axis=axis)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of zeros, of the namespace's dtype."""
        return self.xp.zeros(shape, dtype=dtype, **self.device)

    def contiguous(self, x: Any) -> Any:
        """`x`, in an order of memory that products read fast; only a library that lets strides show needs to act."""
        return x

    def keep(self, x: Any) -> Any:
        """`x` as part of a packed weight, which must not keep the user's array alive; contiguous."""
        return self.contiguous(x)

    def factors(self, weight: Any) -> tuple[Any, Any] | None:
        """Columns (n, kh) and rows (n, kw) whose products are the kernels (n, kh, kw) to rounding, if there are any.

        Only a library that can look at values at once finds out.
        """
        return None

    def stack(self, views: list[Any], axis: int = 1) -> Any:
        """The views in one array, along a new axis. The next call may reuse its memory."""
        return self.xp.stack(views, axis=axis)

    def product(self, buffer: str, a: Any, b: Any) -> Any:
        """The matrix product, in scratch memory of this name: the next call with the same name may reuse it."""
        return self.xp.matmul(a, b)

    def sum_of_products(self, pairs: Iterable[tuple[Any, Any]], product: str, buffer: str = "sum") -> Any:
        """Sum of the products of pairs of arrays; `product` is "matmul" or "multiply".

        It lies in scratch memory of this name, which the next call with the same name may reuse.
        """
        multiply = getattr(self.xp, product)
        return accumulate(multiply(a, b) for a, b in pairs)

    def correlation(
        self, flat: Any, weight: Any, dilation: tuple[int, int], line: int, length: int, buffer: str = "sum"
    ) -> Any:
        """Sums of taps over windows that lie flat in memory, (g, o, B, length), in scratch memory of this name.

        `out[g, o, b, t] = sum over (i, r, c) of weight[g, o, i, r, c] * flat[g, i, b, t + r dh line + c dw]`

        Parameters
        ----------
        flat
            (g, i, B, elements)
        weight
            (g, o, i, kh, kw)
        dilation
            (dh, dw)
        line
            Elements from row to row. The last `(kw - 1) dw` results of each row are not used.
        length
            Elements of a result.
        """
        inputs, kh, kw = weight.shape[2:]
        starts = [(r, c, r * dilation[0] * line + c * dilation[1]) for r in range(kh) for c in range(kw)]
        terms = (
            (flat[:, None, i, :, start : start + length], weight[:, :, i, r, c, None, None])
            for r, c, start in starts
            for i in range(inputs)
        )
        return self.sum_of_products(terms, "multiply", buffer)

    def shifted(self, x: Any, block: Block, problem: Problem, row: int, count: int, apart: int, lines: int) -> Any:
        """What each column of the kernel reads for the outputs `block`, (C, B, lines, kw, rows, columns).

        Line n has `count` rows of the padded image (C, B, H, W), from row `row + n * apart` on, counted from the first
        pixel. Copy k of them has the columns that tap k of a row of the kernel reads. It may be scratch memory.
        """
        p, xp = problem, self.xp
        (stride, dilation), left = (p.stride[1], p.dilation[1]), p.padding[2]
        cols, width = block.cols, (block.cols.stop - block.cols.start - 1) * stride + 1
        first, reach = cols.start * stride - left, (p.kernel[1] - 1) * dilation
        rows = slice(row, row + (lines - 1) * apart + count)
        window = self.window(x, block._replace(rows=rows, cols=slice(first, first + reach + width)), p)
        parts = []
        for n in range(lines):
            line = window[:, :, n * apart : n * apart + count, :]
            taps = [line[..., k : k + width : stride] for k in range(0, reach + 1, dilation)]
            parts.append(xp.stack(taps, axis=2))
        return xp.stack(parts, axis=2)

    def lines(self, x: Any, block: Block, problem: Problem) -> Any:
        """What each row of the kernel reads for the outputs `block`, (C, B, rows, kh, W), as wide as the image.

        Above and below the image (C, B, H, W) it is zeros. It may be scratch memory.
        """
        p, height = problem, block.rows.stop - block.rows.start
        (stride, dilation), kh = (p.stride[0], p.dilation[0]), p.kernel[0]
        row, length = block.rows.start * stride - p.padding[0], (height - 1) * stride + 1
        rows = slice(row, row + length + (kh - 1) * dilation)
        window = self.window(x, block._replace(rows=rows, cols=slice(0, p.width)), p)
        return self.xp.stack(
            [window[:, :, i * dilation : i * dilation + length : stride, :] for i in range(kh)], axis=3
        )

    def all_finite(self, x: Any) -> bool:
        """Whether `x`, real or complex, has neither NaN nor infinity; it may say no where only their sum overflows."""
        with self.quiet():
            return bool(self.xp.isfinite(self.xp.sum(x)))

    def transformable(self, weight: Any, dtype: str) -> bool:
        """Whether transforms of the kernels (..., kh, kw) keep their digits, whatever the image is.

        A transform adds the weights of a kernel with factors of about one. Where all of them are subnormal numbers, or
        nearly, it rounds their sums to few digits, and a large pixel makes much of that. Where they are so large that
        they make something of a subnormal pixel, that pixel's transform has as few digits. NaN and infinity would
        spread. A BLAS loses nothing of either kind.
        """
        with self.quiet():
            weight = self.cast(weight, dtype)
            largest = self.xp.max(self.xp.abs(weight), axis=(-2, -1))
            kept = (largest >= SMALLEST_TRANSFORMED[dtype]) & (largest <= LARGEST_TRANSFORMED)
            return bool(self.xp.all(kept | self.xp.all(self.is_zero(weight), axis=(-2, -1))))

    def is_zero(self, x: Any) -> Any:
        """Where the array is zero."""
        return x == 0

    def quiet(self) -> AbstractContextManager[object]:
        """Within it NaN and Inf are data, as in compiled libraries; where a library warns of them, it does not."""
        return nullcontext()

    def bias(self, bias: Any, dtype: str) -> Any:
        """The bias as (O, 1, 1, 1) in the dtype of the computation."""
        return self.cast(self.xp.reshape(bias, (-1, 1, 1, 1)), dtype)

    def finish(self, value: Any, block: Block, problem: Problem, bias: Any, residual: Any = None) -> Any:
        """The sums of a block as the result has them: with the epilogue, in its dtype.

        The bias is as `bias` has it, or None; the residual is whole, (O, B, H, W), or None.
        """
        if bias is not None:
            value = value + bias[block.channels, ...]
        if residual is not None:
            value = value + self.cast(residual[tuple(block)], problem.compute_dtype)
        if problem.epilogue.activation is not None:
            value = self.activated(value, problem.epilogue.activation)
        return self.rounded(value, problem.result_dtype)

    def finished(self, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """A whole array of sums, bias and all, as the result has it: residual, activation, dtype."""
        with self.quiet():
            sums = self._before_activation(sums, problem, residual)
            activation = problem.epilogue.activation
            value = sums if activation is None else self.activated(sums, activation)
            return self.rounded(value, problem.result_dtype)

    def pulled_back(self, dy: Any, sums: Any, problem: Problem, residual: Any = None) -> Any:
        """The cotangent of the sums, in the dtype of the computation, from that of the result."""
        with self.quiet():
            dy = self.cast(dy, problem.compute_dtype)
            activation = problem.epilogue.activation
            if activation is None:
                return dy
            before = self._before_activation(sums, problem, residual)
            return dy * activations.derivative(self.elementwise, before, activation)

    def _before_activation(self, sums: Any, problem: Problem, residual: Any) -> Any:
        return sums if residual is None else sums + self.cast(residual, problem.compute_dtype)

    def activated(self, x: Any, activation: Activation) -> Any:
        """The activation, by the library's own function where it has one that is differentiable."""
        return activations.activated(self.elementwise, x, activation)

    def rounded(self, value: Any, dtype: str) -> Any:
        """Sums in the dtype of a result; for integers half to even, the nearest that there is, and 0 for NaN."""
        if (limits := integer_range(dtype)) is None:
            return self.cast(value, dtype)
        xp, (low, high) = self.xp, limits
        value = xp.round(value)
        # 2^n is a number of every floating dtype here, and 2^n - 1 need not be
        above, below = value >= float(high + 1), value < float(low)
        inside = (value < float(high + 1)) & ~below
        # of the small ones no library has all operations
        found = self.cast(xp.where(inside, value, xp.zeros_like(value)), SMALL.get(dtype, dtype))
        found = xp.where(above, xp.full_like(found, high), found)
        found = xp.where(below, xp.full_like(found, low), found)
        return self.cast(found, dtype)

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
    ) -> Any:
        """The result, from `compute(task)` for every task, which gives the sums of blocks (O, B, H, W) of it.

        It is written into `out`, if there is one and the library can write.

        `parallel` says that the tasks gain from several threads, because what they call uses only one. `products` says
        that they call matrix products, too, which then have to use only one.
        """
        with self.quiet():
            if bias is not None:
                bias = self.bias(bias, problem.compute_dtype)
            if residual is not None:
                residual = self.cbhw(residual, problem.layout)
            return self._assembled(problem, bias, residual, tasks, compute, out)

    def _assembled(
        self,
        problem: Problem,
        bias: Any,
        residual: Any,
        tasks: Sequence[T],
        compute: Callable[[T], Iterable[tuple[Block, Any]]],
        out: Any,
    ) -> Any:
        xp, order = self.xp, FROM_CBHW[problem.layout]

        def blocks() -> Iterator[tuple[tuple[slice, ...], Any]]:
            for task in tasks:
                for block, value in compute(task):
                    finished = self.finish(value, block, problem, bias, residual)
                    yield reorder(block, order), xp.permute_dims(finished, order)

        if 0 in problem.out_shape:
            return self.zeros(problem.out_shape, self.dtype(problem.result_dtype)) if out is None else out
        if not self.writable:
            return _joined(xp, list(blocks()))
        y = out
        if y is None:
            y = xp.empty(problem.out_shape, dtype=self.dtype(problem.result_dtype), **self.device)
        for index, value in blocks():
            y[index] = value
        return y


def _needed(source: AxisSource) -> tuple[slice, AxisSource]:
    """The stretch of the axis that a window reads, and the window's sources within that stretch."""
    read = [i for i in (*source.lead, *source.trail) if i is not None]
    if source.inner.start < source.inner.stop:
        read += [source.inner.start, source.inner.stop - 1]
    if not read:
        return slice(0, 1), source
    first = min(read)

    def moved(indices: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(None if i is None else i - first for i in indices)

    inner = slice(source.inner.start - first, source.inner.stop - first, source.inner.step)
    if inner.start == inner.stop:
        inner = slice(0, 0)
    return slice(first, max(read) + 1), AxisSource(moved(source.lead), inner, moved(source.trail))


def _joined(xp: ModuleType, parts: list[tuple[tuple[slice, ...], Any]]) -> Any:
    """One array from parts and their places in it.

    The parts need not form a grid: in the place of a block there may be several, where it was computed anew by another
    engine. Along some axis they always fall apart into groups that no part belongs to two of.
    """
    if len(parts) == 1:
        return parts[0][1]
    for axis in range(4):
        groups: list[list[tuple[tuple[slice, ...], Any]]] = []
        end = 0
        for part in sorted(parts, key=lambda part: int(part[0][axis].start)):
            if not groups or part[0][axis].start >= end:
                groups.append([])
            groups[-1].append(part)
            end = max(end, part[0][axis].stop)
        if len(groups) > 1:
            return xp.concat([_joined(xp, group) for group in groups], axis=axis)
    raise ValueError("the blocks of a result overlap")
