"""Pooling and interpolation against PyTorch and JAX, in every library, and their errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import portconv

from .helpers import numbers

# (image NCHW, keyword arguments that PyTorch has, too)
POOLS = {
    "2x2": ((2, 3, 8, 10), {"kernel_size": 2}),
    "3x3 of a stem": ((1, 4, 13, 12), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "stride 1": ((1, 2, 7, 9), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "pairs": ((1, 2, 9, 11), {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0)}),
    "rest": ((1, 2, 9, 11), {"kernel_size": (2, 3), "stride": (2, 4), "ceil_mode": True}),
    "rest, padding": ((1, 2, 6, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "rest that begins in the padding": ((1, 2, 4, 5), {"kernel_size": 2, "stride": 4, "padding": 1, "ceil_mode": True}),
    "stride above window": ((1, 2, 9, 8), {"kernel_size": 2, "stride": 3}),
    "one pixel": ((1, 2, 1, 1), {"kernel_size": 1}),
    "large window": ((1, 2, 17, 16), {"kernel_size": 13, "stride": 1, "padding": 6}),
    "whole": ((2, 5, 7, 6), {"kernel_size": (7, 6)}),
    "no image": ((0, 2, 6, 6), {"kernel_size": 2}),
}
MAX_POOLS = POOLS | {"dilation": ((1, 2, 9, 10), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2})}
SIZES = {
    "larger": ((1, 2, 5, 7), {"size": (11, 9)}),
    "smaller": ((2, 2, 9, 8), {"size": (4, 3)}),
    "same": ((1, 2, 4, 5), {"size": (4, 5)}),
    "to a pixel": ((1, 2, 4, 5), {"size": 1}),
    "of a pixel": ((1, 1, 1, 1), {"size": (3, 4)}),
    "twice": ((1, 2, 4, 5), {"scale_factor": 2}),
    "by pairs": ((1, 2, 7, 9), {"scale_factor": (1.7, 0.6)}),
    "no image": ((0, 2, 4, 4), {"size": 6}),
}


# Arrays as they are, without a copy.
NUMPY = type("Numpy", (), {"array": staticmethod(lambda x, _: x), "numpy": staticmethod(lambda y: y),
                           "dtype_name": staticmethod(lambda y: y.dtype.name)})  # fmt: skip


@pytest.fixture(scope="module")
def functional(library):
    return library("torch").module.nn.functional


def theirs(function, x, *args, **kwargs):
    """What PyTorch makes of a NumPy array."""
    import torch

    return function(torch.from_numpy(np.ascontiguousarray(x)), *args, **kwargs).numpy()


def ours(function, backend, x, *, layout="NCHW", dtype=None, **kwargs):
    """What a function of portconv's makes of an image NCHW, in a library and a layout, as NCHW."""
    if layout == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    y = function(backend.array(x, dtype), layout=layout, **kwargs)
    assert backend.dtype_name(y) == (dtype or x.dtype.name)
    y = backend.numpy(y)
    return y.transpose(0, 3, 1, 2) if layout == "NHWC" else y


@pytest.mark.every_device
@pytest.mark.parametrize("case", MAX_POOLS)
def test_max_pooling(backend, functional, case):
    shape, kwargs = MAX_POOLS[case]
    x = numbers(shape)
    expected = theirs(functional.max_pool2d, x, **kwargs)
    for layout in ("NCHW", "NHWC"):
        np.testing.assert_array_equal(ours(portconv.max_pool2d, backend, x, layout=layout, **kwargs), expected)


