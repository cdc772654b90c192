"""`torch.nn.functional.conv2d`, asked for no longer sums than keep the bound."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from ...core.backend import Candidate, PackedWeight, Plan
from ...core.problem import Problem
from ...core.shapes import met_taps
from ...cpu import threads
from ...engines.accuracy import TERMS, cut_sums, summed
from ...engines.steps import Steps
from .operations import records, transformed

__all__ = ["NativePlan", "in_parts", "native_candidate"]

# On a CPU the terms of a sum are added one after the other: of 4,608 terms, on constant data, a result was off by 314
# eps c. So long sums are made of parts, which are added in pairs; they cost as much more.
PARTS = 1.5
# Seconds: of a call, of each such part, and by what a layer is, measured on two cores of an AMD EPYC with PyTorch 2.13.
CALL = 5e-6
PART = 2e-5  # its slice of the weight is put in order in every call
CORE_FLOPS = 1.1e11  # of one core, at best
GPU_FLOP = 1e-13


class _Shares(NamedTuple):
    """Shares of that rate, and seconds of depthwise layers on one core."""

    taps: float
    one_by_one: float
    few_inputs: float
    few_outputs: float
    depthwise_output: float
    depthwise_tap: float
    large_tap: float  # of kernels with more than LARGE_TAPS


FEW = 16
LARGE_TAPS = 100
# By the layout: PyTorch's default memory format, and channels last.
SHARES = {
    "NCHW": _Shares(0.85, 0.6, 0.15, 0.15, 2e-9, 0, 7e-10),
    "NHWC": _Shares(0.9, 0.85, 0.75, 0.25, 2.5e-10, 5e-11, 9e-11),
}


def native_candidate(p: Problem) -> Candidate:
    """What PyTorch's own routine would cost, or why it is not offered."""
    why_not, note = None, ""
    if p.accuracy == "elementwise" and p.device != "cpu":
        why_not = "cuDNN does not bound the error of its sums element by element"
    elif in_parts(p):
        note = f"sums of {_terms(p)} terms in parts"
    return Candidate("native", _seconds(p), why_not=why_not, note=note)


def _terms(p: Problem) -> int:
    return p.in_channels // p.groups * p.kernel[0] * p.kernel[1]


def in_parts(p: Problem) -> bool:
    """Whether sums are so long that they must be cut."""
    return p.device == "cpu" and _terms(p) > TERMS[p.accuracy] and 0 not in p.out_shape


def _seconds(p: Problem) -> float:
    if p.device != "cpu":
        return CALL + p.flops * GPU_FLOP
    inputs, outputs, cores = p.in_channels // p.groups, p.out_channels // p.groups, threads.usable_cores()
    (oh, ow), taps, shares = p.out_size, p.kernel[0] * p.kernel[1], SHARES[p.layout]
    if inputs == 1 and p.groups > 1:
        tap = shares.large_tap if taps > LARGE_TAPS else shares.depthwise_tap
        return CALL + p.batch * p.out_channels * oh * ow * (shares.depthwise_output + taps * tap) / cores
    share = shares.few_inputs if inputs < FEW else shares.taps if taps > 1 else shares.one_by_one
    share = min(share, shares.few_outputs) if outputs < FEW else share
    seconds = CALL + p.flops / (CORE_FLOPS * share * cores)
    return seconds * PARTS + _terms(p) / TERMS[p.accuracy] * PART if in_parts(p) else seconds


class _Weight(NamedTuple):
    weight: Any
    shows: bool  # whether results show with what it meets in the padding


