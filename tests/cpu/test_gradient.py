"""Gradients by NumPy's engines, against float64 sums tap by tap."""

from __future__ import annotations

import math

import numpy as np
import pytest

import portconv
from portconv.check.problems import problems
from portconv.cpu import gradient
from portconv.testing import assert_close, make_data, reference_gradients
from tests.helpers import numbers

NUMPY_DTYPES = ("float16", "float32", "float64")
PROBLEMS = [
    p for p in problems(0, 90)
    if not p.mistake and not p.slow and p.dtype in NUMPY_DTYPES and not p.x_dtype
    and {p.data, p.kernel} <= {"normal", "constant"}
]  # fmt: skip


def gradients(x, weight, dy, **options):
    p = portconv.plan_conv2d(x, weight, **options).problem
    dx, dweight = gradient.image_gradient(p, weight, dy), gradient.weight_gradient(p, x, dy)
    dbias = gradient.bias_gradient(p, dy)
    assert (dx.shape, dweight.shape, dbias.shape) == (x.shape, p.weight_shape, (p.out_channels,))
    assert dx.dtype == dweight.dtype == dbias.dtype == p.dtype
    return dx, dweight.reshape(weight.shape), dbias


@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")
def test_within_the_bound(p, tier):
    data = make_data(p)
    x = data.x if p.argument("layout") == "NCHW" else data.x.transpose(0, 2, 3, 1)
    dy = numbers(portconv.conv2d_output_shape(x.shape, p.weight_shape, **p.arguments), dtype=p.dtype)
    if p.data == "constant":
        dy[...] = 0.1
    found = gradients(x, data.weight, dy, **p.arguments)
    for got, exact in zip(found, reference_gradients(x, data.weight, dy, **p.arguments), strict=True):
        assert_close(got, exact, dtype=p.dtype)


@pytest.mark.parametrize("data", ["normal", "constant"])
@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
def test_sums_over_many_positions(data, accuracy, tier):
    """Those of the weight's gradient are as long as the batch."""
    x, dy = numbers((6, 3, 90, 88)), numbers((6, 4, 90, 88), 1)
    if data == "constant":
        x[...], dy[...] = 0.1, 0.1
    weight = numbers((4, 3, 3, 3), 2)
    found = gradients(x, weight, dy, padding=1, accuracy=accuracy)
    for got, exact in zip(found, reference_gradients(x, weight, dy, padding=1), strict=True):
        assert_close(got, exact, accuracy=accuracy)


@pytest.mark.filterwarnings("error")
def test_sums_that_overflow_are_infinite_and_nobody_is_warned(tier):
    x, dy = np.ones((5, 16, 120, 120), "f4"), np.full((5, 4, 120, 120), 1e34, "f4")
    weight = np.zeros((4, 16, 1, 1), "f4")
    assert np.all(np.isinf(gradients(x, weight, dy)[1]))


@pytest.mark.parametrize("shape", [(1, 1, 500, 1000), (1, 3, 250, 1000), (4001, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_gradient_of_the_bias_in_float64(shape, layout):
    """There is no wider dtype to sum it in; constant terms show what one sum after the other would lose."""
    outputs = shape[1]
    p = portconv.plan_conv2d(
        shape if layout == "NCHW" else (*shape[:1], *shape[2:], outputs), (outputs, outputs, 1, 1),
        layout=layout, dtype="float64",
    ).problem  # fmt: skip
    found = gradient.bias_gradient(p, np.full(p.out_shape, 0.1))
    count = np.prod(shape) // outputs
    assert found.shape == (outputs,)
    assert np.abs(found - math.fsum(np.full(count, 0.1))).max() <= 8 * np.finfo(np.float64).eps * 0.1 * count


def test_arguments_are_left_as_they_are(tier):
    x, weight, dy = numbers((2, 4, 9, 8)), numbers((6, 2, 3, 3)), numbers((2, 6, 5, 4))
    copies = [a.copy() for a in (x, weight, dy)]
    options = {"stride": 2, "padding": 1, "groups": 2}
    expected = gradients(x, weight, dy, **options)
    views = [np.asfortranarray(a) for a in copies]
    for a in views:
        a.flags.writeable = False
    for got, same in zip(gradients(*views, **options), expected, strict=True):
        np.testing.assert_allclose(got, same, rtol=1e-5, atol=1e-5)
    for a, b in zip((x, weight, dy), copies, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_not_finite_stays_where_it_belongs(tier):
    x, weight, dy = numbers((1, 1, 12, 12)), numbers((1, 1, 3, 3)), numbers((1, 1, 12, 12), 1)
    dy[0, 0, 5, 6] = np.nan
    dx, dweight, dbias = gradients(x, weight, dy, padding=1)
    expected = np.zeros((12, 12), bool)
    expected[4:7, 5:8] = True
    np.testing.assert_array_equal(np.isnan(dx[0, 0]), expected)
    assert np.isnan(dweight).all()
    assert np.isnan(dbias).all()
