"""Memory order: a result that is a view of memory in another order stays one, through the functions of a namespace.

An NCHW result of `mx.conv2d` is a view of NHWC memory. MLX keeps an array's memory order in functions of one array, but
writes what it makes of two such arrays, or reduces, in the order of the axes (mlx/backend/common/binary.h), and the
next convolution would have to copy it. Here such functions are applied to the arrays as they lie in memory. Arrays of
MLX have no strides before they have values, so the order is noted beside the array, for as long as it lives.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["elementwise", "note", "order_of", "reduction", "reshaping"]

Order = tuple[int, ...]  # the permutation of the axes after which an array is contiguous

_noted: dict[int, tuple[weakref.ref[Any], Order]] = {}


def note(x: Any, order: Iterable[int]) -> Any:
    """`x`, of which is remembered from now on that it lies in memory in this order."""
    key = id(x)

    def forget(ref: weakref.ref[Any]) -> None:
        if key in _noted and _noted[key][0] is ref:
            del _noted[key]

    _noted[key] = (weakref.ref(x, forget), tuple(order))
    return x


def order_of(x: Any) -> Order | None:
    """The order that was noted, if the array still has as many axes: operators in place change it."""
    if (found := _noted.get(id(x))) is None:
        return None
    ref, order = found
    return order if x.ndim == len(order) and ref() is x else None


def _inverse(order: Order) -> Order:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays and scalars, in the order of the first of the largest arrays, if one was noted."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _noted:
            return function(*args, **kwargs)
        size = max((getattr(a, "size", 0) for a in args), default=0)
        orders = [order_of(a) for a in args if getattr(a, "size", 0) == size]
        order = next((o for o in orders if o is not None), None)
        others = any(getattr(a, "ndim", 0) for a in kwargs.values())
        if order is None or others or not _alike([a.shape for a in args if getattr(a, "ndim", 0)]):
            return function(*args, **kwargs)
        moved = [a.transpose(order) if getattr(a, "ndim", 0) else a for a in args]
        return note(function(*moved, **kwargs).transpose(_inverse(order)), order)

    return call


def _alike(shapes: list[tuple[int, ...]]) -> bool:
    """Whether arrays of these shapes combine axis by axis."""
    if len({len(shape) for shape in shapes}) > 1:
        return False
    return all(len({size for size in sizes if size != 1}) <= 1 for sizes in zip(*shapes, strict=True))


def reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with `axis` and `keepdims`."""

    @functools.wraps(function)
    def call(x: Any, /, *, axis: Any = None, keepdims: bool = False, **kwargs: Any) -> Any:
        order = order_of(x)
        axes = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        if order is None or not axes or not all(isinstance(a, int) and -x.ndim <= a < x.ndim for a in axes):
            return function(x, axis=axis, keepdims=keepdims, **kwargs)
        axes = tuple(a % x.ndim for a in axes)
        result = function(x.transpose(order), axis=tuple(order.index(a) for a in axes), keepdims=keepdims, **kwargs)
        left = [a for a in order if keepdims or a not in axes]
        after = tuple(sorted(left).index(a) for a in left)
        return note(result.transpose(_inverse(after)), after) if after else result

    return call


def reshaping(function: Callable[..., Any]) -> Callable[..., Any]:
    """`reshape`, where it splits axes, as pooling does."""

    @functools.wraps(function)
    def call(x: Any, /, shape: Any, **kwargs: Any) -> Any:
        order = order_of(x)
        sizes = None if order is None or isinstance(shape, int) else _whole(x, shape)
        parts = None if sizes is None else _splits(x.shape, sizes)
        if order is None or sizes is None or parts is None:
            return function(x, shape, **kwargs)
        after = tuple(place for axis in order for place in parts[axis])
        result = function(x.transpose(order), tuple(sizes[place] for place in after), **kwargs)
        return note(result.transpose(_inverse(after)), after)

    return call


def _whole(x: Any, shape: Any) -> list[int] | None:
    """The shape with its -1 filled in; None where `reshape` should say what is wrong with it."""
    sizes = list(shape)
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and known > 0:
        sizes[sizes.index(-1)] = x.size // known
    return sizes if min(sizes, default=0) > 0 and math.prod(sizes) == x.size else None


def _splits(old: Iterable[int], new: list[int]) -> list[list[int]] | None:
    """For each old axis the new ones that it becomes, or None if some become one."""
    parts: list[list[int]] = []
    place = 0
    for size in old:
        part, product = [], 1
        while product < size and place < len(new):
            product *= new[place]
            part.append(place)
            place += 1
        if product != size:
            return None
        parts.append(part)
    parts[-1] += range(place, len(new))  # ones
    return parts
