"""`conv2d` within `torch.compile` and `torch.export`."""

from __future__ import annotations

import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d


@pytest.fixture
def arrays(torch):
    pytest.importorskip("portconv.torch")
    torch.manual_seed(0)
    torch.compiler.reset()
    return torch.randn(2, 4, 9, 12), torch.randn(6, 4, 3, 3), torch.randn(6)


def compiled(torch, **options):
    def function(*arrays):
        return portconv.conv2d(*arrays, **options).relu()

    return torch.compile(function, fullgraph=True, backend="aot_eager"), function


OPTIONS = [
    {},
    {"padding": 1, "stride": (2, 1)},
    {"padding": "same", "stride": 3},
    {"padding": ((2, 0), (1, 3)), "padding_mode": "reflect", "dilation": [1, 2]},
    {"engine": "gemm", "padding": (1, 2), "accuracy": "elementwise"},
    {"out_dtype": "float64"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_it_is_one_operation_of_a_graph(torch, arrays, options, dynamic):
    function, eager = compiled(torch, **options)
    function = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    y = function(*arrays)
    torch.testing.assert_close(y, eager(*arrays), rtol=0, atol=0)
    larger = torch.randn(3, 4, 15, 13)
    torch.testing.assert_close(function(larger, *arrays[1:]), eager(larger, *arrays[1:]), rtol=0, atol=0)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", ("leaky_relu", 0.2)])
@pytest.mark.parametrize("added", [False, True])
def test_what_follows_the_sums(torch, arrays, activation, added):
    def function(x, weight, bias, residual):
        given = {"residual": residual} if added else {}
        return portconv.conv2d(x, weight, bias, padding=1, activation=activation, **given)

    given = [*arrays, torch.randn(2, 6, 9, 12)]
    y = torch.compile(function, fullgraph=True, backend="aot_eager")(*given)
    torch.testing.assert_close(y, function(*given))
    halves = [array.bfloat16() for array in given]
    y = torch.compile(function, fullgraph=True, backend="aot_eager")(*halves)
    torch.testing.assert_close(y, function(*halves), rtol=0, atol=0)


def test_a_residual_of_another_shape_is_told_in_a_graph(torch, arrays):
    def function(*arrays):
        return portconv.conv2d(*arrays, padding=1, residual=torch.ones(2, 1, 9, 12))

    with pytest.raises(Exception, match="`residual` must have the shape"):
        torch.compile(function, fullgraph=True, backend="aot_eager")(*arrays)


def test_layouts_and_memory_formats(torch, arrays):
    x, weight, bias = arrays
    function, eager = compiled(torch, layout="NHWC", padding=1)
    last = x.permute(0, 2, 3, 1)
    for image in (last, last.contiguous()):
        torch.testing.assert_close(function(image, weight, bias), eager(image, weight, bias), rtol=0, atol=0)
    function, eager = compiled(torch, padding=1)
    y = function(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = reference_conv2d(x.numpy(), weight.numpy(), bias.numpy(), padding=1)
    assert_close(portconv.conv2d(x, weight, bias, padding=1).numpy(), expected)
    torch.testing.assert_close(y, eager(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (True, False, True)])
def test_gradients(torch, arrays, wanted):
    function, eager = compiled(torch, padding=1, stride=2)
    found = []
    for f in (function, eager):
        given = [a.clone().requires_grad_(want) for a, want in zip(arrays, wanted, strict=True)]
        f(*given).square().sum().backward()
        found.append([a.grad for a in given])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_export(torch, arrays):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(arrays[1])

        def forward(self, x):
            return portconv.conv2d(x, self.weight, padding=1).relu()

    model = Model()
    program = torch.export.export(model, (arrays[0],), strict=True)
    assert any("portconv.conv2d" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(arrays[0]), model(arrays[0]), rtol=0, atol=0)
    # which does not read code, but watches what PyTorch is called for
    program = torch.export.export(model, (arrays[0],), strict=False)
    torch.testing.assert_close(program.module()(arrays[0]), model(arrays[0]))


def test_pytorchs_own_check_of_an_operation(torch, arrays):
    x, weight, bias = (a.double().requires_grad_() for a in arrays)
    arguments = ([1, 2], [1, 1, 0, 2], [1, 1], 1, "cross_correlation,default,zeros,NCHW,auto,normwise,heuristic,None")
    torch.library.opcheck(torch.ops.portconv.conv2d, (x, weight, bias, *arguments))
    torch.library.opcheck(torch.ops.portconv.conv2d, (x, weight, None, *arguments))


def test_wrong_arguments_are_told(torch, arrays):
    for options, words in (({"padding": -1}, "padding"), ({"out": arrays[0]}, "`out`"), ({"engine": "gem"}, "gem")):
        function, _ = compiled(torch, **options)
        with pytest.raises(Exception, match=words):
            function(*arrays)
