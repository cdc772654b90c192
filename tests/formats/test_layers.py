"""Layers of other libraries as `Conv2d`: what they compute is what the layer computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv import weights
from portconv.formats.layers import read

GOLDEN = Path(__file__).parents[1] / "golden"
with np.load(GOLDEN / "layers.npz", allow_pickle=False) as file:
    ARRAYS = {name: file[name] for name in file.files}
LAYERS = json.loads(ARRAYS["manifest"].tobytes())
with np.load(GOLDEN / "megengine.npz", allow_pickle=False) as file:
    MEGENGINE = {name: file[name] for name in file.files}


def close(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def stand_in(module, kind, /, **attributes):
    """A layer whose class has this name, for a library that is not installed."""
    layer = type(kind, (), {"__module__": module})()
    layer.__dict__.update(attributes)
    return layer


class Variable:
    """An array as Keras and MegEngine hold it, and Flax's nnx."""

    def __init__(self, value):
        self.value = value

    def numpy(self):
        return self.value

    def __getitem__(self, index):
        return self.value[index]


# --- Keras, Flax ------------------------------------------------------------------------------------------------------


def golden_layer(name, /, **changes):
    """Such a layer, and its parameters if it does not hold them."""
    case = LAYERS[name]
    kernel, bias = ARRAYS[f"{name}/kernel"], ARRAYS.get(f"{name}/bias")
    layer = stand_in(case["module"], case["class"], **case["attributes"])
    if "activation" in case:
        layer.activation = stand_in("builtins", "function")
        layer.activation.__module__, layer.activation.__name__ = case["activation"]
    if "linen" in case["module"]:
        params = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    else:
        layer.kernel, layer.bias, params = Variable(kernel), None if bias is None else Variable(bias), None
    layer.__dict__.update(changes)
    return layer, params


def convert(case, layer, params=None, **options):
    if case.startswith("keras"):
        return weights.from_keras(layer, **options)
    return weights.from_flax(layer, params, **{"backend": "numpy", **options})


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_keras_and_flax(name):
    """What they computed stands in golden/layers.npz: see golden/generate_layers.py."""
    layer, params = golden_layer(name)
    conv, x, y = convert(name, layer, params), ARRAYS[f"{name}/x"], ARRAYS[f"{name}/y"]
    assert conv.layout == "NHWC" and conv.weight.dtype == np.float32
    close(conv(x), y)
    turned = convert(name, layer, params, layout="NCHW", engine="gemm", name="a")
    assert (turned.engine, turned.name) == ("gemm", "a")
    close(turned(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1), y)


def generator():
    spec = importlib.util.spec_from_file_location("generate_layers", GOLDEN / "generate_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's own variables
def test_layers_of_keras_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras", reason="it is not installed")
    for _, layer, x in generator().keras_layers():
        close(weights.from_keras(layer)(x), layer(x))
        weights.save(tmp_path / "a.npz", layer)
        conv = weights.from_keras(layer)
        conv.reset_parameters(1)
        weights.load(tmp_path / "a.npz", into=conv)
        close(conv(x), layer(x))


def test_layers_of_flax_itself():
    pytest.importorskip("flax", reason="it is not installed")
    for _, layer, params, x in generator().flax_layers():
        close(weights.from_flax(layer, params)(x), layer(x) if params is None else layer.apply(params, x))


def test_keras_with_channels_first():
    layer, _ = golden_layer("keras plain", data_format="channels_first")
    conv, x = weights.from_keras(layer), ARRAYS["keras plain/x"].transpose(0, 3, 1, 2)
    assert conv.layout == "NCHW"
    close(conv(x), ARRAYS["keras plain/y"].transpose(0, 3, 1, 2))


def relu(x):
    return x


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("keras plain", dict(activation=relu), "the activation 'relu', which `Conv2d` has not"),  # the user's own
        ("keras plain", dict(activation=stand_in("keras", "Own")), "the activation .*Own"),
        ("keras plain", dict(built=False), "has no weights yet. Build it"),
        ("linen plain", dict(mask=np.ones(1)), "has a mask"),
        ("linen plain", dict(input_dilation=2), "the input_dilation 2"),
        ("linen plain", dict(kernel_size=(3,)), "in two dimensions"),
        ("linen plain", dict(kernel_size=3), "in two dimensions"),
        ("nnx plain", dict(padding="CAUSAL"), "the padding 'CAUSAL'"),
        ("linen plain", dict(conv_general_dilated=relu), "not by jax.lax"),
    ],
)
def test_what_has_no_equal_is_refused(name, changes, message):
    layer, params = golden_layer(name, **changes)
    with pytest.raises((TypeError, ValueError), match=message):
        convert(name, layer, params)


