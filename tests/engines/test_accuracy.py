"""Sums of many terms keep their bounds, with every engine."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import check, numbers

LONG_SUMS = {
    "512 channels": ((1, 512, 6, 7), (3, 512, 3, 3), {}),
    "512 channels, wide": ((1, 512, 3, 40), (3, 512, 3, 3), {"padding": 1}),
    "2048 channels": ((1, 2048, 5, 5), (2, 2048, 1, 1), {}),
    "box 31x31": ((1, 1, 64, 64), (1, 1, 31, 31), {}),
    "16 channels, box 15x15": ((1, 16, 30, 30), (2, 16, 15, 15), {"padding": 7}),
}


def long_sum(case, data):
    x_shape, weight_shape, options = LONG_SUMS[case]
    if data == "constant":
        return np.full(x_shape, 0.1, np.float32), np.full(weight_shape, 0.7, np.float32), options
    x, weight = (
        np.random.default_rng(5).random(x_shape, np.float32),
        np.random.default_rng(6).random(weight_shape, np.float32),
    )
    if data == "uneven":  # one bright spot, darkness elsewhere
        x *= 1e-6
        x[..., x.shape[2] // 2, x.shape[3] // 2] = 1
    return x, weight, options


def not_strict(backend):
    """Engines that do not bound the error of each output by what it sums; JAX's and PyTorch's own do on a CPU."""
    return {"winograd", "fft"} | ({"native"} if backend.package not in ("jax", "torch") else set())


@pytest.mark.parametrize("data", ["constant", "positive", "uneven"])
@pytest.mark.parametrize("case", LONG_SUMS)
def test_accuracy_of_long_sums(backend, engine, plans, case, data):
    x, weight, options = long_sum(case, data)
    arrays = backend.array(x), backend.array(weight)
    check(backend, plans, engine, *arrays, **options)
    if engine not in not_strict(backend):
        check(backend, plans, engine, *arrays, accuracy="elementwise", **options)


def test_engines_without_the_strict_bound_are_refused(backend):
    x, weight = backend.array(numbers((1, 1, 64, 64))), backend.array(numbers((1, 1, 31, 31)))
    for engine in not_strict(backend) & set(backend.engines):
        with pytest.raises(portconv.UnsupportedError, match=f"`engine` '{engine}'.*element"):
            portconv.conv2d(x, weight, engine=engine, accuracy="elementwise")


def test_strict_results_do_not_depend_on_far_away_values(backend):
    x, weight = numbers((1, 2, 40, 40)), numbers((3, 2, 5, 5), 1)
    dirty = x.copy()
    dirty[:, :, 30:, 30:] = 1e30
    clean, other = (
        backend.numpy(portconv.conv2d(backend.array(a), backend.array(weight), accuracy="elementwise"))
        for a in (x, dirty)
    )
    expected = reference_conv2d(x, weight)
    near = (slice(None), slice(None), slice(0, 26), slice(0, 26))
    assert_close(clean[near], expected.at(near), accuracy="elementwise")
    assert_close(other[near], expected.at(near), accuracy="elementwise")
