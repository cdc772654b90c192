"""The array API namespace for MLX, against NumPy.

The whole standard is tested by its public suite: `tests/array_api.py` runs it where it is checked out.
"""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import portconv

mx = pytest.importorskip("mlx.core")
xp = portconv.array_namespace(mx.array([1.0]))

RNG = np.random.default_rng(7)
UNIT = RNG.uniform(0.05, 0.95, (3, 4))  # where all functions are defined
WIDE = RNG.uniform(-30, 30, (3, 4))
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-30, 1e30, math.inf, -math.inf, math.nan])
INTS = np.array([[-7, 7, 0], [-8, 5, 100], [1, -1, -128]])
SPD = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 2.0]])


def to_mlx(x):
    return xp.asarray(np.asarray(x))


def check(got, expected, tolerance=0.0, dtype=None):
    """Equal within a relative tolerance; dtype and shape are NumPy's unless another dtype is named."""
    expected = np.asarray(expected)
    assert isinstance(got, mx.array)
    assert got.shape == expected.shape
    assert str(got.dtype).rpartition(".")[2] == (dtype or expected.dtype.name)
    np.testing.assert_allclose(np.array(got), expected, rtol=tolerance, atol=tolerance)


def eps(dtype):
    return float(np.finfo(dtype).eps)


# --- elementwise ------------------------------------------------------------------------------------------------------

ON_UNIT = ["acos", "asin", "atan", "atanh", "log", "log10", "log1p", "log2", "reciprocal", "sqrt"]
ON_REALS = ["abs", "asinh", "cos", "cosh", "exp", "expm1", "sin", "sinh", "square", "tan", "tanh", "negative"]
EXACT = ["ceil", "floor", "trunc", "round", "sign", "isnan", "isinf", "isfinite", "signbit", "positive"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ON_UNIT + ON_REALS)
def test_functions_are_as_precise_as_the_dtype(name, dtype):
    """MLX's own exp, sin and cos of float64 are float32's."""
    x = (UNIT if name in ON_UNIT else WIDE).astype(dtype)
    check(getattr(xp, name)(to_mlx(x)), getattr(np, name)(x), 64 * eps(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*EXACT, "exp", "sin", "cos", "square"])
