"""`conv3d` and `conv_transpose3d`, with every library: beside PyTorch in float64, within the bounds of sums."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import portconv
from portconv.testing.calls import DIFFERENTIATE
from tests.helpers import numbers, refused

CASES = {
    "padding": ((2, 3, 4, 6, 7), (4, 3, 3, 3, 3), {"padding": 1}),
    "strides, dilation": (
        (1, 2, 9, 8, 7), (3, 2, 3, 2, 3), {"stride": (2, 1, 3), "dilation": (2, 3, 1), "padding": (3, 0, 2)},
    ),
    "groups, a long kernel": ((1, 4, 12, 5, 6), (2, 3, 2, 11, 1, 2), {"groups": 2, "padding": (4, 0, 1)}),
}  # fmt: skip
TRANSPOSED = {
    "phases without taps": (
        (2, 3, 4, 5, 3), (3, 4, 2, 3, 2), {"stride": (3, 2, 1), "padding": (2, 1, 0), "output_padding": (1, 1, 0)},
        "float32",
    ),
    "groups, dilation": (
        (1, 4, 3, 4, 5), (2, 2, 3, 3, 1, 2),
        {"groups": 2, "stride": (2, 1, 2), "dilation": (3, 1, 2), "padding": (3, 0, 1)}, "float16",
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def check(backend, torch, name, x, weight, options, dtype):
    """One of the functions beside PyTorch's of its name."""
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    count = weight.shape[-4] * options.get("groups", 1) if "transpose" in name else int(np.prod(weight.shape[:-4]))
    bias = numbers((1, count, 1, 1, 1), 3, dtype)
    arrays = (backend.array(a) for a in (x, weight, bias))
    y = getattr(portconv, name)(*arrays, **options, accuracy="elementwise")
    assert backend.dtype_name(y) == dtype
    # the result and the sums of magnitudes of its terms, in float64
    given = [torch.asarray(a.astype("f8")) for a in (x, weight.reshape(-1, *weight.shape[-4:]), bias.reshape(-1))]
    function = getattr(torch.nn.functional, name)
    expected, magnitudes = (function(*some, **options).numpy() for some in (given, [abs(a) for a in given]))
    assert tuple(y.shape) == expected.shape
    bound = 8 * np.finfo("f8" if dtype == "float64" else "f4").eps * magnitudes
    bound += (2.0**-11 if dtype == "float16" else 0) * abs(expected)
    assert (abs(backend.numpy(y).astype("f8") - expected) <= bound).all()


@pytest.mark.every_device
@every_case
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_within_the_bound(backend, torch, case, dtype):
    x_shape, weight_shape, options = case
    check(backend, torch, "conv3d", numbers(x_shape, 1, dtype), numbers(weight_shape, 2, dtype), options, dtype)


@pytest.mark.every_device
@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_within_the_bound(backend, torch, case):
    x_shape, weight_shape, options, dtype = case
    x, weight = numbers(x_shape, 1, dtype), numbers(weight_shape, 2, dtype)
    check(backend, torch, "conv_transpose3d", x, weight, options, dtype)


def test_channels_last_and_six_sides(backend):
    x, weight, bias = numbers((2, 3, 4, 5, 6), 1), numbers((3, 3, 2, 3, 2), 2), numbers((3,), 3)
    stride = (1, 2, 2)  # with these sizes "same" is a plane at the back, and a row on each side
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (1, 1), (0, 0)))
    whole = portconv.conv_transpose3d(x, weight, bias, stride)
    for function, padding, expected in (
        (portconv.conv3d, "same", portconv.conv3d(padded, weight, bias, stride)),
        (portconv.conv_transpose3d, ((0, 1), (1, 2), (2, 0)), whole[:, :, :-1, 1:-2, 2:]),
    ):
        last = backend.array(np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)))
        y = function(last, backend.array(weight), backend.array(bias), stride, padding, layout="NDHWC")
        np.testing.assert_allclose(backend.numpy(y).transpose(0, 4, 1, 2, 3), expected, rtol=1e-5, atol=1e-5)


