"""`conv3d`, with every library: against PyTorch in float64, within the bounds of sums of planes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import portconv
from tests.helpers import numbers, refused

CASES = {
    "padding": ((2, 3, 4, 6, 7), (4, 3, 3, 3, 3), {"padding": 1}),
    "strides, dilation": (
        (1, 2, 9, 8, 7), (3, 2, 3, 2, 3), {"stride": (2, 1, 3), "dilation": (2, 3, 1), "padding": (3, 0, 2)},
    ),
    "groups, a long kernel": ((1, 4, 12, 5, 6), (2, 3, 2, 11, 1, 2), {"groups": 2, "padding": (4, 0, 1)}),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def exact(torch, x, weight, bias, options):
    """The result and the sums of magnitudes of its terms, by PyTorch in float64."""
    given = [torch.asarray(a.astype("f8")) for a in (x, weight.reshape(-1, *weight.shape[-4:]), bias.reshape(-1))]
    return [torch.nn.functional.conv3d(*arrays, **options).numpy() for arrays in (given, [abs(a) for a in given])]


@pytest.mark.every_device
@every_case
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_within_the_bound(backend, torch, case, dtype):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    x_shape, weight_shape, options = case
    x, weight = numbers(x_shape, 1, dtype), numbers(weight_shape, 2, dtype)
    bias = numbers((1, int(np.prod(weight_shape[:-4])), 1, 1, 1), 3, dtype)
    y = portconv.conv3d(*(backend.array(a) for a in (x, weight, bias)), **options, accuracy="elementwise")
    assert backend.dtype_name(y) == dtype
    expected, magnitudes = exact(torch, x, weight, bias, options)
    assert tuple(y.shape) == expected.shape
    bound = 8 * np.finfo("f8" if dtype == "float64" else "f4").eps * magnitudes
    bound += (2.0**-11 if dtype == "float16" else 0) * abs(expected)
    assert (abs(backend.numpy(y).astype("f8") - expected) <= bound).all()


def test_gradients(backend, torch):
    """Of every library, also without differentiation of its own."""
    x_shape, weight_shape, options = CASES["strides, dilation"]
    arrays = [numbers(shape, n) for n, shape in enumerate((x_shape, weight_shape, (1, weight_shape[0], 1, 1, 1)))]
    y, vjp = portconv.conv3d_vjp(*(backend.array(a) for a in arrays), **options)
    leaves = [torch.asarray(a.astype("f8")).requires_grad_() for a in arrays]
    expected = torch.nn.functional.conv3d(leaves[0], leaves[1], leaves[2].reshape(-1), **options)
    dy = numbers(tuple(y.shape), 4)
    expected.backward(torch.asarray(dy.astype("f8")))
    for got, leaf in zip(vjp(backend.array(dy)), leaves, strict=True):
        np.testing.assert_allclose(backend.numpy(got), leaf.grad.numpy(), rtol=1e-4, atol=1e-4)
    assert [g is None for g in portconv.conv3d_vjp(*map(backend.array, arrays[:2]), **options, wrt="x")[1](y)][1:] == [
        True, True,
    ]  # fmt: skip


def test_nan_and_infinity_come_without_a_warning(tier):
    x, weight = np.ones((1, 1, 3, 2, 2), "f4"), np.ones((1, 1, 3, 1, 1), "f4")
    x[0, 0, :2, 0, 0] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = portconv.conv3d(x, weight, padding=(1, 0, 0))
    assert np.isnan(y[0, 0, :2, 0, 0]).all() and np.isneginf(y[0, 0, 2, 0, 0]) and np.isfinite(y[..., 1]).all()


def test_two_kinds_of_16_bits(torch):
    x, weight = torch.ones((1, 1, 3, 3, 3), dtype=torch.float16), torch.ones((1, 1, 3, 3, 3), dtype=torch.bfloat16)
    y = portconv.conv3d(x, weight)
    assert y.dtype == torch.float32 and y.item() == 27


def test_gradients_by_autograd(torch):
    found = []
    for function in (portconv.conv3d, torch.nn.functional.conv3d):
        x, weight = (torch.asarray(numbers(s)).requires_grad_() for s in ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3)))
        function(x, weight, padding=1, stride=2).square().sum().backward()
        found.append((x.grad.numpy(), weight.grad.numpy()))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_wrong_arguments(nothing_runs):
    x, weight = numbers((1, 2, 4, 5, 6)), numbers((3, 2, 3, 3, 3))
    refused(ValueError, ["`x`", "5 axes"], portconv.conv3d, x[0], weight)
    refused(ValueError, ["`weight`", "5 or 6 axes"], portconv.conv3d, x, weight[0])
    refused(ValueError, ["`stride`", "three"], portconv.conv3d, x, weight, stride=(1, 2))
    refused(ValueError, ["does not fit", "`dilation`"], portconv.conv3d, x, weight, dilation=2)
    refused(TypeError, ["`x`", "list"], portconv.conv3d, [1.0], weight)
