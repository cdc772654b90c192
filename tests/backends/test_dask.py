"""Dask: nothing is computed before it is asked, and few tasks."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

import portconv
from portconv import testing
from tests.helpers import WEIGHT, X


def test_dask():
    """Also with the engine that the other tests spare it, and with arrays in several chunks."""
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 4, 9, 8)).astype("f4"), rng.standard_normal((6, 2, 3, 3)).astype("f4")
    for mode, engine in itertools.product(("zeros", "reflect", "replicate", "circular"), ("auto", "gemm", "direct")):
        options = {"stride": (1, 2), "padding": 1, "groups": 2, "padding_mode": mode}
        expected = testing.reference_conv2d(x, weight, **options)
        y = portconv.conv2d(da.from_array(x, chunks=(1, 2, 5, 8)), da.from_array(weight), engine=engine, **options)
        assert isinstance(y, da.Array)
        assert y.dtype == np.float32
        testing.assert_close(y.compute(), expected)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("bad", ["image", "weight"])
def test_dask_is_quiet_about_data_that_are_not_finite(engine, bad):
    """Its tasks run in threads of their own, which know nothing of the caller's settings."""
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 4, 12, 10)).astype("f4"), rng.standard_normal((6, 4, 3, 3)).astype("f4")
    spoiled = x[0, 1] if bad == "image" else weight[2, 1]
    spoiled[1, 1], spoiled[1, 2], spoiled[2, 1] = np.nan, np.inf, -np.inf
    expected = testing.reference_conv2d(x, weight, padding=1).y
    for dtype in ("float32", "float16"):
        scale = 1 if dtype == "float32" else 1e4  # results of float16 overflow besides
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            arrays = da.from_array(x.astype(dtype)), da.from_array((weight * scale).astype(dtype))
            y = portconv.conv2d(*arrays, da.ones((6,), dtype=dtype), padding=1, engine=engine).compute()
        assert np.isnan(y[np.isnan(expected)]).all()
        assert np.isnan(y).any()


def test_dask_warns_of_what_the_user_computes():
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    x = da.log(da.from_array(-X))
    y = portconv.conv2d(x, da.from_array(WEIGHT), engine="gemm")
    with pytest.warns(RuntimeWarning, match="invalid value encountered in log"):
        y.compute()


def test_dask_computes_nothing_before_it_is_asked():
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    computed = []

    def seen(block):
        computed.append(block.shape)
        return block

    x = da.from_array(X).map_blocks(seen, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    y = portconv.conv2d(x, da.from_array(WEIGHT), engine="gemm")
    assert computed == []
    y.compute()
    assert computed == [X.shape]


def test_dask_arrays_of_unknown_size():
    """Dask gives NaN for a size that it would have to compute."""
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    x = da.ones((3, 2, 6, 6))
    x = x[x[:, 0, 0, 0] > 0]
    with pytest.raises(ValueError, match=r"`x`.*nan"):
        portconv.conv2d(x, da.from_array(WEIGHT))


def test_an_empty_array_of_dask(library):
    dask = library("dask")
    for shape in ((0, 16, 205, 5), (0, 3, 4, 5), (2, 0, 7, 7)):
        array = portconv.get_backend("dask").from_numpy(np.zeros(shape, "f4"), dtype="float16")
        assert array.shape == shape and array.dtype == "float16" and dask.numpy(array).shape == shape


def test_dask_adds_the_terms_of_one_group_one_by_one(library):
    """Not those of all groups: what `direct` is refused for is the number of terms of one output."""
    library("dask")
    for groups, refused in ((1, True), (64, False)):
        plan = portconv.plan_conv2d(
            (1, 64, 9, 9), (64, 64 // groups, 5, 5), groups=groups, padding=2, backend="dask", engine="auto"
        )
        offered = {c.engine: c.why_not for c in plan.candidates}
        assert bool(offered["direct"]) is refused


def test_dask_is_not_asked_for_thousands_of_tasks(library):
    backend = library("dask")
    x, weight = np.ones((1, 16, 20, 16), np.float32), np.ones((3, 16, 15, 15), np.float32)
    with pytest.raises(portconv.UnsupportedError, match="Dask would take minutes to order the tasks of its 3600 terms"):
        portconv.conv2d(backend.array(x), backend.array(weight), engine="direct")
    plan = portconv.plan_conv2d(backend.array(x), backend.array(weight), accuracy="elementwise")
    assert plan.engine == "gemm"
    y = portconv.conv2d(backend.array(x), backend.array(weight[..., :3, :3]), engine="direct")
    np.testing.assert_array_equal(backend.numpy(y), np.full((1, 3, 18, 14), 144, np.float32))
