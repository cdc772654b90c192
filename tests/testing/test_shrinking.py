"""What is wrong is made small."""

from __future__ import annotations

import pytest

from portconv.testing import Problem, fits, shrink


def test_a_failure_becomes_small():
    p = Problem(
        (3, 24, 40, 50), (4, 8, 6, 5, 3), {"padding": ((4, 1), (2, 3)), "stride": (2, 3), "groups": 4},
        engine="direct", dtype="float16", bias_shape=(32,), data="nan", orders=("F", "page end", "flipped"),
        threads=2, call="layer",
    )  # fmt: skip
    fails = lambda p: p.parts[2] >= 3 and p.parts[0] >= 2 and p.argument("stride") != 1  # noqa: E731
    found = shrink(p, fails)
    assert fails(found)
    assert found == Problem(
        (1, 6, 1, 1), (2, 1, 3, 1, 1), {"stride": found.argument("stride"), "groups": 2}, engine="direct"
    )


def test_what_is_left_fails_and_fits():
    tried = []

    def fails(p):
        assert fits(p)
        tried.append(p)
        return p.out_shape[3] >= 3 and p.parts[3] == 2

    found = shrink(Problem((2, 3, 30, 40), (4, 3, 4, 5), {"padding": "same", "dilation": (2, 3)}), fails)
    assert fails(found) and len(tried) > 10
    assert found.x_shape[:2] == (1, 1) and found.parts[:3] == (1, 1, 1) and "dilation" not in found.arguments


def test_the_search_ends_with_the_time():
    p = Problem((3, 8, 40, 50), (4, 8, 3, 3), {"padding": 1})
    assert shrink(p, lambda _: pytest.fail("there was no time for it"), seconds=-1) == p


def test_nothing_smaller_may_fail():
    p = Problem((3, 8, 40, 50), (4, 8, 3, 3), {"padding": 1})
    assert shrink(p, lambda _: False) == p
