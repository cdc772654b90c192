"""JAX: function transformations, and no tracer that outlives its trace."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

ENGINES = ("auto", "gemm", "direct", "native")  # what can run on values that are not known yet

PROBLEMS = {
    "plain": ((2, 4, 7, 8), (6, 4, 3, 3), {}),
    "stride, padding": ((2, 4, 7, 8), (6, 4, 3, 3), {"stride": (2, 1), "padding": (1, 2)}),
    "dilation": ((1, 4, 9, 8), (6, 4, 3, 3), {"dilation": 2, "padding": ((2, 0), (1, 3))}),
    "groups": ((1, 4, 7, 8), (6, 2, 3, 3), {"groups": 2}),
    "5-D weight": ((1, 4, 7, 8), (2, 3, 2, 3, 3), {"groups": 2, "stride": 2}),
    "depthwise": ((1, 4, 7, 8), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "NHWC": ((1, 7, 8, 4), (6, 4, 3, 3), {"layout": "NHWC", "padding": 1}),
    "reflect": ((1, 4, 7, 8), (6, 4, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "circular": ((1, 4, 7, 8), (6, 4, 3, 3), {"padding": 2, "padding_mode": "circular"}),
}


def arrays_of(problem):
    x_shape, weight_shape, options = PROBLEMS[problem]
    bias_shape = (1, int(np.prod(weight_shape[:-3])), 1, 1)
    return [numbers(shape, seed) for seed, shape in enumerate((x_shape, weight_shape, bias_shape))], options


def lax_convolution(jax, x, weight, bias, options):
    """The same by JAX's own routine."""
    layout = options.get("layout", "NCHW")
    axes = (2, 3) if layout == "NCHW" else (1, 2)
    sides = np.broadcast_to(
        np.asarray(options.get("padding", 0)).reshape(-1, 1)
        if np.ndim(options.get("padding", 0)) == 1
        else options.get("padding", 0),
        (2, 2),
    )
    mode = {"zeros": "constant", "reflect": "reflect", "circular": "wrap"}[options.get("padding_mode", "zeros")]
    widths = [(0, 0)] * 4
    for axis, side in zip(axes, sides.tolist(), strict=True):
        widths[axis] = tuple(side)
    return jax.lax.conv_general_dilated(
        jax.numpy.pad(x, widths, mode=mode),
        weight.reshape(-1, *weight.shape[-3:]),
        tuple(int(s) for s in np.broadcast_to(options.get("stride", 1), 2)),
        "VALID",
        rhs_dilation=tuple(int(d) for d in np.broadcast_to(options.get("dilation", 1), 2)),
        dimension_numbers=(layout, "OIHW", layout),
        feature_group_count=options.get("groups", 1),
        precision="highest",
    ) + bias.reshape((1, -1, 1, 1) if layout == "NCHW" else (1, 1, 1, -1))


# The same for every engine, compiled once and as a whole.
@functools.cache
def of_jax_alone(jax, problem):
    arrays, options = arrays_of(problem)
    return jax.jit(lambda *a: lax_convolution(jax, *a, options))(*arrays)


def cotangent(problem):
    arrays, options = arrays_of(problem)
    return numbers(portconv.conv2d_output_shape(arrays[0].shape, arrays[1].shape, **options), 9)


