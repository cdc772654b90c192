"""`conv1d` and `conv_transpose1d`, with every library: against the oracle, and PyTorch in float64."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers, refused

CASES = {
    "stride": ((2, 3, 11), (4, 3, 3), {"stride": 2, "padding": 1}),
    "dilation": ((1, 3, 12), (2, 3, 4), {"dilation": 2, "padding": 3}),
    "groups": ((2, 6, 9), (6, 2, 5), {"groups": 3, "padding": 2}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def arrays_of(case, dtype="float32"):
    x_shape, weight_shape, options = case
    return (
        numbers(x_shape, 1, dtype),
        numbers(weight_shape, 2, dtype),
        numbers((1, weight_shape[0], 1), 3, dtype),
        options,
    )


@pytest.mark.every_device
@every_case
@pytest.mark.parametrize("layout", ["NCW", "NWC"])
def test_conv1d_within_the_bound(backend, case, layout):
    x, weight, bias, options = arrays_of(case)
    image = {"stride": (1, options.get("stride", 1)), "dilation": (1, options.get("dilation", 1))}
    image |= {"padding": (0, options["padding"]), "groups": options.get("groups", 1)}
    exact = reference_conv2d(x[:, :, None], weight[:, :, None], bias, **image).each(lambda a: a[:, :, 0])
    if layout == "NWC":
        x, exact = np.ascontiguousarray(x.swapaxes(1, 2)), exact.each(lambda a: a.swapaxes(1, 2))
    for shift in (bias, bias.reshape(-1)):
        y = portconv.conv1d(*(backend.array(a) for a in (x, weight, shift)), **options, layout=layout)
        assert_close(backend.numpy(y), exact)


@pytest.mark.every_device
@pytest.mark.parametrize("layout", ["NCW", "NWC"])
def test_conv_transpose1d_is_that_of_an_image(backend, layout):
    x, weight = numbers((2, 4, 7), 1), numbers((2, 2, 3, 4), 2)
    options = {"stride": 3, "padding": 1, "output_padding": 2, "groups": 2}
    expected = portconv.conv_transpose2d(x[:, :, None], weight[..., None, :], None, (1, 3), (0, 1), (0, 2), groups=2)[
        :, :, 0
    ]
    if layout == "NWC":
        x, expected = np.ascontiguousarray(x.swapaxes(1, 2)), expected.swapaxes(1, 2)
    y = portconv.conv_transpose1d(backend.array(x), backend.array(weight), **options, layout=layout)
    np.testing.assert_allclose(backend.numpy(y), expected, rtol=1e-5, atol=1e-5)


@every_case
def test_against_pytorch_in_float64(torch, case):
    x, weight, bias, options = arrays_of(case, "float64")
    given = [torch.asarray(a) for a in (x, weight, bias.reshape(-1))]
    expected = torch.nn.functional.conv1d(*given, **options).numpy()
    np.testing.assert_allclose(portconv.conv1d(x, weight, bias, **options), expected, rtol=0, atol=1e-12)
    turned = np.ascontiguousarray(weight)
    image = numbers((2, weight.shape[0], 6), 4, "float64")
    expected = torch.nn.functional.conv_transpose1d(torch.asarray(image), given[1], **options).numpy()
    np.testing.assert_allclose(portconv.conv_transpose1d(image, turned, **options), expected, rtol=0, atol=1e-12)


def test_what_comes_with_the_result(tier):
    x, weight, residual = numbers((1, 4, 20)), numbers((4, 4, 3)), numbers((1, 4, 20), 5)
    plain = portconv.conv1d(x, weight, padding="same")
    out = np.zeros_like(plain)
    assert portconv.conv1d(x, weight, padding=(1, 1), residual=residual, activation="relu", out=out) is out
    np.testing.assert_allclose(out, np.maximum(plain + residual, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["conv1d", "conv_transpose1d"])
@pytest.mark.parametrize("layout", ["NCW", "NWC"])
def test_gradients(backend, torch, name, layout):
    """Of every library, also without differentiation of its own."""
    x, weight, bias = numbers((2, 4, 11)), numbers((4, 4, 3), 2), numbers((1, 4, 1), 3)
    turn = (0, 1, 2) if layout == "NCW" else (0, 2, 1)
    function = getattr(portconv, f"{name}_vjp")
    y, vjp = function(*(backend.array(a) for a in (x.transpose(turn), weight, bias)), stride=2, layout=layout)
    leaves = [torch.asarray(a.astype("f8")).requires_grad_() for a in (x, weight, bias)]
    expected = getattr(torch.nn.functional, name)(leaves[0], leaves[1], leaves[2].reshape(-1), stride=2)
    dy = numbers(tuple(expected.shape), 4)
    expected.backward(torch.asarray(dy.astype("f8")))
    found = [backend.numpy(got) for got in vjp(backend.array(dy.transpose(turn)))]
    found[0] = found[0].transpose(turn)
    for got, leaf in zip(found, leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)
    refused(ValueError, ["`dy`", layout], vjp, y[..., :1])


def test_gradients_by_autograd(torch):
    x, weight = (torch.asarray(numbers(shape)).requires_grad_() for shape in ((1, 2, 9), (3, 2, 3)))
    portconv.conv1d(x, weight, stride=2).sum().backward()
    found = x.grad.clone(), weight.grad.clone()
    x.grad = weight.grad = None
    torch.nn.functional.conv1d(x, weight, stride=2).sum().backward()
    for got, leaf in zip(found, (x, weight), strict=True):
        np.testing.assert_allclose(got.numpy(), leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [portconv.conv1d, portconv.conv_transpose1d])
def test_wrong_arguments(function, nothing_runs):
    x, weight = numbers((1, 3, 9)), numbers((3, 3, 3))
    refused(ValueError, ["`x`", "3 axes", "(1, 3, 9, 1)"], function, x[..., None], weight)
    refused(ValueError, ["`weight`", "3 or 4 axes", "(3, 3)"], function, x, weight[0])
    refused(ValueError, ["`bias`", "(O,)"], function, x, weight, numbers((1, 3)))
    refused(ValueError, ["`layout`", "'NCW'", "'NCHW'"], function, x, weight, layout="NCHW")
    refused(TypeError, ["`stride`", "(2, 2)"], function, x, weight, stride=(2, 2))
    refused(ValueError, ["`padding`"], function, x, weight, padding=(1, 2, 3))
    refused(TypeError, ["`x`", "list"], function, [1.0], weight)
