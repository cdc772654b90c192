"""NumPy's engines on the memory of PyTorch's tensors, and their derivatives, to the second order."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.cpu import threads
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

CASES = {
    "plain": ((2, 4, 7, 8), (6, 4, 3, 3), {}),
    "unlike sides": ((1, 3, 7, 8), (4, 3, 3, 2), {"padding": ((2, 0), (1, 3))}),
    "stride, dilation": ((1, 4, 9, 11), (6, 4, 3, 3), {"stride": (2, 3), "dilation": (2, 1), "padding": 2}),
    "groups, reflect": ((1, 4, 7, 8), (6, 2, 3, 3), {"groups": 2, "padding": 2, "padding_mode": "reflect"}),
    "depthwise, circular": ((1, 4, 7, 8), (4, 1, 3, 3), {"groups": 4, "padding": 1, "padding_mode": "circular"}),
    "NHWC, replicate": ((1, 7, 8, 3), (5, 3, 3, 3), {"layout": "NHWC", "padding": 1, "padding_mode": "replicate"}),
    "taps that meet no pixel": ((1, 2, 2, 2), (3, 2, 5, 5), {"padding": 3}),
}


def arrays_of(torch, x_shape, weight_shape):
    shapes = (x_shape, weight_shape, (weight_shape[0],))
    return [torch.tensor(numbers(shape, n).astype("f8"), requires_grad=True) for n, shape in enumerate(shapes)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("needed", [(0, 1, 2), (0,), (1,), (2,)], ids=str)
def test_derivatives(torch, case, needed):
    x_shape, weight_shape, options = CASES[case]
    arrays = arrays_of(torch, x_shape, weight_shape)
    for n, array in enumerate(arrays):
        array.requires_grad_(n in needed)

    def convolve(*a):
        return portconv.conv2d(*a, **options, engine="gemm")

    assert torch.autograd.gradcheck(convolve, arrays)
    assert torch.autograd.gradgradcheck(lambda *a: convolve(*a).sin(), arrays)


def test_a_result_is_made_of_the_tensors_memory(torch, monkeypatch):
    """Nothing is copied before the engine sees it, whatever the order of memory."""
    host = pytest.importorskip("portconv.backends.torch.host")
    seen, view = [], host.view
    monkeypatch.setattr(host, "view", lambda x: seen.append(view(x)) or seen[-1])
    whole = torch.tensor(numbers((1, 6, 40, 20)))
    x = whole[:, ::2, 5:, 3::2]
    weight = torch.tensor(numbers((4, 3, 3, 3)))
    plan = portconv.plan_conv2d(x, weight, engine="gemm")
    y = host.torch_host_plan(plan.problem, "gemm", plan.native)
    y = y.execute(x, y.pack(weight))
    assert any(np.shares_memory(s, whole.numpy()) and s.shape == tuple(x.shape) for s in seen)
    assert_close(y.numpy(), reference_conv2d(x.numpy(), weight.numpy()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "uint8", "bool"])
def test_dtypes(torch, dtype):
    x = (torch.tensor(numbers((2, 4, 9, 8))) * 3).to(getattr(torch, dtype))
    weight = torch.tensor(numbers((6, 4, 3, 3))).to(x.dtype if x.dtype.is_floating_point else torch.float32)
    y = portconv.conv2d(x, weight, padding=1, engine="gemm")
    assert y.dtype == weight.dtype
    exact = reference_conv2d(x.double().numpy(), weight.double().numpy(), padding=1)
    assert_close(y.double().numpy(), exact, dtype=str(y.dtype)[6:])


def test_negated_views(torch):
    """PyTorch keeps the sign of some results as a bit of its own, which NumPy does not know."""
    x = torch.imag(torch.complex(torch.zeros(1, 2, 6, 6), torch.tensor(numbers((1, 2, 6, 6)))).conj())
    assert x.is_neg()
    weight = torch.tensor(numbers((3, 2, 3, 3)))
    y = portconv.conv2d(x, weight, engine="gemm")
    assert_close(y.numpy(), reference_conv2d(x.resolve_neg().numpy(), weight.numpy()))


def test_a_parameter_that_records_nothing_now_is_packed_once(torch, monkeypatch):
    x, weight = torch.tensor(numbers((1, 3, 12, 12))), torch.nn.Parameter(torch.tensor(numbers((4, 3, 3, 3))))
    kind = type(portconv.plan_conv2d(x, weight, engine="winograd"))
    packed, pack = [], kind.pack
    monkeypatch.setattr(kind, "pack", lambda self, w: packed.append(1) or pack(self, w))
    for _ in range(3):
        with torch.no_grad():
            y = portconv.conv2d(x, weight, engine="winograd")
        assert not y.requires_grad
    assert len(packed) == 1
    with torch.no_grad():
        weight.mul_(2)  # what an optimizer does
        twice = portconv.conv2d(x, weight, engine="winograd")
    torch.testing.assert_close(twice, 2 * y)
    assert portconv.conv2d(x, weight, engine="winograd").requires_grad


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_what_follows_the_sums_of_images_with_channels_last(torch, padding_mode, threads):
    """By whichever plan is best there: with one thread and a border, PyTorch's own, in parts."""
    x, weight, bias = numbers((1, 4, 44, 23)), numbers((17, 4, 21, 9), 1), numbers((17,), 2)
    options = {"padding": ((2, 3), (2, 5)), "padding_mode": padding_mode}
    exact = reference_conv2d(x, weight, bias, **options)
    residual = numbers(exact.y.shape, 3)
    image, added = (torch.tensor(a).to(memory_format=torch.channels_last) for a in (x, residual))
    before = portconv.get_num_threads()
    portconv.set_num_threads(threads)
    try:
        for given in (None, added):
            y = portconv.conv2d(
                image, torch.tensor(weight), torch.tensor(bias), activation="relu", residual=given, **options
            )
            assert_close(y.numpy(), exact.finished("relu", None if given is None else residual))
    finally:
        portconv.set_num_threads(before)


