"""The memory-bound steps on the array API."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv.engines.steps import Block, Steps


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("first", [-3, 2000, 4035], ids=["left", "middle", "right"])
def test_a_window_copies_only_what_it_needs(library, mode, dtype, first):
    """Where nothing but whole arrays can be joined, rows are padded for the columns of the window alone."""
    xp = library("array_api_strict").module
    values = np.random.default_rng(0).integers(0, 200, (2, 1, 100, 4096)).astype(dtype)
    weight, options = (1, 2, 7, 7), {"padding": 3, "padding_mode": mode}
    problem = replace(portconv.plan_conv2d((1, 2, 100, 4096), weight, **options).problem, x_dtype=dtype)
    block = Block(slice(0, 2), slice(0, 1), slice(-3, 61), slice(first, first + 64))
    image, steps = xp.asarray(values), Steps(xp)
    steps.window(image, block, problem)
    tracemalloc.start()
    window = steps.window(image, block, problem)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}
    whole = np.pad(values, ((0, 0), (0, 0), (3, 3), (3, 3)), modes[mode])
    np.testing.assert_array_equal(np.asarray(window), whole[:, :, :64, first + 3 : first + 67])
    assert peak < 4 * 2 * 64 * 64 * 4  # four windows in float32; whole rows of uint8 alone are more
