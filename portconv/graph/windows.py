"""Pooling and resampling of images, and transposed convolution, in operations of the array API."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..functional import conv2d
from .model import check_size

__all__ = ["Pads", "avg_pool", "conv_transpose2d", "max_pool", "padded", "place", "resampled"]

Pads = tuple[tuple[int, int], ...]  # before and after, along each axis of an image


def padded(xp: ModuleType, x: Any, pads: Sequence[tuple[int, int]], value: float, step: Sequence[int] = ()) -> Any:
    """The array with constant numbers around it, along its last axes; with `step`, in between its elements, too."""
    lead = x.ndim - len(pads)
    for axis, (before, after) in enumerate(pads, lead):
        stride = step[axis - lead] if step else 1
        if stride > 1 and x.shape[axis]:
            shape = (*x.shape[: axis + 1], stride - 1, *x.shape[axis + 1 :])
            check_size((*x.shape[:axis], x.shape[axis] * stride, *x.shape[axis + 1 :]))
            gaps = xp.full(shape, value, dtype=x.dtype, device=place(x))
            x = xp.concat([xp.expand_dims(x, axis=axis + 1), gaps], axis=axis + 1)
            x = xp.reshape(x, (*shape[:axis], shape[axis] * stride, *shape[axis + 2 :]))
            x = x[(slice(None),) * axis + (slice(0, x.shape[axis] - stride + 1), ...)]
        x = _cut(x, axis, -min(before, 0), -min(after, 0))
        sides = []
        for size in (max(before, 0), max(after, 0)):
            shape = check_size((*x.shape[:axis], size, *x.shape[axis + 1 :]))
            sides.append(xp.full(shape, value, dtype=x.dtype, device=place(x)) if size else None)
        parts = [part for part in (sides[0], x, sides[1]) if part is not None]
        check_size((*x.shape[:axis], sum(part.shape[axis] for part in parts), *x.shape[axis + 1 :]))
        x = xp.concat(parts, axis=axis) if len(parts) > 1 else x
    return x


def _cut(x: Any, axis: int, before: int, after: int) -> Any:
    return x[(slice(None),) * axis + (slice(before, x.shape[axis] - after), ...)] if before or after else x


def place(x: Any) -> Any:
    """Where an array is, as its namespace takes it."""
    return getattr(x, "device", None)  # MLX's arrays have none


def _folded(
    x: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], join: Callable[[Any, Any], Any]
) -> Any:
    """All elements of each window joined, one axis after the other: what max and sum allow."""
    lead = x.ndim - len(kernel)
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), lead):
        count = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1
        if count < 1:
            raise ValueError(f"a window of {size} with dilation {dilation} is larger than an axis of {x.shape[axis]}.")
        total = None
        for k in range(size):
            start = k * dilation
            part = x[(slice(None),) * axis + (slice(start, start + (count - 1) * stride + 1, stride), ...)]
            total = part if total is None else join(total, part)
        x = total
    return x


def max_pool(
    xp: ModuleType, x: Any, kernel: Sequence[int], strides: Sequence[int], pads: Pads, dilations: Sequence[int]
) -> Any:
    """The largest element of each window."""
    floating = xp.isdtype(x.dtype, "real floating")
    x = padded(xp, x, pads, -math.inf if floating else xp.iinfo(x.dtype).min)
    return _folded(x, kernel, strides, dilations, xp.maximum)


def avg_pool(
    xp: ModuleType, x: Any, kernel: Sequence[int], strides: Sequence[int], pads: Pads, dilations: Sequence[int],
    counted: Pads,
) -> Any:  # fmt: skip
    """The mean of each window, over what of it is in the image or in `counted`, the padding that counts."""
    sums = _folded(padded(xp, x, pads, 0.0), kernel, strides, dilations, lambda a, b: a + b)
    if not any(before or after for before, after in pads):
        return sums / math.prod(kernel)
    for axis, size in enumerate(x.shape[x.ndim - len(kernel) :]):
        ones = np.zeros(size + sum(pads[axis]))
        ones[pads[axis][0] - counted[axis][0] : pads[axis][0] + size + counted[axis][1]] = 1
        counts = _folded(ones, kernel[axis : axis + 1], strides[axis : axis + 1], dilations[axis : axis + 1], np.add)
        shape = (-1,) + (1,) * (len(kernel) - 1 - axis)
        factor = np.reshape(1 / np.maximum(counts, 1), shape)
        sums = sums * xp.asarray(factor, dtype=x.dtype, device=place(x))
    return sums


def conv_transpose2d(
    xp: ModuleType, x: Any, weight: Any, bias: Any, strides: Sequence[int], pads: Pads, dilations: Sequence[int],
    groups: int, extra: Sequence[int],
) -> Any:  # fmt: skip
    """The transposed convolution of ``(N, C, H, W)`` with a weight ``(C, O/groups, kh, kw)``.

    It is the convolution of the image, with zeros between its pixels, with the turned kernel. `extra` are rows and
    columns more at the bottom and right.
    """
    c, per_group, *kernel = weight.shape
    if tuple(kernel) == tuple(strides) and not any(map(any, (*pads, extra))) and set(dilations) == {1} and groups == 1:
        return _without_overlaps(xp, x, weight, bias)
    turned = xp.reshape(xp.flip(weight, axis=(2, 3)), (groups, c // groups, per_group, *kernel))
    turned = xp.reshape(xp.permute_dims(turned, (0, 2, 1, 3, 4)), (groups * per_group, c // groups, *kernel))
    around = []
    for k, d, (before, after), more in zip(kernel, dilations, pads, extra, strict=True):
        reach = d * (k - 1)
        around.append((reach - before, reach - after + more))
    return conv2d(padded(xp, x, around, 0.0, strides), turned, bias, dilation=tuple(dilations), groups=groups)


def _without_overlaps(xp: ModuleType, x: Any, weight: Any, bias: Any) -> Any:
    """Windows side by side: one output of a convolution with a kernel of one pixel for each pixel of a window."""
    (n, c, h, w), (_, o, kh, kw) = x.shape, weight.shape
    check_size((n, o, h * kh, w * kw))
    matrix = xp.reshape(xp.permute_dims(weight, (2, 3, 1, 0)), (kh * kw * o, c, 1, 1))
    y = xp.reshape(conv2d(x, matrix, None if bias is None else xp.tile(bias, (kh * kw,))), (n, kh, kw, o, h, w))
    return xp.reshape(xp.permute_dims(y, (0, 3, 4, 1, 5, 2)), (n, o, h * kh, w * kw))


def resampled(xp: ModuleType, x: Any, axis: int, taps: Sequence[tuple[Any, Any]]) -> Any:
    """Along an axis, sums of elements at `indices`, times `weights`, over ``(indices, weights)`` in `taps`.

    Weights of None are ones.
    """
    total = None
    for indices, weights in taps:
        part = _taken(xp, x, indices, axis)
        if weights is not None:
            shape = (-1,) + (1,) * (x.ndim - 1 - axis)
            part = part * xp.asarray(np.reshape(weights, shape), dtype=x.dtype, device=place(x))
        total = part if total is None else total + part
    return total


def _taken(xp: ModuleType, x: Any, indices: np.ndarray[Any, Any], axis: int) -> Any:
    """`take` along an axis; where each element is only repeated as often, without an index for each."""
    times, rest = divmod(len(indices), max(x.shape[axis], 1))
    check_size((*x.shape[:axis], len(indices), *x.shape[axis + 1 :]))
    if not rest and times and np.array_equal(indices, np.repeat(np.arange(x.shape[axis]), times)):
        return xp.repeat(x, times, axis=axis)
    return xp.take(x, xp.asarray(indices, device=place(x)), axis=axis)
