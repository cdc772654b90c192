"""Kernels that are products of a column and a row: Gaussians, boxes, Sobel's."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["factors"]

Array = np.ndarray[Any, Any]

# Rounding a product of two float32 factors that were rounded themselves gives 1.5 eps; with the rounding of two passes
# the whole stays within the elementwise bound.
TOLERANCE = 1.5


def factors(weight: Array, dtype: str) -> tuple[Array, Array] | None:
    """Columns (n, kh) and rows (n, kw) with `weight[n, i, j] == column[n, i] * row[n, j]` to rounding, or None.

    The row with the largest norm is a first guess, and one least-squares step for each factor averages the rounding
    errors of the kernel. A zero of the kernel must be an exact zero of the product.

    Parameters
    ----------
    weight
        Kernels, (n, kh, kw).
    dtype
        Of the computation: what "to rounding" means, and the dtype of the factors.
    """
    # most kernels are not separable, and the first one shows it
    if len(weight) > 1 and factors(weight[:1], dtype) is None:
        return None
    wide = np.longdouble if dtype == "float64" else np.float64  # where that is no wider, few float64 kernels pass
    w: Any = weight.astype(wide)
    with np.errstate(all="ignore"):
        largest = np.argmax(np.einsum("nij,nij->ni", w, w), axis=1)
        row = w[np.arange(len(w)), largest]
        column = np.einsum("nij,nj->ni", w, row)
        row = np.einsum("nij,ni->nj", w, column)
        # the row's largest element is one: integers stay integers
        row /= np.take_along_axis(row, np.argmax(np.abs(row), axis=1)[:, None], axis=1)
        column = np.einsum("nij,nj->ni", w, row) / np.einsum("nj,nj->n", row, row)[:, None]
        column, row = column.astype(dtype), row.astype(dtype)
        error = np.abs(column[:, :, None].astype(wide) * row[:, None, :] - w)
        good = error <= TOLERANCE * np.finfo(dtype).eps * np.abs(w)  # false for NaN, so for kernels of zeros
        # gradual underflow would lose digits
        smallest = np.abs(w[w != 0]).min(initial=1.0)
    if not good.all() or smallest < np.finfo(dtype).tiny / np.finfo(dtype).eps:
        return None
    return column, row
