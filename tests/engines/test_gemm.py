"""Forms of `gemm` that few problems take, and what its packed weight serves."""

from __future__ import annotations

import numpy as np

import portconv
from portconv.testing import assert_close, reference_conv2d


def test_columns_where_the_first_taps_meet_padding_only(tier):
    """So many channels that each tap is a product of its own, and a dilation that leaves some out at the edges."""
    x = np.random.default_rng(1).standard_normal((1, 100, 9, 26), np.float32)
    weight = np.random.default_rng(2).standard_normal((2, 100, 3, 3), np.float32)
    y = portconv.conv2d(x, weight, dilation=9, padding=9, engine="gemm")
    assert_close(y, reference_conv2d(x, weight, dilation=9, padding=9))


def test_an_image_of_another_size_takes_the_same_pack(backend):
    for options in ({}, {"groups": 4}, {"stride": 2, "padding": 1}):
        inputs = 4 // options.get("groups", 1)
        weight = backend.array(np.random.default_rng(0).standard_normal((8, inputs, 3, 3)).astype("f4"))
        plans = [
            portconv.plan_conv2d(shape, (8, inputs, 3, 3), engine="gemm", backend=backend.package, **options)
            for shape in ((1, 4, 20, 20), (2, 4, 31, 17))
        ]
        x = backend.array(np.random.default_rng(1).standard_normal((2, 4, 31, 17)).astype("f4"))
        y = plans[1].execute(x, plans[0].pack(weight))
        expected = portconv.conv2d(x, weight, engine="gemm", **options)
        np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))
