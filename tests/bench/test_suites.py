"""The suites of layers."""

from __future__ import annotations

import json

import pytest

import portconv
from portconv.bench import suites
from portconv.bench.layers import Layer, LayerError, distinct
from tests.bench.helpers import TINY, other


@pytest.mark.parametrize("layer", suites.suite("all"), ids=lambda layer: layer.id)
def test_suites_are_problems(layer):
    layer.check()
    arguments = layer.stride, layer.padding, layer.dilation, layer.groups
    assert portconv.conv2d_output_shape(layer.x_shape, layer.weight_shape, *arguments) == layer.y_shape
    assert Layer.from_json(json.loads(json.dumps(layer.to_json()))) == layer


@pytest.mark.parametrize(
    ("name", "convolutions", "billions"),
    [
        ("resnet50", 53, 4.087),  # 4.1 in the publications, with 2 million of the last, linear layer
        ("vgg19", 16, 19.508),
        ("mobilenet_v1", 27, 0.568),
        ("deepbench", 55, None),
    ],
)
def test_suites_are_the_published_ones(name, convolutions, billions):
    layers = suites.suite(name)
    assert sum(layer.count for layer in layers) == convolutions
    if billions:
        assert sum(layer.count * layer.macs for layer in layers) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_ids_are_distinct():
    layers = suites.suite("all")
    assert len({layer.id for layer in layers}) == len(layers) > 150
    assert distinct([TINY, TINY, other("tiny", groups=1, count=2)])[1].id == "given/tiny#2"


def test_filters_come_with_their_own_taps_and_with_random_ones():
    taps = {layer.name: layer.taps for layer in suites.suite("filters")}
    assert {"gaussian", "box", "sobel", "random"} == set(taps.values())
    assert all(name.startswith(kind) for name, kind in taps.items())


def test_select():
    assert [layer.name for layer in suites.select(["vgg19"], [TINY], "conv1|tiny")] == ["conv1_1", "conv1_2", "tiny"]
    with pytest.raises(LayerError, match="none of 9 layers"):
        suites.select(["vgg19"], pattern="resnet")
    with pytest.raises(LayerError, match="no regular expression"):
        suites.select(["vgg19"], pattern="(")
