"""Compiled depthwise convolutions."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.cpu.compiled.helpers import check
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

BOTH = ("normwise", "elementwise")


@pytest.mark.parametrize("multiplier", [1, 2, 3, 8])
@pytest.mark.parametrize("engine", ["gemm", "direct"])
def test_depthwise(engine, multiplier):
    for kernel, options in (
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": 4, "dilation": 4}),
        ((5, 5), {"padding": 2, "padding_mode": "reflect"}),
        ((7, 7), {"padding": ((3, 0), (6, 2))}),
        ((9, 1), {"padding": (4, 0), "padding_mode": "replicate"}),
        ((2, 9), {}),
        ((3, 3), {"padding": 1, "stride": 2}),
    ):
        if engine == "direct" and options.get("stride") == 2:
            continue
        for channels, size in ((1, (20, 20)), (9, (13, 70)), (40, (7, 12)), (3, (40, 33))):
            x, weight = numbers((2, channels, *size)), numbers((channels, multiplier, 1, *kernel), 1)
            check(x, weight, numbers((channels * multiplier,), 2), engine=engine, groups=channels, **options)
            check(x, weight, engine=engine, groups=channels, accuracies=["elementwise"], **options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_depthwise_with_channels_in_the_lanes(dtype, layout):
    """Every width of a run, strips, blocks of channels that overlap, kernels larger than the image."""
    found = set()
    for seed, (channels, multiplier, size, kernel, options) in enumerate(
        [
            *((16 + n % 20, 1 + (n % 5 == 0), (4, n), (3, 3), {"padding": 1}) for n in range(4, 40)),
            *((17, 1, (9, n), (3, 5), {"padding": (1, 2), "stride": 2}) for n in range(7, 40)),
            *((33, 1, (n, n), (2 * n - 1, 2 * n - 1), {"padding": n - 1}) for n in range(4, 15)),
            (16, 1, (14, 14), (27, 27), {"padding": 13}),
            (40, 2, (13, 20), (5, 5), {"padding": 4, "dilation": 2}),
            (40, 1, (13, 20), (5, 3), {"padding": (20, 1), "dilation": (3, 1)}),
            (16, 1, (5, 6), (3, 3), {"padding": (9, 1)}),
            (16, 1, (8, 2), (3, 2), {"padding": (40, 0)}),
            (16, 1, (120, 130), (7, 7), {"padding": 3}),
            (18, 1, (200, 120), (3, 3), {"padding": ((0, 2), (3, 0)), "stride": (3, 2)}),
            (16, 1, (60, 60), (31, 31), {"padding": 15}),
            (16, 1, (8, 250), (2, 201), {"padding": (0, 100)}),
        ]
    ):
        x, weight = numbers((2, channels, *size), seed, dtype), numbers((channels * multiplier, 1, *kernel), 1, dtype)
        bias = numbers((channels * multiplier,), 2, dtype)
        if layout == "NHWC":
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        plan = portconv.plan_conv2d(x, weight, bias, groups=channels, layout=layout, engine="direct", **options)
        found.add(plan.candidates[[c.engine for c in plan.candidates].index("direct")].note)
        check(x, weight, bias, engine="direct", groups=channels, layout=layout, accuracies=BOTH, **options)
    assert "compiled, channels in the lanes" in found


def test_a_separable_depthwise_kernel_takes_two_passes():
    x, column, row = numbers((1, 24, 30, 31)), numbers((24, 1, 7, 1), 1), numbers((24, 1, 1, 9), 2)
    plan = portconv.plan_conv2d(x, column * row, groups=24, padding=(3, 4), engine="direct")
    assert plan.pack(column * row).separable
    assert not plan.pack(numbers((24, 1, 7, 9), 3)).separable
    for weight in (column * row, numbers((24, 1, 7, 9), 3)):
        check(x, weight, engine="direct", groups=24, padding=(3, 4))
