"""Activations of NumPy's arrays, beside those of any library."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.core.epilogue import Activation
from portconv.core.words import ACTIVATIONS
from portconv.cpu import activations
from portconv.engines import activations as everywhere

SLOPES = [("leaky_relu", 0.3), ("leaky_relu", 1.0)]
OTHERS = [("leaky_relu", -1.5), ("leaky_relu", 0.0), ("leaky_relu", 2.0)]
# Rounding errors of the last digit that the result may have, besides those of what is subtracted in it.
UNITS = {"relu": 0, "relu6": 0, "leaky_relu": 1, "hard_swish": 4, "sigmoid": 4, "silu": 5, "gelu": 8}


def numbers(dtype):
    far = np.logspace(-6, np.log10(np.finfo(dtype).max / 2), 4001)
    x = np.concatenate([np.linspace(-7, 7, 40001), far, -far, [0, -0.0, 3, -3, 6, activations.NEAR, activations.ONE]])
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("given", [*((name, None) for name in ACTIVATIONS if name != "leaky_relu"), *SLOPES], ids=str)
def test_errors(given, dtype):
    name, slope = given
    activation = Activation(name) if slope is None else Activation(name, slope)
    x, info = numbers(dtype), np.finfo(dtype)
    with np.errstate(all="ignore"):
        found = activations.activated(x, activation)
        if found is None:  # NumPy's own function is what any library's is
            assert name == "tanh"
            return
        exact = everywhere.activated(np, x.astype(np.longdouble), activation)
        of_sum = np.abs(x) if name == "gelu" else 0  # 1 + erf
        bound = info.eps * (UNITS[name] * np.abs(exact) + of_sum) + info.smallest_normal
    finite = np.isfinite(exact) & (np.abs(exact) < info.max)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    assert (np.abs(found - exact)[finite] <= bound[finite] if np.ndim(bound) else bound).all()
    assert found.dtype == x.dtype


@pytest.mark.parametrize("given", [*ACTIVATIONS, *SLOPES], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_not_finite(given, dtype):
    activation = Activation(*given) if isinstance(given, tuple) else Activation(given)
    x = np.array([np.nan, np.inf, -np.inf, 1], dtype)
    with np.errstate(all="ignore"):
        found, expected = activations.activated(x, activation), everywhere.activated(np, x, activation)
    if found is not None:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(x, np.array([np.nan, np.inf, -np.inf, 1], dtype))  # it is not written to


@pytest.mark.parametrize("given", OTHERS, ids=str)
def test_slopes_that_have_no_short_form(given):
    assert activations.activated(np.ones(3, "f4"), Activation(*given)) is None