@functools.cache
def gradients_of_jax_alone(jax, problem):
    arrays, options = arrays_of(problem)
    dy = cotangent(problem)
    return jax.jit(jax.grad(lambda *a: (lax_convolution(jax, *a, options) * dy).sum(), (0, 1, 2)))(*arrays)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_jit(jax, problem, engine, plans):
    arrays, options = arrays_of(problem)
    expected = reference_conv2d(*arrays, **options)
    y = jax.jit(lambda *a: portconv.conv2d(*a, **options, engine=engine))(*map(jax.numpy.asarray, arrays))
    assert engine in ("auto", plans[0].engine)
    assert plans[0].problem.traced
    assert y.dtype == np.float32
    assert_close(np.asarray(y), expected)
    np.testing.assert_allclose(y, of_jax_alone(jax, problem), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("problem", ["stride, padding", "5-D weight", "NHWC", "reflect"])
def test_grad(jax, problem, engine):
    arrays, options = arrays_of(problem)
    arrays = [jax.numpy.asarray(a) for a in arrays]
    dy = cotangent(problem)
    ours = jax.grad(
        lambda *a: (jax.jit(lambda *b: portconv.conv2d(*b, **options, engine=engine))(*a) * dy).sum(), (0, 1, 2)
    )(*arrays)
    for got, right in zip(ours, gradients_of_jax_alone(jax, problem), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_grad_of_one_argument_without_jit(jax, argument):
    arrays, options = arrays_of("plain")
    arrays = [jax.numpy.asarray(a) for a in arrays]
    got, right = (
        jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argument)(*arrays)
        for f in (lambda *a: portconv.conv2d(*a), lambda *a: lax_convolution(jax, *a, options))
    )
    np.testing.assert_allclose(got, right, rtol=1e-3, atol=1e-3)
    y = portconv.conv2d(*arrays)  # and nothing of the trace is left
    assert_close(np.asarray(y), reference_conv2d(*map(np.asarray, arrays)))


@pytest.mark.parametrize("engine", ENGINES)
def test_vmap(jax, engine):
    x, weight, bias = numbers((3, 2, 4, 7, 8)), numbers((3, 6, 4, 3, 3)), numbers((3, 6))
    # compiled as a whole: one by one, every operation of the engine would be compiled for itself
    every = jax.jit(jax.vmap(lambda *a: portconv.conv2d(*a, padding=1, engine=engine)))(
        *map(jax.numpy.asarray, (x, weight, bias))
    )
    expected = np.stack([reference_conv2d(*a, padding=1)[0] for a in zip(x, weight, bias, strict=True)])
    np.testing.assert_allclose(every, expected, rtol=1e-4, atol=1e-4)
    images = jax.jit(jax.vmap(lambda a: portconv.conv2d(a, jax.numpy.asarray(weight[0]), engine=engine)))(
        jax.numpy.asarray(x)
    )
    np.testing.assert_allclose(images, np.stack([reference_conv2d(a, weight[0])[0] for a in x]), rtol=1e-4, atol=1e-4)


def test_nonfinite_values_under_jit(jax):
    x, weight = numbers((1, 2, 20, 20)), numbers((3, 2, 5, 5))
    x[0, 0, 9, 9], x[0, 1, 2, 2] = np.nan, -np.inf
    for engine in ENGINES:
        y = jax.jit(lambda *a, engine=engine: portconv.conv2d(*a, engine=engine))(
            jax.numpy.asarray(x), jax.numpy.asarray(weight)
        )
        assert_close(np.asarray(y), reference_conv2d(x, weight))


def test_half_precision_under_jit(jax):
    x, weight = np.ones((1, 512, 4, 4)), np.ones((2, 512, 3, 3))
    for dtype in ("float16", "bfloat16"):
        y = jax.jit(portconv.conv2d)(jax.numpy.asarray(x, dtype), jax.numpy.asarray(weight, dtype))
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.astype("float32"), 4608)


def test_errors_under_jit(jax):
    with pytest.raises(ValueError, match="`weight` has 3"):
        jax.jit(portconv.conv2d)(jax.numpy.ones((1, 4, 8, 8)), jax.numpy.ones((2, 3, 3, 3)))


@pytest.mark.parametrize("engine", ["auto", "gemm", "native"])
@pytest.mark.parametrize("home", ["jax", "numpy"])
def test_a_module_inside_jit_and_outside(jax, home, engine):
    """Packs made inside a trace belong to it; packs made outside may be used inside."""
    x = numbers((1, 2, 5, 6))
    for order in (("jit", "eager", "jit"), ("eager", "jit", "eager"), ("grad", "eager", "vmap", "jit")):
        module = portconv.Conv2d(2, 3, 3, backend=home, engine=engine, rng=1)
        expected = reference_conv2d(x, *(module.state_dict()[name] for name in ("weight", "bias")))
        for way in order:
            image = jax.numpy.asarray(x)
            if way == "grad":
                gradient = jax.jit(jax.grad(lambda a, module=module: module(a).sum()))(image)
                assert np.isfinite(np.asarray(gradient)).all()
            elif way == "vmap":
                assert_close(np.asarray(jax.jit(jax.vmap(module.forward))(image[None])[0]), expected)
            else:
                call = jax.jit(module.forward) if way == "jit" else module
                assert_close(np.asarray(call(image)), expected)


