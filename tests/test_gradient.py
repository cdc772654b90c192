"""`conv2d_vjp` and `Conv2d.vjp`, with every library: against PyTorch in float64, finite differences, and the bounds."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.cpu import gradient
from portconv.testing import assert_close, reference_gradients
from tests.helpers import CASES, PAD_MODES, Wrapper, numbers, oracle_arguments, out_channels, refused

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
FEW = {name: CASES[name] for name in (
    "3x3", "stride above kernel", "dilation, stride, padding", "groups, 5-D weight", "depthwise",
    "reflect, four sides", "replicate", "circular, dilation, groups", "padding same, stride",
)}  # fmt: skip
few_cases = pytest.mark.parametrize("case", FEW.values(), ids=FEW)


def arrays_of(case, dtype="float32", layout="NCHW"):
    """Image, weight, bias, cotangent (all NumPy's) and arguments."""
    x_shape, weight_shape, options = case
    options = {**options, "layout": layout}
    x, weight = numbers(x_shape, 1, dtype), numbers(weight_shape, 2, dtype)
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    bias = numbers((out_channels(weight_shape),), 3, dtype)
    shapes = {k: v for k, v in options.items() if k != "compute_mode"}
    dy = numbers(portconv.conv2d_output_shape(x.shape, weight_shape, **shapes), 4, dtype)
    return x, weight, bias, dy, options


def compare(backend, found, x, weight, bias, dy, dtype="float32", **options):
    exact = reference_gradients(x, weight, dy, **oracle_arguments(options))
    for got, like, reference in zip(found, (x, weight, bias), exact, strict=True):
        assert tuple(got.shape) == like.shape
        assert backend.dtype_name(got) == dtype
        assert_close(backend.numpy(got), reference.each(lambda a, like=like: np.reshape(a, like.shape)), dtype=dtype)


# --- the values -------------------------------------------------------------------------------------------------------


@pytest.mark.every_device
@every_case
def test_within_the_bound(backend, case):
    x, weight, bias, dy, options = arrays_of(case)
    given = [backend.array(a) for a in (x, weight, bias)]
    y, vjp = portconv.conv2d_vjp(*given, **options)
    np.testing.assert_allclose(
        backend.numpy(y), backend.numpy(portconv.conv2d(*given, **options)), rtol=1e-4, atol=1e-4
    )
    compare(backend, vjp(backend.array(dy)), x, weight, bias, dy, **options)


@pytest.mark.every_device
@few_cases
@pytest.mark.parametrize("accuracy", ["normwise", "elementwise"])
def test_channels_last(backend, case, accuracy):
    x, weight, bias, dy, options = arrays_of(case, layout="NHWC")
    given = [backend.array(a) for a in (x, weight, bias)]
    _, vjp = portconv.conv2d_vjp(*given, accuracy=accuracy, **options)
    compare(backend, vjp(backend.array(dy)), x, weight, bias, dy, **options)


@pytest.mark.every_device
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(backend, dtype):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    case = (2, 6, 9, 8), (4, 3, 3, 3), {"groups": 2, "padding": 1, "stride": 2}
    given = [backend.array(a, dtype) for a in arrays_of(case)[:4]]
    _, vjp = portconv.conv2d_vjp(*given[:3], **case[2])
    compare(backend, vjp(given[3]), *map(backend.numpy, given), dtype=dtype, **case[2])


def test_mixed_dtypes(backend):
    """Each gradient has the dtype of its argument, and the cotangent that of the result."""
    if backend.name == "array_api_strict":
        pytest.skip("it has no float16")
    case = (1, 3, 7, 8), (4, 3, 3, 3), {"padding": 1}
    x, weight, bias, dy, options = arrays_of(case)
    x, bias = x.astype("float16"), bias.astype("float16")
    given = [backend.array(a) for a in (x, weight, bias)]
    y, vjp = portconv.conv2d_vjp(*given, **options)
    assert backend.dtype_name(y) == "float32"
    found = vjp(backend.array(dy))
    assert [backend.dtype_name(a) for a in found] == ["float16", "float32", "float16"]
    exact = reference_gradients(x, weight, dy, padding=1)
    for got, reference, dtype in zip(found, exact, ("float16", "float32", "float16"), strict=True):
        shaped = reference.each(lambda a, got=got: np.reshape(a, tuple(got.shape)))
        assert_close(backend.numpy(got), shaped, dtype=dtype, computed="float32")


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_a_gradient_that_its_dtype_has_no_room_for_is_infinite(backend, name):
    """And nobody warns of it, Dask neither where it computes."""
    narrow, wide, large = ("float32", "float64", 1e39) if "float64" in backend.dtypes else ("float16", "float32", 1e6)
    x, weight, bias = np.ones((1, 1, 3, 3), narrow), np.ones((1, 1, 3, 3), wide), np.ones((1,), narrow)
    y, vjp = getattr(portconv, f"{name}_vjp")(*map(backend.array, (x, weight, bias)))
    dy = backend.array(np.full(y.shape, large, wide))
    dx, dweight, dbias = vjp(dy)
    for found in (dx, dbias):
        assert np.isposinf(backend.numpy(found)).all() and backend.dtype_name(found) == narrow
    np.testing.assert_allclose(backend.numpy(dweight), np.full((1, 1, 3, 3), large * (1 if name == "conv2d" else 9)))
    x, weight = weight, x  # the other way round
    _, vjp = getattr(portconv, f"{name}_vjp")(*map(backend.array, (x, weight, bias)))
    dx, dweight, _ = vjp(dy)
    assert np.isfinite(backend.numpy(dx)).all() and np.isposinf(backend.numpy(dweight)).all()


@every_case
def test_against_pytorch_in_float64(torch, case, tier):
    x, weight, bias, dy, options = arrays_of(case, "float64")
    _, vjp = portconv.conv2d_vjp(x, weight, bias, **options)
    leaves = [torch.asarray(a).requires_grad_() for a in (x, weight, bias)]
    problem = portconv.plan_conv2d(x, weight, bias, **options).problem
    top, bottom, left, right = problem.padding
    mode = {"constant": "constant", "edge": "replicate", "wrap": "circular", "reflect": "reflect"}[
        PAD_MODES[problem.padding_mode]
    ]
    image = (
        torch.nn.functional.pad(leaves[0], (left, right, top, bottom), mode=mode) if any(problem.padding) else leaves[0]
    )
    kernel = leaves[1].reshape(-1, *weight.shape[-3:])
    y = torch.nn.functional.conv2d(image, kernel, leaves[2], problem.stride, 0, problem.dilation, problem.groups)
    y.backward(torch.asarray(dy))
    for got, leaf in zip(vjp(dy), leaves, strict=True):
        scale = float(leaf.grad.abs().max())
        np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=0, atol=1e-12 * scale)