@pytest.mark.parametrize("params", [None, {}, {"kernel": np.ones(1)}, {"params": {"Conv_0": {}}}, np.ones(3)], ids=str)
def test_layers_of_flax_need_their_parameters(params):
    layer, _ = golden_layer("linen plain")
    with pytest.raises(
        ValueError, match="`params` must be the parameters of this layer, a mapping with bias and kernel"
    ):
        weights.from_flax(layer, params)
    held, _ = golden_layer("nnx plain")
    with pytest.raises(TypeError, match="holds its parameters itself"):
        weights.from_flax(held, {"kernel": 1})


# --- MegEngine --------------------------------------------------------------------------------------------------------


def megengine_cases():
    """Of its golden values, those of some families."""
    cases = json.loads(MEGENGINE["manifest"].tobytes())["cases"]
    families = ("groups", "bias", "stride", "dilation", "padding_mode")
    return [case for case in cases if case["name"].partition("/")[0] in families][::4]


@pytest.mark.parametrize("case", megengine_cases(), ids=lambda case: case["name"])
def test_layers_of_megengine(case):
    x, weight, bias, y = (None if case[key] is None else MEGENGINE[case[key]] for key in ("x", "weight", "bias", "y"))
    attributes = dict(
        stride=1, padding=0, dilation=1, groups=1, conv_mode="cross_correlation", compute_mode="default",
        padding_mode="zeros",
    )  # fmt: skip
    attributes |= {"weight": Variable(weight), "bias": None if bias is None else Variable(bias), **case["args"]}
    layer = stand_in("megengine.module.conv", "Conv2d", **attributes)
    conv = weights.from_megengine(layer)
    assert conv.weight.shape == weight.shape
    close(conv(x), y)
    assert read(layer).weight_layout == ("OIHW" if attributes["groups"] == 1 else "GOIHW")


def test_megengine_cases_are_there():
    found = [case["args"].get("groups", 1) > 1 for case in megengine_cases()]
    assert any(found) and not all(found)


# --- PyTorch ----------------------------------------------------------------------------------------------------------

TORCH = {
    "ambiguous": ((3, 8, 3), {}),
    "strided": ((4, 6, (3, 5)), dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False)),
    "grouped": ((6, 8, 3), dict(groups=2, padding=1, padding_mode="reflect")),
    "depthwise": ((4, 8, 4), dict(groups=4, padding="same")),
    "circular": ((4, 4, 3), dict(padding=2, padding_mode="circular", stride=2)),
    "replicate": ((4, 4, 3), dict(padding=(0, 1), padding_mode="replicate")),
    "valid": ((4, 4, 3), dict(padding="valid")),
}


@pytest.mark.parametrize("case", TORCH)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_layers_of_pytorch(torch, case):
    arguments, options = TORCH[case]
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(*arguments, **options)
    x = torch.randn(2, arguments[0], 9, 10)
    expected = layer(x).detach().numpy()
    conv = weights.from_torch(layer)
    assert type(conv.weight) is torch.Tensor
    close(conv(x).detach(), expected)
    portable = weights.from_torch(layer, backend="numpy", layout="NHWC")
    close(portable(x.numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), expected)
    with torch.no_grad():
        layer.weight.zero_()
    close(conv(x).detach(), expected)  # a copy


def test_layers_of_pytorch_derived_from_it(torch):
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 8, 3))
    x = torch.randn(1, 3, 9, 9)
    close(weights.from_torch(parametrized)(x).detach(), parametrized(x).detach())
    ours = pytest.importorskip("portconv.torch").Conv2d(3, 8, 3)
    close(weights.from_torch(ours)(x).detach(), ours(x).detach())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes_are_kept(torch, dtype):
    layer = torch.nn.Conv2d(3, 4, 3, dtype=getattr(torch, dtype))
    conv = weights.from_torch(layer)
    assert conv.weight.dtype == layer.weight.dtype and torch.equal(conv.weight, layer.weight.detach())