def test_its_own_routine_stores_sums_as_they_are(torch):
    plan = portconv.plan_conv2d((1, 9, 9, 8), (4, 8, 3, 3), layout="NHWC", backend="torch", engine="native")
    assert not plan.fuses(torch.ones(1, 9, 9, 8), plan.pack(torch.ones(4, 8, 3, 3)))


def test_a_packed_weight_keeps_no_weight_alive(torch):
    import gc
    import weakref

    weight = torch.tensor(numbers((4, 3, 3, 3)))
    portconv.conv2d(torch.ones(1, 3, 9, 9), weight, engine="gemm")
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None


def test_no_more_threads_than_pytorch_has(torch, monkeypatch):
    """As in the workers of a DataLoader, which have one each."""
    found, allowed = [], threads.allowed_threads
    monkeypatch.setattr(threads, "allowed_threads", lambda: found.append(allowed()) or found[-1])
    x, weight = torch.tensor(numbers((1, 16, 40, 40))), torch.tensor(numbers((16, 16, 3, 3)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        portconv.conv2d(x, weight, engine="direct")
    finally:
        torch.set_num_threads(before)
    assert set(found) == {1}
    assert threads.allowed_threads() == portconv.get_num_threads()


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # PyTorch's own
def test_transforms_see_constants(torch, engine):
    """Under a transform NumPy sees no tensor, one that is not transformed neither."""
    x, weight = torch.tensor(numbers((1, 2, 7, 8))), torch.tensor(numbers((3, 2, 3, 3)))
    plain = portconv.conv2d(x, weight, engine=engine)
    factors = torch.tensor([1.0, 2.0])
    several = torch.func.vmap(lambda a: a * portconv.conv2d(x, weight, engine=engine))(factors)
    torch.testing.assert_close(several, torch.stack([plain, 2 * plain]), rtol=1e-4, atol=1e-5)
    many = torch.func.vmap(lambda image: portconv.conv2d(image, weight, engine=engine))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(many, torch.stack([plain, 2 * plain]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(portconv.conv2d(x, weight, engine=engine), plain)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_jacobians(torch, engine, padding_mode):
    x, weight = (torch.tensor(numbers(shape).astype("f8")) for shape in ((1, 2, 4, 5), (2, 2, 3, 3)))

    def convolve(x, weight):
        return portconv.conv2d(x, weight, padding=1, padding_mode=padding_mode, engine=engine)

    def theirs(x, weight):
        mode = "constant" if padding_mode == "zeros" else padding_mode
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode=mode), weight)

    for argument in (0, 1):
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            found, expected = (transform(f, argnums=argument)(x, weight) for f in (convolve, theirs))
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("engine", ["auto", "gemm", "winograd", "direct", "fft"])
@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_channels_last_in_channels_last_out(torch, engine, kind, needs):
    """As PyTorch does; with gradients, and for a weight that changes."""
    groups = 6 if kind == "depthwise" else 1
    values = numbers((2, 6, 12, 13)), numbers((6, 6 // groups, 3, 3), 1)
    needs(engine, *values, groups=groups, padding=1)
    x = torch.tensor(values[0]).contiguous(memory_format=torch.channels_last)
    weight = torch.tensor(values[1])
    plan = portconv.plan_conv2d(x, weight, engine=engine, padding=1, groups=groups)
    for _ in range(2):
        y = portconv.conv2d(x, weight, padding=1, groups=groups, engine=engine)
        assert y.is_contiguous(memory_format=torch.channels_last)
        expected = reference_conv2d(values[0], weight.numpy(), padding=1, groups=groups)
        assert_close(y.numpy(), expected)
        weight += 1
    assert engine in ("auto", plan.engine)
    arrays = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [a.detach().clone().requires_grad_() for a in arrays]
    portconv.conv2d(*arrays, padding=1, groups=groups, engine=engine).square().sum().backward()
    torch.nn.functional.conv2d(*theirs, padding=1, groups=groups).square().sum().backward()
    for found, right in zip(arrays, theirs, strict=True):
        torch.testing.assert_close(found.grad, right.grad, rtol=1e-3, atol=1e-2)


def test_engines_of_weights_that_are_recorded(torch):
    """Packing counts, unless an engine was named; and what is packed so is read by a plan for another image, too."""
    pytest.importorskip("portconv.backends.torch.host")
    x, weight = torch.ones(8, 64, 7, 7), torch.tensor(numbers((64, 64, 3, 3)), requires_grad=True)
    named = portconv.plan_conv2d(x, weight, padding=1, engine="winograd", backend="torch")
    assert named.once.engine == "winograd"
    assert named.once.problem.packed_once
    other = torch.tensor(numbers((1, 64, 9, 30)))
    plan = portconv.plan_conv2d(other, weight, padding=1, engine="gemm", backend="torch")
    packed = portconv.plan_conv2d(x, weight, padding=1, engine="gemm", backend="torch").pack(weight)
    y = plan.execute(other, packed)
    assert_close(y.detach().numpy(), reference_conv2d(other.numpy(), weight.detach().numpy(), padding=1))
