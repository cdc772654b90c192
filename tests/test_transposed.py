"""`conv_transpose2d` and its gradients, with every library: against PyTorch in float64, and the bounds."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import Reference, assert_close, reference_conv2d, reference_gradients
from portconv.testing.calls import DIFFERENTIATE
from tests.helpers import numbers, refused

# name: (x shape NCHW, weight shape, arguments). A case stands for a rule, not for a size.
CASES = {
    "no stride": ((2, 3, 5, 6), (3, 4, 3, 3), {"padding": 1}),
    "a decoder's": ((1, 16, 8, 7), (16, 8, 4, 4), {"stride": 2, "padding": 1}),
    "output padding": ((2, 3, 5, 6), (3, 4, 3, 3), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}),
    "stride of the kernel": ((1, 6, 5, 4), (6, 5, 2, 2), {"stride": 2}),
    "stride above kernel": ((1, 2, 4, 5), (2, 3, 2, 3), {"stride": (4, 5), "output_padding": 3}),
    "dilation": ((1, 3, 6, 5), (3, 2, 3, 2), {"dilation": (2, 3), "stride": (3, 2), "padding": (1, 2)}),
    "common factor": ((1, 2, 5, 6), (2, 3, 3, 3), {"dilation": (4, 6), "stride": (2, 4)}),
    "four sides": ((1, 3, 6, 5), (3, 4, 3, 4), {"stride": 2, "padding": ((0, 2), (3, 1))}),
    "padding above kernel": ((1, 2, 9, 9), (2, 3, 2, 2), {"stride": 2, "padding": 4}),
    "groups, 4-D weight": ((2, 6, 5, 4), (6, 2, 3, 3), {"groups": 3, "stride": 2}),
    "groups, 5-D weight": ((2, 6, 5, 4), (3, 2, 2, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    "depthwise": ((1, 5, 6, 7), (5, 1, 4, 4), {"groups": 5, "stride": 2, "padding": 1}),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
FEW = {name: CASES[name] for name in ("output padding", "stride above kernel", "groups, 5-D weight")}
few_cases = pytest.mark.parametrize("case", FEW.values(), ids=FEW)


def arrays_of(case, layout="NCHW", dtype="float32"):
    """Image, weight and bias (all NumPy's), and arguments."""
    x_shape, weight_shape, options = case
    x, weight = numbers(x_shape, 1, dtype), numbers(weight_shape, 2, dtype)
    bias = numbers((weight_shape[-3] * options.get("groups", 1),), 3, dtype)
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return x, weight, bias, {**options, "layout": layout}


def convolution_of(options):
    return {key: value for key, value in options.items() if key != "output_padding"}


def reference(x, weight, bias, y_shape, **options):
    """Exact: the gradient of the image of a convolution, whose bound is that of the sums that it is."""
    image = np.zeros(y_shape, x.dtype)
    exact = reference_gradients(image, weight, x, **convolution_of(options))[0]
    if bias is None:
        return exact
    shape = (1, 1, 1, -1) if options.get("layout") == "NHWC" else (1, -1, 1, 1)
    wide = bias.astype("f8").reshape(shape)
    return Reference(exact.y + wide, exact.c + abs(wide), exact.largest + abs(wide), exact.terms + 1)


def expected_shape(x, weight, options):
    """By the formula, for pairs."""
    layout = options.get("layout", "NCHW")
    size = x.shape[1:3] if layout == "NHWC" else x.shape[2:]
    pad = np.broadcast_to(np.asarray(options.get("padding", 0)), (2, 2))
    pad = pad.sum(axis=1) if np.ndim(options.get("padding", 0)) == 2 else pad[0] * 2

    def pair(name, default):
        return np.broadcast_to(options.get(name, default), 2)

    s, d, extra = pair("stride", 1), pair("dilation", 1), pair("output_padding", 0)
    found = (np.array(size) - 1) * s - pad + d * (np.array(weight.shape[-2:]) - 1) + extra + 1
    channels = weight.shape[-3] * options.get("groups", 1)
    sizes = tuple(int(n) for n in found)
    return (x.shape[0], *sizes, channels) if layout == "NHWC" else (x.shape[0], channels, *sizes)


# --- the values -------------------------------------------------------------------------------------------------------


@pytest.mark.every_device
@every_case
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_within_the_bound(backend, case, layout):
    x, weight, bias, options = arrays_of(case, layout)
    y = portconv.conv_transpose2d(*(backend.array(a) for a in (x, weight, bias)), **options)
    assert tuple(y.shape) == expected_shape(x, weight, options)
    assert backend.dtype_name(y) == "float32"
    assert_close(backend.numpy(y), reference(x, weight, bias, y.shape, **options))


@every_case
def test_against_pytorch_in_float64(torch, case, tier):
    x, weight, bias, options = arrays_of(case, dtype="float64")
    options.pop("layout")
    y, vjp = portconv.conv_transpose2d_vjp(x, weight, bias, **options)
    leaves = [torch.asarray(a).requires_grad_() for a in (x, weight, bias)]
    (top, bottom), (left, right) = sides = np.zeros((2, 2), int)
    if np.ndim(options.get("padding", 0)) == 2:
        sides[:] = options.pop("padding")
    expected = torch.nn.functional.conv_transpose2d(
        leaves[0], leaves[1].reshape(-1, *weight.shape[-3:]), leaves[2], **options
    )
    (top, bottom), (left, right) = sides
    expected = expected[:, :, top : expected.shape[2] - bottom, left : expected.shape[3] - right]
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=1e-12)
    dy = numbers(y.shape, 4, "float64")
    expected.backward(torch.asarray(dy))
    for got, leaf in zip(vjp(dy), leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=0, atol=1e-12 * float(leaf.grad.abs().max()))


