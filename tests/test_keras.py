"""`portconv.keras`: its functions beside JAX's, which they replace, and a model of Keras's without a call of JAX."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

import portconv.keras as pk
from tests.helpers import numbers, refused

FORMATS = ("channels_last", "channels_first")


def arranged(x, data_format):
    """An array with its channels last, as the format has it."""
    return np.moveaxis(x, -1, 1) if data_format == "channels_first" else x


def jax_convolution(lax, x, kernel, strides, padding, dilation, groups):
    """Channels last, by the routine that Keras calls."""
    letters = "DHW"[-(x.ndim - 2) :]
    dimensions = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=dimensions, feature_group_count=groups
    )


CASES = {
    "one axis": ((2, 11, 4), (3, 2, 6), [2], "same", 1),
    "two axes": ((2, 7, 8, 4), (2, 3, 4, 5), (2, 1), "VALID", (1, 2)),
    "two axes, sides": ((1, 5, 6, 2), (3, 3, 2, 3), 1, [(0, 2), (1, 0)], 1),
    "three axes": ((1, 4, 5, 6, 2), (2, 3, 2, 2, 3), (1, 2, 2), "same", 1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("data_format", FORMATS)
def test_convolutions_beside_jax(tier, jax, case, data_format):
    shape, kernel_shape, strides, padding, dilation = case
    x, kernel, depthwise = numbers(shape, 1), numbers(kernel_shape, 2), numbers((*kernel_shape[:-2], shape[-1], 2), 3)
    axes = len(shape) - 2
    each = [(n,) * axes if isinstance(n, int) else n for n in (strides, dilation)]
    theirs = padding.upper() if isinstance(padding, str) else padding
    options = {"strides": strides, "padding": padding, "data_format": data_format, "dilation_rate": dilation}
    for function, weight, as_jax in (
        (pk.conv, kernel, kernel),
        (pk.depthwise_conv, depthwise, depthwise.reshape(*kernel_shape[:-2], 1, -1)),
    ):
        y = function(arranged(x, data_format), weight, **options)
        groups = shape[-1] // as_jax.shape[-2]
        expected = np.asarray(jax_convolution(jax.lax, x, as_jax, each[0], theirs, each[1], groups))
        np.testing.assert_allclose(y, arranged(expected, data_format), rtol=1e-5, atol=1e-5)
    pointwise = numbers((*(1,) * axes, 2 * shape[-1], 3), 4)
    y = pk.separable_conv(arranged(x, data_format), depthwise, pointwise, **options)
    product = expected @ pointwise.reshape(-1, 3)  # the depthwise result, which came last
    np.testing.assert_allclose(y, arranged(product, data_format), rtol=1e-4, atol=1e-4)


# What Keras 3.15 with JAX makes of the pixels 1, 2, 3 and the weights 1, 10, 100, ...
TRANSPOSED = [
    # weights, strides, padding, output_padding, dilation_rate
    (2, 3, "valid", None, 1, [1, 10, 0, 2, 20, 0, 3, 30, 0]),
    (3, 2, "valid", None, 1, [1, 10, 102, 20, 203, 30, 300]),
    (2, 2, "valid", 3, 1, [1, 10, 2, 20, 3, 30, 0, 0, 0]),
    (4, 2, "same", None, 1, [10, 102, 1020, 203, 2030, 300]),
    (3, 2, "SAME", None, 1, [1, 10, 102, 20, 203, 30]),
    (3, 2, "same", 4, 1, [1, 10, 102, 20, 203, 30, 300, 0, 0]),
    (2, 1, "same", None, 2, [2, 13, 20]),
]


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("data_format", FORMATS)
def test_transposed_convolutions_as_keras_has_them(tier, axes, data_format):
    """Along every axis at once: the result is the product of the axes'."""
    for count, strides, padding, more, dilation, expected in TRANSPOSED:
        x, kernel, product = np.float32(1), np.float32(1), np.float32(1)
        for _ in range(axes):
            x = np.multiply.outer(x, np.array([1, 2, 3], np.float32))
            kernel = np.multiply.outer(kernel, 10 ** np.arange(count, dtype=np.float32))
            product = np.multiply.outer(product, np.array(expected, np.float32))
        image = arranged(x[None, ..., None], data_format)
        y = pk.conv_transpose(image, kernel[..., None, None], strides, padding, more, data_format, dilation)
        np.testing.assert_allclose(y, arranged(product[None, ..., None], data_format), rtol=1e-5, atol=1e-3)