def test_functions_at_the_edges(name, dtype):
    x = EDGES.astype(dtype)
    with np.errstate(all="ignore"):
        x = x[np.abs(x) < 1e20] if name in ("sin", "cos") else x
        expected = getattr(np, name)(x)
    check(getattr(xp, name)(to_mlx(x)), expected, 0 if name in EXACT else 64 * eps(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint64"])
@pytest.mark.parametrize("name", ["ceil", "floor", "trunc", "round", "sign", "square", "abs", "bitwise_invert"])
def test_functions_of_integers(name, dtype):
    x = INTS.astype(dtype)
    if dtype.endswith("64"):
        x[0, 0] = 2**62 + 1  # beyond what floats hold
    with np.errstate(all="ignore"):
        check(getattr(xp, name)(to_mlx(x)), getattr(np, name)(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["copysign", "hypot", "nextafter", "maximum", "minimum", "logaddexp", "atan2"])
def test_pairs(name, dtype):
    a, b = np.meshgrid(EDGES.astype(dtype), EDGES.astype(dtype))
    if name == "copysign":  # the sign of NaN is nobody's business
        a, b = a[~np.isnan(b) & ~np.isnan(a)], b[~np.isnan(b) & ~np.isnan(a)]
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(a, b)
    got = getattr(xp, name)(to_mlx(a), to_mlx(b))
    exact = name in ("copysign", "nextafter", "maximum", "minimum")
    check(got, expected, 0 if exact else 16 * eps(dtype))
    if name == "copysign":
        np.testing.assert_array_equal(np.signbit(np.array(got)), np.signbit(expected))


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64", "float32", "float64"])
@pytest.mark.parametrize("name", ["floor_divide", "remainder"])
def test_division_rounds_down(name, dtype):
    a, b = np.meshgrid(INTS.astype(dtype), INTS[INTS != 0].astype(dtype))
    with np.errstate(all="ignore"):
        check(getattr(xp, name)(to_mlx(a), to_mlx(b)), getattr(np, name)(a, b))


@pytest.mark.parametrize("name", ["floor_divide", "remainder"])
def test_the_least_integer_by_minus_one(name):
    """MLX's own ends the process here."""
    for dtype in ("int8", "int16", "int32", "int64"):
        x = np.array([np.iinfo(dtype).min, 5], dtype)
        with np.errstate(all="ignore"):
            check(getattr(xp, name)(to_mlx(x), -1), getattr(np, name)(x, -1))


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "uint64"])
@pytest.mark.parametrize("name", ["bitwise_left_shift", "bitwise_right_shift"])
def test_shifts_beyond_the_width(name, dtype):
    x, by = np.meshgrid(INTS.astype(dtype), np.array([0, 1, 7, 8, 31, 63, 64, 100], dtype))
    check(getattr(xp, name)(to_mlx(x), to_mlx(by)), getattr(np, name)(x, by))


def test_complex():
    z = (UNIT + 1j * WIDE / 10).astype(np.complex64)
    for name in ("exp", "expm1", "sqrt", "square", "log", "conj", "abs", "real", "imag", "sign", "log1p"):
        check(getattr(xp, name)(to_mlx(z)), getattr(np, name)(z), 2e-5)


def test_signs_of_zeros():
    a, b = np.meshgrid(np.array([0.0, -0.0, 3.0, -3.0], np.float32), np.array([1.5, -1.5, math.inf, -math.inf], "f4"))
    with np.errstate(all="ignore"):
        expected = np.remainder(a, b)
    got = xp.remainder(to_mlx(a), to_mlx(b))
    check(got, expected)
    np.testing.assert_array_equal(np.signbit(np.array(got)), np.signbit(expected))


def test_nothing():
    """MLX's own sums hang on what it makes of an empty NumPy array."""
    for _ in range(50):
        x = to_mlx(np.zeros((0, 2), np.float32))
        assert xp.prod(x).item() == 1 and xp.sum(x, axis=0).tolist() == [0, 0]
        assert xp.unstack(x, axis=1)[1].shape == (0,)


def test_clip():
    x = WIDE.astype(np.float32)
    low, high = x[:, :1] - 1, np.float32(3)
    check(xp.clip(to_mlx(x), to_mlx(low), 3), np.clip(x, low, high))
    check(xp.clip(to_mlx(x), max=-2.5), np.clip(x, None, np.float32(-2.5)))
    unbounded = xp.clip(y := to_mlx(x))
    unbounded[0, 0] = 99
    assert float(y[0, 0]) == x[0, 0]


# --- promotion and dtypes ---------------------------------------------------------------------------------------------

STANDARD = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]


@pytest.mark.parametrize("first", [*STANDARD, "complex64"])
@pytest.mark.parametrize("second", [*STANDARD, "complex64"])
def test_promotion_is_array_api_stricts(first, second):
    strict = pytest.importorskip("array_api_strict")
    try:
        expected = repr(strict.result_type(getattr(strict, first), getattr(strict, second))).rpartition(".")[2]
    except TypeError:
        expected = None
    a, b = (xp.ones((2,), dtype=getattr(xp, name)) for name in (first, second))
    if expected is None or expected == "complex128":
        with pytest.raises(TypeError, match=f"{first}|complex128"):
            xp.multiply(a, b)
    else:
        assert xp.multiply(a, b).dtype == getattr(xp, expected)
        assert xp.result_type(a, b) == xp.concat([a, b]).dtype == getattr(xp, expected)


