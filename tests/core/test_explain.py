"""What a plan says of its candidates."""

from __future__ import annotations

import pytest

import portconv


@pytest.mark.parametrize("options", [{}, {"accuracy": "elementwise"}, {"engine": "direct"}, {"strategy": "measure"}])
def test_explain(options):
    plan = portconv.plan_conv2d((2, 8, 30, 31), (4, 8, 5, 5), True, padding=2, **options)
    text = plan.explain()
    assert {c.engine for c in plan.candidates} == {"native", "gemm", "winograd", "fft", "direct"}
    for candidate in plan.candidates:
        assert text.count(f" {candidate.engine} ") == 1
        assert (candidate.why_not or "") in text
    for word in ("(2, 8, 30, 31)", "(2, 4, 30, 31)", "5x5", "float32", plan.chosen_by):
        assert word in text
    assert text.splitlines()[-len(plan.candidates)].startswith(f"* {plan.engine} ")  # the chosen one first
