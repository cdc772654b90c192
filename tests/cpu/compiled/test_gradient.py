"""The compiled gradient of the weight: the forms of its stage, parts of the batch, every kind of array."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.cpu.compiled.gradient import plan as plans
from portconv.testing import assert_close, reference_gradients
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
