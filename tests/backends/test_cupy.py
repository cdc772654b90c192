"""CuPy, as far as it can be told without a GPU."""

from __future__ import annotations

import numpy as np

from portconv.backends import cupy


def test_cupy_sees_zeros_by_their_bits():
    # CuPy's own comparisons take subnormal numbers for zero; NumPy stands in for CuPy, where there is no GPU
    steps = cupy._CupySteps(np)
    for dtype, subnormal in (("float32", 1e-40), ("float64", 1e-310)):
        x = np.array([0.0, -0.0, subnormal, -subnormal, 1.0, np.nan], dtype)
        assert steps.is_zero(x).tolist() == [True, True, False, False, False, False]
        assert steps.transformable(np.ones((2, 3, 3, 3), dtype), dtype)
        assert not steps.transformable(np.full((2, 3, 3, 3), subnormal, dtype), dtype)
