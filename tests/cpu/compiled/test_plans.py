"""The compiled engines, all alike: against the oracle and the plain tier, at every width.

PORTCONV_EXPECT_JIT=1 makes a missing Numba a failure; without it these tests are skipped where there is none.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, error_bound, reference_conv2d
from tests.cpu.compiled.helpers import ENGINES, check, is_compiled
from tests.helpers import numbers

pytestmark = pytest.mark.usefixtures("jit")

WINOGRAD_KERNELS = [(3, 3), (5, 5), (1, 3), (3, 1), (1, 5), (5, 1), (1, 7), (7, 1)]


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


# --- the switch -------------------------------------------------------------------------------------------------------


def test_both_tiers_are_there(plain_tier):
    for engine, compiled in (("gemm", True), ("winograd", True), ("direct", True), ("fft", False)):
        assert is_compiled(portconv.plan_conv2d((1, 8, 20, 20), (8, 8, 3, 3), engine=engine)) == compiled
    with plain_tier():
        for engine in ("gemm", "winograd", "direct", "fft"):
            assert not is_compiled(portconv.plan_conv2d((1, 8, 20, 20), (8, 8, 3, 3), engine=engine))


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
