"""Gradients of Dask's arrays."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import numbers

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")


def refuse(*_args, **_kwargs):
    raise AssertionError("something was computed")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("chunks", [(2, 3, 4, 5), (1, -1, -1, -1), (3, 1, 7, 9), -1])
def test_they_are_lazy_and_those_of_numpy(layout, chunks):
    x, weight, bias = numbers((5, 6, 9, 11)), numbers((8, 6 if layout == "NCHW" else 11, 3, 3), 1), numbers((8,), 2)
    options = {"padding": 1, "padding_mode": "reflect", "layout": layout, "stride": 2}
    y, vjp = portconv.conv2d_vjp(x, weight, bias, **options)
    dy = numbers(y.shape, 3)
    with dask.config.set(scheduler=refuse):
        arrays = da.from_array(x, chunks=chunks), da.from_array(weight, chunks=(3, -1, -1, 2)), da.from_array(bias)
        lazy, lazy_vjp = portconv.conv2d_vjp(*arrays, **options)
        found = lazy_vjp(da.from_array(dy, chunks=(2, -1, 2, -1)))
        only_bias = portconv.conv2d_vjp(*arrays, wrt="bias", **options)[1](da.from_array(dy))
    result, bias_alone, *gradients = dask.compute(lazy, only_bias[2], *found)  # what they share, once
    np.testing.assert_allclose(result, y, rtol=1e-5, atol=1e-5)
    for one, value, expected in zip(found, gradients, vjp(dy), strict=True):
        assert one.shape == value.shape == expected.shape
        assert one.dtype == value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    assert only_bias[:2] == (None, None)
    np.testing.assert_allclose(bias_alone, vjp(dy)[2], rtol=1e-5, atol=1e-4)


def test_sums_over_the_batch_are_rounded_once():
    # 300 parts, each of which would lose its last digits in the running sum
    x, weight = np.full((300, 1, 4, 4), 0.1, np.float16), np.full((1, 1, 3, 3), 0.3, np.float16)
    y, vjp = portconv.conv2d_vjp(da.from_array(x, chunks=(1, -1, -1, -1)), da.from_array(weight))
    _, dweight, _ = vjp(da.ones(y.shape, dtype=np.float16, chunks=(1, -1, -1, -1)))
    exact = 300 * 4 * float(np.float16(0.1))
    assert dweight.dtype == np.float16
    np.testing.assert_array_equal(dweight.compute(), np.float16(exact))


def test_no_image():
    x, weight = da.zeros((0, 2, 5, 5), dtype="f4", chunks=(1, 2, 5, 5)), da.ones((3, 2, 3, 3), dtype="f4")
    y, vjp = portconv.conv2d_vjp(x, weight)
    dx, dweight, _ = vjp(da.zeros(y.shape, dtype="f4", chunks=y.chunks))
    assert dx.compute().shape == x.shape
    np.testing.assert_array_equal(dweight.compute(), 0)


def test_a_gradient_that_its_dtype_has_no_room_for_is_infinite_without_a_warning():
    x, weight = da.from_array(np.ones((1, 1, 2, 2), "f4")), da.from_array(np.full((1, 1, 1, 1), 1e300))
    y, vjp = portconv.conv2d_vjp(x, weight, wrt="x")
    assert y.dtype == np.float64
    with np.errstate(all="raise"):
        dx = vjp(da.ones_like(y))[0].compute(scheduler="synchronous")
    assert dx.dtype == np.float32 and np.isinf(dx).all()
