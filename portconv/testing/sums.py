"""Sums of float64 without rounding errors to speak of: error-free products, compensated sums.

Sources: Ogita, Rump, Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26 (2005); Dekker, "A floating-point
technique for extending the available precision", Numer. Math. 18 (1971).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Array", "Sum", "dot"]

Array = np.ndarray[Any, Any]
_SPLITTER = 2.0**27 + 1


def halves(a: Array) -> tuple[Array, Array]:
    """Two numbers of half as many digits, whose sum is `a`."""
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


def product_of(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product, and its error."""
    p = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return p, a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)


def added(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum, and its error."""
    s = a + b
    z = s - a
    return s, (a - (s - z)) + (b - z)


class Sum:
    """A sum of arrays; with `exact` the errors of all its steps are summed apart."""

    def __init__(self, shape: Sequence[int], exact: bool) -> None:
        self.exact = exact
        self.high, self.low = np.zeros(shape), np.zeros(shape if exact else ())

    def add(self, a: Array, where: Any = ...) -> None:
        if not self.exact:
            self.high[where] += a
            return
        self.high[where], error = added(self.high[where], a)
        self.low[where] += error

    def add_products(self, a: Array, b: Array, where: Any = ...) -> None:
        """Add the sums of the products along the last axis."""
        if not self.exact:
            self.high[where] += dot(a, b, exact=False)
            return
        high, low = folded(*product_of(*np.broadcast_arrays(a, b)))
        self.add(high, where)
        self.low[where] += low

    @property
    def value(self) -> Array:
        """The sum; where it is not finite, as the plain sum has it."""
        total = self.high + self.low
        return np.where(np.isfinite(total), total, self.high)


def folded(terms: Array, errors: Array) -> tuple[Array, Array]:
    """The sum along the last axis, which is not empty, pair by pair, and that of the errors of all steps."""
    low = errors.sum(axis=-1)
    while (count := terms.shape[-1]) > 1:
        half = count // 2
        joined, errors = added(terms[..., :half], terms[..., half : 2 * half])
        low = low + errors.sum(axis=-1)
        terms = joined if count % 2 == 0 else np.concatenate([joined, terms[..., -1:]], axis=-1)
    return terms[..., 0], low


def dot(a: Array, b: Array, exact: bool) -> Array:
    """The sum of the products along the last axis."""
    if not exact:
        return np.asarray(np.einsum("...k,...k->...", a, b, optimize=False))
    products, errors = product_of(*np.broadcast_arrays(a, b))
    if products.shape[-1] == 0:
        return np.zeros(products.shape[:-1])
    high, low = folded(products, errors)
    total = high + low
    return np.asarray(np.where(np.isfinite(total), total, products.sum(axis=-1)))
