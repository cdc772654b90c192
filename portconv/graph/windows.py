"""Pooling of images of any number of axes, and their resampling and transposed convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from ..core.windows import Pooling, Resizing, Samples
from ..core.words import AVERAGES
from ..dispatch import windows
from ..functional import conv2d
from ..windows import applied
from .model import check_size

__all__ = ["Pads", "conv_transpose2d", "padded", "place", "pooled", "resampled", "resized"]

Pads = tuple[tuple[int, int], ...]  # before and after, along each axis of an image
Taps = Sequence[tuple[Any, Any]]  # indices of elements along an axis, and their weights


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


def pooled(
    xp: ModuleType, x: Any, kind: str, kernel: Sequence[int], strides: Sequence[int], pads: Pads,
    dilations: Sequence[int], *, up: bool = False, counted: bool = False,
) -> Any:  # fmt: skip
    """Pooling of ``(N, C, ...)``, with the arguments of `dispatch.windows.pooling` for each axis.

    A window is a box: of more than two axes the last two go first, and each of the others for itself.
    """
    n, c, *sizes = x.shape
    if len(sizes) == 1:
        line = ((1, *kernel), (1, *strides), ((0, 0), *pads), (1, *dilations))
        y = pooled(xp, xp.reshape(x, (n, c, 1, *sizes)), kind, *line, up=up, counted=counted)
        return xp.reshape(y, (n, c, y.shape[3]))
    for first in range(len(sizes) - 2, -1, -1):
        end = first + 1 if first < len(sizes) - 2 else first + 2
        image = xp.reshape(x, (n, c * math.prod(sizes[:first]), sizes[first], math.prod(sizes[first + 1 :])))
        # nothing is done along an axis that is several
        of_axes = ((kernel, 1), (strides, 1), (pads, (0, 0)), (dilations, 1))
        window: list[Any] = [(*given[first:end], idle)[:2] for given, idle in of_axes]
        y = _pooled(image, kind, *window, up=up, counted=counted)
        sizes[first:end] = y.shape[2 : 2 + end - first]
        x = xp.reshape(y, (n, c, *sizes))
    return x


def _pooled(x: Any, kind: str, kernel: Any, strides: Any, pads: Any, dilations: Any, *, up: bool, counted: bool) -> Any:
    window = tuple(kernel), tuple(strides), tuple(pads), tuple(dilations)
    return applied(x, lambda info: _pooling(kind, info.shape, info.dtype, *window, up, counted))


@lru_cache(maxsize=256)  # the checks take longer than a small image
def _pooling(
    kind: str, shape: tuple[int, ...], dtype: str, kernel: Any, strides: Any, pads: Any, dilations: Any, up: bool,
    counted: bool,
) -> Pooling:  # fmt: skip
    made = windows.pooling(kind, shape, dtype, kernel, strides, pads, dilations, AVERAGES[counted], up, "NCHW")
    check_size(made.out_shape(shape))
    return made


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


def resized(xp: ModuleType, x: Any, changes: Mapping[int, Taps]) -> Any:
    """`resampled` along several axes; where each element is one of an image's or between two, portconv interpolates."""
    shape = tuple(x.shape)
    nearest = all(len(taps) == 1 for taps in changes.values())
    linear = xp.isdtype(x.dtype, "real floating") and all(len(taps) <= 2 for taps in changes.values())
    if len(shape) == 4 and set(changes) <= {2, 3} and 0 not in shape and (nearest or linear):
        rows, cols = (_samples(shape[axis], changes.get(axis)) for axis in (2, 3))
        return applied(x, lambda _: Resizing(rows, cols, "NCHW"))
    for axis in sorted(changes, reverse=True):  # rows are copied whole at last
        x = resampled(xp, x, axis, changes[axis])
    return x


def _samples(size: int, taps: Taps | None) -> Samples:
    if taps is None:
        return Samples(size, tuple(range(size)))
    (low, _), *others = taps
    if not others:
        return Samples(size, tuple(low.tolist()))
    high, share = others[0]
    return Samples(size, tuple(low.tolist()), tuple(high.tolist()), tuple(share.tolist()))


def resampled(xp: ModuleType, x: Any, axis: int, taps: Taps) -> Any:
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