def test_layers_of_pytorch_that_are_others(torch):
    own = type("Standardised", (torch.nn.Conv2d,), {"forward": lambda self, x: x})
    for layer, message in (
        (own(3, 4, 3), "which has a `forward` of its own"),
        (torch.nn.Linear(3, 4), "must be a torch.nn.Conv2d, but got torch.nn.modules.linear.Linear"),
        (torch.nn.ConvTranspose2d(3, 4, 3), "must be a torch.nn.Conv2d"),
        (torch.nn.Conv1d(3, 4, 3), "must be a torch.nn.Conv2d"),
        (None, "must be a torch.nn.Conv2d, but got builtins.NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            weights.from_torch(layer)
    with pytest.raises(ValueError, match="no weights yet"):
        weights.from_torch(torch.nn.LazyConv2d(4, 3))
    with pytest.raises(TypeError, match=r"must be an mlx\.nn\.Conv2d"):
        weights.from_mlx(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(TypeError, match="no argument `stride`; `Conv2d` takes 'layout', 'name'"):
        weights.from_torch(torch.nn.Conv2d(3, 4, 3), stride=2)


# --- MLX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_layers_of_mlx(mx, groups):
    nn = pytest.importorskip("mlx.nn")
    layer = nn.Conv2d(3 * groups, 8, 3, stride=(1, 2), padding=1, groups=groups)  # (8, 3, 3, 3)
    layer.bias = mx.arange(8.0)
    x = mx.random.normal((1, 9, 8, 3 * groups), key=mx.random.key(0))
    conv = weights.from_mlx(layer)
    assert type(conv.weight) is mx.array and conv.layout == "NHWC"
    close(conv(x), layer(x))
    close(weights.from_mlx(layer, backend="numpy")(np.array(x)), layer(x))


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "axes", "groups"),
    [("OIHW", "oihw", 1), ("OHWI", "ohwi", 1), ("HWIO", "hwio", 2), ("GOIHW", "goihw", 2), ("HWCM", "hwgo", 3)],
)
def test_arrays_of_a_named_layout(layout, axes, groups):
    """Against a sum over axes that are named one by one."""
    sizes = {"o": 6 if "g" not in axes else 6 // groups, "i": 1 if layout == "HWCM" else 3, "h": 3, "w": 3, "g": groups}
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal([sizes[a] for a in axes]), rng.standard_normal(6)
    x = rng.standard_normal((1, sizes["i"] * groups, 3, 3))
    conv = weights.from_arrays(weight, bias, weight_layout=layout, groups=groups)
    if "g" not in axes:  # the outputs of a group follow each other
        weight = np.stack(np.split(weight, groups, axes.index("o")))
        axes = "g" + axes
    images = x.reshape(groups, sizes["i"], 3, 3)
    if layout == "HWCM":
        images, axes = images[:, 0], axes
        expected = np.einsum(f"ghw,{axes}->go", images, weight)
    else:
        expected = np.einsum(f"gihw,{axes}->go", images, weight)
    close(conv(x), expected.reshape(1, 6, 1, 1) + bias.reshape(1, 6, 1, 1))


def test_conversions_of_layouts(backend):
    w = np.arange(8 * 3 * 2 * 5.0, dtype=np.float32).reshape(8, 3, 2, 5)
    ours = backend.array(w)
    library = portconv.get_backend(ours)
    expected = {"OHWI": w.transpose(0, 2, 3, 1), "HWIO": w.transpose(2, 3, 1, 0), "GOIHW": w.reshape(4, 2, 3, 2, 5)}
    for layout, turned in expected.items():
        found = weights.convert_layout(ours, "OIHW", layout, groups=4)
        np.testing.assert_array_equal(library.to_numpy(found), turned)
        np.testing.assert_array_equal(library.to_numpy(weights.convert_layout(found, layout, "OIHW")), w)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: weights.convert_layout(w, "OIHW", "NCHW"), ValueError, "`target` must be 'OIHW', 'OHWI'.*MLX"),
        (lambda w: weights.convert_layout(w, None, "OIHW"), TypeError, "`source` must name the layout.*does not tell"),
        (lambda w: weights.convert_layout(w[0], "OIHW", "OHWI"), ValueError, "must have 4 axes, but got 3"),
        (lambda w: weights.convert_layout(w, "GOIHW", "OIHW"), ValueError, "must have 5 axes, but got 4"),
        (lambda w: weights.convert_layout(w, "OIHW", "GOIHW"), ValueError, "`groups` is needed"),
        (lambda w: weights.convert_layout(w, "OIHW", "GOIHW", groups=3), ValueError, "`groups` must divide"),
        (lambda w: weights.convert_layout(w, "OIHW", "HWCM", groups=8), ValueError, "as many groups as input channels"),
        (lambda w: weights.convert_layout(w, "HWCM", "OIHW", groups=2), ValueError, "belongs to 3 groups"),
        (lambda w: weights.convert_layout(w, "OIHW", "OHWI", groups=0), ValueError, "`groups` must be at least 1"),
        (lambda w: weights.from_arrays(w, weight_layout=None), TypeError, "`weight_layout` must name the layout"),
        (lambda w: weights.from_arrays(w.tolist(), weight_layout="OIHW"), TypeError, "`weight` must be an array"),
        (lambda w: weights.from_arrays(w, [1], weight_layout="OIHW"), TypeError, "array was expected, but got list"),
        (lambda w: weights.from_arrays(w, w, weight_layout="OIHW"), ValueError, "`bias` must have shape"),
        (lambda w: weights.from_arrays(w, weight_layout="OIHW", groups=3), ValueError, "`groups` must divide"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((8, 3, 3, 3), np.float32))