@few_cases
def test_against_finite_differences(case, tier):
    """The convolution is linear in each argument, so that the difference of two results is exact but for rounding."""
    x, weight, bias, dy, options = arrays_of(case, "float64")
    _, vjp = portconv.conv2d_vjp(x, weight, bias, **options)
    gradients = vjp(dy)
    rng = np.random.default_rng(5)
    for n, got in enumerate(gradients):
        direction = rng.standard_normal(got.shape)
        high, low = [x, weight, bias], [x, weight, bias]
        high[n], low[n] = high[n] + direction, low[n] - direction
        difference = portconv.conv2d(*high, **options) - portconv.conv2d(*low, **options)
        expected = (dy * difference).sum() / 2
        assert abs((got * direction).sum() - expected) < 1e-10 * np.abs(dy * difference).sum()


def test_long_sums(tier):
    """Those of the weight are as long as the batch."""
    x, weight, dy = np.full((4, 3, 90, 88), 0.1, "f4"), numbers((4, 3, 3, 3)), np.full((4, 4, 90, 88), 0.1, "f4")
    _, vjp = portconv.conv2d_vjp(x, weight, padding=1)
    for got, exact in zip(vjp(dy)[:2], reference_gradients(x, weight, dy, padding=1)[:2], strict=True):
        assert_close(got, exact.each(lambda a, got=got: np.reshape(a, got.shape)))


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_the_engine_is_that_of_the_result(engine, plans, tier):
    x, weight = numbers((1, 16, 20, 20)), numbers((16, 16, 3, 3))
    y, vjp = portconv.conv2d_vjp(x, weight, padding=1, engine=engine)
    assert plans[0].engine == engine
    np.testing.assert_allclose(y, portconv.conv2d(x, weight, padding=1), rtol=1e-3, atol=1e-3)
    exact = reference_gradients(x, weight, y, padding=1)[1]
    assert_close(vjp(y)[1], exact.each(lambda a: np.reshape(a, weight.shape)))