@pytest.mark.every_device
@few_cases
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(backend, case, dtype):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    *arrays, options = arrays_of(case)
    given = [backend.array(a, dtype) for a in arrays]
    seen = [backend.numpy(a) for a in given]
    for activation in (None, "relu"):
        y = portconv.conv_transpose2d(*given, **options, activation=activation)
        assert backend.dtype_name(y) == dtype
        exact = reference(*seen, y.shape, **options).finished(activation)
        assert_close(backend.numpy(y), exact, dtype=dtype, computed=dtype)


@pytest.mark.parametrize("name", ["numpy", "dask"])
def test_bfloat16_of_numpy(name, library, tier):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x, weight, bias, options = arrays_of(CASES["a decoder's"])
    given = [a.astype(bfloat16) for a in (x, weight, bias)]
    arrays = given if name == "numpy" else [library(name).module.from_array(a) for a in given]
    y = np.asarray(portconv.conv_transpose2d(*arrays, **options))
    assert y.dtype == bfloat16
    exact = reference(*(a.astype("f4") for a in given), y.shape, **options)
    assert_close(y.astype("f4"), exact, dtype="bfloat16", computed="bfloat16")


@few_cases
@pytest.mark.parametrize("out_dtype", ["float64", "uint8"])
def test_another_dtype_of_the_result(case, out_dtype, tier):
    x, weight, bias, options = arrays_of(case)
    x, bias = np.abs(x * 50).astype("uint8"), bias * 50
    y = portconv.conv_transpose2d(x, weight, bias, **options, out_dtype=out_dtype)
    assert y.dtype == out_dtype
    assert_close(y, reference(x.astype("f4"), weight, bias, y.shape, **options), computed="float32")


@few_cases
def test_what_follows_the_sums(backend, case):
    x, weight, bias, options = arrays_of(case)
    residual = numbers(expected_shape(x, weight, options), 5)
    given = [backend.array(a) for a in (x, weight, bias)]
    y = portconv.conv_transpose2d(*given, **options, activation="silu", residual=backend.array(residual))
    exact = reference(x, weight, bias, y.shape, **options).finished("silu", residual)
    assert_close(backend.numpy(y), exact)


@few_cases
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_out(case, name, library):
    xp = library(name).module
    x, weight, bias, options = arrays_of(case)
    shape = expected_shape(x, weight, options)
    memory = xp.full((*shape[:3], 2 * shape[3]), 7.0, dtype=xp.float32)
    out = memory[..., ::2]
    y = portconv.conv_transpose2d(*(xp.asarray(a) for a in (x, weight, bias)), **options, out=out)
    assert y is out
    assert_close(np.asarray(out), reference(x, weight, bias, shape, **options))
    assert np.asarray(memory[..., 1::2] == 7).all()