@pytest.mark.parametrize("traced", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_traces_do_not_leak_through_the_cache(jax, traced):
    """Some arguments traced, the others known: packs of known weights are kept, unless they were made in a trace."""
    arrays = [jax.numpy.asarray(numbers(s)) for s in ((1, 2, 5, 6), (3, 2, 1, 1), (3,))]
    expected = reference_conv2d(*map(np.asarray, arrays))

    def call(*some):
        values = list(arrays)
        for place, value in zip(traced, some, strict=True):
            values[place] = value
        return portconv.conv2d(*values)

    some = [arrays[place] for place in traced]
    for _ in range(2):
        with jax.checking_leaks():
            y = jax.jit(lambda *a: call(*a))(*some)  # a trace of its own each time
        assert_close(np.asarray(y), expected)
        assert_close(np.asarray(portconv.conv2d(*arrays)), expected)
        assert np.isfinite(np.asarray(jax.grad(lambda *a: call(*a).sum())(*some))).all()
        assert_close(np.asarray(portconv.conv2d(*arrays)), expected)


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("engine", ["auto", "gemm", "winograd", "fft", "direct", "native"])
def test_a_convolution_of_constants_inside_jit(jax, engine, on_host):
    """Neither the pack of a weight nor a layer's copy of it belongs to the function that is traced around the call."""

    class OnGpu(type(portconv.get_backend("jax"))):
        def _on_host(self, problem):
            return False

    # the outer columns of the second kernel meet padding only, and are cut away
    for width, columns, padding in ((8, 3, 0), (1, 5, 3)):
        x, weight = (jax.numpy.asarray(numbers(shape)) for shape in ((1, 2, 7, width), (3, 2, 3, columns)))
        layer = portconv.Conv2d(2, 3, (3, columns), padding=padding, engine=engine)
        layer.weight = np.asarray(weight)
        expected = reference_conv2d(np.asarray(x), np.asarray(weight), padding=padding)
        calls = [functools.partial(portconv.conv2d, x, weight, padding=padding, engine=engine)]
        calls.append(functools.partial(layer, x))
        for call in calls:
            with contextlib.nullcontext() if on_host else portconv.use_backend(OnGpu("jax")):
                y = jax.jit(lambda a, call=call: a * call())(2.0)
                later = call()
            assert_close(np.asarray(y), expected.each(lambda value: 2 * value))
            assert_close(np.asarray(later), expected)


def test_float64(run_python):
    """JAX has it only when it is told so, before it starts."""
    pytest.importorskip("jax", reason="JAX is not installed")
    run_python("""
        import jax, numpy as np, portconv
        from portconv.testing import assert_close, reference_conv2d
        jax.config.update("jax_enable_x64", True)
        rng = np.random.default_rng(0)
        x, weight = rng.standard_normal((1, 4, 9, 9)), rng.standard_normal((6, 4, 3, 3))
        arrays = jax.numpy.asarray(x), jax.numpy.asarray(weight)
        for engine in ("auto", "gemm", "winograd", "fft", "direct", "native"):
            y = portconv.conv2d(*arrays, engine=engine)
            assert y.dtype == "float64"
            assert_close(np.asarray(y), reference_conv2d(x, weight))
        assert_close(np.asarray(jax.jit(portconv.conv2d)(*arrays)), reference_conv2d(x, weight))
        spoiled = x.copy()
        spoiled[0, 0, 4, 4] = np.nan  # and nowhere else
        y = jax.jit(lambda *given: portconv.conv2d(*given, groups=4))(spoiled, weight[:4, :1])
        assert_close(np.asarray(y), reference_conv2d(spoiled, weight[:4, :1], groups=4))
        module = portconv.Conv2d(4, 6, 3, dtype="float64", rng=1)
        assert_close(np.asarray(module(arrays[0])), reference_conv2d(x, module.weight))
        y = portconv.conv2d(jax.numpy.ones((1, 4, 9, 9), "int64"), arrays[1])
        assert y.dtype == "float64"
    """)


def test_the_bound_holds_on_a_gpu(jax):
    try:
        (device, *_) = jax.devices("gpu")
    except RuntimeError:
        # The test above sees without a GPU what precision is asked for; only a GPU shows that it is kept.
        pytest.skip("JAX has no GPU here")
    x, weight, bias = arrays_of("plain")[0]
    y = portconv.conv2d(*(jax.device_put(a, device) for a in (x, weight, bias)))
    assert y.devices() == {device}
    assert_close(np.asarray(y), reference_conv2d(x, weight, bias))


def test_jax_stays_on_its_second_device(run_python):
    pytest.importorskip("jax", reason="JAX is not installed")
    run_python("""
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        import jax, numpy as np, portconv
        device = jax.devices("cpu")[1]
        x, weight = (jax.device_put(np.ones(shape, "f4"), device) for shape in ((1, 2, 7, 8), (3, 2, 3, 3)))
        for y in (portconv.conv2d(x, weight), portconv.Conv2d(2, 3, 3)(x)):
            assert y.devices() == {device}, y.devices()
        layer = portconv.Conv2d(2, 3, 3, backend="jax", device="cpu:1")
        assert layer.weight.devices() == {device}
        assert portconv.Conv2d(2, 3, 3, backend="jax", device="cpu").weight.devices() == {jax.devices("cpu")[0]}
    """)
