"""Derivatives by JAX, of what it can trace."""

from __future__ import annotations

from typing import Any

import jax

from ...core.backend import Plan, Pullback, Wanted
from ..base import by_argument, function_of

__all__ = ["differentiated"]


def differentiated(plan: Plan, arrays: tuple[Any, Any, Any], wanted: Wanted) -> tuple[Any, Pullback]:
    """A plan's result for image, weight and bias, and what takes its cotangent to the gradients that are wanted."""
    y, pullback = jax.vjp(
        function_of(plan, arrays, wanted), *(array for array, want in zip(arrays, wanted, strict=True) if want)
    )
    return y, lambda dy: by_argument(pullback(dy), wanted)
