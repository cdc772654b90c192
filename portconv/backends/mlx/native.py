"""`mx.conv2d`, offered where it is known to be right."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx

from ...core.backend import Candidate, PackedWeight, Plan
from ...core.layout import NCHW_FROM_NHWC, NHWC_FROM_NCHW
from ...core.problem import Problem
from ...core.shapes import dilated, ranges
from ...cpu.machine import version
from ...engines.accuracy import TERMS, accumulate, cut_sums
from ...namespaces import memory_order
from .arrays import STEPS, dtype_named, evaluated

__all__ = ["MAX_ELEMENTS", "TF32", "TOO_LARGE", "NativePlan", "elements", "may_use_tf32", "native_candidate"]

MAX_ELEMENTS = 2**31 - 1  # beyond, MLX's own index arithmetic was seen to overflow (mlx issues 3248, 3327, 3611)
# On GPUs: kernels from 182x182 on were seen to be wrong (mlx issue 2504), and so were Winograd's results where its
# workspace, some four times the image, was more than the device had (mlx issue 3979). Larger batches go in parts.
MAX_GPU_TAPS = 2**15 - 1
MAX_GPU_PART = 2**28  # elements of the padded images and results of a part
# MLX's CPU build adds the terms of a sum one after the other, so long sums are cut.
CPU_MAX_TERMS = TERMS["normwise"]
CPU_MAX_RUN = 32  # of cotangents that are added to a bias's gradient
# It also unfolds the image as a whole, and an allocation that fails ends the process: large images go in strips.
MAX_PADDED = 2**28  # elements of the padded images, unless most of them are the images themselves
CPU_MAX_UNFOLDED = 2**26  # elements
CPU_FLOP, GPU_FLOP = 4.6e-10, 2e-13  # seconds; that of a GPU is a guess, see operations.py
TOO_LARGE = "beyond 2**31 - 1 elements MLX's indices overflow; split the batch"
TF32 = "TF32 where the GPU has it (CUDA, M5), unless MLX_ENABLE_TF32=0 is set before MLX is imported"


def native_candidate(p: Problem) -> Candidate:
    """Offered only where MLX is known to be right."""
    why_not, flop, note = None, CPU_FLOP if p.device == "cpu" else GPU_FLOP, ""
    if p.dtype == "float64":
        why_not = "mx.conv2d computes float64 in float32"
    elif p.accuracy == "elementwise":
        why_not = "MLX does not bound the error of its sums element by element"
    elif max(elements(p)) > MAX_ELEMENTS:
        why_not = TOO_LARGE
    elif _ends_before_the_image(p):
        why_not = "MLX gives its weight a gradient of another shape where the kernel ends before the image begins"
    elif elements(p)[0] > max(MAX_PADDED, 16 * math.prod(p.x_shape)):
        why_not = f"MLX would pad the image to {elements(p)[0] * p.itemsize >> 20} MiB"
    elif p.device != "cpu" and p.kernel[0] * p.kernel[1] > MAX_GPU_TAPS:
        why_not = f"MLX's GPU kernels were seen to be wrong with more than {MAX_GPU_TAPS} taps"
    elif p.device != "cpu" and p.groups > 1 and p.stride != (1, 1) and _version() < (0, 32):
        why_not = "before MLX 0.32 its gradients are wrong on Metal with groups and a stride"  # mlx pull request 3800
    elif p.device != "cpu" and p.dtype == "float32" and may_use_tf32():
        note = TF32
    return Candidate("native", 1e-4 + p.flops * flop, why_not=why_not, note=note)


def _ends_before_the_image(p: Problem) -> bool:
    """Whether along some axis the kernel, in its last position, ends in the padding before the image.

    MLX then cuts more from the image than it has, and wraps around (seen in 0.32; there is nothing of it in 10,000
    random problems elsewhere).
    """
    axes = zip(p.out_size, p.kernel, p.stride, p.dilation, p.padding[::2], strict=True)
    return any(
        (out - 1) * stride + dilated(kernel, dilation) < before for out, kernel, stride, dilation, before in axes
    )


@lru_cache(maxsize=1)
def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version("mlx"))[:2])


def may_use_tf32() -> bool:
    """Whether MLX was left free to round float32 factors to TF32."""
    return os.environ.get("MLX_ENABLE_TF32", "1") != "0"


def elements(p: Problem) -> tuple[int, int]:
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
        """MLX rounds half-precision results: what is added to them must be added in float32.

        So must the gradients of pixels that are copied in the border, and of strips, which overlap.
        """
        p = self.problem
        wide = p.epilogue.bias or p.out_dtype is not None or p.padding_mode != "zeros"
        wide = wide or self._in_parts or self._strip[1] < p.out_size[0]
        return p.compute_dtype if wide else p.dtype

    @property
    def _strip(self) -> tuple[int, int]:
        """How many images, and how many rows of a result, are computed at a time."""
        p, (oh, ow) = self.problem, self.problem.out_size
        if p.device != "cpu":
            return max(1, MAX_GPU_PART * p.batch // sum(elements(p))), oh
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
        ohwi = mx.transpose(weight.astype(dtype_named(self._work_dtype)), NHWC_FROM_NCHW)
        ohwi = evaluated(mx.contiguous(ohwi))
        return PackedWeight(self.stamp, ohwi, ohwi.nbytes)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, ohwi = self.problem, weight.data
        dtype = dtype_named(self._work_dtype)
        if p.batch == 0:
            return mx.zeros(p.out_shape, dtype_named(p.result_dtype))
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
        y = STEPS.rounded(self.finish(_joined(found, 0), bias), p.result_dtype)
        return memory_order.note(mx.transpose(y, NCHW_FROM_NHWC), NHWC_FROM_NCHW) if p.layout == "NCHW" else y

    def finish(self, sums: Any, bias: Any) -> Any:
        """The sums, NHWC, with the epilogue."""
        if bias is None:
            return sums
        bias = bias.astype(sums.dtype).reshape(-1)
        return sums + (_everywhere(bias, sums.shape) if self.problem.device == "cpu" else bias)

    def _sum(self, x: Any, ohwi: Any, strip: slice) -> Any:
        """Some rows of the result; `x` is padded already."""
        (stride, _), (dilation, _), (kh, _) = self.problem.stride, self.problem.dilation, self.problem.kernel
        x = x[:, strip.start * stride : (strip.stop - 1) * stride + (kh - 1) * dilation + 1]
        return accumulate(self._parts(x, ohwi, (strip.stop - strip.start, self.problem.out_size[1])))

    def _parts(self, x: Any, ohwi: Any, out_size: tuple[int, int]) -> Iterator[Any]:
        """Convolutions with parts of the kernel and of the channels. Their sum is the whole."""
        p = self.problem
        by_group = x.reshape(*x.shape[:3], p.groups, -1)
        for part, taps in cut_sums(p, out_size, CPU_MAX_TERMS):
            some = by_group[..., part].reshape(*x.shape[:3], -1)
            for (i, j), (rows, cols) in taps:
                window = some[:, rows, cols, :]
                yield mx.conv_general(window, ohwi[:, i, j, part], p.stride, 0, p.dilation, groups=p.groups)


def _everywhere(bias: Any, shape: Any) -> Any:
    """A bias (O,) for each element of a result (N, H, W, O), so that its gradient is a sum of short sums.

    MLX's CPU build adds one term after the other, which float32 cannot hold: of a million ones it was off by 4 %.
    """
    runs = [min(size, CPU_MAX_RUN) for size in shape[:3]]
    split = [part for size, run in zip(shape, runs, strict=False) for part in (-(-size // run), run)]
    bias = bias.reshape(1, 1, 1, 1, 1, 1, -1)
    for axis in reversed(range(6)):  # a sum over each of the axes, where derivatives are taken
        if split[axis] > 1:
            bias = mx.broadcast_to(bias, [1] * axis + [*split[axis:], shape[3]])
    bias = bias.reshape(*(count * run for count, run in zip(split[::2], split[1::2], strict=True)), shape[3])
    return bias[tuple(slice(size) for size in shape)] if bias.shape != shape else bias


def _joined(parts: list[Any], axis: int) -> Any:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis)


def _padded(x: Any, p: Problem, dtype: str) -> Any:
    """The image with its border of copies, by the steps that every engine uses."""
    padded = STEPS.padded(STEPS.cbhw(x, p.layout), p, dtype)
    return mx.transpose(padded, (1, 0, 2, 3) if p.layout == "NCHW" else (1, 2, 3, 0))
