"""How many terms of a sum may be added one after the other before the sums are added in pairs, in every tier.

Rounding errors of terms that are alike add up: on constant data (a clear sky under a box filter) 192 terms were seen to
give 19 eps c, 32 terms 3.2 eps c. Sums of sums are pairwise and cost next to nothing: Higham, "The accuracy of floating
point summation", SIAM J. Sci. Comput. 14 (1993).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, NamedTuple

from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import ranges

__all__ = ["FREQUENCY_TERMS", "RUN_TERMS", "TERMS", "TILE_TERMS", "accumulate", "cut_sums", "in_pairs", "summed"]

# By the accuracy asked for: of a matrix product, whose BLAS may add one term after the other, and of compiled loops.
TERMS = {"normwise": 192, "elementwise": 32}
# Of a product of spectra: the sum at frequency zero is as delicate as the direct one.
FREQUENCY_TERMS = 128
# Of a product of Winograd's tiles, whose transforms have lost some digits before, by tier.
TILE_TERMS = {"plain": 96, "compiled": 64}
# Of NumPy's `einsum`, which is used for any accuracy.
RUN_TERMS = 32


class Part(NamedTuple):
    """Some taps of a kernel, and what they read of the padded image for all outputs."""

    taps: tuple[slice, slice]
    window: tuple[slice, slice]


def cut_sums(p: Problem, out_size: Pair, terms: int) -> Iterator[tuple[slice, list[Part]]]:
    """Convolutions of at most so many terms, whose sum is the whole: some channels of each group, parts of the taps.

    `out_size` is that of the result, or of a strip of it.
    """
    kh, kw = p.kernel
    cols = min(kw, terms)
    rows = min(kh, terms // cols)

    def window(taps: tuple[slice, slice]) -> tuple[slice, slice]:
        top, left = (
            slice(tap.start * d, (tap.stop - 1) * d + (out - 1) * s + 1)
            for tap, d, out, s in zip(taps, p.dilation, out_size, p.stride, strict=True)
        )
        return top, left

    parts = [Part(taps, window(taps)) for taps in ((i, j) for i in ranges(kh, rows) for j in ranges(kw, cols))]
    for channels in ranges(p.in_channels // p.groups, max(terms // (rows * cols), 1)):
        yield channels, parts


def _add(current: Any, term: Any) -> Any:
    if current is None:
        return term
    current += term
    return current


def accumulate(
    terms: Iterable[Any],
    add: Callable[[Any, Any], Any] = _add,
    leaf: int = 8,
    join: Callable[[Any, Any], Any] = operator.iadd,
) -> Any:
    """Sum of arrays: `leaf` of them one after the other, then in pairs, which keeps rounding errors small.

    Pairwise summation: Higham, "The accuracy of floating point summation", SIAM J. Sci. Comput. 14 (1993). The terms
    may be overwritten; the arrays alive at a time are as many as the logarithm of the terms. `add(sum, term)` gives the
    sum with the term, and `add(None, term)` a new sum; `join` adds two sums, the first of which may be overwritten.
    """
    sums: list[tuple[int, Any]] = []  # (level, partial sum), levels falling, as the digits of a binary counter
    current, count = None, 0
    for term in terms:
        current = add(current, term)
        del term  # before the next one is made
        count += 1
        if count == leaf:
            _carry(sums, current, join)
            current, count = None, 0
    if current is None:
        _, current = sums.pop()
    while sums:
        _, left = sums.pop()
        current = join(left, current)
    return current


def summed(terms: Iterable[Any], add: Callable[[Any, Any], Any] = operator.add) -> Any:
    """`accumulate` by a sum that changes neither array: some cannot change, nor may those that are differentiated."""
    return accumulate(terms, lambda total, term: term if total is None else add(total, term), join=add)


def _carry(sums: list[tuple[int, Any]], value: Any, join: Callable[[Any, Any], Any]) -> None:
    level = 0
    while sums and sums[-1][0] == level:
        _, left = sums.pop()
        value, level = join(left, value), level + 1
    sums.append((level, value))


def in_pairs(terms: Any, add: Callable[[Any, Any], Any] = operator.add) -> Any:
    """Sum along the first axis of an array of any library, in pairs: one after the other, errors would add up.

    It is a new array, to which more may be added in place. `add` is the library's.
    """
    if terms.shape[0] == 1:
        return terms[0, ...] * 1
    rest: list[Any] = []
    while (half := terms.shape[0] // 2) > 0:
        if terms.shape[0] % 2:
            rest.append(terms[-1, ...])
        terms = add(terms[:half, ...], terms[half : 2 * half, ...])
    return reduce(add, reversed(rest), terms[0, ...])
