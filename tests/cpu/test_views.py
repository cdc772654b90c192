"""The one function that makes strided views."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.cpu.views import strided
from portconv.testing import assert_close, reference_conv2d


def test_a_strided_view_stays_inside_its_array():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    view = strided(x, (3, 2, 5), (24, 24, 4))
    assert np.array_equal(view[1], x[1:3, :5])
    assert not view.flags.writeable and np.shares_memory(view, x)
    backwards = x[::-1, ::-1]
    assert np.array_equal(strided(backwards, (2, 2), (-24, -4)), backwards[:2, :2])
    assert strided(x, (0, 9), (4, 400)).shape == (0, 9)
    for shape, strides in (((3, 3, 6), (24, 24, 4)), ((25,), (4,)), ((2,), (-4,)), ((2, 24), (4, 4))):
        with pytest.raises(IndexError, match="beyond the memory"):
            strided(x, shape, strides)
    every_second = x[:, ::2]
    with pytest.raises(IndexError, match="beyond the memory"):
        strided(every_second, (24,), (4,))
    with pytest.raises(IndexError, match="beyond the memory"):
        strided(np.broadcast_to(np.float32(1), (9, 9)), (2,), (4,))


@pytest.mark.parametrize("engine", ["direct", "gemm", "fft", "winograd"])
@pytest.mark.parametrize("shape", [(1, 16, 16, 1), (2, 16, 1, 16), (1, 1, 16, 16), (1, 40, 46, 1)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("groups", ["dense", "depthwise"])
def test_an_axis_of_one_element_may_have_any_stride(tier, needs, engine, shape, layout, groups):
    """NumPy calls such arrays contiguous all the same."""
    rng = np.random.default_rng(0)
    channels = shape[1] if layout == "NCHW" else shape[3]
    options = {"groups": channels if groups == "depthwise" else 1, "padding": 1, "layout": layout}
    x, weight = (rng.standard_normal(s).astype("f4") for s in (shape, (channels, channels // options["groups"], 3, 3)))
    needs(engine, x, weight, **options)
    expected = reference_conv2d(x, weight, **options)
    for order in ("C", "F"):
        for odd in (64, -4):
            view = x.copy(order)
            strides = [odd if size == 1 else s for size, s in zip(x.shape, view.strides, strict=True)]
            view = strided(view, x.shape, strides)
            np.testing.assert_array_equal(view, x)
            assert_close(portconv.conv2d(view, weight, engine=engine, **options), expected)