def test_python_numbers_follow_the_array():
    x = xp.asarray([1, 2], dtype=xp.uint8)
    assert xp.add(x, 1).dtype == xp.add(1, x).dtype == xp.uint8
    assert xp.multiply(xp.asarray([1.0], dtype=xp.float64), 0.1).tolist() == [0.1]
    assert xp.add(xp.ones(2), 1j).dtype == xp.complex64
    with pytest.raises(OverflowError, match="300"):
        xp.add(x, 300)
    with pytest.raises(TypeError, match="float"):
        xp.add(x, 0.5)
    with pytest.raises(TypeError, match="complex128"):
        xp.add(xp.ones(2, dtype=xp.float64), 1j)


def test_float64_stays():
    x = np.array([0.1, 1 / 3])
    check(xp.asarray(x), x)
    check(xp.asarray(x, dtype=xp.float32), x.astype(np.float32))
    assert xp.asarray([0.1]).dtype == xp.float32  # Python numbers have the library's default
    with pytest.raises(TypeError, match="complex128"):
        xp.asarray(x + 1j)


def test_large_integers():
    x = np.array([2**64 - 1, 2**63], np.uint64)
    check(xp.asarray(x), x)
    check(xp.asarray([2**64 - 1, 2**63], dtype=xp.uint64), x)
    check(xp.asarray([2**63 + 1, 1], dtype=xp.uint64), np.array([2**63 + 1, 1], np.uint64))
    check(xp.full((2,), 2**64 - 1, dtype=xp.uint64), np.full(2, 2**64 - 1, np.uint64))
    check(xp.arange(2**53, 2**53 + 3, dtype=xp.int64), np.arange(2**53, 2**53 + 3))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([True, False], "bool"), ([[True], [False]], "bool"), ([np.float32(1), np.float32(2)], "float32"),
        ([np.uint8(3)], "uint8"), ([1, 2], "int32"), ([True, 2], "int32"), ([1, 2.5], "float32"),
        ([1, 2j], "complex64"),
    ],
)  # fmt: skip
def test_lists(values, dtype):
    check(xp.asarray(values), values, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", float, np.float32, np.dtype("f4")], ids=str)
def test_dtypes_of_others_are_refused(dtype):
    x = xp.ones(2)
    for call in (
        lambda: xp.zeros(2, dtype=dtype), lambda: xp.asarray([1], dtype=dtype), lambda: xp.astype(x, dtype),
        lambda: xp.sum(x, dtype=dtype), lambda: xp.arange(3, dtype=dtype),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"`dtype` must be a dtype of MLX"):
            call()


def test_a_step_of_zero():
    with pytest.raises(ValueError, match="`step`"):
        xp.arange(1, 2, 0)


def test_copies():
    x = xp.asarray([1.0, 2.0])
    assert xp.asarray(x) is x and xp.astype(x, xp.float32, copy=False) is x
    for copy in (xp.asarray(x, copy=True), xp.astype(x, xp.float32), xp.positive(x), xp.reshape(x, (2,), copy=True)):
        copy[0] = 9
    assert x.tolist() == [1, 2]
    for function in (lambda: xp.asarray(np.ones(2), copy=False), lambda: xp.asarray(x, dtype=xp.float64, copy=False)):
        with pytest.raises(ValueError, match="`copy` is False"):
            function()


def test_limits():
    for name in ("float32", "float64", "float16"):
        info, expected = xp.finfo(getattr(xp, name)), np.finfo(name)
        for field in ("bits", "eps", "max", "min", "smallest_normal"):
            assert getattr(info, field) == float(getattr(expected, field)) and type(info.eps) is float
    for name in STANDARD[1:9]:
        info, expected = xp.iinfo(getattr(xp, name)), np.iinfo(name)
        assert (info.bits, info.min, info.max, info.dtype) == (
            expected.bits,
            expected.min,
            expected.max,
            getattr(xp, name),
        )


def test_info():
    info = xp.__array_namespace_info__()
    assert info.capabilities()["boolean indexing"] is info.capabilities()["data-dependent shapes"] is False
    assert info.default_device() in info.devices()
    assert set(info.dtypes(kind=("bool", "real floating"), device=mx.cpu)) == {"bool", "float32", "float64"}
    assert info.dtypes(kind="complex floating") == {"complex64": mx.complex64}
    assert xp.asarray([1]).dtype == info.default_dtypes()["integral"]


def test_devices():
    x = xp.zeros((2,), device=mx.cpu)
    assert portconv.to_device(x, "cpu") is x
    assert portconv.device(x) == mx.default_device()
    assert portconv.device(np.zeros(2)) == "cpu"
    with pytest.raises(ValueError, match="`device`"):
        xp.zeros((2,), device="tpu")
    with pytest.raises(TypeError, match="`x`"):
        portconv.device([1.0])


# --- whole axes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "prod"])
@pytest.mark.parametrize(("dtype", "expected"), [("int8", "int32"), ("uint8", "uint32"), ("int64", "int64")])
def test_sums_of_integers_do_not_overflow(name, dtype, expected):
    x = np.array([[100, 27], [120, 3]], dtype)
    check(getattr(xp, name)(to_mlx(x), axis=0), getattr(np, name)(x, axis=0, dtype=expected))
    check(getattr(xp, name)(to_mlx(x), dtype=xp.float32), getattr(np, name)(x, dtype="float32"))


@pytest.mark.parametrize("axis", [None, 0, (0, 1), -1])
@pytest.mark.parametrize("name", ["sum", "prod", "mean", "max", "min", "std", "var", "all", "any"])
def test_reductions(name, axis):
    x = UNIT.astype(np.float32)
    for keepdims in (False, True):
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        check(getattr(xp, name)(to_mlx(x), axis=axis, keepdims=keepdims), expected, 1e-6)
    if name in ("std", "var"):
        check(
            getattr(xp, name)(to_mlx(x), axis=axis, correction=1), getattr(np, name)(x, axis=axis, correction=1), 1e-6
        )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["all", "any", "prod", "sum", "count_nonzero", "mean", "std", "var"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_nothing_is_reduced(name, shape, dtype):
    values = np.zeros(shape, dtype)
    x = mx.array(values, dtype=mx.bool_ if dtype == "bool" else getattr(mx, dtype))
    for axis in (None, 0, -1, tuple(range(len(shape)))):
        for keepdims in (False, True):
            got = getattr(xp, name)(x, axis=axis, keepdims=keepdims)
            np.testing.assert_array_equal(np.array(got), getattr(np, name)(values, axis=axis, keepdims=keepdims))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_places_in_arrays_of_no_or_little_size(name):
    for keepdims in (False, True):
        check(getattr(xp, name)(mx.array(1.0), keepdims=keepdims), 0, dtype="int64")
        check(
            getattr(xp, name)(mx.zeros((0, 3)), axis=1, keepdims=keepdims),
            np.zeros((0, 1) if keepdims else 0),
            dtype="int64",
        )
    with pytest.raises(ValueError, match="zero size"):
        getattr(xp, name)(mx.zeros((0, 3)), axis=0)


def test_complex_matrices_in_transformations():
    with pytest.raises(portconv.UnsupportedError, match=r"mx\.compile"):
        mx.compile(xp.linalg.det)(mx.eye(2).astype(mx.complex64))


def test_truths_are_counted():
    mask = np.array([[True, False, True], [True, True, True]])
    x = to_mlx(mask)
    check(xp.sum(x, axis=1), mask.sum(axis=1), dtype="int32")
    check(xp.prod(x, axis=1), mask.prod(axis=1), dtype="int32")
    check(xp.cumulative_sum(x, axis=1), mask.cumsum(axis=1), dtype="int32")
    check(xp.linalg.trace(x), np.trace(mask), dtype="int32")
    check(xp.mean(x), mask.mean(), 1e-7, dtype="float32")


@pytest.mark.parametrize("name", ["mean", "std", "var"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "uint64"])
def test_moments_of_integers(name, dtype):
    values = np.arange(-100, 100).astype(dtype)
    check(getattr(xp, name)(to_mlx(values)), getattr(np, name)(values), 1e-6, dtype="float32")


@pytest.mark.parametrize("axis", [None, 1, (0, 1)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_long_sums_keep_their_digits(dtype, axis):
    """MLX's CPU build adds one term after the other."""
    values = np.full((3, 700_000), 0.1, dtype)
    values[0] *= np.random.default_rng(0).uniform(0.1, 1.9, values.shape[1]).astype(dtype)
    x, wide = to_mlx(values), values.astype("f8")
    for name in ("mean", "std", "var", "sum"):
        if (name, dtype) != ("sum", "float16"):  # beyond its range
            check(getattr(xp, name)(x, axis=axis), getattr(wide, name)(axis=axis), 2 * eps(dtype), dtype=dtype)
    if dtype == "float32":
        check(xp.linalg.vector_norm(x, axis=axis), np.sqrt((wide**2).sum(axis=axis)), 2 * eps(dtype), dtype=dtype)
        check(xp.linalg.vecdot(x, x), (wide**2).sum(axis=-1), 2 * eps(dtype), dtype=dtype)
        check(xp.cumulative_sum(x, axis=1)[:, -1], wide.sum(axis=1), 2 * eps(dtype), dtype=dtype)


def test_indices_are_int64():
    x = np.array([[3, 1, 3], [2, 2, 0]], np.int32)
    for name in ("argmax", "argmin"):
        check(getattr(xp, name)(to_mlx(x), axis=1), getattr(np, name)(x, axis=1))
    check(xp.argsort(to_mlx(x), axis=1), np.argsort(x, axis=1, stable=True))
    check(xp.argsort(to_mlx(x), axis=1, descending=True), [[0, 2, 1], [0, 1, 2]])
    check(xp.sort(to_mlx(x), descending=True), -np.sort(-x))
    check(xp.count_nonzero(to_mlx(x), axis=0), np.count_nonzero(x, axis=0))
    check(xp.searchsorted(to_mlx([1, 2, 2, 5]), to_mlx([2, 9]), side="right"), [3, 4])
    check(xp.searchsorted(to_mlx([5, 1, 2]), to_mlx([2]), sorter=to_mlx([1, 2, 0])), [1])
    check(xp.searchsorted(to_mlx([0.5, 1.5]), 1), 1, dtype="int64")


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "int64", "float32", "float64", "complex64"])
@pytest.mark.parametrize("invert", [False, True])
def test_isin(dtype, invert):
    x, among = RNG.integers(0, 5, (3, 4)), RNG.integers(0, 5, (2, 2))
    if dtype.endswith("int64"):
        x, among = x + 2**62, among + 2**62  # beyond what floats hold
    x, among = x.astype(dtype), among.astype(dtype)
    if dtype == "float32":
        x[0], among[0] = (math.nan, -0.0, math.inf, 9), (math.nan, 0.0)
    check(xp.isin(to_mlx(x), to_mlx(among), invert=invert), np.isin(x, among, invert=invert))
    check(xp.isin(to_mlx(x), to_mlx(among[:0]), invert=invert), np.isin(x, among[:0], invert=invert))


def test_isin_of_numbers():
    check(xp.isin(2, to_mlx([[1, 2]])), True)
    check(xp.isin(to_mlx([1, 2]), 2), [False, True])
    check(xp.isin(xp.zeros((0, 2), dtype=xp.int32), 2), np.zeros((0, 2), bool))


def test_cumulative_sum():
    x = np.array([[1, 2], [3, 4]], np.int32)
    check(xp.cumulative_sum(to_mlx(x), axis=1, include_initial=True), [[0, 1, 3], [0, 3, 7]], dtype="int32")
    check(xp.cumulative_prod(to_mlx(x), axis=0, dtype=xp.float64), np.cumprod(x, axis=0, dtype=float))
    check(xp.diff(to_mlx(x), axis=0, prepend=to_mlx(x[:1])), np.diff(x, axis=0, prepend=x[:1]))


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_manipulation():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    y = to_mlx(x)
    check(xp.flip(y, axis=(0, -1)), np.flip(x, (0, -1)))
    check(xp.moveaxis(y, (0, 1), (-1, 0)), np.moveaxis(x, (0, 1), (-1, 0)))
    check(xp.roll(y, (1, -2), axis=(0, 2)), np.roll(x, (1, -2), (0, 2)))
    check(xp.roll(y, 5), np.roll(x, 5))
    check(xp.repeat(y, to_mlx([1, 0, 2]), axis=1), np.repeat(x, [1, 0, 2], axis=1))
    check(xp.tile(y, (2, 1)), np.tile(x, (2, 1)))
    check(xp.concat([y, y], axis=None), np.concatenate([x, x], axis=None))
    check(xp.stack(xp.unstack(y, axis=1), axis=1), x)
    check(xp.take_along_axis(y, to_mlx([[[1, 0]]]), axis=2), np.take_along_axis(x, np.array([[[1, 0]]]), 2))
    for got, expected in zip(
        xp.meshgrid(y[0, 0], y[0, :, 0], indexing="ij"), np.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"), strict=True
    ):
        check(got, expected)
    check(xp.expand_dims(y, axis=(-1, 0)), np.expand_dims(x, (-1, 0)))
    check(xp.permute_dims(y, (-1, 0, -2)), x.transpose(2, 0, 1))
    check(xp.tril(y, k=-1), np.tril(x, -1))
    check(xp.linspace(0, 1, 5, endpoint=False), np.linspace(0, 1, 5, endpoint=False, dtype=np.float32))
    check(xp.eye(3, 4, k=-1), np.eye(3, 4, k=-1, dtype=np.float32))


def test_broadcast_shapes():
    assert xp.broadcast_shapes((3, 1), (2,), (1, 1, 1)) == (1, 3, 2)
    assert xp.broadcast_shapes() == ()
    with pytest.raises(ValueError, match="broadcast"):
        xp.broadcast_shapes((2,), (3,))


def test_several_arrays_are_tuples():
    x = xp.ones(2)
    for several in (
        xp.broadcast_arrays(x, x),
        xp.meshgrid(x),
        xp.meshgrid(x, x),
        xp.__array_namespace_info__().devices(),
    ):
        assert type(several) is tuple


@pytest.mark.parametrize("name", ["nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values"])
def test_shapes_that_depend_on_values_are_refused(name):
    with pytest.raises(NotImplementedError, match=name):
        getattr(xp, name)(xp.ones(3))


# --- fft and linalg ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("name", ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"])
def test_transforms(name, norm):
    x = UNIT.astype(np.float32) if name in ("rfft", "ihfft") else (UNIT + 1j * WIDE).astype(np.complex64)
    for n, axis in ((None, -1), (7, 0), (2, 1)):
        expected = getattr(np.fft, name)(x, n, axis, norm)
        check(getattr(xp.fft, name)(to_mlx(x), n=n, axis=axis, norm=norm), expected, 2e-5)


@pytest.mark.parametrize("name", ["fftn", "ifftn", "rfftn", "irfftn"])
def test_transforms_of_several_axes(name):
    x = RNG.random((3, 4, 5), dtype=np.float32) + (0 if name == "rfftn" else 1j)
    for s, axes in ((None, None), ((6, 3), (0, -1)), (None, (1, 2))):
        check(getattr(xp.fft, name)(to_mlx(x), s=s, axes=axes), getattr(np.fft, name)(x, s, axes), 2e-5)


def test_frequencies_and_shifts():
    for n in (4, 5):
        check(xp.fft.fftfreq(n, d=0.5, dtype=xp.float64), np.fft.fftfreq(n, 0.5))
        check(xp.fft.rfftfreq(n), np.fft.rfftfreq(n).astype(np.float32))
    x = np.arange(15).reshape(3, 5)
    check(xp.fft.fftshift(to_mlx(x)), np.fft.fftshift(x))
    check(xp.fft.ifftshift(to_mlx(x), axes=1), np.fft.ifftshift(x, 1))
    with pytest.raises(TypeError, match="float64"):
        xp.fft.fft(xp.ones(4, dtype=xp.float64))


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64", "uint8"])
def test_products_of_integers(dtype):
    a, b = (RNG.integers(0, 100, shape).astype(dtype) for shape in ((2, 1, 3, 5), (4, 5, 2)))
    a[0, 0, 0, 0] = np.iinfo(dtype).max  # wraps around as NumPy's
    check(xp.matmul(to_mlx(a), to_mlx(b)), np.matmul(a, b))
    check(xp.matmul(to_mlx(a[0, 0, 0]), to_mlx(b)), np.matmul(a[0, 0, 0], b))
    check(xp.tensordot(to_mlx(a), to_mlx(b), axes=0), np.tensordot(a, b, axes=0))
    check(xp.tensordot(to_mlx(a), to_mlx(b), axes=((3,), (1,))), np.tensordot(a, b, axes=((3,), (1,))))
    check(xp.vecdot(to_mlx(a[0, 0]), to_mlx(a[1, 0])), np.vecdot(a[0, 0], a[1, 0]))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_linear_algebra(dtype):
    a = SPD.astype(dtype)
    if dtype == "complex64":
        a[0, 1], a[1, 0] = 1 + 0.5j, 1 - 0.5j
    x, tolerance, la = to_mlx(a), 64 * eps(dtype), xp.linalg
    for name in ("det", "inv", "cholesky", "svdvals", "eigvalsh", "pinv"):
        check(getattr(la, name)(x), getattr(np.linalg, name)(a), tolerance)
    check(la.solve(x, x[:, 0]), np.linalg.solve(a, a[:, 0]), tolerance)
    for got, expected in zip(la.slogdet(x), np.linalg.slogdet(a), strict=True):
        check(got, expected, tolerance)
    q, r = la.qr(x)
    check(xp.matmul(q, r), a, tolerance)
    check(xp.matmul(xp.conj(xp.matrix_transpose(q)), q), np.eye(3, dtype=dtype), tolerance)
    u, s, vh = la.svd(x[:2], full_matrices=False)
    check(xp.matmul(u * s.astype(u.dtype), vh), a[:2], tolerance)
    values, vectors = la.eigh(x)
    check(xp.matmul(x, vectors), np.array(vectors) * np.array(values), tolerance, dtype)
    check(la.matrix_power(x, -2), np.linalg.matrix_power(a, -2), tolerance)
    for order in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
        check(la.matrix_norm(x, ord=order), np.linalg.matrix_norm(a, ord=order), tolerance)
    for order in (0, 1, 2, 3, 0.5, math.inf, -math.inf):
        check(la.vector_norm(x, ord=order, axis=1), np.linalg.vector_norm(a, ord=order, axis=1), tolerance)
    check(la.trace(x, offset=1), np.linalg.trace(a, offset=1), tolerance)
    large = np.random.default_rng(0).standard_normal((2, 7, 7)).astype(dtype)
    check(la.det(to_mlx(large)), np.linalg.det(large), 20 * tolerance)
    check(la.cross(x[0], x), np.linalg.cross(a[0], a), tolerance)
    check(la.outer(x[0], x[1]), np.outer(a[0], a[1]), tolerance)
    check(la.matrix_rank(xp.ones((2, 3, 3), dtype=x.dtype)), [1, 1], dtype="int32")
    assert la.inv(xp.zeros((0, 0), dtype=x.dtype)).shape == (0, 0)  # MLX's own ends the process here


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_eigenvalues(dtype):
    """MLX's own eigenvectors of complex matrices are the conjugates of these."""
    a = np.random.default_rng(1).standard_normal((2, 4, 4)).astype(dtype)
    a[0] = a[0] @ a[0].T  # all real, but complex64 all the same
    values, vectors = xp.linalg.eig(to_mlx(a))
    assert values.dtype == vectors.dtype == xp.complex64
    left, right = np.array(vectors) * np.array(values)[:, None, :], a @ np.array(vectors)
    np.testing.assert_allclose(left, right, atol=200 * eps("float32"))
    alone = np.array(xp.linalg.eigvals(to_mlx(a)))
    for one, expected in zip(alone, np.array(values), strict=True):  # in any order they are roots of one polynomial
        np.testing.assert_allclose(np.poly(one), np.poly(expected), rtol=1e-3, atol=1e-3)


def test_eigenvalues_of_nothing_and_of_float64():
    empty = xp.zeros((2, 0, 0))
    assert [part.shape for part in (*xp.linalg.eig(empty), xp.linalg.eigvals(empty))] == [(2, 0), (2, 0, 0), (2, 0)]
    for function in (xp.linalg.eig, xp.linalg.eigvals):
        with pytest.raises(TypeError, match="complex128"):
            function(xp.ones((2, 2), dtype=xp.float64))


# --- in transformations -----------------------------------------------------------------------------------------------


def test_gradients_pass_through():
    """Also through those functions that are written anew."""

    def f(x):
        return xp.sum(xp.exp(x) * xp.hypot(x, xp.sin(x)) + xp.logaddexp(x, xp.cos(x)))

    x, h = np.array([0.3, 0.9]), 1e-6
    for dtype, tolerance in ((xp.float32, 1e-4), (xp.float64, 1e-7)):
        got = mx.grad(f)(xp.asarray(x, dtype=dtype))
        moved = [[float(f(xp.asarray(x + sign * h * unit))) for sign in (1, -1)] for unit in np.eye(2)]
        np.testing.assert_allclose(np.array(got), [(up - down) / (2 * h) for up, down in moved], rtol=tolerance)


@pytest.mark.parametrize("name", ["det", "inv", "cholesky", "slogdet", "qr", "solve", "eig", "eigvals"])
def test_no_gradient_is_silently_zero(name):
    """MLX sees none through NumPy, which factorises complex matrices."""
    x = xp.asarray([[2, 0.5j], [-0.5j, 1]])
    function = getattr(xp.linalg, name)

    def f(x):
        result = function(x, x) if name == "solve" else function(x)
        return xp.sum(xp.abs(result[-1] if isinstance(result, tuple) else result))

    assert float(f(x)) > 0
    with pytest.raises(portconv.UnsupportedError, match="no gradient"):
        mx.grad(f)(x)
    with pytest.raises(portconv.UnsupportedError, match="no gradient"):
        mx.jvp(f, [x], [x])


def test_compiled():
    x = xp.asarray([0.25, -3.5])

    def f(x):
        return xp.clip(xp.std(x, correction=1) * xp.copysign(xp.round(x), -x), -2, 2.5)

    check(mx.compile(f)(x), np.array(f(x)), 1e-6)


# --- a script for both ------------------------------------------------------------------------------------------------


def test_portable_example_agrees():
    example = Path(__file__).parents[2] / "examples" / "portable.py"
    results = {}
    for library in ("numpy", "mlx"):
        command = [sys.executable, str(example), "--library", library]
        path = os.pathsep.join([str(example.parents[1]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        rows = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()]
        results[library] = {name: float(value) for name, value in rows}
    for figures in results.values():
        assert figures.pop("first run, ms") > 0 and figures.pop("second run, ms") > 0
    assert len(results["numpy"]) == 6
    assert results["mlx"] == pytest.approx(results["numpy"], rel=1e-3)
    assert results["numpy"]["contrast after"] > 2 * results["numpy"]["contrast before"]


def test_portable_pipeline_stays_in_the_library():
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "portable.py"))
    image = example["synthetic_image"](mx.ones(1), 64)
    expected = example["synthetic_image"](np.ones(1, np.float32), 64)
    check(image, expected, 1e-5)
    for name in ("gradient_magnitude", "local_normalisation"):
        check(example[name](image), example[name](expected), 1e-4)
