"""What follows the sums, for a back end that has no operations of its own for it."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

import portconv
from portconv.cpu.finisher import HostFinisher
from portconv.dispatch import path
from portconv.testing import assert_close, reference_conv2d


@pytest.mark.parametrize("name", ["numpy", "torch", "mlx"])
def test_numpy_does_it(name):
    pytest.importorskip(name)
    library = portconv.get_backend(name)
    rng = np.random.default_rng(0)
    x, weight, residual = (rng.standard_normal(s).astype("f4") for s in ((2, 3, 7, 6), (4, 3, 3, 3), (2, 4, 7, 6)))
    own = [library.from_numpy(a) for a in (x, weight, residual)]
    path.forget_plans()
    with mock.patch.object(type(library), "finisher", None):
        y, vjp = portconv.conv2d_vjp(*own[:2], padding=1, activation="tanh", residual=own[2])
        plan = portconv.plan_conv2d(*own[:2], padding=1, activation="tanh", residual=own[2])
        assert type(plan.finisher) is HostFinisher
        gradients = vjp(library.from_numpy(np.ones((2, 4, 7, 6), "f4")))
    path.forget_plans()
    assert library.describe(y) == library.describe(own[2])
    exact = reference_conv2d(x, weight, padding=1).finished("tanh", residual)
    assert_close(library.to_numpy(y), exact)
    np.testing.assert_allclose(library.to_numpy(gradients[3]), 1 - exact.y**2, atol=1e-5)
