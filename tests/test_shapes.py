"""Which elements of an image, and which taps of a kernel, an output needs: integers, against counting one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import portconv
from portconv.core.shapes import axis_source
from portconv.engines.steps import Block, Steps
from portconv.engines.taps import group_window, met
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
@pytest.mark.parametrize("batch", [1, 2])
def test_small_depthwise_images(tier, batch, mode, stride, dilation):
    """One image of many channels: plain NumPy has a way of its own for some of these."""
    rng = np.random.default_rng(3)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((batch, 64, 7, 9), (64, 1, 5, 3)))
    options = {"groups": 64, "stride": stride, "dilation": dilation, "padding": (2, 1), "padding_mode": mode}
    y = portconv.conv2d(x, weight, **options, engine="direct", accuracy="elementwise")
    assert_close(y, reference_conv2d(x, weight, **options), accuracy="elementwise")


@pytest.mark.parametrize("groups", [slice(0, 3), slice(1, 2)])
@pytest.mark.parametrize("inputs", [slice(0, 4), slice(1, 3)])
def test_a_window_of_groups_has_their_channels(groups, inputs):
    x = np.random.default_rng(0).standard_normal((1, 12, 6, 5), np.float32)
    problem = portconv.plan_conv2d(x.shape, (3, 4, 3, 3), groups=3).problem
    steps = Steps(np)
    found = group_window(steps.cbhw(x, "NCHW"), groups, inputs, slice(0, 1), slice(1, 5), slice(0, 4), problem, steps)
    expected = x.reshape(3, 4, 1, 6, 5)[groups, inputs, :, 1:5, 0:4]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("engine", ["gemm", "fft", "direct"])
def test_a_tap_between_two_that_meet_the_image_takes_no_part(tier, engine):
    """The middle one of three reads padding alone, for every output."""
    x = np.random.default_rng(1).standard_normal((1, 2, 2, 3), np.float32)
    weight = np.random.default_rng(2).standard_normal((3, 2, 3, 1), np.float32)
    options = {"padding": ((4, 4), (0, 0)), "stride": (4, 1), "dilation": (2, 1)}
    expected = reference_conv2d(x, weight, **options)
    weight[:, :, 1] = np.nan
    assert_close(portconv.conv2d(x, weight, **options, engine=engine), expected)


def test_pixels_between_those_that_are_read_take_no_part(tier):
    """Not in the transforms either, whose rounding errors follow the largest pixel."""
    x = np.random.default_rng(1).standard_normal((1, 2, 24, 24), np.float32)
    x[:, :, 1], x[:, :, :, 1] = 1e30, 1e30
    weight = np.random.default_rng(2).standard_normal((3, 2, 2, 2), np.float32)
    options = {"stride": 2, "dilation": 3}
    y = portconv.conv2d(x, weight, **options, engine="fft")
    assert_close(y, reference_conv2d(x, weight, **options))


def test_columns_where_the_first_taps_meet_padding_only(tier):
    """So many channels that each tap is a product of its own, and a dilation that leaves some out at the edges."""
    x = np.random.default_rng(1).standard_normal((1, 100, 9, 26), np.float32)
    weight = np.random.default_rng(2).standard_normal((2, 100, 3, 3), np.float32)
    y = portconv.conv2d(x, weight, dilation=9, padding=9, engine="gemm")
    assert_close(y, reference_conv2d(x, weight, dilation=9, padding=9))


def test_tasks_of_some_outputs_of_the_second_group():
    """So many outputs that `fft` computes those of one group in several tasks."""
    x = np.random.default_rng(1).standard_normal((1, 2, 40, 40), np.float32)
    weight = np.random.default_rng(2).standard_normal((1024, 1, 9, 9), np.float32)
    y = portconv.conv2d(x, weight, groups=2, engine="fft")
    second = portconv.conv2d(x[:, 1:], weight[512:], engine="gemm")
    np.testing.assert_allclose(y[:, 512:], second, rtol=0, atol=1e-3)
