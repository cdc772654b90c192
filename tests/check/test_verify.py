"""`portconv check` sees what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.check.verify import verify
from portconv.cpu import gradient as cpu_gradient
from portconv.testing import calls, verification
from tests.helpers import named

conv2d = portconv.conv2d


def silently_float32(x, weight, bias, **options):
    arrays = [None if a is None else a.astype("float32") for a in (x, weight, bias)]
    return conv2d(*arrays, **options).astype(weight.dtype)


def another_dtype(x, weight, bias, **options):
    return conv2d(x, weight, bias, **options).astype("float64")


def spreading_nan(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    return y if np.isfinite(x).all() else np.full_like(y, np.nan)


def last_images_zero(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    y[256:] = 0
    return y


def transposed(x, weight, bias, **options):
    return conv2d(x, weight[..., ::-1, ::-1], bias, **options)


def in_place(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    x[0, 0, 0, 0] += 1
    return y


def one_more_row(x, weight, bias, **options):
    return np.concatenate([y := conv2d(x, weight, bias, **options), y[:, :, -1:]], axis=2)


def sum_in_float16(x, weight, bias, **options):
    y = np.zeros(())
    for c in range(weight.shape[1]):
        y = y + conv2d(x[:, c : c + 1], weight[:, c : c + 1], None, **options)
    return y


def never_an_error(x, weight, bias, **options):
    return np.zeros((1, 1, 1, 1), "float32")


def wrong_name(x, weight, bias, **options):
    raise ValueError("bad sizes")


def other_error(x, weight, bias, **options):
    raise RuntimeError("no stream in this thread")


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (silently_float32, "float64, dilated"),
        (another_dtype, "3x3"),
        (spreading_nan, "nan, 3x3"),
        (spreading_nan, "inf, NHWC"),
        (last_images_zero, "3x3, 64 channels, batch 300"),
        (last_images_zero, "batch 257 of one channel"),
        (transposed, "182x182"),
        (in_place, "3x3"),
        (one_more_row, "3x3"),
        (sum_in_float16, "float16, long sum of a constant"),
        (never_an_error, "mistake: groups 0"),
        (never_an_error, "mistake: kernel beyond the image by less than the stride"),
        (wrong_name, "mistake: stride 0"),
        (other_error, "mistake: image as a list"),
        (other_error, "1x1"),
    ],
)
def test_what_is_wrong_is_seen(monkeypatch, broken, name):
    p = named(name)
    arguments = "numpy", p.number, 0, "cpu", "auto", "normwise"
    right = verify(*arguments)
    assert ("raised" in right) if p.mistake else (right["share"] <= 1)
    for module in (calls, verification):
        monkeypatch.setattr(module, "conv2d", lambda *arrays, backend=None, **options: broken(*arrays, **options))
    assert set(verify(*arguments)) == {"failed"}


@pytest.mark.parametrize("name", ["mlx", "torch", "jax"])
def test_a_wrong_gradient_is_seen(monkeypatch, request, name):
    library = request.getfixturevalue({"mlx": "mx"}.get(name, name))
    arguments = (
        name,
        named("gradient, groups, stride 2").number,
        0,
        "cpu:0" if name == "jax" else "cpu",
        "auto",
        "normwise",
    )
    assert verify(*arguments)["share"] <= 1

    def steeper(x, weight, bias=None, **options):
        """The right result, whose gradients are 1.001 times the right ones."""
        y = conv2d(x, weight, bias, **options)
        fixed = {"mlx": lambda y: library.stop_gradient(y), "torch": lambda y: y.detach()}.get(name)
        return y + (y - (fixed or library.lax.stop_gradient)(y)) * 0.001

    conv2d = portconv.conv2d
    for module in (calls, verification):
        monkeypatch.setattr(module, "conv2d", steeper)
    assert "gradient of `x`" in verify(*arguments)["failed"]


def test_a_wrong_gradient_is_seen_where_portconv_differentiates(monkeypatch):
    arguments = "numpy", named("gradient, groups, stride 2").number, 0, "cpu", "auto", "normwise"
    assert verify(*arguments)["share"] <= 1
    weight_gradient = cpu_gradient.weight_gradient
    monkeypatch.setattr(cpu_gradient, "weight_gradient", lambda *arrays: 1.001 * weight_gradient(*arrays))
    assert "gradient of `weight`" in verify(*arguments)["failed"]


def test_accuracy_is_passed_on():
    number = named("3x3").number
    assert "refused" in verify("numpy", number, 0, "cpu", "fft", "elementwise")
    assert "share" in verify("numpy", number, 0, "cpu", "fft", "normwise")
    assert "NumPy has no convolution" in verify("numpy", number, 0, "cpu", "native", "normwise")["refused"]
