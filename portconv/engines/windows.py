"""Pooling and interpolation, written once against the array API.

A window is a box, so both go along one axis after the other: columns first, then rows. Every operation is one that
libraries differentiate by themselves. Of equal numbers in a window of max pooling the first one in memory order has the
gradient, as in PyTorch: columns before rows, and a later number only wins where it is larger, or NaN.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from ..core.dtypes import FLOATING, compute_dtype, integer_range
from ..core.windows import Pooling, Samples, Taps, WindowOperation, axes_of
from .accuracy import in_pairs, summed
from .steps import Steps

__all__ = ["applied"]


def applied(steps: Steps, x: Any, operation: WindowOperation, dtype: str) -> Any:
    """The result of an operation for an image of the dtype of this name."""
    with steps.quiet():
        if not isinstance(operation, Pooling):
            y = _resized(steps, x, operation.rows, operation.cols, operation.layout, dtype)
            return x * 1 if y is x else y  # which is an array of its own
        if operation.kind == "max":
            if operation.rows.kernel == operation.cols.kernel == 1:
                x = x * 1  # of which a single tap is a view
            return _largest(steps, x, operation, dtype)
        return steps.cast(_average(steps, steps.cast(x, compute_dtype(dtype)), operation), dtype)


def _taken(x: Any, axis: int, part: slice) -> Any:
    return x[tuple(part if a == axis else slice(None) for a in range(4))]


def _windows(steps: Steps, x: Any, axis: int, taps: Taps, fill: Any) -> list[Any]:
    """What each tap reads for all outputs of an axis; `fill` stands in the padding."""
    ends = [(taps.before, 0), (max(taps.behind, 0), 1)]
    pieces = [x]
    for count, place in ends:
        if count > 0:
            shape = tuple(count if a == axis else size for a, size in enumerate(x.shape))
            pieces.insert(place * len(pieces), steps.xp.full(shape, fill, dtype=x.dtype, **steps.device))
    whole = x if len(pieces) == 1 else steps.xp.concat(pieces, axis=axis)
    length = (taps.outputs - 1) * taps.stride + 1
    starts = range(0, taps.kernel * taps.dilation, taps.dilation)
    return [_taken(whole, axis, slice(start, start + length, taps.stride)) for start in starts]


def _largest(steps: Steps, x: Any, p: Pooling, dtype: str) -> Any:
    limits = integer_range(dtype)
    lowest = -float("inf") if limits is None else limits[0]

    def larger(a: Any, b: Any) -> Any:
        wins = b > a if limits is not None else (b > a) | (b != b)
        return steps.elementwise.where(wins, b, a)

    for axis, taps in reversed(list(zip(axes_of(p.layout), (p.rows, p.cols), strict=True))):
        x = reduce(larger, _windows(steps, x, axis, taps, lowest))
    return x


def _average(steps: Steps, x: Any, p: Pooling) -> Any:
    axes = axes_of(p.layout)
    if p.rows.whole and p.cols.whole:
        if steps.adds_in_pairs:
            return steps.xp.mean(x, axis=axes, keepdims=True)
        for axis in axes:
            x = steps.xp.expand_dims(in_pairs(steps.xp.moveaxis(x, axis, 0)), axis=axis)
        return x / (p.rows.size * p.cols.size)
    for axis, taps in reversed(list(zip(axes, (p.rows, p.cols), strict=True))):
        x = summed(_windows(steps, x, axis, taps, 0))
    counts = [taps.counts(p.count_padding) for taps in (p.rows, p.cols)]
    if all(len(set(each)) == 1 for each in counts):
        return x / (counts[0][0] * counts[1][0])
    rows, cols = (_table(steps, each, axis, x.dtype) for axis, each in zip(axes, counts, strict=True))
    return x / (rows * cols)


def _table(steps: Steps, numbers: Any, axis: int, dtype: Any) -> Any:
    """Numbers of an axis, to be multiplied with an image."""
    table = steps.xp.asarray(list(numbers), dtype=dtype, **steps.device)
    return steps.xp.reshape(table, tuple(-1 if a == axis else 1 for a in range(4)))


def _resized(steps: Steps, x: Any, rows: Samples, cols: Samples, layout: str, dtype: str) -> Any:
    if rows.share or cols.share:
        x = steps.cast(x, compute_dtype(dtype))
    # the axis that grows less goes first: fewer numbers are left for the other one
    order = sorted(zip(axes_of(layout), (rows, cols), strict=True), key=lambda pair: pair[1].outputs / pair[1].size)
    for axis, samples in order:
        low = _gathered(steps, x, samples.low, axis)
        if samples.share:
            share = _table(steps, samples.share, axis, x.dtype)
            low = low * (1 - share) + _gathered(steps, x, samples.high, axis) * share
        x = low
    return steps.cast(x, dtype) if dtype in FLOATING else x


def _gathered(steps: Steps, x: Any, indices: tuple[int, ...], axis: int) -> Any:
    if indices == tuple(range(x.shape[axis])):
        return x
    return steps.xp.take(x, steps.xp.asarray(indices, **steps.device), axis=axis)
