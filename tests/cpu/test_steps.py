"""Images of NumPy's in every memory order."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.cpu.bridge import numpy_steps

KERNEL = np.random.default_rng(1).random((4, 3, 3, 3), dtype=np.float32)
PADDINGS = [(0, "zeros"), (1, "zeros"), (1, "replicate"), (2, "reflect"), (1, "circular")]


def photograph(height, width, dtype):
    return (np.random.default_rng(0).random((height, width, 3)) * 255).astype(dtype)


def views(photo):
    """NCHW views of one photograph, by the order of their memory."""
    chw = photo.transpose(2, 0, 1)[None]
    wide = np.zeros((1, 3, chw.shape[2], 2 * chw.shape[3]), chw.dtype)
    wide[..., ::2] = chw
    return {
        "HWC": chw,
        "flipped": np.ascontiguousarray(chw[..., ::-1, ::-1])[..., ::-1, ::-1],
        "flipped HWC": np.ascontiguousarray(photo[::-1, ::-1]).transpose(2, 0, 1)[None][..., ::-1, ::-1],
        "every second column": wide[..., ::2],
        "Fortran": np.asfortranarray(chw),
    }


@pytest.mark.parametrize("engine", ["auto", "direct", "gemm"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("padding", "mode"), PADDINGS)
@pytest.mark.parametrize("size", [(60, 50), (427, 640)], ids=["small", "several strips"])
def test_the_order_of_memory_changes_nothing(tier, size, padding, mode, dtype, engine):
    photo = photograph(*size, dtype)
    options = {"padding": padding, "padding_mode": mode, "engine": engine}
    expected = portconv.conv2d(np.ascontiguousarray(photo.transpose(2, 0, 1))[None], KERNEL, **options)
    for order, view in views(photo).items():
        y = portconv.conv2d(view, KERNEL, **options)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-3, err_msg=order)
    y = portconv.conv2d(photo[None], KERNEL, layout="NHWC", **options)
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-3)


def test_a_photograph_of_two_megapixels(tier):
    """More than is converted as a whole, and by defaults."""
    photo = photograph(1200, 1600, "uint8")
    expected = portconv.conv2d(np.ascontiguousarray(photo.transpose(2, 0, 1))[None], KERNEL)
    y = portconv.conv2d(photo.transpose(2, 0, 1)[None], KERNEL)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-3)
    y = portconv.conv2d(photo[None], KERNEL, layout="NHWC")
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("engine", ["auto", "direct", "gemm", "fft"])
def test_one_element_stands_for_all(tier, engine):
    x = np.broadcast_to(np.float32(3), (1, 1, 600, 500))
    y = portconv.conv2d(x, np.ones((1, 1, 3, 3), np.float32), engine=engine)
    np.testing.assert_allclose(y, 27, rtol=1e-5)


@pytest.mark.parametrize("engine", ["direct", "gemm", "winograd", "fft"])
def test_nothing_beyond_the_last_page_is_read(tier, engine, run_python):
    """An image that ends where memory ends, or begins where it begins: whoever reads on is killed."""
    run_python(
        f"""
        import ctypes, mmap
        import numpy as np, portconv

        page = mmap.PAGESIZE
        memory = mmap.mmap(-1, 66 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for edge in (start, start + 65 * page):
            assert libc.mprotect(ctypes.c_void_p(edge), page, 0) == 0
        inside = np.frombuffer(memory, np.float32, 64 * page // 4, page)
        kernel = np.ones((4, 4, 3, 3), np.float32)
        shape, count = (1, 4, 60, 50), 4 * 60 * 50
        views = []
        for some in (inside[:count], inside[-count:]):
            some[:] = 3
            views += [some.reshape(shape), some[::-1].reshape(shape), some.reshape(60, 50, 4).transpose(2, 0, 1)[None]]
        for one in (inside[:1], inside[-1:]):
            views.append(np.broadcast_to(one, shape))
        for x in views:
            for padding, mode in ((0, "zeros"), (1, "replicate"), (1, "zeros")):
                y = portconv.conv2d(x, kernel, padding=padding, padding_mode=mode, engine={engine!r})
                assert np.allclose(y[:, :, 1:-1, 1:-1], 108), (x.strides, padding, mode)
        """,
        PORTCONV_JIT="0" if tier == "plain" else "1",
    )


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_whether_all_is_finite(dtype, value):
    steps = numpy_steps()
    x = np.full((3, 1, 7, 100), 3, dtype)
    assert steps.all_finite(x) and steps.all_finite(x[..., ::2]) and steps.all_finite(x[:0])
    x[2, 0, 5, 98] = value
    assert not steps.all_finite(x) and not steps.all_finite(x[..., ::2]) and steps.all_finite(x[..., 1::2])
