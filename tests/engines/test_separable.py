"""A plan for separable kernels around the plan of an engine."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.dispatch import measurement
from portconv.engines.separable import LowRankPlan
from tests.helpers import plan

pytestmark = pytest.mark.usefixtures("in_plain_tier")


def test_separable_kernels_run_as_two_passes(cache, monkeypatch):
    """As with estimates: what random data say of `fft` says nothing of a Gaussian."""
    monkeypatch.setattr(measurement, "_fastest", lambda calls, _: {name: 1.0 + (name != "fft") for name in calls})
    for chosen_by in ("measurement", "wisdom"):
        found = plan((1, 1, 60, 60), (1, 1, 9, 9))
        assert (found.engine, found.chosen_by) == ("fft", chosen_by)
        assert isinstance(found, LowRankPlan)
        assert found.pack(np.ones((1, 1, 9, 9), np.float32)).separable
