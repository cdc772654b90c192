"""Whole networks: their sizes are those of the publications, and of the suites that list their layers once."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from portconv.bench import suites
from portconv.bench.networks import NETWORKS, network


def sizes(layer):
    return layer.x_shape, layer.weight_shape, layer.stride, layer.padding, layer.groups, layer.bias


# Convolutions, their multiplications in millions, and their parameters in thousands: torchvision's models less their
# linear layers behind the last pooling and their normalisations.
PUBLISHED = {
    "resnet50": (53, 4087.1, 23454.9),
    "mobilenet_v3": (62, 214.1, 2947.6),
    "convnext_t": (58, 4454.8, 27797.2),
    "vgg19": (16, 19508.4, 20024.4),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks(name):
    layers = [layer.check() for layer in network(name)]
    parameters = sum(math.prod(layer.weight_shape) + layer.out_channels * layer.bias for layer in layers)
    found = len(layers), round(1e-6 * sum(layer.macs for layer in layers), 1), round(1e-3 * parameters, 1)
    assert found == PUBLISHED[name]
    assert len({layer.id for layer in layers}) == len(layers) and {layer.suite for layer in layers} == {name}


@pytest.mark.parametrize("name", ["resnet50", "vgg19", "convnext_t"])
def test_networks_have_the_layers_of_their_suites(name):
    listed = Counter()
    for layer in suites.suite({"convnext_t": "convnext_tiny"}.get(name, name)):
        listed[sizes(layer)] += layer.count
    found = Counter(map(sizes, network(name)))
    if name == "convnext_t":  # whose suite leaves them out
        found = Counter({key: count for key, count in found.items() if key[1][2:] != (1, 1)})
    assert found == listed


@pytest.mark.parametrize("name", list(NETWORKS))
def test_layers_follow_each_other(name):
    """Each takes the channels of the one before it; beside the path stand projections and what squeezes."""
    path = [layer for layer in network(name) if not layer.name.endswith(("downsample", "fc1", "fc2"))]
    if name == "convnext_t":
        path = network(name)
    for before, layer in itertools.pairwise(path):
        assert layer.in_channels == before.out_channels, layer.id
        assert layer.size[0] in (before.y_shape[2], before.y_shape[2] // 2), layer.id  # // 2: a pooling


def test_squeezes():
    squeezes = [layer for layer in network("mobilenet_v3") if layer.size == (1, 1)]
    assert [layer.out_channels for layer in squeezes[::2]] == [24, 32, 32, 120, 168, 168, 240, 240]
    assert all(layer.bias for layer in squeezes)
