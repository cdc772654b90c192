"""The problem: sizes, dtypes and modes of one convolution. No arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from . import layout as layouts
from .dtypes import compute_dtype
from .epilogue import Epilogue
from .integers import Pair
from .shapes import dilated, output_size

__all__ = ["Problem", "TransposedProblem"]


@dataclass(frozen=True)
class Problem:
    """Sizes, dtypes and modes of one convolution; no arrays. Everything that a planner may look at.

    `padding` is (top, bottom, left, right); `x_dtype` is the image's own dtype, `dtype` the one that the arguments
    promote to, which the result has unless `out_dtype` names another.
    `traced` says that the values are not known yet (`jax.jit`). `packed_once` says that a weight is packed for one
    call, as in training, which changes it from step to step: what packing takes counts, and the weight's memory may be
    read until the call is over.

    Examples
    --------
    >>> import portconv
    >>> problem = portconv.plan_conv2d((1, 4, 20, 20), (8, 4, 3, 3), padding="same", stride=2).problem
    >>> problem.kernel, problem.padding, problem.out_shape
    ((3, 3), (0, 1, 0, 1), (1, 8, 10, 10))
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int
    padding_mode: str
    epilogue: Epilogue
    x_dtype: str
    dtype: str
    layout: str
    accuracy: str
    device: str
    traced: bool = False
    out_dtype: str | None = None  # what the result is rounded to, if it is to be another dtype than `dtype`
    packed_once: bool = False

    @cached_property
    def out_size(self) -> Pair:
        """Height and width of the result."""
        top, bottom, left, right = self.padding
        return (
            output_size(self.height, self.kernel[0], self.stride[0], top, bottom, self.dilation[0]),
            output_size(self.width, self.kernel[1], self.stride[1], left, right, self.dilation[1]),
        )

    @cached_property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result, in the problem's layout."""
        return layouts.shape_of(self.batch, self.out_channels, *self.out_size, self.layout)

    @cached_property
    def x_shape(self) -> tuple[int, int, int, int]:
        """Shape of the image, in the problem's layout."""
        return layouts.shape_of(self.batch, self.in_channels, self.height, self.width, self.layout)

    @cached_property
    def weight_shape(self) -> tuple[int, int, int, int, int]:
        """`(G, O/G, I/G, kh, kw)`."""
        return (self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel)

    @cached_property
    def compute_dtype(self) -> str:
        """The dtype that products are summed in."""
        return compute_dtype(self.dtype)

    @cached_property
    def result_dtype(self) -> str:
        """The dtype of the result."""
        return self.out_dtype or self.dtype

    @cached_property
    def itemsize(self) -> int:
        """Bytes of one element while computing."""
        return 8 if self.dtype == "float64" else 4

    @cached_property
    def flops(self) -> float:
        """Multiplications and additions of the direct sum."""
        oh, ow = self.out_size
        kh, kw = self.kernel
        return 2.0 * self.batch * self.out_channels * oh * ow * (self.in_channels // self.groups) * kh * kw


@dataclass(frozen=True)
class TransposedProblem(Problem):
    """Sizes, dtypes and modes of one transposed convolution: what takes a cotangent to the gradient of an image.

    The fields mean what they mean in `Problem`, for the image that is given and the result that is wanted. `padding` is
    that of the convolution whose gradient it is: so much is missing at the sides of the result. `output_padding`
    rows and columns at the bottom and right, fewer than the stride, are those that the convolution leaves out.
    """

    output_padding: Pair = (0, 0)

    @cached_property
    def out_size(self) -> Pair:
        """Height and width of the result."""
        top, bottom, left, right = self.padding
        rows = (self.height - 1) * self.stride[0] + dilated(self.kernel[0], self.dilation[0]) - top - bottom
        cols = (self.width - 1) * self.stride[1] + dilated(self.kernel[1], self.dilation[1]) - left - right
        return rows + self.output_padding[0], cols + self.output_padding[1]

    @cached_property
    def weight_shape(self) -> tuple[int, int, int, int, int]:
        """`(G, I/G, O/G, kh, kw)`."""
        return (self.groups, self.in_channels // self.groups, self.out_channels // self.groups, *self.kernel)

    @cached_property
    def flops(self) -> float:
        """Multiplications and additions of the direct sum."""
        return self.convolution.flops

    @cached_property
    def convolution(self) -> Problem:
        """The convolution that takes an array like the result to one like the image, by the same weight."""
        return Problem(
            self.batch, self.out_channels, *self.out_size, self.in_channels, self.kernel, self.stride, self.padding,
            self.dilation, self.groups, "zeros", Epilogue(), self.dtype, self.dtype, self.layout, self.accuracy,
            self.device, self.traced,
        )  # fmt: skip
