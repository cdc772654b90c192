"""The activations and their derivatives, written once against the array API.

Those that are not zero or one below zero are computed from ``exp`` of numbers that are not positive, which cannot
overflow; and no branch that `where` leaves out is infinite, so that libraries which differentiate these steps by
themselves make no NaN of it.

Source of `erf`: Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..core.epilogue import Activation

__all__ = [
    "MIDDLE_BOTTOM",
    "MIDDLE_TOP",
    "NEAR",
    "NEAR_BOTTOM",
    "NEAR_TOP",
    "ONE",
    "activated",
    "derivative",
    "erf",
]

# Coefficients of Cody's approximations, the highest power first: near zero, in the middle, and far away.
NEAR = 0.46875
NEAR_TOP = (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
             3.20937758913846947e3)  # fmt: skip
NEAR_BOTTOM = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
MIDDLE_TOP = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
               2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
               1.23033935479799725e3)  # fmt: skip
MIDDLE_BOTTOM = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
                  3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
                  1.23033935480374942e3)  # fmt: skip
ONE = 5.9  # from which on float64 has no number between erf and 1


def activated(xp: ModuleType, x: Any, activation: Activation) -> Any:
    """``activation(x)`` for an array of a real floating dtype. NaN stays NaN."""
    zero = xp.zeros_like(x)
    match activation.name:
        case "relu":
            return xp.where(x <= 0, zero, x)
        case "relu6":
            return xp.where(x <= 0, zero, xp.where(x >= 6, zero + 6, x))
        case "leaky_relu":
            return xp.where(x <= 0, activation.slope * x, x)
        case "hard_swish":
            inner = xp.where(x <= -3, zero, x)
            return xp.where(x >= 3, x, inner * (xp.where(x >= 3, zero, inner) + 3) / 6)
        case "sigmoid":
            return _sigmoid(xp, x)
        case "silu":
            return x * _sigmoid(xp, x)
        case "tanh":
            return xp.tanh(x)
        case "gelu":
            return x * ((erf(xp, x * math.sqrt(0.5)) + 1) / 2)
    raise ValueError(f"there is no activation {activation.name!r}")


def derivative(xp: ModuleType, x: Any, activation: Activation) -> Any:
    """The derivative at `x`; where there is none, from the left, as most libraries have it."""
    zero = xp.zeros_like(x)
    one = zero + 1
    match activation.name:
        case "relu":
            return xp.where(x <= 0, zero, one)
        case "relu6":
            return xp.where((x <= 0) | (x >= 6), zero, one)
        case "leaky_relu":
            return xp.where(x <= 0, zero + activation.slope, one)
        case "hard_swish":
            return xp.where(x <= -3, zero, xp.where(x >= 3, one, xp.where(abs(x) < 3, x, zero) / 3 + 0.5))
        case "sigmoid":
            s = _sigmoid(xp, x)
            return s * (1 - s)
        case "silu":
            s, finite = _sigmoid(xp, x), xp.where(abs(x) < 1e4, x, zero)  # beyond, s is 0 or 1
            return s * (1 + finite * (1 - s))
        case "tanh":
            t = xp.tanh(x)
            return 1 - t * t
        case "gelu":
            finite = xp.where(abs(x) < 1e4, x, zero)
            density = xp.exp(finite * finite / -2) * math.sqrt(0.5 / math.pi)
            return (erf(xp, x * math.sqrt(0.5)) + 1) / 2 + finite * density
    raise ValueError(f"there is no activation {activation.name!r}")


def _sigmoid(xp: ModuleType, x: Any) -> Any:
    small = xp.exp(xp.where(x <= 0, x, -x))  # not of `abs`, whose derivative at zero is none
    return xp.where(x <= 0, small, xp.ones_like(x)) / (1 + small)


def erf(xp: ModuleType, x: Any) -> Any:
    """The error function, to some units of rounding of its dtype."""
    zero = xp.zeros_like(x)
    size = xp.where(x <= 0, -x, x)
    near = xp.where(size <= NEAR, x, zero)
    square = near * near
    inner = near * _polynomial(NEAR_TOP, square) / _polynomial(NEAR_BOTTOM, square)
    middle = xp.where((size > NEAR) & (size < ONE), size, zero + 1)
    tail = xp.exp(-(middle * middle)) * _polynomial(MIDDLE_TOP, middle) / _polynomial(MIDDLE_BOTTOM, middle)
    outer = xp.where(size >= ONE, zero + 1, 1 - tail)
    found = xp.where(size <= NEAR, inner, xp.where(x <= 0, -outer, outer))
    return xp.where(x != x, x, found)  # NaN


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    total = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
