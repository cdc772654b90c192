"""Gradients by NumPy's engines, against float64 sums tap by tap; and what MLX makes of them, to the second order."""

from __future__ import annotations

import math

import numpy as np
import pytest

import portconv
from portconv.check.problems import problems
from portconv.cpu import gradient
from portconv.testing import assert_close, make_data, reference_gradients

NUMPY_DTYPES = ("float16", "float32", "float64")
PROBLEMS = [
    p for p in problems(0, 90)
    if not p.mistake and not p.slow and p.dtype in NUMPY_DTYPES and not p.x_dtype
    and {p.data, p.kernel} <= {"normal", "constant"}
]  # fmt: skip


def numbers(shape, seed=0, dtype="f4"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def gradients(x, weight, dy, **options):
    p = portconv.plan_conv2d(x, weight, **options).problem
    dx, dweight = gradient.image_gradient(p, weight, dy), gradient.weight_gradient(p, x, dy)
    dbias = gradient.bias_gradient(p, dy)
    assert (dx.shape, dweight.shape, dbias.shape) == (x.shape, p.weight_shape, (p.out_channels,))
    assert dx.dtype == dweight.dtype == dbias.dtype == p.dtype
    return dx, dweight.reshape(weight.shape), dbias


@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: f"{p.number} {p.name}")
def test_within_the_bound(p, tier):
    data = make_data(p)
    x = data.x if p.argument("layout") == "NCHW" else data.x.transpose(0, 2, 3, 1)
    dy = numbers(portconv.conv2d_output_shape(x.shape, p.weight_shape, **p.arguments), dtype=p.dtype)
    if p.data == "constant":
        dy[...] = 0.1
    found = gradients(x, data.weight, dy, **p.arguments)
    for got, exact in zip(found, reference_gradients(x, data.weight, dy, **p.arguments), strict=True):
        assert_close(got, exact, dtype=p.dtype)


@pytest.mark.parametrize("data", ["normal", "constant"])
@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
def test_sums_over_many_positions(data, accuracy, tier):
    """Those of the weight's gradient are as long as the batch."""
    x, dy = numbers((6, 3, 90, 88)), numbers((6, 4, 90, 88), 1)
    if data == "constant":
        x[...], dy[...] = 0.1, 0.1
    weight = numbers((4, 3, 3, 3), 2)
    found = gradients(x, weight, dy, padding=1, accuracy=accuracy)
    for got, exact in zip(found, reference_gradients(x, weight, dy, padding=1), strict=True):
        assert_close(got, exact, accuracy=accuracy)