def test_gradients(backend, torch):
    """Of every library, also without differentiation of its own."""
    x_shape, weight_shape, options = CASES["strides, dilation"]
    arrays = [numbers(shape, n) for n, shape in enumerate((x_shape, weight_shape, (1, weight_shape[0], 1, 1, 1)))]
    y, vjp = portconv.conv3d_vjp(*(backend.array(a) for a in arrays), **options)
    leaves = [torch.asarray(a.astype("f8")).requires_grad_() for a in arrays]
    expected = torch.nn.functional.conv3d(leaves[0], leaves[1], leaves[2].reshape(-1), **options)
    dy = numbers(tuple(y.shape), 4)
    expected.backward(torch.asarray(dy.astype("f8")))
    for got, leaf in zip(vjp(backend.array(dy)), leaves, strict=True):
        np.testing.assert_allclose(backend.numpy(got), leaf.grad.numpy(), rtol=1e-4, atol=1e-4)
    assert [g is None for g in portconv.conv3d_vjp(*map(backend.array, arrays[:2]), **options, wrt="x")[1](y)][1:] == [
        True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["NCDHW", "NDHWC"])
@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
def test_gradients_of_transposed_convolutions(backend, torch, case, layout):
    x_shape, weight_shape, options, dtype = case
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    count = weight_shape[-4] * options.get("groups", 1)
    arrays = [numbers(shape, n, dtype) for n, shape in enumerate((x_shape, weight_shape, (1, count, 1, 1, 1)))]
    last = layout == "NDHWC"

    def turned(a):
        return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if last else a

    given = [backend.array(turned(arrays[0])), *map(backend.array, arrays[1:])]
    vjp = portconv.conv_transpose3d_vjp(*given, **options, layout=layout)[1]
    leaves = [torch.asarray(a.astype("f8")).requires_grad_() for a in arrays]
    expected = torch.nn.functional.conv_transpose3d(
        leaves[0], leaves[1].reshape(-1, *weight_shape[-4:]), leaves[2].reshape(-1), **options
    )
    dy = numbers(tuple(expected.shape), 4, dtype)
    expected.backward(torch.asarray(dy.astype("f8")))
    tolerance = 1e-4 if dtype == "float32" else 1e-2
    for name, got, array, leaf in zip(
        ("x", "weight", "bias"), vjp(backend.array(turned(dy))), given, leaves, strict=True
    ):
        assert got.dtype == array.dtype
        gradient = leaf.grad.numpy()
        found = backend.numpy(got).astype("f8")
        np.testing.assert_allclose(
            found, turned(gradient) if name == "x" else gradient, rtol=tolerance, atol=tolerance * abs(gradient).max()
        )
    for name in ("x", "weight", "bias"):
        pull = portconv.conv_transpose3d_vjp(*given, **options, layout=layout, wrt=name)[1]
        found = pull(backend.array(turned(dy)))
        assert [g is not None for g in found] == [n == name for n in ("x", "weight", "bias")]


def test_wrong_cotangents_of_transposed_convolutions():
    x, weight = numbers((1, 2, 3, 4, 4)), numbers((2, 3, 2, 2, 2), 1)
    y, vjp = portconv.conv_transpose3d_vjp(x, weight, stride=2)
    refused(ValueError, ["`dy`", "shape"], vjp, y[:, :, 1:])
    refused(TypeError, ["float32", "astype"], vjp, y.astype("f8"))
    refused(ValueError, ["`wrt`", "bias"], portconv.conv_transpose3d_vjp, x, weight, wrt="bias")


def test_nan_and_infinity_come_without_a_warning(tier):
    x, weight = np.ones((1, 1, 3, 2, 2), "f4"), np.ones((1, 1, 3, 1, 1), "f4")
    x[0, 0, :2, 0, 0] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = portconv.conv3d(x, weight, padding=(1, 0, 0))
        turned = portconv.conv_transpose3d(x, weight)
        portconv.conv_transpose3d(x.astype("f2") * np.float16(6e4), weight.astype("f2") * 2)
    assert np.isnan(y[0, 0, :2, 0, 0]).all() and np.isneginf(y[0, 0, 2, 0, 0]) and np.isfinite(y[..., 1]).all()
    assert np.isnan(turned[0, 0, 1:3, 0, 0]).all() and np.isfinite(turned[..., 1]).all()


def test_two_kinds_of_16_bits(torch):
    x, weight = torch.ones((1, 1, 3, 3, 3), dtype=torch.float16), torch.ones((1, 1, 3, 3, 3), dtype=torch.bfloat16)
    y = portconv.conv3d(x, weight)
    assert y.dtype == torch.float32 and y.item() == 27


