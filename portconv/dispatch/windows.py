"""The arguments of pooling and interpolation, checked once, and the operations that they make with an image's shape."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ..core.dtypes import FLOATING, INTEGERS
from ..core.integers import MAX_SIZE, Pair, pair, sequence_of_two
from ..core.shapes import dilated, output_size
from ..core.windows import Pooling, Resizing, Samples, Taps
from ..core.words import AVERAGES, INTERPOLATIONS, LAYOUTS
from .arguments import check_elements, chosen, flag, image_sizes, padding_of, sides_of

__all__ = ["pooling", "resizing", "whole"]


def pooling(
    kind: str,
    shape: tuple[int, ...],
    dtype: str,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    mode: Any,
    ceil_mode: Any,
    layout: Any,
) -> Pooling:
    """Max pooling or average pooling of an image of this shape and dtype, after every check."""
    kernel = pair("kernel_size", kernel_size, 1)
    strides = kernel if stride is None else pair("stride", stride, 1)
    given, dilations = padding_of(padding), pair("dilation", dilation, 1)
    counted = chosen("mode", mode, AVERAGES) == "average"
    up = flag("ceil_mode", ceil_mode)
    n, c, *size = _sizes(shape, chosen("layout", layout, LAYOUTS))
    _check_dtype(dtype, FLOATING if kind == "average" else (*FLOATING, *INTEGERS), kind)
    sides = sides_of(given, (size[0], size[1]), kernel, strides, dilations)
    (sh, sw), (dh, dw), (top, bottom, left, right) = strides, dilations, sides
    rows = _taps("height", size[0], kernel[0], sh, dh, (top, bottom), up)
    cols = _taps("width", size[1], kernel[1], sw, dw, (left, right), up)
    check_elements("result", n, c, rows.outputs, cols.outputs, lambda: f"x.shape = {shape}.")
    return Pooling(kind, rows, cols, layout, counted)


def _taps(what: str, size: int, kernel: int, stride: int, dilation: int, sides: Pair, up: bool) -> Taps:
    before, after = sides
    reach = dilated(kernel, dilation)
    if max(before, after) >= reach:
        raise ValueError(
            f"`padding` must be less than the window, so that no window lies wholly in it, but along the {what} it is "
            f"({before}, {after}) and the window covers {reach} pixels."
        )
    if size + before + after < reach:
        raise ValueError(
            f"The window does not fit: along the {what} it covers {reach} pixels, but the image with its `padding` has "
            f"{size + before + after}. Use a smaller `kernel_size` or `dilation`, or more padding."
        )
    # a window more for the rest of the image, if it begins in the image or before it
    outputs = output_size(size, kernel, stride, before, after + (stride - 1 if up else 0), dilation)
    if up and (outputs - 1) * stride >= size + before:
        outputs -= 1
    return Taps(size, outputs, kernel, stride, dilation, before, after)


def whole(shape: tuple[int, ...], dtype: str, layout: Any) -> Pooling:
    """The average of each channel of an image."""
    return _whole(shape, dtype, chosen("layout", layout, LAYOUTS))


@lru_cache(maxsize=256)
def _whole(shape: tuple[int, ...], dtype: str, layout: str) -> Pooling:
    _, _, h, w = _sizes(shape, layout)
    _check_dtype(dtype, FLOATING, "average")
    return Pooling("average", Taps(h, 1, h, 1, 1, 0, 0), Taps(w, 1, w, 1, 1, 0, 0), layout)


def resizing(
    shape: tuple[int, ...], dtype: str, size: Any, scale_factor: Any, mode: Any, align_corners: Any, layout: Any
) -> Resizing:
    """Interpolation of an image of this shape and dtype, after every check."""
    nearest, corners = chosen("mode", mode, INTERPOLATIONS) == "nearest", flag("align_corners", align_corners)
    if nearest and corners:
        raise ValueError("`align_corners` is for `mode='bilinear'`, but `mode` is 'nearest'.")
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"`size` or `scale_factor` must be given, and not both, but got {size!r} and {scale_factor!r}."
        )
    n, c, *old = _sizes(shape, chosen("layout", layout, LAYOUTS))
    _check_dtype(dtype, (*FLOATING, *INTEGERS) if nearest else FLOATING, mode)
    if scale_factor is None:
        new = list(pair("size", size, 1))
        steps = list(zip(old, new, strict=True))
    else:
        factors = _factors(scale_factor)
        new = [math.floor(length * factor) for length, factor in zip(old, factors, strict=True)]
        if min(new) < 1:
            raise ValueError(f"`scale_factor` {scale_factor!r} leaves nothing of an image of {old[0]} x {old[1]}.")
        if max(new) > MAX_SIZE:
            raise ValueError(f"`scale_factor` {scale_factor!r} makes an image too large: {new[0]} x {new[1]}.")
        steps = [factor.as_integer_ratio()[::-1] for factor in factors]
    check_elements(
        "result", n, c, new[0], new[1], lambda: f"x.shape = {shape}."
    )  # before there are tables of that size
    rows, cols = (_samples(*axis, nearest, corners) for axis in zip(old, new, steps, strict=True))
    return Resizing(rows, cols, layout)


def _factors(value: Any) -> tuple[float, float]:
    items = sequence_of_two(value)
    factors: list[Any] = [value, value] if items is None else list(items)
    if len(factors) != 2:
        raise ValueError(f"`scale_factor` must be a number or a pair (height, width), but got {value!r}.")
    for factor in factors:
        if isinstance(factor, (str, bool)) or not hasattr(factor, "__float__"):
            raise TypeError(f"`scale_factor` must be a number or a pair (height, width), but got {value!r}.")
        if not (math.isfinite(float(factor)) and float(factor) > 0):
            raise ValueError(f"`scale_factor` must be positive and finite, but got {value!r}.")
    return float(factors[0]), float(factors[1])


@lru_cache(maxsize=64)
def _samples(size: int, outputs: int, step: Pair, nearest: bool, corners: bool) -> Samples:
    """Where each output lies in an axis: exact fractions, so that no position is off by a rounding error."""
    up, down = step
    if nearest:
        return Samples(size, tuple(min(i * up // down, size - 1) for i in range(outputs)))
    if corners:  # the first and the last pixels of both images lie on each other
        up, down = size - 1, max(outputs - 1, 1)
        places = [(i * up, down) for i in range(outputs)]
    else:  # edges do: pixels are squares
        places = [(max((2 * i + 1) * up - down, 0), 2 * down) for i in range(outputs)]
    low = [min(a // b, size - 1) for a, b in places]
    share = tuple(min(max(a - n * b, 0) / b, 1.0) for n, (a, b) in zip(low, places, strict=True))
    return Samples(size, tuple(low), tuple(min(n + 1, size - 1) for n in low), share)


def _sizes(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    n, c, h, w = image_sizes(shape, layout)
    if h < 1 or w < 1:
        raise ValueError(f"`x` must have a height and a width of at least 1, but got {h} x {w}: x.shape = {shape}.")
    return n, c, h, w


def _check_dtype(dtype: str, allowed: tuple[str, ...], what: str) -> None:
    if dtype not in allowed:
        kinds = "a floating dtype" if allowed == FLOATING else "a floating or integer dtype"
        raise TypeError(f"`x` must be of {kinds} ({', '.join(allowed)}) where {what!r} is computed, but got {dtype}.")
