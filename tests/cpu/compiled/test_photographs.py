"""Images in their own dtype and memory order, and pixels of several channels, in the compiled tier."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.cpu.compiled.helpers import check, is_compiled
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

MEBIBYTE = 2**20

# Of images (N, H, W, C).
VIEWS = {
    "as it is": lambda x: x,
    "rot90": lambda x: np.rot90(x, 1, (1, 2)),
    "flipped": lambda x: x[:, ::-1, ::-1],
    "BGR": lambda x: x[..., ::-1],
    "a part": lambda x: x[:, 2:-1, 3:-2],
    "of RGBA": lambda x: np.concatenate([x, x[..., :1]], axis=3)[..., :-1],
    "planes": lambda x: np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
    "swapped bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}
DTYPES = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")


def image(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "?":
        return rng.random(shape) < 0.5
    if dtype[0] == "f":
        return (100 * rng.standard_normal(shape)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -(2**40)), min(info.max, 2**40), shape, dtype, endpoint=True)


def kernels(channels, size, *, alike, separable, dtype="f4"):
    """A weight (C, 1, kh, kw)."""
    count = 1 if alike else channels
    weight = numbers((count, 1, *size), 1, dtype)
    if separable:
        weight = weight[..., :1] * weight[..., :1, :]
    return np.repeat(weight, channels, axis=0) if alike else weight


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_in_every_order_of_memory(dtype, view):
    for n, (engine, channels, options) in enumerate(
        [
            ("gemm", 3, {"padding": 1, "stride": 2}),
            ("gemm", 20, {"padding_mode": "reflect", "padding": 1}),
            ("winograd", 17, {"padding": 1}),
            ("direct", 3, {"padding": 2, "padding_mode": "circular"}),
            ("direct", 3, {"groups": 3, "padding": 1}),
            ("direct", 18, {"groups": 18, "padding": 1}),
        ]
    ):
        x = VIEWS[view](image((2, 13, 37, channels), dtype, n))
        weight = numbers((channels, channels // options.get("groups", 1), 3, 3), 1, "f8" if dtype == "f8" else "f4")
        check(x, weight, engine=engine, layout="NHWC", **options)
        check(x.transpose(0, 3, 1, 2), weight, engine=engine, layout="NCHW", **options)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("view", ["as it is", "rot90", "a part", "BGR"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_filters_of_photographs(layout, view, separable, alike):
    """Kernels that all channels share, or not, at widths below and above those of a vector and a strip."""
    for n, (channels, size, kernel, mode, dilation) in enumerate(
        [
            (3, (12, 30), (5, 5), "reflect", 1),
            (1, (40, 2300), (5, 5), "zeros", 1),
            (3, (70, 900), (17, 17), "reflect", 1),
            (4, (33, 40), (31, 31), "circular", 1),
            (2, (9, 35), (3, 11), "replicate", (2, 3)),
            (3, (9, 60), (11, 3), "zeros", (3, 1)),
            (5, (60, 20), (4, 7), "zeros", 1),
            (3, (1, 400), (1, 9), "zeros", 1),
            (3, (400, 9), (9, 1), "reflect", 1),
        ]
    ):
        dh, dw = (dilation,) * 2 if isinstance(dilation, int) else dilation
        padding = dh * (kernel[0] - 1) // 2, dw * (kernel[1] - 1) // 2
        if view == "rot90":
            size = size[::-1]  # before it is turned
        if view == "a part":
            size = size[0] + 3, size[1] + 5
        x = VIEWS[view](image((1, *size, channels), ("u1", "u2", "f4")[n % 3], n))
        weight = kernels(channels, kernel, alike=alike, separable=separable)
        options = {"groups": channels, "padding": padding, "padding_mode": mode, "dilation": dilation, "layout": layout}
        x = x if layout == "NHWC" else x.transpose(0, 3, 1, 2)
        for bias in (None, numbers((channels,), 2)):
            y = check(x, weight, bias, engine="direct", accuracies=("elementwise", "normwise"), **options)
            for dtype in ("uint8", "int16"):
                z = portconv.conv2d(x, weight, bias, engine="direct", out_dtype=dtype, **options)
                info = np.iinfo(dtype)
                np.testing.assert_array_equal(z, np.clip(np.rint(y), info.min, info.max).astype(dtype))
            wide = np.zeros((*y.shape[:3], 2 * y.shape[3]), "f4")
            out = wide[..., ::2]
            portconv.conv2d(x, weight, bias, engine="direct", out=out, **options)
            np.testing.assert_array_equal(out, y)
            assert not wide[..., 1::2].any()


def test_nan_and_infinity_stay_inside_their_receptive_field():
    x = image((1, 40, 50, 3), "f4")
    x[0, 20, 25, 1], x[0, 5, 49, 0] = np.inf, np.nan
    for size in ((5, 5), (9, 9), (17, 3)):
        for separable in (True, False):
            weight = kernels(3, size, alike=True, separable=separable)
            check(x, weight, engine="direct", groups=3, padding=(size[0] // 2, size[1] // 2), layout="NHWC")


def test_sums_along_more_rows_than_are_added_one_after_the_other():
    x = image((1, 300, 20, 3), "u1")
    for alike in (True, False):
        weight = np.repeat(numbers((1 if alike else 3, 1, 250, 1), 1), 1 if not alike else 3, axis=0)
        weight = weight * numbers((1, 1, 1, 5), 2)
        y = portconv.conv2d(x, weight, groups=3, layout="NHWC", engine="direct", padding=(3, 2))
        assert_close(y, reference_conv2d(x, weight, groups=3, layout="NHWC", padding=(3, 2)))


def test_float16_and_bfloat16_are_read_and_written_bit_by_bit():
    """Every number of 16 bits, and those between neighbours; NaN is NaN."""
    one = np.ones((1, 1, 1, 1), "f4")
    every = np.arange(2**16, dtype="u2").view("f2").reshape(1, 1, 256, 256)
    np.testing.assert_array_equal(portconv.conv2d(every, one, engine="gemm"), every.astype("f4"))
    near = every.astype("f4").view("u4").reshape(-1, 1) + np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF], "u4")
    near = near.view("f4").reshape(1, 1, -1, 256)
    near = np.where(np.isnan(near), np.float32(np.nan), near)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(portconv.conv2d(near, one, engine="gemm", out_dtype="float16"), near.astype("f2"))
        exact = near * (1 + np.float64(2.0**-40))
        got = portconv.conv2d(exact, one.astype("f8"), engine="gemm", out_dtype="float16")
        np.testing.assert_array_equal(got, exact.astype("f2"))
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    with np.errstate(all="ignore"):
        got = portconv.conv2d(near, one, engine="gemm", out_dtype="bfloat16")
        np.testing.assert_array_equal(got.astype("f4"), near.astype(bfloat16).astype("f4"))
    every = np.arange(2**16, dtype="u2").view(bfloat16).reshape(1, 1, 256, 256)
    np.testing.assert_array_equal(portconv.conv2d(every, one, engine="gemm"), every.astype("f4"))


FILTERS = {
    "Gauss 5x5": ((5, 5), True, 3),
    "Gauss 31x31": ((31, 31), True, 3),
    "dense 5x5": ((5, 5), False, 3),
    "dense 17x17": ((17, 17), False, 3),
    "Sobel, gray": ((3, 3), False, 1),
}


@pytest.mark.parametrize("view", ["as it is", "rot90", "a part"])
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_scratch_memory_of_photographs_is_bounded(name, layout, view):
    """12 megapixels of uint8 to uint8: nothing is converted as a whole, and the compiled tier takes them."""
    kernel, separable, channels = FILTERS[name]
    x = VIEWS[view](np.random.default_rng(0).integers(0, 256, (1, 3000, 4000, channels), "u1"))
    x = x if layout == "NHWC" else x.transpose(0, 3, 1, 2)
    weight = kernels(channels, kernel, alike=True, separable=separable)
    options = {"groups": channels, "padding": kernel[0] // 2, "layout": layout, "padding_mode": "reflect"}
    for engine in ("direct", "gemm"):
        plan = portconv.plan_conv2d(x, weight, **options, engine=engine, out_dtype="uint8")
        assert is_compiled(plan)
        assert plan.workspace_bytes <= 32 * MEBIBYTE
    used = []

    def work():
        plan = portconv.plan_conv2d(x, weight, **options, out_dtype="uint8")
        packed = plan.pack(weight)
        plan.warmup()  # compiling takes memory, too
        tracemalloc.start()
        y = plan.execute(x, packed)
        used.append(tracemalloc.get_traced_memory()[1] - y.nbytes)
        tracemalloc.stop()

    worker = threading.Thread(target=work)  # scratch memory belongs to a thread
    worker.start()
    worker.join()
    assert used[0] <= 32 * MEBIBYTE, used[0] / MEBIBYTE
