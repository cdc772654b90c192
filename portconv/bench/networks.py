"""Whole networks: all convolutions in the order in which a forward pass meets them, one image at a time.

The names of the layers are those that torchvision gives their modules, so that a table can be read beside its code. A
layer that occurs several times stands here as often, each time with data and weights of its own, as in life. `bias`
says whether the published network has one there: what a batch normalisation follows has none. Linear layers behind the
last pooling are no convolutions and are left out; those of ConvNeXt's blocks are 1x1 convolutions in all but name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .layers import Layer

__all__ = ["NETWORKS", "Network", "network"]


@dataclass(frozen=True)
class Network:
    """A network by its builder, with where it comes from."""

    source: str
    build: Callable[[], Iterator[Layer]]


def _conv(name: str, inputs: int, size: int, outputs: int, kernel: int, stride: int = 1, **more: Any) -> Layer:
    """A convolution of a square image, padded to the same size where the kernel is odd."""
    options = {"padding": (kernel // 2 if kernel % 2 else 0,) * 2, **more}
    return Layer("", name, 1, inputs, (size, size), outputs, (kernel, kernel), (stride, stride), **options)


# --- ResNet-50 --------------------------------------------------------------------------------------------------------


def _resnet50() -> Iterator[Layer]:
    yield _conv("conv1", 3, 224, 64, 7, 2)
    channels, size = 64, 56  # after a pooling
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            yield _conv(f"{name}.conv1", channels, size, width, 1)
            yield _conv(f"{name}.conv2", width, size, width, 3, stride)
            yield _conv(f"{name}.conv3", width, size // stride, 4 * width, 1)
            if block == 0:
                yield _conv(f"{name}.downsample", channels, size, 4 * width, 1, stride)
            channels, size = 4 * width, size // stride


# --- MobileNetV3 ------------------------------------------------------------------------------------------------------

# Table 1 of the publication: kernel, expanded channels, output channels, whether it squeezes and excites, stride.
_MOBILENET_V3_LARGE = (
    (3, 16, 16, False, 1),
    (3, 64, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, True, 1),
    (5, 960, 160, True, 1),
)


def _multiple_of_8(value: float) -> int:
    """The nearest one, but no less than 90 % of the value: how these networks round channels."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def _mobilenet_v3() -> Iterator[Layer]:
    yield _conv("features.0", 3, 224, 16, 3, 2)
    channels, size = 16, 112
    for number, (kernel, expanded, outputs, squeezes, stride) in enumerate(_MOBILENET_V3_LARGE, start=1):
        name = f"features.{number}"
        if expanded != channels:
            yield _conv(f"{name}.expand", channels, size, expanded, 1)
        yield _conv(f"{name}.depthwise", expanded, size, expanded, kernel, stride, groups=expanded)
        if squeezes:  # the means of the channels: an image of one pixel
            squeezed = _multiple_of_8(expanded / 4)
            yield _conv(f"{name}.fc1", expanded, 1, squeezed, 1, bias=True)
            yield _conv(f"{name}.fc2", squeezed, 1, expanded, 1, bias=True)
        size //= stride
        yield _conv(f"{name}.project", expanded, size, outputs, 1)
        channels = outputs
    yield _conv("features.16", channels, size, 6 * channels, 1)


# --- ConvNeXt-T -------------------------------------------------------------------------------------------------------


def _convnext_t() -> Iterator[Layer]:
    yield _conv("stem", 3, 224, 96, 4, 4, bias=True)
    channels, size = 96, 56
    for stage, (width, blocks) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3)), start=1):
        if width != channels:
            yield _conv(f"stage{stage}.downsample", channels, size, width, 2, 2, bias=True)
            channels, size = width, size // 2
        for block in range(blocks):
            name = f"stage{stage}.{block}"
            yield _conv(f"{name}.depthwise", width, size, width, 7, groups=width, bias=True)
            yield _conv(f"{name}.pointwise1", width, size, 4 * width, 1, bias=True)
            yield _conv(f"{name}.pointwise2", 4 * width, size, width, 1, bias=True)


# --- VGG-19 -----------------------------------------------------------------------------------------------------------


def _vgg19() -> Iterator[Layer]:
    channels, size = 3, 224
    for stage, (width, convolutions) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)), start=1):
        for number in range(1, convolutions + 1):
            yield _conv(f"conv{stage}_{number}", channels, size, width, 3, bias=True)
            channels = width
        size //= 2  # a pooling


NETWORKS = {
    "resnet50": Network(
        "He et al. 2015, arXiv 1512.03385, at 224x224; version 1.5, the stride being on the 3x3.", _resnet50
    ),
    "mobilenet_v3": Network(
        "Howard et al. 2019, arXiv 1905.02244, large, at 224x224, with its squeezes and excitations.", _mobilenet_v3
    ),
    "convnext_t": Network("Liu et al. 2022, arXiv 2201.03545, tiny, at 224x224.", _convnext_t),
    "vgg19": Network("Simonyan and Zisserman 2014, arXiv 1409.1556, configuration E at 224x224.", _vgg19),
}


def network(name: str) -> list[Layer]:
    """The convolutions of a network in their order, under its name.

    Examples
    --------
    >>> [layer.id for layer in network("vgg19")[:3]]
    ['vgg19/conv1_1', 'vgg19/conv1_2', 'vgg19/conv2_1']
    """
    return [replace(layer, suite=name) for layer in NETWORKS[name].build()]
