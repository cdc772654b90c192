"""Laws that hold for every convolution, on random problems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import portconv
from portconv.testing import assert_close, error_bound, reference_conv2d

ENGINES = ("gemm", "fft", "direct")
engines = st.sampled_from(ENGINES)
pytestmark = pytest.mark.usefixtures("tier")
seeds = st.integers(0, 2**32 - 1)


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def problems(draw, max_size=14, max_kernel=5):
    """X NCHW, weight, bias or None, and the arguments, of a problem that is valid."""
    groups = draw(st.integers(1, 3))
    inputs, outputs, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 3))
    kernel, size = draw(pairs(1, max_kernel)), draw(pairs(1, max_size))
    stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 3))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    limits = {"reflect": (size[0] - 1, size[1] - 1), "circular": size}.get(mode, (6, 6))
    padding = tuple(draw(st.tuples(st.integers(0, min(limit, 6)), st.integers(0, min(limit, 6)))) for limit in limits)
    for axis in (0, 1):
        assume(dilation[axis] * (kernel[axis] - 1) + 1 <= size[axis] + sum(padding[axis]))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    rng = np.random.default_rng(draw(seeds))
    x = rng.standard_normal((batch, groups * inputs, *size)).astype("f4")
    weight = rng.standard_normal((groups, outputs, inputs, *kernel)).astype("f4")
    if draw(st.booleans()):
        weight = weight.reshape(groups * outputs, inputs, *kernel)
    bias = rng.standard_normal((1, groups * outputs, 1, 1)).astype("f4") if draw(st.booleans()) else None
    return x, weight, bias, options


def bound_of(x, weight, bias, options):
    """The exact result and the error that each of two engines may make."""
    expected = reference_conv2d(x, weight, bias, **options)
    return expected.y, error_bound(expected, "float32")


@given(problems(), engines, st.sampled_from(["NCHW", "NHWC"]))
def test_within_the_bound(problem, engine, layout):
    x, weight, bias, options = problem
    if layout == "NHWC":
        x = x.transpose(0, 2, 3, 1)
    y = portconv.conv2d(x, weight, bias, **options, layout=layout, engine=engine)
    assert portconv.plan_conv2d(x, weight, bias, **options, layout=layout, engine=engine).engine == engine
    assert_close(y, reference_conv2d(x, weight, bias, **options, layout=layout))


@given(problems(max_size=60, max_kernel=21), engines)
def test_within_the_bound_with_large_kernels(problem, engine):
    x, weight, bias, options = problem
    y = portconv.conv2d(x, weight, bias, **options, engine=engine)
    assert_close(y, reference_conv2d(x, weight, bias, **options))


@given(problems(), st.sampled_from(["gemm", "direct", "auto"]))
def test_within_the_strict_bound(problem, engine):
    x, weight, bias, options = problem
    y = portconv.conv2d(x, weight, bias, **options, engine=engine, accuracy="elementwise")
    assert_close(y, reference_conv2d(x, weight, bias, **options), accuracy="elementwise")


@given(problems(max_size=30, max_kernel=7), seeds, engines)
def test_nonfinite_values_stay(problem, seed, engine):
    x, weight, bias, options = problem
    assume(x.size)
    rng = np.random.default_rng(seed)
    x.flat[rng.integers(0, x.size, 2)] = rng.choice([np.nan, np.inf, -np.inf], 2)
    y = portconv.conv2d(x, weight, bias, **options, engine=engine)
    assert_close(y, reference_conv2d(x, weight, bias, **options))


@given(problems())
def test_output_shape(problem):
    x, weight, bias, options = problem
    shape = portconv.conv2d_output_shape(x.shape, weight.shape, **options)
    assert (
        shape
        == portconv.conv2d(x, weight, bias, **options).shape
        == reference_conv2d(x, weight, bias, **options)[0].shape
    )
    (top, bottom), (left, right) = options["padding"]
    (sh, sw), (dh, dw) = options["stride"], options["dilation"]
    rows = (x.shape[2] + top + bottom - dh * (weight.shape[-2] - 1) - 1) // sh + 1
    columns = (x.shape[3] + left + right - dw * (weight.shape[-1] - 1) - 1) // sw + 1
    assert shape[2:] == (rows, columns)


@given(problems())
def test_engines_agree(problem):
    x, weight, bias, options = problem
    _, bound = bound_of(x, weight, bias, options)
    first, *others = (portconv.conv2d(x, weight, bias, **options, engine=engine) for engine in ENGINES)
    for other in others:
        assert (np.abs(first.astype("f8") - other) <= 2 * bound).all()


@given(problems(), seeds, st.floats(-3, 3, width=32), engines)
def test_linear_in_x_and_in_the_weight(problem, seed, factor, engine):
    x, weight, _, options = problem
    rng = np.random.default_rng(seed)

    def convolve(a, b):
        return portconv.conv2d(a, b, **options, engine=engine).astype("f8")

    for arguments in ("x", "weight"):
        first = x if arguments == "x" else weight
        second = rng.standard_normal(first.shape).astype("f4")
        total = (first + np.float32(factor) * second).astype("f4")
        call = (lambda a: convolve(a, weight)) if arguments == "x" else (lambda a: convolve(x, a))
        magnitude = np.abs(first) + abs(factor) * np.abs(second)
        whole = (magnitude, np.abs(weight)) if arguments == "x" else (np.abs(x), magnitude)
        _, bound = bound_of(*whole, None, options)
        assert (np.abs(call(total) - call(first) - factor * call(second)) <= 3 * bound).all()


@given(seeds, pairs(3, 9), pairs(1, 3), pairs(1, 4), engines)
def test_a_shifted_image_gives_a_shifted_result(seed, size, stride, shift, engine):
    rng = np.random.default_rng(seed)
    image, weight = rng.standard_normal((1, 2, *size)).astype("f4"), rng.standard_normal((3, 2, 3, 3)).astype("f4")
    (sh, sw), (rows, columns) = stride, shift

    def embed(top, left):
        x = np.zeros((1, 2, 40, 40), "f4")
        x[:, :, top : top + size[0], left : left + size[1]] = image
        return portconv.conv2d(x, weight, stride=stride, engine=engine), x

    (before, x), (after, _) = embed(4, 4), embed(4 + rows * sh, 4 + columns * sw)
    moved = np.roll(before, shift, axis=(2, 3))
    bound = error_bound(reference_conv2d(x, weight, stride=stride), "float32").max()
    assert np.abs(after.astype("f8") - moved)[:, :, 4:, 4:].max() <= 2 * bound


@given(problems(), engines)
def test_groups_are_convolutions_of_their_own(problem, engine):
    x, weight, bias, options = problem
    groups = options["groups"]
    single = {**options, "groups": 1}
    parts = zip(
        np.split(x, groups, axis=1),
        weight.reshape(groups, -1, *weight.shape[-3:]),
        [None] * groups if bias is None else np.split(bias, groups, axis=1),
        strict=True,
    )
    stacked = np.concatenate([portconv.conv2d(*part, **single, engine=engine) for part in parts], axis=1)
    y = portconv.conv2d(x, weight, bias, **options, engine=engine)
    assert y.shape == stacked.shape
    assert (np.abs(y.astype("f8") - stacked) <= 2 * bound_of(x, weight, bias, options)[1]).all()


@given(problems(), engines)
def test_a_batch_is_its_images(problem, engine):
    x, weight, bias, options = problem
    assume(len(x))
    y = portconv.conv2d(x, weight, bias, **options, engine=engine)
    images = np.concatenate([portconv.conv2d(image[None], weight, bias, **options, engine=engine) for image in x])
    assert (np.abs(y.astype("f8") - images) <= 2 * bound_of(x, weight, bias, options)[1]).all()


@given(problems(), engines)
def test_layouts_differ_in_the_order_of_axes_only(problem, engine):
    x, weight, bias, options = problem
    first = portconv.conv2d(x, weight, bias, **options, engine=engine)
    last = portconv.conv2d(
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)), weight, bias, **options, layout="NHWC", engine=engine
    )
    assert (np.abs(first.astype("f8") - last.transpose(0, 3, 1, 2)) <= 2 * bound_of(x, weight, bias, options)[1]).all()


@given(seeds, pairs(1, 12), st.integers(1, 4), pairs(0, 3), st.booleans(), engines)
def test_a_delta_is_the_identity(seed, size, channels, half, grouped, engine):
    kernel = (2 * half[0] + 1, 2 * half[1] + 1)
    x = np.random.default_rng(seed).standard_normal((2, channels, *size)).astype("f4")
    weight = np.zeros((channels, 1 if grouped else channels, *kernel), "f4")
    for channel in range(channels):
        weight[channel, 0 if grouped else channel, half[0], half[1]] = 1
    y = portconv.conv2d(x, weight, padding=half, groups=channels if grouped else 1, engine=engine)
    if engine == "fft":
        assert_close(y, reference_conv2d(x, weight, padding=half, groups=channels if grouped else 1))
    else:
        np.testing.assert_array_equal(y, x)


@given(problems(), engines)
def test_explicit_padding_is_padding(problem, engine):
    """Padding by hand and then none gives the same."""
    x, weight, bias, options = problem
    assume(len(x))
    mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[options["padding_mode"]]
    padded = np.pad(x, ((0, 0), (0, 0), *options["padding"]), mode=mode)
    y = portconv.conv2d(x, weight, bias, **options, engine=engine)
    by_hand = portconv.conv2d(padded, weight, bias, **{**options, "padding": 0}, engine=engine)
    assert (np.abs(y.astype("f8") - by_hand) <= 2 * bound_of(x, weight, bias, options)[1]).all()
