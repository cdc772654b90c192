"""`array_namespace`, `device`, `to_device`, `size` and `is_mlx_array`."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import WEIGHT, X


def test_array_namespace(backend):
    xp = portconv.array_namespace(backend.array(X))
    assert xp is portconv.array_namespace(None, backend.array(X), 2.0, 1, backend.array(WEIGHT), None)
    y = xp.sum(xp.reshape(backend.array(X), (-1,)))
    backend.check(xp.zeros((2, 3)))
    assert float(y) == 72
    assert xp.concat is not None
    if backend.package == "mlx":
        assert xp.__name__ == "portconv.namespaces.mlx"


def test_array_namespace_of_several_libraries(library):
    arrays = {name: library(name).array(X) for name in ("numpy", "mlx", "torch", "jax", "array_api_strict")}
    for mine, x in arrays.items():
        for other, y in arrays.items():
            if mine != other:
                with pytest.raises(TypeError):
                    portconv.array_namespace(x, y)


@pytest.mark.parametrize("values", [(), (None,), (1.0,), ([1.0, 2.0],), ("x",)])
def test_array_namespace_of_no_array(values):
    with pytest.raises(TypeError):
        portconv.array_namespace(*values)


def test_to_the_device_where_it_is(backend):
    x = backend.array(X)
    device = portconv.device(x)
    y = portconv.to_device(x, device)
    backend.check(y)
    assert portconv.device(y) == device
    np.testing.assert_array_equal(backend.numpy(y), X)


def test_size_and_library(backend):
    x = backend.array(X)
    assert portconv.size(x) == X.size and type(portconv.size(x)) is int
    assert portconv.is_mlx_array(x) is (backend.package == "mlx")


def test_a_size_that_is_not_known():
    da = pytest.importorskip("dask.array")
    x = da.from_array(X)
    assert portconv.size(x[x > 2]) is None


def test_what_is_no_array():
    mx = pytest.importorskip("mlx.core")
    for value in (None, 1.0, [1.0], (2, 3), "x", mx.float32, mx.Device(mx.cpu, 0)):
        assert not portconv.is_mlx_array(value)
        for function in (portconv.size, portconv.device, lambda x: portconv.to_device(x, "cpu")):
            with pytest.raises(TypeError, match="`x` must be an array"):
                function(value)
