"""The compiled `winograd`, beside what is tested of the engine in both tiers."""

from __future__ import annotations

from portconv.testing import Problem, verify


def test_an_image_of_another_size_gets_a_weight_of_its_own(jit):
    """The weight for gemm, which computes what is not finite, may have another form there."""
    problem = Problem((1, 6, 13, 1), (9, 6, 7, 1), engine="winograd", data="inf", call="layer", seed=4844)
    assert verify(problem).share <= 1
