"""`conv2d` on every library and with every engine, against the float64 oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import portconv
from tests.helpers import CASES, check, numbers, out_channels

# --- every rule, every library, every engine --------------------------------------------------------------------------


@pytest.mark.every_device
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", CASES)
def test_cases(backend, engine, plans, case, layout):
    x_shape, weight_shape, options = CASES[case]
    x, weight = numbers(x_shape), numbers(weight_shape, 1)
    bias = numbers((1, out_channels(weight_shape), 1, 1), 2) if len(case) % 2 else None
    if layout == "NHWC":
        x = x.transpose(0, 2, 3, 1)
    arrays = [None if a is None else backend.array(a) for a in (x, weight, bias)]
    check(backend, plans, engine, *arrays, layout=layout, **options)


@pytest.mark.every_device
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4,)])
def test_forms_of_bias(backend, engine, plans, shape):
    x, weight, bias = numbers((2, 3, 6, 6)), numbers((4, 3, 3, 3), 1), 100 * numbers(shape, 2)
    for layout in ("NCHW", "NHWC"):
        image = x if layout == "NCHW" else x.transpose(0, 2, 3, 1)
        check(backend, plans, engine, *map(backend.array, (image, weight, bias)), layout=layout)


@pytest.mark.every_device
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_empty_batch(backend, engine, plans, layout, padding_mode):
    shape = (0, 4, 6, 7) if layout == "NCHW" else (0, 6, 7, 4)
    stride, groups = ((2, 1), 2) if engine != "winograd" else (1, 1)
    weight, bias = numbers((groups, 6 // groups, 4 // groups, 3, 3), 1), numbers((1, 6, 1, 1), 2)
    arrays = [backend.array(a) for a in (np.zeros(shape, np.float32), weight, bias)]
    plans.clear()
    y = portconv.conv2d(*arrays, stride, 1, groups=groups, layout=layout, padding_mode=padding_mode, engine=engine)
    height = 6 if stride == 1 else 3
    assert backend.numpy(y).shape == ((0, 6, height, 7) if layout == "NCHW" else (0, height, 7, 6))
    assert backend.dtype_name(y) == "float32"
    assert engine in ("auto", plans[0].engine)


def test_empty_batch_of_large_images(backend):
    """Dask divides by the size of an array where it chooses chunks."""
    arrays = backend.array(np.zeros((0, 1, 77, 1), np.float32)), backend.array(np.ones((1, 1, 1, 1), np.float32))
    assert backend.numpy(portconv.conv2d(*arrays)).shape == (0, 1, 77, 1)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.every_device
def test_floating_dtypes(backend, engine, plans):
    for dtype in backend.dtypes:
        if engine == "native" and dtype == "float64":
            continue  # refused: see backends/test_mlx.py
        for x_shape, weight_shape, options in (
            CASES["3x3"],
            CASES["depthwise"],
            CASES["large kernel"],
            CASES["circular"],
        ):
            arrays = [numbers(x_shape), numbers(weight_shape, 1), numbers((1, out_channels(weight_shape), 1, 1), 2)]
            if engine == "winograd" and backend.why_not(engine, x_shape, weight_shape, **options) is not None:
                continue
            check(backend, plans, engine, *(backend.array(a, dtype) for a in arrays), dtype=dtype, **options)


@pytest.mark.every_device
def test_half_precision_accumulates_in_float32(backend, engine, plans):
    """A sum of 4608 ones stops at 2048 in float16 and at 256 in bfloat16."""
    for dtype in {"float16", "bfloat16"} & set(backend.dtypes):
        x, weight = np.ones((1, 512, 4, 4), np.float32), np.ones((1, 512, 3, 3), np.float32)
        for compute_mode in ("default", "float32"):
            y = check(
                backend,
                plans,
                engine,
                backend.array(x, dtype),
                backend.array(weight, dtype),
                dtype=dtype,
                compute_mode=compute_mode,
            )
            np.testing.assert_array_equal(y, 4608)


def test_half_precision_sums_beyond_its_range(backend, engine, plans):
    """Partial sums of 90000 do not fit float16; the result does."""
    if "float16" not in backend.dtypes:
        pytest.skip(f"{backend.name} has no float16")
    x, weight = np.full((1, 4, 5, 5), 300.0), np.full((1, 4, 1, 1), 300.0)
    weight[0, 2:] = -300
    y = check(backend, plans, engine, backend.array(x, "float16"), backend.array(weight, "float16"), dtype="float16")
    np.testing.assert_array_equal(y, 0)


@pytest.mark.every_device
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_integer_images(backend, engine, plans, padding_mode):
    for dtype in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "bool"):
        if (backend.package, dtype) == ("jax", "int64"):
            continue  # JAX has it not by default
        high = 2 if dtype == "bool" else 120 if dtype == "int8" else 256
        x = np.random.default_rng(3).integers(0, high, (2, 3, 9, 8)).astype(dtype)
        arrays = backend.array(x, dtype), backend.array(numbers((4, 3, 3, 3), 1)), backend.array(numbers((4,), 2))
        stride = (1, 2) if engine != "winograd" else 1
        check(backend, plans, engine, *arrays, padding=2, stride=stride, padding_mode=padding_mode)


def test_integer_images_take_the_dtype_of_the_weight(backend):
    x = np.full((1, 1, 3, 3), 200, np.uint8)
    for dtype in backend.dtypes:
        y = portconv.conv2d(backend.array(x), backend.array(np.ones((1, 1, 3, 3)), dtype))
        assert backend.dtype_name(y) == dtype
        np.testing.assert_array_equal(backend.numpy(y), np.float32(1800))


PROMOTIONS = {
    ("float16", "float32"): "float32",
    ("float32", "float16"): "float32",
    ("bfloat16", "float32"): "float32",
    ("float32", "float64"): "float64",
    ("float64", "float32"): "float64",
    ("float16", "float64"): "float64",
    ("float64", "bfloat16"): "float64",
    ("float16", "bfloat16"): "float32",
}


def test_promotion(backend, engine, plans):
    for (x_dtype, weight_dtype), dtype in PROMOTIONS.items():
        if not {x_dtype, weight_dtype} <= set(backend.dtypes) or (engine == "native" and dtype == "float64"):
            continue
        x, weight = backend.array(numbers((1, 3, 8, 8)), x_dtype), backend.array(numbers((4, 3, 3, 3), 1), weight_dtype)
        check(backend, plans, engine, x, weight, dtype=dtype)


def test_the_dtype_of_the_bias_counts(backend, plans):
    if "float64" not in backend.dtypes:
        pytest.skip(f"{backend.name} has no float64 by default")
    x, weight = backend.array(numbers((1, 3, 8, 8))), backend.array(numbers((4, 3, 3, 3), 1))
    bias = backend.array(np.full((1, 4, 1, 1), 1 / 3), "float64")
    check(backend, plans, "gemm", x, weight, bias, dtype="float64")


def test_float64_is_computed_in_float64(backend, plans):
    """1 + 2**-40 is 1 in float32."""
    if "float64" not in backend.dtypes:
        pytest.skip(f"{backend.name} has no float64 by default")
    x = np.full((1, 2, 20, 20), 1 + 2.0**-40)
    weight = np.zeros((1, 2, 3, 3))
    weight[0, :, 1, 1] = 1, -1
    x[0, 1] = 1
    for engine in ("auto", "gemm", "winograd", "direct", "fft"):
        y = check(backend, plans, engine, backend.array(x), backend.array(weight), dtype="float64")
        np.testing.assert_allclose(y, 2.0**-40, rtol=1e-2)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_views_of_other_libraries(backend, engine, plans):
    if backend.name == "numpy-readonly":
        pytest.skip("the views of NumPy have their own test")
    x, weight = numbers((1, 12, 10, 3)), numbers((3, 3, 3, 5), 1)
    permute = portconv.array_namespace(backend.array(x)).permute_dims
    image, kernel = permute(backend.array(x), (0, 3, 1, 2)), permute(backend.array(weight), (3, 2, 0, 1))
    check(backend, plans, engine, image[:, :, 2:, 1:9], kernel, padding=1)
    check(backend, plans, engine, image[:, :, ::2, ::2], kernel, padding=1)
    if backend.package != "torch":  # has no negative strides
        check(backend, plans, engine, image[:, ::-1, :, ::-1], kernel, padding=1)


def test_arguments_are_not_changed(backend, engine):
    if backend.name == "numpy-readonly":
        pytest.skip("NumPy refuses to change them")
    kernel = (1, 1) if engine != "winograd" else (3, 3)
    values = numbers((2, 4, 9, 9)), numbers((4, 4, *kernel), 1), numbers((1, 4, 1, 1), 2)
    for options in ({}, {"padding": 1}, {"padding": 2, "padding_mode": "circular"}):
        arrays = [backend.array(v) for v in values]
        y = portconv.conv2d(*arrays, engine=engine, **options)
        assert all(np.array_equal(backend.numpy(a), v) for a, v in zip(arrays, values, strict=True))
        if backend.package in ("numpy", "torch"):
            y[...] = 0  # nor does the result share their memory
            assert all(np.array_equal(backend.numpy(a), v) for a, v in zip(arrays, values, strict=True))


# --- values that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan, np.inf]], ids=str)
@pytest.mark.parametrize(
    "case", ["3x3", "large kernel", "dilation pair", "depthwise", "reflect", "batch", "many channels"]
)
def test_nonfinite_values_stay_in_their_receptive_field(backend, engine, plans, case, bad):
    x_shape, weight_shape, options = CASES[case]
    x, weight = numbers(x_shape), numbers(weight_shape, 1)
    weight.flat[::7] = 0  # infinity times zero is NaN
    for n, value in enumerate(bad):
        x[(0, 0, x_shape[2] // 2, x_shape[3] // 2 + 2 * n - 1)] = value
    y = check(backend, plans, engine, backend.array(x), backend.array(weight), **options)
    assert not np.isfinite(y).all()
    assert np.isfinite(y).any()


@pytest.mark.parametrize("kernel", [(2, 3), (3, 3)])
def test_what_is_computed_anew_fits_where_it_was(backend, engine, plans, kernel):
    """Another engine computes it in blocks of other sizes."""
    x, weight = numbers((2, 103, 80, 4)), numbers((1, 4, *kernel), 1)
    x[0, 50, 40, 0] = np.inf
    check(backend, plans, engine, backend.array(x), backend.array(weight), padding="same", layout="NHWC")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_weight(backend, engine, plans, bad):
    x, weight = np.abs(numbers((1, 4, 20, 20))) + 1, numbers((3, 4, 5, 5), 1)
    weight[1, 0, 2, 3] = bad
    y = check(backend, plans, engine, backend.array(x), backend.array(weight), padding=2)
    assert np.isfinite(y[:, [0, 2]]).all()
    assert not np.isfinite(y[:, 1]).all()


def test_nonfinite_bias(backend, engine, plans):
    arrays = numbers((1, 2, 20, 20)), numbers((3, 2, 5, 5), 1), np.array([0, np.nan, -np.inf], np.float32)
    check(backend, plans, engine, *map(backend.array, arrays))


def test_values_near_the_largest_number(backend, engine, plans):
    """The result fits float32; what a transform makes of it does not."""
    x, weight = np.full((1, 4, 24, 24), 1e38, np.float32), np.zeros((1, 4, 5, 5), np.float32)
    weight[0, 0, 2, 2] = 1
    check(backend, plans, engine, backend.array(x), backend.array(weight))
    check(backend, plans, engine, backend.array(weight), backend.array(x[:, :, :5, :5]))


# --- padding ----------------------------------------------------------------------------------------------------------


def test_same_gives_the_size_of_the_image(backend):
    weight = backend.array(numbers((2, 1, 4, 3)))
    for size, stride in itertools.product((5, 6, 7), (1, 2, 3)):
        y = portconv.conv2d(backend.array(numbers((1, 1, size, size))), weight, stride=stride, padding="same")
        assert tuple(y.shape) == (1, 2, -(-size // stride), -(-size // stride))
