"""What MLX remembers of arrays that have values, on which derivatives through NumPy's engines depend."""

from __future__ import annotations

import io

import numpy as np
import pytest

import portconv
from tests.helpers import numbers

TRANSFORMED = {
    "grad": lambda mx, f, x: mx.grad(f)(x),
    "value_and_grad": lambda mx, f, x: mx.value_and_grad(f)(x),
    "vjp": lambda mx, f, x: mx.vjp(f, [x], [mx.array(1.0)]),
    "jvp": lambda mx, f, x: mx.jvp(f, [x], [x]),
    "grad of grad": lambda mx, f, x: mx.grad(lambda x: mx.grad(f)(x).sum())(x),
    "grad of checkpoint": lambda mx, f, x: mx.grad(mx.checkpoint(f))(x),
    "compile": lambda mx, f, x: mx.compile(f)(x),
    "compile of grad": lambda mx, f, x: mx.compile(mx.grad(f))(x),
    "vmap": lambda mx, f, x: mx.vmap(f)(x),
}


@pytest.fixture
def arrays(mx):
    return pytest.importorskip("portconv.backends.mlx.arrays")


@pytest.mark.parametrize("transformed", TRANSFORMED)
def test_what_is_transformed_is_remembered(mx, arrays, transformed):
    found = []

    def look(x):
        y = x * x
        found.extend((arrays.remembered(array), arrays.remembered(array, mx.array(1.0))) for array in (x, y))
        return y.sum()

    mx.eval(TRANSFORMED[transformed](mx, look, mx.array([1.0, 2.0])))
    assert found
    assert all(both == (True, True) for both in found)


def test_what_has_values_is_not_remembered(mx, arrays):
    x = mx.array([1.0, 2.0])
    for array in (x, x + 1, (x * x)[:1], mx.zeros(3)):
        assert not arrays.remembered(array)
    assert not arrays.remembered(x, x + 1, x.T)
    assert arrays._tells_histories()


def test_a_result_is_evaluated(mx):
    """Outside of transformations nothing is left to do, whatever `x` is."""
    x, weight = mx.array(numbers((1, 3, 8, 8), 0)), mx.array(numbers((4, 3, 3, 3), 1))
    for image in (x, x + 1):
        graph = io.StringIO()
        mx.export_to_dot(graph, portconv.conv2d(image, weight, engine="gemm"))
        assert "->" not in graph.getvalue()


@pytest.mark.parametrize("tells", [True, False])
def test_versions_that_tell_no_histories_have_derivatives(mx, arrays, monkeypatch, tells):
    monkeypatch.setattr(arrays, "_tells_histories", lambda: tells)
    x, weight = mx.array(numbers((1, 3, 8, 8), 0)), mx.array(numbers((4, 3, 3, 3), 1))
    gradient = mx.grad(lambda w: portconv.conv2d(x, w, engine="gemm").sum())(weight)
    sums = [[np.array(x)[0, c, i : i + 6, j : j + 6].sum() for i in range(3) for j in range(3)] for c in range(3)]
    np.testing.assert_allclose(np.array(gradient)[2].reshape(3, 9), sums, rtol=1e-4, atol=1e-4)


def test_the_first_look_may_be_inside_a_transformation(mx, run_python):
    """Where a convolution of constants has its values, too."""
    run_python("""
    import mlx.core as mx, portconv
    mx.set_default_device(mx.cpu)
    x, weight = mx.ones((1, 2, 4, 4)), mx.ones((1, 2, 3, 3))
    f = lambda a: portconv.conv2d(x, weight).sum() * a.sum()
    y = mx.compile(f)(mx.ones(3))
    z = mx.vmap(f)(mx.ones((2, 3)))
    g = mx.grad(f)(mx.ones(3))
    assert y.item() == 216 and z.tolist() == [216, 216] and g.tolist() == [72] * 3, (y, z, g)
    """)
