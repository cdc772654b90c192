"""Pooling and interpolation of NumPy's arrays: compiled where that is possible, else strip by strip.

A strip stays in a core's cache between rows and columns. Interpolation that is not compiled is that of
`engines/windows.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from ..core.backend import ArrayInfo, Backend
from ..core.dtypes import compute_dtype
from ..core.shapes import met_taps, ranges
from ..core.windows import Pooling, Taps, WindowOperation, axes_of
from ..engines import windows
from ..engines.accuracy import in_pairs
from . import threads
from .bridge import jit_enabled, numpy_steps

__all__ = ["applied", "applied_by"]

STRIP_BYTES = 256 << 10  # of the image that are pooled at a time: a share of a core's second cache
RUN = 64  # numbers that may be added one after the other
SMALL_BYTES = 1 << 20  # of an image that one thread is done with before others have begun

Array = np.ndarray[Any, Any]


def applied_by(backend: Backend, x: Any, info: ArrayInfo, operation: WindowOperation) -> Any:
    """The result of an operation, by what a back end has for it, or by NumPy between two conversions."""
    own: Callable[[Any, ArrayInfo, WindowOperation], Any] | None = getattr(backend, "windowed", None)
    if own is not None:
        return own(x, info, operation)
    return backend.from_numpy(applied(backend.to_numpy(x), operation), dtype=info.dtype, device=info.device or None)


def applied(x: Array, operation: WindowOperation) -> Array:
    """The result of an operation, in native byte order."""
    if (compiled := _compiled(x, operation)) is not None:
        return compiled
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if not isinstance(operation, Pooling):
        return np.asarray(windows.applied(numpy_steps(), x, operation, x.dtype.name))
    if operation.rows.whole and operation.cols.whole:
        return _whole(x, operation)
    return _pooled(x, operation)


def _compiled(x: Array, operation: WindowOperation) -> Array | None:
    """The compiled tier's result, where there is one; the largest of whole images NumPy finds as fast."""
    if not jit_enabled():
        return None
    from .compiled.windows.plan import CompiledMean, CompiledWindows

    if isinstance(operation, Pooling) and operation.rows.whole and operation.cols.whole:
        suits = operation.kind == "average" and x.flags.c_contiguous and x.flags.aligned
        mean = CompiledMean.make(operation, x.shape, x.dtype) if suits else None
        return None if mean is None else mean.compute(x)
    plan = CompiledWindows.make(operation, x.shape, x.dtype)
    return None if plan is None else plan.compute(x)


def _whole(x: Array, p: Pooling) -> Array:
    """What is left of whole images: a number for each channel."""
    axes = axes_of(p.layout)
    if p.kind == "max":
        return np.asarray(np.max(x, axis=axes, keepdims=True))
    wide = x.dtype if x.dtype.char in "fd" else np.dtype(compute_dtype(x.dtype.name))
    with np.errstate(all="ignore"):
        if x.dtype is wide and x.flags.c_contiguous and x.size:
            # BLAS adds many short rows several times as fast as `sum`; long ones it adds one number after the other
            n, pixels = x.shape[0], p.rows.size * p.cols.size
            if p.layout == "NHWC":
                return np.asarray(
                    (_channel_sums(x.reshape(n, pixels, x.shape[3])) / pixels).reshape(p.out_shape(x.shape))
                )
            flat = x.reshape(-1, pixels)
            sums = flat @ _ones(pixels, wide) if pixels <= RUN else flat.sum(axis=-1)
            return np.asarray((sums / pixels).reshape(p.out_shape(x.shape)))
        # in order of memory, which `sum` adds in pairs
        ordered = np.ascontiguousarray(np.moveaxis(x, axes, (-2, -1)), wide)
        sums = ordered.reshape(*ordered.shape[:2], -1).sum(axis=-1) if x.size else np.zeros(ordered.shape[:2], wide)
        return np.asarray(sums / (p.rows.size * p.cols.size)).reshape(p.out_shape(x.shape)).astype(x.dtype)


def _channel_sums(x: Array) -> Array:
    """The sums of images (N, pixels, C) over their pixels: of runs of pixels, and of those in pairs."""
    n, pixels, channels = x.shape
    whole = pixels // RUN * RUN
    parts = [_ones(RUN, x.dtype) @ x[:, :whole].reshape(n, -1, RUN, channels)] if whole else []
    if whole < pixels:
        parts.append((_ones(pixels - whole, x.dtype) @ x[:, whole:])[:, None])
    sums = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return np.asarray(in_pairs(sums.swapaxes(0, 1)))


