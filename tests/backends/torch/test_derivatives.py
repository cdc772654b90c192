"""`conv2d_vjp` of PyTorch's tensors, beside autograd and `torch.func`."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from tests.helpers import numbers

OPTIONS = {"stride": 2, "padding": 1}


@pytest.fixture
def arrays():
    """Image, weight, bias and cotangent."""
    return numbers((2, 3, 9, 8), 1), numbers((4, 3, 3, 3), 2), numbers((4,), 3), numbers((2, 4, 5, 4), 4)


def test_what_is_recorded_stays_so(torch, arrays):
    x, weight, _bias, dy = arrays
    given = [torch.asarray(a) for a in arrays]
    y, vjp = portconv.conv2d_vjp(*given[:3], **OPTIONS)
    assert not y.requires_grad and not any(found.requires_grad for found in vjp(given[3]))
    given[1].requires_grad_()
    y, vjp = portconv.conv2d_vjp(*given[:3], **OPTIONS)
    assert y.requires_grad
    vjp(given[3])[0].sum().backward()
    expected = portconv.conv2d_vjp(np.ones_like(x), weight, **OPTIONS)[1](dy)[1]
    np.testing.assert_allclose(given[1].grad.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad"])
def test_every_mode(torch, arrays, mode):
    x, weight, bias, dy = arrays
    expected = portconv.conv2d_vjp(x, weight, bias, **OPTIONS)[1](dy)
    with getattr(torch, mode)():
        given = [torch.asarray(a) * 1 for a in arrays]
        found = portconv.conv2d_vjp(*given[:3], **OPTIONS)[1](given[3])
    for got, same in zip(found, expected, strict=True):
        np.testing.assert_allclose(got.numpy(), same, rtol=1e-4, atol=1e-4)


def test_within_a_transformation(torch, arrays):
    x, weight, bias, dy = arrays
    given = [torch.asarray(a) for a in arrays]
    found = torch.func.vmap(lambda dy: portconv.conv2d_vjp(*given[:3], **OPTIONS)[1](dy)[1])(
        torch.stack([given[3], 2 * given[3]])
    )
    expected = portconv.conv2d_vjp(x, weight, bias, **OPTIONS)[1](dy)[1]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1].numpy(), 2 * expected, rtol=1e-4, atol=1e-4)
