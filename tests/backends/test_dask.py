"""Dask's adapter: what it says of arrays, and layers, libraries and processes that its arrays meet."""

from __future__ import annotations

import importlib.metadata
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv import testing
from portconv.cpu import busy
from tests.helpers import WEIGHT, Wrapper, X, numbers

da = pytest.importorskip("dask.array", reason="Dask is not installed")
from portconv.backends.dask import graph  # noqa: E402  # not without Dask


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("bad", ["image", "weight"])
def test_dask_is_quiet_about_data_that_are_not_finite(engine, bad):
    """Its tasks run in threads of their own, which know nothing of the caller's settings."""
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
    x = da.log(da.from_array(-X))
    y = portconv.conv2d(x, da.from_array(WEIGHT), engine="gemm")
    with pytest.warns(RuntimeWarning, match="invalid value encountered in log"):
        y.compute()


def test_dask_arrays_of_unknown_size():
    """Dask gives NaN for a size that it would have to compute."""
    x = da.ones((3, 2, 6, 6))
    x = x[x[:, 0, 0, 0] > 0]
    with pytest.raises(ValueError, match=r"`x`.*nan"):
        portconv.conv2d(x, da.from_array(WEIGHT))


def test_no_image_in_transposed_convolutions():
    """Dask cannot choose the chunks of most results that have no elements, as these."""
    x, weight = da.zeros((0, 5, 1, 1), dtype="f4", chunks=(1, 5, 1, 1)), da.ones((5, 16, 1, 1), dtype="f4")
    y = portconv.conv_transpose2d(x, weight, stride=2, groups=5)
    assert y.shape == (0, 80, 1, 1) and y.compute().shape == y.shape
    signals = da.zeros((0, 1, 74), dtype="f4", chunks=(1, 1, 74))
    assert portconv.conv_transpose1d(signals, da.ones((1, 1, 4), dtype="f4")).compute().shape == (0, 1, 77)


def test_an_empty_array_of_dask():
    for shape in ((0, 16, 205, 5), (0, 3, 4, 5), (2, 0, 7, 7)):
        array = portconv.get_backend("dask").from_numpy(np.zeros(shape, "f4"), dtype="float16")
        assert array.shape == shape and array.dtype == "float16" and array.compute().shape == shape


def test_what_chunks_consist_of():
    backend = portconv.get_backend("dask")
    assert backend.describe(da.zeros((2, 3), dtype="u1")) == ((2, 3), "uint8", "cpu", False)
    masked = da.ma.masked_equal(da.ones((1, 2, 6, 6)), 1)
    with pytest.raises(TypeError, match=r"`x`: numpy.MaskedArray is not supported"):
        portconv.conv2d(masked, da.from_array(WEIGHT))
    with pytest.raises(TypeError, match=r"expected an array of Dask, but got numpy.ndarray"):
        backend.describe(np.ones(3))
    with pytest.raises(ValueError, match=r"`device` of Dask's arrays is the library in their chunks"):
        backend.from_numpy(np.ones(3), device="cuda:7")


def test_waiting_computes_the_chunks_and_waits_for_their_library(monkeypatch):
    waited = []
    monkeypatch.setattr(type(portconv.get_backend("numpy")), "synchronize", lambda self, x: waited.append(x))
    y = portconv.conv2d(da.from_array(numbers((1, 2, 6, 6))), da.from_array(numbers((3, 2, 3, 3))))
    portconv.get_backend("dask").synchronize(y)
    (computed,) = waited
    np.testing.assert_array_equal(computed, y.compute())


class Chunks(np.ndarray):
    """The arrays of a library of its own."""


Chunks.__module__ = "chunklib"


class ChunkBackend(Wrapper):
    def from_numpy(self, x, /, *, dtype=None, device=None):
        return super().from_numpy(x, dtype=dtype).view(Chunks)


@pytest.mark.usefixtures("registry_as_it_was")
def test_chunks_of_another_library():
    """They are convolved by their own library's back end."""
    backend = ChunkBackend("chunklib")
    portconv.register_backend("chunklib", backend)
    x, weight = numbers((1, 2, 12, 14)), numbers((3, 2, 3, 3))
    arrays = [
        da.from_array(a.view(Chunks), chunks=chunks, asarray=False) for a, chunks in ((x, (1, 2, 6, 7)), (weight, -1))
    ]
    assert portconv.get_backend("dask").describe(arrays[0]).device == "chunklib"
    assert "each chunk is computed by chunklib" in portconv.plan_conv2d(*arrays, padding=1).explain()
    y = portconv.conv2d(*arrays, padding=1)
    assert type(y._meta) is Chunks
    before = backend.built
    by_numpy = portconv.conv2d(da.from_array(x, chunks=(1, 2, 6, 7)), da.from_array(weight), padding=1)
    np.testing.assert_array_equal(y.compute(), by_numpy.compute())
    assert backend.built > before
    with pytest.raises(ValueError, match=r"`x` is on the device chunklib, but `weight` is on cpu"):
        portconv.conv2d(arrays[0], da.from_array(weight))


