"""MLX: its own convolution, portconv's engines in MLX's operations, and on a CPU device NumPy's over MLX's own memory.

MLX computes in NHWC with OHWI weights. An NCHW array is handed over as a transposed view, and an NCHW result is a view
of NHWC memory, so a chain of layers transposes nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .. import engines
from ..backend import ArrayInfo, Candidate, EnginePlan, PackedWeight, Plan
from ..cpu.bridge import bridged, host_candidates, numpy_plan
from ..cpu.host import host_environment, version
from ..engines.costs import Costs
from ..errors import UnsupportedError
from ..layout import NCHW_FROM_NHWC, NHWC_FROM_NCHW
from ..shapes import ranges
from ..spec import Problem
from ..steps import Block, Steps, accumulate

__all__ = ["MlxBackend", "backend"]

MAX_ELEMENTS = 2**31 - 1  # beyond, MLX's own index arithmetic was seen to overflow (mlx issues 3248, 3327, 3611)
# On GPUs: kernels from 182x182 on were seen to be wrong (mlx issue 2504), and so were Winograd's results where its
# workspace, some four times the image, was more than the device had (mlx issue 3979). Larger batches go in parts.
MAX_GPU_TAPS = 2**15 - 1
MAX_TRACED_TAPS = 4096  # each is an operation that MLX has to compile
ALIGNMENT = 64  # bytes, of the compiled engines
WRITTEN_BYTES = 4 << 20  # of a result that is written into MLX's memory: smaller ones are copied sooner
MAX_GPU_PART = 2**28  # elements of the padded images and results of a part
# MLX's CPU build adds the terms of a sum one after the other, so long sums are cut, as in engines/gemm.py.
CPU_MAX_TERMS = 192
# It also unfolds the image as a whole, and an allocation that fails ends the process: large images go in strips.
CPU_MAX_UNFOLDED = 2**26  # elements
# What MLX's operations cost, to rank them. Its CPU build for Linux has a reference BLAS, measured on two cores of an
# AMD EPYC (Zen 4); nothing was measured on a GPU, where `strategy="measure"` knows better.
CPU_FLOP, GPU_FLOP = 4.6e-10, 2e-13  # of mx.conv2d
CPU_COSTS = Costs(gemm_flop=2.1e-10, fft_flop=2e-10, element=2e-10, row=1e-9, call=2e-5, task=1e-4, threads=1)
GPU_COSTS = Costs(gemm_flop=3e-13, fft_flop=2e-12, element=5e-11, row=1e-10, call=1e-5, task=3e-4, threads=1)
TOO_LARGE = "beyond 2**31 - 1 elements MLX's indices overflow; split the batch"
TF32 = "TF32 where the GPU has it (CUDA, M5), unless MLX_ENABLE_TF32=0 is set before MLX is imported"


class MlxBackend:
    """See `portconv.backend.Backend`. MLX arrays have no device: it is the default device at the time of the call."""

    name = "mlx"

    def describe(self, x: Any, /) -> ArrayInfo:
        if not isinstance(x, mx.array):
            raise TypeError(f"expected an mlx.core.array, but got {type(x).__name__}.")
        return ArrayInfo(x.shape, str(x.dtype).rpartition(".")[2], _device())

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        native = _native_candidate(problem)
        if problem.device == "cpu":
            return [native, *host_candidates(problem)]
        return [native, *_gpu_candidates(problem)]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        if engine == "native":
            return NativePlan(problem, "native", 0)
        if problem.device != "cpu":
            inner = engines.build(problem, engine, _STEPS, GPU_COSTS)
            return OpsPlan(problem, engine, inner.workspace_bytes, inner=inner, traced=_traced_plan(problem))
        inner = numpy_plan(bridged(problem), engine)
        return BridgePlan(problem, engine, inner.workspace_bytes, inner=inner, traced=_traced_plan(problem))

    def cache_token(self, weight: Any, /) -> Hashable | None:
        return None  # `weight[...] = value` shows nowhere

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        if device not in (None, "cpu", "gpu"):
            raise ValueError(f"`device` must be None, 'cpu' or 'gpu' for the backend 'mlx', but got {device!r}.")
        name = dtype or np.asarray(x).dtype.name
        x = np.asarray(x, dtype="float32" if name == "bfloat16" else name)  # in the machine's byte order, too
        return mx.array(x, dtype=_dtype(name))  # without a dtype MLX makes float32 of float64

    def to_numpy(self, x: Any, /) -> np.ndarray[Any, Any]:
        return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)

    def synchronize(self, x: Any, /) -> None:
        mx.eval(x)

    def environment(self, problem: Problem, /) -> dict[str, str]:
        here = host_environment() if problem.device == "cpu" else {"gpu": _gpu()}
        return {"mlx": version("mlx"), **here}


def _gpu() -> str:
    """What MLX calls the hardware."""
    info = mx.device_info(mx.gpu) if hasattr(mx, "device_info") else mx.metal.device_info()
    return str(info.get("device_name") or info.get("architecture"))


def _device() -> str:
    return "gpu" if mx.default_device().type == mx.gpu else "cpu"


def _dtype(name: str) -> Any:
    return mx.bool_ if name == "bool" else getattr(mx, name)


# --- mx.conv2d --------------------------------------------------------------------------------------------------------


def _native_candidate(p: Problem) -> Candidate:
    """Offered only where MLX is known to be right."""
    why_not, flop, note = None, CPU_FLOP if p.device == "cpu" else GPU_FLOP, ""
    if p.dtype == "float64":
        why_not = "mx.conv2d computes float64 in float32"
    elif p.accuracy == "elementwise":
        why_not = "MLX does not bound the error of its sums element by element"
    elif max(_elements(p)) > MAX_ELEMENTS:
        why_not = TOO_LARGE
    elif p.device != "cpu" and p.kernel[0] * p.kernel[1] > MAX_GPU_TAPS:
        why_not = f"MLX's GPU kernels were seen to be wrong with more than {MAX_GPU_TAPS} taps"
    elif p.device != "cpu" and p.groups > 1 and p.stride != (1, 1) and _version() < (0, 32):
        why_not = "before MLX 0.32 its gradients are wrong on Metal with groups and a stride"  # mlx pull request 3800
    elif p.device != "cpu" and p.dtype == "float32" and _may_use_tf32():
        note = TF32
    return Candidate("native", 1e-4 + p.flops * flop, why_not=why_not, note=note)


@lru_cache(maxsize=1)
def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version("mlx"))[:2])


def _may_use_tf32() -> bool:
    return os.environ.get("MLX_ENABLE_TF32", "1") != "0"


def _elements(p: Problem) -> tuple[int, int]:
    """How many the padded images have, and the results."""
    top, bottom, left, right = p.padding
    padded = p.in_channels * (p.height + top + bottom) * (p.width + left + right)
    return p.batch * padded, p.batch * p.out_channels * p.out_size[0] * p.out_size[1]


@dataclass(frozen=True)
class NativePlan(Plan):
    """`mx.conv_general` in NHWC."""

    @property
    def stamp(self) -> Hashable:
        return ("native", "mlx", self.problem.weight_shape, self._work_dtype)

    @property
    def _work_dtype(self) -> str:
        """MLX rounds half-precision results: what is added to them must be added in float32."""
        p = self.problem
        return p.compute_dtype if p.has_bias or self._in_parts else p.dtype

    @property
    def _strip(self) -> tuple[int, int]:
        """How many images, and how many rows of a result, are computed at a time."""
        p, (oh, ow) = self.problem, self.problem.out_size
        if p.device != "cpu":
            return max(1, MAX_GPU_PART * p.batch // sum(_elements(p))), oh
        row = ow * p.groups * min(p.in_channels // p.groups * p.kernel[0] * p.kernel[1], CPU_MAX_TERMS)
        rows = max(1, CPU_MAX_UNFOLDED // row)
        return max(1, rows // oh), min(rows, oh)

    @property
    def _in_parts(self) -> bool:
        """Whether sums are so long that they must be cut."""
        p = self.problem
        return p.device == "cpu" and p.in_channels // p.groups * p.kernel[0] * p.kernel[1] > CPU_MAX_TERMS

    def pack(self, weight: Any, /) -> PackedWeight:
        """OHWI, contiguous: Metal and CUDA would copy any other order in every call."""
        p = self.problem
        weight = weight.reshape(p.out_channels, p.in_channels // p.groups, *p.kernel)
        ohwi = mx.transpose(weight.astype(_dtype(self._work_dtype)), NHWC_FROM_NCHW)
        ohwi = _evaluated(mx.contiguous(ohwi))
        return PackedWeight(self.stamp, ohwi, ohwi.nbytes)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        p, ohwi = self.problem, weight.data
        dtype = _dtype(self._work_dtype)
        if p.batch == 0:
            return mx.zeros(p.out_shape, _dtype(p.dtype))
        x = x.astype(dtype)
        top, bottom, left, right = p.padding
        if p.padding_mode != "zeros":
            x = _padded(x, p, self._work_dtype)
            top = bottom = left = right = 0
        if p.layout == "NCHW":
            x = mx.transpose(x, NHWC_FROM_NCHW)
        images, rows = self._strip
        if whole := not self._in_parts and rows == p.out_size[0]:
            sides = ([top, left], [bottom, right])
        else:
            x = mx.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)])
        found = []
        for some in ranges(p.batch, images):
            image = x[some] if images < p.batch else x
            if whole:
                found.append(mx.conv_general(image, ohwi, p.stride, sides, p.dilation, groups=p.groups))
            else:
                found.append(_joined([self._sum(image, ohwi, part) for part in ranges(p.out_size[0], rows)], 1))
        y = _joined(found, 0)
        if bias is not None:
            y = y + bias.astype(dtype).reshape(1, 1, 1, -1)
        y = y.astype(_dtype(p.dtype))
        return mx.transpose(y, NCHW_FROM_NHWC) if p.layout == "NCHW" else y

    def _sum(self, x: Any, ohwi: Any, strip: slice) -> Any:
        """Some rows of the result; `x` is padded already."""
        (stride, _), (dilation, _), (kh, _) = self.problem.stride, self.problem.dilation, self.problem.kernel
        x = x[:, strip.start * stride : (strip.stop - 1) * stride + (kh - 1) * dilation + 1]
        return accumulate(self._parts(x, ohwi, (strip.stop - strip.start, self.problem.out_size[1])))

    def _parts(self, x: Any, ohwi: Any, out_size: tuple[int, int]) -> Iterator[Any]:
        """Convolutions with parts of the kernel and of the channels. Their sum is the whole."""
        p = self.problem
        (kh, kw), inputs = p.kernel, p.in_channels // p.groups
        cols = min(kw, CPU_MAX_TERMS)
        rows = min(kh, CPU_MAX_TERMS // cols)
        by_group = x.reshape(*x.shape[:3], p.groups, inputs)
        for part in ranges(inputs, max(CPU_MAX_TERMS // (rows * cols), 1)):
            some = by_group[..., part].reshape(*x.shape[:3], -1)
            for i in ranges(kh, rows):
                for j in ranges(kw, cols):
                    needed = [
                        slice(tap.start * d, (tap.stop - 1) * d + (out - 1) * s + 1)
                        for tap, d, out, s in zip((i, j), p.dilation, out_size, p.stride, strict=True)
                    ]
                    window = some[:, needed[0], needed[1], :]
                    yield mx.conv_general(window, ohwi[:, i, j, part], p.stride, 0, p.dilation, groups=p.groups)


def _joined(parts: list[Any], axis: int) -> Any:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis)


def _padded(x: Any, p: Problem, dtype: str) -> Any:
    """The image with its border of copies, by the steps that every engine uses."""
    top, bottom, left, right = p.padding
    whole = Block(slice(None), slice(None), slice(-top, p.height + bottom), slice(-left, p.width + right))
    padded = _STEPS.window(_STEPS.cbhw(x, p.layout), whole, p, dtype)
    return mx.transpose(padded, (1, 0, 2, 3) if p.layout == "NCHW" else (1, 2, 3, 0))


# --- portconv's engines in MLX's operations ---------------------------------------------------------------------------


class MlxSteps(Steps):
    """The generic steps, which MLX's names suffice for."""

    def keep(self, x: Any) -> Any:
        """As in `Steps`, with a value where it can have one."""
        return _evaluated(mx.contiguous(x))


