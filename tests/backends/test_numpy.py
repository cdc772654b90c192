"""NumPy: views in every memory order, and dtypes that other libraries do not have."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import check, numbers


def test_bfloat16_arrays_of_numpy(tier):
    """NumPy has them where ml_dtypes (with JAX) is installed: they are served, and stay what they are."""
    bfloat16 = pytest.importorskip("ml_dtypes", reason="NumPy has no bfloat16 without it").bfloat16
    y = portconv.conv2d(np.ones((1, 1, 4, 4), bfloat16), np.ones((1, 1, 3, 3), bfloat16))
    assert y.dtype == bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), 9)


VIEWS = {
    "transposed": lambda a: np.ascontiguousarray(a.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0),
    "negative strides": lambda a: a[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1],
    "every second": lambda a: np.repeat(np.repeat(a, 2, axis=2), 3, axis=3)[:, :, ::2, ::3],
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran order": np.asfortranarray,
    "offset": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),  # unaligned
    "broadcast": lambda a: np.broadcast_to(a[:, :1, :1, :1], a.shape),
}


@pytest.mark.parametrize("engine", ["auto", "gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("view", VIEWS)
def test_numpy_views(library, tier, plans, view, engine):
    backend = library("numpy")
    arrays = numbers((2, 3, 12, 11)), numbers((4, 3, 3, 3), 1), numbers((1, 4, 1, 1), 2)
    views = [VIEWS[view](a) for a in arrays]
    before = [v.copy() for v in views]
    check(backend, plans, engine, *views, padding=1)
    assert all(np.array_equal(v, b) for v, b in zip(views, before, strict=True))


@pytest.mark.parametrize("dtype", [">i2", ">u4", ">f2", ">f8"])
def test_big_endian_dtypes(library, plans, dtype, tier):
    x = np.arange(2 * 64).reshape(1, 2, 8, 8).astype(dtype)
    y = portconv.conv2d(x, np.ones((1, 2, 3, 3), ">f4"))
    assert y.dtype == (np.float64 if dtype == ">f8" else np.float32)
    assert y.dtype.isnative
    expected = reference_conv2d(x, np.ones((1, 2, 3, 3)))
    assert_close(y, expected)