@pytest.mark.usefixtures("registry_as_it_was")
def test_an_engine_that_some_chunk_cannot_run_is_refused_while_the_graph_is_made():
    class Picky(ChunkBackend):
        def candidates(self, problem, /):
            small = "the image is too small" if problem.height < 9 else None
            return [replace(c, why_not=c.why_not or small) for c in super().candidates(problem)]

    portconv.register_backend("chunklib", Picky("chunklib"))
    x, weight = (
        da.from_array(numbers(shape).view(Chunks), chunks=chunks, asarray=False)
        for shape, chunks in (((1, 2, 33, 20), (1, 2, 15, 20)), ((3, 2, 3, 3), -1))
    )
    with pytest.raises(portconv.UnsupportedError, match="the image is too small"):
        portconv.conv2d(x, weight, engine="gemm")


def test_arrays_of_two_libraries_are_refused():
    with pytest.raises(TypeError, match=r"`x` is an array of dask, but `weight` is one of numpy"):
        portconv.conv2d(da.from_array(X), WEIGHT)


def test_a_layer_converts_its_parameters_once():
    layer = portconv.Conv2d(3, 4, 3, padding=1, rng=0)
    x = numbers((2, 3, 20, 22))
    lazy = da.from_array(x, chunks=(1, 3, 8, 9))
    y = layer(lazy)
    assert layer(lazy).name == y.name, "the same parameters, the same graph"
    np.testing.assert_allclose(y.compute(), layer(x), atol=1e-5)
    layer.weight = np.zeros((4, 3, 3, 3))
    assert not layer(lazy).compute().any()


def test_a_layer_whose_parameters_are_dasks():
    layer = portconv.Conv2d(3, 4, 3, padding=1, rng=0, backend="dask")
    assert isinstance(layer.weight, da.Array) and layer.weight.npartitions == 1
    x = numbers((1, 3, 20, 22))
    expected = portconv.Conv2d(3, 4, 3, padding=1, rng=0)(x)
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(layer))(da.from_array(x, chunks=9)).compute(), expected, atol=1e-5
    )


def test_a_weight_that_is_not_computed_yet():
    x, weight = numbers((1, 2, 20, 22)), numbers((3, 2, 3, 3))
    lazy = da.from_array(weight, chunks=(2, 1, 3, 2))
    y = portconv.conv2d(da.from_array(x, chunks=(1, 1, 7, 7)), lazy / abs(lazy).sum(axis=(1, 2, 3), keepdims=True))
    scaled = weight / abs(weight).sum(axis=(1, 2, 3), keepdims=True)
    testing.assert_close(y.compute(), testing.reference_conv2d(x, scaled))


def test_packed_weights_do_not_keep_the_users_array():
    import gc
    import weakref

    weight = da.from_array(WEIGHT)
    portconv.conv2d(da.from_array(X), weight)
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None


def test_values_that_change_before_they_are_computed_with():
    values = numbers((3, 2, 3, 3))
    lazy = portconv.get_backend("dask").from_numpy(values)
    values[:] = 0
    assert lazy.compute().all()


def test_what_times_depend_on():
    problem = portconv.plan_conv2d((1, 2, 9, 9), (3, 2, 3, 3), backend="dask").problem
    found = portconv.get_backend("dask").environment(problem)
    assert found["dask"] == importlib.metadata.version("dask") and {"cpu", "threads", "tier"} <= set(found)


def test_the_engine_that_the_clock_chose_is_every_chunks(monkeypatch):
    x, weight = da.zeros((1, 4, 40, 40), chunks=20, dtype="f4"), da.zeros((4, 4, 3, 3), dtype="f4")
    plan = portconv.plan_conv2d(x, weight, strategy="measure")
    assert plan.chosen_by == "measurement" and plan.chunk_engine == plan.engine
    monkeypatch.setattr(busy, "disturbed", lambda threads: True)
    plan = portconv.tune(x[:, :, :39], weight, remember=False)
    assert plan.chosen_by.startswith("heuristic, since") and plan.chunk_engine == "auto"


def test_one_chunk_of_a_large_image_is_timed(monkeypatch):
    """An image may be larger than memory."""
    made = []
    backend = portconv.get_backend("dask")
    original = type(backend).from_numpy
    monkeypatch.setattr(graph, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(
        type(backend), "from_numpy", lambda this, x, /, **rest: made.append(np.shape(x)) or original(this, x, **rest)
    )
    plan = portconv.tune((3, 1, 1000, 1000), (1, 1, 3, 3), backend="dask", remember=False)
    assert plan.chosen_by == "measurement" and plan.output_shape == (3, 1, 998, 998)
    assert max(map(np.prod, made)) * 4 <= 1 << 16
