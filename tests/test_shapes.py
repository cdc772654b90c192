"""Which elements of an image, and which taps of a kernel, an output needs: integers, against counting one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import portconv
from portconv.engines.taps import met
from portconv.shapes import axis_source
from portconv.steps import Block
from portconv.testing import assert_close, reference_conv2d

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@pytest.mark.parametrize("mode", PAD_MODES)
def test_a_window_reads_what_padding_puts_there(mode):
    for size, before, after, step in itertools.product((1, 4, 7), (0, 1, 3), (0, 2, 6), (1, 2, 3)):
        if mode == "reflect" and max(before, after) >= size:
            continue
        padded = np.pad(np.arange(1, size + 1), (before, after), mode=PAD_MODES[mode])  # zeros are outside
        for start, stop in itertools.combinations(range(-before, size + after + 1), 2):
            found = axis_source(slice(start, stop, step), size, before, after, mode)
            values = [0 if i is None else 1 + i for i in (*found.lead, *range(size)[found.inner], *found.trail)]
            assert values == padded[start + before : stop + before : step].tolist(), (size, before, after, found)


def test_the_taps_of_a_block_are_those_that_meet_the_image():
    meeting = 0
    for size, kernel, stride, dilation, before in itertools.product((1, 2, 9), (1, 3, 4), (1, 2), (1, 3), (0, 1, 5)):
        if (outputs := (size + 2 * before - dilation * (kernel - 1) - 1) // stride + 1) < 1:
            continue
        plan = portconv.plan_conv2d(
            (1, 1, size, 1), (1, 1, kernel, 1), stride=(stride, 1), dilation=(dilation, 1), padding=(before, 0)
        )
        for first, last in itertools.combinations(range(outputs + 1), 2):
            block = Block(slice(0, 1), slice(0, 1), slice(first, last), slice(0, 1))
            rows, cols = met(plan.problem, block)
            read = [
                tap
                for tap in range(kernel)
                if any(0 <= out * stride - before + tap * dilation < size for out in range(first, last))
            ]
            assert cols == slice(0, 1)
            assert 0 <= rows.start < rows.stop <= kernel
            if read:
                assert rows.start <= read[0] and rows.stop > read[-1]
            if read and size >= stride:  # or an output steps over the image
                assert (rows.start, rows.stop) == (read[0], read[-1] + 1)
                meeting += 1
    assert meeting > 1000


@pytest.mark.parametrize("mode", PAD_MODES)
@pytest.mark.parametrize("stride", [1, (1, 2), (2, 1)])
@pytest.mark.parametrize("dilation", [1, (1, 2)])
def test_small_depthwise_images(tier, mode, stride, dilation):
    """One image of many channels: plain NumPy has a way of its own for some of these."""
    rng = np.random.default_rng(3)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((1, 64, 7, 9), (64, 1, 5, 3)))
    options = {"groups": 64, "stride": stride, "dilation": dilation, "padding": (2, 1), "padding_mode": mode}
    y = portconv.conv2d(x, weight, **options, engine="direct", accuracy="elementwise")
    assert_close(y, reference_conv2d(x, weight, **options), accuracy="elementwise")