def test_only_what_is_met_takes_part(backend):
    """A NaN stays in the pixels whose sums it belongs to, and no zeros stand between the pixels that it could meet."""
    x, weight = np.ones((1, 1, 4, 4), "f4"), np.ones((1, 1, 3, 3), "f4")
    x[0, 0, 1, 2] = np.nan
    y = backend.numpy(portconv.conv_transpose2d(backend.array(x), backend.array(weight), stride=3))
    expected = np.zeros((12, 12), bool)
    expected[3:6, 6:9] = True
    np.testing.assert_array_equal(np.isnan(y[0, 0]), expected)


def test_empty_batch(backend):
    x, weight = backend.array(np.ones((0, 2, 4, 4), "f4")), backend.array(np.ones((2, 3, 3, 3), "f4"))
    assert tuple(portconv.conv_transpose2d(x, weight, stride=2).shape) == (0, 3, 9, 9)


def test_gradients_of_an_image_of_fewer_digits(torch):
    """Those of float32 where the sums are of float64 are rounded once: each phase's were, and lost infinities too."""
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    weight = torch.tensor([[[[1e39, -2e39], [-2e39, 1e39]]]], dtype=torch.float64)
    portconv.conv_transpose2d(x, weight, stride=2).sum().backward()
    assert x.grad.dtype is torch.float32
    assert (x.grad == -torch.inf).all()


