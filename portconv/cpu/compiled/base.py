"""What the plans of all compiled engines share: the memory of arrays as the kernels see it, and the call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from ...core.backend import EnginePlan, PackedWeight
from ...core.problem import Problem
from ...core.shapes import axis_source
from ..threads import ALIGNMENT
from ..views import strided
from . import team
from .costs import CompiledCosts
from .epilogue import records

__all__ = [
    "CACHE_BYTES",
    "Array",
    "Ints",
    "Launch",
    "CompiledPlan",
    "contiguous",
    "even_width",
    "per_thread",
    "read_only",
    "round_up",
    "sources",
]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]
Launch: TypeAlias = Callable[..., None]  # runs a job, as `team.launch` does

CACHE_BYTES = 256 << 10  # of one core's second cache, for the window of a strip
ALIGNED_BYTES = 1 << 20  # of a result


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def flat(x: Array, dtype: np.dtype[Any], layout: str) -> tuple[Array, Ints]:
    """The image as a flat array in the dtype of the computation, and its strides (B, C, H, W) in elements."""
    if x.dtype != dtype:
        with np.errstate(all="ignore"):
            x = x.astype(dtype)
    if not x.flags.aligned:
        x = x.copy()
    elif not x.flags.c_contiguous and not all(s > 0 and s % x.itemsize == 0 for s in x.strides):
        x = np.ascontiguousarray(x)
    if x.flags.c_contiguous:
        flat = x.reshape(-1)
        flat.flags.writeable = False  # one type, whatever the caller's array is
    else:
        extent = 1 + sum((n - 1) * (s // x.itemsize) for n, s in zip(x.shape, x.strides, strict=True))
        flat = strided(x, (extent,), (x.itemsize,))
    return flat, strides_of(x, layout)


def strides_of(x: Array, layout: str) -> Ints:
    """Strides (B, C, H, W) in elements.

    NumPy allows an axis of one element any stride, also in an array that it calls contiguous: the strides of one that
    is follow from its shape.
    """
    if x.flags.c_contiguous:
        _, second, third, last = x.shape
        strides = second * third * last, third * last, last, 1
    else:
        size, (first, second, third, last) = x.itemsize, x.strides
        strides = first // size, second // size, third // size, last // size
    return (strides[0], strides[3], strides[1], strides[2]) if layout == "NHWC" else strides


def sources(p: Problem) -> tuple[Array, Array]:
    """Where each row, and each column, of the padded image comes from; -1 for zeros."""
    top, bottom, left, right = p.padding
    rows = _axis_sources(p.height, top, bottom, p.padding_mode)
    return rows, _axis_sources(p.width, left, right, p.padding_mode)


def _axis_sources(size: int, before: int, after: int, mode: str) -> Array:
    source = axis_source(slice(-before, size + after), size, before, after, mode)
    lead, trail = ([-1 if i is None else i for i in part] for part in (source.lead, source.trail))
    inner = np.arange(source.inner.start, source.inner.stop)
    return read_only(np.concatenate([lead, inner, trail]).astype(np.int64))


@dataclass(frozen=True)
class CompiledPlan(EnginePlan):
    """What the compiled engines share: the result is made here, and the kernels fill it in."""

    tables: tuple[Array, ...] = ()  # what the kernels look up, in the order of their arguments
    parts: int = 1
    scratch: int = 0  # elements of scratch memory: of each thread, or of all in `winograd`

    @classmethod
    def make(cls, p: Problem) -> CompiledPlan | None:
        """The plan of a problem, or None where the engine has no compiled form for it."""
        raise NotImplementedError  # abstract: every engine has its own

    @cached_property  # every call needs it, and NumPy takes a while to make one of a name
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the computation."""
        return np.dtype(self.problem.compute_dtype)

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled"

    @property
    def if_separable(self) -> float | None:
        """See `Candidate`."""
        return None

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate."""
        raise NotImplementedError  # abstract: every engine has its own

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, *, out: Any = None) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, dtype = self.problem, self.dtype
        y = out if _writable(out, p) else _aligned(p.out_shape, dtype)
        if y.size:
            memory, strides = flat(x, dtype, p.layout)
            epilogue = records(bias, p, dtype)
            self.fill(memory, strides, y.reshape(-1), strides_of(y, p.layout), weight.data, epilogue, team.launch)
        if y is out or (out is None and y.dtype == p.dtype):
            return y
        out = np.empty(p.out_shape, p.dtype) if out is None else out
        with np.errstate(all="ignore"):  # an overflow of float16 is infinity, and no warning
            np.copyto(out, y, casting="unsafe")
        return out

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Compute the result into `y`, by kernels that `launch` runs."""
        raise NotImplementedError  # abstract: every engine has its own

    def warmup(self) -> tuple[str, ...]:
        p, dtype, compiled = self.problem, self.dtype, list[str]()

        def compile_job(*arguments: Any) -> None:
            compiled.extend(team.compile_ahead(*arguments))

        # Kernels are compiled for the types of their arguments: arrays of no elements do, and tell all strides.
        x, y = (np.empty((0, *shape[1:]), dtype) for shape in (p.x_shape, p.out_shape))
        memory, strides = flat(x, dtype, p.layout)
        data, epilogue = self.packed_like(memory), records(None, p, dtype)
        self.fill(memory, strides, y.reshape(-1), strides_of(y, p.layout), data, epilogue, compile_job)
        return tuple(compiled)

    def packed_like(self, memory: Array) -> Any:
        """What the data of a packed weight would be, were this array its memory."""
        return memory


def _writable(out: Array | None, p: Problem) -> bool:
    """Whether the kernels can write into it: vectors may be stored past the caches."""
    return (
        out is not None and out.dtype == p.compute_dtype and out.flags.c_contiguous and out.ctypes.data % ALIGNMENT == 0
    )


def _aligned(shape: Ints, dtype: np.dtype[Any]) -> Array:
    """A new array, of which large ones begin where a vector may be stored past the caches."""
    size = math.prod(shape) * dtype.itemsize
    if size < ALIGNED_BYTES:
        return np.empty(shape, dtype)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def contiguous(x: Array, strides: Ints, p: Problem) -> tuple[Array, Ints]:
    """A copy (B, C, H, W), for views whose rows are not runs in memory, where a kernel reads the image in place."""
    shape = (p.batch, p.in_channels, p.height, p.width)
    copy = np.ascontiguousarray(strided(x, shape, [s * x.itemsize for s in strides]))
    return read_only(copy.reshape(-1)), strides_of(copy, "NCHW")


def read_only(x: Array) -> Array:
    """The same array: kernels are compiled for arrays that nobody writes to."""
    x.flags.writeable = False
    return x


def even_width(widths: Ints, columns: int) -> int:
    """The width of tiles that computes the fewest columns too many; a tile costs about a column in itself."""
    return min(widths, key=lambda width: -(-columns // width) * (width + 1))


def per_thread(parts: int, tasks: int) -> float:
    """The share of the work that the busiest thread has."""
    return -(-tasks // parts) / tasks if tasks else 1.0
