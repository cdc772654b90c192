"""`portconv.torch`: the layer, and the exchange of a model's own."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

import portconv
from portconv import weights
from portconv.testing import assert_close, reference_conv2d


@pytest.fixture
def pt(torch):
    return pytest.importorskip("portconv.torch")


OPTIONS = {
    "plain": ((4, 6, 3), {}),
    "1x1, no bias": ((4, 6, 1), {"bias": False}),
    "stride, padding": ((4, 6, (3, 5)), {"stride": (2, 1), "padding": (1, 2)}),
    "depthwise": ((4, 4, 3), {"groups": 4, "padding": 1}),
    "groups, dilation": ((4, 6, 3), {"groups": 2, "dilation": 2, "padding": 2}),
    "same": ((4, 6, 4), {"padding": "same"}),
    "reflect": ((4, 6, 3), {"padding": 2, "padding_mode": "reflect"}),
    "circular": ((4, 6, 3), {"padding": 1, "padding_mode": "circular"}),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_it_is_pytorchs_layer_in_all_but_speed(torch, pt, case):
    args, kwargs = OPTIONS[case]
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(*args, **kwargs)
    torch.manual_seed(0)
    ours = pt.Conv2d(*args, **kwargs)
    assert isinstance(ours, torch.nn.Conv2d)
    assert repr(ours) == repr(theirs)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=0)
    x = torch.randn(2, 4, 11, 12)
    for image in (x, x[0], x.contiguous(memory_format=torch.channels_last)):
        a, b = (image.clone().requires_grad_() for _ in range(2))
        y, expected = ours(a), theirs(b)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-2)


def test_training_and_inference(torch, pt):
    """An optimizer changes the weight in place, which what was packed before must not outlive."""
    torch.manual_seed(0)
    ours = torch.nn.Sequential(pt.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), pt.Conv2d(8, 2, 3))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 12, 12)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (ours, theirs)]
    for _ in range(4):
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-4)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)


def test_copies_pickles_and_dtypes(torch, pt):
    layer = pt.Conv2d(2, 3, 3, engine="gemm")
    x = torch.randn(1, 2, 8, 8)
    y = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        torch.testing.assert_close(again(x), y, rtol=0, atol=0)
        assert again.engine == again.plan(x).engine == "gemm"
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    double = copy.deepcopy(layer).double()
    exact = reference_conv2d(*(a.detach().numpy() for a in (x.double(), double.weight, double.bias)))
    assert_close(double(x.double()).detach().numpy(), exact, dtype="float64")


def test_wrong_arguments(torch, pt):
    for wrong in ({"engine": 3}, {"accuracy": "some"}, {"strategy": "guess"}):
        with pytest.raises((TypeError, ValueError), match=f"`{next(iter(wrong))}`"):
            pt.Conv2d(2, 3, 3, **wrong)
    with pytest.raises(ValueError, match="channels"):
        pt.Conv2d(2, 3, 3)(torch.ones(1, 4, 8, 8))


def test_a_model_is_exchanged_in_place(torch, pt):
    class Own(torch.nn.Conv2d):
        pass

    torch.manual_seed(0)
    shared = torch.nn.Conv2d(4, 4, 3, padding=1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(shared, torch.nn.ReLU(), shared), Own(4, 4, 1), torch.nn.Flatten()
    )
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    x, parameters = torch.randn(2, 3, 9, 9), list(model.parameters())
    expected, state = model(x), copy.deepcopy(model.state_dict())
    assert pt.replace_convolutions(model, accuracy="elementwise") == 2
    assert [type(m).__name__ for m in model.modules() if isinstance(m, torch.nn.Conv2d)] == ["Conv2d", "Conv2d", "Own"]
    assert model[1][0] is model[1][2]
    assert model[0].accuracy == "elementwise"
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    model.load_state_dict(state)
    assert pt.replace_convolutions(model) == 0


def test_what_is_no_model_is_named(torch, pt):
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module, but got builtins\.list"):
        pt.replace_convolutions([torch.nn.Conv2d(3, 4, 3)])
    with pytest.raises(TypeError, match=r"its convolution '0' got numpy\.ndarray and no torch\.Tensor"):
        pt.compare(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), torch.ones(1, 3, 9, 9).numpy())
    with pytest.raises(TypeError, match=r"Sequential\. In a whole model `portconv\.torch\.replace_convolutions`"):
        weights.from_torch(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))


def test_an_option_that_there_is_not_is_refused_and_exchanges_nothing(torch, pt):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    for name, mend in (("engin", r"Did you mean 'engine'\?"), ("padding", "'padding'")):
        with pytest.raises(TypeError, match=mend):
            pt.replace_convolutions(model, **{name: "gemm"})
        with pytest.raises(TypeError, match=mend):
            pt.Conv2d.of(model[0], **{name: "gemm"})
        with pytest.raises(TypeError, match=mend):  # whether it has a convolution or not
            pt.replace_convolutions(torch.nn.Sequential(torch.nn.ReLU()), **{name: "gemm"})
    assert type(model[0]) is torch.nn.Conv2d


def test_comparison(torch, pt):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), pt.Conv2d(4, 2, 1))
    x = torch.randn(1, 3, 20, 20)
    found = pt.compare(model, x, rounds=2)
    assert [name for name, *_ in found.layers] == ["0", "2"]
    assert type(model[0]) is torch.nn.Conv2d and not model[0]._forward_pre_hooks
    assert found.torch_ms > 0 < found.portconv_ms
    assert all(ms > 0 for ms in found.model_ms)
    assert [line.split("  ")[0] for line in str(found).splitlines()[-2:]] == ["all 2", "the model"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_exported_and_traced(torch, pt):
    """PyTorch's own convolution takes part there, without a break of the graph."""
    model = torch.nn.Sequential(pt.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()).eval()
    x = torch.randn(1, 3, 9, 9)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_comparison_leaves_the_model_as_it_is(torch, pt):
    """Batch normalisation keeps statistics of what it sees while training."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    before = copy.deepcopy(model.state_dict())
    pt.compare(model, torch.randn(2, 3, 9, 9), rounds=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, *_ in pt.compare(model[0], torch.randn(2, 3, 9, 9), rounds=1).layers] == [""]


def test_a_layer_sees_every_change_of_its_parameters(torch, pt):
    x, layer = torch.randn(1, 3, 9, 9), pt.Conv2d(3, 4, 3)

    def right():
        with torch.no_grad():
            expected = torch.nn.functional.conv2d(x.to(layer.weight.dtype), layer.weight, layer.bias)
            torch.testing.assert_close(layer(x.to(layer.weight.dtype)), expected)

    right()
    with torch.no_grad():
        layer.weight.mul_(2)
    right()
    layer.weight.data = torch.randn(4, 3, 3, 3)
    right()
    layer.bias.data = torch.randn(4)
    right()
    layer.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    right()
    layer.load_state_dict(torch.nn.Conv2d(3, 4, 3).state_dict())
    right()
    layer.double()
    right()
    layer.bias = None
    right()
    with portconv.use_backend("torch"):
        right()
    layer(x.double()).sum().backward()
    assert layer.weight.grad is not None
    right()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_sparse_and_quantised_tensors_are_refused(torch):
    x, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    with pytest.raises(TypeError, match=r"`x`.*to_dense"):
        portconv.conv2d(x.to_sparse(), weight)
    with pytest.raises(TypeError, match=r"`weight`.*to_dense"):
        portconv.conv2d(x, weight.to_sparse())
    quantised = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match=r"`x`.*dequantize"):
        portconv.conv2d(quantised, weight)
