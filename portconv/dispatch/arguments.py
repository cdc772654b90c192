"""The arguments of users, checked once and brought into normal form, and the problem that they make with sizes.

The rules are those of MegEngine 1.13's `Conv2d`; what is accepted beyond it stands in `portconv.conv2d`'s docstring. A
`TypeError` answers the wrong kind of thing, a `ValueError` the wrong value, before any array library is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias

from ..core import hints
from ..core import layout as layouts
from ..core.dtypes import promote, result_name
from ..core.epilogue import SLOPE, Activation, Epilogue
from ..core.errors import choices
from ..core.integers import MAX_SIZE, Pair, integer, pair, sequence_of_two
from ..core.problem import Problem
from ..core.shapes import dilated, same_padding
from ..core.words import ACCURACIES, ACTIVATIONS, COMPUTE_MODES, CONV_MODES, LAYOUTS, PADDING_MODES, STRATEGIES

__all__ = [
    "Conv2dSpec", "Padding", "activation_of", "check_channels", "chosen", "device_name", "flag", "image_sizes",
    "make_problem", "normalised", "padding_of", "sides_of",
]  # fmt: skip

Padding: TypeAlias = "Pair | tuple[Pair, Pair] | Literal['same']"
MAX_ELEMENTS = 2**40  # of a result or a padded input: beyond it lies a mistake, not a machine


def padding_of(value: object) -> Padding:
    """Two numbers, four sides, or "same", in normal form."""
    if type(value) is int and 0 <= value <= MAX_SIZE:  # most calls
        return value, value
    if isinstance(value, str):
        if value not in ("same", "valid"):
            raise ValueError(
                f"`padding` as a string must be 'same' or 'valid', but got {value!r}."
                f"{hints.word('padding', value, ('same', 'valid'))}"
            )
        return "same" if value == "same" else (0, 0)
    items = sequence_of_two(value)
    if items is not None and any(sequence_of_two(item) is not None for item in items):
        if len(items) != 2 or any(sequence_of_two(item) is None for item in items):
            raise ValueError(f"`padding` with four sides must be ((top, bottom), (left, right)), but got {value!r}.")
        vertical, horizontal = pair("padding[0]", items[0], 0), pair("padding[1]", items[1], 0)
        if vertical[0] == vertical[1] and horizontal[0] == horizontal[1]:
            return vertical[0], horizontal[0]
        return vertical, horizontal
    try:
        return pair("padding", value, 0)
    except (TypeError, ValueError) as error:
        if items is not None and len(items) == 2:
            raise  # one of the two is said to be wrong
        more = "`padding` may also be 'same', 'valid' or ((top, bottom), (left, right))."
        raise type(error)(f"{error} {more}") from None


def _modes(conv_mode: Any, compute_mode: Any, padding_mode: Any, layout: Any) -> tuple[str, str, str, str]:
    # MegEngine compares its modes in lower case
    conv_mode = conv_mode.lower() if isinstance(conv_mode, str) else conv_mode
    compute_mode = compute_mode.lower() if isinstance(compute_mode, str) else compute_mode
    for name, value, allowed in (
        ("conv_mode", conv_mode, CONV_MODES),
        ("compute_mode", compute_mode, COMPUTE_MODES),
        ("padding_mode", padding_mode, PADDING_MODES),
        ("layout", layout, LAYOUTS),
    ):
        chosen(name, value, allowed)
    return conv_mode, compute_mode, padding_mode, layout


def _choices(engine: Any, accuracy: Any, strategy: Any) -> tuple[str, str, str]:
    if not isinstance(engine, str):  # which engines there are, the backend knows
        raise _wrong("engine", engine, "'auto' or the name of an engine, such as 'gemm'")
    for name, value, allowed in (("accuracy", accuracy, ACCURACIES), ("strategy", strategy, STRATEGIES)):
        chosen(name, value, allowed)
    return engine, accuracy, strategy


def chosen(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """`value`, if it is one of these words."""
    if not isinstance(value, str) or value not in allowed:
        raise _wrong(name, value, choices(allowed), hints.word(name, value, allowed))
    return value


def activation_of(value: Any) -> Activation | None:
    """None, a name, or ("leaky_relu", slope)."""
    if value is None or isinstance(value, Activation):
        return value
    named = isinstance(value, str)
    if not named and sequence_of_two(value) is None:
        raise TypeError(f"`activation` must be None, a name or ('leaky_relu', slope), but got {value!r}.")
    name, slope = (value, SLOPE) if named else value
    if name not in ACTIVATIONS:
        hint = hints.word("activation", name, ACTIVATIONS)
        raise ValueError(f"`activation` must be None, {choices(ACTIVATIONS)}, but got {name!r}.{hint}")
    if not named and name != "leaky_relu":
        raise ValueError(f"`activation` has a slope with 'leaky_relu' alone, but got {value!r}.")
    if isinstance(slope, (str, bool)) or not hasattr(slope, "__float__"):
        raise TypeError(f"`activation` must have a number as its slope, but got {value!r}.")
    if not math.isfinite(slope := float(slope)):
        raise ValueError(f"`activation` must have a finite slope, but got {value!r}.")
    return Activation(name, slope)


def _wrong(name: str, value: object, allowed: str, hint: str = "") -> Exception:
    if isinstance(value, str):
        return ValueError(f"`{name}` must be {allowed}, but got {value!r}.{hint}")
    return TypeError(f"`{name}` must be {allowed}, but got {value!r} ({type(value).__name__}).")


def flag(name: str, value: object) -> bool:
    """The truth value of `value`, for arguments that MegEngine takes so."""
    try:
        return bool(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must have a truth value, but got {type(value).__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class Conv2dSpec:
    """The arguments of a convolution that do not depend on any array, in normal form.

    `padding` is `(height, width)`, `((top, bottom), (left, right))` where sides differ, or `"same"`.
    """

    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    conv_mode: str
    compute_mode: str
    padding_mode: str
    layout: str
    engine: str
    accuracy: str
    strategy: str
    out_dtype: str | None = None
    activation: Activation | None = None

    @classmethod
    def normalise(
        cls,
        stride: object = 1,
        padding: object = 0,
        dilation: object = 1,
        groups: object = 1,
        conv_mode: object = "cross_correlation",
        compute_mode: object = "default",
        *,
        padding_mode: object = "zeros",
        layout: object = "NCHW",
        engine: object = "auto",
        accuracy: object = "normwise",
        strategy: object = "heuristic",
        out_dtype: object = None,
        activation: object = None,
    ) -> Conv2dSpec:
        """Check every argument and bring it into normal form."""
        strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
        group_count = integer("groups", groups, 1)
        return cls(
            strides,
            padding_of(padding),
            dilations,
            group_count,
            *_modes(conv_mode, compute_mode, padding_mode, layout),
            *_choices(engine, accuracy, strategy),
            None if out_dtype is None else result_name(out_dtype),
            activation_of(activation),
        )

    def out_channels(self, weight_shape: tuple[int, ...]) -> int:
        """Those of a result for a weight of this shape; 0 for one that has none."""
        return math.prod(weight_shape[:-3]) if len(weight_shape) in (4, 5) else 0

    def sides(self, height: int, width: int, kernel: Pair) -> tuple[int, int, int, int]:
        """Padding as (top, bottom, left, right) for an image of this size."""
        return sides_of(self.padding, (height, width), kernel, self.stride, self.dilation)


_remembered = lru_cache(maxsize=1024, typed=True)(Conv2dSpec.normalise)


def normalised(stride: object, padding: object, dilation: object, *arguments: Any, **options: Any) -> Conv2dSpec:
    """`Conv2dSpec.normalise`, which need not be done again for the usual arguments.

    These are numbers and words. A pair is looked at anew, since (1, True) would pass for (1, 1).
    """
    if type(stride) is type(dilation) is int and (type(padding) is int or type(padding) is str):
        try:
            return _remembered(stride, padding, dilation, *arguments, **options)
        except TypeError:  # what cannot be looked up; or one of the arguments is wrong, which is said below
            pass
    return Conv2dSpec.normalise(stride, padding, dilation, *arguments, **options)


def sides_of(padding: Padding, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right) for an image of this size."""
    if padding == "same":
        rows, cols = zip(size, kernel, stride, dilation, strict=True)
        return same_padding(*rows) + same_padding(*cols)
    vertical, horizontal = padding
    if isinstance(vertical, tuple) and isinstance(horizontal, tuple):
        return vertical + horizontal
    assert isinstance(vertical, int) and isinstance(horizontal, int)
    return vertical, vertical, horizontal, horizontal


