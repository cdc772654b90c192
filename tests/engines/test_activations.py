"""The activations by themselves: their accuracy, what is infinite, what is NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest

import portconv
from portconv.core.epilogue import Activation
from portconv.core.words import ACTIVATIONS
from portconv.engines import activations
from portconv.testing import assert_close, reference_conv2d

GIVEN = [*ACTIVATIONS, ("leaky_relu", 0.2), ("leaky_relu", -1.5)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_function_is_that_of_c(dtype):
    x = np.concatenate([np.linspace(-7, 7, 4001), [0.46875, -0.46875, 5.9, -5.9, 1e-300, 0]]).astype(dtype)
    exact = np.array([math.erf(float(value)) for value in x])
    assert np.abs(activations.erf(np, x) - exact).max() <= 2 * np.finfo(dtype).eps
    assert np.isnan(activations.erf(np, np.array([np.nan], dtype)))
    np.testing.assert_array_equal(activations.erf(np, np.array([np.inf, -np.inf], dtype)), [1, -1])


@pytest.mark.parametrize("activation", GIVEN, ids=str)
def test_infinite_sums_and_nan(activation):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -1e4, 1e4], "f4").reshape(1, 1, 1, 6)
    one = np.ones((1, 1, 1, 1), "f4")
    y = portconv.conv2d(x, one, activation=activation)
    assert_close(y, reference_conv2d(x, one).finished(activation))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_keep_their_part_of_the_bound(dtype, tier):
    """Of sums that are exact: 4 eps of the sum, or of the result where that is larger."""
    x = np.concatenate([np.linspace(-8, 8, 4001), np.linspace(-200, 200, 999), np.logspace(-30, 3, 99)]).astype(dtype)
    x, one = x.reshape(1, 1, 1, -1), np.ones((1, 1, 1, 1), dtype)
    for name in ACTIVATIONS:
        y, exact = portconv.conv2d(x, one, activation=name), reference_conv2d(x, one).finished(name).y
        bound = 4 * np.finfo(dtype).eps * np.maximum(np.abs(x), np.abs(exact))
        assert (np.abs(y - exact) <= bound).all(), name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_differences(name):
    x, step = np.linspace(-7.0303, 7.0511, 500), 1e-6
    above, below = (activations.activated(np, x + side, Activation(name, 0.3)) for side in (step, -step))
    found = activations.derivative(np, x, Activation(name, 0.3))
    np.testing.assert_allclose(found, (above - below) / (2 * step), atol=1e-8)


def test_derivatives_far_away_are_finite():
    x = np.array([-np.inf, -1e30, 1e30, np.inf])
    for name in ACTIVATIONS:
        assert np.isfinite(activations.derivative(np, x, Activation(name))).all(), name
