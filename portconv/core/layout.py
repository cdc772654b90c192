"""Memory layouts as permutations of axes.

Inside the engines a window is (C, B, H, W) and a result (O, B, H, W): with the batch after the channels, one matrix
product serves all images of a block, and NCHW and NHWC arrays are both just views of it.

The layouts of weights stand here by their names, too. I is the number of input channels of one group.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = [
    "FROM_CBHW", "NCHW_FROM_NHWC", "NHWC_FROM_NCHW", "OIHW_FROM", "TO_CBHW", "WEIGHT_LAYOUTS",
    "describe_shapes", "kernel_axes", "pixel_axes", "reorder", "shape_of", "sizes",
]  # fmt: skip

T = TypeVar("T")
Permutation = tuple[int, int, int, int]

TO_CBHW: dict[str, Permutation] = {"NCHW": (1, 0, 2, 3), "NHWC": (3, 0, 1, 2)}
FROM_CBHW: dict[str, Permutation] = {"NCHW": (1, 0, 2, 3), "NHWC": (1, 2, 3, 0)}
NHWC_FROM_NCHW: Permutation = (0, 2, 3, 1)
NCHW_FROM_NHWC: Permutation = (0, 3, 1, 2)

# Of the weights of one convolution: each layout, and who has it.
WEIGHT_LAYOUTS = {
    "OIHW": "PyTorch, ONNX, MegEngine without groups",
    "OHWI": "MLX",
    "HWIO": "Keras, Flax",
    "HWCM": "Keras's DepthwiseConv2D: (kh, kw, channels, multiplier)",
    "GOIHW": "MegEngine with groups: (G, O/G, I/G, kh, kw)",
}
# The axes of each in the order of OIHW. Where O is two axes, C and M or G and O, these come first, in this order.
OIHW_FROM = {
    "OIHW": (0, 1, 2, 3),
    "OHWI": (0, 3, 1, 2),
    "HWIO": (3, 2, 0, 1),
    "HWCM": (2, 3, 0, 1),
    "GOIHW": (0, 1, 2, 3, 4),
}


def pixel_axes(layout: str) -> str:
    """`"HW"` of images, `"W"` of signals, `"DHW"` of volumes."""
    return layout.replace("N", "").replace("C", "")


def kernel_axes(layout: str) -> str:
    """`"kh, kw"` of images, for messages about the shapes of weights."""
    return ", ".join(f"k{axis.lower()}" for axis in pixel_axes(layout))


def describe_shapes(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], layout: str) -> str:
    """The line that ends a message about sizes: both shapes in full, with their layouts."""
    grouped = len(weight_shape) == len(layout) + 1
    weight_layout = f"(G, O/G, I/G, {kernel_axes(layout)})" if grouped else f"OI{pixel_axes(layout)}"
    return f"x.shape = {x_shape} {layout}, weight.shape = {weight_shape} {weight_layout}."


def reorder(items: tuple[T, ...], permutation: Permutation) -> tuple[T, ...]:
    """The items (sizes, slices) as `permute_dims` would order the axes that they belong to."""
    return tuple([items[axis] for axis in permutation])


def sizes(shape: tuple[T, ...], layout: str) -> tuple[T, T, T, T]:
    """`(N, C, H, W)` of an array of `shape` in `layout`; or of what else it has one of for each axis."""
    n, a, b, c = shape
    return (n, a, b, c) if layout == "NCHW" else (n, c, a, b)


def shape_of(n: T, c: T, h: T, w: T, layout: str) -> tuple[T, T, T, T]:
    """Shape of an array with these sizes in `layout`; or the order of what else it has one of for each axis."""
    return (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
