"""`jax.lax.conv_general_dilated`, asked for no longer sums than keep the bound."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import jax

from ...core.backend import Candidate, PackedWeight, Plan
from ...core.integers import Pair
from ...core.layout import FROM_CBHW, reorder
from ...core.problem import Problem
from ...core.shapes import dilated
from ...engines.accuracy import TERMS, cut_sums, summed
from ...engines.steps import Steps
from .operations import full_precision, where_it_belongs

__all__ = ["NativePlan", "native_candidate"]

# Seconds. Those on a CPU were measured under `jax.jit` on two cores of an AMD EPYC with JAX 0.10.2, beside portconv's
# engines there, whose estimates (`engines.costs.GENERIC`) are two thirds of what they take; so are these.
CALL = 2e-5
COMPILATION = 0.1  # of a call with arrays that have values, for each size: it is chosen where it gains more than that
FLOP, FLOP_ONE_BY_ONE = 8e-12, 1.5e-11
FEW_OUTPUTS = 64  # channels, below which the time does not fall any more
GROUPED_TAP = 2.5e-9  # of an output of a group, however many channels it has
GPU_FLOP = 1e-13

Sides: TypeAlias = tuple[tuple[int, int], tuple[int, int]]  # padding: (top, bottom), (left, right)


def native_candidate(p: Problem, platform: str) -> Candidate:
    """What XLA's own convolution would cost, or why it is not offered; `platform` is empty for traced arrays."""
    why_not, note = None, ""
    if p.accuracy == "elementwise" and platform not in ("", "cpu"):
        why_not = f"on a {platform} XLA does not bound the error of its sums element by element"
    elif platform in ("", "cpu") and p.dtype == "float64" and p.groups > 1:
        # it multiplies by kernels that are zero outside of their groups (seen in JAX 0.10.2, one channel a group)
        why_not = "on a CPU XLA lets NaN of one group of float64 into the others"
    elif platform in ("", "cpu") and _is_long(p):
        note = f"sums of {_terms(p)} terms in parts" + ("" if platform else " on a CPU")
    return Candidate("native", _seconds(p, platform), why_not=why_not, note=note)


def _seconds(p: Problem, platform: str) -> float:
    if (platform or jax.default_backend()) != "cpu":
        return CALL + p.flops * GPU_FLOP
    (oh, ow), taps = p.out_size, p.kernel[0] * p.kernel[1]
    call = COMPILATION if platform else CALL
    if p.groups > 1:
        return call + p.batch * p.out_channels * oh * ow * taps * GROUPED_TAP
    return call + p.flops * (FLOP if taps > 1 else FLOP_ONE_BY_ONE) * max(1, FEW_OUTPUTS / p.out_channels)


def _terms(p: Problem) -> int:
    return p.in_channels // p.groups * p.kernel[0] * p.kernel[1]


def _is_long(p: Problem) -> bool:
    """Whether sums are so long that XLA's CPU build, which adds one term after the other, needs them in parts."""
    return _terms(p) > TERMS[p.accuracy]