def test_empty_batch(backend):
    x, weight, bias = backend.array(numbers((0, 3, 6, 6))), backend.array(numbers((4, 3, 3, 3))), numbers((4,))
    y, vjp = portconv.conv2d_vjp(x, weight, backend.array(bias))
    dx, dweight, dbias = vjp(y)
    assert tuple(dx.shape) == (0, 3, 6, 6)
    assert not backend.numpy(dweight).any() and not backend.numpy(dbias).any()


# --- which are wanted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrt", ["x", "weight", "bias", ("x", "bias"), ["weight", "x"]], ids=str)
def test_what_is_not_wanted_is_none(backend, wrt):
    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    given = [backend.array(a) for a in (x, weight, bias)]
    every = portconv.conv2d_vjp(*given, **options)[1](backend.array(dy))
    found = portconv.conv2d_vjp(*given, **options, wrt=wrt)[1](backend.array(dy))
    names = (wrt,) if isinstance(wrt, str) else wrt
    for name, got, expected in zip(("x", "weight", "bias"), found, every, strict=True):
        if name in names:
            np.testing.assert_allclose(backend.numpy(got), backend.numpy(expected), rtol=1e-5, atol=1e-5)
        else:
            assert got is None


def test_what_is_not_wanted_costs_nothing(monkeypatch):
    def called(*arguments):
        raise AssertionError("computed what nobody wants")

    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    gradients = ("image_gradient", "weight_gradient", "bias_gradient")
    for name, own in zip(("x", "weight", "bias"), gradients, strict=True):
        with monkeypatch.context() as patch:
            for other in gradients:
                if other != own:
                    patch.setattr(gradient, other, called)
            found = portconv.conv2d_vjp(x, weight, bias, **options, wrt=name)[1](dy)
        assert sum(value is not None for value in found) == 1


def test_without_a_bias_its_gradient_is_none(backend):
    x, weight, _, dy, options = arrays_of(CASES["3x3"])
    _, vjp = portconv.conv2d_vjp(backend.array(x), backend.array(weight), **options)
    dx, dweight, dbias = vjp(backend.array(dy))
    assert dx is not None and dweight is not None and dbias is None


def test_an_image_of_integers_has_no_gradient(backend):
    x = backend.array(np.random.default_rng(0).integers(0, 255, (1, 3, 8, 8)), "uint8")
    weight = backend.array(numbers((4, 3, 3, 3)))
    y, vjp = portconv.conv2d_vjp(x, weight)
    dx, dweight, _ = vjp(y)
    assert dx is None
    exact = reference_gradients(backend.numpy(x).astype("f4"), backend.numpy(weight), backend.numpy(y))[1]
    assert_close(backend.numpy(dweight), exact.each(lambda a: np.reshape(a, (4, 3, 3, 3))))
    refused(TypeError, ["`wrt`", "`x`", "uint8", "floating"], portconv.conv2d_vjp, x, weight, wrt="x")


# --- what users pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrt", "error"), [("y", ValueError), ((), ValueError), (("x", "dy"), ValueError), (3, TypeError), ([1], TypeError)]
)
def test_wrong_wrt(wrt, error, nothing_runs):
    x, weight = numbers((1, 3, 8, 8)), numbers((4, 3, 3, 3))
    refused(error, ["`wrt`", repr(wrt)], portconv.conv2d_vjp, x, weight, wrt=wrt)
    refused(error, ["`wrt`", repr(wrt)], portconv.Conv2d(3, 4, 3).vjp, x, wrt=wrt)