@lru_cache(maxsize=16)
def _ones(count: int, dtype: np.dtype[Any]) -> Array:
    return np.ones(count, dtype)


def _pooled(x: Array, p: Pooling) -> Array:
    y = np.empty(p.out_shape(x.shape), x.dtype)

    def strip(task: tuple[slice, slice, slice]) -> None:
        images, channels, rows = task
        part, inner = p.part((rows.start, rows.stop), (0, p.cols.outputs))
        index = (images, channels, *part[2:]) if p.layout == "NCHW" else (images, *part[1:3], channels)
        out = (images, channels, rows) if p.layout == "NCHW" else (images, rows, slice(None), channels)
        with np.errstate(all="ignore"):  # the setting is the thread's own
            _strip(x[index], y[out], inner)

    allowed = threads.allowed_threads() if x.nbytes > SMALL_BYTES else 1
    if y.size:
        threads.run(strip, list(_strips(x, p)), allowed)
    return y


def _strips(x: Array, p: Pooling) -> Iterator[tuple[slice, slice, slice]]:
    """Images, channels and rows of the result that are made at a time: whole planes where these are small."""
    n, outputs = x.shape[0], p.rows.outputs
    channels = x.shape[1] if p.layout == "NCHW" else x.shape[3]
    plane = max(p.rows.size * p.cols.size * x.itemsize, 1)
    group = channels if p.layout == "NHWC" else max(STRIP_BYTES // plane, 1)
    rows = max(outputs * STRIP_BYTES // (plane * min(group, channels)), 1)
    together = max(STRIP_BYTES // (plane * channels), 1) if channels else 1
    for images in ranges(n, together):
        for some in ranges(channels, group):
            for part in ranges(outputs, rows):
                yield images, some, part


def _strip(x: Array, out: Array, p: Pooling) -> None:
    """Rows first, which NumPy reads as runs of memory; so fewer numbers are left for the columns."""
    row_axis, col_axis = axes_of(p.layout)
    wide = np.dtype(compute_dtype(x.dtype.name)) if p.kind == "average" else x.dtype
    x = x.astype(wide, copy=False)
    shape = tuple(p.rows.outputs if axis == row_axis else size for axis, size in enumerate(x.shape))
    pixels = 1
    for size in shape:
        pixels *= size
    between = threads.scratch(pixels, wide, "rows")[:pixels].reshape(shape)
    if p.kind == "max":
        _along(np.maximum, x, between, row_axis, p.rows)
        _along(np.maximum, between, out, col_axis, p.cols)
        return
    _along(np.add, x, between, row_axis, p.rows)
    sums = out if out.dtype == wide else np.empty(out.shape, wide)
    _along(np.add, between, sums, col_axis, p.cols)
    np.divide(sums, _counted(p, wide), out=out, casting="unsafe")


def _counted(p: Pooling, dtype: np.dtype[Any]) -> Any:
    """How many numbers are in the sums."""
    rows, cols = (np.array(taps.counts(p.count_padding), dtype) for taps in (p.rows, p.cols))
    if (rows == rows[0]).all() and (cols == cols[0]).all():
        return rows[0] * cols[0]
    found = np.multiply.outer(rows, cols)
    return found if p.layout == "NCHW" else found[..., None]


def _along(join: np.ufunc, x: Array, out: Array, axis: int, taps: Taps) -> None:
    """One axis: the taps of each output are joined. Those in the padding are left out."""
    pieces = []
    for tap, first, last in met_taps(taps.outputs, taps.size, taps.kernel, taps.stride, taps.dilation, taps.before):
        low = (first + taps.before - tap * taps.dilation) // taps.stride
        count = (last - first) // taps.stride + 1
        pieces.append((slice(low, low + count), slice(first, last + 1, taps.stride)))
    whole = [piece for piece in pieces if piece[0] == slice(0, taps.outputs)]
    rest = [piece for piece in pieces if piece not in whole]
    if len(whole) > 1:
        join(_cut(x, axis, whole[0][1]), _cut(x, axis, whole[1][1]), out=out)
    elif whole:
        np.copyto(out, _cut(x, axis, whole[0][1]))
    else:
        out[...] = _neutral(join, out.dtype)
    for made, read in (*whole[2:], *rest):
        target = _cut(out, axis, made)
        join(target, _cut(x, axis, read), out=target)


def _neutral(join: np.ufunc, dtype: np.dtype[Any]) -> Any:
    if join is np.add:
        return 0
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _cut(x: Array, axis: int, part: slice) -> Array:
    view: Array = x[(*(slice(None),) * axis, part)]
    return view
