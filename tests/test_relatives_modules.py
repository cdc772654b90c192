"""`Conv1d`, `ConvTranspose1d` and `Conv3d` on every library: against the functions; what they share with `Conv2d`."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import portconv
from tests.helpers import numbers, refused

# arguments of the module, shape of an image, and the function
MODULES = {
    "Conv1d": ((4, 6, 3, 2, 1, 2, 2), (2, 4, 19), portconv.conv1d),
    "ConvTranspose1d": ((4, 6, 4, 3, 1, 2, 1, 2), (2, 4, 9), portconv.conv_transpose1d),
    "Conv3d": ((4, 6, (2, 3, 3), (1, 2, 1), 1, 1, 2), (1, 4, 4, 7, 6), portconv.conv3d),
}
every_module = pytest.mark.parametrize("kind", MODULES)


def made(kind, **options):
    arguments, shape, function = MODULES[kind]
    return getattr(portconv, kind)(*arguments, rng=0, **options), numbers(shape), function, arguments[3:]


@pytest.mark.every_device
@every_module
def test_results_and_gradients(backend, kind):
    layer, x, function, rest = made(kind)
    layer.bias = numbers((6,), 3)
    expected = function(x, layer.weight, layer.bias, *rest)
    image = backend.array(x)
    for _ in range(2):  # the second time from what it remembers
        np.testing.assert_allclose(backend.numpy(layer(image)), expected, rtol=1e-4, atol=1e-5)
    assert layer.output_shape(x.shape) == expected.shape and "gemm" in layer.explain(image)
    vjp = layer.vjp(image)[1]
    dy = numbers(expected.shape, 4)
    found = [backend.numpy(gradient) for gradient in vjp(backend.array(dy))]
    of_numpy = getattr(portconv, f"{function.__name__}_vjp")(x, layer.weight, layer.bias, *rest)[1](dy)
    for got, want, like in zip(found, of_numpy, (x, layer.weight, layer.bias), strict=True):
        assert got.shape == like.shape
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@every_module
def test_parameters(kind):
    layer, x, _, _ = made(kind)
    y = layer(x)
    weight, bias = layer.state_dict()["weight"], layer.state_dict()["bias"]
    other = made(kind)[0]
    ungrouped = weight.reshape(-1, *weight.shape[2:])
    other.load_state_dict({"weight": ungrouped, "bias": bias.reshape(-1)})
    for same in (other, pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(same(x), y)
    layer.weight = np.zeros_like(weight)
    layer.bias = np.ones_like(bias)
    assert (layer(x) == 1).all()
    refused(ValueError, ["`weight`", str(weight.shape)], setattr, layer, "weight", weight[..., :-1])
    refused(ValueError, ["axes"], layer, x[0])
    refused(ValueError, ["axes"], layer.output_shape, x.shape[1:])
    refused(TypeError, ["`kernel_size`"], type(layer), 4, 6, 2.5)


@every_module
def test_recorded_parameters(torch, kind):
    """Each step has a graph of its own, also where the image is of the same size."""
    layer, x, _, _ = made(kind, backend="torch")
    layer.weight.requires_grad_()
    for _ in range(2):
        layer(torch.asarray(x)).square().sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape


@every_module
def test_pytrees(jax, kind):
    layer, x, _, _ = made(kind, backend="jax")
    image = jax.numpy.asarray(x)
    found = jax.jit(jax.grad(lambda layer: (layer(image) ** 2).sum() / 2))(layer)
    y, vjp = made(kind)[0].vjp(x)
    np.testing.assert_allclose(np.asarray(found.weight), vjp(y)[1], rtol=1e-3, atol=1e-3)


def test_layout_and_residual():
    layer, x, _, _ = made("Conv1d")
    last = made("Conv1d", layout="NWC", activation="relu")[0]
    y = layer(x)
    residual = numbers(y.shape, 5)
    found = last(x.transpose(0, 2, 1), residual=residual.transpose(0, 2, 1), out=np.empty_like(y.transpose(0, 2, 1)))
    np.testing.assert_allclose(found.transpose(0, 2, 1), np.maximum(y + residual, 0), rtol=1e-5, atol=1e-5)
    refused(portconv.UnsupportedError, ["`residual`"], made("Conv3d")[0], numbers((1, 4, 4, 7, 6)), residual=x)
