"""Layers as pytrees of JAX: arguments and results of functions that are transformed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d, reference_gradients
from tests.helpers import numbers

X = numbers((2, 4, 9, 8))
LAYERS = {
    "plain": {"padding": 1},
    "grouped, without bias": {"groups": 2, "bias": False},
    "NHWC": {"layout": "NHWC", "stride": 2},
    "in JAX": {"backend": "jax"},
}


class Named(portconv.Conv2d):
    """A layer with something of its own."""

    def __init__(self, *args, scale, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def __call__(self, x):
        return super().__call__(x) * self.scale


def layer_of(name, seed=0):
    return portconv.Conv2d(4, 6, 3, **LAYERS[name], rng=seed)


def result_of(layer, x):
    """By float64 sums; image and result NCHW."""
    state = layer.state_dict()
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    return reference_conv2d(x, state["weight"], state.get("bias"), **options)


def image_of(jax, layer, x=X):
    return jax.numpy.asarray(x if layer.layout == "NCHW" else x.transpose(0, 2, 3, 1))


def nchw(layer, y):
    return np.asarray(y if layer.layout == "NCHW" else y.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("name", LAYERS)
def test_leaves(jax, name):
    layer = layer_of(name)
    leaves, structure = jax.tree.flatten(layer)
    assert all(a is b for a, b in zip(leaves, layer.parameters(), strict=True))
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is portconv.Conv2d
    assert again.weight is layer.weight and again.bias is layer.bias
    assert repr(again) == repr(layer)
    assert jax.tree.structure(again) == structure == jax.tree.structure(layer_of(name, seed=1))
    assert hash(structure) == hash(jax.tree.structure(layer_of(name, seed=1)))
    assert structure != jax.tree.structure(portconv.Conv2d(4, 6, 3, dilation=2, rng=0))
    assert_close(nchw(layer, again(image_of(jax, layer))), result_of(layer, X))


def test_leaves_have_names(jax):
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path({"a": layer_of("plain")})]
    assert paths == ["['a'].bias", "['a'].weight"]


@pytest.mark.parametrize("leaf", [None, 1, "text", object(), (3, 4), np.ones(3)], ids=lambda leaf: type(leaf).__name__)
def test_leaves_may_be_anything(jax, leaf):
    layer = jax.tree.map(lambda _: leaf, layer_of("plain"))
    assert layer.weight is leaf and layer.bias is leaf
    assert "Conv2d(4, 6" in repr(layer)
    with pytest.raises((TypeError, ValueError), match=r"`(bias|weight)` must (be an array|have shape)"):
        layer(X)


@pytest.mark.parametrize("name", LAYERS)
def test_an_argument_of_a_jitted_function(jax, name):
    traces = []

    @jax.jit
    def call(layer, x):
        traces.append(1)
        return layer(x)

    for seed in range(3):  # other weights, in other layers
        layer = layer_of(name, seed)
        with jax.checking_leaks():
            y = call(layer, image_of(jax, layer))
        assert_close(nchw(layer, y), result_of(layer, X))
        layer.weight = 2 * np.asarray(layer.weight)
        assert_close(nchw(layer, call(layer, image_of(jax, layer))), result_of(layer, X))
        assert_close(nchw(layer, layer(image_of(jax, layer))), result_of(layer, X))
    assert len(traces) == 1


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("jit", [False, True])
def test_a_gradient_is_a_layer(jax, name, jit):
    layer = layer_of(name)
    image, state = image_of(jax, layer), layer.state_dict()
    dy = numbers(layer(image).shape, 1)
    gradient = jax.grad(lambda layer: (layer(image) * dy).sum())
    found = (jax.jit(gradient) if jit else gradient)(layer)
    assert type(found) is portconv.Conv2d
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    _, weight, bias = reference_gradients(X, state["weight"], nchw(layer, dy), **options)
    assert_close(np.asarray(found.weight), weight)
    if "bias" in state:
        assert_close(np.asarray(found.bias), bias.each(lambda a: a.reshape(1, -1, 1, 1)))
    else:
        assert found.bias is None
    updated = jax.tree.map(lambda parameter, change: parameter - 0.1 * change, layer, found)
    for library in (jax.numpy.asarray, np.asarray):  # JAX's arrays in a layer of NumPy's
        assert_close(nchw(layer, updated(library(image))), result_of(updated, X))
    np.testing.assert_allclose(updated.state_dict()["weight"], state["weight"] - 0.1 * np.asarray(found.weight), 1e-6)


def test_training(jax):
    target, layer = layer_of("plain", 1), layer_of("plain", 2)
    x, traces = jax.numpy.asarray(X), []
    wanted = target(x)

    @jax.jit
    def step(layer):
        traces.append(1)
        loss, gradient = jax.value_and_grad(lambda layer: ((layer(x) - wanted) ** 2).mean())(layer)
        return jax.tree.map(lambda p, g: p - 0.5 * g, layer, gradient), loss

    losses = []
    for _ in range(30):
        layer, loss = step(layer)
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]
    assert len(traces) <= 2  # NumPy's parameters once, JAX's later


@pytest.mark.parametrize("shared", ["none", "image"])
def test_stacked_layers(jax, shared):
    layers = [layer_of("plain", seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *layers)
    assert stacked.weight.shape == (3, 6, 4, 3, 3)
    x = jax.numpy.asarray(numbers((3, *X.shape)) if shared == "none" else X)
    every = jax.vmap(lambda layer, x: layer(x), in_axes=(0, 0 if shared == "none" else None))(stacked, x)
    for i, layer in enumerate(layers):
        assert_close(np.asarray(every[i]), result_of(layer, np.asarray(x[i] if shared == "none" else x)))
    with pytest.raises(ValueError, match=r"`weight` must have shape \(6, 4, 3, 3\), but got \(3, 6, 4, 3, 3\)"):
        stacked(X)


def test_every_transformation(jax):
    layer, x = layer_of("plain"), jax.numpy.asarray(X)

    def loss(layer, x):
        return (layer(x) ** 2).mean()

    expected = jax.grad(loss)(layer, x)
    for found in (
        jax.grad(jax.checkpoint(loss))(layer, x),
        jax.jit(jax.grad(jax.checkpoint(loss)))(layer, x),
        jax.jacfwd(loss)(layer, x),
        jax.jacrev(loss)(layer, x),
        jax.tree.map(lambda a: a.mean(0), jax.vmap(jax.grad(loss), (None, 0))(layer, x[:, None])),
    ):
        np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.bias, expected.bias, rtol=1e-4, atol=1e-6)
    tangent = jax.tree.map(lambda a: jax.numpy.ones(a.shape), layer)
    _, change = jax.jvp(lambda layer: loss(layer, x), (layer,), (tangent,))
    wanted = sum(float(leaf.sum()) for leaf in jax.tree.leaves(expected))
    np.testing.assert_allclose(change, wanted, rtol=1e-4)
    carried, _ = jax.lax.scan(lambda layer, x: (layer, layer(x[None])), layer, x)
    assert type(carried) is portconv.Conv2d
    assert_close(np.asarray(layer(x)), result_of(layer, X))  # and nothing of a trace is left


def test_an_image_of_another_library_while_the_weight_is_traced(jax):
    layer = layer_of("plain")
    with pytest.raises(TypeError, match="`x` is an array of numpy, but the values of `weight` are not known"):
        jax.grad(lambda layer: layer(X).sum())(layer)


def test_mixed_precision(jax):
    layer = jax.tree.map(lambda a: jax.numpy.asarray(a, "bfloat16"), layer_of("plain"))
    assert layer(jax.numpy.asarray(X, "bfloat16")).dtype == "bfloat16"
    assert layer(jax.numpy.asarray(X)).dtype == "float32"


def test_attributes_are_static(jax):
    layer = Named(4, 6, 3, rng=0, scale=3.0)
    again = jax.tree.map(lambda a: 2 * a, layer)
    assert type(again) is Named and again.scale == 3.0
    y = jax.jit(lambda layer, x: layer(x))(layer, X)
    assert_close(np.asarray(y), result_of(layer, X).each(lambda a: 3 * a))
    assert jax.tree.structure(layer) != jax.tree.structure(Named(4, 6, 3, rng=0, scale=4.0))


def test_arrays_of_jax_in_a_layer_of_numpy_are_kept_as_others(jax):
    layer = jax.tree.map(jax.numpy.asarray, layer_of("plain"))
    expected = result_of(layer, X)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(other.weight, np.ndarray)
        assert_close(other(X), expected)
        assert jax.tree.structure(other) == jax.tree.structure(layer)
    other = layer_of("plain", 1)
    other.load_state_dict(layer.state_dict())
    assert_close(other(X), expected)
    assert isinstance(layer.to("jax").weight, jax.Array)


@pytest.mark.parametrize("then", ["portconv.Conv2d(1, 1, 1)", "conv(x)", "pickle.loads(pickle.dumps(conv))"])
def test_a_layer_that_was_made_before_jax_was_imported(run_python, jax, then):
    run_python(f"""
        import pickle, portconv
        conv = portconv.Conv2d(3, 4, 3, rng=0)
        import jax
        x = jax.numpy.ones((1, 3, 5, 5))
        {then}
        assert jax.jit(lambda conv, x: conv(x))(conv, x).shape == (1, 4, 3, 3)
    """)


def test_jax_is_not_imported(run_python):
    run_python("""
        import sys, numpy, portconv
        portconv.Conv2d(3, 4, 3)(numpy.ones((1, 3, 5, 5), "f4"))
        assert "jax" not in sys.modules
    """)
