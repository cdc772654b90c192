"""Activations and residuals of Dask's arrays."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d

da = pytest.importorskip("dask.array")


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype("f4") for shape in ((3, 2, 21, 17), (4, 2, 3, 3), (3, 4, 21, 17))]


def test_every_chunk_by_itself(arrays):
    x, weight, residual = arrays
    image = da.from_array(x, chunks=((2, 1), 2, (5, 9, 7), (11, 6)))
    added = da.from_array(residual, chunks=(1, 3, 8, 8))
    y = portconv.conv2d(image, da.from_array(weight), padding=1, activation="silu", residual=added)
    assert y.chunks[2] == (5, 9, 7) and y.dtype == np.float32
    assert_close(y.compute(scheduler="synchronous"), reference_conv2d(x, weight, padding=1).finished("silu", residual))


def test_nothing_is_computed_before_it_is_wanted(arrays):
    x, weight, residual = arrays

    def fail(block):
        raise AssertionError("a chunk was computed")

    lazy = [da.from_array(a).map_blocks(fail, meta=np.empty((0,) * 4, "f4")) for a in (x, weight, residual)]
    y, vjp = portconv.conv2d_vjp(*lazy[:2], padding=1, activation="relu", residual=lazy[2])
    assert [gradient.shape for gradient in vjp(y) if gradient is not None] == [a.shape for a in (x, weight, residual)]
