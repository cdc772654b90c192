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
    "met_taps",
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


def met_taps(
    outputs: int, size: int, kernel: int, stride: int, dilation: int, before: int
) -> Iterator[tuple[int, int, int]]:
    """The taps of an axis that meet its elements, not its padding alone; each with the first and last that it reads."""
    for tap in range(kernel):
        at = before - tap * dilation  # the tap reads element `output * stride - at`
        low, high = max(-(-at // stride), 0), min((at + size - 1) // stride, outputs - 1)
        if low <= high:
            yield tap, low * stride - at, high * stride - at


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding for `ceil(size / stride)` outputs; an odd rest goes to the end, as in XLA's and Keras's "SAME"."""
    total = max((-(-size // stride) - 1) * stride + dilated(kernel, dilation) - size, 0)
    return total // 2, total - total // 2


def ranges(total: int, step: int, first: int = 0) -> list[slice]:
    """`[first, total)` cut into slices of at most `step`."""
    return [slice(start, min(start + step, total)) for start in range(first, total, step)]


class AxisSource(NamedTuple):
    """Where the elements of a window along one axis come from: `lead`, then `x[inner]`, then `trail`.

    `lead` and `trail` list source indices; `None` there stands for a zero. `inner` may have a step.
    """

    lead: tuple[int | None, ...]
    inner: slice
    trail: tuple[int | None, ...]


MAX_KEPT_PADDING = 1 << 12  # elements of a window's padding, above which its sources are not kept for the next call


def axis_source(part: slice, size: int, before: int, after: int, mode: str) -> AxisSource:
    """Sources of the window `part`, every one or every n-th element, of an axis padded by `before` and `after`.

    Coordinates count from the first of the `size` elements of `x`, so padding has negative ones. A window may reach
    beyond the padding, where an engine computes outputs that it throws away; any value serves there.
    """
    step = part.step or 1
    outside = (min(part.stop, 0) - part.start) // step + (part.stop - max(part.start, size)) // step
    found = _axis_source if outside <= MAX_KEPT_PADDING else _axis_source.__wrapped__
    return found(part.start, part.stop, step, size, before, after, mode)


@lru_cache(maxsize=4096)
def _axis_source(start: int, stop: int, step: int, size: int, before: int, after: int, mode: str) -> AxisSource:
    where = range(start, stop, step)

    def source(i: int) -> int | None:
        if mode == "zeros":
            return None
        i = min(max(i, -before), size - 1 + after)
        if mode == "replicate":
            return min(max(i, 0), size - 1)
        if mode == "circular":
            return i % size
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i  # reflect, the edge not repeated

    def sources(part: range) -> tuple[int | None, ...]:
        # the padding of these modes has no limit
        if mode == "zeros" or (mode == "replicate" and part and (part[-1] < 0 or part[0] >= size)):
            return (source(part[0]),) * len(part) if part else ()
        return tuple(source(i) for i in part)

    first = min(max(-(start // step), 0), len(where))  # the first element at 0 or beyond
    last = min(max(-((start - size) // step), first), len(where))  # the first one at `size` or beyond
    if first == last:  # wholly in the padding, on one side of the image or, where it steps over that, on both
        before_image, beyond = sources(where[:first]), sources(where[first:])
        return AxisSource(before_image + beyond, slice(0, 0), ())
    inner = slice(where[first], where[last - 1] + 1, None if step == 1 else step)
    return AxisSource(sources(where[:first]), inner, sources(where[last:]))


def _smooth(limit: int) -> list[int]:
    powers = [2**a for a in range(limit.bit_length())]
    return [a * b for a in powers for b in (1, 3, 5, 9, 15, 45) if a * b <= limit]


@lru_cache(maxsize=256)
def smooth_sizes(minimum: int, maximum: int) -> tuple[int, ...]:
    """Even transform lengths with small prime factors: those in `[minimum, maximum]`, and the next one above them."""
    every = [n for n in _smooth(4 * max(maximum, 8)) if n % 2 == 0]
    above = min([n for n in every if n >= max(minimum, maximum)])
    return tuple(sorted([n for n in every if minimum <= n <= above]))


def fft_operations(height: int, width: int) -> float:
    """Floating-point operations of one real two-dimensional transform: `2.5 n log2 n` (half of the complex one)."""
    n = height * width
    return 2.5 * n * math.log2(max(n, 2))