_STEPS = MlxSteps(mx)


def _evaluated(x: Any) -> Any:
    """A packed weight needs values: a lazy array can only be evaluated in the thread that made it (mlx issue 3348)."""
    try:
        mx.eval(x)
    except ValueError as error:
        _check_tracing(error)
    return x


def _gpu_candidates(p: Problem) -> list[Candidate]:
    """The engines in MLX's operations, on a GPU."""
    why_not = None
    if p.dtype == "float64":
        why_not = "MLX has float64 on its CPU device only; use `mx.set_default_device(mx.cpu)`"
    elif max(_elements(p)) > MAX_ELEMENTS:
        why_not = TOO_LARGE
    offers = engines.candidates(p, _STEPS, GPU_COSTS)
    if why_not is not None:
        return [Candidate(offer.engine, why_not=why_not) for offer in offers]
    if not _may_use_tf32():
        return offers
    why_not = f"its products may be of {TF32}" if p.accuracy == "elementwise" else None
    return [
        replace(offer, why_not=why_not, note=TF32)
        if offer.engine in ("gemm", "winograd") and offer.why_not is None
        else offer
        for offer in offers
    ]


def _traced_plan(p: Problem) -> Plan | None:
    """What convolves arrays that have no values (`mx.compile`, `mx.vmap`): nothing that would look at them."""
    if p.kernel[0] * p.kernel[1] > MAX_TRACED_TAPS and _native_candidate(p).why_not is not None:
        return None
    costs = CPU_COSTS if p.device == "cpu" else GPU_COSTS
    offers = [c for c in engines.candidates(p, _STEPS, costs) if c.engine in ("gemm", "direct")]
    best = min([_native_candidate(p), *offers], key=lambda c: (c.why_not is not None, c.seconds))
    return NativePlan(p, "native", 0) if best.engine == "native" else engines.build(p, best.engine, _STEPS, costs)


