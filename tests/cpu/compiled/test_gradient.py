"""The compiled gradient of the weight: the forms of its stage, parts of the batch, every kind of array."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import portconv
from portconv.cpu.compiled.gradient import depthwise
from portconv.cpu.compiled.gradient import plan as plans
from portconv.cpu.gradient import _compiled
from portconv.testing import assert_close, reference_gradients
from portconv.testing.arrays import arranged
from tests.helpers import CASES, numbers, oracle_arguments

pytestmark = pytest.mark.usefixtures("jit")


def plan_of(x_shape, weight_shape, **options):
    """A plan that is not kept, since tests change what it is made by."""
    problem = portconv.plan_conv2d(x_shape, weight_shape, **options).problem
    return plans.CompiledWeightGradient.make.__wrapped__(plans.CompiledWeightGradient, problem)


def check(plan, x, weight_shape, dy, dtype="float32", accuracy="normwise", **options):
    found = plan.compute(x, dy)
    assert found.shape == plan.problem.weight_shape
    exact = reference_gradients(x, np.zeros(weight_shape, dy.dtype), dy, **oracle_arguments(options))[1]
    exact = exact.each(lambda a: np.reshape(a, found.shape))
    return assert_close(found, exact, dtype=dtype, accuracy=accuracy)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_within_the_bound(case, layout, dtype):
    x_shape, weight_shape, options = case
    x = numbers(x_shape, 1, dtype)
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    plan = plan_of(x.shape, weight_shape, dtype=dtype, layout=layout, **options)
    check(plan, x, weight_shape, numbers(plan.problem.out_shape, 2, dtype), dtype, layout=layout, **options)


@pytest.mark.parametrize(
    ("inputs", "kernel", "pixels"), [(1, (3, 3), True), (3, (7, 7), True), (16, (3, 3), False), (40, (1, 1), False)]
)
def test_few_channels_are_staged_pixel_by_pixel(inputs, kernel, pixels):
    plan = plan_of((2, inputs, 20, 19), (9, inputs, *kernel))
    assert plan.geometry.pixels == pixels
    x, dy = numbers((2, inputs, 20, 19)), numbers(plan.problem.out_shape, 1)
    check(plan, x, (9, inputs, *kernel), dy)


@pytest.mark.parametrize(
    "case", ["3x3", "stride, many channels", "replicate", "groups, 5-D weight", "1x1 kernel, stride"]
)
def test_parts_of_the_batch_and_of_the_rows(case, monkeypatch):
    x_shape, weight_shape, options = CASES[case]
    x_shape = (3, *x_shape[1:])
    whole = plan_of(x_shape, weight_shape, **options)
    assert len(whole.pieces) == 1
    monkeypatch.setattr(plans, "STAGE_BYTES", 1)
    monkeypatch.setattr(
        plans, "MAX_STAGE_BYTES", 4 * whole.geometry.line * whole.geometry.blocks * whole.geometry.groups * 3
    )
    plan = plan_of(x_shape, weight_shape, **options)
    rows = [piece[3] for piece in plan.pieces]
    assert len(rows) > 3 and max(rows) < plan.problem.out_size[0]
    assert sum(piece[1] * piece[3] for piece in plan.pieces) == 3 * plan.problem.out_size[0]
    check(plan, numbers(x_shape), weight_shape, numbers(plan.problem.out_shape, 1), **options)


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((6, 3, 90, 88), (4, 3, 3, 3), {"padding": 1}),
        ((6, 16, 90, 88), (4, 16, 1, 1), {}),
        ((2, 16, 9, 700), (4, 16, 1, 1), {"stride": 2}),
    ],
    ids=str,
)
def test_sums_over_many_positions(accuracy, x_shape, weight_shape, options):
    """Constant terms show what one sum after the other would lose."""
    plan = plan_of(x_shape, weight_shape, accuracy=accuracy, **options)
    x, dy = np.full(x_shape, 0.1, np.float32), np.full(plan.problem.out_shape, 0.1, np.float32)
    check(plan, x, weight_shape, dy, accuracy=accuracy, **options)


@pytest.mark.parametrize("inputs", [3, 20])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", ">f4"])
def test_images_of_every_kind(inputs, dtype):
    """They are read as they are: in their own dtype, byte order and strides."""
    x = (100 * np.random.default_rng(0).random((2, 30, 11, inputs))).astype(dtype).transpose(0, 3, 2, 1)[:, :, ::-1]
    dy = numbers((2, 5, 6, 15), 1)
    options = {"stride": 2, "padding": 1}
    plan = plan_of(x.astype(np.dtype(dtype).newbyteorder("=")), np.zeros((5, inputs, 3, 3), "f4"), **options)
    check(plan, x, (5, inputs, 3, 3), dy, **options)


@pytest.mark.parametrize("inputs", [3, 20])
def test_cotangents_in_every_order(inputs):
    x, dy = numbers((2, inputs, 9, 8)), numbers((2, 5, 9, 8), 1)
    plan = plan_of(x.shape, (5, inputs, 3, 3), padding=1)
    expected = plan.compute(x, dy)
    for view in (np.asfortranarray(dy), dy[..., ::-1].copy()[..., ::-1], dy.astype(">f4"), dy.astype("f8")):
        np.testing.assert_array_equal(plan.compute(x, view), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_axis_of_one_element_of_a_cotangent_may_have_any_stride(layout):
    """Also in an array that calls itself contiguous."""
    for x_shape, weight_shape in (
        ((1, 3, 5, 1), (4, 3, 1, 1)),
        ((2, 6, 1, 7), (6, 1, 1, 1)),
        ((1, 3, 5, 4), (1, 3, 2, 4)),
    ):
        groups = x_shape[1] // weight_shape[1]
        x, options = numbers(x_shape, 1), {"groups": groups}
        y = portconv.conv2d(x, numbers(weight_shape), **options)
        dy = numbers(y.shape, 2)
        odd = arranged(portconv.get_backend("numpy"), dy, "float32", None, "odd strides")
        found = [portconv.conv2d_vjp(x, numbers(weight_shape), **options, wrt="weight")[1](a)[1] for a in (dy, odd)]
        np.testing.assert_array_equal(*found)
        if layout == "NHWC":
            last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            turned = odd.transpose(0, 2, 3, 1)
            pull = portconv.conv2d_vjp(last, numbers(weight_shape), **options, layout=layout, wrt="weight")[1]
            np.testing.assert_allclose(pull(turned)[1], found[0], rtol=1e-5)


def test_what_is_not_finite_stays_where_it_belongs():
    x, dy = numbers((1, 20, 9, 8)), numbers((1, 10, 9, 8), 1)
    plan = plan_of(x.shape, (10, 20, 3, 3), padding=1)
    x[0, 17, 4, 4] = np.inf
    dy[0, 3, 2, 2] = np.nan
    found = np.isfinite(plan.compute(x, dy)[0])
    expected = np.ones((10, 20, 3, 3), bool)
    expected[3] = expected[:, 17] = False
    np.testing.assert_array_equal(found, expected)


def test_rows_that_are_too_long_have_no_compiled_form():
    assert plan_of((1, 64, 3, 400_000), (4, 64, 3, 3)) is None
    assert plan_of((1, 64, 3, 400), (4, 64, 3, 3)) is not None


# --- depthwise layers -------------------------------------------------------------------------------------------------

DEPTHWISE = {  # image, outputs, kernel, options
    "3x3": ((2, 16, 9, 11), 16, (3, 3), {"padding": 1}),
    "two outputs a channel, stride": ((3, 16, 14, 13), 32, (3, 3), {"stride": 2, "padding": 1}),
    "as wide as the image": ((2, 16, 7, 7), 16, (3, 5), {"padding": (1, 2)}),
    "as wide, far apart": ((2, 16, 4, 5), 16, (3, 3), {"padding": ((0, 9), (2, 10)), "dilation": (2, 6)}),
    "as wide, strips": ((2, 8, 300, 90), 8, (9, 1), {"padding": (4, 0)}),
    "reflect": ((2, 16, 9, 8), 16, (3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "dilation, strides": ((1, 16, 31, 37), 16, (5, 5), {"stride": (2, 3), "padding": 4, "dilation": 2}),
    "all taps in the padding, or some": ((1, 16, 3, 2), 16, (3, 5), {"padding": (9, 7), "stride": 4}),
    "strips": ((2, 8, 120, 90), 8, (7, 7), {"padding": 3}),
    "one row": ((5, 8, 1, 300), 8, (1, 4), {}),
}


def depthwise_plan(x_shape, outputs, kernel, **options):
    spec = {"dtype": "float32", "groups": x_shape[1], **options}
    return depthwise.CompiledDepthwiseGradient.make(
        portconv.plan_conv2d(x_shape, (outputs, 1, *kernel), **spec).problem
    )


@pytest.mark.parametrize("case", DEPTHWISE.values(), ids=DEPTHWISE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_depthwise(case, dtype):
    x_shape, outputs, kernel, options = case
    plan = depthwise_plan(x_shape, outputs, kernel, dtype=dtype, **options)
    x, dy = numbers(x_shape, 1, dtype), numbers(plan.problem.out_shape, 2, dtype)
    check(plan, x, (outputs, 1, *kernel), dy, dtype, groups=x_shape[1], **options)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by Linux's mprotect here")
@pytest.mark.parametrize("order", ["page start", "page end"])
def test_depthwise_reads_nothing_beyond_the_image(run_python, order):
    """As wide as the image, with taps that are farther from it than it is wide."""
    run_python(f"""
    from dataclasses import replace
    from portconv.testing import Problem, verify
    for width, kernel, padding in ((1, (3, 7), (1, 3)), (2, (1, 9), (0, 4)), (3, (5, 11), (9, 5)), (9, (3, 5), (1, 2))):
        p = Problem((2, 17, 3, width), (17, 1, *kernel), {{"groups": 17, "padding": padding}}, gradient=True, threads=1)
        for dtype in ("float32", "float64"):
            verify(replace(p, dtype=dtype, orders=({order!r}, "C", "C")))
    """)


def test_depthwise_images_that_are_cut_from_others():
    """Their rows do not follow each other."""
    shape = (2, 8, 7, 7)
    plan, x, dy = depthwise_plan(shape, 8, (3, 3), padding=1), numbers((2, 8, 9, 9)), numbers(shape, 1)
    check(plan, x[..., 1:8, 1:8], (8, 1, 3, 3), dy, groups=8, padding=1)


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
def test_depthwise_sums_over_many_positions(accuracy):
    """Constant terms show what one sum after the other would lose."""
    shape = (3, 8, 200, 180)
    plan = depthwise_plan(shape, 8, (3, 3), padding=1, accuracy=accuracy)
    x, dy = np.full(shape, 0.1, np.float32), np.full(plan.problem.out_shape, 0.1, np.float32)
    check(plan, x, (8, 1, 3, 3), dy, accuracy=accuracy, groups=8, padding=1)


@pytest.mark.parametrize("dtype", ["uint8", "float16", ">f4"])
def test_depthwise_images_of_every_kind(dtype):
    x = (100 * np.random.default_rng(0).random((2, 30, 11, 8))).astype(dtype).transpose(0, 3, 2, 1)[:, :, ::-1]
    dy = np.asfortranarray(numbers((2, 8, 6, 15), 1)).astype(">f4")
    plan = depthwise_plan(x.shape, 8, (3, 3), stride=2, padding=1)
    check(plan, x, (8, 1, 3, 3), dy.astype("f4"), stride=2, padding=1, groups=8)
    np.testing.assert_array_equal(plan.compute(x, dy), plan.compute(x, dy.astype("f4")))


def test_depthwise_what_is_not_finite_stays_where_it_belongs():
    x, dy = numbers((1, 8, 9, 7)), numbers((1, 8, 7, 5), 1)
    plan = depthwise_plan(x.shape, 8, (3, 3))
    x[0, 5, 0, 6], x[0, 2, 8, 6], dy[0, 3, 2, 2] = np.inf, np.nan, np.nan
    expected = np.ones((8, 1, 3, 3), bool)
    expected[5, 0, 0, 2] = expected[2, 0, 2, 2] = expected[3] = False  # each corner of the image meets one tap
    np.testing.assert_array_equal(np.isfinite(plan.compute(x, dy).reshape(8, 1, 3, 3)), expected)


def test_which_layers_have_the_depthwise_form():
    assert depthwise_plan((1, 8, 9, 9), 16, (3, 3)) is not None
    assert depthwise_plan((1, 8, 9, 9), 24, (3, 3)) is None  # the image would be copied for each of three outputs
    assert depthwise_plan((1, 1, 9, 9), 1, (3, 3)) is None  # one channel is one thread's
    assert depthwise_plan((1, 9, 9, 8), 8, (3, 3), layout="NHWC", groups=8) is None
    assert depthwise_plan((1, 8, 9, 400_000), 8, (3, 3)) is None
    assert isinstance(_compiled(depthwise_plan((1, 8, 9, 9), 8, (3, 3)).problem), depthwise.CompiledDepthwiseGradient)
