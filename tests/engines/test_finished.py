"""Plans with what follows the sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv.core.epilogue import Activation, Epilogue
from portconv.engines.finished import sums_of


def test_the_problem_of_the_sums():
    whole = portconv.plan_conv2d((1, 2, 5, 5), (3, 2, 3, 3), True, activation="relu", residual=True).problem
    assert whole.epilogue == Epilogue(True, True, Activation("relu"))
    sums = sums_of(whole)
    assert sums == replace(whole, epilogue=Epilogue(bias=True)) and sums_of(sums) is None
    half = portconv.plan_conv2d((1, 2, 5, 5), (3, 2, 3, 3), dtype="float16", activation="relu", out_dtype="uint8")
    assert sums_of(half.problem).out_dtype == "float32"  # what is rounded twice is rounded wrong
    assert half.problem.result_dtype == "uint8"


def test_a_plan_is_that_of_the_sums_in_all_else():
    plan = portconv.plan_conv2d((1, 3, 40, 40), (8, 3, 3, 3), activation="gelu", engine="gemm")
    plain = portconv.plan_conv2d((1, 3, 40, 40), (8, 3, 3, 3), engine="gemm")
    assert (plan.engine, plan.tier, plan.chosen_by, plan.stamp) == ("gemm", plain.tier, "the caller", plain.stamp)
    assert plan.candidates == plain.candidates and plan.workspace_bytes == plain.workspace_bytes
    assert "gelu" in repr(plan) and "then gelu" in plan.explain()


def test_packed_weights_are_shared_with_calls_that_have_no_activation():
    x, weight = np.ones((1, 3, 9, 9), "f4"), np.ones((8, 3, 3, 3), "f4")
    plain, plan = (portconv.plan_conv2d(x, weight, engine="gemm", activation=a) for a in (None, "relu6"))
    np.testing.assert_array_equal(plan.execute(x, plain.pack(weight)), np.full((1, 8, 7, 7), 6, "f4"))
    other = portconv.plan_conv2d(x, weight, engine="fft").pack(weight)
    with pytest.raises(ValueError, match="was packed for"):
        plan.execute(x, other)