@pytest.mark.every_device
@pytest.mark.parametrize("case", POOLS)
def test_average_pooling(backend, functional, case):
    shape, kwargs = POOLS[case]
    x = numbers(shape)
    for layout, mode in (("NCHW", "average"), ("NCHW", None), ("NHWC", None)):
        expected = theirs(functional.avg_pool2d, x, count_include_pad=mode is not None, **kwargs)
        chosen = {} if mode is None else {"mode": mode}
        found = ours(portconv.avg_pool2d, backend, x, layout=layout, **chosen, **kwargs)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.every_device
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_average_of_whole_images(backend, layout):
    x = numbers((2, 5, 7, 6))
    found = ours(portconv.global_avg_pool2d, backend, x, layout=layout)
    np.testing.assert_allclose(found, x.mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.every_device
@pytest.mark.parametrize("case", SIZES)
def test_interpolation(backend, functional, case):
    shape, sizes = SIZES[case]
    x = numbers(shape)
    for layout, how in (("NCHW", "nearest"), ("NHWC", "nearest"), ("NCHW", True), ("NCHW", False), ("NHWC", False)):
        kwargs = sizes | {"mode": "nearest"} if how == "nearest" else sizes | {"mode": "bilinear", "align_corners": how}
        found = ours(portconv.interpolate2d, backend, x, layout=layout, **kwargs)
        if not x.size:
            assert found.shape == (0, 2, 6, 6)  # which PyTorch refuses
        else:
            np.testing.assert_allclose(found, theirs(functional.interpolate, x, **kwargs), rtol=1e-5, atol=1e-6)


def test_nearest_pixels_are_those_of_exact_fractions():
    for size in range(1, 30):
        x = np.arange(size, dtype=np.int32).reshape(1, 1, 1, size)
        for outputs in range(1, 60):
            found = portconv.interpolate2d(x, (1, outputs), mode="nearest")[0, 0, 0]
            np.testing.assert_array_equal(found, [i * size // outputs for i in range(outputs)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8", "int8", "int32"])
def test_dtypes(backend, dtype):
    floating = "float" in dtype
    if floating and dtype not in backend.dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    x = np.random.default_rng(0).integers(0, 100, (2, 3, 7, 9)).astype("f4" if dtype == "bfloat16" else dtype)
    pool = {"kernel_size": 3, "stride": 2, "padding": 1}
    for layout in ("NCHW", "NHWC"):
        found = ours(portconv.max_pool2d, backend, x, layout=layout, dtype=dtype, **pool)
        expected = portconv.max_pool2d(x.astype("f8"), **pool)
        np.testing.assert_array_equal(found.astype("f8"), expected)
        found = ours(portconv.interpolate2d, backend, x, layout=layout, dtype=dtype, size=(4, 11), mode="nearest")
        np.testing.assert_array_equal(
            found.astype("f8"), portconv.interpolate2d(x.astype("f8"), (4, 11), mode="nearest")
        )
        if floating:
            eps = {"float16": 1e-3, "bfloat16": 8e-3, "float64": 1e-14}[dtype]
            found = ours(portconv.avg_pool2d, backend, x, layout=layout, dtype=dtype, **pool)
            np.testing.assert_allclose(found.astype("f8"), portconv.avg_pool2d(x.astype("f8"), **pool), rtol=eps)
            found = ours(portconv.interpolate2d, backend, x, layout=layout, dtype=dtype, size=(4, 11))
            np.testing.assert_allclose(found.astype("f8"), portconv.interpolate2d(x.astype("f8"), (4, 11)), rtol=eps)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_of_large_images_of_one_colour(layout, dtype):
    """The rounding errors of numbers that are alike add up."""
    x = np.full((1, 2, 320, 301), 0.1037, dtype)
    for view in (x, x[:, :, ::-1, ::2]):
        found = ours(portconv.global_avg_pool2d, NUMPY, view, layout=layout)
        assert (abs(found - x.flat[0]) <= 8 * np.finfo(dtype).eps * 0.1037).all()


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_results_are_arrays_of_their_own(library, name):
    backend = library(name)
    x = numbers((1, 2, 4, 5))
    for function, kwargs in (
        (portconv.interpolate2d, {"scale_factor": 1, "mode": "nearest"}), (portconv.interpolate2d, {"size": (4, 5)}),
        (portconv.max_pool2d, {"kernel_size": 1}), (portconv.avg_pool2d, {"kernel_size": 1}),
    ):  # fmt: skip
        given = backend.array(x)
        y = function(given, **kwargs)
        y[...] = 7
        np.testing.assert_array_equal(backend.numpy(given), x)


def test_sums_of_half_precision_do_not_overflow(backend):
    if "float16" not in backend.dtypes:
        pytest.skip(f"{backend} has no float16")
    x = np.full((1, 2, 8, 8), 60000, "f2")
    assert (ours(portconv.avg_pool2d, backend, x, kernel_size=3, stride=2) == 60000).all()
    assert (ours(portconv.global_avg_pool2d, backend, x) == 60000).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_nan_and_infinity(backend, functional, layout):
    x = numbers((1, 2, 8, 9))
    x[0, 0, 2, 3], x[0, 0, 5, 5], x[0, 1, 0, 0], x[0, 1, 4] = np.nan, np.inf, -np.inf, -np.inf
    pool = {"kernel_size": 3, "stride": 2, "padding": 1}
    expected = theirs(functional.max_pool2d, x, **pool)
    np.testing.assert_array_equal(ours(portconv.max_pool2d, backend, x, layout=layout, **pool), expected)
    expected = theirs(functional.avg_pool2d, x, **pool)
    found = ours(portconv.avg_pool2d, backend, x, layout=layout, mode="average", **pool)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (ours(portconv.max_pool2d, backend, np.full_like(x, -np.inf), layout=layout, **pool) == -np.inf).all()


def test_views_and_byte_orders(tier):
    x = numbers((2, 6, 20, 24))
    same = {"kernel_size": 3, "stride": 2, "padding": 1}
    for view in (
        x[::-1, ::2, 1:-2, ::-1],
        x.transpose(1, 0, 3, 2),
        x.astype(">f4"),
        np.broadcast_to(x[:1, :1], (2, 3, 20, 24)),
    ):
        plain = np.ascontiguousarray(view).astype("f4")
        for function in (portconv.max_pool2d, portconv.avg_pool2d):
            found = function(view, **same)
            np.testing.assert_array_equal(found, function(plain, **same))
            assert found.dtype == np.float32
        np.testing.assert_array_equal(portconv.interpolate2d(view, 9), portconv.interpolate2d(plain, 9))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_strips_of_large_images(tier, functional, layout):
    """Several of them, of whole planes and of parts of a plane, on all threads."""
    for shape in ((2, 70, 40, 41), (1, 2, 530, 401)):
        x = numbers(shape)
        for kwargs in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (5, 2), "stride": (3, 1)}):
            found = ours(portconv.max_pool2d, NUMPY, x, layout=layout, **kwargs)
            np.testing.assert_array_equal(found, theirs(functional.max_pool2d, x, **kwargs))
            found = ours(portconv.avg_pool2d, NUMPY, x, layout=layout, **kwargs)
            expected = theirs(functional.avg_pool2d, x, count_include_pad=False, **kwargs)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_padding_forms(library, layout):
    """Words and four sides, against JAX, whose rules are XLA's."""
    jax = library("jax").module
    x = numbers((1, 2, 10, 7) if layout == "NCHW" else (1, 10, 7, 2))

    def reduced(window, stride, padding, function, start):
        full = (1, 1, *window) if layout == "NCHW" else (1, *window, 1)
        steps = (1, 1, *stride) if layout == "NCHW" else (1, *stride, 1)
        if not isinstance(padding, str):
            padding = ((0, 0), (0, 0), *padding) if layout == "NCHW" else ((0, 0), *padding, (0, 0))
        return np.asarray(jax.lax.reduce_window(x, np.float32(start), function, full, steps, padding))

    for window, stride in (((3, 2), (2, 3)), ((4, 4), (1, 1))):
        for mine, other in (("same", "SAME"), ("valid", "VALID"), (((2, 0), (1, 0)), ((2, 0), (1, 0)))):
            found = portconv.max_pool2d(x, window, stride, mine, layout=layout)
            np.testing.assert_array_equal(found, reduced(window, stride, other, jax.lax.max, -np.inf))
            found = portconv.avg_pool2d(x, window, stride, mine, "average", layout=layout)
            expected = reduced(window, stride, other, jax.lax.add, 0) / np.float32(window[0] * window[1])
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- derivatives ------------------------------------------------------------------------------------------------------

DIFFERENTIATED = {
    "max": (portconv.max_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "average": (portconv.avg_pool2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "whole": (portconv.global_avg_pool2d, {}),
    "bilinear": (portconv.interpolate2d, {"size": (5, 11)}),
    "nearest": (portconv.interpolate2d, {"size": (5, 11), "mode": "nearest"}),
}


def reference(functional, name, x, kwargs):
    match name:
        case "max":
            return functional.max_pool2d(x, **kwargs)
        case "average":
            return functional.avg_pool2d(x, count_include_pad=False, **kwargs)
        case "whole":
            return functional.adaptive_avg_pool2d(x, 1)
    return functional.interpolate(x, **{"mode": name} | kwargs)


@pytest.mark.parametrize(
    ("package", "layout"), [("torch", "NCHW"), ("torch", "NHWC"), ("jax", "NHWC"), ("mlx", "NCHW")]
)
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients(library, functional, package, name, layout):
    """Against PyTorch's, with many equal numbers in a window, as after a relu."""
    import torch

    function, kwargs = DIFFERENTIATED[name]
    x = np.maximum(np.random.default_rng(1).integers(-3, 4, (2, 3, 8, 7)), 0).astype("f4")
    theirs = torch.from_numpy(x).requires_grad_()
    y = reference(functional, name, theirs, kwargs)
    dy = numbers(y.shape)
    y.backward(torch.from_numpy(dy))
    turn, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if layout == "NHWC" else ((0, 1, 2, 3), (0, 1, 2, 3))
    x, dy, module = x.transpose(turn).copy(), dy.transpose(turn).copy(), library(package).module
    if package == "torch":
        leaf = torch.from_numpy(x).requires_grad_()
        function(leaf, layout=layout, **kwargs).backward(torch.from_numpy(dy))
        found = leaf.grad.numpy()
    elif package == "jax":
        found = np.asarray(module.jit(module.grad(lambda x: (function(x, layout=layout, **kwargs) * dy).sum()))(x))
    else:
        weights = module.array(dy)
        of_sum = module.grad(lambda x: (function(x, layout=layout, **kwargs) * weights).sum())
        found = np.array(of_sum(module.array(x)))
    np.testing.assert_allclose(found.transpose(back), theirs.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_gradients_of_no_image(mx, run_python):
    found = run_python("""
        import mlx.core as mx, numpy, portconv
        for mode in ("bilinear", "nearest"):
            grow = lambda x: portconv.interpolate2d(x, (5, 7), mode=mode, layout="NHWC")
            print(numpy.array(mx.vjp(grow, [mx.zeros((0, 3, 4, 17))], [mx.zeros((0, 5, 7, 17))])[1][0]).shape)
    """)
    assert found == "(0, 3, 4, 17)\n" * 2


def test_channels_last_of_pytorch(library, functional):
    torch = library("torch").module
    x = torch.from_numpy(numbers((2, 5, 9, 8))).to(memory_format=torch.channels_last)
    y = portconv.max_pool2d(x, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, functional.max_pool2d(x, 2))


# --- Dask -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_chunks(library, name, layout):
    da = library("dask").module
    function, kwargs = DIFFERENTIATED[name]
    x = numbers((2, 4, 21, 30) if layout == "NCHW" else (2, 21, 30, 4))
    chunks = (1, 3, 4, (1, 9, 20)) if layout == "NCHW" else (1, 4, (1, 9, 20), 3)
    lazy = function(da.from_array(x, chunks=chunks), layout=layout, **kwargs)
    expected = function(x, layout=layout, **kwargs)
    assert (lazy.shape, lazy.dtype) == (expected.shape, expected.dtype)
    assert name == "whole" or len(lazy.chunks[2]) > 1
    np.testing.assert_allclose(lazy.compute(scheduler="synchronous"), expected, rtol=1e-6, atol=1e-6)


# --- errors -----------------------------------------------------------------------------------------------------------

X = np.ones((1, 2, 6, 7), np.float32)
ERRORS = [
    (lambda: portconv.max_pool2d([[1.0]], 2), TypeError, "`x` must be an array"),
    (lambda: portconv.max_pool2d(X[0], 2), ValueError, "`x` must have 4 axes, NCHW, but got 3"),
    (lambda: portconv.max_pool2d(X > 0, 2), TypeError, "`x` must be of a floating or integer dtype"),
    (lambda: portconv.avg_pool2d(X.astype("u1"), 2), TypeError, "`x` must be of a floating dtype"),
    (lambda: portconv.global_avg_pool2d(X.astype("i4")), TypeError, "`x` must be of a floating dtype"),
    (lambda: portconv.max_pool2d(X[:, :, :0], 2), ValueError, "a height and a width of at least 1"),
    (lambda: portconv.max_pool2d(X, 0), ValueError, "`kernel_size` must be at least 1"),
    (lambda: portconv.max_pool2d(X, 2.5), TypeError, "`kernel_size` must be an int"),
    (lambda: portconv.max_pool2d(X, 2, stride=0), ValueError, "`stride` must be at least 1"),
    (lambda: portconv.max_pool2d(X, 2, dilation=(1, 2, 3)), ValueError, "`dilation` must be an int or a pair"),
    (lambda: portconv.max_pool2d(X, 2, padding="full"), ValueError, "`padding` as a string"),
    (lambda: portconv.max_pool2d(X, 2, padding=2), ValueError, "`padding` must be less than the window"),
    (lambda: portconv.max_pool2d(X, (7, 2)), ValueError, "along the height it covers 7 pixels, but the image"),
    (lambda: portconv.max_pool2d(X, 2, layout="CHWN"), ValueError, "`layout` must be 'NCHW' or 'NHWC'"),
    (lambda: portconv.avg_pool2d(X, 2, mode="max"), ValueError, "`mode` must be 'average_count_exclude_padding' or"),
    (lambda: portconv.interpolate2d(X), ValueError, "`size` or `scale_factor` must be given"),
    (lambda: portconv.interpolate2d(X, 2, 2), ValueError, "`size` or `scale_factor` must be given"),
    (lambda: portconv.interpolate2d(X, 0), ValueError, "`size` must be at least 1"),
    (lambda: portconv.interpolate2d(X, scale_factor=0), ValueError, "`scale_factor` must be positive"),
    (lambda: portconv.interpolate2d(X, scale_factor=(1, np.nan)), ValueError, "`scale_factor` must be positive"),
    (lambda: portconv.interpolate2d(X, scale_factor="2"), TypeError, "`scale_factor` must be a number"),
    (lambda: portconv.interpolate2d(X, scale_factor=0.1), ValueError, "`scale_factor` 0.1 leaves nothing"),
    (lambda: portconv.interpolate2d(X, scale_factor=1e30), ValueError, "`scale_factor` 1e+30 makes an image too large"),
    (lambda: portconv.interpolate2d(X, 2**30), ValueError, "more than 2**40 elements"),
    (lambda: portconv.interpolate2d(X, 2, mode="cubic"), ValueError, "`mode` must be 'bilinear' or 'nearest'"),
    (lambda: portconv.interpolate2d(X, 2, mode="nearest", align_corners=True), ValueError, "`align_corners` is for"),
    (lambda: portconv.interpolate2d(X.astype("u1"), 2), TypeError, "`x` must be of a floating dtype"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message for _, _, message in ERRORS])
def test_errors(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_averages_of_many_pixels(backend, layout):
    """Added one after the other, as some libraries' `mean` does, they would be off by hundreds of units."""
    x = np.full((1, 2, 217, 215), 0.10649299621582031, "f4")
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    y = backend.numpy(portconv.global_avg_pool2d(backend.array(x), layout=layout))
    assert y.shape == ((1, 2, 1, 1) if layout == "NCHW" else (1, 1, 1, 2))
    np.testing.assert_allclose(y, x.flat[0], rtol=1e-6)


def test_averages_of_many_pixels_that_are_traced(mx):
    x = mx.full((1, 2, 217, 215), 0.10649299621582031)
    y = np.array(mx.compile(portconv.global_avg_pool2d)(x))
    np.testing.assert_allclose(y, 0.10649299621582031, rtol=1e-6)
