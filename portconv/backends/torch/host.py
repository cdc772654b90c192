"""NumPy's engines on the memory of PyTorch's CPU tensors, and their derivatives of any order.

NumPy hides from autograd what it computes. Convolution is linear in the image and in the weight, and so are its two
gradients in what they are made of. All derivatives of the three are made of the three again: with ``y = F(x, w)`` the
gradients are ``X(w, dy)`` and ``W(x, dy)``; those of ``sum(u * X(w, dy))`` are ``W(u, dy)`` and ``F(u, w)``, and those
of ``sum(v * W(x, dy))`` are ``X(v, dy)`` and ``F(x, v)``.

What NumPy cannot see, tensors of `torch.func`'s transforms, duals of forward differentiation, tensors without values,
is computed by PyTorch's own convolution, which knows them all.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from ...core.backend import PackedWeight, Plan, executed
from ...core.problem import Problem, TransposedProblem
from ...core.windows import WindowOperation
from ...cpu import gradient, threads, windows
from ...cpu.bridge import AtOncePlan, HostPlan, bridged, host_at_once, host_candidates, host_plan
from ...cpu.views import BFLOAT16_BITS
from . import openmp
from .native import NativePlan
from .operations import TorchSteps, records, transformed

__all__ = ["TorchHostPlan", "torch_host_plan", "windowed_on_host"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def torch_host_plan(
    problem: Problem, engine: str, native: NativePlan, last: Plan | None = None, best_last: Plan | None = None
) -> TorchHostPlan:
    """One of portconv's engines on NumPy.

    `native` is the plan for tensors that NumPy cannot see. `last` is that of the same image in NHWC, for tensors in
    PyTorch's memory format `channels_last`, by the same engine, and `best_last` by the one that is best there.
    """
    inner = host_plan(problem, engine, view=view, take=_take, bits=_bits)
    return TorchHostPlan(
        problem, engine, inner.workspace_bytes, inner=inner, native=native, last=last, best_last=best_last
    )


def torch_phases(problem: TransposedProblem, engine: str) -> Plan | None:
    """All phases of a transposed convolution at once, of tensors that NumPy can see."""
    return host_at_once(problem, engine, view=view, take=_take, kind=_LimitedPlan)


class TorchHostSteps(TorchSteps):
    """PyTorch's, which know what NumPy can see."""

    def assigns(self) -> bool:
        """As in `Steps`; `torch.func.vmap` cannot put an image that it sees one by one into an array that is whole."""
        return self.writable and not transformed()

    def seen(self, *arrays: Any) -> bool:
        """As in `Steps`; channels last, the phases have a better plan each."""
        return _has_values(*arrays) and not any(records(x) or (x.ndim == 4 and _channels_last(x)) for x in arrays)


def view(x: Any) -> np.ndarray[Any, Any]:
    """A CPU tensor's memory as a NumPy array; bfloat16, which NumPy has not, is cast."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype is torch.bfloat16:
        x = x.float()
    shown: np.ndarray[Any, Any] = (x.resolve_neg() if x.is_neg() else x).numpy()
    return shown


def _bits(x: Any) -> np.ndarray[Any, Any]:
    """The bits of a tensor of bfloat16."""
    shown: np.ndarray[Any, Any] = x.detach().resolve_neg().view(torch.int16).numpy().view(BFLOAT16_BITS)
    return shown


def _take(y: np.ndarray[Any, Any], p: Problem) -> Any:
    if y.dtype.itemsize == 2 and p.result_dtype == "bfloat16":
        return torch.from_numpy(y.view(np.int16)).view(torch.bfloat16)
    result, dtype = torch.from_numpy(y), getattr(torch, p.result_dtype)
    return result if result.dtype is dtype else result.to(dtype)


def _has_values(*tensors: Any) -> bool:
    """Whether NumPy can see all of them, and nothing but autograd watches."""
    # the level of a nest of forward differentiations, -1 outside of any
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack() or transformed():
        return False
    return all(type(x) in _PLAIN for x in tensors if x is not None)


def _limit() -> AbstractContextManager[None]:
    """PyTorch's own threads where that can be, and no more than it was allowed: one in the workers of a DataLoader."""
    return threads.at_most(torch.get_num_threads(), openmp.found)


