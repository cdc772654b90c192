"""Functions of MLX's namespace on views of memory in another order: the same values, and the same order."""

from __future__ import annotations

import gc
import re

import numpy as np
import pytest

import portconv
from portconv.namespaces import memory_order

mx = pytest.importorskip("mlx.core")
xp = portconv.array_namespace(mx.array([1.0]))
NHWC = (0, 2, 3, 1)
SHAPE = (2, 6, 4, 8)


def numbers(shape=SHAPE, seed=0):
    return np.random.default_rng([seed, *shape]).uniform(0.1, 2, shape).astype("f4")


def noted(values, order=NHWC):
    """An array that lies in memory in this order, and is known to."""
    memory = mx.array(np.ascontiguousarray(values.transpose(order)))
    return memory_order.note(memory.transpose(np.argsort(order).tolist()), order)


def in_order(x, order):
    """Whether the array lies in memory in this order without gaps."""
    view = np.array(x, copy=False).transpose(order)
    return view.flags.c_contiguous


def check(got, expected, order=NHWC):
    np.testing.assert_allclose(np.array(got), expected, rtol=1e-5, atol=1e-6)
    if order is not None:
        assert in_order(got, order)
    assert memory_order.order_of(got) == order


A, B = numbers(), numbers(seed=1)
CHANNELS = numbers((1, 6, 1, 1))


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("add", [noted(B)]), ("subtract", [mx.array(B)]), ("multiply", [mx.array(CHANNELS)]), ("maximum", [1.0]),
        ("exp", []), ("pow", [noted(B)]), ("copysign", [noted(-B)]), ("square", []), ("less", [noted(B)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_elementwise(name, others):
    x = noted(A)
    check(getattr(xp, name)(x, *others), getattr(np, name)(A, *(np.array(o) for o in others)))
    if others and name != "multiply":
        check(getattr(xp, name)(others[0], x), getattr(np, name)(np.array(others[0]), A))


def test_three_arrays():
    x, y = noted(A), noted(B)
    check(xp.where(xp.less(x, y), x, y), np.minimum(A, B))
    check(xp.clip(x, 0.5, y), np.clip(A, 0.5, B))
    check(xp.clip(x, min=mx.array(B)), np.maximum(A, B), None)
    check(xp.clip(x, min=0.7, max=0.9), A.clip(0.7, 0.9))


def test_the_largest_array_decides():
    small, large = noted(CHANNELS), mx.array(A)
    check(xp.multiply(small, large), CHANNELS * A, None)
    check(xp.add(mx.array(A[0, 0, 0]), noted(A)), A[0, 0, 0] + A, None)  # of fewer dimensions


REDUCTIONS = ["all", "any", "count_nonzero", "max", "mean", "min", "prod", "std", "sum", "var"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [None, 1, -1, (2, 3), (0, -2), (0, 1, 2, 3), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(name, axis, keepdims):
    got = getattr(xp, name)(noted(A), axis=axis, keepdims=keepdims)
    expected = getattr(np, name)(A, axis=axis, keepdims=keepdims)
    axes = () if axis is None else (axis,) if isinstance(axis, int) else axis
    left = [a for a in NHWC if keepdims or a not in [b % 4 for b in axes]]
    order = tuple(sorted(left).index(a) for a in left)
    check(got, expected, order if axes and order else None)


def test_arguments_of_reductions():
    check(xp.std(noted(A), axis=1, correction=1), A.std(axis=1, ddof=1), (0, 1, 2))
    assert xp.sum(noted(A), axis=1, dtype=xp.float64).dtype == mx.float64
    for axis in (4, -5, (0, 7)):
        with pytest.raises(ValueError, match=r"`axis` must be from -4 to 3, .* but got " + re.escape(str(axis))):
            mx.eval(xp.sum(noted(A), axis=axis))


def test_pooling():
    x = xp.reshape(noted(A), (2, 6, 2, 2, -1, 2))
    check(x, A.reshape(2, 6, 2, 2, 4, 2), (0, 2, 3, 4, 5, 1))
    check(xp.max(x, axis=(3, 5)), A.reshape(2, 6, 2, 2, 4, 2).max(axis=(3, 5)))


@pytest.mark.parametrize("shape", [(2, 6, 32), (-1,), (12, 4, 8), (2, 6, 8, 4), (2, 6, 4, 8, 1), (1, 2, 3, 2, 4, 8)])
def test_reshape(shape):
    got = xp.reshape(noted(A), shape)
    np.testing.assert_array_equal(np.array(got), A.reshape(shape))
    if (order := memory_order.order_of(got)) is not None:
        assert in_order(got, order)


def test_wrong_shapes_are_refused():
    for shape, message in (
        ((2, 6, 5, 8), r"size 384 into shape \(2,6,5,8\)"),
        ((-1, -1), "only infer one"),
        ((0, 4), r"size 384 into shape \(0,4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mx.eval(xp.reshape(noted(A), shape))


def test_errors_speak_of_the_shapes_given():
    for call in (lambda x, y: xp.add(x, y), lambda x, y: xp.where(xp.less(x, 1), y, x)):
        with pytest.raises(ValueError, match=r"\(2,6,4,8\) and \(3,1,4,8\)|\(3,1,4,8\) and \(2,6,4,8\)"):
            mx.eval(call(noted(A), mx.ones((3, 1, 4, 8))))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        xp.reshape(noted(A), -1)
    for axis in ((0, 1.5), 4, -5, "1"):
        for name in ("sum", "mean", "var", "std"):
            with pytest.raises(ValueError, match=r"`axis` must be from -4 to 3"):
                getattr(xp, name)(noted(A), axis=axis)


def test_operators_in_place_may_add_axes():
    x = noted(A)
    x *= mx.ones((3, 1, 1, 1, 1))
    assert memory_order.order_of(x) is None
    check(xp.sum(x, axis=1), np.stack([A] * 3).sum(axis=1), None)
    check(xp.reshape(x, (3, 2, 6, 2, 2, 8)), np.stack([A] * 3).reshape(3, 2, 6, 2, 2, 8), None)


def test_gradients():
    def f(x):
        return xp.sum(xp.multiply(xp.exp(x), xp.mean(memory_order.note(x, NHWC), axis=1, keepdims=True)))

    def g(x):
        return mx.sum(mx.exp(x) * mx.mean(x, 1, True))

    np.testing.assert_allclose(np.array(mx.grad(f)(noted(A))), np.array(mx.grad(g)(mx.array(A))), rtol=1e-5)


def test_nothing_is_kept_alive():
    gc.collect()
    before = len(memory_order._noted)
    x = noted(A)
    y = xp.add(x, x)
    assert len(memory_order._noted) >= before + 2
    del x, y
    gc.collect()
    assert len(memory_order._noted) == before


def test_results_of_layers_are_noted():
    pytest.importorskip("portconv.mlx")
    x = mx.array(A)
    layer = portconv.mlx.Conv2d(6, 5, 3, padding=1, engine="native", rng=0)
    for y in (layer(x), layer.eval()(x), portconv.conv2d(x, layer.weight, padding=1, engine="native")):
        assert memory_order.order_of(y) == NHWC
        assert in_order(y, NHWC)
