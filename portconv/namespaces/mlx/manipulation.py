"""Shapes, order, selection: what moves elements and computes none."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from .dtypes import INDEX, operands, result_type

__all__ = [
    "argsort", "broadcast_arrays", "broadcast_shapes", "broadcast_to", "concat", "expand_dims", "flip", "isin",
    "moveaxis", "nonzero", "permute_dims", "repeat", "reshape", "roll", "searchsorted", "sort", "squeeze", "stack",
    "take", "take_along_axis", "tile", "unique_all", "unique_counts", "unique_inverse", "unique_values", "unstack",
]  # fmt: skip


def broadcast_arrays(*arrays: Any) -> tuple[Any, ...]:
    shape = broadcast_shapes(*(a.shape for a in arrays))
    return tuple(mx.broadcast_to(a, shape) for a in arrays)


def broadcast_shapes(*shapes: Any) -> tuple[int, ...]:
    return tuple(mx.broadcast_shapes(*shapes)) if shapes else ()


def broadcast_to(x: Any, /, shape: Any) -> Any:
    return mx.broadcast_to(x, shape)


def concat(arrays: Any, /, *, axis: int | None = 0) -> Any:
    dtype = result_type(*arrays)
    return mx.concatenate(
        [a.astype(dtype) if axis is not None else a.astype(dtype).reshape(-1) for a in arrays], axis or 0
    )


def expand_dims(x: Any, /, axis: Any = 0) -> Any:
    return mx.expand_dims(x, axis)


def flip(x: Any, /, *, axis: Any = None) -> Any:
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    flipped = {_axis(x, a) for a in axes}
    return x[tuple(slice(None, None, -1 if a in flipped else 1) for a in range(x.ndim))] if x.ndim else mx.positive(x)


def _axis(x: Any, axis: int, name: str = "axis") -> Any:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"`{name}` is {axis}, but `x` has {x.ndim} dimensions.")
    return axis % x.ndim


def moveaxis(x: Any, source: Any, destination: Any, /) -> Any:
    sources = (source,) if isinstance(source, int) else tuple(source)
    places = (destination,) if isinstance(destination, int) else tuple(destination)
    if len(sources) != len(places):
        raise ValueError(f"`source` names {len(sources)} axes, but `destination` {len(places)}; they must be as many.")
    moved = dict(
        zip((_axis(x, a, "destination") for a in places), (_axis(x, a, "source") for a in sources), strict=True)
    )
    rest = iter([a for a in range(x.ndim) if a not in moved.values()])
    return mx.transpose(x, [moved[a] if a in moved else next(rest) for a in range(x.ndim)])


def permute_dims(x: Any, /, axes: Any) -> Any:
    return mx.transpose(x, axes)


def reshape(x: Any, /, shape: Any, *, copy: bool | None = None) -> Any:
    # arrays of MLX never share what one of them changes, so a copy and a view are the same
    return mx.reshape(x, shape)


def repeat(x: Any, repeats: Any, /, *, axis: int | None = None) -> Any:
    if axis is None:
        x, axis = x.reshape(-1), 0
    if isinstance(repeats, int):
        return mx.repeat(x, repeats, axis)
    counts = np.broadcast_to(np.array(repeats), (x.shape[axis],))  # the shape of the result depends on them
    return mx.take(x, mx.array(np.repeat(np.arange(x.shape[axis]), counts)), axis)


def roll(x: Any, /, shift: Any, *, axis: Any = None) -> Any:
    if axis is None:
        return _rolled(x.reshape(-1), shift, 0).reshape(x.shape)
    shifts = (shift,) if isinstance(shift, int) else tuple(shift)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    shifts = shifts * len(axes) if len(shifts) == 1 else shifts
    for one, place in zip(shifts, axes, strict=True):
        x = _rolled(x, one, _axis(x, place))
    return x


def _rolled(x: Any, shift: int, axis: int) -> Any:
    size = x.shape[axis]
    return mx.roll(x, shift % size, axis) if size else mx.positive(x)


def squeeze(x: Any, /, axis: Any) -> Any:
    return mx.squeeze(x, axis)


def stack(arrays: Any, /, *, axis: int = 0) -> Any:
    dtype = result_type(*arrays)
    return mx.stack([a.astype(dtype) for a in arrays], axis)


def tile(x: Any, repetitions: Any, /) -> Any:
    return mx.tile(x, repetitions)


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
    axis = _axis(x, axis)
    return tuple(x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis]))


# --- selection and order ----------------------------------------------------------------------------------------------


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    if axis is None and x.ndim != 1:
        raise ValueError(f"`axis` must be given, since `x` has {x.ndim} dimensions.")
    return mx.take(x, indices, 0 if axis is None else axis)


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Any:
    axis = _axis(x, axis)
    shape = mx.broadcast_shapes(*((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in (x, indices)))
    x, indices = (mx.broadcast_to(a, (*shape[:axis], a.shape[axis], *shape[axis + 1 :])) for a in (x, indices))
    return mx.take_along_axis(x, indices, axis)


def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    if x.ndim == 0:
        raise ValueError("`x` must have at least one dimension to be sorted along.")
    ordered = mx.sort(x, axis)
    return flip(ordered, axis=axis) if descending else ordered


def argsort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    if x.ndim == 0:
        raise ValueError("`x` must have at least one dimension to be sorted along.")
    if not descending:
        return mx.argsort(x, axis).astype(INDEX)
    # from the back, so that equal elements keep their order
    order = mx.argsort(flip(x, axis=axis), axis).astype(INDEX)
    return flip(x.shape[axis] - 1 - order, axis=axis)


def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None) -> Any:
    x1, x2 = operands(x1, x2)
    x1 = x1 if sorter is None else mx.take(x1, sorter)
    return mx.searchsorted(x1, x2, side=side).astype(INDEX)


def isin(x1: Any, x2: Any, /, *, invert: bool = False) -> Any:
    x1, x2 = operands(x1, x2)
    if not x2.size:
        return mx.full(x1.shape, invert)
    # where each element would stand among those of x2 stands its equal, or it has none: no table of all pairs
    among = mx.sort(x2.reshape(-1))
    places = mx.minimum(mx.searchsorted(among, x1), among.size - 1)
    nearest = mx.take(among, places)
    return nearest != x1 if invert else nearest == x1


# --- what has a shape that depends on values --------------------------------------------------------------------------


def _refused(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"`{name}`: the shape of its result depends on the values of `x`, which MLX cannot express; "
        f"compute it with NumPy, numpy.asarray(x)."
    )


def nonzero(x: Any, /) -> Any:
    raise _refused("nonzero")


def unique_all(x: Any, /) -> Any:
    raise _refused("unique_all")


def unique_counts(x: Any, /) -> Any:
    raise _refused("unique_counts")


def unique_inverse(x: Any, /) -> Any:
    raise _refused("unique_inverse")


def unique_values(x: Any, /) -> Any:
    raise _refused("unique_values")