class _LimitedPlan(AtOncePlan):
    """With as many threads as PyTorch was allowed."""

    def pack(self, weight: Any, /) -> PackedWeight:
        with _limit():
            return super().pack(weight)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None) -> Any:
        with _limit():
            return super().execute(x, weight, bias, residual=residual)


class _Packed(NamedTuple):
    plan: HostPlan
    weight: PackedWeight  # packed by it


class _Weight(NamedTuple):
    packed: PackedWeight | None  # None where NumPy cannot see it
    once: bool  # whether it is packed by the plan `once`
    weight: Any
    others: dict[Hashable, PackedWeight]  # what it is packed to for images in another memory format


def _channels_last(x: Any) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class TorchHostPlan(Plan):
    """A NumPy plan for tensors that NumPy can see, and PyTorch's own for others."""

    inner: HostPlan
    native: NativePlan
    last: Plan | None = None
    best_last: Plan | None = None

    @cached_property
    def stamp(self) -> Hashable:
        return ("torch", self.inner.stamp)

    @cached_property
    def once(self) -> HostPlan:
        """For weights whose gradients are recorded: they change from step to step, and are packed in each.

        A caller who has named an engine gets no other one.
        """
        p = replace(self.problem, packed_once=True)
        engine = self.engine
        if self.chosen_by not in ("", "the caller"):
            offers = {c.engine: c.seconds for c in host_candidates(p) if c.why_not is None}
            engine = min(offers, key=lambda name: offers[name])
        return host_plan(p, engine, view=view, take=_take, bits=_bits)

    def warmup(self) -> tuple[str, ...]:
        return self.inner.warmup()

    def pack(self, weight: Any, /) -> PackedWeight:
        # that keeps the memory alive, but not the caller's tensor
        own = weight if transformed() or records(weight) else weight.detach()
        if not _has_values(weight):
            return PackedWeight(self.stamp, _Weight(None, False, own, {}), 0)
        once = records(weight)
        packed = _packed(self.once if once else self.inner, weight)
        return PackedWeight(self.stamp, _Weight(packed, once, own, {}), packed.nbytes, packed.separable)

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        packed, _, own, _ = weight.data
        arrays = [array for array in (x, own, bias, residual) if array is not None]
        if packed is None or not _has_values(x, bias, residual):
            return False
        recorded = torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
        if recorded or not self.inner.fuses(x, packed, bias, residual):
            return False
        if not _channels_last(x):
            return True
        last = self._of_channels_last
        if last is None:
            return False
        return last.fuses(_turned(x), _packed_by(last, weight.data), bias, _turned(residual))

    @property
    def _of_channels_last(self) -> Plan | None:
        """The plan of images in that memory format; a caller who has named an engine gets no other one."""
        return self.last if self.chosen_by == "the caller" else self.best_last

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        packed, once, own, _ = weight.data
        if out is None and _channels_last(x):
            last = self._of_channels_last
            if last is None:
                y = self.execute(x.contiguous(), weight, bias)
                return y.contiguous(memory_format=torch.channels_last)
            kept = _packed_by(last, weight.data)
            if last is self.native:
                return last.execute(x, kept, bias)
            return executed(last, _turned(x), kept, bias, _turned(residual)).permute(0, 3, 1, 2)
        if packed is None or not _has_values(x, bias):
            return self.native.execute(x, self.native.pack(own), bias, out=out)
        plan = self.once if once else self.inner
        if packed.stamp != plan.stamp:  # by a plan for another image, which has another engine for such weights
            packed = _packed(plan, own)
        found = _Packed(plan, packed)
        if out is not None:
            return _written(x, found, bias, residual, out)
        if torch.is_grad_enabled() and (
            x.requires_grad or own.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return _Convolution.apply(x, own, bias, self, found)
        return _computed(x, found, bias, residual)


def windowed_on_host(x: Any, operation: WindowOperation) -> Any:
    """Pooling or interpolation by NumPy, in the memory format of the tensor; None where it cannot see the tensor."""
    if not _has_values(x):
        return None
    if operation.layout == "NCHW" and _channels_last(x):
        return windowed_on_host(x.permute(0, 2, 3, 1), replace(operation, layout="NHWC")).permute(0, 3, 1, 2)
    with _limit():
        return torch.from_numpy(windows.applied(view(x), operation)).to(x.dtype)


def _turned(x: Any) -> Any:
    """A tensor's memory in NHWC, or None for none."""
    return None if x is None else x.permute(0, 2, 3, 1)


def _packed_by(last: Plan, weight: _Weight) -> PackedWeight:
    """The weight as the plan of images in another memory format reads it, packed once."""
    if (kept := weight.others.get(last.stamp)) is None:
        kept = weight.others[last.stamp] = last.pack(weight.weight)
    return kept


def _packed(plan: HostPlan, weight: Any) -> PackedWeight:
    with _limit():
        return plan.pack(weight)


def _computed(x: Any, packed: _Packed, bias: Any, residual: Any = None) -> Any:
    """The result, of which nothing is recorded."""
    with _limit():
        return packed.plan.execute(x, packed.weight, bias, residual=residual)


def _written(x: Any, packed: _Packed, bias: Any, residual: Any, out: Any) -> Any:
    if out.dtype == torch.bfloat16 or packed.plan.problem.x_dtype == "bfloat16":
        return out.copy_(_computed(x, packed, bias, residual))
    bias, residual = (None if array is None else view(array) for array in (bias, residual))
    with _limit():
        packed.plan.inner.execute(view(x), packed.weight.data, bias, residual=residual, out=view(out))
    return out


# F, X and W of the text above. What is differentiated again has a graph: their backward functions call them by `apply`.


class _Convolution(torch.autograd.Function):  # type: ignore[misc]  # PyTorch is not typed here
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, plan: TorchHostPlan, packed: _Packed | None) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.plan, ctx.bias = plan, None if bias is None else (bias.shape, bias.dtype)
        if packed is None:
            packed = _Packed(plan.once, _packed(plan.once, weight))
        return _computed(x, packed, bias)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dx = _ImageGradient.apply(weight, dy, ctx.plan).to(x.dtype) if needs_x else None
        dweight = _WeightGradient.apply(x, dy, ctx.plan, weight.shape, weight.dtype) if needs_weight else None
        dbias = _bias_gradient(ctx.plan.problem, dy, *ctx.bias) if needs_bias else None
        return dx, dweight, dbias, None, None


