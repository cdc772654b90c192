"""MLX: `mx.conv2d` on GPUs, and on a CPU device portconv's NumPy engines over MLX's own memory.

MLX computes in NHWC with OHWI weights. An NCHW array is handed over as a transposed view, and an NCHW result is a view
of NHWC memory, so a chain of layers transposes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..backend import ArrayInfo, Candidate, PackedWeight, Plan
from ..cpu.bridge import bridged, host_candidates, numpy_plan
from ..cpu.host import host_environment, version
from ..errors import UnsupportedError
from ..layout import NCHW_FROM_NHWC, NHWC_FROM_NCHW
from ..shapes import ranges
from ..spec import Problem
from ..steps import Block, Steps, accumulate

__all__ = ["MlxBackend", "backend"]

MAX_ELEMENTS = 2**31 - 1  # beyond, MLX's own index arithmetic was seen to overflow (mlx issues 3248, 3327)
# MLX's CPU build adds the terms of a sum one after the other, so long sums are cut, as in engines/gemm.py.
CPU_MAX_TERMS = 192
# Seconds per multiplication or addition of mx.conv2d, to rank it: on Linux its CPU build has a reference BLAS.
CPU_FLOP, GPU_FLOP = 2e-10, 2e-13


class MlxBackend:
    """See `portconv.backend.Backend`. MLX arrays have no device: it is the default device at the time of the call."""

    name = "mlx"

    def describe(self, x: Any, /) -> ArrayInfo:
        if not isinstance(x, mx.array):
            raise TypeError(f"expected an mlx.core.array, but got {type(x).__name__}.")
        return ArrayInfo(x.shape, str(x.dtype).rpartition(".")[2], _device())

    def candidates(self, problem: Problem, /) -> list[Candidate]:
        offers = [_native_candidate(problem)]
        if problem.device == "cpu":
            return [*offers, *host_candidates(problem)]
        why_not = "portconv's own engines run on MLX's CPU device only; use `mx.set_default_device(mx.cpu)`"
        return [*offers, *(Candidate(engine, why_not=why_not) for engine in ("gemm", "fft", "direct"))]

    def build(self, problem: Problem, engine: str, /) -> Plan:
        native = NativePlan(problem, "native", 0)
        if engine == "native":
            return native
        inner = numpy_plan(bridged(problem), engine)
        return BridgePlan(problem, engine, inner.workspace_bytes, inner=inner, native=native)

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
    why_not = None
    padded = (
        p.batch * p.in_channels * (p.height + p.padding[0] + p.padding[1]) * (p.width + p.padding[2] + p.padding[3])
    )
    if p.dtype == "float64":
        why_not = "mx.conv2d computes float64 in float32"
    elif p.accuracy == "elementwise":
        why_not = "MLX does not bound the error of its sums element by element"
    elif max(padded, p.batch * p.out_channels * p.out_size[0] * p.out_size[1]) > MAX_ELEMENTS:
        why_not = "beyond 2**31 - 1 elements MLX's indices overflow; split the batch"
    return Candidate("native", 1e-4 + p.flops * (CPU_FLOP if p.device == "cpu" else GPU_FLOP), why_not=why_not)


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
    def _in_parts(self) -> bool:
        """Whether sums are so long that they must be cut."""
        p = self.problem
        return p.device == "cpu" and p.in_channels // p.groups * p.kernel[0] * p.kernel[1] > CPU_MAX_TERMS

    def pack(self, weight: Any, /) -> PackedWeight:
        """OHWI, contiguous: Metal and CUDA would copy any other order in every call."""
        ohwi = mx.contiguous(self.ohwi(weight))
        try:
            mx.eval(ohwi)  # a lazy array can only be evaluated in the thread that made it (mlx issue 3348)
        except ValueError as error:
            _check_tracing(error)
        return PackedWeight(self.stamp, ohwi, ohwi.nbytes)

    def ohwi(self, weight: Any) -> Any:
        """The weight as MLX reads it."""
        p = self.problem
        weight = weight.reshape(p.out_channels, p.in_channels // p.groups, *p.kernel)
        return mx.transpose(weight.astype(_dtype(self._work_dtype)), NHWC_FROM_NCHW)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        return self.convolve(x, weight.data, bias)

    def convolve(self, x: Any, ohwi: Any, bias: Any) -> Any:
        """The convolution in MLX operations, for an OHWI weight."""
        p = self.problem
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
        if self._in_parts:
            x = mx.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)])
            y = accumulate(self._parts(x, ohwi))
        else:
            y = mx.conv_general(x, ohwi, p.stride, ([top, left], [bottom, right]), p.dilation, groups=p.groups)
        if bias is not None:
            y = y + bias.astype(dtype).reshape(1, 1, 1, -1)
        y = y.astype(_dtype(p.dtype))
        return mx.transpose(y, NCHW_FROM_NHWC) if p.layout == "NCHW" else y

    def _parts(self, x: Any, ohwi: Any) -> Iterator[Any]:
        """Convolutions with parts of the kernel and of the channels; `x` is padded already. Their sum is the whole."""
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
                        for tap, d, out, s in zip((i, j), p.dilation, p.out_size, p.stride, strict=True)
                    ]
                    window = some[:, needed[0], needed[1], :]
                    yield mx.conv_general(window, ohwi[:, i, j, part], p.stride, 0, p.dilation, groups=p.groups)


def _padded(x: Any, p: Problem, dtype: str) -> Any:
    """The image with its border of copies, by the steps that every engine uses."""
    steps, (top, bottom, left, right) = Steps(mx), p.padding
    whole = Block(slice(None), slice(None), slice(-top, p.height + bottom), slice(-left, p.width + right))
    padded = steps.window(steps.cbhw(x, p.layout), whole, p, dtype)
    return mx.transpose(padded, (1, 0, 2, 3) if p.layout == "NCHW" else (1, 2, 3, 0))


# --- NumPy's engines on MLX's memory ----------------------------------------------------------------------------------


def _view(x: Any) -> np.ndarray[Any, Any]:
    """MLX's memory as a NumPy array, without a copy; evaluates `x`. bfloat16 has no NumPy dtype and is cast."""
    return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x, copy=False)