def device_name(device: object) -> str | None:
    """A device in the library's own words, or None for its default device."""
    if device is not None and not isinstance(device, str):
        raise TypeError(f"`device` must be a string or None, but got {device!r} ({type(device).__name__}).")
    return device


def _weight_sizes(
    spec: Conv2dSpec, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """`(O, I/G, kh, kw)`, whichever of the two forms the weight has."""
    if len(weight_shape) == 5:
        return weight_shape[0] * weight_shape[1], *weight_shape[2:]
    if len(weight_shape) != 4:
        raise ValueError(
            f"`weight` must have 4 axes (O, I/G, kh, kw), or 5 when grouped (G, O/G, I/G, kh, kw), "
            f"but got {len(weight_shape)}.{hints.kernel(weight_shape)}\n"
            f"{layouts.describe_shapes(x_shape, weight_shape, spec.layout)}"
        )
    return weight_shape


def check_channels(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    groups: int,
    layout: str,
) -> None:
    """Whether the channels of a signal, an image or a volume, of its weight and of its bias go together.

    The weight has as many axes as `layout`, or one more if it is grouped.
    """

    def ending() -> str:
        hint = hints.sizes(x_shape, weight_shape, layout, groups)
        return f"{hint}\n{layouts.describe_shapes(x_shape, weight_shape, layout)}"

    in_channels, (out_channels, group_inputs) = x_shape[layout.index("C")], weight_shape[:2]
    if len(weight_shape) > len(layout):
        if weight_shape[0] != groups:
            form = f"(G, O/G, I/G, {layouts.kernel_axes(layout)})"
            raise ValueError(
                f"`weight` with {len(weight_shape)} axes is {form}, so its first size must be `groups` = {groups}, but "
                f"got {weight_shape[0]}.{ending()}"
            )
        out_channels, group_inputs = groups * weight_shape[1], weight_shape[2]
    if in_channels % groups:
        raise ValueError(
            f"`groups` must divide the channels of `x`, but {in_channels} is no multiple of {groups}.{ending()}"
        )
    if out_channels % groups:
        raise ValueError(
            f"`groups` must divide the output channels, but {out_channels} is no multiple of {groups}.{ending()}"
        )
    if group_inputs != in_channels // groups:
        raise ValueError(
            f"`weight` has {group_inputs} input channels per group, but `x` has {in_channels} channels and `groups` is "
            f"{groups}, so {in_channels // groups} are expected.{ending()}"
        )
    check_bias(bias_shape, out_channels, len(layout))


def check_bias(bias_shape: tuple[int, ...] | None, out_channels: int, axes: int = 4) -> None:
    """Whether a bias has a number for each output channel; `axes` are those of the result."""
    whole = (1, out_channels, *[1] * (axes - 2))
    if bias_shape is not None and bias_shape not in (whole, (out_channels,)):
        raise ValueError(
            f"`bias` must have shape {whole} or ({out_channels},), one value for each of the {out_channels} output "
            f"channels, but got {bias_shape}."
        )


def _check_padding(
    spec: Conv2dSpec, sides: tuple[int, int, int, int], height: int, width: int, shapes: Callable[[], str]
) -> None:
    """Reflection and wrapping need enough image to take their values from."""
    limits = {"reflect": (height - 1, width - 1), "circular": (height, width)}
    if spec.padding_mode not in limits:
        return
    vertical, horizontal = limits[spec.padding_mode]
    if max(sides[:2]) > vertical or max(sides[2:]) > horizontal:
        rule = "smaller than the image" if spec.padding_mode == "reflect" else "no larger than the image"
        raise ValueError(
            f"`padding` must be {rule} when `padding_mode` is {spec.padding_mode!r}, but got "
            f"((top, bottom), (left, right)) = ({sides[:2]}, {sides[2:]}) for an image of {height} x {width}. "
            f"Use less padding, or `padding_mode='replicate'`, which has no limit.\n{shapes()}"
        )


def image_sizes(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) of an image, which has four axes."""
    if len(shape) != 4:
        raise ValueError(
            f"`x` must have 4 axes, {layout}, but got {len(shape)}: x.shape = {shape}.{hints.image(shape, layout)}"
        )
    return layouts.sizes(shape, layout)


def make_problem(
    spec: Conv2dSpec,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    dtypes: tuple[str, str, str | None],
    device: str = "cpu",
    traced: bool = False,
    residual: tuple[tuple[int, ...], str] | None = None,
) -> Problem:
    """Check the sizes against each other and put the problem together.

    `dtypes` are those of x, weight and bias; `residual` are the shape and the dtype of one.
    """
    n, in_channels, height, width = image_sizes(x_shape, spec.layout)
    shapes = partial(layouts.describe_shapes, x_shape, weight_shape, spec.layout)  # as errors end with
    if height < 1 or width < 1:
        raise ValueError(f"`x` must have a height and a width of at least 1, but got {height} x {width}.\n{shapes()}")
    if in_channels < 1:
        raise ValueError(f"`x` must have at least 1 channel, but got 0.\n{shapes()}")
    out_channels, _, kh, kw = _weight_sizes(spec, x_shape, weight_shape)
    if min(out_channels, kh, kw) < 1:
        raise ValueError(f"`weight` must have no axis of size 0.\n{shapes()}")
    check_channels(x_shape, weight_shape, bias_shape, spec.groups, spec.layout)
    sides = spec.sides(height, width, (kh, kw))
    _check_padding(spec, sides, height, width, shapes)
    dtype = promote(*dtypes, None if residual is None else residual[1])
    epilogue = Epilogue(bias_shape is not None, residual is not None, spec.activation)
    problem = Problem(
        n, in_channels, height, width, out_channels, (kh, kw), spec.stride, sides, spec.dilation, spec.groups,
        spec.padding_mode, epilogue, dtypes[0], dtype, spec.layout,
        spec.accuracy, device, traced, None if spec.out_dtype == dtype else spec.out_dtype,
    )  # fmt: skip
    _check_sizes(problem, shapes)
    if residual is not None:
        check_residual(residual, problem, shapes)
    return problem


def check_residual(residual: tuple[tuple[int, ...], str], problem: Problem, shapes: Callable[[], str]) -> None:
    """Whether a residual of this shape and dtype is like the result."""
    if residual[0] != problem.out_shape:
        raise ValueError(
            f"`residual` must have the shape of the result, {problem.out_shape} {problem.layout}, but got "
            f"{residual[0]}.\n{shapes()}"
        )


def _check_sizes(problem: Problem, shapes: Callable[[], str]) -> None:
    top, bottom, left, right = problem.padding
    padded = (problem.height + top + bottom, problem.width + left + right)
    extent = (dilated(problem.kernel[0], problem.dilation[0]), dilated(problem.kernel[1], problem.dilation[1]))
    if extent[0] > padded[0] or extent[1] > padded[1]:
        raise ValueError(
            f"The kernel does not fit: with `dilation` {problem.dilation} it covers {extent[0]} x {extent[1]} pixels, "
            f"but the image with its `padding` is {padded[0]} x {padded[1]}. Use a smaller kernel or dilation, or more "
            f"padding.\n{shapes()}"
        )
    oh, ow = problem.out_size
    advice = partial(padding_advice, problem, shapes)
    for what, rows, cols, channels in (
        ("result", oh, ow, problem.out_channels),
        ("padded image", *padded, problem.in_channels),
    ):
        check_elements(what, problem.batch, channels, rows, cols, advice)


def padding_advice(problem: Problem, shapes: Callable[[], str]) -> str:
    """The end of an error about sizes that padding has made too large."""
    return f"Check `padding` {problem.padding} (top, bottom, left, right).\n{shapes()}"


def check_elements(what: str, batch: int, channels: int, rows: int, cols: int, advice: Callable[[], str]) -> None:
    """Whether an array of these sizes can be meant."""
    if max(rows, cols, batch, channels) > MAX_SIZE or batch * channels * rows * cols > MAX_ELEMENTS:
        raise ValueError(
            f"The {what} would be {batch} x {channels} x {rows} x {cols} (N, C, H, W), more than 2**40 "
            f"elements or 2**31 - 1 along one axis. {advice()}"
        )
