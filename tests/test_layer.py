"""The arguments of layers, and that sizes are checked at the call."""

from __future__ import annotations

import re

import numpy as np
import pytest

import portconv
from tests.helpers import refused, show


@pytest.mark.parametrize("bias", [0, 1, None, "", "yes", [], [0], 2.5, np.True_, np.array(0)], ids=show)
def test_bias_of_the_module_is_a_truth_value(bias):
    assert (portconv.Conv2d(4, 6, 3, bias=bias).bias is not None) == bool(bias)


def test_bias_without_a_truth_value():
    refused(TypeError, ["`bias`"], portconv.Conv2d, 4, 6, 3, bias=np.ones(2))


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(4, 6, 4), (6, 4, 6), (3, 4, 2)])
def test_groups_divide_both_channels(inputs, outputs, groups):
    refused(ValueError, ["`groups`"], portconv.Conv2d, inputs, outputs, 3, groups=groups)


@pytest.mark.parametrize("name", [3, b"conv", ["conv"]])
def test_name(name):
    refused(TypeError, ["`name`"], portconv.Conv2d, 4, 6, 3, name=name)


@pytest.mark.parametrize(("rng", "error"), [("seed", TypeError), (-1, ValueError), (1.5, TypeError)])
def test_rng(rng, error):
    with pytest.raises(error, match="`rng`"):
        portconv.Conv2d(4, 6, 3, rng=rng)


def test_the_module_checks_sizes_at_the_call(nothing_runs):
    module = portconv.Conv2d(4, 6, 3, padding=3, padding_mode="reflect")
    for shape in ((1, 5, 8, 8), (1, 4, 8), (1, 4, 3, 8), (1, 4, 0, 8)):
        with pytest.raises(ValueError, match=re.escape(f"{shape}")):
            module(np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=re.escape(f"{shape}")):
            module.output_shape(shape)