class _Weight(NamedTuple):
    packed: PackedWeight | None  # None where the weight has no values yet
    weight: Any


def _with_original(stamp: Hashable, weight: Any, pack: Callable[[], PackedWeight]) -> PackedWeight:
    """The packed weight, if there are values to pack, and the weight itself for plans of traced arrays."""
    try:
        packed = pack()
    except ValueError as error:
        _check_tracing(error)
        return PackedWeight(stamp, _Weight(None, weight), 0)
    return PackedWeight(stamp, _Weight(packed, weight), packed.nbytes)


@dataclass(frozen=True)
class OpsPlan(Plan):
    """One of portconv's engines in MLX's operations. Those that look at values leave traced arrays to another plan."""

    inner: Plan = None  # type: ignore[assignment]
    traced: Plan | None = None

    @property
    def stamp(self) -> Hashable:
        return ("mlx operations", self.inner.stamp)

    def pack(self, weight: Any, /) -> PackedWeight:
        return _with_original(self.stamp, weight, lambda: self.inner.pack(weight))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        data: _Weight = weight.data
        if data.packed is not None:
            try:
                return self.inner.execute(x, data.packed, bias)
            except ValueError as error:
                _check_tracing(error)
        return _execute_traced(self.traced, x, data.weight, bias)


def _execute_traced(plan: Plan | None, x: Any, weight: Any, bias: Any) -> Any:
    if plan is None:
        raise UnsupportedError(
            f"`weight` has more than {MAX_TRACED_TAPS} taps, too many for mx.compile and mx.vmap, where the fft "
            f"engine cannot look at values. Convolve outside of them."
        )
    return plan.execute(x, plan.pack(weight), bias)


