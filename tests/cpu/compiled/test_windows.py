"""Compiled pooling and interpolation: what they are compiled for, as the plain tier has it, and their memory."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import portconv
from portconv.cpu import windows
from portconv.cpu.compiled.windows.plan import CompiledMean, CompiledWindows
from portconv.dispatch import windows as operations
from tests.cpu.compiled.helpers import GUARDED
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

POOL = {"kernel_size": 3, "stride": 2, "padding": 1}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i2"])
def test_the_plain_tier_has_the_same_results(plain_tier, monkeypatch, dtype, layout):
    """Of rows that are converted and of those that are not, with NaN, infinities and the sign of zero."""
    x = (numbers((2, 20, 21, 19)) * 9).astype(dtype)
    if x.dtype.kind == "f":
        x[0, 0, :3, :4], x[0, 3, 9, 9], x[1, 5, 7, 8:10], x[1, 6] = -0.0, np.nan, np.inf, -np.inf
    calls = [
        lambda x: portconv.max_pool2d(x, **POOL, layout=layout),
        lambda x: portconv.max_pool2d(x, (5, 7), 1, (2, 3), layout=layout),
        lambda x: portconv.interpolate2d(x, (30, 11), mode="nearest", layout=layout),
    ]
    if x.dtype.kind == "f":
        calls += [
            lambda x: portconv.avg_pool2d(x, **POOL, layout=layout),
            lambda x: portconv.interpolate2d(x, (30, 11), layout=layout),
        ]
    for call in calls:
        for image in (x, x[:, ::-1, :, ::-1], x.astype(x.dtype.newbyteorder())):
            found = call(image)
            with plain_tier():
                expected = call(image)
            assert found.dtype == expected.dtype
            eps = 4 * np.finfo(dtype).eps if x.dtype.kind == "f" else 0
            np.testing.assert_allclose(found, expected, rtol=eps, atol=30 * eps)  # of numbers around 9
            if found.dtype.kind == "f":
                np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize(
    ("dtype", "size", "compiled"), [("float32", 9, True), ("int64", 9, False), ("float32", 0, False)]
)
def test_which_images_have_a_compiled_form(dtype, size, compiled):
    shape = (size, 2, 8, 8)
    operation = operations.pooling("max", shape, dtype, 2, None, 0, 1, operations.AVERAGES[0], False, "NCHW")
    assert (CompiledWindows.make(operation, shape, np.dtype(dtype)) is not None) is compiled
    assert windows.applied(np.ones(shape, dtype), operation).shape == (size, 2, 4, 4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_averages_of_whole_images(layout, dtype, threads):
    """Of all rests of vectors, in one task and in many; the sums of 4096 numbers lose no more than those of 128."""
    before = portconv.get_num_threads()
    portconv.set_num_threads(threads)
    eps = np.finfo(dtype).eps
    try:
        for n, c, h, w in [
            (1, 1, 1, 1), (2, 3, 5, 7), (1, 120, 28, 28), (3, 130, 7, 7), (2, 6, 64, 64), (1, 700, 7, 7),
            (2, 33, 3, 100),
            *((1, size % 9 + 1, 1, size) for size in range(1, 70)), *((1, size, 2, 3) for size in range(1, 70)),
        ]:  # fmt: skip
            x = abs(numbers((n, c, h, w), c, dtype))
            x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            operation = operations.whole(x.shape, x.dtype.name, layout)
            made = CompiledMean.make(operation, x.shape, x.dtype)
            assert (made is None) == (h * w > (4096 if layout == "NCHW" else 1024) * 4 // x.itemsize)
            y = portconv.global_avg_pool2d(x, layout=layout)
            expected = x.astype("f8").mean((2, 3) if layout == "NCHW" else (1, 2), keepdims=True)
            assert y.dtype == x.dtype
            np.testing.assert_allclose(y, expected, rtol=160 * eps)
            assert abs(y / expected - 1).mean() <= 16 * eps
    finally:
        portconv.set_num_threads(before)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_averages_of_whole_images_in_other_memory(layout):
    """Views, other byte orders and no images are not read as if they lay in order."""
    x = numbers((2, 6, 6, 6))
    x[1, 2, 3, 4] = np.nan
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    with np.errstate(invalid="ignore"):
        for image in (
            x,
            x[:, ::-1],
            x[:, :, ::2],
            x.transpose(0, 3, 2, 1),
            x.astype(">f4"),
            np.asfortranarray(x),
            x[:0],
        ):
            y = portconv.global_avg_pool2d(image, layout=layout)
            np.testing.assert_allclose(y, image.astype("f8").mean(axes, keepdims=True), rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by Linux's mprotect here")
def test_no_byte_beyond_the_arrays_is_touched(run_python):
    run_python(f"""{GUARDED}
    numpy = guard_pages.install()
    for n in (*range(1, 20), 31, 33, 49, 65):
        for shape in ((1, 2, 5, n), (2, n, 4, 3)):
            for dtype in ("f4", "f8", "f2"):
                x = numbers(*shape, dtype=dtype)
                for numpy.at_the_end in (True, False):
                    for layout, turned in (("NCHW", x), ("NHWC", x.transpose(0, 2, 3, 1))):
                        image = copy(turned, numpy.at_the_end)
                        y = portconv.max_pool2d(image, 3, 2, 1, layout=layout)
                        y = y if layout == "NCHW" else y.transpose(0, 3, 1, 2)
                        windows = np.lib.stride_tricks.sliding_window_view(
                            np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf), (3, 3), (2, 3))
                        assert np.array_equal(y, windows[:, :, ::2, ::2].max((4, 5)))
                        assert np.isfinite(portconv.avg_pool2d(image, (2, 1), 1, layout=layout)).all()
                        assert np.isfinite(portconv.interpolate2d(image, 7, layout=layout)).all()
                        y = portconv.global_avg_pool2d(image, layout=layout).reshape(x.shape[:2])
                        assert np.allclose(y, x.astype("f8").mean((2, 3)), rtol=1e-2, atol=1e-2)
                        assert np.isfinite(portconv.interpolate2d(image, 3, mode="nearest", layout=layout)).all()
                        whole = (10 * image).astype("i4")  # which NumPy computes, in scratch memory of integers
                        found = portconv.max_pool2d(copy(whole, numpy.at_the_end), (2, 1), 1, layout=layout)
                        axis = 2 if layout == "NCHW" else 1
                        pairs = np.lib.stride_tricks.sliding_window_view(whole, 2, axis)
                        assert np.array_equal(found, pairs.max(-1))
    """)
