"""The phases of a stride: whether the convolutions they name add up to the gradient of the image. No engine runs."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from portconv.core.epilogue import Epilogue
from portconv.core.problem import Problem
from portconv.engines.transposed import gradient_size, image_gradient_phases


def problem(size=(7, 6), kernel=(3, 3), stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), **others):
    given = {
        "batch": 2, "in_channels": 4, "height": size[0], "width": size[1], "out_channels": 6, "kernel": kernel,
        "stride": stride, "padding": padding, "dilation": dilation, "groups": 2, "padding_mode": "zeros",
        "epilogue": Epilogue(bias=True), "x_dtype": "uint8", "dtype": "float32", "layout": "NCHW",
        "accuracy": "normwise",
        "device": "cpu",
    }  # fmt: skip
    return Problem(**given | others)


def along_rows(size, kernel, stride, dilation, before, after, folded=False):
    """A problem of one column, and its phases."""
    p = problem((size, 1), (kernel, 1), (stride, 1), (before, after, 0, 0), (dilation, 1))
    return p, list(image_gradient_phases(p, "float32", folded))


AXES = [
    axis
    for axis in itertools.product((1, 4, 7), (1, 2, 3, 5), (1, 2, 3, 4), (1, 2, 3), (0, 1, 3, 9), (0, 2))
    if axis[0] + axis[4] + axis[5] > axis[3] * (axis[1] - 1)  # the kernel fits
]


@pytest.mark.parametrize("folded", [False, True])
def test_every_product_is_in_one_phase(folded):
    """Row `u` of the padded image met tap `r` for output `o` where ``u = o * stride + r * dilation``."""
    assert len(AXES) > 500
    for axis in AXES:
        size, kernel, stride, dilation, before, after = axis
        p, phases = along_rows(*axis, folded)
        wanted, first = (size + before + after, 0) if folded else (size, before)
        assert gradient_size(p, folded) == (wanted, 1)
        expected = sorted(
            (o * stride + r * dilation - first, o, r)
            for o in range(p.out_size[0])
            for r in range(kernel)
            if 0 <= o * stride + r * dilation - first < wanted
        )
        found, filled = [], []
        for inner, rows, _ in phases:
            targets, sources = range(wanted)[rows.target], range(p.out_size[0])[rows.source]
            taps = range(kernel)[rows.taps][::-1]
            assert (inner.height, inner.kernel[0], inner.out_size[0]) == (len(sources), len(taps), len(targets))
            assert (inner.padding, inner.dilation) == ((rows.before, rows.after, 0, 0), (rows.dilation, 1))
            filled += targets
            for target, (j, tap) in itertools.product(range(len(targets)), enumerate(taps)):
                read = target + j * rows.dilation - rows.before
                if 0 <= read < len(sources):
                    found.append((targets[target], sources[read], tap))
        assert sorted(found) == expected, axis
        assert len(filled) == len(set(filled)), axis
        assert stride > 1 or filled in ([], list(range(wanted))), axis  # one phase fills all


def test_what_the_convolutions_are():
    p = problem(stride=(2, 3), padding=(1, 2, 0, 1), padding_mode="reflect", layout="NHWC", accuracy="elementwise")
    phases = list(image_gradient_phases(p, "float16"))
    assert len(phases) == 6
    assert len({(phase.rows.target.start, phase.cols.target.start) for phase in phases}) == 6
    for phase in phases:
        inner = phase.problem
        assert (inner.batch, inner.groups, inner.in_channels, inner.out_channels) == (2, 2, 6, 4)
        assert (inner.stride, inner.padding_mode, inner.epilogue) == ((1, 1), "zeros", Epilogue())
        assert (inner.x_dtype, inner.dtype, inner.layout) == ("float16", "float32", "NHWC")
        assert (inner.accuracy, inner.device) == ("elementwise", "cpu")


def test_no_tap_meets_the_image():
    """Every output lies in padding, so nothing is left of the gradient; that of the padding is there all the same."""
    p = problem((1, 5), (2, 1), padding=(4, 0, 0, 0), stride=(9, 1))
    assert p.out_size == (1, 5)
    assert list(image_gradient_phases(p, "float32")) == []
    assert len(list(image_gradient_phases(p, "float32", folded=True))) == 2


def test_a_stride_far_beyond_the_kernel_has_as_many_phases_as_taps():
    begin = time.process_time()
    p = problem(kernel=(3, 3), stride=(10**9, 10**8), padding=(1, 1, 1, 1))
    phases = list(image_gradient_phases(p, "float32"))
    assert sorted((phase.rows.target.start, phase.cols.target.start) for phase in phases) == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert time.process_time() - begin < 1


def direct_sum(p, x, weight):
    """Cross-correlation tap by tap of NCHW images with a weight (G, O/G, I/G, kh, kw)."""
    (oh, ow), (sh, sw), (dh, dw), (top, bottom, left, right) = p.out_size, p.stride, p.dilation, p.padding
    groups, outputs, inputs, kh, kw = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    x = x.reshape(p.batch, groups, inputs, *x.shape[2:])
    y = np.zeros((p.batch, groups, outputs, oh, ow))
    for i, j in np.ndindex(kh, kw):
        part = x[..., i * dh : i * dh + (oh - 1) * sh + 1 : sh, j * dw : j * dw + (ow - 1) * sw + 1 : sw]
        y += np.einsum("ngihw,goi->ngohw", part, weight[..., i, j])
    return y.reshape(p.batch, groups * outputs, oh, ow)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": (1, 1, 1, 1)},
        {"stride": (2, 3), "padding": (1, 0, 2, 1)},
        {"stride": (2, 2), "dilation": (2, 1), "padding": (2, 2, 0, 0)},
        {"kernel": (4, 2), "stride": (3, 1), "dilation": (1, 3), "padding": (0, 3, 4, 4)},
        {"kernel": (1, 1), "stride": (2, 2), "groups": 1},
        {"size": (1, 1), "padding": (1, 1, 1, 1), "stride": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("folded", [False, True])
def test_the_sum_of_the_phases_is_the_gradient(options, folded):
    """A convolution is linear in the image, so its gradient is what it makes of each unit image times the cotangent."""
    p, rng = problem(**options), np.random.default_rng(0)
    weight, dy = rng.integers(-9, 9, p.weight_shape), rng.integers(-9, 9, p.out_shape)
    found = np.zeros((p.batch, p.in_channels, *gradient_size(p, folded)))
    for phase in image_gradient_phases(p, "float64", folded):
        taps = weight[..., phase.rows.taps, phase.cols.taps][..., ::-1, ::-1].swapaxes(1, 2)
        part = dy[:, :, phase.rows.source, phase.cols.source]
        found[:, :, phase.rows.target, phase.cols.target] = direct_sum(phase.problem, part, taps)
    border = {"size": gradient_size(p, folded), "padding": (0, 0, 0, 0)} if folded else {}
    forward = problem(**options | border)
    expected = np.zeros_like(found)
    for at in np.ndindex(expected.shape[1:]):
        unit = np.zeros(expected.shape)
        unit[(slice(None), *at)] = 1
        expected[(slice(None), *at)] = (direct_sum(forward, unit, weight) * dy).sum((1, 2, 3))
    np.testing.assert_array_equal(found, expected)