# --- NumPy's engines on MLX's memory ----------------------------------------------------------------------------------


def _view(x: Any) -> np.ndarray[Any, Any]:
    """MLX's memory as a NumPy array, without a copy; evaluates `x`. bfloat16 has no NumPy dtype and is cast."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x, copy=False)


def _new(p: Problem) -> tuple[Any, np.ndarray[Any, Any]]:
    """New memory of MLX's for a result, and NumPy's view of it; aligned, so that the compiled engines can write it."""
    dtype = _dtype(p.dtype)
    count = math.prod(p.out_shape)
    memory = mx.zeros(count + ALIGNMENT // dtype.size, dtype)
    view = np.array(memory, copy=False)
    some = slice(start := -view.ctypes.data % ALIGNMENT // dtype.size, start + count)
    return memory[some].reshape(p.out_shape), view[some].reshape(p.out_shape)


@dataclass(frozen=True)
class BridgePlan(Plan):
    """One of portconv's engines on NumPy, behind an `mx.custom_function`.

    MLX cannot see through NumPy: without a rule of its own a gradient would silently be zero. The rule is the gradient
    of the plan for traced arrays, in MLX's operations.
    """

    inner: EnginePlan = None  # type: ignore[assignment]
    traced: Plan | None = None

    @property
    def stamp(self) -> Hashable:
        return ("mlx", self.inner.stamp, self.problem.dtype)

    def pack(self, weight: Any, /) -> PackedWeight:
        return _with_original(self.stamp, weight, lambda: self.inner.pack(_view(weight)))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        data: _Weight = weight.data
        convolve = mx.custom_function(self._forward(data.packed))
        convolve.vjp(self._vjp)
        convolve.jvp(self._jvp)
        return convolve(x, data.weight) if bias is None else convolve(x, data.weight, bias)

    def _forward(self, packed: PackedWeight | None) -> Callable[..., Any]:
        def forward(x: Any, weight: Any, bias: Any = None) -> Any:
            if packed is not None:
                try:
                    image, offset = _view(x), None if bias is None else _view(bias)
                except ValueError as error:
                    _check_tracing(error)
                else:
                    return self._on_host(image, packed, offset)
            return self._traced(x, weight, bias)

        return forward

    def _on_host(self, image: Any, packed: PackedWeight, bias: Any) -> Any:
        p = self.problem
        if p.dtype == "bfloat16" or _elements(p)[1] * _dtype(p.dtype).size < WRITTEN_BYTES:
            return mx.array(self.inner.execute(image, packed, bias), dtype=_dtype(p.dtype))
        y, memory = _new(p)
        self.inner.execute(image, packed, bias, out=memory)
        return y

    def _traced(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """The same convolution by MLX, weight and all, for transformations of functions."""
        return _execute_traced(self.traced, x, weight, bias)

    def _vjp(self, primals: Any, cotangent: Any, output: Any) -> Any:
        return tuple(mx.vjp(self._traced, list(primals), [cotangent])[1])

    def _jvp(self, primals: Any, tangents: Any) -> Any:
        """The convolution is linear in the image and in the weight: the sum of those with the tangents there are."""
        (x, weight, *_), (dx, dweight, *dbias) = primals, tangents
        terms = [(dx, weight), (x, dweight)]
        found = [self.execute(a, self.pack(b)) for a, b in terms if a is not None and b is not None]
        if dbias and dbias[0] is not None:
            p = self.problem
            shape = (1, -1, 1, 1) if p.layout == "NCHW" else (1, 1, 1, -1)
            found.append(mx.broadcast_to(dbias[0].reshape(shape), p.out_shape).astype(_dtype(p.dtype)))
        return sum(found[1:], found[0])


def _check_tracing(error: ValueError) -> None:
    """Raise the error again unless it says that the array has no values yet."""
    if "during function transformations" not in str(error):
        raise error


_BACKEND = MlxBackend()


def backend(_name: str) -> MlxBackend:
    """The one MLX backend."""
    return _BACKEND