class _ImageGradient(torch.autograd.Function):  # type: ignore[misc]  # PyTorch is not typed here
    @staticmethod
    def forward(ctx: Any, weight: Any, dy: Any, plan: TorchHostPlan) -> Any:
        ctx.save_for_backward(weight, dy)
        ctx.plan = plan
        with _limit():
            value = gradient.image_gradient(bridged(plan.problem), view(weight), view(dy))
        return torch.from_numpy(value).to(getattr(torch, plan.problem.dtype))

    @staticmethod
    def backward(ctx: Any, u: Any) -> Any:
        weight, dy = ctx.saved_tensors
        needs_weight, needs_dy, _ = ctx.needs_input_grad
        found = _WeightGradient.apply(u, dy, ctx.plan, weight.shape, weight.dtype) if needs_weight else None
        return found, _Convolution.apply(u, weight, None, ctx.plan, None) if needs_dy else None, None


class _WeightGradient(torch.autograd.Function):  # type: ignore[misc]  # PyTorch is not typed here
    @staticmethod
    def forward(ctx: Any, x: Any, dy: Any, plan: TorchHostPlan, shape: Any, dtype: Any) -> Any:
        ctx.save_for_backward(x, dy)
        ctx.plan = plan
        with _limit():
            value = gradient.weight_gradient(bridged(plan.problem), view(x), view(dy))
        return torch.from_numpy(value).reshape(shape).to(dtype)

    @staticmethod
    def backward(ctx: Any, v: Any) -> Any:
        x, dy = ctx.saved_tensors
        needs_x, needs_dy, *_ = ctx.needs_input_grad
        dx = _ImageGradient.apply(v, dy, ctx.plan).to(x.dtype) if needs_x else None
        return dx, _Convolution.apply(x, v, None, ctx.plan, None) if needs_dy else None, None, None, None


def _bias_gradient(p: Problem, dy: Any, shape: Any, dtype: Any) -> Any:
    """In float64, or in pairs: long sums of float32 would not keep the bound."""
    if p.dtype == "float64" and p.batch:
        images = dy.permute(0, 2, 3, 1) if p.layout == "NCHW" else dy
        total = gradient.in_pairs(images.reshape(-1, p.out_channels))
    else:
        total = dy.double().sum((0, 2, 3) if p.layout == "NCHW" else (0, 1, 2))
    return total.reshape(shape).to(dtype)
