"""portconv's engines in PyTorch's operations: on devices whose memory NumPy cannot see.

Autograd and the transforms of `torch.func` see every operation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ...core.backend import PackedWeight
from ...core.epilogue import Activation
from ...core.problem import Problem
from ...core.shapes import met_taps
from ...engines import activations
from ..base import OuterPlan, QuietSteps

__all__ = ["OpsPlan", "TorchSteps", "activated", "leaves_out", "records", "transformed"]

_OWN = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "gelu": lambda x: x * ((torch.erf(x * math.sqrt(0.5)) + 1) / 2),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activated(x: Any, activation: Activation) -> Any:
    """The activation, by PyTorch's own operations.

    Its hardswish makes NaN of -inf, and its gelu of inf (2.13, on a CPU).
    """
    if activation.name == "leaky_relu":
        return functional.leaky_relu(x, activation.slope)
    own = _OWN.get(activation.name)
    return activations.activated(torch, x, activation) if own is None else own(x)


class TorchSteps(QuietSteps):
    """PyTorch's."""

    adds_in_pairs = True

    def activated(self, x: Any, activation: Activation) -> Any:
        return activated(x, activation)

    def records(self, *arrays: Any) -> bool:
        return any(records(x) for x in arrays)


def records(x: Any) -> bool:
    """Whether a gradient of the tensor may be recorded: by autograd, or somewhere in a nest of `torch.func`."""
    recorded = x.requires_grad and torch.is_grad_enabled()
    return bool(recorded or torch._C._functorch.is_functorch_wrapped_tensor(x))


def transformed() -> bool:
    """Whether a function is being transformed by `torch.func`, which then wraps all tensors that are made."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class _Weight(NamedTuple):
    packed: PackedWeight
    weight: Any  # the user's, if its gradient is recorded


@dataclass(frozen=True, kw_only=True)
class OpsPlan(OuterPlan):
    """An engine whose gradients are summed in the dtype of the computation, and reach every argument.

    Autograd adds in the dtype that an array has where it is used: an image of bfloat16 whose windows overlap, or whose
    edge is copied, would collect one rounding error after the other. So what is differentiated is cast first, as a
    whole; of all other images only the block at hand becomes float32.
    """

    apart: bool = False  # whether the engine may leave an argument out of the arithmetic

    def pack(self, weight: Any, /) -> PackedWeight:
        recorded = records(weight)
        packed = self.inner.pack(self._wide(weight))
        return replace(packed, data=_Weight(packed, weight if recorded else None))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, **options: Any) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        data: _Weight = weight.data
        y = self.inner.execute(self._wide(x), data.packed, bias, **options)
        if self.apart:
            for argument in (x, data.weight, bias):
                if argument is not None and records(argument):
                    y = y + argument[:0].sum().to(y.dtype)  # zero, whose gradient is zero everywhere
        return y

    def _wide(self, array: Any) -> Any:
        known = array.is_floating_point() and records(array)
        return array.to(getattr(torch, self.problem.compute_dtype)) if known else array


def leaves_out(p: Problem) -> bool:
    """Whether the result is empty, or every output lies in padding with zeros."""
    axes = zip(p.out_size, (p.height, p.width), p.kernel, p.stride, p.dilation, p.padding[::2], strict=True)
    return 0 in p.out_shape or (p.padding_mode == "zeros" and not all(any(met_taps(*axis)) for axis in axes))
