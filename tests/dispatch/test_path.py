"""The path of a call: the problem that the arguments make, and plans that are remembered."""

from __future__ import annotations

import numpy as np

import portconv
from tests.helpers import ones


def test_a_plan_is_remembered():
    plan = portconv.plan_conv2d((1, 3, 20, 21), (4, 3, 3, 3))
    assert portconv.plan_conv2d((1, 3, 20, 21), (4, 3, 3, 3)) is plan
    assert portconv.plan_conv2d(ones(1, 3, 20, 21), ones(4, 3, 3, 3)) is plan
    assert portconv.plan_conv2d((1, 3, 20, 22), (4, 3, 3, 3)) is not plan


def test_the_dtype_of_the_image_is_the_problems():
    for dtypes in (
        ("uint8", "float32", "float32"),
        ("float16", "float32", "float64"),
        ("float64", "float16", "float32"),
    ):
        x, weight, bias = (np.ones(s, d) for s, d in zip(((1, 2, 8, 8), (3, 2, 3, 3), (3,)), dtypes, strict=True))
        assert portconv.plan_conv2d(x, weight, bias).problem.x_dtype == dtypes[0]
