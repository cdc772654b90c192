"""The layers that the benchmarks time, as data, each suite with the publication that it was taken from.

Everything is float32 and one image at a time. `count` says how often the layer occurs in one forward pass, `bias`
whether the published network has one there. The filters get random taps: no library may profit from a separable kernel.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Layer:
    """One convolution problem; sizes are (height, width)."""

    suite: str
    name: str
    batch: int
    in_channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = False
    count: int = 1

    @property
    def id(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        sizes = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return (self.batch, self.out_channels, height, width)

    @property
    def macs(self) -> int:
        """Multiplications and additions of the direct sum, counted as one."""
        batch, channels, height, width = self.y_shape
        return batch * channels * height * width * self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict) -> Layer:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in record.items()})


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _layer(
    name,
    count,
    in_channels,
    size,
    out_channels,
    kernel,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    padding_mode="zeros",
):
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
        groups=groups,
        padding_mode=padding_mode,
        count=count,
    )


@dataclass(frozen=True)
class Suite:
    source: str
    bias: bool
    rows: tuple[Layer, ...]

    def layers(self, name: str) -> list[Layer]:
        return [replace(row, suite=name, bias=self.bias) for row in self.rows]


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
    "filters": Suite(
        "Classical image filters: a 12-megapixel photograph (4000x3000) and a 31x31 blur of 2048x2048.",
        bias=False,
        rows=(
            _layer("sobel3_12mp", 1, 1, (3000, 4000), 1, 3, 1, 1, padding_mode="reflect"),
            _layer("gauss9_12mp", 1, 1, (3000, 4000), 1, 9, 1, 4, padding_mode="reflect"),
            _layer("gauss9_12mp_rgb", 1, 3, (3000, 4000), 3, 9, 1, 4, groups=3, padding_mode="reflect"),
            _layer("gauss33_12mp", 1, 1, (3000, 4000), 1, 33, 1, 16, padding_mode="reflect"),
            _layer("blur31_2048", 1, 1, 2048, 1, 31, 1, 15, padding_mode="reflect"),
            _layer("blur31_2048_zeros", 1, 1, 2048, 1, 31, 1, 15),
        ),
    ),
}


def suite(name: str) -> list[Layer]:
    return SUITES[name].layers(name)


def load(path: str | Path) -> list[Layer]:
    """Layers from a JSON file: a list of records, `{"shapes": [...]}`, or `{"sets": {suite: [...]}}`.

    A record has N, Cin, H, W, Cout, kh, kw; it may have stride, padding, dilation (an int or a pair each), groups,
    padding_mode, bias, count, id and suite.
    """
    records = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(records, dict) and "sets" in records:
        records = [{"suite": name, **record} for name, members in records["sets"].items() for record in members]
    elif isinstance(records, dict):
        records = records["shapes"]
    return [
        Layer(
            suite=record.get("suite", Path(path).stem),
            name=record.get("id", str(index)),
            batch=record["N"],
            in_channels=record["Cin"],
            size=(record["H"], record["W"]),
            out_channels=record["Cout"],
            kernel=(record["kh"], record["kw"]),
            stride=_pair(record.get("stride", 1)),
            padding=_pair(record.get("padding", 0)),
            dilation=_pair(record.get("dilation", 1)),
            groups=record.get("groups", 1),
            padding_mode=record.get("padding_mode", "zeros"),
            bias=record.get("bias", False),
            count=record.get("count", 1),
        )
        for index, record in enumerate(records)
    ]


def choose(names: list[str], file: str | None, pattern: str) -> list[Layer]:
    """The layers of the suites (`all`: of every suite), or of a file, whose id has a match for the pattern."""
    names = list(SUITES) if "all" in names else names
    layers = load(file) if file else [layer for name in names for layer in suite(name)]
    return [layer for layer in layers if re.search(pattern, layer.id)]
