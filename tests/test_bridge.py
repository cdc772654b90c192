"""NumPy's engines between two conversions, for a library that is NumPy with everything noted."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.extending import host_plan

SHAPES = (2, 3, 20, 18), (5, 3, 3, 3)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype("f4") for shape in (*SHAPES, (5,))]


def make(engine, **options):
    problem = portconv.plan_conv2d(*SHAPES, (5,)).problem
    return host_plan(problem, engine, **{"view": lambda x: x, "take": lambda y, p: y} | options)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_arguments_are_viewed_and_the_result_is_taken(arrays, engine, tier):
    seen, taken = [], []
    plan = make(engine, view=lambda x: seen.append(x) or x, take=lambda y, p: taken.append((y, p)) or "taken")
    x, weight, bias = arrays
    assert plan.execute(x, plan.pack(weight), bias) == "taken"
    assert [id(a) for a in seen] == [id(a) for a in (weight, x, bias)]
    ((y, problem),) = taken
    assert problem is plan.problem
    np.testing.assert_array_equal(y, portconv.conv2d(*arrays, engine=engine))


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_the_result_is_written_into_new_memory(arrays, engine, tier):
    memory = np.full((2, 5, 18, 16), np.nan, np.float32)
    x, weight, bias = arrays
    plan = make(engine, take=None, new=lambda p: ("new", memory))
    assert plan.execute(x, plan.pack(weight), bias) == "new"
    np.testing.assert_array_equal(memory, portconv.conv2d(*arrays, engine=engine))


def test_no_new_memory_for_this_problem(arrays, tier):
    x, weight, bias = arrays
    plan = make("gemm", new=lambda p: None)
    np.testing.assert_array_equal(plan.execute(x, plan.pack(weight), bias), portconv.conv2d(*arrays, engine="gemm"))


def test_the_packed_weight_of_the_plan_inside_is_refused(arrays):
    x, weight, _ = arrays
    plan = make("gemm")
    with pytest.raises(ValueError, match="`weight`"):
        plan.execute(x, plan.inner.pack(weight))
