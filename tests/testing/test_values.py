"""The values of the problems that are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.testing import Problem, make_data
from portconv.testing.values import rounded
from tests.helpers import named


def test_rounding_to_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(5000) * 10.0 ** np.arange(-25, 25).repeat(100)
    values = np.append(values, [np.inf, -np.inf, np.nan, 0.0])
    expected = values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounded(values, "bfloat16"), expected)


def test_data_are_what_their_name_says():
    assert np.isnan(make_data(named("nan, 3x3")).x).sum() >= 1
    assert np.isposinf(make_data(named("inf, 3x3")).x).any()
    data = make_data(named("long sum of a constant, 3x3"))
    assert np.unique(data.x).size == np.unique(data.weight).size == 1


@pytest.mark.parametrize("out_dtype", [None, "float64", "float16", "uint8"])
def test_data_that_come_near_to_an_overflow_keep_below_it_where_they_are_summed(out_dtype):
    """Whatever the result is rounded to afterwards."""
    data = make_data(Problem((1, 16, 1, 5), (3, 16, 1, 1), data="overflow", kernel="sparse", out_dtype=out_dtype))
    sums = np.abs(data.x.astype(np.float64)).max() * np.abs(data.weight.astype(np.float64)).sum(axis=(1, 2, 3)).max()
    assert 0.05 * np.finfo(np.float32).max < sums < 0.5 * np.finfo(np.float32).max
