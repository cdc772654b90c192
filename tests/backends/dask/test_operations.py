"""Sums and casts of Dask's arrays that no plan makes: of planes of volumes, and of the chunks of a batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import portconv

da = pytest.importorskip("dask.array", reason="Dask is not installed")
import array_api_compat.dask.array  # noqa: E402  # not without Dask

from portconv.backends.dask import operations  # noqa: E402  # not without Dask


def test_it_is_the_namespace_of_dask_else():
    assert operations.concat is array_api_compat.dask.array.concat and operations.float32 == np.float32
    with pytest.raises(AttributeError):
        operations.nothing  # noqa: B018  # reading it is what fails


def test_sums_and_casts_without_a_warning():
    x = da.from_array(np.array([[np.inf, 3e38], [1.0, 2.0]], "f4"), chunks=1)
    y = da.from_array(np.array([[-np.inf, 3e38]], "f4"))
    total = operations.add(x, y)
    halves = operations.astype(total, np.float16)
    assert operations.astype(total, total.dtype) is total and halves.dtype == np.float16
    found = total.compute(), pickle.loads(pickle.dumps(halves)).compute()
    assert np.isnan(found[0][0, 0]) and np.isposinf(found[0][0, 1]) and np.isneginf(found[0][1, 0])
    np.testing.assert_array_equal(found[1], [[np.nan, np.inf], [-np.inf, np.inf]])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("name", "weight_shape"),
    [
        ("conv_transpose2d", (1, 1, 2, 2)),
        ("conv1d", (1, 1, 2)),
        ("conv3d", (1, 1, 34, 1, 1)),  # its planes are more than are added one after the other
        ("conv_transpose3d", (1, 1, 3, 1, 1)),
    ],
)
def test_what_is_added_outside_of_plans_comes_without_a_warning(name, weight_shape, dtype):
    """Planes of volumes, and gradients of the chunks of a batch; 16 bits have no room for the sums of these numbers."""
    rng = np.random.default_rng(0)
    sizes = (36, 3, 3) if name == "conv3d" else (3,) * (len(weight_shape) - 2)
    x = rng.choice([np.inf, -np.inf, 6e4], (2, 1, *sizes)).astype(dtype)
    weight, bias = np.ones(weight_shape, dtype), np.array([-np.inf], dtype)
    arrays = da.from_array(x, chunks=(1, 1, *sizes)), da.from_array(weight), da.from_array(bias)
    y, vjp = getattr(portconv, f"{name}_vjp")(*arrays)
    found = [getattr(portconv, name)(*arrays), y, *vjp(da.from_array(rng.choice(x.ravel(), y.shape)))]
    for value, like in zip(da.compute(*found), (y, y, *arrays), strict=True):
        assert value.shape == like.shape and value.dtype == dtype and not np.isfinite(value).all()
