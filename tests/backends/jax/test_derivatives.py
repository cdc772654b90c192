"""Gradients that JAX takes of what it traces."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import numbers


@pytest.fixture
def arrays(jax):
    found = numbers((2, 4, 9, 8)), numbers((6, 4, 3, 3), 1), numbers((6,), 2)
    return tuple(jax.numpy.asarray(a) for a in found)


@pytest.mark.parametrize("wrt", [None, "x", ("weight", "bias")])
def test_within_a_traced_function(jax, arrays, wrt):
    def gradients(x, weight, bias, dy):
        return portconv.conv2d_vjp(x, weight, bias, padding=1, wrt=wrt)[1](dy)

    dy = jax.numpy.asarray(numbers((2, 6, 9, 8), 3))
    for found, expected in zip(jax.jit(gradients)(*arrays, dy), gradients(*arrays, dy), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_of_a_cotangent_that_is_traced(jax, arrays):
    _, vjp = portconv.conv2d_vjp(*arrays, padding=1)
    dy = jax.numpy.asarray(numbers((2, 6, 9, 8), 3))
    for found, expected in zip(jax.jit(vjp)(dy), vjp(dy), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
