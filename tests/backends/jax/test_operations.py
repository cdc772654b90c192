"""The engines in JAX's operations: what is not theirs to do, what they are computed in, and what is a tracer."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_gradients
from tests.helpers import numbers


def test_tracers(jax):
    from portconv.backends.jax import operations

    seen = []
    for transform in (jax.jit, jax.vmap, jax.grad, jax.jacfwd):
        transform(lambda x: (seen.append(x), x.sum())[1])(jax.numpy.ones(3))
    assert len(seen) == 4
    assert all(map(operations.is_tracer, seen))
    assert not operations.is_tracer(jax.numpy.ones(3))
    assert not operations.is_tracer(np.ones(3))


def test_fft_is_refused_while_tracing(jax):
    """It could not see a value that is not finite."""
    x, weight = jax.numpy.ones((1, 1, 64, 64)), jax.numpy.ones((1, 1, 31, 31))
    with pytest.raises(portconv.UnsupportedError, match=r"`engine` 'fft'.*trac"):
        jax.jit(lambda a: portconv.conv2d(a, weight, engine="fft"))(x)
    np.testing.assert_allclose(portconv.conv2d(x, weight, engine="fft"), 961, rtol=1e-5)


@pytest.mark.parametrize("engine", ["gemm", "native"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{"padding": 5, "padding_mode": "replicate"}, {"padding": 2}], ids=str)
def test_gradients_of_half_precision_are_rounded_once(jax, dtype, options, engine):
    """Windows that overlap, and copies in the border, are added in float32."""
    x, weight = (
        jax.numpy.asarray(numbers(shape, seed), dtype) for seed, shape in enumerate(((2, 3, 9, 8), (4, 3, 3, 3)))
    )
    y, vjp = jax.vjp(lambda *arrays: portconv.conv2d(*arrays, **options, engine=engine), x, weight)
    dy = jax.numpy.asarray(numbers(y.shape, 2), dtype)
    exact = reference_gradients(*(np.asarray(a, np.float32) for a in (x, weight, dy)), **options)
    for gradient, reference in zip(vjp(dy), exact, strict=False):
        assert str(gradient.dtype) == dtype
        assert_close(np.asarray(gradient, np.float32), reference, dtype=dtype)


def precisions(jaxpr):
    """The precision of every product and convolution in a traced function, those within other functions included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(equation.params["precision"])
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    found += precisions(inner)
    return found


@pytest.mark.parametrize("engine", ["gemm", "direct", "native"])
@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
def test_products_of_float32_are_precise_unless_the_user_says_otherwise(jax, engine, chosen):
    # A GPU would round their factors to TF32, which no CPU shows.
    arrays = numbers((2, 4, 7, 8)), numbers((6, 4, 3, 3))

    def convolve(x, weight):
        return portconv.conv2d(x, weight, stride=(2, 1), padding=(1, 2), engine=engine)

    def gradients(x, weight):
        return jax.grad(lambda *a: (convolve(*a) ** 2).sum(), (0, 1))(x, weight)

    wanted = jax.lax.Precision.HIGH if chosen else jax.lax.Precision.HIGHEST
    with jax.default_matmul_precision(chosen):
        for function in (convolve, gradients):
            found = precisions(jax.make_jaxpr(function)(*arrays).jaxpr)
            assert found or engine == "direct"
            assert {p for pair in found for p in pair or [None]} <= {wanted}, found
