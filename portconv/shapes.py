"""Integers only: output sizes, padding, and which input a stretch of output needs. No arrays here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "AxisSource",
    "axis_source",
    "dilated",
    "fft_operations",
    "meets",
    "output_size",
    "ranges",
    "same_padding",
    "smooth_sizes",
]


def dilated(kernel: int, dilation: int) -> int:
    """Extent of a dilated kernel along one axis."""
    return dilation * (kernel - 1) + 1


def output_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """`floor((size + before + after - dilation * (kernel - 1) - 1) / stride) + 1`; below 1 the kernel does not fit."""
    return (size + before + after - dilated(kernel, dilation)) // stride + 1


def meets(outputs: int, size: int, kernel: int, stride: int, dilation: int, before: int) -> bool:
    """Whether some output's kernel meets an element of the axis, not its padding alone."""
    for k in range(kernel):
        output = max(0, -((k * dilation - before) // stride))  # the first whose tap k is not before the axis
        if output < outputs and output * stride - before + k * dilation < size:
            return True
    return False


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding for `ceil(size / stride)` outputs; an odd rest goes to the end, as in XLA's and Keras's "SAME"."""
    total = max((-(-size // stride) - 1) * stride + dilated(kernel, dilation) - size, 0)
    return total // 2, total - total // 2


def ranges(total: int, step: int, first: int = 0) -> list[slice]:
    """`[first, total)` cut into slices of at most `step`."""
    return [slice(start, min(start + step, total)) for start in range(first, total, step)]


class AxisSource(NamedTuple):
    """Where the elements of a window along one axis come from: `lead`, then `x[inner]`, then `trail`.

    `lead` and `trail` list source indices; `None` there stands for a zero.
    """

    lead: tuple[int | None, ...]
    inner: slice
    trail: tuple[int | None, ...]


@lru_cache(maxsize=4096)
def axis_source(start: int, stop: int, size: int, before: int, after: int, mode: str) -> AxisSource:
    """Sources of the window `[start, stop)` of an axis of `size` elements, padded by `before` and `after`.

    Coordinates count from the first element of `x`, so padding has negative ones. A window may reach beyond the
    padding, where an engine computes outputs that it throws away; any value serves there.
    """

    def source(i: int) -> int | None:
        if mode == "zeros":
            return None
        i = min(max(i, -before), size - 1 + after)
        if mode == "replicate":
            return min(max(i, 0), size - 1)
        if mode == "circular":
            return i % size
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i  # reflect, the edge not repeated

    first, last = min(max(start, 0), size), max(min(stop, size), 0)
    if first >= last:  # wholly in the padding
        return AxisSource(tuple(source(i) for i in range(start, stop)), slice(0, 0), ())
    lead = tuple(source(i) for i in range(start, first))
    trail = tuple(source(i) for i in range(last, stop))
    return AxisSource(lead, slice(first, last), trail)


def _smooth(limit: int) -> Iterator[int]:
    for a in range(limit.bit_length()):
        for b in (1, 3, 9):
            for c in (1, 5):
                if (value := 2**a * b * c) <= limit:
                    yield value


@lru_cache(maxsize=256)
def smooth_sizes(minimum: int, maximum: int) -> tuple[int, ...]:
    """Even transform lengths with small prime factors: those in `[minimum, maximum]`, and the next one above them."""
    every = sorted({n for n in _smooth(4 * max(maximum, 8)) if n % 2 == 0})
    above = next(n for n in every if n >= max(minimum, maximum))
    return tuple(n for n in every if minimum <= n <= above)


def fft_operations(height: int, width: int) -> float:
    """Floating-point operations of one real two-dimensional transform: `2.5 n log2 n` (half of the complex one)."""
    n = height * width
    return 2.5 * n * math.log2(max(n, 2))
