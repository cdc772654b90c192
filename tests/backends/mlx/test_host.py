"""NumPy's engines on MLX's memory, and their derivatives, to the second order."""

from __future__ import annotations

import math

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_gradients
from tests.helpers import numbers


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_a_large_result_is_written_into_memory_of_mlx(mx, tier, engine, layout, dtype, monkeypatch):
    """As NumPy's, bit by bit; and it is a value of its own, for operations in place and gradients, too."""
    shape = (2, 3, 300, 257) if layout == "NCHW" else (2, 300, 257, 3)
    host = pytest.importorskip("portconv.backends.mlx.host")
    image, weight, bias = numbers(shape, 0, dtype), numbers((17, 3, 3, 3), 1, dtype), numbers((17,), 2, dtype)
    expected = portconv.conv2d(image, weight, bias, padding=1, layout=layout, engine=engine)
    assert expected.nbytes > 4 << 20
    x, w, b = (mx.array(a, dtype=getattr(mx, a.dtype.name)) for a in (image, weight, bias))
    new, calls = host._new, []
    monkeypatch.setattr(host, "_new", lambda p: calls.append(p) or new(p))
    y = portconv.conv2d(x, w, b, padding=1, layout=layout, engine=engine)
    assert len(calls) == 1
    z = y + 1
    np.testing.assert_array_equal(np.array(y), expected)
    z[...] = 0
    another = portconv.conv2d(2 * x, w, None, padding=1, layout=layout, engine=engine)
    mx.eval(another, z)
    np.testing.assert_array_equal(np.array(y), expected)
    pixel = (1, slice(None), 5, 6) if layout == "NCHW" else (1, 5, 6)
    gradient = mx.grad(lambda b: portconv.conv2d(x, w, b, padding=1, layout=layout, engine=engine)[pixel].sum())(b)
    assert gradient.tolist() == [1] * 17


# --- derivatives ------------------------------------------------------------------------------------------------------

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
