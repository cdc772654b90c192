"""What a convolution is: the user's arguments, normalised and checked once, and the problem that they make with sizes.

The rules are those of MegEngine 1.13's `Conv2d`; what is accepted beyond it stands in `portconv.conv2d`'s docstring. A
`TypeError` answers the wrong kind of thing, a `ValueError` the wrong value, before any array library is called.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from . import layout as layouts
from .errors import choices, describe_shapes
from .shapes import dilated, output_size, same_padding

__all__ = [
    "FLOATING",
    "Conv2dSpec",
    "Padding",
    "Pair",
    "Problem",
    "compute_dtype",
    "device_name",
    "dtype_name",
    "flag",
    "integer",
    "make_problem",
    "pair",
    "promote",
]

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = "Pair | tuple[Pair, Pair] | Literal['same']"

ENGINES = ("auto", "native", "gemm", "winograd", "fft", "direct")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
COMPUTE_MODES = ("default", "float32")
CONV_MODES = ("cross_correlation",)
ACCURACIES = ("normwise", "elementwise")
STRATEGIES = ("heuristic", "measure")
FLOATING = ("float16", "bfloat16", "float32", "float64")
INTEGRAL = ("bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")

MAX_SIZE = 2**31 - 1  # of one axis: what the native routines of every library can index
MAX_ELEMENTS = 2**40  # of a result or a padded input: beyond it lies a mistake, not a machine


# --- one argument at a time -------------------------------------------------------------------------------------------


def integer(name: str, value: object, minimum: int) -> int:
    """`value` as an int of at least `minimum`; NumPy integers count, booleans and floats do not."""
    kind = type(value)
    if kind is not int:
        if isinstance(value, bool) or "bool" in kind.__name__ or "bool" in str(getattr(value, "dtype", "")):
            raise TypeError(f"`{name}` must be an integer, but got the boolean {value!r}.")
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"`{name}` must be an integer, but got {value!r} ({kind.__name__}).") from None
    assert isinstance(value, int)
    if not minimum <= value <= MAX_SIZE:
        bound = f"at least {minimum}" if value < minimum else f"at most {MAX_SIZE}"
        raise ValueError(f"`{name}` must be {bound}, but got {value}.")
    return value


def _sequence_of_two(value: object) -> Sequence[object] | None:
    """A tuple, list or one-dimensional array (its `tolist`) of any length as a sequence; `None` for a single thing."""
    if isinstance(value, (tuple, list)):
        return value
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        listed = value.tolist()
        return listed if isinstance(listed, list) else None
    return None


def pair(name: str, value: object, minimum: int) -> Pair:
    """An int, or two of them as (height, width)."""
    items = _sequence_of_two(value)
    if items is None:
        if isinstance(value, str) or not hasattr(value, "__index__"):
            raise TypeError(f"`{name}` must be an int or a pair of ints (height, width), but got {value!r}.")
        single = integer(name, value, minimum)
        return single, single
    if len(items) != 2:
        raise ValueError(
            f"`{name}` must be an int or a pair of ints (height, width), but got {len(items)} values: {value!r}."
        )
    return integer(f"{name}[0]", items[0], minimum), integer(f"{name}[1]", items[1], minimum)


def _padding(value: object) -> Padding:
    if isinstance(value, str):
        if value not in ("same", "valid"):
            raise ValueError(f"`padding` as a string must be 'same' or 'valid', but got {value!r}.")
        return "same" if value == "same" else (0, 0)
    items = _sequence_of_two(value)
    if items is not None and any(_sequence_of_two(item) is not None for item in items):
        if len(items) != 2 or any(_sequence_of_two(item) is None for item in items):
            raise ValueError(f"`padding` with four sides must be ((top, bottom), (left, right)), but got {value!r}.")
        vertical, horizontal = pair("padding[0]", items[0], 0), pair("padding[1]", items[1], 0)
        if vertical[0] == vertical[1] and horizontal[0] == horizontal[1]:
            return vertical[0], horizontal[0]
        return vertical, horizontal
    try:
        return pair("padding", value, 0)
    except TypeError as error:
        raise TypeError(f"{error} `padding` may also be 'same', 'valid' or ((top, bottom), (left, right)).") from None


def _one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be {choices(allowed)}, but got {value!r} ({type(value).__name__}).")
    if value not in allowed:
        raise ValueError(f"`{name}` must be {choices(allowed)}, but got {value!r}.")
    return value


def flag(name: str, value: object) -> bool:
    """The truth value of `value`, for arguments that MegEngine takes so."""
    try:
        return bool(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must have a truth value, but got {type(value).__name__}: {error}") from None


# --- all arguments together -------------------------------------------------------------------------------------------


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
    ) -> Conv2dSpec:
        """Check every argument and bring it into normal form."""
        return cls(
            pair("stride", stride, 1),
            _padding(padding),
            pair("dilation", dilation, 1),
            integer("groups", groups, 1),
            # MegEngine compares its modes in lower case
            _one_of("conv_mode", conv_mode.lower() if isinstance(conv_mode, str) else conv_mode, CONV_MODES),
            _one_of(
                "compute_mode", compute_mode.lower() if isinstance(compute_mode, str) else compute_mode, COMPUTE_MODES
            ),
            _one_of("padding_mode", padding_mode, PADDING_MODES),
            _one_of("layout", layout, layouts.LAYOUTS),
            _one_of("engine", engine, ENGINES),
            _one_of("accuracy", accuracy, ACCURACIES),
            _one_of("strategy", strategy, STRATEGIES),
        )

    def sides(self, height: int, width: int, kernel: Pair) -> tuple[int, int, int, int]:
        """Padding as (top, bottom, left, right) for an image of this size."""
        if self.padding == "same":
            (sh, sw), (dh, dw) = self.stride, self.dilation
            return same_padding(height, kernel[0], sh, dh) + same_padding(width, kernel[1], sw, dw)
        vertical, horizontal = self.padding
        if isinstance(vertical, tuple) and isinstance(horizontal, tuple):
            return vertical + horizontal
        assert isinstance(vertical, int) and isinstance(horizontal, int)
        return vertical, vertical, horizontal, horizontal


# --- dtypes, by their names -------------------------------------------------------------------------------------------


def promote(x_dtype: str, weight_dtype: str, bias_dtype: str | None) -> str:
    """The result's dtype: floating inputs promote as in the array API standard, other images take the weight's.

    float16 with bfloat16, which the standard leaves open, gives float32, as in PyTorch and JAX.
    """
    for name, dtype in (("x", x_dtype), ("weight", weight_dtype), ("bias", bias_dtype)):
        if dtype is None or dtype in FLOATING or (name == "x" and dtype in INTEGRAL):
            continue
        integers = ", or integers or booleans" if name == "x" else ""
        raise TypeError(f"`{name}` must be of a floating dtype ({', '.join(FLOATING)}){integers}, but got {dtype}.")
    present = {dtype for dtype in (x_dtype, weight_dtype, bias_dtype) if dtype in FLOATING}
    if "float64" in present:
        return "float64"
    return present.pop() if len(present) == 1 else "float32"


def dtype_name(dtype: object) -> str:
    """The standard name of a floating dtype: of a name, a scalar type or a library's dtype object; None is float32."""
    if dtype is None:
        return "float32"
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    name = name.rpartition(".")[2]
    if name not in FLOATING:
        raise TypeError(f"`dtype` must be one of {', '.join(FLOATING)}, but got {dtype!r}.")
    return name


