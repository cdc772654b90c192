"""Kernels that reach far over the edge: the taps that meet only padding are left out, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.engines import taps
from portconv.testing import assert_close, reference_conv2d

# x shape, weight shape, arguments
CASES = {
    "rate 12": ((2, 32, 33, 30), (16, 32, 3, 3), {"padding": 12, "dilation": 12}),
    "groups": ((1, 64, 33, 30), (40, 32, 3, 3), {"padding": (16, 9), "dilation": (16, 9), "groups": 2}),
    "one axis": ((1, 16, 40, 65), (33, 16, 3, 5), {"padding": (20, 5), "dilation": (20, 5)}),
    "uneven padding": ((1, 200, 20, 25), (5, 200, 3, 3), {"padding": ((3, 20), (12, 0)), "dilation": (10, 6)}),
    "stride": ((1, 24, 61, 50), (8, 24, 3, 3), {"padding": 24, "dilation": 24, "stride": (2, 3)}),
    "stride, many channels": ((1, 250, 61, 50), (8, 250, 3, 3), {"padding": 24, "dilation": 24, "stride": 2}),
    "only the centre": ((1, 8, 20, 20), (3, 8, 3, 3), {"padding": 31, "dilation": 30}),
    "a prime number of channels": ((1, 211, 33, 30), (16, 211, 3, 3), {"padding": 12, "dilation": 12}),
    "more padding than image": ((1, 200, 9, 10), (4, 200, 2, 2), {"padding": 40, "dilation": 40}),
    "one row of taps": ((1, 1, 13, 8), (8, 1, 2, 3), {"padding": ((12, 0), (0, 0)), "dilation": (7, 2)}),
    "the last tap of a row": ((2, 4, 9, 40), (16, 4, 1, 3), {"padding": (0, 40), "dilation": (1, 40)}),
    "the last two taps of a row": ((2, 4, 9, 40), (16, 4, 1, 3), {"padding": (0, 20), "dilation": (1, 20)}),
    "circular": ((1, 200, 33, 30), (4, 200, 3, 3), {"padding": 12, "dilation": 12, "padding_mode": "circular"}),
}


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", CASES)
def test_against_the_oracle(case, layout, accuracy, plain_tier):
    x_shape, weight_shape, options = CASES[case]
    rng = np.random.default_rng(0)
    for dtype in ("f4", "f8"):
        x, weight = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(weight_shape).astype(dtype)
        bias = rng.standard_normal(weight_shape[0]).astype(dtype)
        if layout == "NHWC":
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        options = options | {"layout": layout}
        exact = reference_conv2d(x, weight, bias, **options)
        assert_close(portconv.conv2d(x, weight, bias, engine="gemm", accuracy=accuracy, **options), exact)
        with plain_tier():
            assert_close(portconv.conv2d(x, weight, bias, engine="gemm", accuracy=accuracy, **options), exact)


def problem_of(case):
    x_shape, weight_shape, options = CASES[case]
    return portconv.plan_conv2d(x_shape, weight_shape, **options).problem


@pytest.mark.parametrize("case", CASES)
def test_regions_cover_the_result_and_keep_every_tap_that_matters(case):
    p = problem_of(case)
    (oh, ow), (sh, sw), (dh, dw), (top, _, left, _) = p.out_size, p.stride, p.dilation, p.padding
    covered = np.zeros((oh, ow), int)
    for rows, cols, kernel_rows, kernel_cols in taps.regions(p):
        covered[rows, cols] += 1
        if p.padding_mode != "zeros":
            continue
        for outputs, kept, kernel, stride, dilation, before, size in (
            (rows, kernel_rows, p.kernel[0], sh, dh, top, p.height),
            (cols, kernel_cols, p.kernel[1], sw, dw, left, p.width),
        ):
            for k in range(kernel):
                read = np.arange(outputs.start, outputs.stop) * stride - before + k * dilation
                if ((read >= 0) & (read < size)).any():
                    assert kept.start <= k < kept.stop
    assert (covered == 1).all()


def test_what_is_left_out():
    for rate, most in ((12, 0.78), (24, 0.57), (36, 0.41)):
        p = portconv.plan_conv2d((1, 512, 65, 65), (64, 512, 3, 3), padding=rate, dilation=rate).problem
        assert sum(r.outputs * r.taps for r in taps.regions(p)) <= most * 65 * 65 * 9
    for padding, dilation, mode in ((1, 1, "zeros"), (36, 36, "reflect"), (36, 36, "circular"), (0, 9, "zeros")):
        shapes = ((1, 512, 65, 65), (64, 512, 3, 3))
        p = portconv.plan_conv2d(*shapes, padding=padding, dilation=dilation, padding_mode=mode).problem
        assert len(taps.regions(p)) == 1