@dataclass(frozen=True, kw_only=True)
class NativePlan(Plan):
    """XLA's own convolution. JAX's transformations know it."""

    steps: Steps
    platform: str  # "cpu", "gpu", "tpu"; empty for traced arrays, which may be compiled for any

    @property
    def stamp(self) -> Hashable:
        return ("native", "jax", self.problem.weight_shape)

    def pack(self, weight: Any, /) -> PackedWeight:
        """The weight (O, I/G, kh, kw)."""
        p = self.problem
        with where_it_belongs(p):
            packed = weight.reshape(p.out_channels, p.in_channels // p.groups, *p.kernel)
        return PackedWeight(self.stamp, packed, packed.nbytes)

    def cut(self, array: Any, index: tuple[Any, ...]) -> Any:
        with where_it_belongs(self.problem):
            return array[index]

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        with full_precision(), where_it_belongs(self.problem):
            return self._function(x, weight.data, bias)

    @cached_property
    def _function(self) -> Any:
        """Of image, weight and bias; compiled as a whole where JAX would else compile each operation for itself."""
        p = self.problem
        on_cpu, elsewhere = (partial(self._convolved, on_cpu=there) for there in (True, False))
        if not p.traced:
            return jax.jit(on_cpu if self.platform == "cpu" else elsewhere)
        if not _is_long(p) and self._dtype(True) == self._dtype(False):
            return on_cpu
        return partial(jax.lax.platform_dependent, cpu=on_cpu, default=elsewhere)

    def _dtype(self, on_cpu: bool) -> str:
        """Results of half precision are rounded: what is added to them must be added in float32.

        So must the gradients of pixels that are copied in the border.
        """
        p = self.problem
        wide = p.out_dtype is not None or p.epilogue.bias or (p.padding_mode != "zeros" and any(p.padding))
        return p.compute_dtype if wide or on_cpu else p.dtype

    def _convolved(self, x: Any, weight: Any, bias: Any, *, on_cpu: bool) -> Any:
        p, steps, dtype = self.problem, self.steps, self._dtype(on_cpu)
        if 0 in p.out_shape:
            return steps.zeros(p.out_shape, steps.dtype(p.result_dtype))
        # before it is cut and padded: what JAX differentiates it adds in the dtype of the image where it is used
        x, weight = steps.cast(x, dtype), steps.cast(weight, dtype)
        in_parts = on_cpu and _is_long(p)
        if p.padding_mode != "zeros" or self._is_wide or (in_parts and p.kernel[0] * p.kernel[1] > TERMS[p.accuracy]):
            x, padding = self._padded(x), ((0, 0), (0, 0))
        else:
            x, padding = self._read_part(x)
        y = summed(self._parts(x, weight, padding)) if in_parts else self._product(x, weight, padding)
        if bias is not None:
            y = y + steps.cast(bias, dtype).reshape((-1, 1, 1) if p.layout == "NCHW" else (-1,))
        return steps.rounded(y, p.result_dtype)

    @cached_property
    def _read(self) -> Pair:
        """How many rows and columns of the padded image there are for some output to read."""
        p = self.problem
        rows, cols = (
            (out - 1) * stride + dilated(kernel, dilation)
            for out, stride, kernel, dilation in zip(p.out_size, p.stride, p.kernel, p.dilation, strict=True)
        )
        return rows, cols

    @property
    def _is_wide(self) -> bool:
        """Whether the padding is wider than the kernel reaches.

        XLA's own padding would then be negative in the gradient of the image, which its CPU build was seen to compute
        from memory outside of its arrays (JAX 0.10.2).
        """
        (top, bottom, left, right), p = self.problem.padding, self.problem
        reach = [dilated(kernel, dilation) - 1 for kernel, dilation in zip(p.kernel, p.dilation, strict=True)]
        return max(top, bottom) > reach[0] or max(left, right) > reach[1]

    def _padded(self, x: Any) -> Any:
        """The padded image, of which some output reads every row and column."""
        p, steps, (rows, cols) = self.problem, self.steps, self._read
        padded = steps.padded(steps.cbhw(x, p.layout), p, x.dtype.name)[:, :, :rows, :cols]
        return steps.xp.permute_dims(padded, FROM_CBHW[p.layout])

    def _read_part(self, x: Any) -> tuple[Any, Sides]:
        """The part of the image that some output reads, and the zeros that XLA is to put around it: none too few."""
        p, sizes, sides = self.problem, [], []
        for size, read, before in zip((p.height, p.width), self._read, p.padding[::2], strict=True):
            sizes.append(slice(min(size, read - before)))
            sides.append((before, max(0, read - before - size)))
        every = slice(None)
        return x[reorder((every, every, *sizes), FROM_CBHW[p.layout])], (sides[0], sides[1])

    def _product(self, x: Any, weight: Any, padding: Sides) -> Any:
        p = self.problem
        return jax.lax.conv_general_dilated(
            x,
            weight,
            p.stride,
            padding,
            rhs_dilation=p.dilation,
            dimension_numbers=(p.layout, "OIHW", p.layout),
            feature_group_count=p.groups,
        )

    def _parts(self, x: Any, weight: Any, padding: Sides) -> Iterator[Any]:
        """Convolutions with parts of the kernel and of the channels, whose sum is the whole.

        Where they are parts of the kernel, the image is padded already.
        """
        p, every = self.problem, slice(None)
        axis, order = p.layout.index("C"), FROM_CBHW[p.layout]
        around = x.shape[:axis], x.shape[axis + 1 :]
        by_group = x.reshape(*around[0], p.groups, -1, *around[1])
        for some, parts in cut_sums(p, p.out_size, TERMS[p.accuracy]):
            channels = by_group[(every,) * (axis + 1) + (some,)].reshape(*around[0], -1, *around[1])
            for (i, j), (rows, cols) in parts:
                window = channels if len(parts) == 1 else channels[reorder((every, every, rows, cols), order)]
                yield self._product(window, weight[:, some, i, j], padding)
