"""What is the transforms' own: their sizes, their memory, and what takes no part in them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import ones

MEBIBYTE = 2**20


def test_a_transform_of_another_size_is_refused():
    small = portconv.plan_conv2d((1, 1, 20, 20), (1, 1, 9, 9), engine="fft")
    for large in (
        portconv.plan_conv2d((1, 1, 400, 400), (1, 1, 9, 9), engine="fft"),
        portconv.plan_conv2d((1, 1, 20, 20), (1, 1, 9, 9), engine="fft", stride=2),
        portconv.plan_conv2d((1, 1, 20, 20), (1, 1, 9, 9), engine="fft", dilation=2),
    ):
        with pytest.raises(ValueError, match="`weight`"):
            large.execute(np.ones(large.problem.x_shape, np.float32), small.pack(ones(1, 1, 9, 9)))


def test_planning_a_kernel_as_large_as_an_image_takes_little_memory(plain_tier):
    with plain_tier():
        tracemalloc.start()
        portconv.plan_conv2d((1, 1, 1100, 1100), (1, 1, 1024, 1024), engine="fft")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * MEBIBYTE


def test_pixels_between_those_that_are_read_take_no_part(tier):
    """Not in the transforms either, whose rounding errors follow the largest pixel."""
    x = np.random.default_rng(1).standard_normal((1, 2, 24, 24), np.float32)
    x[:, :, 1], x[:, :, :, 1] = 1e30, 1e30
    weight = np.random.default_rng(2).standard_normal((3, 2, 2, 2), np.float32)
    options = {"stride": 2, "dilation": 3}
    y = portconv.conv2d(x, weight, **options, engine="fft")
    assert_close(y, reference_conv2d(x, weight, **options))


def test_tasks_of_some_outputs_of_the_second_group():
    """So many outputs that `fft` computes those of one group in several tasks."""
    x = np.random.default_rng(1).standard_normal((1, 2, 40, 40), np.float32)
    weight = np.random.default_rng(2).standard_normal((1024, 1, 9, 9), np.float32)
    y = portconv.conv2d(x, weight, groups=2, engine="fft")
    second = portconv.conv2d(x[:, 1:], weight[512:], engine="gemm")
    np.testing.assert_allclose(y[:, 512:], second, rtol=0, atol=1e-3)
