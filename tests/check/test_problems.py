"""The problems of `portconv check`."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.check.problems import problem, problems
from portconv.testing import fits, make_data
from tests.helpers import DESIGNED

RANDOM = problems(0, 100)[len(DESIGNED) :]


def test_a_number_and_a_seed_are_a_problem():
    for p in (DESIGNED[3], RANDOM[7]):
        assert problem(p.number, 0) == p
        first, second = make_data(p), make_data(p)
        np.testing.assert_array_equal(first.x, second.x)
        np.testing.assert_array_equal(first.weight, second.weight)
    assert problem(RANDOM[7].number, 1) != RANDOM[7]
    assert [p.number for p in DESIGNED] == list(range(len(DESIGNED)))
    assert len({p.name for p in DESIGNED}) == len(DESIGNED)
    assert problems(0, 5, quick=True) == [p for p in DESIGNED if not p.slow] + RANDOM[:5]


@pytest.mark.parametrize("p", [*DESIGNED, *RANDOM[:30]], ids=lambda p: f"{p.number} {p.name}")
def test_problems_are_what_they_say(p):
    if p.mistake:
        return
    shape = p.x_shape if p.argument("layout") == "NCHW" else tuple(p.x_shape[axis] for axis in (0, 2, 3, 1))
    shape = portconv.conv2d_output_shape(shape, p.weight_shape, **p.arguments)  # raises for what does not fit
    assert fits(p)
    assert shape == (p.out_shape if p.argument("layout") == "NCHW" else tuple(p.out_shape[a] for a in (0, 2, 3, 1)))
