"""MLX: its hazards must end in a right result or a clear error, and its function transformations must work."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, check_backend, reference_conv2d
from tests.helpers import numbers


@pytest.fixture(params=["auto", "native", "gemm", "winograd", "fft", "direct"])
def engine(request):
    return request.param


@pytest.fixture(params=["auto", "native", "gemm", "fft", "direct"])
def traced_engine(request):
    """Those that run where values are not known yet."""
    return request.param


# --- hazards ----------------------------------------------------------------------------------------------------------

# what MLX itself answers with garbage, or by ending the process
REFUSED = {
    "kernel too large by less than the stride": "(1, 1, 4, 4), (1, 1, 5, 5), stride=3",
    "dilated kernel too large by less than the stride": "(1, 1, 4, 4), (1, 1, 3, 3), stride=2, dilation=2",
    "no groups": "(1, 4, 8, 8), (4, 4, 3, 3), groups=0",
    "no input channels": "(1, 0, 8, 8), (4, 0, 3, 3)",
    "no input channels, grouped": "(1, 0, 8, 8), (4, 0, 3, 3), groups=4",
    "no output channels": "(1, 4, 8, 8), (0, 4, 3, 3)",
    "no kernel height": "(1, 4, 8, 8), (4, 4, 0, 3)",
    "no kernel": "(1, 4, 8, 8), (4, 4, 0, 0)",
    "no rows": "(1, 4, 0, 8), (4, 4, 3, 3), padding=2",
    "no stride": "(1, 4, 8, 8), (4, 4, 3, 3), stride=0",
    "no dilation": "(1, 4, 8, 8), (4, 4, 3, 3), dilation=0",
    "padding above int32": "(1, 4, 8, 8), (4, 4, 3, 3), padding=2**31",
    "negative padding": "(1, 4, 8, 8), (4, 4, 3, 3), padding=-3",
    "result above any memory": "(1, 4, 8, 8), (4, 4, 3, 3), padding=2**30",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_mlx_cannot_do_is_refused(mx, run_python, case):
    out = run_python(f"""
        import mlx.core as mx, portconv

        def convolve(x_shape, weight_shape, **options):
            for engine in ("auto", "native", "gemm", "winograd", "fft", "direct"):
                try:
                    mx.eval(portconv.conv2d(mx.ones(x_shape), mx.ones(weight_shape), engine=engine, **options))
                except ValueError as error:
                    assert "`" in str(error), error
                    print("refused")
                else:
                    print("computed")

        convolve({REFUSED[case]})
    """)
    assert out.split() == ["refused"] * 6


@pytest.mark.parametrize("case", ["float64", "grouped", "dilated", "strided", "reflect", "NHWC"])
def test_float64_is_exact(mx, case):
    """MLX says float64, computes in float32 if it can, and raises at the evaluation if it cannot."""
    options = {
        "grouped": {"groups": 2}, "dilated": {"dilation": 2}, "strided": {"stride": 2}, "NHWC": {"layout": "NHWC"},
        "reflect": {"padding": 2, "padding_mode": "reflect"},
    }.get(case, {})  # fmt: skip
    shape = (1, 9, 10, 4) if case == "NHWC" else (1, 4, 9, 10)
    x, weight = numbers(shape, dtype="f8"), numbers((6, 4 // options.get("groups", 1), 3, 3), 1, dtype="f8")
    expected = reference_conv2d(x, weight, **options)
    engines = ["auto", "gemm", "fft", "direct"]
    if case in ("float64", "reflect", "NHWC"):
        engines.append("winograd")
    for engine in engines:
        y = portconv.conv2d(mx.array(x, mx.float64), mx.array(weight, mx.float64), engine=engine, **options)
        assert y.dtype == mx.float64
        assert_close(np.array(y), expected)
    with pytest.raises(portconv.UnsupportedError, match=r"`engine` 'native'.*float64"):
        portconv.conv2d(mx.array(x, mx.float64), mx.array(weight, mx.float64), engine="native", **options)


def test_float64_is_not_rounded_on_the_way(mx):
    module = portconv.Conv2d(1, 1, 1, bias=False, dtype="float64", backend="mlx")
    module.weight = np.full((1, 1, 1, 1), 1 + 2.0**-40)
    assert module.weight.dtype == mx.float64
    assert module.state_dict()["weight"] == 1 + 2.0**-40
    for home in ("mlx", "numpy"):
        y = module.to(home)(mx.ones((1, 1, 2, 2), mx.float64))
        assert y.dtype == mx.float64
        np.testing.assert_array_equal(np.array(y), 1 + 2.0**-40)
    wide = portconv.get_backend("mlx").from_numpy(np.full(3, 1 + 2.0**-40))
    np.testing.assert_array_equal(np.array(wide), 1 + 2.0**-40)


@pytest.mark.parametrize("transformation", ["grad", "compile", "vmap"])
def test_float64_under_transformations_is_exact(mx, transformation):
    x, weight = (
        mx.array(numbers((1, 2, 6, 6), dtype="f8"), mx.float64),
        mx.array(numbers((3, 2, 3, 3), dtype="f8"), mx.float64),
    )
    y = {
        "grad": lambda a: mx.grad(lambda v: portconv.conv2d(v, weight).sum())(a),
        "compile": lambda a: mx.compile(lambda v: portconv.conv2d(v, weight))(a),
        "vmap": lambda a: mx.vmap(lambda v: portconv.conv2d(v, weight))(a[None])[0],
    }[transformation](x)
    expected = reference_conv2d(np.array(x), np.array(weight))[0]
    if transformation == "grad":
        expected = reference_conv2d(
            np.ones_like(expected), np.array(weight)[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), padding=2
        )[0]
    assert y.dtype == mx.float64
    np.testing.assert_allclose(np.array(y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["complex64"])
def test_dtypes_that_mlx_refuses_late(mx, name):
    x = mx.ones((1, 1, 4, 4)).astype(getattr(mx, name))
    with pytest.raises(TypeError, match="`x`"):
        portconv.conv2d(x, mx.ones((1, 1, 3, 3)))


def test_integers_are_converted(mx, engine):
    for dtype in (mx.uint8, mx.int32, mx.bool_, mx.int64, mx.uint32):
        y = portconv.conv2d(mx.ones((1, 2, 6, 6)).astype(dtype), mx.full((3, 2, 3, 3), 0.5), engine=engine)
        assert y.dtype == mx.float32
        np.testing.assert_allclose(np.array(y), 9, rtol=1e-6)


@pytest.mark.parametrize("kernel", [(4200, 1), (1, 4200)])
def test_many_taps_are_refused_while_mlx_compiles(mx, kernel):
    compiled = mx.compile(lambda x, weight: portconv.conv2d(x, weight, accuracy="elementwise"))
    with pytest.raises(portconv.UnsupportedError, match="more than 4096 taps"):
        mx.eval(compiled(mx.zeros((1, 1, *kernel)), mx.ones((1, 1, *kernel))))


def test_arrays_of_another_thread(mx, engine):
    """A lazy array belongs to the thread that made it; a module's own copies must not be lazy."""
    module = portconv.Conv2d(2, 3, 3, engine=engine, rng=1)
    x = numbers((1, 2, 8, 8))
    expected = reference_conv2d(x, module.weight, module.bias)
    results, errors = [], []

    def work():
        try:
            results.extend([np.array(module(mx.array(x))) for _ in range(3)])
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            errors.append(error)

    for home in ("numpy", "mlx"):
        module.to(home)
        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        work()
    assert not errors
    assert len(results) == 24
    for y in results:
        assert_close(y, expected)


