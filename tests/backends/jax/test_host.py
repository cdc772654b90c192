"""NumPy's arrays as arrays of JAX, and the reverse: without a copy, on the device asked for, with values."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import numbers


@pytest.fixture(params=["JAX's own name", "device_put"])
def host(jax, request, monkeypatch):
    from portconv.backends.jax import host

    if request.param == "device_put":  # of a JAX without that name
        monkeypatch.setattr(host, "batched_device_put", None)
    else:
        assert host.batched_device_put is not None
    return host


def aligned(shape):
    """Memory that XLA can use as it is."""
    memory = np.empty(int(np.prod(shape)) + 32, np.float32)
    first = -memory.ctypes.data % 64 // 4
    y = memory[first : first + int(np.prod(shape))].reshape(shape)
    y[...] = numbers(shape)
    return y


def test_arrays_are_placed_without_a_copy(jax, host):
    y = aligned((3, 5, 7))
    taken = host.placed(y, jax.devices("cpu")[0])
    assert isinstance(taken, jax.Array)
    np.testing.assert_array_equal(taken, y)
    assert taken.unsafe_buffer_pointer() == y.ctypes.data
    assert taken.devices() == {jax.devices("cpu")[0]}
    assert host.view(taken).ctypes.data == y.ctypes.data


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "uint8", "int32", "bool"])
def test_every_dtype(jax, host, dtype):
    y = np.asarray(jax.numpy.asarray(numbers((2, 3)) > 0, dtype))
    taken = host.placed(y, jax.devices("cpu")[0])
    assert str(taken.dtype) == dtype
    np.testing.assert_array_equal(host.view(taken), y.astype("f4"))
    assert (jax.numpy.ones(3, dtype) + taken[0]).dtype == taken.dtype  # and no weak type


def test_arrays_have_values_while_a_function_is_traced(jax, host):
    x, weight = (jax.numpy.asarray(numbers(shape)) for shape in ((1, 2, 6, 7), (3, 2, 3, 3)))
    seen = []

    def function(a):
        seen.append(portconv.conv2d(x, weight))
        seen.append(portconv.conv2d(x, weight, out_dtype="float16"))
        return a * seen[0]

    y = jax.jit(function)(2.0)
    np.testing.assert_allclose(y, 2 * np.asarray(seen[0]), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(seen[1]), np.asarray(seen[0]), rtol=1e-3, atol=1e-3)
