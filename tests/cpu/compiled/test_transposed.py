"""Compiled transposed convolutions: all phases of the strides at once."""

from __future__ import annotations

import random

import numpy as np
import pytest

import portconv
from portconv.core.problem import TransposedProblem
from portconv.cpu.bridge import phases_at_once
from portconv.cpu.compiled.transposed.plan import CompiledTransposedPlan
from portconv.testing import assert_close, reference_gradients

pytestmark = pytest.mark.usefixtures("jit")


def planned(x, weight, bias=None, **options):
    """The plan that `conv_transpose2d` makes of a call."""
    layer = portconv.ConvTranspose2d(x.shape[1], weight.shape[1] * options.get("groups", 1), weight.shape[2:],
                                     bias=bias is not None, engine="gemm", **options)  # fmt: skip
    return layer.plan(x)


def small(shape, seed, dtype="float32"):
    """Small integers, of which sums are exact in every order."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def exact(x, weight, y_shape, **options):
    return reference_gradients(np.zeros(y_shape, x.dtype), weight, x, **options)[0].y


@pytest.mark.parametrize("seed", range(40))
def test_exact(seed):
    """Sizes, strides, dilations, groups and dtypes by chance; with a bias and an activation in the same pass."""
    draw = random.Random(seed)
    dtype = draw.choice(["float32", "float32", "float64", "float16"])
    groups, some = draw.choice([1, 1, 2, 3]), draw.choice([1, 4, 5, 17])
    size = draw.choice([1, 2, 5, 13, 40]), draw.choice([1, 3, 17, 34, 70])
    kernel = draw.choice([1, 2, 3, 4, 7]), draw.choice([1, 2, 3, 5])
    stride = draw.choice([(2, 2), (2, 2), (1, 2), (3, 1), (4, 3), (5, 7)])
    padding, dilation = (draw.choice([0, 1]), draw.choice([0, 1, 2])), (draw.choice([1, 1, 3]), draw.choice([1, 2]))
    extra = draw.randrange(stride[0]), draw.randrange(stride[1])
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    spans = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    if min(spans) < 1:
        options["padding"], extra = 0, (0, 0)
    x, weight = small((2, 3 * groups, *size), 1, dtype), small((3 * groups, some, *kernel), 2, dtype)
    bias = small((some * groups,), 3, dtype)
    y = portconv.conv_transpose2d(x, weight, bias, output_padding=extra, engine="gemm", activation="relu", **options)
    expected = exact(x, weight, y.shape, **options) + bias.astype("f8")[:, None, None]
    np.testing.assert_array_equal(y, np.maximum(expected, 0).astype(dtype))


def test_which_plans_there_are():
    x, weight = np.ones((1, 8, 9, 9), "f4"), np.ones((8, 16, 4, 4), "f4")
    plan = planned(x, weight, stride=2, padding=1)
    assert isinstance(plan.at_once, CompiledTransposedPlan)
    assert plan.at_once.parts >= 1
    assert plan.engine == "gemm"
    problem = plan.problem
    assert isinstance(problem, TransposedProblem)
    assert phases_at_once(problem, "gemm") is plan.at_once
    assert phases_at_once(problem, "direct") is None
    assert planned(x, weight).at_once is None  # one phase
    last = portconv.ConvTranspose2d(8, 16, 4, stride=2, layout="NHWC", engine="gemm")
    assert last.plan(np.ones((1, 9, 9, 8), "f4")).at_once is None
    many = np.broadcast_to(np.float32(1), (512, 256, 3, 3))
    for size, whole in ((7, False), (14, True)):  # a fourth of the vectors of 7x7 are no results
        plan = planned(np.broadcast_to(np.float32(1), (1, 512, size, size)), many, stride=2, padding=1)
        assert (plan.at_once is not None) == whole
    few = np.broadcast_to(np.float32(1), (1, 64, 7, 7))
    assert planned(few, many[:64, :64], stride=2, padding=1).at_once is not None
    wide = np.broadcast_to(np.float32(1), (1, 4096, 4, 4096))
    assert planned(wide, np.broadcast_to(np.float32(1), (4096, 2, 2, 2)), stride=2).at_once is None  # a huge window


def test_sums_of_many_terms():
    rng = np.random.default_rng(0)
    x, weight = rng.random((1, 700, 12, 11), np.float32), rng.random((700, 9, 4, 4), np.float32)
    y = portconv.conv_transpose2d(x, weight, stride=2, padding=1)
    assert planned(x, weight, stride=2, padding=1).at_once is not None
    assert_close(y, reference_gradients(np.zeros(y.shape, "f4"), weight, x, stride=2, padding=1)[0])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_strips_and_threads(threads):
    before = portconv.get_num_threads()
    portconv.set_num_threads(threads)
    try:
        for shape in ((1, 3, 90, 64), (3, 40, 30, 30), (1, 200, 4, 4)):
            x, weight = small(shape, 1), small((shape[1], 33, 3, 4), 2)
            y = portconv.conv_transpose2d(x, weight, stride=(2, 3), engine="gemm")
            np.testing.assert_array_equal(y, exact(x, weight, y.shape, stride=(2, 3)))
    finally:
        portconv.set_num_threads(before)


def test_memory_of_any_order():
    x, weight = small((2, 5, 9, 8), 1), small((5, 6, 3, 3), 2)
    expected = portconv.conv_transpose2d(x, weight, stride=2)
    shown = [
        np.asfortranarray(x),
        x[:, :, ::-1][:, :, ::-1],
        x.repeat(2, 3)[..., ::2],
        x.astype("u1").astype("f4") * 0 + x,
    ]
    for image in shown:
        np.testing.assert_array_equal(portconv.conv_transpose2d(image, weight, stride=2), expected)
    out = np.full((*expected.shape[:3], 2 * expected.shape[3]), 7, "f4")
    portconv.conv_transpose2d(x, weight, stride=2, out=out[..., ::2])
    np.testing.assert_array_equal(out[..., ::2], expected)
    assert (out[..., 1::2] == 7).all()
    saturated = portconv.conv_transpose2d(x, weight, stride=2, out_dtype="uint8")
    np.testing.assert_array_equal(saturated, np.clip(expected, 0, 255).astype("u1"))


def test_results_that_nothing_meets():
    """Rows and columns between the pixels, which are the bias."""
    x, weight, bias = small((1, 3, 4, 5), 1), small((3, 2, 2, 1), 2), small((2,), 3)
    y = portconv.conv_transpose2d(x, weight, bias, stride=(4, 3), output_padding=(3, 2), engine="gemm")
    assert (y[:, :, 2::4] == bias[:, None, None]).all()
    assert (y[:, :, :, 1::3] == bias[:, None, None]).all()


def test_not_numbers():
    """What is not finite reaches the results that read it, and no other."""
    x, weight = small((1, 4, 6, 20), 1), np.abs(small((4, 8, 2, 2), 2)) + 1
    x[0, 1, 2, 3], x[0, 0, 5, 19] = np.nan, np.inf
    y = portconv.conv_transpose2d(x, weight, stride=2, engine="gemm")
    found = ~np.isfinite(y)
    expected = np.zeros(y.shape, bool)
    expected[..., 4:6, 6:8] = expected[..., 10:12, 38:40] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_gradients_of_images(mode):
    """Those of strided convolutions are the same sums."""
    x, weight = small((2, 4, 17, 14), 1), small((6, 4, 3, 3), 2)
    options = {"stride": 2, "padding": 1, "padding_mode": mode}
    y, vjp = portconv.conv2d_vjp(x, weight, wrt="x", **options)
    dy = small(y.shape, 3)
    np.testing.assert_array_equal(vjp(dy)[0], reference_gradients(x, weight, dy, **options)[0].y)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "mlx"])
def test_arrays_of_other_libraries(name, library, monkeypatch):
    """Those that NumPy can see go at once; of the others each phase is one of the library's own plans, as before."""
    lib = library(name)
    x, weight = small((2, 5, 9, 8), 1), small((5, 6, 3, 3), 2)
    expected = exact(x, weight, (2, 6, 19, 17), stride=2)
    calls = []
    execute = CompiledTransposedPlan.execute
    monkeypatch.setattr(
        CompiledTransposedPlan, "execute", lambda self, *args, **more: calls.append(1) or execute(self, *args, **more)
    )
    arrays = lib.array(x), lib.array(weight)
    for dtype in ("float32", "float16"):
        given = [lib.array(a, dtype) for a in (x, weight)]
        np.testing.assert_array_equal(lib.numpy(portconv.conv_transpose2d(*given, stride=2, engine="gemm")), expected)
    assert len(calls) == 2
    layer = portconv.ConvTranspose2d(5, 6, 3, stride=2, bias=False, engine="gemm")
    layer.weight = arrays[1]
    for size in (9, 5, 9):
        y = lib.numpy(layer(arrays[0][:, :, :size]))
        np.testing.assert_array_equal(y, exact(x[:, :, :size], weight, y.shape, stride=2))
    assert len(calls) == 5


def test_recorded_tensors_go_phase_by_phase(torch, monkeypatch):
    """A weight that has been packed for all phases at once can be needed for each of them."""
    x, weight = small((2, 5, 9, 8), 1), small((5, 6, 3, 3), 2)
    layer = portconv.ConvTranspose2d(5, 6, 3, stride=2, bias=False, engine="gemm")
    layer.weight = torch.asarray(weight)
    given = torch.asarray(x)
    expected = layer(given)
    recorded = given.clone().requires_grad_()
    with monkeypatch.context() as only:
        only.setattr(CompiledTransposedPlan, "execute", None)
        y = layer(recorded)
    assert torch.equal(y, expected)
    y.sum().backward()
    ones = portconv.conv_transpose2d_vjp(x, weight, stride=2, wrt="x")[1](np.ones(y.shape, "f4"))[0]
    np.testing.assert_array_equal(recorded.grad.numpy(), ones)
    assert torch.equal(torch.func.vmap(lambda one: layer(one[None])[0])(given), expected)
