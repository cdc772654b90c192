"""The memory of the compiled engines: bounded, and no byte beyond an array."""

from __future__ import annotations

import sys
import threading
import tracemalloc

import numpy as np
import pytest

import portconv
from tests.cpu.compiled.helpers import ENGINES, GUARDED, is_compiled
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

MEBIBYTE = 2**20


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("offset", [0, 8, 64])
def test_a_result_in_memory_of_the_callers(engine, dtype, offset):
    """Whether vectors may be stored past the caches there or not; nothing beside it is written."""
    x, weight = numbers((1, 4, 200, 512), dtype=dtype), numbers((64, 4, 3, 3), 1, dtype)
    plan = portconv.plan_conv2d(x, weight, padding=1, engine=engine)
    assert is_compiled(plan)
    packed = plan.pack(weight)
    expected = plan.execute(x, packed)
    memory = np.full(expected.nbytes + 192, 7, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    out = memory[start : start + expected.nbytes].view(expected.dtype).reshape(expected.shape)
    assert plan.execute(x, packed, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert (memory[:start] == 7).all()
    assert (memory[start + expected.nbytes :] == 7).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("engine", "groups"), [("gemm", 1), ("gemm", 4), ("winograd", 1), ("direct", 16)])
def test_many_calls_with_one_weight(engine, layout, groups):
    """Whatever order of memory the next image has, and whether its numbers are finite, in any thread."""
    weight, bias = numbers((16, 16 // groups, 3, 3), 1), numbers((16,), 2)
    shape = (1, 16, 14, 15) if layout == "NCHW" else (1, 14, 15, 16)
    images = [numbers(shape, seed) for seed in range(3)]
    images[1][0, 3, 5, 7] = np.nan
    images += [np.asfortranarray(images[0]), images[2][:, ::-1], images[0].astype(">f4"), numbers(shape, 4)]
    plan = portconv.plan_conv2d(images[0], weight, bias, layout=layout, padding=1, groups=groups, engine=engine)
    packed = plan.pack(weight)
    run = plan.ready(packed, bias)
    found = list[np.ndarray]()
    for image in images:
        found.append(run(image))
    other = threading.Thread(target=lambda: found.extend(map(run, images)))
    other.start()
    other.join()
    for y, image in zip(found, images * 2, strict=True):
        np.testing.assert_array_equal(y, plan.execute(image, packed, bias))


@pytest.mark.parametrize("engine", ["gemm", "direct"])
def test_the_next_call_is_told_less(engine, monkeypatch):
    x, weight = numbers((1, 16, 14, 16)), numbers((16, 1, 3, 3), 1)
    plan = portconv.plan_conv2d(x, weight, padding=1, groups=16, engine=engine)
    assert is_compiled(plan)
    run = plan.ready(plan.pack(weight))
    expected = run(x)
    monkeypatch.setattr(type(plan), "fill", None)
    np.testing.assert_array_equal(run(x), expected)
    with pytest.raises(TypeError):
        run(x[:, ::-1])


# name: (engine, x shape, weight shape, arguments); sizes at which a window of all channels, or a row, is too large
LARGE = {
    "wide rows, winograd": ("winograd", (1, 64, 8, 20_000), (64, 64, 3, 3), {"padding": 1}),
    "wide rows, 5x5, winograd": ("winograd", (1, 48, 8, 20_000), (16, 48, 5, 5), {"padding": 2}),
    "a row, winograd": ("winograd", (1, 16, 1, 100_000), (16, 16, 1, 7), {}),
    "many channels, winograd": ("winograd", (1, 1024, 30, 30), (1024, 1024, 3, 3), {"padding": 1}),
    "wide rows, 31x31": ("gemm", (1, 2, 40, 200_000), (4, 2, 31, 31), {}),
    "wide rows, stride": ("gemm", (1, 3, 40, 200_000), (4, 3, 15, 15), {"stride": 4}),
    "one long row": ("gemm", (1, 1, 1, 10_000_000), (1, 1, 1, 101), {}),
    "one long column": ("gemm", (1, 1, 1_000_000, 1), (2, 1, 101, 1), {}),
    "kernel is image": ("gemm", (1, 16, 256, 256), (16, 16, 256, 256), {}),
    "kernel is nearly image": ("gemm", (1, 4, 300, 300), (4, 4, 280, 280), {}),
    "many channels": ("gemm", (1, 4096, 64, 64), (16, 4096, 3, 3), {"padding": 1}),
    "many channels, dilation": ("gemm", (1, 512, 128, 128), (8, 512, 3, 3), {"padding": 40, "dilation": 40}),
    "a large result": ("gemm", (1, 3, 512, 1024), (16, 3, 3, 3), {"padding": 1}),
    "12 megapixels": ("gemm", (1, 3, 3000, 4000), (4, 3, 7, 7), {"stride": 2, "padding": 3}),
    "12 megapixels, reflect": ("direct", (1, 1, 3000, 4000), (1, 1, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "12 megapixels, NHWC": ("direct", (1, 3000, 4000, 1), (1, 1, 5, 5), {"layout": "NHWC"}),
    "a row": ("direct", (1, 1, 1, 10_000_000), (1, 1, 1, 9), {}),
    "a row, reflect": ("direct", (1, 1, 1, 5_000_000), (1, 1, 1, 9), {"padding": (0, 4), "padding_mode": "reflect"}),
    "a column": ("direct", (1, 1, 5_000_000, 1), (1, 1, 9, 1), {"padding": (4, 0), "padding_mode": "reflect"}),
    "dilation, many channels": ("direct", (1, 64, 200, 200), (4, 64, 3, 3), {"dilation": 60, "layout": "NHWC"}),
}


@pytest.mark.parametrize("case", LARGE)
def test_scratch_memory_is_bounded(case):
    """Less than 64 MiB, and what the plan says: of the whole, with two threads at work, in a thread with none kept."""
    engine, x_shape, weight_shape, options = LARGE[case]
    if options.get("layout") == "NHWC" and len(x_shape) == 4 and x_shape[3] > 4:
        x_shape = (x_shape[0], *x_shape[2:], x_shape[1])
    rng = np.random.default_rng(0)
    x, weight = rng.random(x_shape, np.float32), rng.random(weight_shape, np.float32)
    found = {}

    def work():
        tracemalloc.start()
        plan = portconv.plan_conv2d(x_shape, weight_shape, **options, engine=engine)
        found["plan"], found["planning"] = plan, tracemalloc.get_traced_memory()[1]
        packed = plan.pack(weight)
        plan.warmup()  # compiles, and loads what is compiled
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found["y"] = plan.execute(x, packed)
        found["used"] = tracemalloc.get_traced_memory()[1] - before - found["y"].nbytes
        tracemalloc.stop()

    worker = threading.Thread(target=work)  # scratch memory belongs to a thread
    worker.start()
    worker.join()
    plan, y = found["plan"], found["y"]
    assert found["planning"] < 64 * MEBIBYTE, found["planning"] / MEBIBYTE
    assert plan.workspace_bytes <= 64 * MEBIBYTE, plan.workspace_bytes / MEBIBYTE
    assert found["used"] <= 64 * MEBIBYTE, found["used"] / MEBIBYTE
    assert found["used"] <= plan.workspace_bytes + MEBIBYTE, (found["used"], plan.workspace_bytes)
    some_outputs_are_right(x, weight, y, options)


def some_outputs_are_right(x, weight, y, options):
    """A few outputs of one channel, each by a sum of its own."""
    if options.get("layout") == "NHWC":
        x, y = x.transpose(0, 3, 1, 2), y.transpose(0, 3, 1, 2)
    options = {"stride": 1, "padding": 0, "dilation": 1, "padding_mode": "zeros"} | options
    stride, dilation = options["stride"], options["dilation"]
    (top, left) = options["padding"] if isinstance(options["padding"], tuple) else (options["padding"],) * 2
    (_, _, height, width), (_, outputs, oh, ow) = x.shape, y.shape
    rng = np.random.default_rng(1)
    rows, columns = ([0, size - 1, *rng.integers(0, size, 4)] for size in (oh, ow))
    scale = weight.shape[1] * weight[0, 0].size * np.abs(x).max() * np.abs(weight).max()
    for o, row, column in zip(rng.integers(0, outputs, 6), rows, columns, strict=True):
        i = row * stride - top + dilation * np.arange(weight.shape[2])
        j = column * stride - left + dilation * np.arange(weight.shape[3])
        if options["padding_mode"] == "reflect":
            i, j = (np.where(k < 0, -k, k) for k in (i, j))
            i, j = (np.where(k >= n, 2 * (n - 1) - k, k) for k, n in ((i, height), (j, width)))
        inside = ((i >= 0) & (i < height))[:, None] & ((j >= 0) & (j < width))
        window = x[0][:, np.clip(i, 0, height - 1)[:, None], np.clip(j, 0, width - 1)].astype("f8") * inside
        assert abs(y[0, o, row, column] - (window * weight[o]).sum()) <= 32 * np.finfo("f4").eps * scale


def test_what_threads_keep_is_bounded():
    """Scratch memory stays with its thread: one block, not one for every shape."""
    tracemalloc.start()
    try:
        kept = []

        def work():
            for size in (20, 200, 50, 120, 300):
                for engine in ENGINES:
                    portconv.conv2d(numbers((1, 16, size, size)), numbers((16, 16, 3, 3)), padding=1, engine=engine)
            kept.append(tracemalloc.get_traced_memory()[0])

        before = tracemalloc.get_traced_memory()[0]
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert kept[0] - before < 64 * MEBIBYTE
        assert tracemalloc.get_traced_memory()[0] - before < 8 * MEBIBYTE  # and nothing stays of a thread that ended
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by Linux's mprotect here")
def test_the_guard_pages_guard(run_python):
    with pytest.raises(AssertionError, match="exit status -"):
        run_python(GUARDED + "    guarded((5,), 'f4')[-1:].ctypes.data_as(ctypes.POINTER(ctypes.c_float))[1]")
    with pytest.raises(AssertionError, match="exit status -"):
        run_python(GUARDED + "    guarded((5,), 'f4', False)[:1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))[-1]")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by Linux's mprotect here")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_byte_beyond_the_arrays_is_touched(run_python, engine, dtype):
    """Of images, weights, biases, results and scratch memory, which end or begin at a page that nobody may read.

    Nor does a result depend on what scratch memory held before: it is full of NaN.
    """
    run_python(f"""{GUARDED}
    from portconv.cpu.compiled import base
    numpy = guard_pages.install()
    engine, dtype = {engine!r}, {dtype!r}
    problems = []
    if engine == "gemm":
        for width in (*range(1, 36), 47, 48, 49, 64, 65, 130, 200):
            problems.append(((1, 7, 3, width), (5, 7, 1, 1), dict()))
            problems.append(((2, 2, 4, width), (1, 2, 1, 1), dict(bias=True)))
            problems.append(((1, 3, 5, width), (9, 3, 3, 3), dict(padding=1)))
            problems.append(((1, 2, 5, width), (3, 2, 2, 3), dict(padding=((0, 0), (2, 0)), stride=(2, 1 + width % 3))))
        for width in (*range(1, 36), 47, 49, 65):
            problems.append(((1, 130, 3, width), (70, 130, 1, 1), dict(bias=True)))
        problems.append(((1, 64, 28, 28), (64, 64, 1, 1), dict()))
        problems.append(((2, 300, 5, 5), (40, 300, 1, 1), dict()))
        problems.append(((1, 4, 9, 11), (4, 1, 5, 5), dict(groups=4, padding=2, padding_mode="circular")))
    if engine in ("direct", "gemm"):
        for width in (*range(1, 36), 47, 48, 49, 63, 64, 65, 66, 130, 200):
            for height in (1, 2, 3, 5, 9):
                problems.append(((2, 3, height, width), (3, 1, 3, 3), dict(groups=3, padding=1)))
                if height > 2 and width > 2:
                    problems.append(((1, 2, height, width), (2, 1, 3, 3), dict(groups=2)))
            problems.append(((1, 2, 6, width), (3, 2, 3, 3), dict(padding=(3, 4), dilation=(3, 2))))
            problems.append(((1, 1, 8, width), (1, 1, 7, 7), dict(padding=3, padding_mode="replicate")))
            problems.append(((1, 1, 12, width), (1, 1, 5, 7), dict(padding=3, outer=True)))
    if engine == "direct":
        for width in (*range(1, 36), 49, 65):
            for height in (1, 2, 3, 5, 9):
                problems.append(((2, 19, height, width), (19, 1, 3, 3), dict(groups=19, padding=1, bias=True)))
                problems.append(((1, 17, height, width), (34, 1, 3, 2), dict(groups=17, padding=2, stride=2)))
            problems.append(((1, 16, 20, width), (16, 1, 3, 1), dict(groups=16, padding=(width + 20, 0))))
            # few columns of outputs, and strips of as few rows as there may be
            far = dict(groups=16, stride=2, dilation=5)
            problems.append(((1, 16, 100 + width, 73 + width), (16, 1, 21, 15), far))
            if width < 16:
                size = (2 * width - 1, 2 * width - 1)
                problems.append(((1, 33, width, width), (33, 1, *size), dict(groups=33, padding=width - 1)))
    if engine == "winograd":
        for width in (*range(1, 19), 31, 32, 33, 47, 48, 49, 64, 65, 130):
            for height in (1, 3, 4, 6, 9):
                problems.append(((1, 17, height, width), (5, 17, 3, 3), dict(padding=1, bias=True)))
            problems.append(((2, 48, 5, width), (17, 48, 5, 5), dict(padding=2)))
            problems.append(((1, 5, 3, width), (3, 5, 1, 7), dict(padding=(0, 3), padding_mode="replicate")))
            problems.append(((1, 5, width, 3), (3, 5, 7, 1), dict(padding=(3, 0))))
            problems.append(((1, 16, 4, width), (16, 16, 1, 3), dict(padding=1)))
        problems.append(((1, 320, 14, 14), (330, 320, 3, 3), dict(padding=1)))
    problems = problems if dtype == "f4" else problems[::2]  # the exact sums of float64 take their time
    for n, (x_shape, weight_shape, options) in enumerate(problems):
        image, kernels = numbers(*x_shape, dtype=dtype), numbers(*weight_shape, dtype=dtype)
        if options.pop("outer", False):
            kernels = kernels[:, :, :, :1] * kernels[:, :, :1]
        offsets = numbers(weight_shape[0], dtype=dtype) if options.pop("bias", False) else None
        expected = reference_conv2d(image, kernels, offsets, **options)
        in_layout = dict(NCHW=expected, NHWC=expected.each(lambda a: np.transpose(a, (0, 2, 3, 1))))
        for at_the_end, layout in ((True, "NCHW"), (False, "NCHW"), (True, "NHWC"), (False, "NHWC")):
            if layout == "NHWC" and n % 4:
                continue
            numpy.at_the_end = at_the_end
            print(x_shape, weight_shape, options, at_the_end, layout, file=sys.stderr)
            x = copy(image if layout == "NCHW" else image.transpose(0, 2, 3, 1), at_the_end)
            weight, bias = copy(kernels, at_the_end), None if offsets is None else copy(offsets, at_the_end)
            made = numpy.made
            y = portconv.conv2d(x, weight, bias, **options, layout=layout, engine=engine)
            plan = portconv.plan_conv2d(x, weight, bias, **options, layout=layout, engine=engine)
            compiled = isinstance(getattr(plan, "inner", plan), base.CompiledPlan)  # a plan may crop another one
            assert numpy.made > made or not compiled  # the result was one of ours
            assert_close(y, in_layout[layout])
    """)