def test_channels_of_a_transposed_convolution(tier):
    x, kernel = numbers((2, 4, 5, 3)), numbers((1, 1, 6, 3), 1)
    y = pk.conv_transpose(x, kernel, data_format="channels_last")
    np.testing.assert_allclose(y, x @ kernel[0, 0].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("data_format", FORMATS)
def test_pooling_beside_jax(tier, jax, data_format):
    for shape, size, strides, padding in (
        ((2, 9, 3), 2, None, "same"),
        ((1, 7, 8, 2), (3, 2), (2, 1), "SAME"),
        ((2, 5, 6, 7, 2), (2, 3, 2), (3, 2, 1), "same"),
        ((1, 4, 5, 6, 3), 2, 1, "valid"),
    ):
        x, axes = numbers(shape), len(shape) - 2
        window, steps = ((1, *((n,) * axes if isinstance(n, int) else n), 1) for n in (size, strides or size))
        given = arranged(x, data_format), size, strides, padding, data_format
        lax, word = jax.lax, padding.upper()
        largest = lax.reduce_window(x, -np.inf, lax.max, window, steps, word)
        np.testing.assert_array_equal(pk.max_pool(*given), arranged(np.asarray(largest), data_format))
        sums, counts = (
            lax.reduce_window(a, 0.0, lax.add, window, steps, padding.upper()) for a in (x, np.ones_like(x))
        )
        means = arranged(np.asarray(sums / counts), data_format)
        np.testing.assert_allclose(pk.average_pool(*given), means, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_changes_in_place_is_seen_and_its_copy_goes_with_it():
    x, kernel = numbers((1, 6, 6, 3)), numbers((3, 3, 3, 4), 1)
    before = len(pk._kernels)
    for factor in (1, 1, 1, -1, np.nan, np.nan):
        kernel *= factor
        np.testing.assert_array_equal(
            pk.conv(x, kernel, data_format="channels_last"), pk.conv(x, kernel.copy(), data_format="channels_last")
        )
    shape = kernel.shape
    assert pk._kept(kernel, shape) is pk._kept(kernel, shape)
    del kernel
    gc.collect()
    assert len(pk._kernels) == before


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_empty_batch(axes):
    x, kernel, last = numbers((0, *(4,) * axes, 3)), numbers((*(2,) * axes, 3, 3)), {"data_format": "channels_last"}
    assert pk.conv(x, kernel, 2, **last).shape == (0, *(2,) * axes, 3)
    assert pk.conv_transpose(x, kernel, 2, **last).shape == (0, *(8,) * axes, 3)
    assert pk.max_pool(x, 2, **last).shape == (0, *(2,) * axes, 3)


def test_wrong_arguments(nothing_runs):
    x, kernel, last = numbers((1, 6, 6, 4)), numbers((3, 3, 3, 4)), {"data_format": "channels_last"}
    refused(ValueError, ["`kernel`", "3 input channels", "4 channels", "(1, 6, 6, 4)"], pk.conv, x, kernel, **last)
    refused(ValueError, ["`kernel`", "3 input channels"], pk.depthwise_conv, x, kernel, **last)
    refused(ValueError, ["`kernel`", "as many axes"], pk.conv, x, kernel[0], **last)
    refused(ValueError, ["`inputs`", "one to three axes"], pk.conv, x[0, 0], kernel, **last)
    refused(ValueError, ["`kernel`", "5 input channels"], pk.conv_transpose, x, numbers((3, 3, 4, 5)), **last)
    kernel = numbers((3, 3, 4, 4))
    refused(ValueError, ["`strides`", "2 of them"], pk.conv, x, kernel, (1, 1, 1), **last)
    refused(ValueError, ["`padding`", "'same'", "'full'"], pk.conv, x, kernel, padding="full", **last)
    refused(ValueError, ["`padding`", "2 pairs"], pk.conv, x, kernel, padding=1, **last)
    refused(ValueError, ["`data_format`", "'NHWC'"], pk.conv, x, kernel, data_format="NHWC")
    refused(ValueError, ["`output_padding`"], pk.conv_transpose, x, kernel, 2, "same", -1, **last)
    refused(TypeError, ["`pool_size[0]`"], pk.max_pool, x, (2.5, 2), **last)


def test_who_named_no_back_end_of_keras_is_told_how(tmp_path, monkeypatch):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("import tensorflow")  # as Keras does by itself
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    refused(ImportError, ["tensorflow", "KERAS_BACKEND to 'numpy' before"], pk.install)


def test_a_model_without_a_call_of_jax(run_python):
    pytest.importorskip("keras", reason="it is not installed")
    out = run_python(
        """
        import importlib, sys, types
        import numpy as np
        import keras, portconv.keras
        from keras.src.ops import nn as ops

        nn = importlib.import_module("keras.src.backend.numpy.nn")
        layers = keras.layers
        x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
        model = keras.Sequential([
            keras.Input(x.shape[1:]), layers.Conv2D(8, 3, 2, "same", activation="relu"), layers.DepthwiseConv2D(3),
            layers.SeparableConv2D(4, 3, padding="same"), layers.Conv2DTranspose(4, 3, 2, "same"),
            layers.MaxPooling2D(2), layers.AveragePooling2D(3, 1, "same"), layers.Reshape((6, 24)),
            layers.Conv1D(4, 3, padding="causal"), layers.Flatten(), layers.Dense(5),
        ])
        expected, own = model.predict(x, verbose=0), nn.conv

        answer = keras.config.backend
        keras.config.backend = lambda: "torch"
        try:
            portconv.keras.install()
        except RuntimeError as error:
            print(error)
        keras.config.backend = answer
        assert nn.conv is own

        portconv.keras.install()
        portconv.keras.install()
        assert nn.conv is portconv.keras.conv and keras.src.backend.nn.max_pool is portconv.keras.max_pool
        jax = nn.jax, nn.lax
        nn.jax = nn.lax = types.SimpleNamespace()  # which has nothing to call
        close = dict(rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, **close)
        kernel = keras.Variable(np.ones((3, 3, 3, 4), np.float32))
        ones = keras.ops.conv(x.tolist(), kernel)
        kernel.assign(2 * kernel)
        np.testing.assert_allclose(keras.ops.conv(x, kernel), 2 * ones, **close)

        portconv.keras.uninstall()
        nn.jax, nn.lax = jax
        assert nn.conv is own
        np.testing.assert_allclose(keras.ops.conv(x, kernel), 2 * ones, **close)
        """,
        KERAS_BACKEND="numpy",
    )
    assert "KERAS_BACKEND" in out and "'torch'" in out
