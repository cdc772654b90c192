"""Which taps of a kernel an output needs: those that meet only padding are left out, and nothing else."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

import portconv
from portconv.engines import taps
from portconv.engines.steps import Block, Steps
from portconv.engines.taps import group_window, met
from portconv.testing import assert_close, reference_conv2d

MEBIBYTE = 2**20
# x shape, weight shape, arguments
CASES = {
    "rate 12": ((2, 32, 33, 30), (16, 32, 3, 3), {"padding": 12, "dilation": 12}),
    "groups": ((1, 64, 33, 30), (40, 32, 3, 3), {"padding": (16, 9), "dilation": (16, 9), "groups": 2}),
    "one axis": ((1, 16, 40, 65), (33, 16, 3, 5), {"padding": (20, 5), "dilation": (20, 5)}),
    "uneven padding": ((1, 200, 20, 25), (5, 200, 3, 3), {"padding": ((3, 20), (12, 0)), "dilation": (10, 6)}),
    "stride": ((1, 24, 61, 50), (8, 24, 3, 3), {"padding": 24, "dilation": 24, "stride": (2, 3)}),
    "stride, many channels": ((1, 250, 61, 50), (8, 250, 3, 3), {"padding": 24, "dilation": 24, "stride": 2}),
    "only the centre": ((1, 8, 20, 20), (3, 8, 3, 3), {"padding": 31, "dilation": 30}),
    "a prime number of channels": ((1, 211, 33, 30), (16, 211, 3, 3), {"padding": 12, "dilation": 12}),
    "more padding than image": ((1, 200, 9, 10), (4, 200, 2, 2), {"padding": 40, "dilation": 40}),
    "one row of taps": ((1, 1, 13, 8), (8, 1, 2, 3), {"padding": ((12, 0), (0, 0)), "dilation": (7, 2)}),
    "the last tap of a row": ((2, 4, 9, 40), (16, 4, 1, 3), {"padding": (0, 40), "dilation": (1, 40)}),
    "the last two taps of a row": ((2, 4, 9, 40), (16, 4, 1, 3), {"padding": (0, 20), "dilation": (1, 20)}),
    "circular": ((1, 200, 33, 30), (4, 200, 3, 3), {"padding": 12, "dilation": 12, "padding_mode": "circular"}),
}


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", CASES)
def test_against_the_oracle(case, layout, accuracy, plain_tier):
    x_shape, weight_shape, options = CASES[case]
    rng = np.random.default_rng(0)
    for dtype in ("f4", "f8"):
        x, weight = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(weight_shape).astype(dtype)
        bias = rng.standard_normal(weight_shape[0]).astype(dtype)
        if layout == "NHWC":
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        options = options | {"layout": layout}
        exact = reference_conv2d(x, weight, bias, **options)
        assert_close(portconv.conv2d(x, weight, bias, engine="gemm", accuracy=accuracy, **options), exact)
        with plain_tier():
            assert_close(portconv.conv2d(x, weight, bias, engine="gemm", accuracy=accuracy, **options), exact)


def problem_of(case):
    x_shape, weight_shape, options = CASES[case]
    return portconv.plan_conv2d(x_shape, weight_shape, **options).problem


@pytest.mark.parametrize("case", CASES)
def test_regions_cover_the_result_and_keep_every_tap_that_matters(case):
    p = problem_of(case)
    (oh, ow), (sh, sw), (dh, dw), (top, _, left, _) = p.out_size, p.stride, p.dilation, p.padding
    covered = np.zeros((oh, ow), int)
    for rows, cols, kernel_rows, kernel_cols in taps.regions(p):
        covered[rows, cols] += 1
        if p.padding_mode != "zeros":
            continue
        for outputs, kept, kernel, stride, dilation, before, size in (
            (rows, kernel_rows, p.kernel[0], sh, dh, top, p.height),
            (cols, kernel_cols, p.kernel[1], sw, dw, left, p.width),
        ):
            for k in range(kernel):
                read = np.arange(outputs.start, outputs.stop) * stride - before + k * dilation
                if ((read >= 0) & (read < size)).any():
                    assert kept.start <= k < kept.stop
    assert (covered == 1).all()


def test_what_is_left_out():
    for rate, most in ((12, 0.78), (24, 0.57), (36, 0.41)):
        p = portconv.plan_conv2d((1, 512, 65, 65), (64, 512, 3, 3), padding=rate, dilation=rate).problem
        assert sum(r.outputs * r.taps for r in taps.regions(p)) <= most * 65 * 65 * 9
    for padding, dilation, mode in ((1, 1, "zeros"), (36, 36, "reflect"), (36, 36, "circular"), (0, 9, "zeros")):
        shapes = ((1, 512, 65, 65), (64, 512, 3, 3))
        p = portconv.plan_conv2d(*shapes, padding=padding, dilation=dilation, padding_mode=mode).problem
        assert len(taps.regions(p)) == 1


# --- which taps meet the image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_the_taps_of_a_block_are_those_that_meet_the_image(axis):
    meeting = 0
    for size, kernel, stride, dilation, before, after in itertools.product(
        (1, 2, 9), (1, 3, 4), (1, 2), (1, 3), (0, 1, 5), (0, 2)
    ):
        if (outputs := (size + before + after - dilation * (kernel - 1) - 1) // stride + 1) < 1:
            continue
        shapes = ((1, 1, size, 1), (1, 1, kernel, 1))
        options = {"stride": (stride, 1), "dilation": (dilation, 1), "padding": ((before, after), (0, 0))}
        if axis == 1:
            shapes = tuple((*shape[:2], *shape[:1:-1]) for shape in shapes)
            options = {name: value[::-1] for name, value in options.items()}
        plan = portconv.plan_conv2d(*shapes, **options)
        for first, last in itertools.combinations(range(outputs + 1), 2):
            along, across = slice(first, last), slice(0, 1)
            block = Block(slice(0, 1), slice(0, 1), *((along, across) if axis == 0 else (across, along)))
            found = met(plan.problem, block)
            read = [
                tap
                for tap in range(kernel)
                if any(0 <= out * stride - before + tap * dilation < size for out in range(first, last))
            ]
            assert found[1 - axis] == slice(0, 1)
            taps = found[axis]
            assert 0 <= taps.start < taps.stop <= kernel
            if read:
                assert taps.start <= read[0] and taps.stop > read[-1]
            if read and size >= stride:  # or an output steps over the image
                assert (taps.start, taps.stop) == (read[0], read[-1] + 1)
                meeting += 1
    assert meeting > 1000


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


# --- their phases, and their memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 9])
def test_phases_and_halo_are_those_of_the_taps(kernel, stride, dilation):
    every = taps.taps((kernel, 1), (stride, 1), (dilation, 1))
    x, padding = (1, 1, 100, 1), 0
    problem = portconv.plan_conv2d(
        x, (1, 1, kernel, 1), stride=(stride, 1), padding=padding, dilation=(dilation, 1)
    ).problem
    assert taps.axis_phases(kernel, stride, dilation) == sorted({tap.phase[0] for tap in every})
    assert taps.halo(problem) == (max(tap.row for tap in every), 0)


def test_the_taps_of_large_kernels_are_not_kept():
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for size in range(90, 100):
        taps.taps((size, size), (1, 1), (1, 1))
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept < MEBIBYTE
