"""What the plans of all compiled engines share: the memory of arrays as the kernels see it, and the call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from ...core.backend import EnginePlan, PackedWeight
from ...core.problem import Problem
from ...core.shapes import axis_source
from .. import threads
from ..caches import cache_bytes
from ..threads import ALIGNMENT
from ..views import BFLOAT16_BITS
from . import team
from .activations import RESIDUAL, call_words
from .conversions import UNALIGNED, kind_of
from .costs import CompiledCosts
from .epilogue import neutral_records, with_call

__all__ = [
    "CACHE_BYTES",
    "Array",
    "Ints",
    "Launch",
    "CompiledPlan",
    "compiled_by",
    "even_width",
    "first_of",
    "may_stream",
    "memory_of",
    "one_array",
    "per_thread",
    "read_only",
    "round_up",
    "sources",
    "usual_numbers",
]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]
Launch: TypeAlias = Callable[..., None]  # runs a job, as `team.launch` does

# Of one core's second cache, for the window of a strip: a quarter, since weights and results pass through it as well.
# More than this has gained nothing where it is larger: benchmarks/README.md has the figures.
CACHE_BYTES = min(256 << 10, cache_bytes(2) // 4 or 256 << 10)
ALIGNED_BYTES = 1 << 20  # of a result


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def memory_of(x: Array, layout: str, dtype: np.dtype[Any], usual: Ints) -> tuple[Array, Ints]:
    """An image or a result as the kernels see it, so that one compilation serves all dtypes and memory orders.

    `usual` are the numbers that it has if it is as most are: see `usual_numbers`.

    Returns
    -------
    memory : array
        A flat one of the dtype of the computation, whatever `x` is, that begins with the first element of `x`.
    numbers : tuple of int
        The kind of the numbers (see conversions.py), the bytes from the first element to the end of the memory, and the
        strides (B, C, H, W) in bytes, of any sign.
    """
    flags = x.flags
    if flags.c_contiguous and flags.aligned and x.dtype == dtype:
        return x.ravel(), usual
    kind = kind_of(x.dtype) if flags.aligned else kind_of(x.dtype) | UNALIGNED
    if flags.c_contiguous:
        # NumPy allows an axis of one element any stride, also in an array that it calls contiguous
        return first_of(x, dtype), _numbers(kind, x.nbytes, _strides(x.shape, x.itemsize), layout)
    nbytes = x.itemsize + sum([(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True) if s > 0])
    return first_of(x, dtype), _numbers(kind, nbytes, x.strides, layout)


def usual_numbers(shape: Ints, layout: str, dtype: np.dtype[Any]) -> Ints:
    """The numbers of memory in C order, aligned and of this dtype, which is that of the computation."""
    size = dtype.itemsize
    return _numbers(kind_of(dtype), math.prod(shape) * size, _strides(shape, size), layout)


def _strides(shape: Ints, size: int) -> Ints:
    """Those of C order."""
    _, second, third, last = shape
    return second * third * last * size, third * last * size, last * size, size


def _numbers(kind: int, nbytes: int, strides: Ints, layout: str) -> Ints:
    first, second, third, fourth = strides
    return (kind, nbytes, first, fourth, second, third) if layout == "NHWC" else (kind, nbytes, *strides)


def first_of(x: Array, dtype: np.dtype[Any]) -> Array:
    """One element of this dtype where the first one of `x` is: it says where that is, and nobody reads it."""
    memory: Any = (ctypes.c_char * dtype.itemsize).from_address(x.ctypes.data)
    return np.frombuffer(memory, dtype)


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

    geometry: Ints = ()  # numbers that the kernels work by
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

    @cached_property
    def result_dtype(self) -> np.dtype[Any]:
        """The dtype of the result; the bits of bfloat16 where nobody has given that to NumPy."""
        try:
            return np.dtype(self.problem.result_dtype)
        except TypeError:
            return BFLOAT16_BITS

    @cached_property
    def usual_x(self) -> Ints:
        """The numbers of an image as most are; see `memory_of`."""
        return usual_numbers(self.problem.x_shape, self.problem.layout, self.dtype)

    @cached_property
    def usual_y(self) -> Ints:
        """The same of a result."""
        return usual_numbers(self.problem.out_shape, self.problem.layout, self.dtype)

    def numbers(self, x: Ints, y: Ints, geometry: Ints) -> Array:
        """Those of the image, of the result and of the geometry, for `call_numbers`: Numba takes arrays sooner."""
        if x is self.usual_x and y is self.usual_y and geometry is self.geometry:
            return self._usual_numbers
        return read_only(np.array((*x, *y, *geometry), np.int64))

    @cached_property
    def _usual_numbers(self) -> Array:
        return read_only(np.array((*self.usual_x, *self.usual_y, *self.geometry), np.int64))

    @cached_property
    def neutral(self) -> Array:
        """The records of a call without a bias."""
        return read_only(neutral_records(self.problem.out_channels, self.dtype))

    @cached_property
    def result_bytes(self) -> int:
        """The size of the result."""
        return math.prod(self.problem.out_shape) * self.result_dtype.itemsize

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled"

    @property
    def if_separable(self) -> float | None:
        """See `Candidate`."""
        return None

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate of a call, without packing."""
        raise NotImplementedError  # abstract: every engine has its own

    @property
    def packed_size(self) -> int:
        """Elements of a packed weight."""
        return math.prod(self.problem.weight_shape)

    def estimate(self, costs: CompiledCosts) -> float:
        """The estimate, with packing where a weight is packed for one call."""
        packing = self.packed_size * costs.packed / threads.get_num_threads() if self.problem.packed_once else 0.0
        return self.seconds(costs) + packing

    @cached_property
    def call(self) -> Array | None:
        """What the records say of a call, but for its residual; None where there is a bias at most."""
        following = self.problem.epilogue
        if following == following.linear:
            return None
        return call_words(following.activation, self.problem.compute_dtype)

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        p = self.problem
        return residual is None or (self.adds_residuals and p.result_dtype == p.compute_dtype)

    @property
    def adds_residuals(self) -> bool:
        """Whether sums are finished where they are stored, in the usual order of memory."""
        return self.problem.layout == "NCHW"

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p = self.problem
        usable = out is not None and _writable(out) and (residual is None or out.flags.c_contiguous)
        y = out if usable else _new(p.out_shape, self.result_dtype, self.result_bytes)
        if y.size:
            call = self.call
            if residual is not None and call is not None:
                residual, call = np.ascontiguousarray(residual, self.dtype), np.array(call)
                call[RESIDUAL] = residual.ctypes.data - y.ctypes.data
            self._compute(x, y, weight, self._records(bias, call))
        if out is None or y is out:
            return y
        np.copyto(out, y)
        return out

    def ready(self, weight: PackedWeight, bias: Any = None, /) -> Callable[..., Any]:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        shape, records, layout = self.problem.out_shape, self._records(bias, self.call), self.problem.layout
        dtype, usual_x, usual_y, data = self.dtype, self.usual_x, self.usual_y, weight.data
        usual = self.result_dtype == dtype
        repeat: Callable[[Array, Array], None] | None = None  # of images as most are, once there was one
        spare = list[tuple[Array, Array]]()  # records with words of their own, as many as threads have called at once

        def run(x: Any, residual: Any = None) -> Any:
            nonlocal repeat
            y = _new(shape, self.result_dtype, self.result_bytes)
            if not y.size:
                return y
            if residual is None:
                memory, numbers = memory_of(x, layout, dtype, usual_x)
                if repeat is not None and numbers is usual_x:
                    repeat(read_only(memory), y.ravel())
                    return y
                y_memory, y_numbers = (y.ravel(), usual_y) if usual else memory_of(y, layout, dtype, usual_y)
                launched = list[Any]()

                def launch(*given: Any) -> None:
                    launched.append(given)
                    team.launch(*given)

                self.fill(read_only(memory), numbers, y_memory, y_numbers, data, records, launch)
                if usual and numbers is usual_x and len(launched) == 1:
                    repeat = _repeated(memory, y_memory, *launched[0])
                return y
            try:
                words, own = spare.pop()
            except IndexError:
                words = np.array(self.call)
                own = self._records(bias, words)
            residual = np.ascontiguousarray(residual, self.dtype)
            words[RESIDUAL] = residual.ctypes.data - y.ctypes.data
            self._compute(x, y, weight, own)
            spare.append((words, own))
            return y

        return run

    def _records(self, bias: Any, call: Array | None) -> Array:
        """What the kernels apply to sums; `call` must live as long."""
        if bias is None and call is None:
            return self.neutral
        return read_only(with_call(self.neutral, self.problem.out_channels, bias, call))

    def _compute(self, x: Array, y: Array, weight: PackedWeight, records: Array) -> None:
        """Compute the result into `y`, which has elements."""
        memory, numbers = memory_of(x, self.problem.layout, self.dtype, self.usual_x)
        y_memory, y_numbers = memory_of(y, self.problem.layout, self.dtype, self.usual_y)
        self.fill(read_only(memory), numbers, y_memory, y_numbers, weight.data, records, team.launch)

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Compute the result into the memory `y`, by kernels that `launch` runs; see `memory_of`."""
        raise NotImplementedError  # abstract: every engine has its own

    def warmup(self) -> tuple[str, ...]:
        p = self.problem
        # Kernels are compiled for the types of their arguments: arrays of no elements do, and tell all strides.
        x, y = np.empty((0, *p.x_shape[1:]), self.dtype), np.empty((0, *p.out_shape[1:]), self.result_dtype)
        memory, numbers = memory_of(x, p.layout, self.dtype, self.usual_x)
        memory, y_memory = read_only(memory), memory_of(y, p.layout, self.dtype, self.usual_y)
        data = self.packed_like(read_only(np.empty(0, self.dtype)))
        return compiled_by(lambda launch: self.fill(memory, numbers, *y_memory, data, self.neutral, launch))

    def packed_like(self, memory: Array) -> Any:
        """What the data of a packed weight would be, were this array its memory."""
        return memory


def _repeated(x: Array, y: Array, job: Any, parts: int, *arguments: Any) -> Callable[[Array, Array], None] | None:
    """The launch of a job again, for other images and results in the place of `x` and `y`; None where it has others."""
    first, second, *between, last = arguments
    if first is not x or second is not y or last is not threads.scratch(0, y.dtype):
        return None
    elements, dtype = last.size, y.dtype
    return lambda x, y: team.launch(job, parts, x, y, *between, threads.scratch(elements, dtype))


def compiled_by(work: Callable[[Launch], object]) -> tuple[str, ...]:
    """The names of kernels that had to be compiled for what `work` launches; nothing is run."""
    compiled = list[str]()

    def compile_job(*arguments: Any) -> None:
        compiled.extend(team.compile_ahead(*arguments))

    work(compile_job)
    return tuple(compiled)


def _writable(out: Array) -> bool:
    """Whether the kernels can write into it."""
    return bool(out.flags.aligned and out.flags.writeable and out.dtype.isnative)


def may_stream(y: Array, y_strides: Ints, p: Problem) -> bool:
    """Whether vectors may be stored past the caches: at aligned addresses, in rows that follow each other."""
    oh, ow = p.out_size
    plane = oh * ow * p.itemsize
    in_order = y_strides[2:] == (p.out_channels * plane, plane, ow * p.itemsize, p.itemsize)
    return in_order and y.ctypes.data % ALIGNMENT == 0


def _new(shape: Ints, dtype: np.dtype[Any], nbytes: int) -> Array:
    """A new array, of which large ones begin where a vector may be stored past the caches."""
    if nbytes < ALIGNED_BYTES:
        return np.empty(shape, dtype)
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def read_only(x: Array) -> Array:
    """The same array: kernels are compiled for arrays that nobody writes to."""
    x.setflags(False)  # type: ignore[call-arg]  # by its name it takes twice as long
    return x


def one_array(*tables: Array) -> Array:
    """Tables of integers one after the other, for `table`: first comes where each begins, and where the last ends.

    Numba takes a tenth of a microsecond for every array that it is given.
    """
    ends = np.cumsum([len(tables) + 1, *(table.size for table in tables)])
    return read_only(np.concatenate([ends, *(table.reshape(-1) for table in tables)]).astype(np.int64, copy=False))


def even_width(widths: Ints, columns: int) -> int:
    """The width of tiles that computes the fewest columns too many; a tile costs about a column in itself."""
    return min(widths, key=lambda width: -(-columns // width) * (width + 1))


def per_thread(parts: int, tasks: int) -> float:
    """The share of the work that the busiest thread has."""
    return -(-tasks // parts) / tasks if tasks else 1.0
