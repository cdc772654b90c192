"""Activations of NumPy's arrays, by few operations, each of which writes over what the one before it has made.

Those of `engines/activations.py` are for any library: there every operation makes a new array, and each element of all
branches is computed for `where` to choose from. That took ten times as long as a small layer itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.epilogue import Activation
from ..engines.activations import MIDDLE_BOTTOM, MIDDLE_TOP, NEAR, NEAR_BOTTOM, NEAR_TOP, ONE

__all__ = ["activated"]

Array = np.ndarray[Any, Any]


def activated(x: Array, activation: Activation) -> Array | None:
    """``activation(x)`` in new memory, for a real floating dtype; None where there is nothing better than elsewhere."""
    found: Array
    match activation.name:
        case "relu":
            return np.maximum(x, 0)
        case "relu6":
            found = np.maximum(x, 0)
            return np.minimum(found, 6, out=found)
        case "leaky_relu" if 0 < activation.slope <= 1:
            found = activation.slope * x
            return np.maximum(x, found, out=found)
        case "hard_swish":
            found = np.maximum(x, -3)
            gate = np.minimum(found, 3)
            gate += 3
            gate /= 6  # 1 where `x` itself is the result
            found *= gate
            return found
        case "sigmoid":
            return _sigmoid(x)
        case "silu":
            found = _sigmoid(x)
            found *= x
            return found
        case "gelu":
            found = _erf(x * math.sqrt(0.5))
            found += 1
            found /= 2
            found *= x
            return found
    return None


def _sigmoid(x: Array) -> Array:
    found: Array = np.minimum(x, 0)
    np.exp(found, out=found)
    below = np.abs(x)
    np.negative(below, out=below)
    np.exp(below, out=below)
    below += 1
    found /= below  # never more than 1, so that no digits are lost where the result is next to nothing
    return found


def _erf(x: Array) -> Array:
    """`engines.activations.erf`; each part is computed for all numbers, for those beyond it at its end."""
    size = np.abs(x)
    near = np.minimum(np.maximum(x, -NEAR), NEAR)
    square = near * near
    near *= _polynomial(NEAR_TOP, square)
    near /= _polynomial(NEAR_BOTTOM, square)
    middle = np.minimum(np.maximum(size, NEAR), ONE + 0.1)  # where even the rounded tail is nothing beside 1
    far: Array = np.negative(np.square(middle))
    np.exp(far, out=far)
    far *= _polynomial(MIDDLE_TOP, middle)
    far /= _polynomial(MIDDLE_BOTTOM, middle)
    np.copysign(np.subtract(1, far, out=far), x, out=far)
    np.copyto(far, near, where=size <= NEAR)
    return far


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    first, *others, last = coefficients
    total = first * x
    for coefficient in others:
        total += coefficient
        total *= x
    total += last
    return total
