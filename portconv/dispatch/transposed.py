"""The arguments of transposed convolutions, and the problem that they make with sizes.

The rules are those of MegEngine's `ConvTranspose2d`; what is accepted beyond it stands in the docstring of
`portconv.conv_transpose2d`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

from ..core import hints
from ..core.dtypes import promote
from ..core.epilogue import Epilogue
from ..core.integers import Pair, pair
from ..core.layout import kernel_axes, pixel_axes
from ..core.problem import TransposedProblem
from .arguments import (
    Conv2dSpec,
    check_bias,
    check_elements,
    check_residual,
    image_sizes,
    normalised,
    padding_advice,
)  # fmt: skip

__all__ = ["ConvTranspose2dSpec", "check_transposed_channels", "make_transposed_problem", "normalised_transposed"]


@dataclass(frozen=True, slots=True)
class ConvTranspose2dSpec(Conv2dSpec):
    """The arguments of a transposed convolution that do not depend on any array, in normal form."""

    output_padding: Pair = (0, 0)

    def out_channels(self, weight_shape: tuple[int, ...]) -> int:
        return weight_shape[-3] * self.groups if len(weight_shape) in (4, 5) else 0


def normalised_transposed(
    stride: object, padding: object, output_padding: object, dilation: object, *arguments: Any, **options: Any
) -> ConvTranspose2dSpec:
    """Check every argument and bring it into normal form; those not named here are `Conv2dSpec.normalise`'s."""
    return _transposed(
        normalised(stride, padding, dilation, *arguments, **options), pair("output_padding", output_padding, 0)
    )


@lru_cache(maxsize=1024)
def _transposed(spec: Conv2dSpec, extra: Pair) -> ConvTranspose2dSpec:
    if spec.padding == "same":
        raise ValueError(
            "`padding` must be numbers for a transposed convolution, whose result has no size of its own, but got "
            "'same'."
        )
    if extra[0] >= spec.stride[0] or extra[1] >= spec.stride[1]:
        raise ValueError(
            f"`output_padding` must be less than `stride`, {spec.stride}, but got {extra}: a convolution of that "
            f"stride leaves out no more rows and columns."
        )
    known: dict[str, Any] = {field.name: getattr(spec, field.name) for field in fields(Conv2dSpec)}
    return ConvTranspose2dSpec(**known, output_padding=extra)


def check_transposed_channels(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    groups: int,
    layout: str,
) -> None:
    """As `check_channels`, of a transposed convolution."""
    axes, in_channels = len(layout), x_shape[layout.index("C")]
    if len(weight_shape) > axes and weight_shape[0] != groups:
        raise ValueError(
            f"`weight` with {axes + 1} axes is (G, I/G, O/G, {kernel_axes(layout)}), so its first size must be "
            f"`groups` = {groups}, but got {weight_shape[0]}.\n{_shapes(x_shape, weight_shape, layout)}"
        )
    if in_channels % groups:
        raise ValueError(
            f"`groups` must divide the channels of `x`, but {in_channels} is no multiple of {groups}.\n"
            f"{_shapes(x_shape, weight_shape, layout)}"
        )
    expected = math.prod(weight_shape[: 1 - axes])
    if expected != in_channels:
        raise ValueError(
            f"`weight` is for {expected} input channels, but `x` has {in_channels} channels."
            f"{hints.transposed(x_shape, weight_shape, layout, groups)}\n{_shapes(x_shape, weight_shape, layout)}"
        )
    check_bias(bias_shape, weight_shape[1 - axes] * groups, axes)


def _shapes(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], layout: str) -> str:
    """The line that ends a message about sizes."""
    form = f"{'G' if len(weight_shape) > len(layout) else ''}IO{pixel_axes(layout)}"
    return f"x.shape = {x_shape} {layout}, weight.shape = {weight_shape} {form}."


def make_transposed_problem(
    spec: ConvTranspose2dSpec,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    dtypes: tuple[str, str, str | None],
    device: str = "cpu",
    traced: bool = False,
    residual: tuple[tuple[int, ...], str] | None = None,
) -> TransposedProblem:
    """Check the sizes against each other and put the problem together; see `make_problem`."""
    n, in_channels, height, width = image_sizes(x_shape, spec.layout)
    shapes = partial(_shapes, x_shape, weight_shape, spec.layout)  # as errors end with
    if len(weight_shape) not in (4, 5):
        raise ValueError(
            f"`weight` must have 4 axes (I, O/G, kh, kw), or 5 when grouped (G, I/G, O/G, kh, kw), but got "
            f"{len(weight_shape)}.\n{shapes()}"
        )
    if min(height, width, in_channels) < 1:
        raise ValueError(f"`x` must have a height, a width and channels of at least 1.\n{shapes()}")
    if min(weight_shape) < 1:
        raise ValueError(f"`weight` must have no axis of size 0.\n{shapes()}")
    check_transposed_channels(x_shape, weight_shape, bias_shape, spec.groups, spec.layout)
    group_outputs, kh, kw = weight_shape[-3:]
    out_channels = group_outputs * spec.groups
    dtype = promote(*dtypes, None if residual is None else residual[1])
    epilogue = Epilogue(bias_shape is not None, residual is not None, spec.activation)
    problem = TransposedProblem(
        n, in_channels, height, width, out_channels, (kh, kw), spec.stride, spec.sides(height, width, (kh, kw)),
        spec.dilation, spec.groups, "zeros", epilogue, dtypes[0], dtype, spec.layout, spec.accuracy, device, traced,
        None if spec.out_dtype == dtype else spec.out_dtype, output_padding=spec.output_padding,
    )  # fmt: skip
    if min(problem.out_size) < 1:
        raise ValueError(
            f"Nothing is left of the result: `padding` {problem.padding} (top, bottom, left, right) takes its "
            f"{' x '.join(str(size) for size in problem.out_size)} pixels (height x width). Use less of it.\n{shapes()}"
        )
    top, bottom, left, right = problem.padding
    oh, ow = problem.out_size
    advice = partial(padding_advice, problem, shapes)
    check_elements("result", n, out_channels, oh + top + bottom, ow + left + right, advice)
    if residual is not None:
        check_residual(residual, problem, shapes)
    return problem
