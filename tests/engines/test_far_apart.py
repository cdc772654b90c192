"""Strides, dilations and padding far beyond the image: the right result in little memory, or the reason against it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import portconv
from portconv.core.errors import UnsupportedError

FAR = 10**6
MEBIBYTE = 2**20
CASES = {
    "stride": {"stride": FAR, "padding": 1},
    "stride of rows": {"stride": (FAR, 1), "padding": 1},
    "stride of columns": {"stride": (1, FAR), "padding": 1},
    "dilation": {"dilation": 10**5, "padding": 10**5},
    "padding and stride": {"stride": 10**5, "padding": 2 * 10**5},
    "most padding": {"stride": (10**8, 1), "dilation": (10**9, 1), "padding": ((2**30, 2**30 - 5), (0, 0))},
}


def pairs(value):
    return [
        (side, side) if isinstance(side, int) else side for side in ((value,) * 2 if isinstance(value, int) else value)
    ]


def expected(x, weight, mode, *, padding, stride=1, dilation=1):
    """Every output from the pixels that it reads, found one by one."""

    def axis(size, kernel, stride, dilation, before, after):
        outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        where = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - before
        inside = (where >= 0) & (where < size)
        return np.clip(where, 0, size - 1), inside | (mode == "replicate")

    strides, dilations = ((v, v) if isinstance(v, int) else v for v in (stride, dilation))
    axes = zip(x.shape[2:], weight.shape[2:], strides, dilations, *zip(*pairs(padding), strict=True), strict=True)
    (rows, row_there), (cols, col_there) = (axis(*sizes) for sizes in axes)
    read = x.astype("f8")[:, :, rows[:, None, :, None], cols[None, :, None, :]]
    read = read * (row_there[:, None, :, None] & col_there[None, :, None, :])
    return np.einsum("bcrsij,ocij->bors", read, weight.astype("f8"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("engine", ["auto", "gemm", "winograd", "fft", "direct"])
def test_it_works_or_is_refused_with_the_reason(plain_tier, why_not, engine, mode, case):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype("f4") for shape in ((2, 2, 3, 4), (3, 2, 3, 3)))
    given = CASES[case]
    if engine == "fft" and case in ("stride of rows", "stride of columns"):
        given = {**given, "stride": tuple(min(s, FAR // 10) for s in given["stride"])}  # it computes all between
    options = {**given, "padding_mode": mode, "engine": engine}
    with plain_tier():
        reason = why_not(engine, x, weight, **given, padding_mode=mode)
        if reason is not None:
            assert engine in ("winograd", "fft")
            assert "MiB of scratch memory" in reason or "stride 1 and dilation 1" in reason
            with pytest.raises(UnsupportedError, match=r"scratch memory|stride 1"):
                portconv.conv2d(x, weight, **options)
            return
        tracemalloc.start()
        y = portconv.conv2d(x, weight, **options)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    np.testing.assert_allclose(y, expected(x, weight, mode, **given), atol=1e-4)
    assert peak < (64 if engine != "fft" else 1024) * MEBIBYTE


@pytest.mark.parametrize("case", ["stride", "dilation", "most padding"])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_every_library(backend, mode, case):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype("f4") for shape in ((1, 2, 3, 4), (3, 2, 3, 3)))
    for engine in ("gemm", "direct"):
        y = portconv.conv2d(backend.array(x), backend.array(weight), **CASES[case], padding_mode=mode, engine=engine)
        np.testing.assert_allclose(backend.numpy(y), expected(x, weight, mode, **CASES[case]), atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_what_does_not_take_part_stays_out(plain_tier, groups):
    """Weights that meet zero padding alone, and pixels between those that are read, may be anything."""
    x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((2, 2 // groups, 3, 3), np.float32)
    weight[:, :, 0] = weight[:, :, 2] = np.inf  # rows above and below the image
    for engine in ("auto", "gemm", "direct"):
        with plain_tier():
            y = portconv.conv2d(x, weight, padding=10**5, dilation=10**5, groups=groups, engine=engine)
        assert np.isfinite(y).all(), engine
    x[:, :, 2:] = np.nan  # the only output reads the rows 0 and 1
    for engine in ("auto", "gemm", "direct"):
        with plain_tier():
            y = portconv.conv2d(x, np.ones_like(weight), stride=(FAR, 1), padding=1, groups=groups, engine=engine)
        assert y.shape[2:] == (1, 5) and np.isfinite(y).all(), engine