def test_no_gradient_of_a_bias_that_is_not_there():
    x, weight = numbers((1, 3, 8, 8)), numbers((4, 3, 3, 3))
    refused(ValueError, ["`wrt`", "`bias`"], portconv.conv2d_vjp, x, weight, wrt=("x", "bias"))
    refused(ValueError, ["`wrt`", "`bias`"], portconv.Conv2d(3, 4, 3, bias=False).vjp, x, wrt="bias")


def test_a_cotangent_that_does_not_match(backend):
    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    _, vjp = portconv.conv2d_vjp(*(backend.array(a) for a in (x, weight, bias)), **options)
    refused(ValueError, ["`dy`", "(2, 4, 7, 6) NCHW", "(2, 4, 6, 7)"], vjp, backend.array(dy.swapaxes(2, 3)))
    refused(ValueError, ["`dy`", "()"], vjp, backend.array(np.float32(1)))
    refused(TypeError, ["`dy`", "float32", "int32"], vjp, backend.array(dy, "int32"))
    refused(TypeError, ["`dy`", "list"], vjp, dy.tolist())
    if backend.package != "numpy":
        refused(TypeError, ["`dy`", "numpy"], vjp, dy)


def test_arguments_are_those_of_conv2d(nothing_runs):
    x, weight = numbers((1, 3, 8, 8)), numbers((4, 3, 3, 3))
    for options in ({"stride": 0}, {"padding_mode": "mirror"}, {"layout": "NCWH"}, {"accuracy": "best"}):
        messages = []
        for function in (portconv.conv2d, portconv.conv2d_vjp):
            with pytest.raises((TypeError, ValueError)) as caught:
                function(x, weight, **options)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1]
    refused(ValueError, ["`weight` has 3 input channels"], portconv.conv2d_vjp, numbers((1, 4, 8, 8)), weight)
    refused(TypeError, ["`x` must be an array"], portconv.conv2d_vjp, [[1.0]], weight)


def test_arguments_stay_as_they_are(backend):
    x, weight, bias, dy, options = arrays_of(CASES["stride pair"])
    given = [backend.array(a) for a in (x, weight, bias, dy)]
    _, vjp = portconv.conv2d_vjp(*given[:3], **options)
    first, again = vjp(given[3]), vjp(given[3])
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(backend.numpy(a), backend.numpy(b))
    for array, before in zip(given, (x, weight, bias, dy), strict=True):
        np.testing.assert_array_equal(backend.numpy(array), before)


def test_memory_orders(tier):
    x, weight, bias, dy, options = arrays_of(CASES["dilation, stride, padding"])
    expected = portconv.conv2d_vjp(x, weight, bias, **options)[1](dy)
    views = [np.asfortranarray(a) for a in (x, weight, bias)]
    swapped = dy.astype(dy.dtype.newbyteorder())
    for cotangent in (np.asfortranarray(dy), dy[..., ::-1].copy()[..., ::-1], swapped):
        for got, same in zip(portconv.conv2d_vjp(*views, **options)[1](cotangent), expected, strict=True):
            np.testing.assert_allclose(got, same, rtol=1e-4, atol=1e-4)


# --- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_layer(backend, groups, layout):
    """Gradients have the shapes of the parameters, in the library of the image."""
    conv = portconv.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, layout=layout, rng=0)
    conv.bias = numbers((1, 6, 1, 1))
    x = numbers((2, 4, 9, 8) if layout == "NCHW" else (2, 9, 8, 4))
    y, vjp = conv.vjp(backend.array(x))
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(conv(backend.array(x))))
    options = {"stride": 2, "padding": 1, "groups": groups, "layout": layout}
    compare(backend, vjp(y), x, np.asarray(conv.weight), np.asarray(conv.bias), backend.numpy(y), **options)
    assert conv.vjp(backend.array(x), wrt="bias")[1](y)[:2] == (None, None)


def test_a_layer_follows_its_weight():
    conv, x = portconv.Conv2d(3, 4, 3, rng=0), numbers((1, 3, 8, 8))
    y, vjp = conv.vjp(x)
    before = vjp(y)[0]
    conv.weight = 2 * conv.weight
    np.testing.assert_array_equal(vjp(y)[0], before)  # the function belongs to the weight that it was made with
    np.testing.assert_allclose(conv.vjp(x)[1](y)[0], 2 * before, rtol=1e-6)


