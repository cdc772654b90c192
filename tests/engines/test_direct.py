"""Forms of `direct` that few problems take."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import PAD_MODES


@pytest.mark.parametrize("mode", PAD_MODES)
@pytest.mark.parametrize("stride", [1, (1, 2), (2, 1)])
@pytest.mark.parametrize("dilation", [1, (1, 2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_small_depthwise_images(tier, batch, mode, stride, dilation):
    """One image of many channels: plain NumPy has a way of its own for some of these."""
    rng = np.random.default_rng(3)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((batch, 64, 7, 9), (64, 1, 5, 3)))
    options = {"groups": 64, "stride": stride, "dilation": dilation, "padding": (2, 1), "padding_mode": mode}
    y = portconv.conv2d(x, weight, **options, engine="direct", accuracy="elementwise")
    assert_close(y, reference_conv2d(x, weight, **options), accuracy="elementwise")
