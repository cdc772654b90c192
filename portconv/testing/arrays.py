"""Arrays of any library in every order of memory that it has."""

from __future__ import annotations

import ctypes
import importlib
import math
import mmap
import os
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from .. import array_namespace
from ..core.backend import Backend

__all__ = ["ORDERS_ELSEWHERE", "arranged", "overlap"]

Array = np.ndarray[Any, Any]

# What other libraries than NumPy can make of their own operations; where one has none, the array comes in order.
ORDERS_ELSEWHERE = ("C", "F", "channels last", "flipped", "every second", "broadcast")


def arranged(library: Backend, values: Array, dtype: str, device: str | None, order: str) -> Any:
    """An array of the library with these values, whose memory is in the order of this name; Dask's in ragged chunks.

    "broadcast" repeats the first element of the last axis by a stride of 0: its values are others, but the shape is
    not.
    """

    def make(part: Array) -> Any:
        # a copy, since a library may share NumPy's memory, and the values must stay what they are
        return library.from_numpy(np.array(part), dtype=dtype, device=device)

    if library.name == "numpy":
        return _numpy(values, dtype, order)
    if library.name == "dask":
        return _in_chunks(_elsewhere(make, values, order))
    return _elsewhere(make, values, order)


def _elsewhere(make: Callable[[Array], Any], values: Array, order: str) -> Any:
    """The array that `make` and the library's own operations make of the values."""
    if order == "C" or values.ndim < 2:
        return make(values)
    xp = array_namespace(make(np.zeros(1)))
    axes = {"F": tuple(range(values.ndim))[::-1], "channels last": _channels_last(values.ndim)}.get(order)
    if axes is not None:
        back = tuple(int(axis) for axis in np.argsort(axes))
        return xp.permute_dims(make(np.ascontiguousarray(values.transpose(axes))), back)
    if order == "flipped":
        try:
            return xp.flip(make(values[..., ::-1]), axis=-1)
        except NotImplementedError:  # PyTorch flips no unsigned integers
            return make(values)
    if order == "every second":
        wide = np.full((*values.shape[:-1], 2 * values.shape[-1]), 77, values.dtype)
        wide[..., ::2] = values
        return make(wide)[..., ::2]
    if order == "broadcast" and values.size:
        return xp.broadcast_to(make(values[..., :1]), values.shape)
    return make(values)


def _in_chunks(x: Any) -> Any:
    """Dask's array cut into a few chunks along every axis, ragged ones, the same in every run."""
    rng = np.random.default_rng(x.shape)
    chunks = []
    for size in x.shape:
        cuts = {int(cut) for cut in rng.integers(1, max(size, 2), int(rng.integers(4)))}
        ends = [0, *sorted(cut for cut in cuts if cut < size), size]
        chunks.append(tuple(end - begin for begin, end in pairwise(ends)))
    return x.rechunk(tuple(chunks))


def _channels_last(ndim: int) -> tuple[int, ...]:
    """The order of axes in memory whose second axis, the channels, comes last."""
    return (0, *range(2, ndim), 1) if ndim > 2 else tuple(range(ndim))


@lru_cache(maxsize=1)
def _bfloat16() -> Any:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)


def _numpy(values: Array, dtype: str, order: str) -> Array:
    try:
        wanted = _bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    except ImportError:
        raise TypeError("`dtype` bfloat16 does not exist in NumPy without ml_dtypes.") from None
    x = values.astype(wanted)
    make = _ORDERS.get(order)
    return x if make is None or not x.size else make(x)


def _wide(x: Array) -> Array:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 77, x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _odd(x: Array) -> Array:
    """Axes of one element have strides that mean nothing, which no new array has; slices leave such behind."""
    return x[tuple(slice(None, None, -3 if size == 1 else None) for size in x.shape)]


def _flipped(x: Array) -> Array:
    axes = tuple(range(-min(x.ndim, 2), 0))
    return np.flip(np.ascontiguousarray(np.flip(x, axes)), axes)


def _last(x: Array) -> Array:
    axes = _channels_last(x.ndim)
    return np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))


def _unaligned(x: Array) -> Array:
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    y = memory.view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def _read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


def _swapped(x: Array) -> Array:
    return x.astype(x.dtype.newbyteorder()) if x.dtype.isbuiltin == 1 else x


def _at_page(x: Array, end: bool) -> Array:
    """The array in memory whose neighbouring page cannot be read; whoever reads beyond it is killed."""
    page = mmap.PAGESIZE
    pages = -(-x.nbytes // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    inside = np.frombuffer(memory, np.uint8)[page : (pages + 1) * page]
    some = inside[len(inside) - x.nbytes :] if end else inside[: x.nbytes]
    y = some.view(x.dtype).reshape(x.shape)
    y[...] = x
    if os.name == "posix":  # Windows has no page of this kind in its libraries' own words
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        start = inside.ctypes.data
        for edge in (start - page, start + pages * page):
            protect(ctypes.c_void_p(edge), ctypes.c_size_t(page), 0)
    return y


_ORDERS: dict[str, Callable[[Array], Array]] = {
    "F": np.asfortranarray,
    "channels last": _last,
    "flipped": _flipped,
    "every second": _wide,
    "odd strides": _odd,
    "broadcast": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "unaligned": _unaligned,
    "read-only": _read_only,
    "swapped bytes": _swapped,
    "page end": lambda x: _at_page(x, end=True),
    "page start": lambda x: _at_page(x, end=False),
}


def overlap(y: Any, x: Any) -> bool:
    """Whether two arrays have memory in common, where their library lets it be seen."""
    a, b = _extent(y), _extent(x)
    return a is not None and b is not None and max(a[0], b[0]) < min(a[1], b[1])


def _extent(x: Any) -> tuple[int, int] | None:
    """The addresses of the first byte and of the one after the last."""
    if hasattr(x, "data_ptr") and x.device.type == "cpu":  # PyTorch
        if math.prod(x.shape) == 0:
            return None
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
    if isinstance(x, np.ndarray):
        return np.lib.array_utils.byte_bounds(x) if x.size else None
    try:
        view = np.asarray(memoryview(x))
    except (TypeError, ValueError, BufferError):
        return None
    return _extent(view)