def test_gradient_descent_finds_a_filter(tier):
    """Training in plain NumPy: the weight that made the targets is found again."""
    x, true = numbers((4, 2, 10, 10)), numbers((3, 2, 3, 3), 7)
    target = portconv.conv2d(x, true, padding=1)
    conv = portconv.Conv2d(2, 3, 3, padding=1, bias=False, rng=0)
    for _ in range(200):
        y, vjp = conv.vjp(x, wrt="weight")
        conv.weight = conv.weight - 0.5 * vjp((y - target) / y[:, 0].size)[1]
    np.testing.assert_allclose(conv.weight, true, atol=1e-3)


# --- libraries --------------------------------------------------------------------------------------------------------


def test_a_back_end_without_derivatives():
    """NumPy computes them: a plug-in needs no member `vjp`."""
    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    library = Wrapper()
    assert not hasattr(library, "vjp")
    found = portconv.conv2d_vjp(x, weight, bias, **options, backend=library)[1](dy)
    for got, expected in zip(found, portconv.conv2d_vjp(x, weight, bias, **options)[1](dy), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_back_end_with_derivatives_of_its_own():
    seen = []

    class Own(Wrapper):
        def vjp(self, plan, x, weight, bias, wanted, pack, /):
            seen.append(wanted)
            return plan.execute(x, pack(), bias), lambda dy: (None, weight, None)

    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    _, vjp = portconv.conv2d_vjp(x, weight, bias, **options, backend=Own(), wrt="weight")
    assert vjp(dy)[1] is weight and seen == [(False, True, False)]


def test_jax_traces_it(jax):
    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    given = [jax.numpy.asarray(a) for a in (x, weight, bias, dy)]

    def gradients(x, weight, bias, dy):
        return portconv.conv2d_vjp(x, weight, bias, **options)[1](dy)

    plainly = gradients(*given)
    _, vjp = portconv.conv2d_vjp(*given[:3], **options)
    for found in (jax.jit(gradients)(*given), jax.jit(vjp)(given[3])):
        for got, expected in zip(found, plainly, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    # and differentiates it: the gradients are linear in the cotangent
    again = jax.grad(lambda dy: gradients(*given[:3], dy)[2].sum())(given[3])
    np.testing.assert_allclose(again, np.ones_like(dy), rtol=1e-5)


def test_mlx_differentiates_it(mx):
    x, weight, bias, dy, options = arrays_of(CASES["3x3"])
    given = [mx.array(a) for a in (x, weight, bias, dy)]

    def of_weight(weight, dy):
        return portconv.conv2d_vjp(given[0], weight, given[2], **options)[1](dy)[0].sum()

    # the sum of the image's gradient, by the weight: the weight's gradient for an image of ones
    found = mx.grad(of_weight)(given[1], given[3])
    expected = portconv.conv2d_vjp(np.ones_like(x), weight, **options)[1](dy)[1]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-4)


def test_the_cotangent_stays_as_it_is(backend):
    """Sums are added in place; that over a single position is the cotangent itself."""
    library = portconv.get_backend(backend.package)
    try:
        x, weight, bias, dy = (
            library.from_numpy(np.ones(shape)) for shape in ((3, 2, 3, 3), (4, 2, 3, 3), (4,), (3, 4, 1, 1))
        )
    except TypeError:
        pytest.skip("it has no float64")
    _, vjp = portconv.conv2d_vjp(x, weight, bias)
    first, second = vjp(dy), vjp(dy)
    np.testing.assert_array_equal(library.to_numpy(dy), np.ones((3, 4, 1, 1)))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(library.to_numpy(one), library.to_numpy(other))
    np.testing.assert_array_equal(library.to_numpy(first[2]), np.full(4, 3.0))
    alone = library.from_numpy(np.ones((1, 4, 1, 1)))
    dbias = portconv.conv2d_vjp(x[:1, ...], weight, bias)[1](alone)[2]
    assert not np.shares_memory(library.to_numpy(dbias), library.to_numpy(alone))
