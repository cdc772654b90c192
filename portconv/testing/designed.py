"""Problems with every rule of the semantics once, and those sizes and values at which libraries were seen to fail.

Beside the problems that are drawn, `portconv check` runs these: each is known to have been somebody's mistake.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .problems import ACTIVATIONS, Problem, Shape

__all__ = ["DESIGNED", "PROTOCOL_PROBLEMS"]


def _plain() -> list[Problem]:
    """Every rule of the semantics."""

    def p(name: str, x: Shape, weight: Shape, /, **more: Any) -> Problem:
        of_problem = (
            *("dtype", "x_dtype", "bias_shape", "data", "kernel", "orders", "slow", "gradient"),
            *("activation", "residual"),
        )
        fields = {key: more.pop(key) for key in of_problem if key in more}
        return Problem(x, weight, more, name=name, **fields)

    image, kernel = (2, 3, 13, 12), (4, 3, 3, 3)
    found = [
        p("one pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
        p("3x3", image, kernel, padding=1, bias_shape=(1, 4, 1, 1)),
        p("1x1", (1, 64, 14, 14), (32, 64, 1, 1), bias_shape=(32,)),
        p("1x1, stride 2", (1, 16, 15, 15), (24, 16, 1, 1), stride=2),
        p("output of one pixel", (2, 5, 7, 9), (3, 5, 7, 9)),
        p("strides 2 and 3", image, (5, 3, 4, 3), stride=(2, 3), padding=(2, 1)),
        p("stride beyond the kernel", image, (2, 3, 2, 1), stride=(5, 4)),
        p("dilation 2 and 3", image, (3, 3, 3, 2), dilation=(2, 3), padding=2),
        p("dilation, stride, padding", image, kernel, stride=2, padding=(2, 3), dilation=(3, 2)),
        p("padding beyond the kernel", (1, 2, 5, 4), (2, 2, 3, 3), padding=(7, 6)),
        p("four-sided padding", image, kernel, padding=((0, 2), (1, 0))),
        p("same", image, (2, 3, 4, 3), padding="same"),
        p("same, stride 2", image, (2, 3, 5, 2), padding="same", stride=2),
        p("valid", image, kernel, padding="valid"),
        p("empty batch", (0, 2, 6, 6), (3, 2, 3, 3), padding=1, bias_shape=(3,)),
        p("empty batch, grouped", (0, 4, 6, 6), (2, 3, 2, 3, 3), groups=2),
        p("one row", (1, 3, 1, 40), (3, 3, 1, 5), padding=(0, 2)),
        p("one column", (1, 3, 40, 1), (3, 3, 5, 1)),
        p("long rows", (1, 1, 5, 3000), (1, 1, 3, 3), padding=1),
        p("even kernel", image, (4, 3, 2, 4), padding=((1, 0), (2, 1))),
        p("odd channels", (1, 37, 9, 9), (19, 37, 3, 3), padding=1),
        p("5x5 at stride 1", (1, 8, 18, 17), (8, 8, 5, 5), padding=2),
        p("7x1", (1, 8, 18, 17), (8, 8, 7, 1), padding=(3, 0)),
        p("1x7", (1, 8, 18, 17), (8, 8, 1, 7), padding=(0, 3)),
        p("groups, 4-D weight", (2, 6, 9, 9), (12, 2, 3, 3), groups=3, padding=1),
        p("groups, 5-D weight", (2, 6, 9, 9), (3, 4, 2, 3, 3), groups=3, padding=1, bias_shape=(1, 12, 1, 1)),
        p("groups, stride and dilation", (2, 12, 17, 15), (8, 3, 3, 3), groups=4, stride=2, dilation=2, padding=2),
        p("groups of 32 channels, stride 2", (2, 64, 12, 12), (64, 32, 3, 3), groups=2, stride=2, padding=1),
        p("depthwise", (1, 5, 9, 8), (5, 1, 1, 3, 3), groups=5, padding=1),
        p("depthwise, multiplier 3, stride 2", (1, 5, 11, 12), (5, 3, 1, 3, 5), groups=5, padding=(1, 2), stride=2),
        p("depthwise 3x3, 32 channels, stride 2", (2, 32, 17, 16), (32, 1, 3, 3), groups=32, padding=1, stride=2),
        p("depthwise 7x7, 16 channels", (1, 16, 20, 20), (16, 1, 7, 7), groups=16, padding=3),
        p("depthwise 7x7, 24 channels", (1, 24, 20, 20), (24, 1, 7, 7), groups=24, padding=3),
        p("depthwise, dilated", (1, 8, 20, 20), (8, 1, 5, 5), groups=8, padding=8, dilation=4),
        p("NHWC", image, kernel, padding=1, layout="NHWC", bias_shape=(4,)),
        p("NHWC, groups, stride", (2, 6, 9, 9), (3, 2, 2, 3, 3), groups=3, stride=2, padding=1, layout="NHWC"),
        p("NHWC, reflect", image, kernel, padding=2, padding_mode="reflect", layout="NHWC"),
        p("NHWC, empty batch", (0, 3, 5, 5), kernel, layout="NHWC"),
        p("permuted view", image, kernel, padding=1, orders=("F", "C", "C")),
        p("permuted view, NHWC", image, kernel, padding=1, layout="NHWC", orders=("F", "C", "C")),
        p("permuted view, 1x1", (2, 8, 9, 9), (4, 8, 1, 1), orders=("F", "C", "C")),
        # library by library: Winograd of Metal has its own conditions, others count elements in 8 or 16 bits
        p("3x3, 32 to 224 channels", (4, 32, 32, 32), (224, 32, 3, 3), padding=1, slow=True),
        p("3x3, 128 to 128 channels, batch 128", (128, 128, 8, 8), (128, 128, 3, 3), padding=1, slow=True),
        p("3x3, 64 channels, batch 300", (300, 64, 4, 4), (64, 64, 3, 3), padding=1),
        p("batch 257 of one channel", (257, 1, 5, 5), (2, 1, 3, 3), padding=1),
        p("1x1, 300 channels", (1, 300, 9, 8), (260, 300, 1, 1)),
        p("15x17", (1, 2, 40, 36), (2, 2, 15, 17), padding=8),
        p("31x31", (1, 2, 64, 60), (2, 2, 31, 31), padding=15),
        p("31x31, depthwise", (1, 4, 40, 40), (4, 1, 31, 31), groups=4, padding=15),
        p("kernel of 257 rows", (1, 1, 300, 6), (2, 1, 257, 1)),
        p("kernel of 257 columns", (1, 1, 6, 300), (2, 1, 1, 257), padding=(0, 128)),
        p("182x182", (1, 1, 190, 191), (1, 1, 182, 182), slow=True),
        p("183x181, padded", (1, 1, 170, 170), (1, 1, 183, 181), padding=8, slow=True),
        p("separable kernel", (1, 1, 50, 44), (1, 1, 21, 21), padding=10, data="constant", kernel="constant"),
        p("uint8 image", image, kernel, padding=1, x_dtype="uint8"),
        p("uint8 image, float16 weight", image, kernel, padding=1, x_dtype="uint8", dtype="float16"),
        p("uint8 image, float64 weight", image, kernel, x_dtype="uint8", dtype="float64"),
        p("uint8 image, reflect", image, kernel, padding=2, padding_mode="reflect", x_dtype="uint8"),
        p("bool image", image, kernel, padding=1, x_dtype="bool"),
        p("int32 image", image, kernel, padding=1, x_dtype="int32"),
        p("float16 image, float32 weight", image, kernel, padding=1, x_dtype="float16"),
        p("bfloat16 image, float32 weight", image, kernel, padding=1, x_dtype="bfloat16"),
    ]
    for mode, padding in (("reflect", (2, 3)), ("replicate", (14, 15)), ("circular", (13, 12))):
        found.append(p(mode, image, kernel, padding=padding, padding_mode=mode))
        found.append(p(f"{mode}, four-sided", image, kernel, padding=((3, 0), (1, 2)), padding_mode=mode, stride=2))
    for dtype in ("float16", "bfloat16", "float64"):
        found += [
            p(f"{dtype}", image, kernel, padding=1, dtype=dtype, bias_shape=(4,)),
            p(f"{dtype}, 1x1", (1, 40, 9, 9), (16, 40, 1, 1), dtype=dtype),
            p(f"{dtype}, grouped", (2, 6, 9, 9), (3, 4, 2, 3, 3), groups=3, padding=1, dtype=dtype),
            p(f"{dtype}, dilated", image, kernel, dilation=2, padding=2, dtype=dtype),
            p(f"{dtype}, depthwise", (1, 16, 12, 12), (16, 1, 3, 3), groups=16, padding=1, dtype=dtype),
            p(f"{dtype}, 15x15", (1, 2, 30, 30), (2, 2, 15, 15), padding=7, dtype=dtype),
            p(f"{dtype}, 64 channels", (1, 64, 12, 12), (64, 64, 3, 3), padding=1, dtype=dtype),
            p(
                f"{dtype}, long sum of a constant",
                (1, 512, 6, 6),
                (3, 512, 3, 3),
                dtype=dtype,
                data="constant",
                kernel="constant",
            ),
        ]
    shapes: list[tuple[str, Shape, Shape, dict[str, Any]]] = [
        ("3x3", (1, 8, 24, 24), (8, 8, 3, 3), {"padding": 1}),
        ("1x1", (1, 16, 9, 9), (8, 16, 1, 1), {}),
        ("15x15", (1, 1, 44, 40), (1, 1, 15, 15), {"padding": 7}),
        ("depthwise", (1, 16, 14, 14), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
        ("stride 2", (1, 4, 17, 17), (4, 4, 3, 3), {"stride": 2, "padding": 1}),
        ("replicate", (1, 4, 12, 12), (4, 4, 3, 3), {"padding": 2, "padding_mode": "replicate"}),
        ("NHWC", (1, 4, 12, 12), (4, 4, 3, 3), {"padding": 1, "layout": "NHWC"}),
    ]
    for data in ("nan", "inf", "saturated"):
        found += [p(f"{data}, {name}", x, weight, data=data, **options) for name, x, weight, options in shapes]
    found += [
        p("long sum of a constant, 3x3", (1, 512, 6, 6), (4, 512, 3, 3), data="constant", kernel="constant"),
        p("long sum of a constant, 1x1", (1, 4096, 3, 3), (2, 4096, 1, 1), data="constant", kernel="constant"),
        p("long sum of a constant, 31x31", (1, 8, 34, 34), (1, 8, 31, 31), data="constant", kernel="constant"),
        p(
            "long sum of a constant, strided",
            (1, 256, 9, 9),
            (2, 256, 5, 5),
            stride=2,
            data="constant",
            kernel="constant",
        ),
    ]
    biased = {"padding": 1, "bias_shape": (4,)}
    for activation in (*ACTIVATIONS, ("leaky_relu", 0.2)):
        found.append(p(f"then {activation}", image, kernel, activation=activation, data="range", **biased))
    found += [
        p("then relu, residual", image, kernel, activation="relu", residual="C", **biased),
        p("residual, 1x1", (1, 16, 14, 14), (32, 16, 1, 1), residual="C"),
        p("residual in another order, NHWC", image, kernel, residual="F", padding=1, layout="NHWC"),
        p("float16, then gelu, residual", image, kernel, dtype="float16", activation="gelu", residual="C", **biased),
        p("infinite, then sigmoid", image, kernel, activation="sigmoid", data="inf", padding=1),
    ]
    return found + [p(f"gradient, {name}", *more, gradient=True, **options) for name, *more, options in _gradients()]


def _gradients() -> list[tuple[str, Shape, Shape, dict[str, Any]]]:
    """Of grouped and strided convolutions Metal's were wrong before MLX 0.32 (pull request 3800)."""
    return [
        ("3x3", (2, 3, 13, 12), (4, 3, 3, 3), {"padding": 1, "bias_shape": (1, 4, 1, 1)}),
        ("1x1", (1, 32, 9, 8), (16, 32, 1, 1), {"bias_shape": (16,)}),
        ("stride 3, rows that nothing reads", (2, 3, 13, 12), (4, 3, 2, 2), {"stride": 3}),
        ("stride 2", (2, 16, 15, 14), (16, 16, 3, 3), {"stride": 2, "padding": 1}),
        ("dilated", (1, 4, 15, 14), (4, 4, 3, 3), {"dilation": (2, 3), "padding": 2}),
        ("groups", (2, 6, 9, 9), (3, 4, 2, 3, 3), {"groups": 3, "padding": 1, "bias_shape": (12,)}),
        ("groups, stride 2", (2, 6, 9, 9), (3, 4, 2, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
        ("groups, 1x1, stride 2", (2, 32, 12, 12), (32, 8, 1, 1), {"groups": 4, "stride": 2}),
        ("depthwise", (2, 16, 14, 13), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
        ("depthwise 3x3, stride 2", (2, 32, 14, 13), (32, 1, 3, 3), {"groups": 32, "padding": 1, "stride": 2}),
        ("depthwise 7x7, stride 2", (1, 32, 20, 20), (32, 1, 7, 7), {"groups": 32, "padding": 3, "stride": 2}),
        ("15x15", (1, 2, 30, 28), (2, 2, 15, 15), {"padding": 7}),
        ("four-sided padding", (1, 3, 9, 8), (4, 3, 3, 3), {"padding": ((0, 2), (3, 0)), "stride": (2, 1)}),
        ("reflect", (1, 3, 9, 8), (4, 3, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
        ("circular", (1, 3, 9, 8), (4, 3, 3, 3), {"padding": 2, "padding_mode": "circular", "stride": 2}),
        ("NHWC, groups, stride 2", (2, 8, 9, 9), (8, 4, 3, 3), {"groups": 2, "stride": 2, "layout": "NHWC"}),
    ]


def _mistakes() -> list[Problem]:
    """Calls that must be errors; some of them kill a process or give garbage when a native routine gets them."""

    def m(name: str, mistake: str, /, **more: Any) -> Problem:
        of_problem = ("x_shape", "weight_shape", "bias_shape", "x_dtype", "dtype", "data")
        fields: dict[str, Any] = {"x_shape": (1, 4, 8, 8), "weight_shape": (6, 4, 3, 3)}
        fields.update({key: more.pop(key) for key in of_problem if key in more})
        return Problem(**fields, arguments=more, mistake=mistake, name=f"mistake: {name}")

    return [
        m("dilated kernel beyond the image", "dilation", dilation=6),
        m("kernel beyond the image by less than the stride", "dilation", x_shape=(1, 4, 8, 8), dilation=4, stride=3),
        m("kernel beyond the padded image", "padding", x_shape=(1, 4, 2, 8), weight_shape=(6, 4, 5, 3), padding=(1, 0)),
        m("groups 0", "groups", groups=0),
        m("groups that do not divide", "groups", groups=3),
        m("channels that do not fit", "weight", weight_shape=(6, 3, 3, 3)),
        m("more channels than there are", "weight", weight_shape=(6, 5, 3, 3)),
        m("channels of groups that do not fit", "weight", weight_shape=(6, 4, 3, 3), groups=2),
        m("5-D weight of other groups", "weight", weight_shape=(4, 2, 1, 3, 3), groups=2),
        m("no input channels", "x", x_shape=(1, 0, 8, 8), weight_shape=(6, 0, 3, 3)),
        m("no output channels", "weight", weight_shape=(0, 4, 3, 3)),
        m("kernel height 0", "weight", weight_shape=(6, 4, 0, 3)),
        m("image height 0", "x", x_shape=(1, 4, 0, 8), padding=2),
        m("3-D image", "x", x_shape=(4, 8, 8)),
        m("2-D weight", "weight", weight_shape=(3, 3)),
        m("bias of another size", "bias", bias_shape=(5,)),
        m("stride 0", "stride", stride=0),
        m("stride 1.5", "stride", stride=1.5),
        m("dilation 0", "dilation", dilation=0),
        m("padding -1", "padding", padding=-1),
        m("reflect beyond the image", "padding", padding=8, padding_mode="reflect"),
        m("padding_mode 'nonesuch'", "padding_mode", padding_mode="nonesuch"),
        m("layout 'nonesuch'", "layout", layout="nonesuch"),
        m("padding of 2**40", "padding", padding=2**40),
        m("integer weight", "weight", dtype="int32"),
        m("complex image", "x", x_dtype="complex64"),
        m("image as a list", "x", data="list as image"),
        m("weight as a list", "weight", data="list as weight"),
    ]


def _protocol() -> list[tuple[Shape, Shape, dict[str, Any]]]:
    """Every rule of the semantics once."""
    return [
        ((1, 1, 1, 1), (1, 1, 1, 1), {}),
        ((2, 3, 7, 9), (4, 3, 3, 3), {"padding": 1}),
        ((1, 4, 8, 8), (6, 4, 1, 1), {}),
        ((1, 3, 11, 10), (5, 3, 4, 3), {"stride": (2, 3), "padding": (2, 1)}),
        ((1, 2, 13, 12), (3, 2, 3, 2), {"dilation": (2, 3), "padding": 2}),
        ((2, 6, 9, 9), (3, 4, 2, 3, 3), {"groups": 3, "padding": 1}),
        ((1, 5, 9, 8), (5, 2, 1, 3, 5), {"groups": 5, "padding": (1, 2), "stride": 2}),
        ((1, 2, 8, 9), (2, 2, 3, 3), {"padding": (2, 3), "padding_mode": "reflect"}),
        ((1, 2, 5, 6), (2, 2, 3, 3), {"padding": (6, 7), "padding_mode": "replicate"}),
        ((1, 2, 6, 5), (2, 2, 3, 3), {"padding": (6, 2), "padding_mode": "circular"}),
        ((1, 3, 10, 7), (2, 3, 3, 3), {"padding": ((0, 2), (1, 0))}),
        ((1, 3, 10, 7), (2, 3, 4, 3), {"padding": "same", "stride": 2}),
        ((1, 2, 40, 36), (2, 2, 15, 17), {"padding": 8}),
        ((1, 40, 14, 14), (16, 40, 3, 3), {"padding": 1}),
        ((0, 2, 6, 6), (3, 2, 3, 3), {}),
    ]


DESIGNED = tuple(replace(p, number=number) for number, p in enumerate([*_plain(), *_mistakes()]))

# (x shape, weight shape, arguments): small, for authors of backends
PROTOCOL_PROBLEMS = tuple(
    Problem(x, weight, options, bias_shape=(1, weight[0] * weight[1] if len(weight) == 5 else weight[0], 1, 1))
    for x, weight, options in _protocol()
)