def test_a_pack_that_nobody_evaluated(mx, engine):
    """The first thread only builds its call; the pack that it leaves must be usable in the second all the same."""
    for home in ("numpy", "mlx"):
        module = portconv.Conv2d(2, 3, 3, backend=home, engine=engine, rng=1)
        x = numbers((1, 2, 8, 8))
        expected = reference_conv2d(x, *(module.state_dict()[name] for name in ("weight", "bias")))
        thread = threading.Thread(target=lambda m=module, x=x: m(mx.array(x)))
        thread.start()
        thread.join()
        assert_close(np.array(module(mx.array(x))), expected)


def test_lazy_arguments(mx, engine):
    x, weight, bias = (mx.array(numbers(s)) for s in ((1, 2, 9, 9), (3, 2, 3, 3), (3,)))
    lazy = [a * 2 - a for a in (x, weight, bias)]
    y = portconv.conv2d(*lazy, padding=1, engine=engine)
    expected = reference_conv2d(*(np.array(a) for a in (x, weight, bias)), padding=1)
    assert_close(np.array(y), expected)


# --- layout and memory ------------------------------------------------------------------------------------------------


def test_nhwc_is_what_mlx_computes(mx, engine):
    stride, groups = (2, 2) if engine != "winograd" else (1, 1)
    x, weight = numbers((2, 8, 9, 4)), numbers((6, 4 // groups, 3, 3))
    y = portconv.conv2d(mx.array(x), mx.array(weight), None, stride, 1, groups=groups, layout="NHWC", engine=engine)
    theirs = mx.conv2d(mx.array(x), mx.array(weight.transpose(0, 2, 3, 1)), stride, 1, groups=groups)
    np.testing.assert_allclose(np.array(y), np.array(theirs), rtol=1e-4, atol=1e-4)


def test_bfloat16(mx, engine):
    x, weight, bias = (mx.array(numbers(s)).astype(mx.bfloat16) for s in ((1, 4, 9, 9), (6, 4, 3, 3), (6,)))
    y = portconv.conv2d(x, weight, bias, engine=engine)
    assert y.dtype == mx.bfloat16
    values = [np.array(a.astype(mx.float32)) for a in (x, weight, bias, y)]
    assert_close(values[3], reference_conv2d(*values[:3]), dtype="bfloat16")


def test_a_weight_changed_in_place(mx, engine):
    x, weight = mx.ones((1, 1, 8, 8)), mx.ones((1, 1, 3, 3))
    before = np.array(portconv.conv2d(x, weight, engine=engine))
    weight[0, 0, 1, 1] = 11
    np.testing.assert_allclose(np.array(portconv.conv2d(x, weight, engine=engine)), before + 10, rtol=1e-6)


def test_one_module_many_sizes(mx, engine):
    module = portconv.Conv2d(2, 3, 3, padding=1, engine=engine, rng=1)
    for shape in ((1, 2, 5, 6), (1, 2, 9, 4), (3, 2, 5, 6), (1, 2, 40, 3), (1, 2, 5, 6)):
        x = numbers(shape)
        assert_close(np.array(module(mx.array(x))), reference_conv2d(x, module.weight, module.bias, padding=1))


# --- function transformations -----------------------------------------------------------------------------------------

PROBLEMS = {
    "plain": ((2, 4, 7, 8), (6, 4, 3, 3), {}),
    "stride, padding": ((2, 4, 7, 8), (6, 4, 3, 3), {"stride": 2, "padding": 1}),
    "four sides": ((1, 4, 7, 8), (6, 4, 3, 3), {"padding": ((2, 0), (1, 3))}),
    "same": ((1, 4, 7, 8), (6, 4, 4, 3), {"padding": "same", "stride": 2}),
    "dilation": ((1, 4, 9, 8), (6, 4, 3, 3), {"dilation": 2, "padding": 2}),
    "groups": ((1, 4, 7, 8), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "5-D weight": ((1, 4, 7, 8), (2, 3, 2, 3, 3), {"groups": 2, "stride": 2}),
    "depthwise": ((1, 4, 7, 8), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "1x1": ((1, 4, 7, 8), (6, 4, 1, 1), {}),
    "reflect": ((1, 4, 7, 8), (6, 4, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "replicate": ((1, 4, 7, 8), (6, 4, 3, 3), {"padding": 3, "padding_mode": "replicate"}),
    "circular": ((1, 4, 7, 8), (6, 4, 3, 3), {"padding": 3, "padding_mode": "circular"}),
}  # fmt: skip


def torch_gradients(torch, arrays, options, dy=None):
    """dx, dweight, dbias of sum(y * dy), by PyTorch."""
    x, weight, bias = (torch.tensor(a, requires_grad=True, dtype=torch.float64) for a in arrays)
    sh, sw = np.broadcast_to(options.get("stride", 1), 2)
    padding = options.get("padding", 0)
    if padding == "same":
        sides = []
        for size, kernel, stride in ((x.shape[2], weight.shape[-2], sh), (x.shape[3], weight.shape[-1], sw)):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides.append((int(total // 2), int(total - total // 2)))
    else:
        sides = np.broadcast_to(padding, (2, 2)).tolist()
    mode = {"zeros": "constant"}.get(options.get("padding_mode", "zeros"), options.get("padding_mode"))
    padded = torch.nn.functional.pad(x, (*sides[1], *sides[0]), mode=mode)
    y = torch.nn.functional.conv2d(
        padded,
        weight.reshape(-1, *weight.shape[-3:]),
        bias.reshape(-1),
        (int(sh), int(sw)),
        0,
        options.get("dilation", 1),
        options.get("groups", 1),
    )
    dy = torch.ones_like(y) if dy is None else torch.tensor(dy, dtype=torch.float64)
    (y * dy).sum().backward()
    return [a.grad.numpy() for a in (x, weight, bias)]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_vjp(mx, torch, engine, problem, needs):
    x_shape, weight_shape, options = PROBLEMS[problem]
    needs(engine, x_shape, weight_shape, **options, backend="mlx")
    bias_shape = (1, int(np.prod(weight_shape[:-3])), 1, 1)
    arrays = [numbers(shape, seed) for seed, shape in enumerate((x_shape, weight_shape, bias_shape))]
    dy = numbers(portconv.conv2d_output_shape(x_shape, weight_shape, **options), 9)
    expected = torch_gradients(torch, arrays, options, dy)
    outputs, gradients = mx.vjp(
        lambda *a: portconv.conv2d(*a, **options, engine=engine), [mx.array(a) for a in arrays], [mx.array(dy)]
    )
    assert_close(np.array(outputs[0]), reference_conv2d(*arrays, **options))
    for got, right in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(np.array(got), right, rtol=1e-4, atol=1e-4)


def test_grad_of_each_argument(mx, torch, engine):
    arrays = [numbers(shape, seed) for seed, shape in enumerate(((1, 4, 7, 8), (6, 4, 3, 3), (6,)))]
    expected = torch_gradients(torch, arrays, {"padding": 1})
    ours = [mx.array(a) for a in arrays]

    def loss(*a):
        return portconv.conv2d(*a, padding=1, engine=engine).sum()

    for argument in range(3):
        np.testing.assert_allclose(np.array(mx.grad(loss, argument)(*ours)), expected[argument], rtol=1e-4, atol=1e-4)
    value, gradients = mx.value_and_grad(loss, (0, 1, 2))(*ours)
    np.testing.assert_allclose(float(value), reference_conv2d(*arrays, padding=1)[0].sum(), rtol=1e-3)
    for got, right in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(np.array(got), right, rtol=1e-4, atol=1e-4)
    without = mx.grad(lambda a: portconv.conv2d(a, ours[1], padding=1, engine=engine).sum())(ours[0])
    np.testing.assert_allclose(np.array(without), expected[0], rtol=1e-4, atol=1e-4)


def test_grad_through_nhwc_and_integers(mx, torch, engine):
    x, weight = numbers((1, 4, 7, 8)), numbers((6, 4, 3, 3))
    expected = torch_gradients(torch, [x, weight, np.zeros(6)], {})
    image = mx.array(x.transpose(0, 2, 3, 1))
    got = mx.grad(lambda a: portconv.conv2d(a, mx.array(weight), layout="NHWC", engine=engine).sum())(image)
    np.testing.assert_allclose(np.array(got), expected[0].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-4)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 4, 7, 8)).astype(np.uint8)
    expected = torch_gradients(torch, [pixels.astype("f4"), weight, np.zeros(6)], {})
    got = mx.grad(lambda a: portconv.conv2d(mx.array(pixels), a, engine=engine).sum())(mx.array(weight))
    np.testing.assert_allclose(np.array(got), expected[1], rtol=1e-4)


def test_grad_of_a_module(mx, torch, engine):
    module = portconv.Conv2d(4, 6, 3, padding=1, backend="mlx", engine=engine, rng=1)
    x = numbers((1, 4, 7, 8))
    state = module.state_dict()
    (expected, _, _) = torch_gradients(torch, [x, state["weight"], state["bias"]], {"padding": 1})
    for _ in range(2):
        got = mx.grad(lambda a: module(a).sum())(mx.array(x))
        np.testing.assert_allclose(np.array(got), expected, rtol=1e-4, atol=1e-4)
    assert_close(np.array(module(mx.array(x))), reference_conv2d(x, state["weight"], state["bias"], padding=1))


def test_gradient_of_the_bias_is_no_long_sum(mx, engine):
    """A million ones, added one after the other in float32, were off by 4 %."""
    x, weight, bias = mx.zeros((1, 1, 1502, 1502)), mx.zeros((2, 1, 3, 3)), mx.zeros((1, 2, 1, 1))
    got = mx.grad(lambda b: (portconv.conv2d(x, weight, b, engine=engine) * 0.1).sum())(bias)
    np.testing.assert_allclose(np.array(got).ravel(), np.full(2, np.float32(0.1) * 1500.0**2), rtol=32 * 2.0**-23)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_jvp(mx, problem):
    """MLX has no rule for its own convolution; a zero for NumPy's engines would be silent."""
    x_shape, weight_shape, options = PROBLEMS[problem]
    outputs = int(np.prod(weight_shape[:-3]))
    arrays = [numbers(x_shape), numbers(weight_shape), numbers((outputs,), 2)]
    tangents = [numbers(a.shape, 5) for a in arrays]
    if portconv.plan_conv2d(*map(mx.array, arrays), **options).engine == "native":
        options = {**options, "engine": "gemm"}

    def convolve(*arrays):
        return portconv.conv2d(*arrays, **options)

    for chosen in ([0], [1], [2], [0, 2], [0, 1, 2]):

        def some(*given, chosen=chosen):
            every = [mx.array(a) for a in arrays]
            for n, a in zip(chosen, given, strict=True):
                every[n] = a
            return convolve(*every)

        (value,), (got,) = mx.jvp(some, [mx.array(arrays[n]) for n in chosen], [mx.array(tangents[n]) for n in chosen])
        np.testing.assert_array_equal(np.array(value), np.array(some(*[mx.array(arrays[n]) for n in chosen])))
        ahead, behind = (
            convolve(*[a.astype("f8") + sign * (n in chosen) * tangents[n] for n, a in enumerate(arrays)])
            for sign in (0.5, -0.5)
        )  # at most a square in the step, which falls out of the difference
        np.testing.assert_allclose(np.array(got), ahead - behind, rtol=1e-4, atol=1e-4)


def test_second_derivative(mx, engine):
    """The gradient of the squared gradient, which is linear in x: twice the convolution's transpose applied twice."""
    x, weight = mx.array(numbers((1, 1, 6, 6))), mx.array(numbers((1, 1, 3, 3)))

    def squares(a):
        return (portconv.conv2d(a, weight, engine=engine) ** 2).sum()

    def gradient_norm(a):
        return (mx.grad(squares)(a) ** 2).sum()

    got, step = np.array(mx.grad(gradient_norm)(x)), 1e-2
    for place in ((0, 0, 0, 0), (0, 0, 3, 2)):
        nudge = np.zeros((1, 1, 6, 6), "f4")
        nudge[place] = step
        slope = (gradient_norm(x + mx.array(nudge)) - gradient_norm(x - mx.array(nudge))).item() / (2 * step)
        np.testing.assert_allclose(got[place], slope, rtol=2e-2, atol=1e-2 * np.abs(got).max())


def test_compile(mx, traced_engine):
    engine = traced_engine
    arrays = [numbers(shape, seed) for seed, shape in enumerate(((2, 4, 7, 8), (6, 4, 3, 3), (6,)))]
    expected = reference_conv2d(*arrays, stride=2, padding=1)
    compiled = mx.compile(lambda *a: portconv.conv2d(*a, stride=2, padding=1, engine=engine) + 0)
    for _ in range(2):
        assert_close(np.array(compiled(*map(mx.array, arrays))), expected)
    x, weight, bias = map(mx.array, arrays)
    closed = mx.compile(lambda a: portconv.conv2d(a, weight, bias, stride=2, padding=1, engine=engine))
    for _ in range(2):
        assert_close(np.array(closed(x)), expected)
    assert_close(np.array(portconv.conv2d(x, weight, bias, stride=2, padding=1, engine=engine)), expected)


def test_compile_of_a_module(mx, traced_engine):
    """Nothing that belongs to the trace may stay in the module."""
    engine = traced_engine
    for home in ("mlx", "numpy"):
        module = portconv.Conv2d(4, 6, 3, backend=home, engine=engine, rng=1)
        x = numbers((1, 4, 7, 8))
        expected = reference_conv2d(x, *(module.state_dict()[name] for name in ("weight", "bias")))
        compiled = mx.compile(module)
        for _ in range(2):
            assert_close(np.array(compiled(mx.array(x))), expected)
            assert_close(np.array(module(mx.array(x))), expected)
        gradient = mx.compile(mx.grad(lambda a, module=module: module(a).sum()))(mx.array(x))
        assert_close(np.array(module(mx.array(x))), expected)
        assert np.isfinite(np.array(gradient)).all()


def test_vmap(mx, traced_engine):
    engine = traced_engine
    x, weight, bias = numbers((3, 2, 4, 7, 8)), numbers((3, 6, 4, 3, 3)), numbers((3, 6))
    expected = [reference_conv2d(*a, padding=1)[0] for a in zip(x, weight, bias, strict=True)]
    y = mx.vmap(lambda *a: portconv.conv2d(*a, padding=1, engine=engine))(*map(mx.array, (x, weight, bias)))
    np.testing.assert_allclose(np.array(y), np.stack(expected), rtol=1e-4, atol=1e-4)
    one = mx.vmap(lambda a: portconv.conv2d(a, mx.array(weight[0]), engine=engine))(mx.array(x))
    np.testing.assert_allclose(
        np.array(one), np.stack([reference_conv2d(a, weight[0])[0] for a in x]), rtol=1e-4, atol=1e-4
    )


def test_nonfinite_values_under_compile(mx, traced_engine):
    engine = traced_engine
    x, weight = numbers((1, 2, 30, 30)), numbers((3, 2, 5, 5))
    x[0, 0, 15, 15], x[0, 1, 3, 3] = np.nan, np.inf
    y = mx.compile(lambda *a: portconv.conv2d(*a, engine=engine))(mx.array(x), mx.array(weight))
    assert_close(np.array(y), reference_conv2d(x, weight))


def test_gpu(mx):
    """Every rule, on the GPU that MLX has (Metal, CUDA): what `mx.conv2d` gives is within the bound."""
    if not (mx.metal.is_available() or (hasattr(mx, "cuda") and mx.cuda.is_available())):
        pytest.skip("MLX has no GPU here")
    mx.set_default_device(mx.gpu)
    try:
        results = check_backend("mlx", dtypes=("float32", "float16", "bfloat16"))
        assert {result.engine for result in results} == {"native", "gemm", "winograd", "direct", "fft"}
    finally:
        mx.set_default_device(mx.cpu)
