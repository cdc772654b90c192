"""The problems that are drawn: nothing of what is promised is left out, and what is wrong is seen and made small."""

from __future__ import annotations

import ctypes
import math
import mmap
import warnings
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import portconv
from portconv.testing import Problem, Scope, calls, draw, fits, make_data, scope_of, shrink, verification, verify
from portconv.testing.arrays import ORDERS_ELSEWHERE, arranged, overlap
from portconv.testing.problems import CALLS, MODES, ORDERS, SIZES
from portconv.testing.values import KERNELS, VALUES

DRAWS = 3000
LIBRARIES = ("numpy", "mlx", "torch", "jax", "array_api_strict", "dask")


@lru_cache
def drawn(name):
    scope = scope_of(name)
    return scope, [draw(7, number, scope) for number in range(DRAWS)]


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_seed_and_a_number_are_a_problem():
    assert [draw(1, n) for n in range(20)] == [draw(1, n) for n in range(20)]
    assert draw(1, 5) not in [draw(1, 4), draw(2, 5)]
    first, second = make_data(draw(1, 5)), make_data(draw(1, 5))
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.weight, second.weight)


def form_of(padding):
    if isinstance(padding, str):
        return padding
    if np.ndim(padding) == 2:
        one_side = all(0 in sides for sides in padding)
        return "one side" if one_side else "four sides"
    return "int" if np.ndim(padding) == 0 else "pair"


def bias_form(shape):
    return None if shape is None else len(shape)


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_value_of_every_axis_is_drawn(name, library):
    library(name)  # or the test is skipped
    scope, problems = drawn(name)
    promised = {
        "engine": ({"auto", *scope.engines}, lambda p: p.engine),
        "accuracy": ({"normwise", "elementwise"}, lambda p: p.accuracy),
        "dtype": (set(scope.dtypes), lambda p: p.dtype),
        "dtype of the image": ({*scope.dtypes, *scope.x_dtypes, ""}, lambda p: p.x_dtype),
        "dtype of the bias": ({*scope.dtypes, ""}, lambda p: p.bias_dtype if p.bias_shape else ""),
        "form of the bias": ({None, 1, 4}, lambda p: bias_form(p.bias_shape)),
        "order of the image": (set(scope.orders), lambda p: p.orders[0]),
        "order of the weight": (set(scope.orders), lambda p: p.orders[1]),
        "order of the bias": (set(scope.orders), lambda p: p.orders[2]),
        "padding mode": (set(MODES), lambda p: p.argument("padding_mode")),
        "form of the padding": (
            {"same", "valid", "int", "pair", "one side", "four sides"}, lambda p: form_of(p.argument("padding")),
        ),
        "layout": ({"NCHW", "NHWC"}, lambda p: p.argument("layout")),
        "call": (set(scope.calls), lambda p: p.call),
        "gradient": ({False, True} if scope.gradients else {False}, lambda p: p.gradient),
        "threads": ({0, 1, 2}, lambda p: p.threads),
        "values of the image": (set(VALUES), lambda p: p.data),
        "values of the weight": (set(KERNELS), lambda p: p.kernel),
        "groups, axes of the weight": (
            {(1, 4), (2, 4), (2, 5)}, lambda p: (min(p.parts[0], 2), len(p.weight_shape)),
        ),
        "batch": ({0, 1, 2}, lambda p: min(p.x_shape[0], 2)),
        "stride": ({"none", "square", "oblong"}, lambda p: shape_of_pair(p.argument("stride"))),
        "dilation": ({"none", "square", "oblong"}, lambda p: shape_of_pair(p.argument("dilation"))),
        "kernel": ({"none", "square", "oblong"}, lambda p: shape_of_pair(p.parts[3:])),
        "depthwise": ({False, True}, lambda p: p.parts[0] > 1 and p.parts[2] == 1),
    }  # fmt: skip
    for axis, (expected, value) in promised.items():
        found = Counter(value(p) for p in problems)
        assert set(found) == expected, f"{axis}: {found}"
    sizes = {p.size_class for p in problems}
    # a library that takes a millisecond for every operation gets no large images
    least = {"empty", *(size for size, most in SIZES.items() if most <= scope.elements)}
    assert least <= sizes <= {"empty", *SIZES}
    if name == "numpy":
        assert sizes == {"empty", *SIZES}


def shape_of_pair(value):
    rows, cols = value if np.ndim(value) else (value, value)
    return "none" if rows == cols == 1 else "square" if rows == cols else "oblong"


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_drawn_is_a_call_that_must_succeed(name, library):
    library(name)  # or the test is skipped
    scope, problems = drawn(name)
    for p in problems:
        axes = (0, 1, 2, 3) if p.argument("layout") == "NCHW" else (0, 2, 3, 1)
        shape = tuple(p.x_shape[axis] for axis in axes)
        shape = portconv.conv2d_output_shape(shape, p.weight_shape, **p.arguments)  # raises for what does not fit
        assert shape == tuple(p.out_shape[axis] for axis in axes), p
        assert fits(p), p
        assert p.products <= scope.products and math.prod(p.out_shape) <= scope.elements, p
        assert not p.gradient or scope.gradients


def test_a_repr_is_the_problem():
    for number in range(300):
        p = draw(3, number, Scope(gradients=True, calls=CALLS))
        assert eval(repr(p), {"Problem": Problem}) == p


# --- smaller ones -----------------------------------------------------------------------------------------------------


