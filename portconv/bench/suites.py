"""The layers that the benchmarks time, as data, each suite with the publication that it was taken from.

Everything is float32 and one image at a time. `bias` says whether the published network has one there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .layers import Layer, LayerError, distinct

__all__ = ["SUITES", "Suite", "select", "suite"]


@dataclass(frozen=True)
class Suite:
    """Layers with where they come from."""

    source: str
    bias: bool
    rows: tuple[Layer, ...]

    def layers(self, name: str) -> list[Layer]:
        """The layers, under the suite's name."""
        return [replace(row, suite=name, bias=self.bias) for row in self.rows]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _layer(
    name: str,
    count: int,
    in_channels: int,
    size: int | tuple[int, int],
    out_channels: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    **more: Any,
) -> Layer:
    return Layer(
        suite="",
        name=name,
        batch=1,
        in_channels=in_channels,
        size=_pair(size),
        out_channels=out_channels,
        kernel=_pair(kernel),
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        count=count,
        **more,
    )


def _filter(name: str, size: int | tuple[int, int], kernel: int, taps: str, channels: int = 1, **more: Any) -> Layer:
    """A filter of an image, of the same size: with the taps that its users run, or with random ones."""
    mode = {"padding_mode": "reflect", "taps": taps, "groups": channels, **more}
    return _layer(f"{taps}{name}", 1, channels, size, channels, kernel, 1, kernel // 2, **mode)


# Width, height, input channels, output channels, kernel width, kernel height, padding, stride.
_DEEPBENCH = (
    (700, 161, 1, 32, 20, 5, 0, 2),
    (341, 79, 32, 32, 10, 5, 0, 2),
    (480, 48, 1, 16, 3, 3, 1, 1),
    (240, 24, 16, 32, 3, 3, 1, 1),
    (120, 12, 32, 64, 3, 3, 1, 1),
    (60, 6, 64, 128, 3, 3, 1, 1),
    (108, 108, 3, 64, 3, 3, 1, 2),
    (54, 54, 64, 64, 3, 3, 1, 1),
    (27, 27, 128, 128, 3, 3, 1, 1),
    (14, 14, 128, 256, 3, 3, 1, 1),
    (7, 7, 256, 512, 3, 3, 1, 1),
    (224, 224, 3, 64, 3, 3, 1, 1),
    (112, 112, 64, 128, 3, 3, 1, 1),
    (56, 56, 128, 256, 3, 3, 1, 1),
    (28, 28, 256, 512, 3, 3, 1, 1),
    (14, 14, 512, 512, 3, 3, 1, 1),
    (7, 7, 512, 512, 3, 3, 1, 1),
    (224, 224, 3, 64, 7, 7, 3, 2),
    (28, 28, 192, 32, 5, 5, 2, 1),
    (28, 28, 192, 64, 1, 1, 0, 1),
    (14, 14, 512, 48, 5, 5, 2, 1),
    (14, 14, 512, 192, 1, 1, 0, 1),
    (7, 7, 832, 256, 1, 1, 0, 1),
    (7, 7, 832, 128, 5, 5, 2, 1),
    (56, 56, 64, 64, 3, 3, 1, 1),
    (56, 56, 64, 256, 1, 1, 0, 2),
    (28, 28, 128, 128, 3, 3, 1, 1),
    (28, 28, 128, 512, 1, 1, 0, 2),
    (14, 14, 256, 256, 1, 1, 0, 1),
    (14, 14, 256, 256, 3, 3, 1, 1),
    (14, 14, 256, 1024, 1, 1, 0, 2),
    (7, 7, 512, 512, 1, 1, 0, 1),
    (7, 7, 2048, 512, 1, 1, 3, 2),
    (700, 161, 1, 64, 5, 5, 1, 2),
    (350, 80, 64, 64, 3, 3, 1, 1),
    (350, 80, 64, 128, 5, 5, 1, 2),
    (175, 40, 128, 128, 3, 3, 1, 1),
    (175, 40, 128, 256, 5, 5, 1, 2),
    (84, 20, 256, 256, 3, 3, 1, 1),
    (84, 20, 256, 512, 5, 5, 1, 2),
    (42, 10, 512, 512, 3, 3, 1, 1),
    (112, 112, 64, 64, 1, 1, 0, 1),
    (56, 56, 64, 256, 1, 1, 0, 1),
    (56, 56, 256, 64, 1, 1, 0, 1),
    (56, 56, 256, 128, 1, 1, 0, 2),
    (28, 28, 128, 512, 1, 1, 0, 1),
    (28, 28, 512, 128, 1, 1, 0, 1),
    (28, 28, 512, 256, 1, 1, 0, 2),
    (14, 14, 256, 1024, 1, 1, 0, 1),
    (28, 28, 512, 1024, 1, 1, 0, 2),
    (14, 14, 1024, 256, 1, 1, 0, 1),
    (14, 14, 1024, 512, 1, 1, 0, 2),
    (7, 7, 512, 2048, 1, 1, 0, 1),
    (14, 14, 1024, 2048, 1, 1, 0, 2),
    (7, 7, 2048, 512, 1, 1, 0, 1),
)


def _deepbench() -> Iterator[Layer]:
    for width, height, channels, outputs, kernel_width, kernel_height, padding, stride in _DEEPBENCH:
        name = f"{height}x{width}x{channels}_{kernel_height}x{kernel_width}x{outputs}"
        name += f"_s{stride}" if stride > 1 else ""
        yield _layer(name, 1, channels, (height, width), outputs, (kernel_height, kernel_width), stride, padding)


_PHOTO = (3000, 4000)

# Columns: name, count, input channels, input size, output channels, kernel, stride, padding, dilation.
SUITES = {
    "resnet50": Suite(
        "He et al. 2015, arXiv 1512.03385, at 224x224; version 1.5, the stride being on the 3x3. 53 convolutions.",
        bias=False,
        rows=(
            _layer("conv1", 1, 3, 224, 64, 7, 2, 3),
            _layer("conv2_reduce_first", 1, 64, 56, 64, 1),
            _layer("conv2_3x3", 3, 64, 56, 64, 3, 1, 1),
            _layer("conv2_expand", 4, 64, 56, 256, 1),  # three blocks and the projection of the first
            _layer("conv2_reduce", 2, 256, 56, 64, 1),
            _layer("conv3_reduce_first", 1, 256, 56, 128, 1),
            _layer("conv3_3x3_stride2", 1, 128, 56, 128, 3, 2, 1),
            _layer("conv3_project", 1, 256, 56, 512, 1, 2),
            _layer("conv3_expand", 4, 128, 28, 512, 1),
            _layer("conv3_reduce", 3, 512, 28, 128, 1),
            _layer("conv3_3x3", 3, 128, 28, 128, 3, 1, 1),
            _layer("conv4_reduce_first", 1, 512, 28, 256, 1),
            _layer("conv4_3x3_stride2", 1, 256, 28, 256, 3, 2, 1),
            _layer("conv4_project", 1, 512, 28, 1024, 1, 2),
            _layer("conv4_expand", 6, 256, 14, 1024, 1),
            _layer("conv4_reduce", 5, 1024, 14, 256, 1),
            _layer("conv4_3x3", 5, 256, 14, 256, 3, 1, 1),
            _layer("conv5_reduce_first", 1, 1024, 14, 512, 1),
            _layer("conv5_3x3_stride2", 1, 512, 14, 512, 3, 2, 1),
            _layer("conv5_project", 1, 1024, 14, 2048, 1, 2),
            _layer("conv5_expand", 3, 512, 7, 2048, 1),
            _layer("conv5_reduce", 2, 2048, 7, 512, 1),
            _layer("conv5_3x3", 2, 512, 7, 512, 3, 1, 1),
        ),
    ),
    "vgg19": Suite(
        "Simonyan and Zisserman 2014, arXiv 1409.1556, configuration E at 224x224. 16 convolutions.",
        bias=True,
        rows=(
            _layer("conv1_1", 1, 3, 224, 64, 3, 1, 1),
            _layer("conv1_2", 1, 64, 224, 64, 3, 1, 1),
            _layer("conv2_1", 1, 64, 112, 128, 3, 1, 1),
            _layer("conv2_2", 1, 128, 112, 128, 3, 1, 1),
            _layer("conv3_1", 1, 128, 56, 256, 3, 1, 1),
            _layer("conv3_2", 3, 256, 56, 256, 3, 1, 1),
            _layer("conv4_1", 1, 256, 28, 512, 3, 1, 1),
            _layer("conv4_2", 3, 512, 28, 512, 3, 1, 1),
            _layer("conv5_1", 4, 512, 14, 512, 3, 1, 1),
        ),
    ),
    "mobilenet_v1": Suite(
        "Howard et al. 2017, arXiv 1704.04861, width 1.0 at 224x224. 27 convolutions.",
        bias=False,
        rows=(
            _layer("conv1", 1, 3, 224, 32, 3, 2, 1),
            _layer("dw2", 1, 32, 112, 32, 3, 1, 1, groups=32),
            _layer("pw2", 1, 32, 112, 64, 1),
            _layer("dw3_stride2", 1, 64, 112, 64, 3, 2, 1, groups=64),
            _layer("pw3_first", 1, 64, 56, 128, 1),
            _layer("dw3", 1, 128, 56, 128, 3, 1, 1, groups=128),
            _layer("pw3", 1, 128, 56, 128, 1),
            _layer("dw4_stride2", 1, 128, 56, 128, 3, 2, 1, groups=128),
            _layer("pw4_first", 1, 128, 28, 256, 1),
            _layer("dw4", 1, 256, 28, 256, 3, 1, 1, groups=256),
            _layer("pw4", 1, 256, 28, 256, 1),
            _layer("dw5_stride2", 1, 256, 28, 256, 3, 2, 1, groups=256),
            _layer("pw5_first", 1, 256, 14, 512, 1),
            _layer("dw5", 5, 512, 14, 512, 3, 1, 1, groups=512),
            _layer("pw5", 5, 512, 14, 512, 1),
            _layer("dw6_stride2", 1, 512, 14, 512, 3, 2, 1, groups=512),
            _layer("pw6_first", 1, 512, 7, 1024, 1),
            _layer("dw6", 1, 1024, 7, 1024, 3, 1, 1, groups=1024),  # Table 1 prints stride 2, but the sizes need 1
            _layer("pw6", 1, 1024, 7, 1024, 1),
        ),
    ),
    "convnext_tiny": Suite(
        "Liu et al. 2022, arXiv 2201.03545, at 224x224; its 1x1 convolutions are linear layers and not listed.",
        bias=True,
        rows=(
            _layer("stem", 1, 3, 224, 96, 4, 4),
            _layer("dw_96", 3, 96, 56, 96, 7, 1, 3, groups=96),
            _layer("down_192", 1, 96, 56, 192, 2, 2),
            _layer("dw_192", 3, 192, 28, 192, 7, 1, 3, groups=192),
            _layer("down_384", 1, 192, 28, 384, 2, 2),
            _layer("dw_384", 9, 384, 14, 384, 7, 1, 3, groups=384),
            _layer("down_768", 1, 384, 14, 768, 2, 2),
            _layer("dw_768", 3, 768, 7, 768, 7, 1, 3, groups=768),
        ),
    ),
    "replknet31": Suite(
        "Ding et al. 2022, arXiv 2203.06717: large kernels of RepLKNet-31B at 224x224, the first of 31L at 384x384.",
        bias=False,
        rows=(
            _layer("b_31x31", 2, 128, 56, 128, 31, 1, 15, groups=128),
            _layer("b_29x29", 2, 256, 28, 256, 29, 1, 14, groups=256),
            _layer("b_27x27", 18, 512, 14, 512, 27, 1, 13, groups=512),
            _layer("b_13x13", 2, 1024, 7, 1024, 13, 1, 6, groups=1024),
            _layer("l_31x31", 2, 192, 96, 192, 31, 1, 15, groups=192),
        ),
    ),
    "unet": Suite(
        "Ronneberger et al. 2015, arXiv 1505.04597, at 572x572, no padding; without its up-convolutions.",
        bias=True,
        rows=(
            _layer("down1_a", 1, 1, 572, 64, 3),
            _layer("down1_b", 1, 64, 570, 64, 3),
            _layer("down2_a", 1, 64, 284, 128, 3),
            _layer("down2_b", 1, 128, 282, 128, 3),
            _layer("down3_a", 1, 128, 140, 256, 3),
            _layer("down3_b", 1, 256, 138, 256, 3),
            _layer("down4_a", 1, 256, 68, 512, 3),
            _layer("down4_b", 1, 512, 66, 512, 3),
            _layer("bottom_a", 1, 512, 32, 1024, 3),
            _layer("bottom_b", 1, 1024, 30, 1024, 3),
            _layer("up4_a", 1, 1024, 56, 512, 3),
            _layer("up4_b", 1, 512, 54, 512, 3),
            _layer("up3_a", 1, 512, 104, 256, 3),
            _layer("up3_b", 1, 256, 102, 256, 3),
            _layer("up2_a", 1, 256, 200, 128, 3),
            _layer("up2_b", 1, 128, 198, 128, 3),
            _layer("up1_a", 1, 128, 392, 64, 3),
            _layer("up1_b", 1, 64, 390, 64, 3),
            _layer("classes", 1, 64, 388, 2, 1),
        ),
    ),
    "deeplabv3": Suite(
        "Chen et al. 2017, arXiv 1706.05587: atrous spatial pyramid pooling at output stride 8 of a 513x513 image.",
        bias=False,
        rows=(
            _layer("aspp_1x1", 1, 2048, 65, 256, 1),
            _layer("aspp_rate12", 1, 2048, 65, 256, 3, 1, 12, 12),
            _layer("aspp_rate24", 1, 2048, 65, 256, 3, 1, 24, 24),
            _layer("aspp_rate36", 1, 2048, 65, 256, 3, 1, 36, 36),
            _layer("project", 1, 1280, 65, 256, 1),
        ),
    ),
    "espcn": Suite(
        "Shi et al. 2016, arXiv 1609.05158: luminance of a 1920x1080 frame, enlarged twice.",
        bias=True,
        rows=(
            _layer("conv1", 1, 1, (1080, 1920), 64, 5, 1, 2),
            _layer("conv2", 1, 64, (1080, 1920), 32, 3, 1, 1),
            _layer("conv3", 1, 32, (1080, 1920), 4, 3, 1, 1),
        ),
    ),
    "edsr": Suite(
        "Lim et al. 2017, arXiv 1707.02921: the baseline with 16 blocks, 480x270 enlarged four times.",
        bias=True,
        rows=(
            _layer("head", 1, 3, (270, 480), 64, 3, 1, 1),
            _layer("body", 33, 64, (270, 480), 64, 3, 1, 1),
            _layer("up1", 1, 64, (270, 480), 256, 3, 1, 1),
            _layer("up2", 1, 64, (540, 960), 256, 3, 1, 1),
            _layer("tail", 1, 64, (1080, 1920), 3, 3, 1, 1),
        ),
    ),
    "deepbench": Suite(
        "Baidu DeepBench, code/kernels/conv_problems.h: the problems of its training and inference server sets, which "
        "differ in the batch only: 4 to 32 and 1 to 4. Here every batch is cut to 1.",
        bias=False,
        rows=tuple(_deepbench()),
    ),
    "filters": Suite(
        "Classical filters of a 12-megapixel photograph (4000x3000) and of 2048x2048: with the taps that users run, "
        "which are all separable, and with random ones, which are not.",
        bias=False,
        rows=(
            _filter("3_12mp", _PHOTO, 3, "sobel"),
            _filter("3_12mp", _PHOTO, 3, "random"),
            _filter("9_12mp", _PHOTO, 9, "gaussian"),
            _filter("9_12mp", _PHOTO, 9, "random"),
            _filter("9_12mp_rgb", _PHOTO, 9, "gaussian", 3),
            _filter("9_12mp_rgb", _PHOTO, 9, "random", 3),
            _filter("33_12mp", _PHOTO, 33, "gaussian"),
            _filter("33_12mp", _PHOTO, 33, "random"),
            _filter("31_2048", 2048, 31, "box"),
            _filter("31_2048", 2048, 31, "random"),
            _filter("31_2048_zeros", 2048, 31, "random", padding_mode="zeros"),
        ),
    ),
}


def suite(name: str) -> list[Layer]:
    """The layers of a suite; of every suite for `all`."""
    if name == "all":
        return [layer for each in SUITES for layer in suite(each)]
    return SUITES[name].layers(name)


def select(names: Iterable[str], others: Iterable[Layer] = (), pattern: str = "") -> list[Layer]:
    """The layers of these suites, and others, whose id has a match for the pattern.

    Raises
    ------
    LayerError
        If the pattern is no regular expression, or nothing is left.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise LayerError(f"{pattern!r} is no regular expression: {error}.") from None
    layers = distinct([*(layer for name in names for layer in suite(name)), *others])
    chosen = [layer for layer in layers if wanted.search(layer.id)]
    if not chosen:
        raise LayerError(f"none of {len(layers)} layers has a match for {pattern!r}.")
    return chosen
