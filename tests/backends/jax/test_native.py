"""JAX's own convolution: where it is offered, that it is asked for what is meant, and that it keeps the bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d, reference_gradients
from tests.helpers import numbers


def under_jit(jax, *arrays, **options):
    """The result in a function that is traced."""
    return jax.jit(lambda *given: portconv.conv2d(*given, **options, engine="native"))(*arrays)


def at_once(jax, *arrays, **options):
    """The result of arrays that have values."""
    return portconv.conv2d(*map(jax.numpy.asarray, arrays), **options, engine="native")


@pytest.mark.parametrize("way", [under_jit, at_once])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_all_arguments(jax, padding_mode, layout, way):
    x, weight, bias = numbers((2, 4, 9, 11)), numbers((6, 2, 3, 3), 1), numbers((6,), 2)
    for options in (
        {},
        {"padding": 2, "stride": (2, 1)},
        {"padding": ((3, 0), (1, 2)), "dilation": (1, 2)},
        {"padding": "same"},
        {"stride": (3, 2)},  # the last columns are read by no output
    ):
        options = {**options, "groups": 2, "padding_mode": padding_mode}
        image = x if layout == "NCHW" else x.transpose(0, 2, 3, 1)
        y = np.asarray(way(jax, image, weight, bias, **options, layout=layout))
        assert_close(y if layout == "NCHW" else y.transpose(0, 3, 1, 2), reference_conv2d(x, weight, bias, **options))


@pytest.mark.parametrize("way", [under_jit, at_once])
@pytest.mark.parametrize(("accuracy", "channels", "kernel"), [("normwise", 512, 3), ("elementwise", 2048, 1)])
def test_long_sums_keep_the_bound(jax, accuracy, channels, kernel, way):
    """XLA itself is off by 51 and by 22 eps c on a CPU, where all terms are alike."""
    x, weight = np.full((1, channels, 9, 9), 0.1, "f4"), np.full((4, channels, kernel, kernel), 0.3, "f4")
    y = way(jax, x, weight, padding=1, accuracy=accuracy)
    assert_close(np.asarray(y), reference_conv2d(x, weight, padding=1), accuracy=accuracy)


@pytest.mark.parametrize("way", [under_jit, at_once])
def test_sums_in_parts_are_those_of_all_arguments(jax, way):
    x, weight, bias = numbers((2, 12, 20, 21)), numbers((6, 6, 9, 7), 1), numbers((6,), 2)
    for options in ({"padding": (3, 4)}, {"stride": 2, "padding": 1}, {"padding": ((5, 0), (1, 2))}, {"dilation": 2}):
        y = way(jax, x, weight, bias, **options, groups=2)
        assert_close(np.asarray(y), reference_conv2d(x, weight, bias, **options, groups=2))


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        # in XLA's words the padding of the image's gradient is negative there, and of memory that is not its own
        ((2, 16, 28, 14), (8, 16, 3, 3), {"padding": ((5, 2), (4, 1))}),
        ((2, 16, 28, 14), (8, 16, 1, 1), {"padding": ((1, 0), (0, 2))}),
        # what no output reads
        ((1, 16, 28, 15), (8, 16, 3, 3), {"padding": ((2, 1), (0, 0)), "stride": 2}),
        ((1, 16, 28, 28), (8, 16, 1, 1), {"stride": 2}),
        ((2, 4, 9, 10), (8, 1, 3, 2), {"padding": 1, "groups": 4, "dilation": (1, 2), "stride": (2, 1)}),
        # in parts
        ((2, 30, 9, 10), (4, 30, 3, 3), {"padding": ((4, 1), (0, 3)), "stride": (1, 2)}),
        ((2, 4, 9, 10), (8, 4, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients(jax, x_shape, weight_shape, options, layout):
    x, weight, bias = numbers(x_shape), numbers(weight_shape, 1), numbers((weight_shape[0],), 2)
    order = (0, 1, 2, 3) if layout == "NCHW" else (0, 2, 3, 1)
    dy = numbers(portconv.conv2d_output_shape(x_shape, weight_shape, **options), 3)

    def gradients(x, weight, bias, dy):
        _, vjp = jax.vjp(
            lambda *given: portconv.conv2d(*given, **options, layout=layout, engine="native"), x, weight, bias
        )
        return vjp(dy)

    dx, dweight, dbias = jax.jit(gradients)(x.transpose(order), weight, bias, dy.transpose(order))
    found = np.transpose(dx, np.argsort(order)), dweight, dbias
    for gradient, reference in zip(found, reference_gradients(x, weight, dy, **options), strict=True):
        assert_close(np.asarray(gradient), reference.each(lambda a, like=gradient: a.reshape(like.shape)))


def test_derivatives_of_second_order(jax, torch):
    x, weight = numbers((1, 2, 6, 5)), numbers((3, 2, 3, 2))

    def of_jax(x, weight):
        return (portconv.conv2d(x, weight, padding=((1, 3), (0, 1)), stride=(2, 1), engine="native") ** 3).sum()

    def of_torch(x, weight):
        padded = torch.nn.functional.pad(x, (0, 1, 1, 3))
        return (torch.nn.functional.conv2d(padded, weight, stride=(2, 1)) ** 3).sum()

    wide = tuple(torch.tensor(a, dtype=torch.float64) for a in (x, weight))
    exact = torch.autograd.functional.hessian(of_torch, wide)
    for transform in (jax.hessian, lambda *given: jax.jacrev(jax.jacrev(*given), given[1])):
        found = jax.jit(transform(of_jax, (0, 1)))(x, weight)
        for row, right in zip(found, exact, strict=True):
            for got, wanted in zip(row, right, strict=True):
                np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2])
def test_nonfinite_values_stay_in_their_group(jax, channels):
    x, weight = numbers((2, 4 * channels, 9, 8)), numbers((8, channels, 3, 3), 1)
    x[0, 0, 4, 4], x[1, -1, 2, 2] = np.nan, np.inf
    expected = reference_conv2d(x, weight, groups=4)
    for way in (under_jit, at_once):
        assert_close(np.asarray(way(jax, x, weight, groups=4)), expected)


def test_where_it_is_left_out(jax):
    from portconv.backends.jax import native

    problem = portconv.plan_conv2d((1, 1, 9, 9), (4, 1, 3, 3), accuracy="elementwise", backend="jax").problem
    assert native.native_candidate(problem, "cpu").why_not is None
    assert native.native_candidate(problem, "").why_not is None
    assert "element by element" in native.native_candidate(problem, "gpu").why_not
    grouped = dataclasses.replace(problem, dtype="float64", groups=3, in_channels=3, out_channels=3)
    assert "NaN" in native.native_candidate(grouped, "").why_not
    assert native.native_candidate(dataclasses.replace(grouped, dtype="float32"), "").why_not is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("way", [under_jit, at_once])
def test_half_precision_is_summed_in_float32(jax, dtype, way):
    x, weight, bias = (jax.numpy.asarray(a, dtype) for a in (np.ones((1, 20, 4, 4)), np.ones((2, 20, 3, 3)), [0.5, 1]))
    for some in ((x, weight), (x, weight, bias)):
        y = way(jax, *some)
        assert y.dtype == dtype
        exact = reference_conv2d(*(np.asarray(a, "f4") for a in some))
        assert_close(np.asarray(y, "f4"), exact, dtype=dtype)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_each_platform_has_its_own_program(jax, platform, dtype):
    """Only on a CPU are long sums cut; only there are 16 bits cast, where nothing is to be added to the result."""
    arrays = jax.numpy.ones((1, 128, 6, 6), dtype), jax.numpy.ones((4, 128, 3, 3), dtype)
    function = jax.jit(lambda *given: portconv.conv2d(*given, engine="native"))
    text = function.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    operands = {line.rpartition(": (")[2] for line in text.splitlines() if "stablehlo.convolution" in line}
    assert operands
    cast = dtype == "float16" and platform == "cuda"
    assert all(("xf16>" in types) == cast for types in operands)
    assert ("tensor<1x128x6x6x" in "".join(operands)) == (platform == "cuda")


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "engine"),
    [
        ((1, 3, 224, 224), (64, 3, 7, 7), "native"),
        ((1, 256, 28, 28), (256, 256, 1, 1), "gemm"),
        ((1, 64, 56, 56), (64, 1, 3, 3), "direct"),  # XLA has no fast form for many groups
        # whose program in `gemm` would be compiled for minutes
        ((1, 128, 56, 56), (128, 1, 31, 31), "direct"),
        ((1, 64, 128, 128), (64, 64, 15, 15), "native"),
    ],
    ids=str,
)
def test_what_is_chosen_under_jit(jax, plans, x_shape, weight_shape, engine):
    groups = x_shape[1] // weight_shape[1]
    shapes = (jax.ShapeDtypeStruct(shape, "float32") for shape in (x_shape, weight_shape))
    jax.eval_shape(lambda x, weight: portconv.conv2d(x, weight, groups=groups, padding="same"), *shapes)
    assert plans[0].engine == engine


def test_arrays_with_values_are_convolved_by_numpys_engines(jax):
    """XLA would compile its own for each size."""
    for x, weight in (((1, 64, 56, 56), (64, 64, 3, 3)), ((8, 3, 224, 224), (64, 3, 7, 7))):
        assert portconv.plan_conv2d(x, weight, backend="jax").engine != "native"