@dataclass(frozen=True, kw_only=True)
class NativePlan(Plan):
    """PyTorch's own routine. Autograd, `torch.func` and `torch.compile` know it."""

    steps: Steps

    @cached_property
    def stamp(self) -> Hashable:
        return ("native", "torch", self.problem.weight_shape, self._work_dtype)

    @property
    def _work_dtype(self) -> str:
        """Results of half precision are rounded: what is added to them must be added in float32.

        So must the gradients of pixels that are copied in the border. On CPUs oneDNN was seen to make NaN of the
        neighbours of an infinite pixel in bfloat16, and zeros of small numbers.
        """
        p = self.problem
        wide = p.out_dtype is not None or p.epilogue.bias or (p.padding_mode != "zeros" and any(p.padding))
        return p.compute_dtype if wide or p.device == "cpu" else p.dtype

    @cached_property
    def _torch_dtype(self) -> Any:
        return getattr(torch, self._work_dtype)

    @cached_property
    def _as_it_is(self) -> bool:
        """Whether PyTorch's function does all of it: nothing is cast, padded, cut into parts or put into an order."""
        p = self.problem
        top, bottom, left, right = p.padding
        same = p.x_dtype == p.result_dtype == self._work_dtype and p.layout == "NCHW" and p.device == "cpu"
        own_padding = not any(p.padding) or (p.padding_mode == "zeros" and (top, left) == (bottom, right))
        misread = p.in_channels == 1 and _may_be_misread(p, p.kernel[0])
        return same and own_padding and not in_parts(p) and not misread and not self._misses

    @cached_property
    def _misses(self) -> bool:
        """Whether no tap meets the image along an axis, whatever the output: the result is the bias.

        With strides PyTorch was seen to crash there on a CPU (2.13), where it makes the padding itself.
        """
        p = self.problem
        axes = zip(p.out_size, (p.height, p.width), p.kernel, p.stride, p.dilation, p.padding[::2], strict=True)
        return p.device == "cpu" and any(not list(met_taps(*axis)) for axis in axes)

    @cached_property
    def _options(self) -> tuple[Any, ...]:
        """Stride, padding, dilation and groups for PyTorch's function, which reads an int faster than a pair."""
        p = self.problem
        pairs = [pair[0] if pair[0] == pair[1] else pair for pair in (p.stride, p.padding[::2], p.dilation)]
        return (*pairs, p.groups)

    def pack(self, weight: Any, /) -> PackedWeight:
        """The weight (O, I/G, kh, kw), as it is if its dtype is right."""
        p, dtype = self.problem, self._torch_dtype
        # that keeps the memory alive, but not the caller's tensor
        packed = weight if transformed() or records(weight) else weight.detach()
        if packed.ndim != 4:
            packed = packed.reshape(p.out_channels, p.in_channels // p.groups, *p.kernel)
        if packed.dtype is not dtype:
            packed = packed.to(dtype)
        if p.layout == "NHWC":
            packed = _channels_last(packed)
        # On CPUs PyTorch leaves padding out of its sums, where a weight that is not finite would show.
        shows = p.device == "cpu" and any(p.padding)
        if shows and not transformed() and not torch.compiler.is_exporting():
            # by one operation, since weights whose gradients are recorded are looked at in each step; a sum that has no
            # room in the dtype costs nothing but time
            shows = not math.isfinite(packed.detach().sum().item())
        return PackedWeight(self.stamp, _Weight(packed, shows), packed.nbytes)

    def fuses(self, _x: Any, _weight: PackedWeight, _bias: Any = None, _residual: Any = None, /) -> bool:
        return False  # PyTorch's function knows of no residual and no activation

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, *, out: Any = None) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, dtype, (packed, shows) = self.problem, self._torch_dtype, weight.data
        if bias is not None and (bias.ndim != 1 or bias.dtype is not dtype):
            bias = bias.reshape(-1).to(dtype)
        if self._as_it_is and not shows and out is None:
            return torch.nn.functional.conv2d(x, packed, bias, *self._options)
        if p.layout == "NHWC":
            x = x.permute(0, 3, 1, 2)
        x = x.to(dtype)
        padded, padding = self._padded(x)
        if any(padding) and (shows or self._misses or in_parts(p)):
            padded, padding = torch.nn.functional.pad(padded, (*2 * padding[1:], *2 * padding[:1])), (0, 0)
        if in_parts(p):
            y = summed(self._parts(padded, packed))
            y = y if bias is None else y + bias.reshape(-1, 1, 1)
        else:
            y = self._convolved(padded, packed, bias, padding)
        y = self.steps.rounded(y, p.result_dtype)
        y = y.permute(0, 2, 3, 1) if p.layout == "NHWC" else y
        return y if out is None else out.copy_(y)

    def _padded(self, x: Any) -> tuple[Any, tuple[int, int]]:
        """The image with the border that PyTorch's convolution does not make, and what that is to make."""
        p = self.problem
        top, bottom, left, right = p.padding
        if p.padding_mode == "zeros" and (top, left) == (bottom, right):
            return x, (top, left)
        mode = "constant" if p.padding_mode == "zeros" else p.padding_mode
        return (torch.nn.functional.pad(x, (left, right, top, bottom), mode=mode) if any(p.padding) else x), (0, 0)

    def _convolved(self, x: Any, weight: Any, bias: Any = None, padding: tuple[int, int] = (0, 0)) -> Any:
        p = self.problem
        if x.shape[1] == 1 and _may_be_misread(p, weight.shape[2]):
            x, weight = (a.squeeze(1).unsqueeze(1) for a in (x, weight))  # whose stride is that of the default format
        with _full_precision(x):
            return torch.nn.functional.conv2d(x, weight, bias, p.stride, padding, p.dilation, p.groups)

    def _parts(self, x: Any, weight: Any) -> Iterator[Any]:
        """Convolutions with parts of the kernel and of the channels, whose sum is the whole; `x` is padded already."""
        p = self.problem
        by_group = x.reshape(p.batch, p.groups, -1, *x.shape[2:])
        for some, parts in cut_sums(p, p.out_size, TERMS[p.accuracy]):
            channels = by_group[:, :, some].reshape(p.batch, -1, *x.shape[2:])
            for (i, j), (rows, cols) in parts:
                window = channels[:, :, rows, cols]
                if p.layout == "NHWC":  # PyTorch is at a loss with some of the channels of each pixel
                    window = window.contiguous(memory_format=torch.channels_last)
                yield self._convolved(window, weight[:, some, i, j])


def _may_be_misread(p: Problem, kernel_rows: int) -> bool:
    """Whether PyTorch must not take an image of one channel for one with its channels last.

    One channel has both memory formats, whatever its stride says. Where a kernel of one row leaves out rows of such an
    image, oneDNN was seen to write beyond its memory if the stride says that channels are last (2.13).
    """
    return p.device == "cpu" and kernel_rows == 1 and p.stride[0] > 1


def _full_precision(x: Any) -> AbstractContextManager[object]:
    """On GPUs PyTorch rounds the factors of float32 to TF32 unless it is told otherwise."""
    if x.device.type != "cuda" or x.dtype != torch.float32:
        return nullcontext()
    flags: AbstractContextManager[object] = torch.backends.cudnn.flags(allow_tf32=False)
    return flags


def _channels_last(weight: Any) -> Any:
    """In this order of memory, with PyTorch's own strides of axes of one element, too, which its gradients may need."""
    _, inputs, kh, kw = weight.shape
    usual = (inputs * kh * kw, 1, kw * inputs, inputs)
    return weight if weight.stride() == usual else weight.clone(memory_format=torch.channels_last)
