"""Taps that meet only padding, and pixels that no output reads, take no part in any engine's arithmetic."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import portconv
from portconv.engines.cropped import cropped
from portconv.testing import assert_close, reference_conv2d

ENGINES = ("auto", "gemm", "winograd", "fft", "direct", "native")

# x, weight, arguments: each with taps that meet only zeros
SMALL_IMAGES = [
    ((1, 1, 1, 1), (1, 1, 3, 3), {"padding": "same"}),
    ((2, 3, 1, 5), (4, 3, 7, 3), {"padding": (3, 1)}),
    ((1, 4, 2, 3), (4, 1, 5, 9), {"padding": (2, 4), "groups": 4}),
    ((1, 2, 3, 3), (3, 2, 3, 3), {"padding": 8, "dilation": 8}),
    ((1, 2, 1, 1), (3, 2, 4, 5), {"padding": 6, "stride": 2}),
    ((1, 2, 2, 4), (2, 2, 2, 2), {"padding": ((5, 0), (0, 9)), "dilation": (5, 4), "stride": (9, 3)}),
    ((1, 2, 3, 1), (2, 2, 3, 6), {"padding": 4, "layout": "NHWC"}),
]


def needed(x_shape, weight_shape, **options):
    """Weights that take part, by the oracle: those that a result follows."""
    shape = x_shape if options.get("layout") != "NHWC" else tuple(x_shape[axis] for axis in (0, 2, 3, 1))
    counted = np.zeros(weight_shape, bool)
    for i in range(weight_shape[2]):
        for j in range(weight_shape[3]):
            one = np.zeros(weight_shape)
            one[:, :, i, j] = 1
            counted[:, :, i, j] = reference_conv2d(np.ones(shape), one, **options)[0].any()
    return counted


@pytest.mark.parametrize("case", SMALL_IMAGES, ids=str)
@pytest.mark.parametrize("extreme", [1e30, np.inf, np.nan])
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_meet_only_padding(library, tier, engine, case, extreme, needs):
    backend = library("mlx" if engine == "native" else "numpy")
    x_shape, weight_shape, options = case
    rng = np.random.default_rng(0)
    shape = x_shape if options.get("layout") != "NHWC" else tuple(x_shape[axis] for axis in (0, 2, 3, 1))
    x, weight = rng.standard_normal(shape).astype("f4"), rng.standard_normal(weight_shape).astype("f4")
    takes_part = needed(x_shape, weight_shape, **options)
    assert not takes_part.all()
    expected, c, *_ = reference_conv2d(x, np.where(takes_part, weight, 0), **options)
    weight[~takes_part] = extreme
    arrays = backend.array(x), backend.array(weight)
    needs(engine, *arrays, **options)
    y = backend.numpy(portconv.conv2d(*arrays, engine=engine, **options))
    np.testing.assert_array_less(abs(y - expected), 1e-6 * c.max() + 1e-30)


# pixels that no output reads: behind the last stride, between dilated taps, in padding of copies
GAPS = [
    ((1, 2, 12, 13), (3, 2, 3, 3), {"stride": (5, 4)}),
    ((1, 1, 30, 40), (1, 1, 2, 2), {"dilation": (25, 30)}),
    ((1, 2, 20, 21), (2, 1, 3, 2), {"dilation": (7, 3), "stride": (2, 5), "groups": 2, "padding": (0, 2)}),
    ((1, 1, 20, 30), (1, 1, 2, 2), {"stride": 7, "padding": 1, "padding_mode": "circular"}),
    ((2, 1, 11, 11), (2, 1, 2, 2), {"stride": 4, "padding": ((0, 1), (2, 0)), "padding_mode": "reflect"}),
]


@cache
def read(number):
    """Pixels that take part, by the oracle: those that a result follows."""
    x_shape, weight_shape, options = GAPS[number]
    counted = np.zeros(x_shape, bool)
    for place in np.ndindex(x_shape[2:]):
        one = np.zeros(x_shape)
        one[:, :, place[0], place[1]] = 1
        counted[:, :, place[0], place[1]] = reference_conv2d(one, np.ones(weight_shape), **options)[0].any()
    return counted


@pytest.mark.parametrize("case", GAPS, ids=str)
@pytest.mark.parametrize("extreme", [1e30, np.inf, np.nan])
@pytest.mark.parametrize("engine", ENGINES)
def test_pixels_that_no_output_reads(library, tier, engine, case, extreme, needs):
    backend = library("mlx" if engine == "native" else "numpy")
    x_shape, weight_shape, options = case
    rng = np.random.default_rng(1)
    x, weight = (rng.standard_normal(shape).astype("f4") for shape in (x_shape, weight_shape))
    expected, c, *_ = reference_conv2d(x, weight, **options)
    unread = ~read(GAPS.index(case))
    assert unread.any()
    x[unread] = extreme
    arrays = backend.array(x), backend.array(weight)
    needs(engine, *arrays, **options)
    y = backend.numpy(portconv.conv2d(*arrays, engine=engine, **options))
    np.testing.assert_array_less(abs(y - expected), 1e-6 * c.max() + 1e-30)


def test_what_is_left_is_a_problem_of_its_own():
    problem = portconv.plan_conv2d((1, 2, 3, 9), (4, 2, 9, 3), padding=(4, 1)).problem
    crop = cropped(problem)
    assert crop.problem.out_size == problem.out_size
    assert (crop.kernel_rows, crop.problem.kernel) == (slice(2, 7, 1), (5, 3))
    assert crop.problem.height == 3 and crop.problem.padding == (2, 2, 1, 1)
    assert cropped(portconv.plan_conv2d((1, 2, 9, 9), (4, 2, 3, 3), padding=1).problem) is None


def test_one_weight_serves_both(backend):
    """A packed weight belongs to the taps that are left."""
    conv = portconv.Conv2d(2, 3, 3, padding=1, rng=0)
    for size in ((1, 1), (9, 9), (1, 9), (9, 1), (1, 1)):
        x = np.random.default_rng(2).standard_normal((1, 2, *size)).astype("f4")
        assert_close(backend.numpy(conv(backend.array(x))), reference_conv2d(x, conv.weight, conv.bias, padding=1))