def device_name(device: object) -> str | None:
    """A device in the library's own words, or None for its default device."""
    if device is not None and not isinstance(device, str):
        raise TypeError(f"`device` must be a string or None, but got {device!r} ({type(device).__name__}).")
    return device


def compute_dtype(dtype: str) -> str:
    """The dtype that products are summed in: float32 at least."""
    return "float64" if dtype == "float64" else "float32"


# --- with sizes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Sizes, dtypes and modes of one convolution; no arrays. Everything that a planner may look at.

    `padding` is (top, bottom, left, right); `x_dtype` is the image's own dtype, `dtype` the result's.
    `traced` says that the values are not known yet (`jax.jit`).
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
    has_bias: bool
    x_dtype: str
    dtype: str
    layout: str
    accuracy: str
    device: str
    traced: bool = False

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

    @property
    def weight_shape(self) -> tuple[int, int, int, int, int]:
        """`(G, O/G, I/G, kh, kw)`."""
        return (self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel)

    @property
    def compute_dtype(self) -> str:
        """The dtype that products are summed in."""
        return compute_dtype(self.dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of one element while computing."""
        return 8 if self.dtype == "float64" else 4

    @property
    def flops(self) -> float:
        """Multiplications and additions of the direct sum."""
        oh, ow = self.out_size
        kh, kw = self.kernel
        return 2.0 * self.batch * self.out_channels * oh * ow * (self.in_channels // self.groups) * kh * kw


def _weight_sizes(
    spec: Conv2dSpec, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """`(O, I/G, kh, kw)`, whichever of the two forms the weight has."""
    if len(weight_shape) == 5:
        if weight_shape[0] != spec.groups:
            raise ValueError(
                f"`weight` with 5 axes is (G, O/G, I/G, kh, kw), so its first size must be `groups` = {spec.groups}, "
                f"but got {weight_shape[0]}.\n{describe_shapes(x_shape, weight_shape, spec.layout)}"
            )
        return weight_shape[0] * weight_shape[1], *weight_shape[2:]
    if len(weight_shape) != 4:
        raise ValueError(
            f"`weight` must have 4 axes (O, I/G, kh, kw), or 5 when grouped (G, O/G, I/G, kh, kw), "
            f"but got {len(weight_shape)}.\n{describe_shapes(x_shape, weight_shape, spec.layout)}"
        )
    return weight_shape


def _check_bias(bias_shape: tuple[int, ...] | None, out_channels: int) -> None:
    if bias_shape is not None and bias_shape not in ((1, out_channels, 1, 1), (out_channels,)):
        raise ValueError(
            f"`bias` must have shape (1, {out_channels}, 1, 1) or ({out_channels},), one value for each of the "
            f"{out_channels} output channels, but got {bias_shape}."
        )


def _check_padding(spec: Conv2dSpec, sides: tuple[int, int, int, int], height: int, width: int, shapes: str) -> None:
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
            f"Use less padding, or `padding_mode='replicate'`, which has no limit.\n{shapes}"
        )


def make_problem(
    spec: Conv2dSpec,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    dtypes: tuple[str, str, str | None],
    device: str = "cpu",
    traced: bool = False,
) -> Problem:
    """Check the sizes against each other and put the problem together; `dtypes` are those of x, weight and bias."""
    if len(x_shape) != 4:
        hint = " Add a batch axis of size 1." if len(x_shape) == 3 else ""
        raise ValueError(f"`x` must have 4 axes, {spec.layout}, but got {len(x_shape)}: x.shape = {x_shape}.{hint}")
    n, in_channels, height, width = layouts.sizes(x_shape, spec.layout)
    shapes = describe_shapes(x_shape, weight_shape, spec.layout)
    if height < 1 or width < 1:
        raise ValueError(f"`x` must have a height and a width of at least 1, but got {height} x {width}.\n{shapes}")
    if in_channels < 1:
        raise ValueError(f"`x` must have at least 1 channel, but got 0.\n{shapes}")
    out_channels, group_inputs, kh, kw = _weight_sizes(spec, x_shape, weight_shape)
    if min(out_channels, kh, kw) < 1:
        raise ValueError(f"`weight` must have no axis of size 0.\n{shapes}")
    if in_channels % spec.groups:
        raise ValueError(
            f"`groups` must divide the channels of `x`, but {in_channels} is no multiple of {spec.groups}.\n{shapes}"
        )
    if out_channels % spec.groups:
        raise ValueError(
            f"`groups` must divide the output channels, but {out_channels} is no multiple of {spec.groups}.\n{shapes}"
        )
    if group_inputs != in_channels // spec.groups:
        raise ValueError(
            f"`weight` has {group_inputs} input channels per group, but `x` has {in_channels} channels and `groups` is "
            f"{spec.groups}, so {in_channels // spec.groups} are expected.\n{shapes}"
        )
    _check_bias(bias_shape, out_channels)
    sides = spec.sides(height, width, (kh, kw))
    _check_padding(spec, sides, height, width, shapes)
    problem = Problem(
        n, in_channels, height, width, out_channels, (kh, kw), spec.stride, sides, spec.dilation, spec.groups,
        spec.padding_mode, bias_shape is not None, dtypes[0], promote(*dtypes), spec.layout,
        spec.accuracy, device, traced,
    )  # fmt: skip
    _check_sizes(problem, shapes)
    return problem


def _check_sizes(problem: Problem, shapes: str) -> None:
    top, bottom, left, right = problem.padding
    padded = (problem.height + top + bottom, problem.width + left + right)
    extent = (dilated(problem.kernel[0], problem.dilation[0]), dilated(problem.kernel[1], problem.dilation[1]))
    if extent[0] > padded[0] or extent[1] > padded[1]:
        raise ValueError(
            f"The kernel does not fit: with `dilation` {problem.dilation} it covers {extent[0]} x {extent[1]} pixels, "
            f"but the image with its `padding` is {padded[0]} x {padded[1]}. Use a smaller kernel or dilation, or more "
            f"padding.\n{shapes}"
        )
    oh, ow = problem.out_size
    for what, rows, cols, channels in (
        ("result", oh, ow, problem.out_channels),
        ("padded image", *padded, problem.in_channels),
    ):
        if max(rows, cols, problem.batch, channels) > MAX_SIZE or problem.batch * channels * rows * cols > MAX_ELEMENTS:
            raise ValueError(
                f"The {what} would be {problem.batch} x {channels} x {rows} x {cols} (N, C, H, W), more than 2**40 "
                f"elements or 2**31 - 1 along one axis. Check `padding` {problem.padding} (top, bottom, left, right).\n"
                f"{shapes}"
            )
