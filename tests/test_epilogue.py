"""What follows the sums: activations and residuals, their gradients, and what is told of wrong ones."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import portconv
from portconv.core.words import ACTIVATIONS
from portconv.testing import Problem, assert_close, reference_conv2d, verify
from portconv.testing.calls import DIFFERENTIATE
from tests.helpers import numbers

GIVEN = [*ACTIVATIONS, ("leaky_relu", 0.2), ("leaky_relu", -1.5)]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    shapes = (2, 4, 9, 8), (6, 4, 3, 3), (6,), (2, 6, 9, 8)
    return [rng.standard_normal(shape).astype("f4") * 2 for shape in shapes]


@pytest.mark.parametrize("activation", GIVEN, ids=str)
def test_every_activation_in_every_library(backend, activation):
    for dtype, residual in (("float32", "F"), ("float16", ""), ("float64", "C")):
        p = Problem((2, 3, 7, 9), (4, 3, 3, 3), {"padding": 1}, dtype=dtype, activation=activation, residual=residual,
                    bias_shape=(4,))  # fmt: skip
        outcome = verify(p, backend.package)
        assert outcome.share is None or outcome.share <= 1


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_every_form_of_every_engine(engine, tier):
    """Register tiles with columns or outputs in their lanes, depthwise forms, tiles, strips; whole vectors and not."""
    for x_shape, weight_shape, options in (
        ((2, 24, 13, 14), (20, 24, 3, 3), {"padding": 1}),
        ((1, 40, 13, 16), (20, 40, 1, 1), {}),
        ((1, 24, 13, 14), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
        ((1, 200, 5, 5), (70, 200, 3, 3), {"padding": 1}),
        ((1, 3, 40, 41), (4, 3, 7, 7), {"padding": 3, "stride": 2}),
    ):
        for layout, dtype, activation in (
            ("NCHW", "float32", "silu"), ("NHWC", "float32", "relu6"), ("NCHW", "float16", "tanh"),
            ("NCHW", "float64", "gelu"),
        ):  # fmt: skip
            arguments = {**options, "layout": layout}
            verify(Problem(x_shape, weight_shape, arguments, engine, dtype=dtype, bias_shape=weight_shape[:1],
                           activation=activation, residual="C"))  # fmt: skip


def test_residuals_are_added_where_results_are_stored(arrays, tier):
    """By plans that need no pass of their own over the result; in any order of memory, and of the arguments' dtypes."""
    x, weight, bias, residual = arrays
    exact = reference_conv2d(x, weight, bias, padding=1).finished("relu", residual)
    turned = np.asfortranarray(residual)
    for engine in ("gemm", "winograd", "direct"):
        plan = portconv.plan_conv2d(x, weight, bias, padding=1, engine=engine, activation="relu", residual=residual)
        packed = plan.pack(weight)
        assert plan.fused.fuses(x, packed, bias, residual)
        for added in (residual, turned, residual[:, ::-1][:, ::-1]):
            assert_close(plan.execute(x, packed, bias, residual=added), exact)
        half = residual.astype("f2")
        given = portconv.conv2d(x, weight, bias, padding=1, engine=engine, activation="relu", residual=half)
        assert_close(given, reference_conv2d(x, weight, bias, padding=1).finished("relu", half))
        out = np.empty((2, 9, 8, 6), "f4").transpose(0, 3, 1, 2)
        assert plan.execute(x, packed, bias, residual=residual, out=out) is out
        assert_close(out, exact)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_residuals_are_added_where_channels_lie_side_by_side(tier, activation):
    """Or in the lanes, as in depthwise layers; to sums that are not finite, too, which `winograd` leaves to `gemm`."""
    rng = np.random.default_rng(5)
    for engine, layout, outputs, groups in (
        ("gemm", "NHWC", 20, 1), ("winograd", "NHWC", 20, 1), ("direct", "NHWC", 24, 24), ("direct", "NCHW", 24, 24),
        ("direct", "NCHW", 48, 24),
    ):  # fmt: skip
        x_shape, y_shape = ((2, *s) if layout == "NCHW" else (2, *s[1:], s[0]) for s in ((24, 9, 8), (outputs, 9, 8)))
        x, weight, bias, residual = (
            rng.standard_normal(shape).astype("f4")
            for shape in (x_shape, (outputs, 24 // groups, 3, 3), outputs, y_shape)
        )
        options = {"padding": 1, "groups": groups, "layout": layout}
        plan = portconv.plan_conv2d(x, weight, bias, engine=engine, activation=activation, residual=residual, **options)
        packed = plan.pack(weight)
        assert plan.fused.fuses(x, packed, bias, residual)
        for pixel in (1.0, np.inf):
            x[0, 4, 4, 4] = pixel
            exact = reference_conv2d(x, weight, bias, **options).finished(activation, residual)
            assert_close(plan.execute(x, packed, bias, residual=residual), exact)


def test_residuals_of_tensors_channels_last(torch, arrays):
    x, weight, bias, residual = (torch.from_numpy(array) for array in arrays)
    last = torch.channels_last
    exact = reference_conv2d(*arrays[:3], padding=1).finished("silu", arrays[3])
    for engine in ("gemm", "winograd"):
        plan = portconv.plan_conv2d(x, weight, bias, padding=1, engine=engine, activation="silu", residual=residual)
        packed, image = plan.pack(weight), x.to(memory_format=last)
        assert plan.fused.fuses(image, packed, bias, residual)
        assert not plan.fused.fuses(image, packed, bias, residual.clone().requires_grad_())
        for added in (residual, residual.to(memory_format=last)):
            y = plan.execute(image, packed, bias, residual=added)
            assert y.is_contiguous(memory_format=last)
            assert_close(y.numpy(), exact)
        out = torch.empty_like(residual)
        assert plan.execute(image, packed, bias, residual=residual, out=out) is out
        assert_close(out.numpy(), exact)


def _torchs(torch, activation):
    functional = torch.nn.functional
    if not isinstance(activation, str):
        return lambda x: functional.leaky_relu(x, activation[1])
    return getattr(functional, {"hard_swish": "hardswish"}.get(activation, activation))


@pytest.mark.parametrize("activation", [None, *GIVEN], ids=str)
def test_gradients_are_pytorchs(backend, activation, arrays, torch):
    library = portconv.get_backend(backend.package)
    leaves = [torch.from_numpy(a.astype("f8")).requires_grad_() for a in arrays]
    x, weight, bias, residual = leaves
    y = torch.nn.functional.conv2d(x, weight, bias, padding=1) + residual
    y = y if activation is None else _torchs(torch, activation)(y)
    dy = np.random.default_rng(4).standard_normal(y.shape).astype("f4")
    y.backward(torch.from_numpy(dy.astype("f8")))
    *own, added = map(library.from_numpy, arrays)
    value, vjp = portconv.conv2d_vjp(*own, padding=1, activation=activation, residual=added)
    np.testing.assert_allclose(library.to_numpy(value), y.detach(), rtol=1e-5, atol=1e-5)
    for gradient, leaf in zip(vjp(library.from_numpy(dy)), leaves, strict=True):
        np.testing.assert_allclose(library.to_numpy(gradient), leaf.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlx", "torch", "jax"])
def test_the_library_differentiates_by_itself(name, arrays):
    """Autograd, `jax.grad` and `mx.grad` see the activation and the residual, whatever computes the sums."""
    pytest.importorskip(name)
    library = portconv.get_backend(name)
    dy = np.ones((2, 6, 9, 8), "f4")
    for engine in ("native", "gemm"):

        def function(x, weight, bias, residual, engine=engine):
            return portconv.conv2d(x, weight, bias, padding=1, engine=engine, activation="silu", residual=residual)

        own = [library.from_numpy(a) for a in arrays]
        found = DIFFERENTIATE[name](function, own, library.from_numpy(dy))
        _, vjp = portconv.conv2d_vjp(*arrays[:3], padding=1, activation="silu", residual=arrays[3])
        for gradient, expected in zip(found, vjp(dy), strict=True):
            np.testing.assert_allclose(library.to_numpy(gradient), expected, rtol=1e-4, atol=1e-4)


def test_the_slope_at_a_kink_is_that_from_the_left(torch):
    zeros = np.zeros((1, 1, 1, 2), "f4")
    for activation, at in (("relu", 0), ("relu6", 0), ("relu6", 6), ("leaky_relu", 0), (("leaky_relu", 0.5), 0)):
        bias = np.full(1, at, "f4")
        _, vjp = portconv.conv2d_vjp(zeros, np.ones((1, 1, 1, 1), "f4"), bias, activation=activation, wrt="bias")
        point = torch.tensor(float(at), requires_grad=True)
        _torchs(torch, activation)(point).backward()
        assert float(vjp(np.ones_like(zeros))[2][0]) == pytest.approx(2 * float(point.grad))


def test_what_is_not_wanted_costs_nothing(arrays):
    x, weight, bias, residual = arrays
    y, vjp = portconv.conv2d_vjp(x, weight, bias, padding=1, activation="relu", residual=residual, wrt="residual")
    dx, dweight, dbias, dresidual = vjp(np.ones_like(y))
    assert dx is dweight is dbias is None
    np.testing.assert_array_equal(dresidual, y > 0)
    assert len(portconv.conv2d_vjp(x, weight, activation="relu")[1](np.ones((2, 6, 7, 6), "f4"))) == 3


def test_a_result_is_rounded_once(arrays):
    """Half precision and integers: the activation has the sums as they are."""
    x = np.array([0.3, 1.4, -3.0, 250.7, 300.0, np.nan], "f4").reshape(1, 1, 1, 6)
    one = np.ones((1, 1, 1, 1), "f4")
    y = portconv.conv2d(x, one, activation="relu", residual=np.full_like(x, 0.25), out_dtype="uint8")
    assert y.ravel().tolist() == [1, 2, 0, 251, 255, 0]
    tiny = np.full((1, 1, 1, 1), 2.0**-12, "f2")
    image = tiny + np.float16(1.5)
    y = portconv.conv2d(image, tiny, activation="tanh")  # the sum is no number of float16
    assert float(y[0, 0, 0, 0]) == np.float16(math.tanh(float(image[0, 0, 0, 0]) * 2.0**-12))


def test_layers(arrays):
    x, weight, bias, residual = arrays
    conv = portconv.Conv2d(4, 6, 3, padding=1, activation="hard_swish")
    conv.weight, conv.bias = weight, bias
    exact = reference_conv2d(x, weight, bias, padding=1)
    assert_close(conv(x), exact.finished("hard_swish"))
    assert_close(conv(x, residual=residual), exact.finished("hard_swish", residual))
    assert_close(conv(x), exact.finished("hard_swish"))
    out = np.empty_like(residual)
    assert conv(x, residual=residual, out=out) is out
    assert_close(out, exact.finished("hard_swish", residual))
    assert conv.vjp(x, residual=residual)[1](residual)[3].shape == residual.shape
    assert repr(conv).endswith("activation='hard_swish')") and conv.activation == "hard_swish"
    assert portconv.Conv2d(4, 6, 3, activation=("leaky_relu", 0.2)).activation == ("leaky_relu", 0.2)
    assert "then residual, hard_swish" not in conv.explain(x)
    assert "bias, hard_swish" in repr(conv.plan(x)) and "residual" in repr(conv.plan(x, residual=True))


def test_a_layer_of_mlx(arrays):
    mx = pytest.importorskip("mlx.core")
    portconv_mlx = pytest.importorskip("portconv.mlx")
    x, weight, bias, residual = arrays
    conv = portconv_mlx.Conv2d(4, 6, 3, padding=1, activation="silu")
    conv.weight, conv.bias = mx.array(weight), mx.array(bias.reshape(1, 6, 1, 1))
    exact = reference_conv2d(x, weight, bias, padding=1)
    for mode in (True, False):
        conv.train(mode)
        assert_close(np.array(conv(mx.array(x))), exact.finished("silu"))
        assert_close(np.array(conv(mx.array(x), residual=mx.array(residual))), exact.finished("silu", residual))


@pytest.mark.parametrize(
    ("activation", "error", "words"),
    [
        ("swish", ValueError, "'silu'"),
        (3, TypeError, "`activation` must be None, a name or"),
        (("relu", 0.1), ValueError, "'leaky_relu' alone"),
        (("leaky_relu", "x"), TypeError, "a number as its slope"),
        (("leaky_relu", math.nan), ValueError, "finite slope"),
        (lambda x: x, TypeError, "a name"),
    ],
)
def test_wrong_activations_are_told(activation, error, words, arrays):
    with pytest.raises(error, match=words):
        portconv.conv2d(*arrays[:2], activation=activation)
    with pytest.raises(error, match=words):
        portconv.Conv2d(4, 6, 3, activation=activation)


def test_wrong_residuals_are_told(arrays, torch):
    x, weight, bias, residual = arrays
    for wrong, error, words in (
        (residual[:, :1], ValueError, r"`residual` must have the shape of the result, \(2, 6, 9, 8\) NCHW"),
        (residual.astype(int), TypeError, "`residual` must be of a floating dtype"),
        (torch.from_numpy(residual), TypeError, "`residual` is one of torch"),
        (1.0, TypeError, "`residual` must be an array"),
    ):
        with pytest.raises(error, match=words):
            portconv.conv2d(x, weight, bias, padding=1, residual=wrong)
    with pytest.raises(ValueError, match="must not share memory with `residual`"):
        portconv.conv2d(x, weight, bias, padding=1, residual=residual, out=residual)
    with pytest.raises(ValueError, match="names 'residual', but there is no"):
        portconv.conv2d_vjp(x, weight, wrt="residual")


def test_a_residual_takes_part_in_promotion(arrays):
    x, weight, _, residual = arrays
    y = portconv.conv2d(x, weight, padding=1, residual=residual.astype("f8"))
    assert y.dtype == np.float64


def test_residuals_of_calls_at_the_same_time(tier):
    """A prepared call keeps the words that say where a residual is; each of several at a time has words of its own."""
    layer = portconv.Conv2d(3, 8, 3, padding=1, activation="relu", rng=0)
    x = [numbers((1, 3, 40, 40), k) for k in range(8)]
    residuals = [numbers((1, 8, 40, 40), 10 + k) for k in range(8)]
    expected = [
        np.maximum(portconv.conv2d(a, layer.weight, layer.bias, 1, 1) + r, 0) for a, r in zip(x, residuals, strict=True)
    ]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda a, r: layer(a, residual=r), x, residuals))
            for got, y in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)
