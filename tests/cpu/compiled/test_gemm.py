"""The compiled `gemm`: strides, both kinds of register tiles, results that no cache holds."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.cpu.compiled.helpers import check
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

BOTH = ("normwise", "elementwise")

MEBIBYTE = 2**20
OTHER = {"f2": "float32", "f4": "float16", "f8": "float32"}  # dtypes of results that their arguments have not


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_widths_with_strides(stride, dtype):
    for width in range(5, 71):
        x, weight = numbers((1, 3, 6, width), dtype=dtype), numbers((5, 3, 3, 5), 1, dtype)
        check(x, weight, engine="gemm", padding=1, stride=(1, stride))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("wide", [False, True])
def test_columns_or_outputs_in_the_lanes(monkeypatch, plain_tier, wide, layout, dtype):
    """Both kinds of register tiles, for every width, many and few outputs, long sums, strips, parts of the channels."""
    from portconv.cpu.compiled import plans
    from portconv.cpu.compiled.gemm.plan import CompiledGemmPlan

    with plain_tier():
        pass  # forgets every plan
    plans.build.cache_clear()
    monkeypatch.setattr(CompiledGemmPlan, "make", classmethod(lambda cls, p: cls.with_lanes(p, wide)))
    try:
        for seed, (inputs, outputs, size, kernel, options) in enumerate(
            [
                *((9, 5 + n, (1, n), (1, 1), {}) for n in range(1, 60)),
                *((3, 33, (6, n), (3, 3), {"padding": 1, "stride": 1 + n % 2}) for n in range(3, 40)),
                (70, 130, (7, 7), (1, 1), {}),
                (700, 64, (14, 14), (3, 3), {"padding": 1}),
                (1024, 33, (40, 40), (1, 3), {}),
                (6, 4, (17, 30), (5, 5), {"groups": 2, "padding": 2, "padding_mode": "reflect"}),
            ]
        ):
            x = numbers((2, inputs, *size), seed, dtype)
            weight = numbers((outputs, inputs // options.get("groups", 1), *kernel), 1, dtype)
            bias = numbers((outputs,), 2, dtype)
            if layout == "NHWC":
                x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            check(x, weight, bias, engine="gemm", layout=layout, accuracies=BOTH, **options)
    finally:
        plans.build.cache_clear()
        with plain_tier():
            pass


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_results_that_no_cache_holds(dtype):
    """Streamed to memory, or asked for ahead: whole tiles, the last outputs and rows, a bias, several images."""
    from portconv.cpu.compiled.products import ASKED_AHEAD, PAST_CACHES

    for x_shape, weight_shape, options in (
        ((1, 3, 130, 1024), (67, 3, 3, 3), {"padding": 1}),
        ((1, 3, 130, 1020), (67, 3, 3, 3), {"padding": 1}),
        ((2, 8, 100, 640), (64, 8, 1, 1), {}),
        ((1, 4, 260, 2100), (64, 2, 4, 4), {"stride": 4, "groups": 2}),
        ((1, 200, 100, 1024), (64, 200, 1, 1), {}),
    ):
        x, weight = numbers(x_shape, dtype=dtype), numbers(weight_shape, 1, dtype)
        plan = portconv.plan_conv2d(x, weight, engine="gemm", **options)
        bias = numbers(weight_shape[:1], 2, dtype)
        y = check(x, weight, bias, engine="gemm", **options)
        assert y.nbytes >= 8 * MEBIBYTE, (plan.output_shape, y.nbytes)
        assert plan.geometry.stores in (PAST_CACHES, ASKED_AHEAD)
        residual = y[..., ::-1].copy()
        found = portconv.conv2d(x, weight, bias, engine="gemm", activation="relu", residual=residual, **options)
        np.testing.assert_array_equal(found, np.maximum(y + residual, 0))


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
@pytest.mark.parametrize("wide", [False, True])
def test_taps_that_a_region_needs_with_channels_in_parts(monkeypatch, plain_tier, wide, dtype):
    """The partial sums lie apart from the result; bias, residual and activation come once, after the last."""
    from portconv.cpu.compiled import plans
    from portconv.cpu.compiled.gemm import plan as gemm

    monkeypatch.setattr(gemm, "MAX_WINDOW_BYTES", 1 << (17 if dtype == "f8" else 16))
    with plain_tier():
        pass  # forgets every plan
    plans.build.cache_clear()
    make = classmethod(lambda cls, p: cls.with_lanes(p, wide))
    monkeypatch.setattr(gemm.CompiledGemmPlan, "make", make)
    try:
        for groups, size, out_dtype in ((1, (20, 17), None), (2, (18, 17), None), (1, (20, 17), OTHER[dtype])):
            x, weight = numbers((1, 48 * groups, *size), dtype=dtype), numbers((160 * groups, 48, 3, 3), 1, dtype)
            bias, residual = numbers((len(weight),), 2, dtype), numbers((1, len(weight), *size), 3, dtype)
            options = {"padding": 7, "dilation": 7, "groups": groups}
            plan = portconv.plan_conv2d(x, weight, bias, engine="gemm", **options)
            assert 0 < plan.by_tap < 48 and plan.geometry.results_size
            exact = reference_conv2d(x, weight, bias, **options)
            options |= {"engine": "gemm", "out_dtype": out_dtype}
            assert_close(portconv.conv2d(x, weight, bias, **options), exact)
            y = portconv.conv2d(x, weight, bias, activation="leaky_relu", residual=residual, **options)
            assert_close(y, exact.finished("leaky_relu", residual))
    finally:
        plans.build.cache_clear()
        with plain_tier():
            pass
