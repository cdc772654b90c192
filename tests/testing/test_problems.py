"""The problems that are drawn: nothing of what is promised is left out."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

import portconv
from portconv.testing import Problem, Scope, draw, fits, make_data, scope_of
from portconv.testing.problems import CALLS, MODES, SIZES
from portconv.testing.values import KERNELS, VALUES

DRAWS = 3000
LIBRARIES = ("numpy", "mlx", "torch", "jax", "array_api_strict", "dask")


@lru_cache
def drawn(name):
    scope = scope_of(name)
    return scope, [draw(7, number, scope) for number in range(DRAWS)]


def test_a_seed_and_a_number_are_a_problem():
    assert [draw(1, n) for n in range(20)] == [draw(1, n) for n in range(20)]
    assert draw(1, 5) not in [draw(1, 4), draw(2, 5)]
    first, second = make_data(draw(1, 5)), make_data(draw(1, 5))
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.weight, second.weight)


def form_of(padding):
    if isinstance(padding, str):
        return padding
    if np.ndim(padding) == 2:
        one_side = all(0 in sides for sides in padding)
        return "one side" if one_side else "four sides"
    return "int" if np.ndim(padding) == 0 else "pair"


def bias_form(shape):
    return None if shape is None else len(shape)


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_value_of_every_axis_is_drawn(name, library):
    library(name)  # or the test is skipped
    scope, problems = drawn(name)
    promised = {
        "engine": ({"auto", *scope.engines}, lambda p: p.engine),
        "accuracy": ({"normwise", "elementwise"}, lambda p: p.accuracy),
        "dtype": (set(scope.dtypes), lambda p: p.dtype),
        "dtype of the image": ({*scope.dtypes, *scope.x_dtypes, ""}, lambda p: p.x_dtype),
        "dtype of the bias": ({*scope.dtypes, ""}, lambda p: p.bias_dtype if p.bias_shape else ""),
        "form of the bias": ({None, 1, 4}, lambda p: bias_form(p.bias_shape)),
        "order of the image": (set(scope.orders), lambda p: p.orders[0]),
        "order of the weight": (set(scope.orders), lambda p: p.orders[1]),
        "order of the bias": (set(scope.orders), lambda p: p.orders[2]),
        "padding mode": (set(MODES), lambda p: p.argument("padding_mode")),
        "form of the padding": (
            {"same", "valid", "int", "pair", "one side", "four sides"}, lambda p: form_of(p.argument("padding")),
        ),
        "layout": ({"NCHW", "NHWC"}, lambda p: p.argument("layout")),
        "call": (set(scope.calls), lambda p: p.call),
        "gradient": ({False, True} if scope.gradients else {False}, lambda p: p.gradient),
        "threads": ({0, 1, 2}, lambda p: p.threads),
        "values of the image": (set(VALUES), lambda p: p.data),
        "values of the weight": (set(KERNELS), lambda p: p.kernel),
        "groups, axes of the weight": (
            {(1, 4), (2, 4), (2, 5)}, lambda p: (min(p.parts[0], 2), len(p.weight_shape)),
        ),
        "batch": ({0, 1, 2}, lambda p: min(p.x_shape[0], 2)),
        "stride": ({"none", "square", "oblong"}, lambda p: shape_of_pair(p.argument("stride"))),
        "dilation": ({"none", "square", "oblong"}, lambda p: shape_of_pair(p.argument("dilation"))),
        "kernel": ({"none", "square", "oblong"}, lambda p: shape_of_pair(p.parts[3:])),
        "depthwise": ({False, True}, lambda p: p.parts[0] > 1 and p.parts[2] == 1),
    }  # fmt: skip
    for axis, (expected, value) in promised.items():
        found = Counter(value(p) for p in problems)
        assert set(found) == expected, f"{axis}: {found}"
    sizes = {p.size_class for p in problems}
    # a library that takes a millisecond for every operation gets no large images
    least = {"empty", *(size for size, most in SIZES.items() if most <= scope.elements)}
    assert least <= sizes <= {"empty", *SIZES}
    if name == "numpy":
        assert sizes == {"empty", *SIZES}


def shape_of_pair(value):
    rows, cols = value if np.ndim(value) else (value, value)
    return "none" if rows == cols == 1 else "square" if rows == cols else "oblong"


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_drawn_is_a_call_that_must_succeed(name, library):
    library(name)  # or the test is skipped
    scope, problems = drawn(name)
    for p in problems:
        axes = (0, 1, 2, 3) if p.argument("layout") == "NCHW" else (0, 2, 3, 1)
        shape = tuple(p.x_shape[axis] for axis in axes)
        shape = portconv.conv2d_output_shape(shape, p.weight_shape, **p.arguments)  # raises for what does not fit
        assert shape == tuple(p.out_shape[axis] for axis in axes), p
        assert fits(p), p
        assert p.products <= scope.products and math.prod(p.out_shape) <= scope.elements, p
        assert not p.gradient or scope.gradients


def test_a_repr_is_the_problem():
    for number in range(300):
        p = draw(3, number, Scope(gradients=True, calls=CALLS))
        assert eval(repr(p), {"Problem": Problem}) == p