def test_gradients_by_autograd(torch):
    found = []
    for function in (portconv.conv3d, torch.nn.functional.conv3d):
        x, weight = (torch.asarray(numbers(s)).requires_grad_() for s in ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3)))
        function(x, weight, padding=1, stride=2).square().sum().backward()
        found.append((x.grad.numpy(), weight.grad.numpy()))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_an_empty_batch():
    x, weight = numbers((0, 2, 4, 5, 6)), numbers((2, 2, 3, 3, 3))
    assert portconv.conv3d(x, weight, padding=1).shape == (0, 2, 4, 5, 6)
    assert portconv.conv_transpose3d(x, weight, stride=2).shape == (0, 2, 9, 11, 13)


def test_wrong_arguments(nothing_runs):
    x, weight = numbers((1, 2, 4, 5, 6)), numbers((3, 2, 3, 3, 3))
    refused(ValueError, ["`x`", "5 axes"], portconv.conv3d, x[0], weight)
    refused(ValueError, ["`weight`", "5 or 6 axes"], portconv.conv3d, x, weight[0])
    refused(ValueError, ["`stride`", "three"], portconv.conv3d, x, weight, stride=(1, 2))
    refused(ValueError, ["does not fit", "`dilation`"], portconv.conv3d, x, weight, dilation=2)
    refused(TypeError, ["`x`", "list"], portconv.conv3d, [1.0], weight)
    refused(ValueError, ["`padding`", "three pairs"], portconv.conv3d, x, weight, padding=((1, 1), (0, 0)))
    refused(ValueError, ["`padding`", "'valid'", "'same'"], portconv.conv3d, x, weight, padding="full")
    refused(ValueError, ["`layout`", "NDHWC"], portconv.conv3d, x, weight, layout="NHWC")
    weight = numbers((2, 3, 3, 3, 3))
    refused(ValueError, ["`padding`", "'valid'"], portconv.conv_transpose3d, x, weight, padding="same")
    refused(ValueError, ["`output_padding`", "`stride`"], portconv.conv_transpose3d, x, weight, output_padding=1)
    refused(ValueError, ["Nothing is left", "planes"], portconv.conv_transpose3d, x, weight, padding=(3, 0, 0))


def test_transposed_halves_of_two_kinds_give_float32(torch):
    x, weight = torch.ones((1, 2, 2, 3, 3), dtype=torch.float16), torch.ones((2, 1, 2, 2, 2), dtype=torch.bfloat16)
    y = portconv.conv_transpose3d(x, weight, stride=2)
    assert y.dtype == torch.float32 and y.shape == (1, 1, 4, 6, 6) and y.eq(2).all()


def test_gradients_of_planes_that_nothing_meets():
    """They are zeros, whatever those of the others are: they were NaN where another one was infinite."""
    x, weight = np.full((1, 1, 1, 1, 1), 1e38, "f4"), np.ones((1, 1, 6, 1, 1), "f4")
    y, vjp = portconv.conv3d_vjp(x, weight, padding=(4, 0, 0), wrt="weight")
    with np.errstate(over="ignore"):
        dweight = vjp(np.full_like(y, 1e38))[1]
    assert np.isinf(dweight[0, 0, 1:5]).all()
    np.testing.assert_array_equal(dweight[0, 0, [0, 5]], 0)


@pytest.mark.parametrize("name", ["conv3d", "conv_transpose3d"])
def test_gradients_of_planes_are_added_in_the_dtype_of_the_sums(backend, name):
    """The dtype of the volume has room for their sum, and not for each of them."""
    if "float64" not in backend.dtypes:
        pytest.skip(f"{backend} has no float64")
    weight, options = np.array([4e38, -3e38]).reshape(1, 1, 2, 1, 1), {"padding": (1, 0, 0) if name == "conv3d" else 0}
    given = [backend.array(a) for a in (np.ones((1, 1, 1, 1, 1), "f4"), weight)]
    y, vjp = getattr(portconv, f"{name}_vjp")(*given, **options)
    dy = backend.array(np.ones(tuple(y.shape)))
    found = [vjp(dy)[0]]
    if backend.name in DIFFERENTIATE:
        found.append(DIFFERENTIATE[backend.name](lambda *a: getattr(portconv, name)(*a, **options), given, dy)[0])
    for dx in found:
        assert backend.dtype_name(dx) == "float32"
        np.testing.assert_allclose(backend.numpy(dx), 1e38, rtol=1e-6)