def test_a_failure_becomes_small():
    p = Problem(
        (3, 24, 40, 50), (4, 8, 6, 5, 3), {"padding": ((4, 1), (2, 3)), "stride": (2, 3), "groups": 4},
        engine="direct", dtype="float16", bias_shape=(32,), data="nan", orders=("F", "page end", "flipped"),
        threads=2, call="layer",
    )  # fmt: skip
    fails = lambda p: p.parts[2] >= 3 and p.parts[0] >= 2 and p.argument("stride") != 1  # noqa: E731
    found = shrink(p, fails)
    assert fails(found)
    assert found == Problem(
        (1, 6, 1, 1), (2, 1, 3, 1, 1), {"stride": found.argument("stride"), "groups": 2}, engine="direct"
    )


def test_what_is_left_fails_and_fits():
    tried = []

    def fails(p):
        assert fits(p)
        tried.append(p)
        return p.out_shape[3] >= 3 and p.parts[3] == 2

    found = shrink(Problem((2, 3, 30, 40), (4, 3, 4, 5), {"padding": "same", "dilation": (2, 3)}), fails)
    assert fails(found) and len(tried) > 10
    assert found.x_shape[:2] == (1, 1) and found.parts[:3] == (1, 1, 1) and "dilation" not in found.arguments


def test_the_search_ends_with_the_time():
    p = Problem((3, 8, 40, 50), (4, 8, 3, 3), {"padding": 1})
    assert shrink(p, lambda _: pytest.fail("there was no time for it"), seconds=-1) == p


def test_nothing_smaller_may_fail():
    p = Problem((3, 8, 40, 50), (4, 8, 3, 3), {"padding": 1})
    assert shrink(p, lambda _: False) == p


# --- what is wrong is seen: beside what test_check.py has -------------------------------------------------------------

PLAIN = Problem((2, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}, bias_shape=(4,))
ZEROS = Problem((1, 1, 4, 5), (1, 1, 1, 1), bias_shape=(1,), data="zero", kernel="zero")
conv2d = portconv.conv2d


def one_wrong_value(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    y[-1, -1, -1, -1] += 1e-4
    return y


def a_row_less(x, weight, bias, **options):
    return conv2d(x, weight, bias, **options)[:, :, :-1]


def wider(x, weight, bias, **options):
    return conv2d(x, weight, bias, **options).astype(np.float64)


def the_bias_itself(x, weight, bias, **options):
    return np.broadcast_to(bias.reshape(1, 1, 1, 1), x.shape)


def the_image_itself(x, weight, bias, **options):
    return x[...]


def the_weight_itself(x, weight, bias, **options):
    return np.broadcast_to(weight, x.shape)


def changed(which):
    def call(*arrays, **options):
        y = conv2d(*arrays, **options)
        arrays[which].reshape(-1)[-1] += 1
        return y

    return call


def warned(x, weight, bias, **options):
    warnings.warn("overflow encountered in multiply", RuntimeWarning, stacklevel=1)
    return conv2d(x, weight, bias, **options)


def raising(error):
    def call(*arrays, **options):
        raise error

    return call


@pytest.mark.parametrize(
    ("p", "broken", "message"),
    [
        (PLAIN, one_wrong_value, r"1 of 576 outputs"),
        (PLAIN, a_row_less, r"the result has shape \(2, 4, 8, 8\)"),
        (PLAIN, wider, r"the result is float64 on cpu, not float32"),
        (ZEROS, the_bias_itself, r"shares memory with `bias`"),
        (replace(ZEROS, bias_shape=None), the_image_itself, r"shares memory with `x`"),
        (replace(ZEROS, bias_shape=None), the_weight_itself, r"shares memory with `weight`"),
        (PLAIN, changed(0), r"changed `x`"),
        (PLAIN, changed(1), r"changed `weight`"),
        (PLAIN, changed(2), r"changed `bias`"),
        (PLAIN, warned, r"raised RuntimeWarning: overflow"),
        (PLAIN, raising(IndexError("index 9 is out of bounds")), r"raised IndexError"),
        (PLAIN, raising(ValueError("bad sizes")), r"raised ValueError"),
        (PLAIN, raising(portconv.UnsupportedError("`engine` has none for this.")), r"refused"),
        (replace(PLAIN, engine="gemm"), raising(portconv.UnsupportedError("none for this")), r"names no argument"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_seen(monkeypatch, p, broken, message):
    assert verify(p).share <= 1
    with warnings.catch_warnings():
        for module in (calls, verification):
            monkeypatch.setattr(module, "conv2d", lambda *arrays, backend=None, **options: broken(*arrays, **options))
        with pytest.raises(AssertionError, match=message):
            verify(p)


def test_a_named_engine_may_refuse(monkeypatch):
    for module in (calls, verification):
        monkeypatch.setattr(module, "conv2d", raising(portconv.UnsupportedError("`engine` 'gemm' has none for this.")))
    found = verify(replace(PLAIN, engine="gemm"))
    assert found.share is None and "has none for this" in found.reason


def test_a_layer_that_keeps_its_old_weight_is_seen(monkeypatch):
    p = replace(PLAIN, call="layer")
    assert verify(p).share <= 1
    monkeypatch.setattr(portconv.Conv2d, "_forget_copies", lambda self: self.__dict__.setdefault("_bound", {}))
    with pytest.raises(AssertionError):
        verify(p)


def test_threads_are_as_many_as_before():
    before = portconv.get_num_threads()
    verify(replace(PLAIN, threads=2 if before == 1 else 1))
    assert portconv.get_num_threads() == before


# --- orders of memory -------------------------------------------------------------------------------------------------

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