@pytest.mark.parametrize("shape", [(1, 1, 500, 1000), (1, 3, 250, 1000), (4001, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_gradient_of_the_bias_in_float64(shape, layout):
    """There is no wider dtype to sum it in; constant terms show what one sum after the other would lose."""
    outputs = shape[1]
    p = portconv.plan_conv2d(
        shape if layout == "NCHW" else (*shape[:1], *shape[2:], outputs), (outputs, outputs, 1, 1),
        layout=layout, dtype="float64",
    ).problem  # fmt: skip
    found = gradient.bias_gradient(p, np.full(p.out_shape, 0.1))
    count = np.prod(shape) // outputs
    assert found.shape == (outputs,)
    assert np.abs(found - math.fsum(np.full(count, 0.1))).max() <= 8 * np.finfo(np.float64).eps * 0.1 * count


def test_arguments_are_left_as_they_are(tier):
    x, weight, dy = numbers((2, 4, 9, 8)), numbers((6, 2, 3, 3)), numbers((2, 6, 5, 4))
    copies = [a.copy() for a in (x, weight, dy)]
    options = {"stride": 2, "padding": 1, "groups": 2}
    expected = gradients(x, weight, dy, **options)
    views = [np.asfortranarray(a) for a in copies]
    for a in views:
        a.flags.writeable = False
    for got, same in zip(gradients(*views, **options), expected, strict=True):
        np.testing.assert_allclose(got, same, rtol=1e-5, atol=1e-5)
    for a, b in zip((x, weight, dy), copies, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_not_finite_stays_where_it_belongs(tier):
    x, weight, dy = numbers((1, 1, 12, 12)), numbers((1, 1, 3, 3)), numbers((1, 1, 12, 12), 1)
    dy[0, 0, 5, 6] = np.nan
    dx, dweight, dbias = gradients(x, weight, dy, padding=1)
    expected = np.zeros((12, 12), bool)
    expected[4:7, 5:8] = True
    np.testing.assert_array_equal(np.isnan(dx[0, 0]), expected)
    assert np.isnan(dweight).all()
    assert np.isnan(dbias).all()


# --- on MLX -----------------------------------------------------------------------------------------------------------

ORDERS = {
    "jvp": lambda mx, f, a, t: mx.jvp(f, a, t)[1],
    "grad of grad": lambda mx, f, a, t: mx.grad(
        lambda *a: sum((g * s).sum() for g, s in zip(first(mx, f)(*a), t, strict=True)), argnums=(0, 1, 2)
    )(*a),
    "jvp of grad": lambda mx, f, a, t: mx.jvp(first(mx, f), a, t)[1],
    "grad of jvp": lambda mx, f, a, t: mx.grad(lambda *a: (mx.jvp(f, list(a), t)[1][0] ** 2).sum(), argnums=(0, 1, 2))(
        *a
    ),
    "grad of compile": lambda mx, f, a, t: mx.grad(mx.compile(loss(f)), argnums=(0, 1, 2))(*a),
    "compile of grad": lambda mx, f, a, t: mx.compile(first(mx, f))(*a),
    "grad of vmap": lambda mx, f, a, t: mx.grad(
        lambda x: (mx.vmap(lambda x: f(x, *a[1:]))(mx.stack([x, 2 * x])) ** 2).sum()
    )(a[0]),
    "vmap of grad": lambda mx, f, a, t: mx.vmap(first(mx, f), in_axes=(None, 0, None))(
        a[0], mx.stack([a[1], t[1]]), a[2]
    ),
    "compile of jvp": lambda mx, f, a, t: mx.compile(lambda *a: mx.jvp(f, list(a), t)[1])(*a),
    "jvp of vmap": lambda mx, f, a, t: mx.jvp(
        lambda x: mx.vmap(lambda x: f(x, *a[1:]))(x), [mx.stack(2 * a[:1])], [mx.stack(2 * t[:1])]
    )[1],
    "checkpoint": lambda mx, f, a, t: mx.grad(mx.checkpoint(loss(f)), argnums=(0, 1, 2))(*a),
}


def loss(f):
    return lambda *arrays: (f(*arrays) ** 2).sum()


def first(mx, f):
    return mx.grad(loss(f), argnums=(0, 1, 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "groups": 2}, {"padding_mode": "reflect", "dilation": 2}], ids=str
)
def test_derivatives_of_derivatives_on_mlx(mx, order, layout, options, tier):
    """As those of a convolution that is written in MLX's operations tap by tap, in float64."""
    groups, stride, dilation = (
        options.get(name, default) for name, default in (("groups", 1), ("stride", 1), ("dilation", 1))
    )
    arrays = [numbers(shape, n, "f8") for n, shape in enumerate(((2, 4, 7, 8), (6, 4 // groups, 3, 3), (6,)))]
    tangents = [numbers(a.shape, 7, "f8") for a in arrays]
    if layout == "NHWC":
        for values in (arrays, tangents):
            values[0] = np.ascontiguousarray(values[0].transpose(0, 2, 3, 1))
    arrays, tangents = ([mx.array(a, dtype=mx.float64) for a in values] for values in (arrays, tangents))
    if options.get("padding_mode") == "reflect":
        rows, cols = (mx.array(np.pad(np.arange(size), 2, mode="reflect")) for size in (7, 8))
    else:
        rows, cols = (mx.array(np.pad(np.arange(size), 2, constant_values=size)) for size in (7, 8))

    def by_taps(x, weight, bias):
        x = x if layout == "NCHW" else x.transpose(0, 3, 1, 2)
        x = mx.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1)])[:, :, rows][..., cols]
        oh, ow = ((size + 4 - 2 * dilation - 1) // stride + 1 for size in (7, 8))
        total = bias.reshape(1, -1, 1, 1)
        x, weight = x.reshape(2, groups, 1, 4 // groups, *x.shape[2:]), weight.reshape(1, groups, -1, *weight.shape[1:])
        for i in range(3):
            for j in range(3):
                top, left = i * dilation, j * dilation
                part = x[..., top : top + stride * (oh - 1) + 1 : stride, left : left + stride * (ow - 1) + 1 : stride]
                total = total + (part * weight[..., i, j, None, None]).sum(3).reshape(2, 6, oh, ow)
        return total if layout == "NCHW" else total.transpose(0, 2, 3, 1)

    def convolve(x, weight, bias):
        return portconv.conv2d(x, weight, bias, padding=2, layout=layout, **options)

    found = ORDERS[order](mx, convolve, arrays, tangents)
    # MLX has no jvp of what indexing has for a gradient; the second derivative is symmetric
    expected = ORDERS["grad of grad" if order == "jvp of grad" else order](mx, by_taps, arrays, tangents)
    found, expected = (list(r) if isinstance(r, (list, tuple)) else [r] for r in (found, expected))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == mx.float64
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-9, atol=1e-9 * float(mx.abs(b).max()))


@pytest.mark.parametrize("data", ["normal", "constant"])
def test_long_sums_on_mlx(mx, data, tier):
    x, dy = numbers((2, 1, 700, 700)), numbers((2, 2, 700, 700), 1)
    if data == "constant":
        x[...], dy[...] = 0.1, 0.1
    weight, bias = numbers((2, 1, 1, 1)), numbers((2,))
    arrays = [mx.array(a) for a in (x, weight, bias)]
    found = mx.vjp(lambda *arrays: portconv.conv2d(*arrays), arrays, [mx.array(dy)])[1]
    for got, exact in zip(found, reference_gradients(x, weight, dy), strict=True):
        assert_close(np.array(got), exact)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_gradient_of_the_bias_in_float64_on_mlx(mx, layout):
    shape = (2, 1, 500, 700) if layout == "NCHW" else (2, 500, 700, 1)
    dy, weight, bias = (mx.array(a, dtype=mx.float64) for a in (np.full(shape, 0.1), np.ones((1, 1, 1, 1)), [0.0]))
    _, (found,) = mx.vjp(lambda b: portconv.conv2d(dy, weight, b, layout=layout), [bias], [dy])
    exact = math.fsum(np.full(700_000, 0.1))
    assert abs(found.item() - exact) <= 8 * np.finfo(np.float64).eps * exact


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("engine", ["native", "gemm", "winograd", "direct"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_gradients_are_rounded_once_on_mlx(mx, mode, engine, dtype, tier):
    """A pixel's gradient is a sum over its copies in the border, also in MLX's own operations and when compiled."""
    kind = getattr(mx, dtype)
    arrays = [mx.array(numbers(shape, n)).astype(kind) for n, shape in enumerate(((2, 4, 12, 11), (6, 4, 3, 3), (6,)))]
    options = {"padding": 4, "padding_mode": mode}
    dy = mx.array(numbers((2, 6, 18, 17), 3)).astype(kind)
    exact = reference_gradients(*(np.array(a.astype(mx.float32)) for a in (*arrays[:2], dy)), **options)

    def vjp(dy, *arrays):
        return mx.vjp(lambda *a: portconv.conv2d(*a, **options, engine=engine), list(arrays), [dy])[1]

    for given in (arrays, arrays[:2]):
        for how in (vjp, mx.compile(vjp)):
            for got, value in zip(how(dy, *given), exact, strict=False):
                assert got.dtype == kind
                assert_close(np.array(got.astype(mx.float32)), value, dtype=dtype)


@pytest.mark.parametrize("options", [{"accuracy": "elementwise"}, {"dtype": "float64"}], ids=str)
def test_many_taps_on_mlx(mx, options, tier):
    """More than MLX can be given as operations."""
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    x, weight, dy = (numbers((1, 1, *size), n, dtype) for n, size in enumerate(((80, 78), (70, 68), (11, 11))))
    x, weight, dy = arrays = [mx.array(a, dtype=getattr(mx, dtype)) for a in (x, weight, dy)]
    found = mx.vjp(lambda *a: portconv.conv2d(*a, **options), [x, weight], [dy])[1]
    exact = reference_gradients(*(np.array(a) for a in arrays))
    for got, value in zip(found, exact[:2], strict=True):
        assert_close(np.array(got), value)
