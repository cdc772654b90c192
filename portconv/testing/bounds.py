"""The largest error that portconv allows itself, and the comparison of a result with the exact one."""

from __future__ import annotations

from typing import Any

import numpy as np

from .oracle import Reference

__all__ = ["assert_close", "error_bound"]

Array = np.ndarray[Any, Any]

# Of each dtype: half the distance between neighbours, relative, and half the smallest subnormal number, which is what
# rounding a result to it adds; and the magnitude from which on rounding gives infinity.
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
_OVERFLOW = {"float16": 65520.0, "bfloat16": 2.0**128 * (1 - 2.0**-9), "float32": 2.0**128 * (1 - 2.0**-25)}


def error_bound(reference: Reference, dtype: str, accuracy: str = "normwise") -> Array:
    """The largest error that portconv allows itself at every output.

    ``8 eps c``, with ``accuracy="normwise"`` ``24 eps C`` besides (`Reference.largest`), and for each term the smallest
    normal number, which underflow may cost. `eps` is that of float32 for float16 and bfloat16, whose own rounding is
    not included: see `assert_close`.

    Parameters
    ----------
    reference
        Of `reference_conv2d`.
    dtype
        Name of the result's dtype.
    accuracy
        ``"normwise"`` or ``"elementwise"``.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import reference_conv2d
    >>> exact = reference_conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))
    >>> float(error_bound(exact, "float32", "elementwise")[0, 0, 0, 0]) / 2**-23
    72.0
    """
    info = np.finfo(np.float64 if dtype == "float64" else np.float32)
    bound = 8 * float(info.eps) * np.where(np.isfinite(reference.c), reference.c, 0)
    if accuracy == "normwise":
        bound = bound + 24 * float(info.eps) * reference.largest
    return np.asarray(bound + reference.terms * float(info.tiny))


def assert_close(
    actual: Array,
    reference: Reference,
    *,
    dtype: str | None = None,
    accuracy: str = "normwise",
    computed: str | None = None,
) -> float:
    """Raise `AssertionError` unless `actual` is within the bound at every output; return the largest share of it used.

    NaN and infinity must be where the exact result has them; a finite one that is too large for the dtype must come as
    infinity.

    Parameters
    ----------
    actual
        A result as a NumPy array.
    reference
        What `reference_conv2d` gives.
    dtype
        Name of the result's dtype, if it is not that of `actual` (bfloat16, which NumPy lacks).
    accuracy
        ``"normwise"`` or ``"elementwise"``.
    computed
        Name of the dtype that the arguments promote to, if the result was rounded to another one (``out_dtype``).
        Integers may be off by half a step more, are the nearest that there is where the result is too large, and 0
        for NaN.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> from portconv.testing import reference_conv2d
    >>> x, weight = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
    >>> assert_close(portconv.conv2d(x, weight), reference_conv2d(x, weight))
    0.0
    """
    name = dtype or actual.dtype.name
    expected = reference.y
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    got = actual.astype(np.float64)
    bound = error_bound(reference, computed or name, accuracy)
    rounding = 0.0  # of integers
    if np.issubdtype(actual.dtype, np.integer):
        limits = np.iinfo(actual.dtype)
        # a sum of float32 may be infinite where the exact one is not: both are the largest number
        expected = np.clip(np.where(np.isnan(expected), 0, expected), float(limits.min), float(limits.max))
        rounding = 0.5 + np.abs(expected) * 2.0**-52
    size = np.where(np.isfinite(expected), np.abs(expected), 0)
    # sums that overflow where they are computed are infinite in a wider dtype, too
    limit = _OVERFLOW.get("float32" if name == "float64" and computed not in (None, name) else name, np.inf)
    # what is about as large as the largest number may be rounded to either side
    either = (size + bound >= limit) & (size - bound < limit)
    expected = np.where(size - bound >= limit, np.copysign(np.inf, expected), expected)
    expected = np.where(either & np.isinf(got), got, expected)
    finite = np.isfinite(expected)
    wrong = (finite != np.isfinite(got)) | (~finite & ~((got == expected) | (np.isnan(got) & np.isnan(expected))))
    if wrong.any():
        where = _first(wrong)
        raise AssertionError(
            f"{int(wrong.sum())} outputs are finite in one of the two and not in the other, or infinite values differ; "
            f"at {where}: got {float(got[where])!r}, expected {float(expected[where])!r}"
        )
    if name in _ROUNDING:
        bound = bound + size * _ROUNDING[name] + _SMALLEST[name]
    if name == "float32" and computed == "float64":
        bound = bound + size * 2.0**-24 + 2.0**-150
    error = np.abs(np.where(finite, got, 0) - np.where(finite, expected, 0))
    error = np.maximum(error - rounding, 0)
    share = error / bound  # no bound is zero: each has the smallest normal number in it
    worst = float(np.max(share, initial=0.0))
    if worst > 1:
        where = _first(share == worst)
        raise AssertionError(
            f"at {where}: got {float(got[where])!r}, expected {float(expected[where])!r}; the error {error[where]:.3g} "
            f"is {worst:.3g} times the bound {bound[where]:.3g} ({accuracy}, {name}); {int((share > 1).sum())} of "
            f"{share.size} outputs are beyond it"
        )
    return worst


def _first(marks: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(marks)), marks.shape))
