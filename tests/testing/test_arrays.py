"""Arrays in every order of memory."""

from __future__ import annotations

import ctypes
import math
import mmap

import numpy as np
import pytest

import portconv
from portconv.testing.arrays import ORDERS_ELSEWHERE, arranged, overlap
from portconv.testing.problems import ORDERS

LIBRARIES = ("numpy", "mlx", "torch", "jax", "array_api_strict", "dask")

SHAPE = (2, 3, 4, 5)
PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int32", "bool"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_array_has_the_memory_that_it_claims(order, dtype):
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, SHAPE).astype(dtype)
    library = portconv.get_backend("numpy")
    x = arranged(library, values, dtype, None, order)
    expected = np.broadcast_to(values[..., :1], SHAPE) if order == "broadcast" else values
    np.testing.assert_array_equal(x, expected)
    assert x.dtype == dtype or order == "swapped bytes"
    assert not overlap(x, values) or order in ("C", "read-only")
    size = x.itemsize
    strides = {
        "F": (size, 2 * size, 6 * size, 24 * size),
        "channels last": (60 * size, size, 15 * size, 3 * size),
        "flipped": (60 * size, 20 * size, -5 * size, -size),
        "every second": (120 * size, 40 * size, 10 * size, 2 * size),
    }.get(order, (60 * size, 20 * size, 5 * size, size))
    assert x.strides == strides if order != "broadcast" else x.strides[-1] == 0
    assert x.flags.writeable == (order not in ("read-only", "broadcast"))
    assert x.flags.aligned == (order != "unaligned" or size == 1)
    assert x.dtype.isnative == (order != "swapped bytes" or size == 1)
    first = x.ctypes.data
    if order == "page end":
        assert (first + x.nbytes) % PAGE == 0
    if order == "page start":
        assert first % PAGE == 0


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (4,), (1, 4, 1, 1), (1, 1, 1, 1), (2, 1, 3, 3, 3)])
@pytest.mark.parametrize("order", ORDERS)
def test_any_shape_has_every_order(order, shape):
    values = np.arange(math.prod(shape), dtype="float32").reshape(shape)
    x = arranged(portconv.get_backend("numpy"), values, "float32", None, order)
    assert x.shape == shape and x.dtype.kind == "f"
    np.testing.assert_array_equal(x, np.broadcast_to(values[..., :1], shape) if order == "broadcast" else values)
    if order == "odd strides" and x.size:
        assert all(step < 0 for size, step in zip(shape, x.strides, strict=True) if size == 1)


@pytest.mark.parametrize(("order", "place"), [("page end", "x.nbytes"), ("page start", "-1")])
def test_beyond_a_page_nothing_can_be_read(run_python, order, place):
    if not hasattr(ctypes.CDLL(None), "mprotect"):
        pytest.skip("no page can be protected here")
    code = """
        import ctypes, numpy as np, portconv
        from portconv.testing.arrays import arranged
        x = arranged(portconv.get_backend("numpy"), np.ones((2, 3, 4, 5)), "float32", None, ORDER)
        assert ctypes.string_at(x.ctypes.data, x.nbytes) == x.tobytes()
        ctypes.string_at(x.ctypes.data + (PLACE), 1)
        print("it was read")
    """.replace("ORDER", repr(order)).replace("PLACE", place)
    with pytest.raises(AssertionError, match="exit status -"):
        run_python(code)


def test_dasks_arrays_are_in_ragged_chunks():
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    values = np.random.default_rng(0).random((3, 8, 40, 50))
    x = arranged(portconv.get_backend("dask"), values, "float64", None, "F")
    assert isinstance(x, da.Array) and x.npartitions > 3 and len(set(x.chunks[3])) > 1
    np.testing.assert_array_equal(x.compute(), values)
    assert arranged(portconv.get_backend("dask"), values, "float64", None, "F").chunks == x.chunks


@pytest.mark.parametrize("order", ORDERS_ELSEWHERE)
@pytest.mark.parametrize("name", LIBRARIES[1:])
def test_other_libraries_have_their_own_orders(library, name, order):
    library(name)  # or the test is skipped
    backend = portconv.get_backend(name)
    values = np.random.default_rng(0).standard_normal(SHAPE).astype("float32")
    x = arranged(backend, values, "float32", None, order)
    assert backend.describe(x).shape == SHAPE
    expected = np.broadcast_to(values[..., :1], SHAPE) if order == "broadcast" else values
    np.testing.assert_array_equal(backend.to_numpy(x), expected)
    if name == "torch":
        strides = {
            "F": (1, 2, 6, 24), "channels last": (60, 1, 15, 3), "every second": (120, 40, 10, 2),
            "broadcast": (12, 4, 1, 0),
        }.get(order, (60, 20, 5, 1))  # fmt: skip
        assert x.stride() == strides


def test_overlapping_memory_is_seen():
    x = np.arange(24.0).reshape(4, 6)
    for y in (x, x[1:], x[::-1, ::-2], x.T, np.broadcast_to(x[2:3, 3:4], (3, 3)), x.view(np.uint8)):
        assert overlap(x, y) and overlap(y, x)
    for y in (x.copy(), x[:0], np.ones(3)):
        assert not overlap(x, y)
    assert not overlap(x[:2], x[2:])
