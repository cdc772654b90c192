"""PyTorch: gradients, weights that change in place, and its modes."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d, reference_gradients
from tests.helpers import numbers

ENGINES = ("auto", "gemm", "winograd", "fft", "direct")

PROBLEMS = {
    "plain": ((2, 4, 7, 8), (6, 4, 3, 3), {}),
    "stride, padding": ((2, 4, 7, 8), (6, 4, 3, 3), {"stride": (2, 1), "padding": (1, 2)}),
    "dilation": ((1, 4, 9, 8), (6, 4, 3, 3), {"dilation": 2, "padding": 2}),
    "groups": ((1, 4, 7, 8), (6, 2, 3, 3), {"groups": 2}),
    "depthwise": ((1, 4, 7, 8), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "1x1": ((1, 4, 7, 8), (6, 4, 1, 1), {}),
    "large kernel": ((1, 2, 24, 24), (3, 2, 11, 11), {"padding": 5}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_autograd(torch, engine, problem, plans, needs):
    x_shape, weight_shape, options = PROBLEMS[problem]
    needs(engine, x_shape, weight_shape, **options, backend="torch")
    plans.clear()
    values = [numbers(shape, seed) for seed, shape in enumerate((x_shape, weight_shape, (weight_shape[0],)))]
    ours, theirs = ([torch.tensor(v, requires_grad=True) for v in values] for _ in range(2))
    y = portconv.conv2d(*ours, **options, engine=engine)
    assert engine in ("auto", plans[0].engine)
    expected = torch.nn.functional.conv2d(*theirs, **options)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    dy = torch.tensor(numbers(tuple(y.shape), 7))
    y.backward(dy)
    expected.backward(dy)
    for got, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.grad, right.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("needed", [(0,), (1,), (2,)], ids=str)
def test_gradients_of_some_arguments(torch, engine, needed):
    values = [numbers(s) for s in ((1, 4, 7, 8), (6, 4, 3, 3), (6,))]
    ours, theirs = ([torch.tensor(v, requires_grad=n in needed) for n, v in enumerate(values)] for _ in range(2))
    for _ in range(2):  # a second call, with what the first may have kept
        portconv.conv2d(*ours, padding=1, engine=engine).sum().backward()
        torch.nn.functional.conv2d(*theirs, padding=1).sum().backward()
    for n in needed:
        torch.testing.assert_close(ours[n].grad, theirs[n].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_autograd_of_padding_modes(torch, padding_mode):
    values = numbers((1, 2, 6, 7)), numbers((3, 2, 3, 3))
    ours, theirs = ([torch.tensor(v, requires_grad=True) for v in values] for _ in range(2))
    portconv.conv2d(*ours, padding=(2, 3), padding_mode=padding_mode).square().sum().backward()
    padded = torch.nn.functional.pad(theirs[0], (3, 3, 2, 2), mode=padding_mode)
    torch.nn.functional.conv2d(padded, theirs[1]).square().sum().backward()
    for got, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.grad, right.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradcheck(torch, engine):
    arrays = [torch.tensor(numbers(s).astype("f8"), requires_grad=True) for s in ((1, 2, 5, 4), (2, 2, 3, 3), (2,))]
    stride = (1, 2) if engine != "winograd" else 1
    assert torch.autograd.gradcheck(lambda *a: portconv.conv2d(*a, stride=stride, padding=1, engine=engine), arrays)


@pytest.mark.parametrize("engine", ENGINES)
def test_second_order(torch, engine):
    generator = torch.Generator().manual_seed(0)
    arrays = [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((1, 2, 4, 5), (2, 2, 3, 3), (2,))
    ]
    stride = (1, 2) if engine != "winograd" else 1

    def convolve(*a):
        return portconv.conv2d(*a, stride=stride, padding=1, padding_mode="replicate", engine=engine)

    assert torch.autograd.gradgradcheck(convolve, arrays)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_gradients_are_rounded_once(torch, engine, dtype, padding_mode):
    """Copies in the border, and windows that overlap, are many contributions to one pixel."""
    values = [numbers(s, seed) for seed, s in enumerate(((2, 3, 9, 8), (4, 3, 3, 3), (4,)))]
    arrays = [torch.tensor(v).to(getattr(torch, dtype)).requires_grad_() for v in values]
    options = {"padding": (4, 5), "padding_mode": padding_mode}
    y = portconv.conv2d(*arrays, **options, engine=engine)
    dy = torch.tensor(numbers(tuple(y.shape), 5)).to(y.dtype)
    found = torch.autograd.grad(y, arrays, dy)
    exact = [a.detach().double().numpy() for a in (*arrays[:2], dy)]
    for gradient, expected in zip(found, reference_gradients(*exact, **options), strict=True):
        assert gradient.dtype == arrays[0].dtype
        assert_close(gradient.double().numpy(), expected, dtype=dtype)


@pytest.mark.parametrize("engine", ENGINES)
def test_transforms_of_functions(torch, engine):
    """`torch.func` differentiates, too."""
    shapes = ((1, 3, 6, 7), (2, 3, 3, 3), (2,))
    arrays = [torch.tensor(numbers(shape, seed)).bfloat16() for seed, shape in enumerate(shapes)]
    dy = torch.tensor(numbers((1, 2, 10, 13), 5)).bfloat16()
    options = {"padding": (3, 4), "padding_mode": "replicate"}

    def convolve(*a):
        return portconv.conv2d(*a, **options, engine=engine)

    def loss(*a):
        return (convolve(*a).float() * dy).sum()

    expected = reference_gradients(*(a.double().numpy() for a in (*arrays[:2], dy)), **options)
    _, vjp = torch.func.vjp(convolve, *arrays)
    for found in (vjp(dy), torch.func.grad(loss, argnums=(0, 1, 2))(*arrays)):
        for gradient, right in zip(found, expected, strict=True):
            assert gradient.dtype == torch.bfloat16
            assert_close(gradient.double().numpy(), right, dtype="bfloat16")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # PyTorch's own
def test_forward_derivatives(torch, engine):
    x, weight, bias = (torch.tensor(numbers(s).astype("f8")) for s in ((1, 3, 6, 7), (2, 3, 3, 3), (2,)))
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.flip(-1))
        y = forward_ad.unpack_dual(portconv.conv2d(dual, weight, bias, padding=1, engine=engine))
    torch.testing.assert_close(y.primal, portconv.conv2d(x, weight, bias, padding=1))
    torch.testing.assert_close(y.tangent, portconv.conv2d(x.flip(-1), weight, padding=1))


def _apart_from_the_image():
    yield "the padding alone", (1, 2, 3, 3), {"padding": 8, "stride": 20}
    yield "between dilated taps", (1, 2, 2, 2), {"padding": ((5, 5), (5, 5)), "stride": 30, "dilation": (3, 4)}
    yield "no image", (0, 2, 4, 4), {}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", list(_apart_from_the_image()), ids=lambda case: case[0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_that_meet_no_pixel_keep_their_gradients(torch, engine, case, dtype, needs):
    _, shape, options = case
    kind = getattr(torch, dtype)
    x, weight = torch.ones(shape, dtype=kind), torch.ones((3, 2, 3, 3), dtype=kind)
    x.fill_(torch.nan)  # which reaches no output
    needs(engine, x, weight, **options)
    arrays = [x.requires_grad_(), weight.requires_grad_(), torch.ones(3, dtype=kind, requires_grad=True)]
    for n, alone in enumerate(arrays):
        others = [a if a is alone else a.detach() for a in arrays]
        y = portconv.conv2d(*others, **options, engine=engine)
        assert y.dtype == kind
        assert y.isfinite().all()
        (gradient,) = torch.autograd.grad(y.sum(), [alone])
        expected = y[:, 0].numel() if n == 2 else 0
        torch.testing.assert_close(gradient, torch.full_like(alone, expected))


def test_training_a_parameter(torch):
    """An optimiser changes the weight in place between calls."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator))
    twin = torch.nn.Parameter(weight.detach().clone())
    for parameter, convolve in ((weight, portconv.conv2d), (twin, torch.nn.functional.conv2d)):
        optimiser = torch.optim.SGD([parameter], lr=1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            convolve(x, parameter).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(weight, twin, rtol=1e-4, atol=1e-5)


CHANGES = {
    "assignment": lambda torch, w: w.__setitem__((0, 0), 5.0),
    "zero_": lambda torch, w: w.zero_(),
    "view": lambda torch, w: w[1:].mul_(3),
    "copy_": lambda torch, w: w.copy_(torch.full_like(w, 2.0)),
    "out": lambda torch, w: torch.add(w, 1, out=w),
    "set_": lambda torch, w: w.set_(torch.full_like(w, 4.0)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_changed_in_place_counts(torch, engine, change):
    x, weight = torch.tensor(numbers((1, 2, 8, 8))), torch.tensor(numbers((3, 2, 3, 3)))
    for _ in range(2):
        portconv.conv2d(x, weight, engine=engine)
    CHANGES[change](torch, weight)
    assert_close(portconv.conv2d(x, weight, engine=engine).numpy(), reference_conv2d(x.numpy(), weight.numpy()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_parameter_of_a_module_changed_in_place_counts(torch, engine, change):
    module = portconv.Conv2d(2, 3, 3, backend="torch", engine=engine, rng=1)
    x = torch.tensor(numbers((1, 2, 8, 8)))
    for _ in range(2):
        module(x)
    CHANGES[change](torch, module.weight)
    module.bias.add_(1)
    state = module.state_dict()
    assert_close(module(x).numpy(), reference_conv2d(x.numpy(), state["weight"], state["bias"]))


def test_packed_weights_are_kept(torch, monkeypatch):
    """The counter that shows changes also shows that there was none."""
    x, weight = torch.ones(1, 2, 30, 30), torch.ones(3, 2, 11, 11)
    kind = type(portconv.plan_conv2d(x, weight, engine="fft"))
    packed, pack = [], kind.pack
    monkeypatch.setattr(kind, "pack", lambda self, w: packed.append(1) or pack(self, w))
    for _ in range(3):
        portconv.conv2d(x, weight, engine="fft")
    assert len(packed) == 1
    weight += 1
    portconv.conv2d(x, weight, engine="fft")
    assert len(packed) == 2


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_inference_mode(torch, engine, dtype):
    """Tensors made in inference mode may change unseen, and may not take part in a recorded graph."""
    kind, size = getattr(torch, dtype), 11 if engine != "winograd" else 3
    x, weight = torch.tensor(numbers((1, 2, 24, 24))).to(kind), torch.tensor(numbers((3, 2, size, size))).to(kind)
    with torch.inference_mode():
        portconv.conv2d(x, weight, engine=engine)
        own = weight.clone()
        for value in (1.0, 2.0):
            own.fill_(value)
            y = portconv.conv2d(x, own, engine=engine)
            assert_close(y.float().numpy(), reference_conv2d(x.numpy(), np.full(weight.shape, value)), dtype=dtype)
    image = x.clone().requires_grad_()
    y = portconv.conv2d(image, weight, engine=engine)
    y.sum().backward()
    theirs = x.float().requires_grad_()
    torch.nn.functional.conv2d(theirs, weight.float()).sum().backward()
    torch.testing.assert_close(image.grad.float(), theirs.grad, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("home", ["numpy", "torch"])
def test_a_module_used_in_inference_mode_first(torch, engine, home):
    module = portconv.Conv2d(2, 3, 11 if engine != "winograd" else 3, backend=home, engine=engine, rng=1)
    x = torch.tensor(numbers((1, 2, 24, 24)))
    with torch.inference_mode():
        before = module(x).numpy()
    image = x.clone().requires_grad_()
    y = module(image)
    np.testing.assert_allclose(y.detach().numpy(), before, rtol=1e-6)
    y.sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_module_made_in_inference_mode(torch):
    """Its tensors have no counter of changes, so nothing may be kept of them."""
    x = torch.tensor(numbers((1, 2, 24, 24)))
    with torch.inference_mode():
        module = portconv.Conv2d(2, 3, 3, bias=False, backend="torch", engine="fft", rng=1)
        module(x)
        module.weight.zero_()
        np.testing.assert_array_equal(module(x).numpy(), 0)


def test_gradients_of_a_modules_parameters(torch):
    module = portconv.Conv2d(2, 3, 3, backend="torch", rng=1)
    x = torch.tensor(numbers((1, 2, 8, 8)))
    module(x)
    module.weight.requires_grad_()
    module.bias.requires_grad_()
    for _ in range(2):
        module(x).square().sum().backward()
    twin = [torch.tensor(module.state_dict()[name], requires_grad=True) for name in ("weight", "bias")]
    for _ in range(2):
        torch.nn.functional.conv2d(x, twin[0], twin[1].reshape(-1)).square().sum().backward()
    torch.testing.assert_close(module.weight.grad, twin[0].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.bias.grad, twin[1].grad, rtol=1e-4, atol=1e-4)


def test_the_memory_formats_of_torch(torch):
    x, weight = torch.tensor(numbers((2, 4, 7, 8))), torch.tensor(numbers((6, 4, 3, 3)))
    last = torch.channels_last
    y = portconv.conv2d(x.to(memory_format=last), weight.to(memory_format=last), padding=1)
    assert_close(y.numpy(), reference_conv2d(x.numpy(), weight.numpy(), padding=1))
    expanded = x[:1, :, :1, :1].expand(1, 4, 6, 6)
    assert_close(portconv.conv2d(expanded, weight).numpy(), reference_conv2d(expanded.numpy(), weight.numpy()))


def test_a_parameter_is_a_tensor(torch):
    weight = torch.nn.Parameter(torch.ones(1, 1, 3, 3), requires_grad=False)
    y = portconv.conv2d(torch.ones(1, 1, 4, 4), weight)
    assert type(y) is torch.Tensor
    module = portconv.Conv2d(1, 1, 3)
    module.weight = torch.nn.Parameter(torch.ones(1, 1, 3, 3))
    np.testing.assert_array_equal(module.weight, 1)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps", "cpu"])
def test_waiting_is_for_the_gpu_of_the_tensor(library, monkeypatch, kind):
    """Of several GPUs the current one need not be the one that computes."""
    waited, torch = [], library("torch").module
    for module in (torch.cuda, torch.xpu, torch.mps):
        monkeypatch.setattr(module, "synchronize", lambda *device: waited.append(device))

    class Tensor:
        device = torch.device(kind, 1) if kind in ("cuda", "xpu") else torch.device(kind)

    portconv.get_backend("torch").synchronize(Tensor())
    assert waited == {"cpu": [], "mps": [()]}.get(kind, [(Tensor.device,)])
