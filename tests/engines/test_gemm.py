"""Forms of `gemm` that few problems take, and what its packed weight serves."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import engines
from portconv.engines.costs import CPU
from portconv.engines.steps import Steps
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers


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


@pytest.mark.parametrize("inputs", [2, 40], ids=["stacks of taps", "tap by tap"])
@pytest.mark.parametrize("options", [{"stride": (2, 3)}, {"stride": 2, "dilation": (1, 2)}, {"dilation": 9}, {}])
def test_blocks_of_a_row_or_less(inputs, options):
    """As large images have them: windows that begin at rows and columns of their own."""
    x, weight, bias = numbers((2, inputs, 21, 500)), numbers((8, inputs, 3, 3), 1), numbers((8,), 2)
    options = {"padding": ((3, 1), (0, 2)), **options}
    problem = portconv.plan_conv2d(x, weight, bias, **options).problem
    plan = engines.build(problem, "gemm", Steps(np, block_bytes=1 << 12), CPU)
    assert len(plan.tasks) > 2 * problem.out_size[0]
    assert any(task.block.rows.start and task.block.cols.start for task in plan.tasks)
    assert_close(plan.execute(x, plan.pack(weight), bias), reference_conv2d(x, weight, bias, **options))
