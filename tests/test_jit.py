"""The compiled tier: against the oracle and the plain tier, at every width, in bounded memory, no byte beyond an array.

PORTCONV_EXPECT_JIT=1 makes a missing Numba a failure; without it these tests are skipped where there is none.
"""

from __future__ import annotations

import ast
import importlib
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv.engines.cropped import CroppedPlan
from portconv.testing import assert_close, error_bound, reference_at, reference_conv2d

pytestmark = pytest.mark.usefixtures("jit")
ENGINES = ("gemm", "winograd", "direct")
BOTH = ("normwise", "elementwise")
WINOGRAD_KERNELS = [(3, 3), (5, 5), (1, 3), (3, 1), (1, 5), (5, 1), (1, 7), (7, 1)]
MEBIBYTE = 2**20


def numbers(shape, seed=0, dtype="f4"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def is_compiled(plan):
    plan = plan.inner if isinstance(plan, CroppedPlan) else plan
    return type(plan).__module__.startswith("portconv.cpu.compiled.")


def check(x, weight, bias=None, *, engine, accuracies=("normwise",), **options):
    """Convolve by a compiled plan, and compare with the oracle: everywhere, or at some outputs if there are many."""
    expected = None
    for accuracy in accuracies:
        plan = portconv.plan_conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
        assert is_compiled(plan)
        y = portconv.conv2d(x, weight, bias, engine=engine, accuracy=accuracy, **options)
        terms = weight[0].size if weight.ndim == 4 else weight[0, 0].size
        if y.size * terms <= 1 << 22:
            at = ...
            expected = expected or reference_conv2d(x, weight, bias, **options)
        else:
            at = some_outputs(y.shape, (1 << 21) // terms)
            outputs = at if options.get("layout") != "NHWC" else [at[axis] for axis in (0, 3, 1, 2)]
            expected = expected or reference_at(outputs, x, weight, bias, **options)
        assert_close(y[at], expected, accuracy=accuracy)
    return y


def some_outputs(shape, count):
    """The last five along each axis with the first of the others, and so many others; an index of an array."""
    rng = np.random.default_rng(shape)
    edges = np.stack(np.meshgrid(*[sorted({0, *range(max(0, n - 5), n)}) for n in shape], indexing="ij"))
    edges = edges.reshape(4, -1)[:, rng.permutation(edges[0].size)[: count // 2]]
    return tuple(np.concatenate([edges, [rng.integers(0, n, count // 2) for n in shape]], axis=1))


# --- random problems --------------------------------------------------------------------------------------------------

VIEWS = {
    "C order": lambda a: a,
    "Fortran order": np.asfortranarray,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "negative strides": lambda a: a[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1],
    "every second": lambda a: np.repeat(np.repeat(a, 2, axis=2), 3, axis=3)[:, :, ::2, ::3],
    "a part of it": lambda a: np.pad(a, ((1, 0), (0, 2), (1, 1), (2, 3)))[1:, : a.shape[1], 1:-1, 2:-3],
    "transposed": lambda a: np.ascontiguousarray(a.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0),
    "broadcast": lambda a: np.broadcast_to(a[:1, :, :, :1], a.shape),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


def random_problem(engine, rng):
    """X, weight, bias or None, and the arguments; None where the kernel does not fit the image."""
    pick = lambda *choices: choices[rng.integers(len(choices))]  # noqa: E731
    pair = lambda *choices: (pick(*choices), pick(*choices))  # noqa: E731
    if engine == "winograd":
        groups, inputs, outputs = 1, int(rng.integers(4, 70)), pick(1, 2, 3, 5, 8, 9, 16, 17, 33, 64, 70)
        kernel, stride, dilation = pick(*WINOGRAD_KERNELS), (1, 1), (1, 1)
    else:
        groups, inputs, outputs = pick(1, 1, 2, 3, 5), pick(1, 1, 2, 3, 4, 7, 20), pick(1, 2, 3, 4, 5, 8, 9, 17)
        if rng.random() < 0.3:  # depthwise, with a multiplier
            groups, inputs, outputs = int(rng.integers(1, 30)), 1, pick(1, 1, 1, 2, 3)
        kernel = tuple(int(k) for k in rng.integers(1, 10, 2)) if rng.random() < 0.5 else pick((1, 1), (3, 3), (2, 2))
        stride = pair(1, 1, 2, 3, 5) if engine == "gemm" else (1, 1)
        dilation = pair(1, 1, 2, 3)
    size = tuple(int(s) for s in rng.integers(1, 41, 2))
    mode = pick("zeros", "zeros", "reflect", "replicate", "circular")
    limits = {"reflect": (size[0] - 1, size[1] - 1), "circular": size}.get(mode, (7, 7))
    padding = tuple(tuple(int(p) for p in rng.integers(0, min(limit, 7) + 1, 2)) for limit in limits)
    for axis in (0, 1):
        if dilation[axis] * (kernel[axis] - 1) + 1 > size[axis] + sum(padding[axis]):
            return None
    batch, layout, dtype = pick(1, 1, 2, 3), pick("NCHW", "NHWC"), pick("f2", "f4", "f4", "f8", "u1", "?")
    x = 3 * rng.standard_normal((batch, groups * inputs, *size))
    x = (rng.integers(0, 256, x.shape) if dtype in ("u1", "?") else x).astype(dtype)
    if layout == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    wide = dtype if dtype[0] == "f" else pick("f4", "f8", "f2")
    weight = rng.standard_normal((groups, outputs, inputs, *kernel)).astype(wide)
    if rng.random() < 0.7:
        weight = weight.reshape(groups * outputs, inputs, *kernel)
    bias = rng.standard_normal((1, groups * outputs, 1, 1)).astype(wide) if rng.random() < 0.5 else None
    views = list(VIEWS)
    x = VIEWS[views[rng.integers(len(views))]](x)
    if weight.ndim == 4:
        weight = VIEWS[views[rng.integers(len(views))]](weight)
    options = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode,
        "layout": layout,
    }  # fmt: skip
    return x, weight, bias, options


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("engine", ENGINES)
def test_random_problems(engine, seed, plain_tier):
    """Every result within the bound of the oracle, and both tiers within both bounds of each other."""
    rng = np.random.default_rng([seed, len(engine)])
    done = []
    while len(done) < 40:
        if (problem := random_problem(engine, rng)) is None:
            continue
        x, weight, bias, options = problem
        accuracy = "elementwise" if engine != "winograd" and rng.random() < 0.3 else "normwise"
        where = f"problem {len(done)}: x {x.dtype} {x.shape} {x.strides}, weight {weight.shape}, {options}, {accuracy}"
        plan = portconv.plan_conv2d(x, weight, bias, **options, engine=engine, accuracy=accuracy)
        assert is_compiled(plan), where
        y = portconv.conv2d(x, weight, bias, **options, engine=engine, accuracy=accuracy)
        exact = reference_conv2d(x, weight, bias, **options)
        try:
            assert_close(y, exact, accuracy=accuracy)
        except AssertionError as error:
            raise AssertionError(f"{where}: {error}") from None
        done.append((problem, accuracy, where, y, exact))
    with plain_tier():
        for (x, weight, bias, options), accuracy, where, y, expected in done:
            plan = portconv.plan_conv2d(x, weight, bias, **options, engine=engine, accuracy=accuracy)
            assert not is_compiled(plan)
            other = portconv.conv2d(x, weight, bias, **options, engine=engine, accuracy=accuracy)
            assert (other.shape, other.dtype) == (y.shape, y.dtype)
            bound = 2 * error_bound(expected, y.dtype.name, accuracy)
            if y.dtype == np.float16:
                bound = bound + np.abs(expected.y) * 2.0**-10 + 2.0**-24
            finite = np.isfinite(y)  # float16 may overflow
            np.testing.assert_array_equal(finite, np.isfinite(other))
            error = np.abs(np.where(finite, y, 0).astype("f8") - np.where(finite, other, 0))
            assert (error <= bound).all(), where


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("engine", ENGINES)
def test_widths_around_a_vector(engine, layout, dtype):
    channels, outputs = (17, 5) if engine == "winograd" else (2, 3)
    weights = {kernel: numbers((outputs, channels, *kernel), 1, dtype) for kernel in ((3, 3), (1, 1), (1, 5))}
    for width in range(1, 71):
        x = numbers((1, channels, 3, width), dtype=dtype)
        if layout == "NHWC":
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        for kernel, padding in (((3, 3), (0, 1)), ((3, 3), (1, 2)), ((1, 1), 0), ((1, 5), (0, 2)), ((1, 5), 0)):
            if (engine == "winograd" and kernel == (1, 1)) or (padding == 0 and width < kernel[1]):
                continue
            check(x, weights[kernel], engine=engine, padding=padding, layout=layout)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_widths_with_strides(stride, dtype):
    for width in range(5, 71):
        x, weight = numbers((1, 3, 6, width), dtype=dtype), numbers((5, 3, 3, 5), 1, dtype)
        check(x, weight, engine="gemm", padding=1, stride=(1, stride))


@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 5, 8, 9, 64])
@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_per_group(engine, groups, outputs):
    if engine == "winograd" and groups > 1:
        pytest.skip("winograd is for layers without groups")
    for inputs in (4, 16, 33):
        for kernel, size, options in (
            ((3, 3), (9, 21), {"padding": 1}),
            ((3, 3), (4, 100), {"padding": (0, 2), "padding_mode": "circular"}),
            ((5, 5), (8, 9), {"padding": 2}),
            ((1, 1), (7, 13), {}),
        ):
            if engine == "winograd" and (kernel == (1, 1) or (kernel == (5, 5) and inputs < 4)):
                continue
            x = numbers((2, groups * inputs, *size))
            weight = numbers((groups, outputs, inputs, *kernel), 1)
            check(x, weight, 5 * numbers((groups * outputs,), 2), engine=engine, groups=groups, **options)


@pytest.mark.parametrize("multiplier", [1, 2, 3, 8])
@pytest.mark.parametrize("engine", ["gemm", "direct"])
def test_depthwise(engine, multiplier):
    for kernel, options in (
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": 4, "dilation": 4}),
        ((5, 5), {"padding": 2, "padding_mode": "reflect"}),
        ((7, 7), {"padding": ((3, 0), (6, 2))}),
        ((9, 1), {"padding": (4, 0), "padding_mode": "replicate"}),
        ((2, 9), {}),
        ((3, 3), {"padding": 1, "stride": 2}),
    ):
        if engine == "direct" and options.get("stride") == 2:
            continue
        for channels, size in ((1, (20, 20)), (9, (13, 70)), (40, (7, 12)), (3, (40, 33))):
            x, weight = numbers((2, channels, *size)), numbers((channels, multiplier, 1, *kernel), 1)
            check(x, weight, numbers((channels * multiplier,), 2), engine=engine, groups=channels, **options)
            check(x, weight, engine=engine, groups=channels, accuracies=["elementwise"], **options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_depthwise_with_channels_in_the_lanes(dtype, layout):
    """Every width of a run, strips, blocks of channels that overlap, kernels larger than the image."""
    found = set()
    for seed, (channels, multiplier, size, kernel, options) in enumerate(
        [
            *((16 + n % 20, 1 + (n % 5 == 0), (4, n), (3, 3), {"padding": 1}) for n in range(4, 40)),
            *((17, 1, (9, n), (3, 5), {"padding": (1, 2), "stride": 2}) for n in range(7, 40)),
            *((33, 1, (n, n), (2 * n - 1, 2 * n - 1), {"padding": n - 1}) for n in range(4, 15)),
            (16, 1, (14, 14), (27, 27), {"padding": 13}),
            (40, 2, (13, 20), (5, 5), {"padding": 4, "dilation": 2}),
            (40, 1, (13, 20), (5, 3), {"padding": (20, 1), "dilation": (3, 1)}),
            (16, 1, (5, 6), (3, 3), {"padding": (9, 1)}),
            (16, 1, (8, 2), (3, 2), {"padding": (40, 0)}),
            (16, 1, (120, 130), (7, 7), {"padding": 3}),
            (18, 1, (200, 120), (3, 3), {"padding": ((0, 2), (3, 0)), "stride": (3, 2)}),
            (16, 1, (60, 60), (31, 31), {"padding": 15}),
            (16, 1, (8, 250), (2, 201), {"padding": (0, 100)}),
        ]
    ):
        x, weight = numbers((2, channels, *size), seed, dtype), numbers((channels * multiplier, 1, *kernel), 1, dtype)
        bias = numbers((channels * multiplier,), 2, dtype)
        if layout == "NHWC":
            x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        plan = portconv.plan_conv2d(x, weight, bias, groups=channels, layout=layout, engine="direct", **options)
        found.add(plan.candidates[[c.engine for c in plan.candidates].index("direct")].note)
        check(x, weight, bias, engine="direct", groups=channels, layout=layout, accuracies=BOTH, **options)
    assert "compiled, channels in the lanes" in found


def test_a_separable_depthwise_kernel_takes_two_passes():
    x, column, row = numbers((1, 24, 30, 31)), numbers((24, 1, 7, 1), 1), numbers((24, 1, 1, 9), 2)
    plan = portconv.plan_conv2d(x, column * row, groups=24, padding=(3, 4), engine="direct")
    assert plan.pack(column * row).separable
    assert not plan.pack(numbers((24, 1, 7, 9), 3)).separable
    for weight in (column * row, numbers((24, 1, 7, 9), 3)):
        check(x, weight, engine="direct", groups=24, padding=(3, 4))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("wide", [False, True])
def test_columns_or_outputs_in_the_lanes(monkeypatch, plain_tier, wide, layout, dtype):
    """Both kinds of register tiles, for every width, many and few outputs, long sums, strips, parts of the channels."""
    from portconv.cpu.compiled import plans
    from portconv.cpu.compiled.gemm.plan import CompiledGemmPlan

    with plain_tier():
        pass  # forgets every plan
    plans.build.cache_clear()
    monkeypatch.setattr(CompiledGemmPlan, "make", classmethod(lambda cls, p: cls.with_lanes(p, wide)))
    try:
        for seed, (inputs, outputs, size, kernel, options) in enumerate(
            [
                *((9, 5 + n, (1, n), (1, 1), {}) for n in range(1, 60)),
                *((3, 33, (6, n), (3, 3), {"padding": 1, "stride": 1 + n % 2}) for n in range(3, 40)),
                (70, 130, (7, 7), (1, 1), {}),
                (700, 64, (14, 14), (3, 3), {"padding": 1}),
                (1024, 33, (40, 40), (1, 3), {}),
                (6, 4, (17, 30), (5, 5), {"groups": 2, "padding": 2, "padding_mode": "reflect"}),
            ]
        ):
            x = numbers((2, inputs, *size), seed, dtype)
            weight = numbers((outputs, inputs // options.get("groups", 1), *kernel), 1, dtype)
            bias = numbers((outputs,), 2, dtype)
            if layout == "NHWC":
                x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
            check(x, weight, bias, engine="gemm", layout=layout, accuracies=BOTH, **options)
    finally:
        plans.build.cache_clear()
        with plain_tier():
            pass


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_results_that_no_cache_holds(dtype):
    """They are streamed to memory: whole tiles, the last outputs and rows, a bias, several images."""
    for x_shape, weight_shape, options in (
        ((1, 3, 130, 1024), (67, 3, 3, 3), {"padding": 1}),
        ((1, 3, 130, 1020), (67, 3, 3, 3), {"padding": 1}),
        ((2, 8, 100, 640), (64, 8, 1, 1), {}),
        ((1, 4, 260, 2100), (64, 2, 4, 4), {"stride": 4, "groups": 2}),
        ((1, 200, 100, 1024), (64, 200, 1, 1), {}),
    ):
        x, weight = numbers(x_shape, dtype=dtype), numbers(weight_shape, 1, dtype)
        plan = portconv.plan_conv2d(x, weight, engine="gemm", **options)
        y = check(x, weight, numbers(weight_shape[:1], 2, dtype), engine="gemm", **options)
        assert y.nbytes >= 8 * MEBIBYTE, (plan.output_shape, y.nbytes)


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


@pytest.mark.parametrize("kernel", [(12, 12), (31, 31), (1, 63), (40, 3), (17, 2)])
@pytest.mark.parametrize("engine", ["gemm", "direct"])
def test_large_kernels(engine, kernel):
    x = numbers((1, 4, 64, 70))
    for options in ({}, {"padding": (kernel[0] // 2, kernel[1] // 2)}, {"padding": 5, "padding_mode": "reflect"}):
        check(x, numbers((3, 4, *kernel), 1), engine=engine, **options)
        check(x, numbers((4, 1, *kernel), 1), engine=engine, groups=4, **options)


@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
@pytest.mark.parametrize("data", ["constant", "positive", "uneven"])
@pytest.mark.parametrize("engine", ENGINES)
def test_long_sums(engine, data, accuracy):
    if engine == "winograd" and accuracy == "elementwise":
        pytest.skip("winograd offers no elementwise accuracy")
    for x_shape, weight_shape, options in (
        ((1, 1100, 5, 6), (3, 1100, 3, 3), {"padding": 1}),
        ((1, 2048, 4, 4), (9, 2048, 1, 1), {}),
        ((1, 3000, 3, 20), (2, 3000, 1, 3), {}),
        ((1, 2, 40, 40), (1, 2, 35, 35), {}),
        ((2, 1, 80, 90), (1, 1, 63, 63), {"padding": 31}),
        ((1, 130, 20, 20), (4, 130, 9, 9), {"padding": 4}),
    ):
        if engine == "winograd" and weight_shape[2:] not in WINOGRAD_KERNELS:
            continue
        x, weight = np.full(x_shape, 0.1, "f4"), np.full(weight_shape, 0.7, "f4")
        if data != "constant":
            x = np.random.default_rng(5).random(x_shape, np.float32)
            weight = np.random.default_rng(6).random(weight_shape, np.float32)
        if data == "uneven":  # one bright spot, darkness elsewhere
            x *= 1e-6
            x[..., x_shape[2] // 2, x_shape[3] // 2] = 1
        check(x, weight, engine=engine, accuracies=[accuracy], **options)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_overflow_is_infinite_without_a_warning(engine, dtype):
    largest = np.finfo(dtype).max
    x, weight = np.full((1, 8, 12, 13), largest, dtype), np.zeros((3, 8, 3, 3), dtype)
    weight[0, 0, 1, 1], weight[1], weight[2] = 1, 1, -1
    y = portconv.conv2d(x, weight, engine=engine)
    np.testing.assert_array_equal(y[:, 0], largest)
    np.testing.assert_array_equal(y[:, 1], np.inf)
    np.testing.assert_array_equal(y[:, 2], -np.inf)


@pytest.mark.parametrize("engine", ENGINES)
def test_signalling_nan_is_only_a_nan(engine):
    x = numbers((1, 8, 12, 13))
    x.view(np.uint32)[0, 3, 5, 6] = 0x7FA00000
    for dtype in ("f4", "f8"):
        y = portconv.conv2d(x, numbers((3, 8, 3, 3), 1, dtype), engine=engine)
        assert np.isnan(y[:, :, 3:6, 4:7]).all()
        assert np.isnan(y).sum() == 27


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_batches(engine):
    for layout, shape in (("NCHW", (0, 8, 9, 10)), ("NHWC", (0, 9, 10, 8))):
        for dtype in ("f2", "f4", "f8"):
            plan = portconv.plan_conv2d(
                shape, (4, 8, 3, 3), True, layout=layout, engine=engine, dtype=np.dtype(dtype).name
            )
            y = portconv.conv2d(np.zeros(shape, dtype), np.ones((4, 8, 3, 3), dtype), layout=layout, engine=engine)
            assert y.shape == plan.output_shape == ((0, 4, 7, 8) if layout == "NCHW" else (0, 7, 8, 4))
            assert y.dtype == dtype


# --- memory -----------------------------------------------------------------------------------------------------------

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
    small = portconv.plan_conv2d((1, 4, 9, 9), (4, 4, 3, 3), engine=engine)
    small.execute(np.ones((1, 4, 9, 9), "f4"), small.pack(np.ones((4, 4, 3, 3), "f4")))  # loads and compiles
    found = {}

    def work():
        tracemalloc.start()
        plan = portconv.plan_conv2d(x_shape, weight_shape, **options, engine=engine)
        found["plan"], found["planning"] = plan, tracemalloc.get_traced_memory()[1]
        packed = plan.pack(weight)
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


GUARDED = f"""
    import ctypes, faulthandler, sys
    import numpy as np, portconv
    from portconv.testing import assert_close, reference_conv2d
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import guard_pages
    from guard_pages import copy, guarded

    faulthandler.enable()
    rng = np.random.default_rng(0)

    def numbers(*shape, dtype="f4"):
        return rng.standard_normal(shape).astype(dtype)
"""


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
    from portconv.cpu.compiled import plans
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
            compiled = plans.build(portconv.plan_conv2d(x, weight, bias, **options, layout=layout).problem, engine)
            assert numpy.made > made or compiled is None  # the result was one of ours
            assert_close(y, in_layout[layout])
    """)


# --- the switch -------------------------------------------------------------------------------------------------------


def test_both_tiers_are_there(plain_tier):
    for engine, compiled in (("gemm", True), ("winograd", True), ("direct", True), ("fft", False)):
        assert is_compiled(portconv.plan_conv2d((1, 8, 20, 20), (8, 8, 3, 3), engine=engine)) == compiled
    with plain_tier():
        for engine in ("gemm", "winograd", "direct", "fft"):
            assert not is_compiled(portconv.plan_conv2d((1, 8, 20, 20), (8, 8, 3, 3), engine=engine))


def test_the_environment_switches_it_off(run_python):
    code = """
        import sys
        import numpy as np, portconv
        x, weight = np.ones((1, 8, 20, 20), np.float32), np.ones((8, 8, 3, 3), np.float32)
        for engine in ("auto", "gemm", "winograd", "direct", "fft"):
            assert float(portconv.conv2d(x, weight, engine=engine)[0, 0, 0, 0].round(3)) == 72.0
        print("numba" in sys.modules, "portconv.cpu.compiled.gemm.kernels" in sys.modules)
    """
    assert run_python(code, PORTCONV_JIT="0") == "False False\n"
    assert run_python(code, PORTCONV_JIT="1") == "True True\n"
    assert run_python(code, PORTCONV_JIT="") == "True True\n"


def test_without_numba_the_plain_tier_does_all(run_python):
    """As where the extra `jit` is not installed."""
    out = run_python("""
        import importlib.util, sys
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find_spec(name, *rest)
        sys.modules["numba"] = sys.modules["llvmlite"] = None
        import numpy as np, portconv
        for engine in ("auto", "gemm", "winograd", "direct", "fft"):
            y = portconv.conv2d(np.ones((1, 8, 20, 20), "f4"), np.ones((8, 8, 3, 3), "f4"), engine=engine)
            assert float(y[0, 0, 0, 0].round(3)) == 72.0
        print("done")
    """)
    assert out == "done\n"


def test_packs_of_one_tier_are_refused_by_the_other(plain_tier):
    x, weight = numbers((1, 8, 20, 20)), numbers((8, 8, 3, 3))
    for engine in ENGINES:
        compiled = portconv.plan_conv2d(x, weight, engine=engine)
        with plain_tier():
            plain = portconv.plan_conv2d(x, weight, engine=engine)
        for one, other in ((compiled, plain), (plain, compiled)):
            with pytest.raises(ValueError, match="`weight`"):
                one.execute(x, other.pack(weight))


@pytest.mark.parametrize("engine", ["gemm", "direct", "depthwise", "winograd"])
def test_kernels_unpack_the_geometry_in_its_order(engine):
    """They get a plain tuple, whose names stand in `Geometry` and in every kernel that takes it apart."""
    folder = Path(portconv.__file__).parent / "cpu" / "compiled" / engine
    tree = ast.parse((folder / "kernels.py").read_text(encoding="utf-8"))
    unpackings = [
        [name.id for name in node.targets[0].elts]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == "geometry"
    ]
    fields = importlib.import_module(f"portconv.cpu.compiled.{engine}.geometry").Geometry._fields
    assert unpackings and all(names == list(fields) for names in unpackings)
