"""The oracle: against PyTorch, and its gradients against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.testing import make_data, reference_conv2d, reference_gradients
from tests.helpers import CASES, GRADIENTS, numbers, out_channels


@pytest.mark.parametrize("case", [name for name in CASES if name != "float32 mode"])
def test_oracle_agrees_with_torch(torch, case):
    x_shape, weight_shape, options = CASES[case]
    x, weight = (numbers(shape, seed).astype(np.float64) for seed, shape in enumerate((x_shape, weight_shape)))
    bias = numbers((out_channels(weight_shape),), 2).astype(np.float64)
    y, c, *_ = reference_conv2d(x, weight, bias, **options)
    four_d = weight.reshape(-1, *weight_shape[-3:])
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
    top, bottom, left, right = sides(x_shape, weight_shape, options)
    padded = torch.nn.functional.pad(
        torch.asarray(x), (left, right, top, bottom), mode=modes[options.get("padding_mode", "zeros")]
    )
    arguments = {key: options[key] for key in ("stride", "dilation", "groups") if key in options}
    theirs = torch.nn.functional.conv2d(padded, torch.asarray(four_d), torch.asarray(bias), **arguments)
    np.testing.assert_allclose(y, theirs.numpy(), rtol=1e-11, atol=1e-11)
    absolute = torch.nn.functional.conv2d(
        padded.abs(), torch.asarray(np.abs(four_d)), torch.asarray(np.abs(bias)), **arguments
    )
    np.testing.assert_allclose(c, absolute.numpy(), rtol=1e-11)
    last = reference_conv2d(x.transpose(0, 2, 3, 1), weight, bias, **options, layout="NHWC").y
    np.testing.assert_array_equal(last, y.transpose(0, 2, 3, 1))


def sides(x_shape, weight_shape, options):
    """Padding as (top, bottom, left, right), by the words of the documentation."""
    padding = options.get("padding", 0)
    two = lambda value: tuple(value) if isinstance(value, (tuple, list)) else (value, value)  # noqa: E731
    if isinstance(padding, str):
        found = []
        for size, kernel, stride, dilation in zip(
            x_shape[2:], weight_shape[-2:], two(options.get("stride", 1)), two(options.get("dilation", 1)), strict=True
        ):
            total = max((int(np.ceil(size / stride)) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            found += [0, 0] if padding == "valid" else [total // 2, total - total // 2]
        return found
    rows, columns = (
        (two(part) for part in np.asarray(padding).tolist()) if np.ndim(padding) else (two(padding), two(padding))
    )
    return (*rows, *columns)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", GRADIENTS, ids=lambda p: p.name)
def test_exact_gradients(p):
    """By their definition: the convolution is linear in the image and in the weight."""
    data, rng = make_data(p), np.random.default_rng(1)
    x, dy = data.x, data.dy
    if p.argument("layout") == "NHWC":
        x, dy = x.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    dx, dweight, dbias = (found.y for found in reference_gradients(x, data.weight, dy, **p.arguments))
    assert (dx.shape, dweight.shape) == (x.shape, data.weight.shape)
    for _ in range(3):
        other_x, other_weight = (rng.standard_normal(a.shape) for a in (x, data.weight))
        by_x, c, *_ = reference_conv2d(other_x, data.weight, **p.arguments)
        np.testing.assert_allclose((dx * other_x).sum(), (dy * by_x).sum(), atol=1e-12 * c.sum())
        by_weight, c, *_ = reference_conv2d(x, other_weight, **p.arguments)
        np.testing.assert_allclose((dweight * other_weight).sum(), (dy * by_weight).sum(), atol=1e-12 * c.sum())
    axes = (0, 1, 2) if p.arguments.get("layout") == "NHWC" else (0, 2, 3)
    np.testing.assert_allclose(dbias, dy.sum(axis=axes, dtype=np.float64))


def test_terms_of_gradients_count_every_copy_of_a_pixel():
    x, weight, dy = np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), np.ones((1, 1, 5, 5))
    of_x, of_weight, of_bias = reference_gradients(x, weight, dy, padding=2, padding_mode="replicate")
    assert float(of_x.y[0, 0, 0, 0]) == 25
    assert of_x.terms == of_weight.terms == of_bias.terms == 25
