"""`conv2d` on every library and with every engine, against the float64 oracle; and the oracle against PyTorch."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

import portconv
from portconv.testing import Reference, assert_close, error_bound, reference_conv2d

# name: (x shape NCHW, weight shape, arguments). A case stands for a rule, not for a size.
CASES = {
    "1x1 image": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "1x1 kernel": ((2, 5, 6, 7), (4, 5, 1, 1), {}),
    "1x1 kernel, stride": ((1, 5, 7, 6), (4, 5, 1, 1), {"stride": (2, 3)}),
    "3x3": ((2, 3, 9, 8), (4, 3, 3, 3), {}),
    "even kernel": ((1, 2, 8, 9), (3, 2, 4, 2), {}),
    "one row": ((1, 3, 1, 12), (2, 3, 1, 5), {}),
    "one column": ((1, 3, 12, 1), (2, 3, 5, 1), {}),
    "kernel is image": ((2, 3, 5, 4), (4, 3, 5, 4), {}),
    "kernel is padded image": ((1, 2, 3, 4), (2, 2, 7, 6), {"padding": (2, 1)}),
    "many channels": ((1, 48, 7, 40), (20, 48, 3, 3), {"padding": 1}),
    "stride int": ((1, 3, 11, 12), (4, 3, 3, 3), {"stride": 2}),
    "stride pair": ((1, 3, 11, 12), (4, 3, 3, 3), {"stride": (3, 1)}),
    "stride above kernel": ((1, 2, 17, 15), (3, 2, 2, 2), {"stride": (5, 4)}),
    "stride, many channels": ((1, 40, 9, 41), (8, 40, 3, 3), {"stride": 2, "padding": 1}),
    "padding int": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": 2}),
    "padding pair": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": (0, 3)}),
    "padding four sides": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": ((2, 0), (1, 3))}),
    "padding list": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": [1, 2]}),
    "padding numpy": ((1, 3, 6, 7), (4, 3, 3, 3), {"padding": np.array([[1, 0], [0, 2]])}),
    "padding above kernel": ((1, 1, 3, 3), (2, 1, 2, 2), {"padding": 6}),
    "padding valid": ((1, 3, 6, 7), (4, 3, 3, 2), {"padding": "valid"}),
    "padding same": ((1, 3, 6, 7), (4, 3, 3, 5), {"padding": "same"}),
    "padding same, even kernel": ((1, 3, 6, 7), (4, 3, 4, 2), {"padding": "same"}),
    "padding same, stride": ((1, 3, 10, 7), (4, 3, 4, 3), {"padding": "same", "stride": (3, 2)}),
    "padding same, dilation": ((1, 3, 9, 8), (4, 3, 3, 2), {"padding": "same", "dilation": (2, 3)}),
    "dilation int": ((1, 3, 9, 10), (4, 3, 3, 3), {"dilation": 2}),
    "dilation pair": ((1, 3, 12, 9), (4, 3, 3, 2), {"dilation": (4, 3)}),
    "dilation, stride, padding": (
        (2, 3, 13, 14), (4, 3, 3, 4), {"dilation": (2, 3), "stride": (2, 3), "padding": (3, 4)},
    ),
    "dilation and stride with a common factor": ((1, 2, 15, 16), (3, 2, 3, 3), {"dilation": (4, 6), "stride": (2, 4)}),
    "groups, 4-D weight": ((1, 6, 7, 8), (9, 2, 3, 3), {"groups": 3}),
    "groups, 5-D weight": ((1, 6, 7, 8), (3, 3, 2, 3, 3), {"groups": 3}),
    "one group, 5-D weight": ((1, 3, 7, 8), (1, 4, 3, 3, 3), {}),
    "depthwise": ((2, 5, 9, 8), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise with a multiplier": (
        (1, 4, 9, 8), (4, 3, 1, 3, 3), {"groups": 4, "stride": 2, "dilation": 2, "padding": 2},
    ),
    "groups, many channels": ((1, 72, 5, 40), (2, 6, 36, 3, 3), {"groups": 2, "padding": 1}),
    "reflect": ((1, 2, 6, 7), (3, 2, 3, 3), {"padding": (5, 6), "padding_mode": "reflect"}),
    "reflect, four sides": ((1, 2, 6, 7), (3, 2, 3, 3), {"padding": ((3, 0), (1, 6)), "padding_mode": "reflect"}),
    "reflect, stride": ((1, 2, 9, 8), (3, 2, 3, 3), {"padding": 3, "stride": 2, "padding_mode": "reflect"}),
    "replicate": ((1, 2, 4, 3), (3, 2, 3, 3), {"padding": (9, 7), "padding_mode": "replicate"}),
    "replicate of one pixel": ((1, 2, 1, 1), (3, 2, 3, 3), {"padding": 2, "padding_mode": "replicate"}),
    "circular": ((1, 2, 5, 6), (3, 2, 3, 3), {"padding": (5, 2), "padding_mode": "circular"}),
    "circular, same": ((1, 2, 6, 7), (3, 2, 4, 3), {"padding": "same", "padding_mode": "circular"}),
    "circular, dilation, groups": (
        (2, 4, 7, 9), (2, 2, 2, 3, 3),
        {"padding": ((1, 4), (2, 3)), "dilation": 2, "groups": 2, "padding_mode": "circular"},
    ),
    "large kernel": ((1, 2, 40, 37), (3, 2, 21, 19), {"padding": (10, 9)}),
    "large kernel, stride": ((1, 2, 40, 37), (2, 2, 15, 17), {"padding": (7, 8), "stride": (2, 3)}),
    "large kernel, depthwise, reflect": (
        (1, 3, 33, 34), (3, 1, 17, 17), {"padding": 8, "groups": 3, "padding_mode": "reflect"},
    ),
    "a blur": ((1, 1, 150, 160), (1, 1, 31, 31), {"padding": 15}),
    "batch": ((7, 2, 5, 6), (3, 2, 3, 3), {"padding": 1}),
    "float32 mode": ((1, 3, 6, 7), (4, 3, 3, 3), {"compute_mode": "float32"}),
}  # fmt: skip


def numbers(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def out_channels(weight_shape):
    return int(np.prod(weight_shape[:-3]))


def oracle_arguments(options):
    return {
        key: value
        for key, value in options.items()
        if key in ("stride", "padding", "dilation", "groups", "padding_mode", "layout")
    }


def check(backend, plans, engine, x, weight, bias=None, *, dtype="float32", accuracy="normwise", **options):
    """Convolve arrays of the backend by the engine, compare with the oracle, and return the result as a NumPy array.

    An engine that cannot run the problem must say so, and the test is skipped.
    """
    reason = backend.why_not(engine, x, weight, bias, accuracy=accuracy, **options)
    if reason is not None and engine == "winograd":  # the others run everything that is asked of them here
        with pytest.raises(portconv.UnsupportedError, match=f"`engine` '{engine}'.*{re.escape(reason)}"):
            portconv.conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
        pytest.skip(f"{engine}: {reason}")
    plans.clear()
    y = portconv.conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
    (plan,) = plans
    assert plan.engine == engine or engine == "auto"
    assert plan.engine in backend.engines
    values = [None if array is None else backend.numpy(array) for array in (x, weight, bias)]
    expected = reference_conv2d(*values, **oracle_arguments(options))
    result = backend.numpy(y)
    assert backend.dtype_name(y) == dtype
    assert tuple(y.shape) == expected.y.shape == plan.output_shape
    assert_close(result, expected, dtype=dtype, accuracy=accuracy)
    return result


# --- every rule, every library, every engine --------------------------------------------------------------------------


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


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4,)])
def test_forms_of_bias(backend, engine, plans, shape):
    x, weight, bias = numbers((2, 3, 6, 6)), numbers((4, 3, 3, 3), 1), 100 * numbers(shape, 2)
    for layout in ("NCHW", "NHWC"):
        image = x if layout == "NCHW" else x.transpose(0, 2, 3, 1)
        check(backend, plans, engine, *map(backend.array, (image, weight, bias)), layout=layout)


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


def test_floating_dtypes(backend, engine, plans):
    for dtype in backend.dtypes:
        if engine == "native" and dtype == "float64":
            continue  # refused: see test_mlx.py
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


@pytest.mark.not_dask
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


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_integer_images(backend, engine, plans, padding_mode):
    for dtype in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "bool"):
        if (backend.name, dtype) == ("jax", "int64"):
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


def test_bfloat16_arrays_of_numpy(tier):
    """NumPy has them where ml_dtypes (with JAX) is installed: they are served, and stay what they are."""
    bfloat16 = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 without it").bfloat16
    y = portconv.conv2d(np.ones((1, 1, 4, 4), bfloat16), np.ones((1, 1, 3, 3), bfloat16))
    assert y.dtype == bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), 9)


# --- memory -----------------------------------------------------------------------------------------------------------


VIEWS = {
    "transposed": lambda a: np.ascontiguousarray(a.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0),
    "negative strides": lambda a: a[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1],
    "every second": lambda a: np.repeat(np.repeat(a, 2, axis=2), 3, axis=3)[:, :, ::2, ::3],
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran order": np.asfortranarray,
    "offset": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),  # unaligned
    "broadcast": lambda a: np.broadcast_to(a[:, :1, :1, :1], a.shape),
}


@pytest.mark.parametrize("engine", ["auto", "gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("view", VIEWS)
def test_numpy_views(library, tier, plans, view, engine):
    backend = library("numpy")
    arrays = numbers((2, 3, 12, 11)), numbers((4, 3, 3, 3), 1), numbers((1, 4, 1, 1), 2)
    views = [VIEWS[view](a) for a in arrays]
    before = [v.copy() for v in views]
    check(backend, plans, engine, *views, padding=1)
    assert all(np.array_equal(v, b) for v, b in zip(views, before, strict=True))


@pytest.mark.parametrize("dtype", [">i2", ">u4", ">f2", ">f8"])
def test_big_endian_dtypes(library, plans, dtype, tier):
    x = np.arange(2 * 64).reshape(1, 2, 8, 8).astype(dtype)
    y = portconv.conv2d(x, np.ones((1, 2, 3, 3), ">f4"))
    assert y.dtype == (np.float64 if dtype == ">f8" else np.float32)
    assert y.dtype.isnative
    expected = reference_conv2d(x, np.ones((1, 2, 3, 3)))
    assert_close(y, expected)


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


def test_a_weight_changed_in_place_counts(backend):
    if backend.name in ("numpy-readonly", "jax"):
        pytest.skip("its arrays cannot change")
    x, weight = backend.array(np.ones((1, 1, 8, 8), np.float32)), backend.array(np.ones((1, 1, 3, 3), np.float32))
    for engine in backend.engines:
        weight[...] = 1
        assert np.allclose(backend.numpy(portconv.conv2d(x, weight, engine=engine)), 9)
        weight[...] = 2
        assert np.allclose(backend.numpy(portconv.conv2d(x, weight, engine=engine)), 18)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_another_weight_at_the_same_address_counts(engine, tier, packs, unchangeable):
    """Packs are kept by the `id` of the weight, and an array that was collected may be followed by another with it."""
    x = np.ones((1, 1, 8, 8), np.float32)
    seen = set()
    for value in range(50):
        weight = unchangeable(np.full((1, 1, 3, 3), value, np.float32))
        seen.add(id(weight))
        for _ in range(2):
            np.testing.assert_allclose(portconv.conv2d(x, weight, engine=engine), 9 * value, rtol=1e-5)
        assert id(weight) in {identity for identity, _ in packs._entries}
        del weight
    assert len(seen) < 50


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_a_weight_that_was_readonly_for_a_while(engine, tier):
    x, weight = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for value in (1, 2):
        weight.flags.writeable = True
        weight[...] = value
        weight.flags.writeable = False
        np.testing.assert_allclose(portconv.conv2d(x, weight, engine=engine), 9 * value, rtol=1e-5)


def test_a_readonly_view_of_a_writable_weight_is_not_cached(tier):
    x, weight = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 3, 3), np.float32)
    view = weight[...]
    view.flags.writeable = False
    for engine in ("gemm", "winograd", "fft", "direct"):
        weight[...] = 1
        np.testing.assert_allclose(portconv.conv2d(x, view, engine=engine), 9, rtol=1e-5)
        weight[...] = 2
        np.testing.assert_allclose(portconv.conv2d(x, view, engine=engine), 18, rtol=1e-5)


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


# --- accuracy ---------------------------------------------------------------------------------------------------------


LONG_SUMS = {
    "512 channels": ((1, 512, 6, 7), (3, 512, 3, 3), {}),
    "512 channels, wide": ((1, 512, 3, 40), (3, 512, 3, 3), {"padding": 1}),
    "2048 channels": ((1, 2048, 5, 5), (2, 2048, 1, 1), {}),
    "box 31x31": ((1, 1, 64, 64), (1, 1, 31, 31), {}),
    "16 channels, box 15x15": ((1, 16, 30, 30), (2, 16, 15, 15), {"padding": 7}),
}


def long_sum(case, data):
    x_shape, weight_shape, options = LONG_SUMS[case]
    if data == "constant":
        return np.full(x_shape, 0.1, np.float32), np.full(weight_shape, 0.7, np.float32), options
    x, weight = (
        np.random.default_rng(5).random(x_shape, np.float32),
        np.random.default_rng(6).random(weight_shape, np.float32),
    )
    if data == "uneven":  # one bright spot, darkness elsewhere
        x *= 1e-6
        x[..., x.shape[2] // 2, x.shape[3] // 2] = 1
    return x, weight, options


@pytest.mark.parametrize("data", ["constant", "positive", "uneven"])
@pytest.mark.parametrize("case", LONG_SUMS)
def test_accuracy_of_long_sums(backend, engine, plans, case, data):
    x, weight, options = long_sum(case, data)
    arrays = backend.array(x), backend.array(weight)
    check(backend, plans, engine, *arrays, **options)
    if engine in ("auto", "gemm", "direct"):
        check(backend, plans, engine, *arrays, accuracy="elementwise", **options)


def test_engines_without_the_strict_bound_are_refused(backend):
    x, weight = backend.array(numbers((1, 1, 64, 64))), backend.array(numbers((1, 1, 31, 31)))
    for engine in {"winograd", "fft", "native"} & set(backend.engines):
        with pytest.raises(portconv.UnsupportedError, match=f"`engine` '{engine}'.*element"):
            portconv.conv2d(x, weight, engine=engine, accuracy="elementwise")


def test_strict_results_do_not_depend_on_far_away_values(backend):
    x, weight = numbers((1, 2, 40, 40)), numbers((3, 2, 5, 5), 1)
    dirty = x.copy()
    dirty[:, :, 30:, 30:] = 1e30
    clean, other = (
        backend.numpy(portconv.conv2d(backend.array(a), backend.array(weight), accuracy="elementwise"))
        for a in (x, dirty)
    )
    expected = reference_conv2d(x, weight)
    near = (slice(None), slice(None), slice(0, 26), slice(0, 26))
    assert_close(clean[near], expected.at(near), accuracy="elementwise")
    assert_close(other[near], expected.at(near), accuracy="elementwise")


# --- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [name for name in CASES if name != "float32 mode"])
def test_oracle_agrees_with_torch(torch, case):
    x_shape, weight_shape, options = CASES[case]
    x, weight = (numbers(shape, seed).astype(np.float64) for seed, shape in enumerate((x_shape, weight_shape)))
    bias = numbers((out_channels(weight_shape),), 2).astype(np.float64)
    y, c, *_ = reference_conv2d(x, weight, bias, **options)
    four_d = weight.reshape(-1, *weight_shape[-3:])
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
    top, bottom, left, right = sides(x_shape, weight_shape, options)
    padded = torch.nn.functional.pad(
        torch.asarray(x), (left, right, top, bottom), mode=modes[options.get("padding_mode", "zeros")]
    )
    arguments = {key: options[key] for key in ("stride", "dilation", "groups") if key in options}
    theirs = torch.nn.functional.conv2d(padded, torch.asarray(four_d), torch.asarray(bias), **arguments)
    np.testing.assert_allclose(y, theirs.numpy(), rtol=1e-11, atol=1e-11)
    absolute = torch.nn.functional.conv2d(
        padded.abs(), torch.asarray(np.abs(four_d)), torch.asarray(np.abs(bias)), **arguments
    )
    np.testing.assert_allclose(c, absolute.numpy(), rtol=1e-11)
    last = reference_conv2d(x.transpose(0, 2, 3, 1), weight, bias, **options, layout="NHWC").y
    np.testing.assert_array_equal(last, y.transpose(0, 2, 3, 1))


def sides(x_shape, weight_shape, options):
    """Padding as (top, bottom, left, right), by the words of the documentation."""
    padding = options.get("padding", 0)
    two = lambda value: tuple(value) if isinstance(value, (tuple, list)) else (value, value)  # noqa: E731
    if isinstance(padding, str):
        found = []
        for size, kernel, stride, dilation in zip(
            x_shape[2:], weight_shape[-2:], two(options.get("stride", 1)), two(options.get("dilation", 1)), strict=True
        ):
            total = max((int(np.ceil(size / stride)) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            found += [0, 0] if padding == "valid" else [total // 2, total - total // 2]
        return found
    rows, columns = (
        (two(part) for part in np.asarray(padding).tolist()) if np.ndim(padding) else (two(padding), two(padding))
    )
    return (*rows, *columns)


def test_same_gives_the_size_of_the_image(backend):
    weight = backend.array(numbers((2, 1, 4, 3)))
    for size, stride in itertools.product((5, 6, 7), (1, 2, 3)):
        y = portconv.conv2d(backend.array(numbers((1, 1, size, size))), weight, stride=stride, padding="same")
        assert tuple(y.shape) == (1, 2, -(-size // stride), -(-size // stride))


def plain(values):
    """A reference whose magnitudes are all one."""
    return Reference(values, np.ones(values.shape), np.ones(values.shape), 1)


def test_error_bound():
    c, largest = np.array([[1.0, 3.0], [10.0, 2.0]]), np.array([[4.0], [20.0]])
    reference = Reference(c, c, largest, 9)
    eps, tiny = np.finfo(np.float32).eps, np.finfo(np.float32).tiny
    np.testing.assert_array_equal(error_bound(reference, "float32", "elementwise"), 8 * eps * c + 9 * tiny)
    np.testing.assert_array_equal(error_bound(reference, "float16"), 8 * eps * c + 24 * eps * largest + 9 * tiny)
    np.testing.assert_array_equal(error_bound(reference, "float64", "elementwise"), 8 * np.finfo(np.float64).eps * c)


@pytest.mark.parametrize("accuracy", ["elementwise", "normwise"])
def test_assert_close_draws_the_line_at_the_bound(accuracy):
    expected = reference_conv2d(numbers((1, 2, 6, 6)), numbers((1, 2, 3, 3), 1))
    bound = error_bound(expected, "float32", accuracy)
    assert assert_close(expected.y, expected, dtype="float32", accuracy=accuracy) == 0
    share = assert_close(expected.y + 0.5 * bound, expected, dtype="float32", accuracy=accuracy)
    assert 0.49 < share < 0.51
    wrong = expected.y.copy()
    wrong[0, 0, 2, 3] += 1.01 * bound[0, 0, 2, 3]
    with pytest.raises(AssertionError, match=r"\(0, 0, 2, 3\)"):
        assert_close(wrong, expected, dtype="float32", accuracy=accuracy)


@pytest.mark.parametrize(("got", "right"), [(np.nan, 1), (1, np.nan), (np.inf, -np.inf), (np.inf, 1), (np.nan, np.inf)])
def test_assert_close_compares_values_that_are_not_finite(got, right):
    expected = np.ones((1, 1, 2, 2))
    actual = expected.copy()
    actual[0, 0, 1, 1], expected[0, 0, 1, 1] = got, right
    with pytest.raises(AssertionError):
        assert_close(actual, plain(expected))
    assert_close(expected, plain(expected))


def test_assert_close_compares_shapes():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.ones((1, 1, 2, 1)), plain(np.ones((1, 1, 2, 2))))