@pytest.mark.parametrize("name", ["mlx", "torch", "jax"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients_of_an_empty_batch(name, layout, library):
    """They are zeros, by the library's own derivatives: MLX's process ended with a division by zero."""
    lib = library(name)
    shape = (0, 2, 4, 5) if layout == "NCHW" else (0, 4, 5, 2)
    arrays = [lib.array(np.ones(shape, "f4")) for shape in (shape, (2, 3, 3, 2), (3,))]

    def call(*arrays):
        return portconv.conv_transpose2d(*arrays, stride=(2, 4), output_padding=1, layout=layout)

    y = call(*arrays)
    for got, array in zip(DIFFERENTIATE[name](call, arrays, y), arrays, strict=True):
        assert tuple(got.shape) == tuple(array.shape)
        assert not lib.numpy(got).any()


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.every_device
@few_cases
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients_within_the_bound(backend, case, layout):
    x, weight, bias, options = arrays_of(case, layout)
    given = [backend.array(a) for a in (x, weight, bias)]
    y, vjp = portconv.conv_transpose2d_vjp(*given, **options)
    dy = numbers(tuple(y.shape), 4)
    compare(backend, vjp(backend.array(dy)), x, weight, bias, dy, options)


def compare(backend, found, x, weight, bias, dy, options):
    convolution = convolution_of(options)
    of_x = reference_conv2d(dy, weight, **convolution)
    of_weight = reference_gradients(dy, weight, x, **convolution)[1]
    total = dy.astype("f8").sum(axis=(0, 1, 2) if options["layout"] == "NHWC" else (0, 2, 3))
    for got, like, exact in zip(found[:2], (x, weight), (of_x, of_weight), strict=True):
        assert tuple(got.shape) == like.shape
        assert_close(backend.numpy(got), exact)
    np.testing.assert_allclose(backend.numpy(found[2]), total, rtol=1e-5, atol=1e-4)


@few_cases
def test_by_autograd(torch, case):
    x, weight, bias, options = arrays_of(case)
    leaves = [torch.asarray(a).requires_grad_() for a in (x, weight, bias)]
    y = portconv.conv_transpose2d(*leaves, **options)
    dy = numbers(tuple(y.shape), 4)
    y.backward(torch.asarray(dy))
    expected = portconv.conv_transpose2d_vjp(x, weight, bias, **options)[1](dy)
    for leaf, gradient in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-4, atol=1e-4)


@few_cases
@pytest.mark.parametrize("name", ["jax", "mlx"])
def test_by_the_librarys_own_differentiation(library, case, name):
    package = library(name).module
    xp = package.numpy if name == "jax" else package
    x, weight, bias, options = arrays_of(case)

    def loss(x, weight, bias):
        y = portconv.conv_transpose2d(x, weight, bias, **options)
        return (y * y).sum() / 2

    found = package.grad(loss, argnums=(0, 1, 2))(*(xp.array(a) for a in (x, weight, bias)))
    y, vjp = portconv.conv_transpose2d_vjp(x, weight, bias, **options)
    for got, gradient in zip(found, vjp(y), strict=True):
        np.testing.assert_allclose(np.asarray(got), gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
def test_gradients_are_zeros_where_no_tap_meets_the_image(library, name):
    backend, options = library(name), {"stride": (2, 2), "padding": 3}
    given = [backend.array(numbers(shape, n)) for n, shape in enumerate(((1, 2, 3, 4), (2, 3, 3, 1), (3,)))]
    y = portconv.conv_transpose2d(*given, **options)
    dy = backend.array(numbers(tuple(y.shape), 4))
    found = DIFFERENTIATE[name](lambda *some: portconv.conv_transpose2d(*some, **options), given, dy)
    for gradient, array in zip(found[:2], given[:2], strict=True):
        assert not backend.numpy(gradient).any() and gradient.shape == array.shape


@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
def test_the_gradient_of_the_bias_is_rounded_once_where_no_tap_meets_the_image(library, name):
    backend = library(name)
    given = [backend.array(numbers(shape, n), "float16") for n, shape in enumerate(((1, 1, 4, 4), (1, 8, 1, 1), (8,)))]
    y = portconv.conv_transpose2d(*given, stride=7)
    dy = backend.array(numbers(tuple(y.shape), 4), "float16")
    found = DIFFERENTIATE[name](lambda *some: portconv.conv_transpose2d(*some, stride=7), given, dy)
    total = backend.numpy(dy).astype("f8").sum(axis=(0, 2, 3))
    np.testing.assert_allclose(backend.numpy(found[2]), total, rtol=1.01 * 2.0**-11, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "jax", "mlx"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_16_bits_are_rounded_once(library, name, dtype):
    """Each phase reads the image, and the library adds what they find for it."""
    backend = library(name)
    *arrays, options = arrays_of(CASES["a decoder's"])
    given = [backend.array(a, dtype) for a in arrays]
    seen = [backend.numpy(a) for a in given]
    y = portconv.conv_transpose2d(*given, **options)
    dy = backend.array(numbers(tuple(y.shape), 4), dtype)
    found = DIFFERENTIATE[name](lambda *some: portconv.conv_transpose2d(*some, **options), given, dy)
    convolution, cotangent = convolution_of(options), backend.numpy(dy)
    exact = reference_conv2d(cotangent, seen[1], **convolution)
    assert_close(backend.numpy(found[0]), exact, dtype=dtype)
    total = cotangent.astype("f8").sum(axis=(0, 2, 3))
    eps = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    np.testing.assert_allclose(backend.numpy(found[2]), total, rtol=1.01 * eps, atol=1e-4)


def test_what_is_not_wanted_is_none(backend):
    x, weight, bias, options = arrays_of(CASES["output padding"])
    given = [backend.array(a) for a in (x, weight, bias)]
    for n, name in enumerate(("x", "weight", "bias")):
        y, vjp = portconv.conv_transpose2d_vjp(*given, **options, wrt=name, activation="relu")
        assert [a is not None for a in vjp(y)] == [i == n for i in range(3)]


# --- what users pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"output_padding": 2}, ["`output_padding`", "less than `stride`", "(2, 2)"]),
        ({"output_padding": -1}, ["`output_padding`", "at least 0"]),
        ({"padding": "same"}, ["`padding`", "'same'"]),
        ({"padding": 6}, ["`padding`", "Nothing is left"]),
        ({"groups": 2}, ["`groups`", "3"]),
        ({"bias": np.ones(3, "f4")}, ["`bias`", "(1, 4, 1, 1)"]),
        ({"residual": np.ones((1, 4, 3, 3), "f4")}, ["`residual`", "(1, 4, 9, 11)"]),
        ({"weight": np.ones((2, 4, 3, 3), "f4")}, ["`weight`", "2 input channels", "3 channels"]),
        ({"weight": np.ones((4, 3, 3), "f4")}, ["`weight`", "4 axes (I, O/G, kh, kw)", "3"]),
        ({"weight": np.ones((3, 1, 4, 3, 3), "f4")}, ["`weight`", "`groups` = 1"]),
        ({"x": np.ones((3, 4, 5), "f4")}, ["`x`", "4 axes", "batch"]),
    ],
    ids=str,
)
def test_wrong_values(arguments, words, nothing_runs):
    given = {"x": np.ones((1, 3, 4, 5), "f4"), "weight": np.ones((3, 4, 3, 3), "f4"), "stride": 2, **arguments}
    for function in (portconv.conv_transpose2d, portconv.conv_transpose2d_vjp):
        refused(ValueError, words, function, **given)


def test_packed_phases_are_kept_for_an_array_that_cannot_change(monkeypatch):
    from portconv.dispatch import packing

    monkeypatch.setattr(packing, "packs", packing.PackCache())
    x, weight = numbers((1, 4, 6, 6)), np.frombuffer(numbers((4, 3, 3, 3)).tobytes(), "f4").reshape(4, 3, 3, 3)
    for _ in range(2):
        portconv.conv_transpose2d(x, weight, stride=2)
        assert len(packing.packs) == 1


# --- the module -------------------------------------------------------------------------------------------------------


def layer_of(case, layout="NCHW", **more):
    """A module with the parameters of a case, its image, and what the functional form makes of them."""
    x, weight, bias, options = arrays_of(case, layout)
    groups, channels = options.get("groups", 1), x.shape[1 if layout == "NCHW" else 3]
    layer = portconv.ConvTranspose2d(channels, bias.size, weight.shape[-2:], **options, **more)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert layer.weight.ndim == (4 if groups == 1 else 5)
    return layer, x, portconv.conv_transpose2d(x, weight, bias, **options)


@pytest.mark.every_device
@few_cases
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_module(backend, case, layout):
    layer, x, expected = layer_of(case, layout)
    assert layer.output_shape(x.shape) == expected.shape
    for _ in range(2):
        np.testing.assert_allclose(backend.numpy(layer(backend.array(x))), expected, rtol=1e-4, atol=1e-4)
    assert "phases" in layer.explain(x)


def test_module_sees_new_weights():
    layer, x, expected = layer_of(CASES["a decoder's"], activation="relu")
    np.testing.assert_allclose(layer(x), np.maximum(expected, 0), rtol=1e-5, atol=1e-5)
    layer.weight = np.zeros(layer.weight.shape)
    layer.bias = np.full(8, 2.0)
    assert (layer(x) == 2).all()


def test_module_is_megengines():
    layer = portconv.ConvTranspose2d(6, 8, 3, 2, 1, 1, 1, 2, False, dtype="float64", rng=0)
    assert repr(layer) == (
        "ConvTranspose2d(6, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 1), groups=2, "
        "bias=False)"
    )
    assert layer.weight.shape == (2, 3, 4, 3, 3) and layer.weight_layout == "GIOHW"
    assert list(layer.state_dict()) == ["weight"]
    drawn = portconv.ConvTranspose2d(100, 400, 3, rng=1).weight
    assert abs(drawn.std() / np.sqrt(1 / (9 * 400)) - 1) < 0.01
    layer.weight = np.ones((6, 4, 3, 3))
    assert layer.weight.shape == (2, 3, 4, 3, 3)
    refused(
        ValueError, ["`weight`", "(2, 3, 4, 3, 3)", "(8, 3, 3, 3)"], setattr, layer, "weight", np.ones((8, 3, 3, 3))
    )


@few_cases
def test_gradients_of_the_module(case):
    layer, x, expected = layer_of(case)
    y, vjp = layer.vjp(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    options = {**case[2], "layout": "NCHW"}
    by_hand = portconv.conv_transpose2d_vjp(x, layer.weight, layer.bias, **options)[1](y)
    for got, wanted, like in zip(vjp(y), by_hand, (x, layer.weight, layer.bias), strict=True):
        assert got.shape == like.shape
        np.testing.assert_array_equal(got, wanted)


def test_module_in_other_places(tmp_path):
    import copy
    import pickle

    layer, x, expected = layer_of(CASES["groups, 5-D weight"])
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), layer.to("numpy")):
        assert type(other) is portconv.ConvTranspose2d
        np.testing.assert_array_equal(other(x), layer(x))
    assert layer.astype("float64")(x).dtype == "float64"
    assert portconv.warmup(layer, x.shape).output_shape == expected.shape
