"""Gradients in the array API: with a library that can assign to arrays and with one that cannot."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import engines
from portconv.engines import gradients
from portconv.engines.costs import GENERIC
from portconv.engines.cropped import planned
from portconv.engines.steps import Steps
from portconv.testing import assert_close, reference_gradients
from tests.helpers import CASES, numbers, oracle_arguments


@pytest.fixture(params=[True, False], ids=["writable", "not writable"])
def steps(request):
    return Steps(pytest.importorskip("array_api_strict"), writable=request.param)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_within_the_bound(steps, case):
    x_shape, weight_shape, options = case
    p = portconv.plan_conv2d(x_shape, weight_shape, **options).problem
    x, weight, dy = numbers(x_shape, 1), numbers(weight_shape, 2), numbers(p.out_shape, 3)
    given = [steps.xp.asarray(a) for a in (x, weight, dy)]

    def plan(problem):
        return planned(
            problem,
            lambda p: engines.candidates(p, steps, GENERIC),
            lambda p, engine: engines.build(p, engine, steps, GENERIC),
        )

    found = (
        gradients.image_gradient(p, given[1], given[2], steps, plan),
        gradients.weight_gradient(p, given[0], given[2], steps),
        gradients.bias_gradient(p, given[2], steps),
    )
    assert found[1].shape == p.weight_shape
    exact = reference_gradients(x, weight, dy, **oracle_arguments(options))
    for got, like, reference in zip(found, (x, weight, None), exact, strict=True):
        shape = (p.out_channels,) if like is None else like.shape
        assert_close(np.asarray(got).reshape(shape), reference.each(lambda a, s=shape: np.reshape(a, s)))


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
def test_sums_over_many_positions(steps, accuracy):
    """Constant terms show what one sum after the other would lose."""
    x, dy = np.full((3, 2, 90, 88), 0.1, np.float32), np.full((3, 2, 90, 88), 0.1, np.float32)
    p = portconv.plan_conv2d(x.shape, (2, 2, 3, 3), padding=1, accuracy=accuracy).problem
    given = [steps.xp.asarray(a) for a in (x, dy)]
    found = gradients.weight_gradient(p, *given, steps), gradients.bias_gradient(p, given[1], steps)
    exact = reference_gradients(x, np.zeros((2, 2, 3, 3), np.float32), dy, padding=1)[1:]
    for got, reference, shape in zip(found, exact, ((2, 2, 3, 3), (2,)), strict=True):
        assert_close(
            np.asarray(got).reshape(shape), reference.each(lambda a, s=shape: np.reshape(a, s)), accuracy=accuracy
        )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_what_is_not_finite_stays_where_it_belongs(steps, mode):
    p = portconv.plan_conv2d((1, 1, 9, 9), (1, 1, 3, 3), padding=1, padding_mode=mode).problem
    dy = np.ones((1, 1, 9, 9), np.float32)
    dy[0, 0, 4, 4] = np.nan
    weight = steps.xp.ones((1, 1, 3, 3), dtype=steps.xp.float32)

    def plan(problem):
        return engines.build(problem, "direct", steps, GENERIC)

    dx = np.asarray(gradients.image_gradient(p, weight, steps.xp.asarray(dy), steps, plan))[0, 0]
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(dx), expected)
