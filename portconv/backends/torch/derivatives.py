"""Gradients for a cotangent, by autograd, which computes none that nobody wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...core.backend import PackedWeight, Plan, Pullback, Wanted
from ..base import by_argument, function_of, replaced
from .operations import records, transformed

__all__ = ["value_and_pullback"]


def value_and_pullback(
    plan: Plan, arrays: tuple[Any, Any, Any], wanted: Wanted, pack: Callable[[], PackedWeight]
) -> tuple[Any, Pullback]:
    """See `portconv.extending.Differentiable`; `arrays` are image, weight and bias.

    Where gradients of the arrays are recorded already, the result and its gradients are recorded, too.
    """
    some = [array for array, want in zip(arrays, wanted, strict=True) if want]
    if transformed():
        y, pullback = torch.func.vjp(function_of(plan, arrays, wanted), *some)
        return y, lambda dy: by_argument(pullback(dy), wanted)

    recorded = any(records(array) for array in arrays if array is not None)
    # what was made in inference mode cannot be recorded, and is copied
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [a if records(a) else (a.clone() if a.is_inference() else a.detach()).requires_grad_() for a in some]
        others = [a.clone() if a is not None and a.is_inference() else a for a in arrays]
        x, weight, bias = replaced(others, wanted, leaves)
        y = plan.execute(x, plan.pack(weight) if wanted[1] else pack(), bias)

    def vjp(dy: Any) -> tuple[Any, Any, Any]:
        with torch.inference_mode(False):
            dy = dy.clone() if dy.is_inference() else dy
            found = torch.autograd.grad(
                y, leaves, dy, retain_graph=True, create_graph=recorded, allow_unused=True, materialize_grads=True
            )
        return by_argument(found, wanted)

    return y if recorded else y.detach(), vjp
