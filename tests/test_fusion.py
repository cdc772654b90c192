"""Batch norms and activations in the convolution before them: what is computed is what the chain computed."""

from __future__ import annotations

import re

import numpy as np
import pytest

import portconv
from portconv.fusion import fold_batch_norm, fuse

from .helpers import numbers


def statistics(channels, seed=0):
    rng = np.random.default_rng(seed)
    return [*rng.standard_normal((3, channels)), rng.random(channels) + 0.1]


@pytest.fixture(scope="module")
def torch(library):
    return library("torch").module


@pytest.fixture(scope="module")
def mlx(library):
    library("mlx")
    import mlx.nn

    return mlx.nn


def trained(torch, channels, **options):
    """A batch norm of PyTorch's that has seen images."""
    norm = torch.nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        for parameter, values in zip(norm.parameters(), numbers((2, channels)), strict=False):
            parameter.copy_(torch.from_numpy(values))
        norm(torch.from_numpy(numbers((4, channels, 5, 5)) * 3 + 1))
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_folding(groups, bias):
    conv = portconv.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias, padding_mode="reflect", rng=0)
    if bias:
        conv.bias = numbers((6,))
    before = conv.state_dict()
    weight, shift, mean, var = statistics(6)
    x = numbers((2, 4, 9, 8), dtype="f8")
    y = conv.astype("float64")(x)
    conv.astype("float32")
    for values in ((weight, shift), (None, None)):
        folded = fold_batch_norm(conv, *values, mean, var, eps=1e-3)
        scale, add = (np.ones(6) if values[0] is None else weight), (0 if values[1] is None else shift)
        factor = scale / np.sqrt(var + 1e-3)
        expected = y * factor[:, None, None] + (add - mean * factor)[:, None, None]
        np.testing.assert_allclose(folded(x.astype("f4")), expected, rtol=1e-4, atol=1e-5)
        assert folded.weight.dtype == np.float32
    after = conv.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_parameters_are_rounded_once():
    conv = portconv.Conv2d(3, 4, 3, dtype="float16", rng=0)
    weight, shift, mean, var = statistics(4)
    folded = fold_batch_norm(conv, weight, shift, mean, var)
    factor = weight / np.sqrt(var + 1e-5)
    expected = (conv.weight.astype("f8") * factor[:, None, None, None]).astype("f2")
    np.testing.assert_array_equal(folded.weight, expected)
    np.testing.assert_array_equal(folded.bias[0, :, 0, 0], (shift - mean * factor).astype("f2"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (None, {}), ("ReLU", {"inplace": True}), ("ReLU6", {}), ("LeakyReLU", {"negative_slope": 0.2}), ("SiLU", {}),
        ("Hardswish", {}), ("GELU", {}), ("Sigmoid", {}), ("Tanh", {}),
    ],
)  # fmt: skip
def test_chains_of_pytorch(torch, kind, options):
    layers = [
        torch.nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=kind is None),
        trained(torch, 6, affine=kind != "SiLU"),
    ]
    layers += [] if kind is None else [getattr(torch.nn, kind)(**options)]
    x = torch.from_numpy(numbers((2, 4, 9, 8)) * 3)
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers)(x)
        for fused in (fuse(*layers), fuse(torch.nn.Sequential(*layers))):
            np.testing.assert_allclose(fused(x).numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ReLU", "ReLU6", "LeakyReLU", "SiLU", "Hardswish", "GELU", "Sigmoid", "Tanh"])
def test_chains_of_mlx(mlx, kind):
    import mlx.core as mx

    norm = mlx.BatchNorm(6)
    norm(mx.array(numbers((4, 5, 5, 6)) * 3 + 1))
    norm.weight = mx.array(numbers((6,)))
    chain = mlx.Sequential(mlx.Conv2d(4, 6, 3, stride=2), norm, getattr(mlx, kind)())
    chain.eval()
    x = mx.array(numbers((2, 9, 8, 4)) * 3)
    np.testing.assert_allclose(np.array(fuse(chain)(x)), np.array(chain(x)), rtol=1e-4, atol=1e-5)


def test_portconv_layers():
    conv = portconv.Conv2d(3, 4, 3, rng=0, layout="NHWC", name="stem")
    x = numbers((1, 6, 6, 3))
    fused = fuse(conv, ("leaky_relu", 0.3))
    y = conv(x)
    np.testing.assert_allclose(fused(x), np.where(y > 0, y, 0.3 * y), rtol=1e-6, atol=1e-6)
    assert (fused.name, fused.layout, fused.activation) == ("stem", "NHWC", ("leaky_relu", 0.3))
    assert conv.activation is None
    assert fuse(fused).activation == fused.activation


def test_what_cannot_be_fused_is_named(torch):
    nn, conv = torch.nn, portconv.Conv2d(3, 4, 3)
    own = type("Own", (nn.ReLU,), {"forward": lambda self, x: x})()
    for chain, kind, message in (
        ((), ValueError, "`fuse` needs layers"),
        ((nn.ReLU(),), TypeError, "`chain[0]` must be a Conv2d of portconv, PyTorch or MLX, but got torch.nn.modules"),
        (
            (nn.ModuleDict({"a": nn.ReLU()}),),
            TypeError,
            "ModuleDict. A chain is one Sequential, or layers in their order.",
        ),
        ((conv, nn.MaxPool2d(2)), TypeError, "`chain[1]` must be a batch norm or an activation that `Conv2d` has, but"),
        (
            (conv, nn.ReLU(), nn.BatchNorm2d(4)),
            ValueError,
            "`chain[2]`, torch.nn.modules.batchnorm.BatchNorm2d, stands",
        ),
        ((conv, nn.BatchNorm2d(4)), ValueError, "`chain[1]`: a BatchNorm computes with the mean and the variance of"),
        ((conv, nn.BatchNorm2d(4, track_running_stats=False).eval()), ValueError, "`chain[1]`: a BatchNorm computes"),
        ((conv, nn.BatchNorm2d(5).eval()), ValueError, "`mean` must have shape (4,) or (1, 4, 1, 1), but got (5,)"),
        ((conv, nn.GELU("tanh")), ValueError, "`chain[1]`: a GELU approximated by 'tanh'"),
        ((conv, own), TypeError, "which has a `forward` of its own"),
        ((conv, "softplus"), ValueError, "`activation` must be None, 'relu'"),
        ((nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), TypeError, "`chain[1]` must be a batch norm or an activation"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            fuse(*chain)


def test_errors_of_folding():
    conv, one = portconv.Conv2d(3, 4, 3), np.ones(4)
    for arguments, kind, message in (
        ((conv, None, None, one, -one), ValueError, "`var` must be positive"),
        ((conv, None, None, one, one * np.nan), ValueError, "`var` must be positive"),
        ((conv, one[:3], None, one, one), ValueError, "`weight` must have shape (4,) or (1, 4, 1, 1), but got (3,)"),
        ((conv, None, [1, 2, 3, 4], one, one), TypeError, "`bias` must be an array, but got list"),
        ((conv, None, None, one, one, "1"), TypeError, "`eps` must be a number"),
        ((conv, None, None, one, one, -1), ValueError, "`eps` must be finite and at least 0"),
        ((fuse(conv, "relu"), None, None, one, one), ValueError, "`conv` has the activation 'relu'"),
        ((one, None, None, one, one), TypeError, "`conv` must be a Conv2d"),
    ):
        with pytest.raises(kind, match=re.escape(message)):
            fold_batch_norm(*arguments)
