"""What a plan says of its candidates."""

from __future__ import annotations

import re

import numpy as np
import pytest

import portconv
from portconv.engines import ENGINES


@pytest.mark.parametrize("options", [{}, {"accuracy": "elementwise"}, {"engine": "direct"}, {"strategy": "measure"}])
def test_explain(options):
    plan = portconv.plan_conv2d((2, 8, 30, 31), (4, 8, 5, 5), True, padding=2, **options)
    text = plan.explain()
    assert {c.engine for c in plan.candidates} == {"native", *ENGINES}
    for candidate in plan.candidates:
        assert text.count(f" {candidate.engine} ") == 1
        assert (candidate.why_not or "") in text
    for word in ("(2, 8, 30, 31)", "(2, 4, 30, 31)", "5x5", "float32", plan.chosen_by):
        assert word in text
    assert text.splitlines()[-len(plan.candidates)].startswith(f"* {plan.engine} ")  # the chosen one first


LINES = [
    (
        ((1, 16, 32, 32), (16, 16, 3, 3)),
        {"padding": 1, "engine": "gemm"},
        r"<\w+Plan gemm( \(.+\))?: float32 1x16x32x32 by 16x16x3x3, padding 1, on cpu, chosen by the caller>",
    ),
    (
        ((2, 30, 31, 4), (8, 1, 3, 5), True, (2, 1), ((0, 1), (2, 3)), 2, 4),
        {"padding_mode": "reflect", "layout": "NHWC", "accuracy": "elementwise", "dtype": "float64"},
        r"<\w+Plan \w+( \(.+\))?: float64 2x30x31x4 by 8x1x3x5, stride 2x1, "
        r"padding \(\(0, 1\), \(2, 3\)\), reflect, dilation 2, groups 4, bias, NHWC, elementwise, on cpu, "
        r"chosen by heuristic>",
    ),
    (
        (np.ones((1, 3, 40, 40), np.uint8), np.ones((3, 1, 31, 31), np.float32), None, 1, (15, 14), 1, 3),
        {},
        r"<\w+Plan \w+( \(.+\))?: uint8 1x3x40x40 by float32 3x1x31x31, padding 15x14, groups 3, on cpu, chosen by .*>",
    ),
    (
        ((1, 1, 2, 2), (1, 1, 5, 5), None, 1, 2),
        {},
        r"<CroppedPlan \w+( \(.+\))?: float32 1x1x2x2 by 1x1x5x5, padding 2, on cpu, chosen by heuristic>",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "pattern"), LINES, ids=["engine", "options", "photograph", "cropped"])
def test_a_plan_shows_as_one_line(tier, arguments, options, pattern):
    plan = portconv.plan_conv2d(*arguments, **options)
    assert re.fullmatch(pattern, repr(plan)), repr(plan)
    if tier == "compiled" and plan.engine == "gemm":
        assert "(compiled" in repr(plan)


def test_the_plans_of_every_library_show_as_one_line(backend, engine):
    x, weight = (backend.array(np.ones(shape, np.float32)) for shape in ((1, 2, 9, 8), (3, 2, 3, 3)))
    plan = portconv.plan_conv2d(x, weight, stride=1, engine=engine)
    text = repr(plan)
    assert text.startswith(f"<{type(plan).__name__} {plan.engine}") and text.endswith(f", chosen by {plan.chosen_by}>")
    assert ": float32 1x2x9x8 by 3x2x3x3, on " in text and "\n" not in text and len(text) < 160