class _Bridge(NamedTuple):
    packed: PackedWeight | None  # None where the weight has no values yet
    weight: Any


@dataclass(frozen=True)
class BridgePlan(Plan):
    """One of portconv's engines behind an `mx.custom_function`.

    MLX cannot see through NumPy: without a rule of its own a gradient would silently be zero. The rule is the gradient
    of `mx.conv2d`. Where arrays have no values (`mx.compile`, `mx.vmap`) `mx.conv2d` does the work itself.
    """

    inner: Plan = None  # type: ignore[assignment]
    native: NativePlan = None  # type: ignore[assignment]

    @property
    def stamp(self) -> Hashable:
        return ("mlx", self.inner.stamp, self.problem.dtype)

    def pack(self, weight: Any, /) -> PackedWeight:
        try:
            packed = self.inner.pack(_view(weight))
        except ValueError as error:
            _check_tracing(error)
            packed = None
        return PackedWeight(self.stamp, _Bridge(packed, weight), packed.nbytes if packed is not None else 0)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        data: _Bridge = weight.data
        convolve = mx.custom_function(self._forward(data.packed))
        convolve.vjp(self._vjp)
        return convolve(x, data.weight) if bias is None else convolve(x, data.weight, bias)

    def _forward(self, packed: PackedWeight | None) -> Callable[..., Any]:
        dtype = _dtype(self.problem.dtype)

        def forward(x: Any, weight: Any, bias: Any = None) -> Any:
            if packed is not None:
                try:
                    image, offset = _view(x), None if bias is None else _view(bias)
                except ValueError as error:
                    _check_tracing(error)
                else:
                    return mx.array(self.inner.execute(image, packed, offset), dtype=dtype)
            return self._native(x, weight, bias)

        return forward

    def _native(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """The same convolution by MLX, weight and all, for transformations of functions."""
        if self.problem.dtype == "float64":
            raise UnsupportedError(
                "float64 cannot go through mx.grad, mx.vjp, mx.compile or mx.vmap: mx.conv2d computes it in float32."
            )
        return self.native.convolve(x, self.native.ohwi(weight), bias)

    def _vjp(self, primals: Any, cotangent: Any, output: Any) -> Any:
        return tuple(mx.vjp(self._native, list(primals), [cotangent])[1])


def _check_tracing(error: ValueError) -> None:
    """Raise the error again unless it says that the array has no values yet."""
    if "during function transformations" not in str(error):
        raise error


_BACKEND = MlxBackend()


def backend(_name: str) -> MlxBackend:
    """The one MLX backend."""
    return _BACKEND
