"""Convolutions drawn from everything that portconv promises, from a seed and with NumPy alone; and smaller ones.

The promise is a product: sizes, strides, paddings, modes, groups, dtypes, memory orders, values, engines, ways to call.
A test that walks along one of its axes misses what two of them do together. `draw` takes a problem from all of them at
once; `shrink` makes one that fails as small as it can be while it fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from .values import KERNELS, VALUES

__all__ = ["Problem", "Scope", "Shape", "draw", "fits"]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
ORDERS = ("C", "F", "channels last", "flipped", "every second", "odd strides", "broadcast", "unaligned", "read-only",
          "swapped bytes", "page end", "page start")  # fmt: skip
CALLS = ("conv2d", "layer", "traced", "constant")  # those that are drawn
OUT_DTYPES = ("uint8", "int8", "uint16", "int16", "int32", "float16", "float32", "float64")
INTEGERS = ("uint8", "int8", "uint16", "int32", "int64", "bool")
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "hard_swish", "gelu", "sigmoid", "tanh")
SIZES = {"tiny": 2**8, "small": 2**13, "medium": 2**17, "large": 2**24}  # elements of the image, up to
MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Problem:
    """One call, and what there is to know of it: sizes, arguments, dtypes, memory orders, values. No arrays.

    `x_shape` is NCHW whatever the layout. `x_dtype` and `bias_dtype` are those of the weight, `dtype`, where they are
    empty; `out_dtype` is the result's, where it is not to follow the arguments. `orders` are those of image, weight and
    bias. `call` is "conv2d", "layer" (a `Conv2d` that has seen another size before), "traced" (inside `jax.jit`,
    `mx.compile`, `torch.func`) or "constant" (a layer there, whose arrays the function that is traced does not depend
    on). Not drawn are "mapped" (`jax.vmap`, `mx.vmap`, `torch.func.vmap` over the images), "forward" (the derivative by
    `jvp` in the direction of the image, which without a bias is the result) and "compiled" (`portconv.torch.Conv2d` in
    `torch.compile`). `threads` 0 leaves their number alone.
    `activation` is as `conv2d` takes it. `residual` is the memory order of one, of the weight's dtype; without a
    residual it is empty. `mistake` is the argument that an error must name. `repr` gives what differs from a plain
    call.

    Examples
    --------
    >>> from portconv.testing import Problem
    >>> Problem((1, 3, 9, 9), (4, 3, 3, 3), {"padding": 1}, data="nan").out_shape
    (1, 4, 9, 9)
    """

    x_shape: Shape
    weight_shape: Shape
    arguments: dict[str, Any] = field(default_factory=dict)
    engine: str = "auto"
    accuracy: str = "normwise"
    dtype: str = "float32"
    x_dtype: str = ""
    bias_dtype: str = ""
    bias_shape: Shape | None = None
    data: str = "normal"  # of the image; see values.py
    kernel: str = "normal"  # of the weight
    orders: tuple[str, str, str] = ("C", "C", "C")
    call: str = "conv2d"
    gradient: bool = False
    threads: int = 0
    seed: int = 0  # of the values
    name: str = ""
    slow: bool = False
    out_dtype: str = ""
    mistake: str = ""
    activation: Any = None
    residual: str = ""
    number: int = 0  # among the problems of `portconv check`

    def __repr__(self) -> str:
        some = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)[2:]
            if f.name != "number" and getattr(self, f.name) != _default(f)
        ]
        return f"{type(self).__name__}({', '.join([repr(self.x_shape), repr(self.weight_shape), *some])})"

    def argument(self, name: str) -> Any:
        """A keyword argument of the call, or its default."""
        defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros", "layout": "NCHW"}
        return self.arguments.get(name, defaults[name])

    @property
    def channels_last(self) -> bool:
        """Whether image and result have their channels last."""
        return str(self.arguments.get("layout", "")).endswith("C")

    @property
    def parts(self) -> tuple[int, ...]:
        """The weight's sizes as (G, O/G, I/G, kh, kw)."""
        groups = self.argument("groups")
        *rest, inputs, kh, kw = self.weight_shape
        return groups, math.prod(rest) // groups, inputs, kh, kw

    @property
    def dtypes(self) -> tuple[str, str, str]:
        """Of image, weight and bias."""
        return self.x_dtype or self.dtype, self.dtype, self.bias_dtype or self.dtype

    @property
    def result_dtype(self) -> str:
        """The dtype of the result."""
        return self.out_dtype or self.promoted_dtype

    @property
    def promoted_dtype(self) -> str:
        """The dtype to which the floating ones among the arguments promote."""
        present = [*self.dtypes[:2], *([self.dtypes[2]] if self.bias_shape is not None else [])]
        floating = {name for name in present if "float" in name}
        return "float64" if "float64" in floating else floating.pop() if len(floating) == 1 else "float32"

    @property
    def out_shape(self) -> Shape:
        """(N, O, oh, ow), whatever the layout; a size below 1 where the kernel does not fit."""
        g, o, _, *kernel = self.parts
        sizes = []
        padding = self.argument("padding")
        for axis in range(2):
            size, k = self.x_shape[2 + axis], kernel[axis]
            s, d = (_of_axis(self.argument(name), axis) for name in ("stride", "dilation"))
            if padding == "same":
                sizes.append(-(-size // s))
                continue
            total = 0 if padding == "valid" else sum(_both(_of_axis(padding, axis)))
            sizes.append((size + total - d * (k - 1) - 1) // s + 1)
        return self.x_shape[0], g * o, sizes[0], sizes[1]

    @property
    def products(self) -> int:
        """Multiplications of the direct sum."""
        return math.prod(self.out_shape) * math.prod(self.parts[2:])

    @property
    def size_class(self) -> str:
        """Of the image: "empty", "tiny", "small", "medium" or "large"."""
        elements = math.prod(self.x_shape)
        return next((name for name, most in {"empty": 0, **SIZES}.items() if elements <= most), "large")

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the call, engine and accuracy among them where they are not the defaults."""
        named: dict[str, Any] = {"engine": (self.engine, "auto"), "accuracy": (self.accuracy, "normwise")}
        named |= {"out_dtype": (self.out_dtype, ""), "activation": (self.activation, None)}
        return {**self.arguments, **{name: value for name, (value, default) in named.items() if value != default}}


def _of_axis(value: Any, axis: int) -> Any:
    """That of rows or of columns, of an int or of two."""
    return value if np.ndim(value) == 0 else value[axis]


def _both(side: Any) -> tuple[int, int]:
    """The padding before and after an axis."""
    return (int(side), int(side)) if np.ndim(side) == 0 else (int(side[0]), int(side[1]))


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


def fits(p: Problem) -> bool:
    """Whether the call is one that must succeed: the kernel fits, and the padding suits its mode.

    Examples
    --------
    >>> from portconv.testing import Problem, fits
    >>> fits(Problem((1, 1, 4, 4), (1, 1, 5, 5))), fits(Problem((1, 1, 4, 4), (1, 1, 5, 5), {"padding": 1}))
    (False, True)
    """
    if min(p.out_shape[2:]) < 1:
        return False
    padding, mode = p.argument("padding"), p.argument("padding_mode")
    if mode in ("zeros", "replicate") or padding == "valid":
        return True
    kernel, spare = p.parts[3:], 1 if mode == "reflect" else 0
    for axis in range(2):
        if padding == "same":
            s, d = (_of_axis(p.argument(name), axis) for name in ("stride", "dilation"))
            total = (-(-p.x_shape[2 + axis] // s) - 1) * s + (kernel[axis] - 1) * d + 1 - p.x_shape[2 + axis]
            side = max(total, 0) - max(total, 0) // 2
        else:
            side = max(_both(_of_axis(padding, axis)))
        if side > p.x_shape[2 + axis] - spare:
            return False
    return True


class Scope(NamedTuple):
    """What of the product a library has; how much it can do in a moment.

    Examples
    --------
    >>> from portconv.testing import Scope, draw
    >>> draw(0, 1, Scope(dtypes=("float32",), engines=("gemm",))).dtype
    'float32'
    """

    dtypes: tuple[str, ...] = ("float16", "float32", "float64")
    x_dtypes: tuple[str, ...] = INTEGERS
    out_dtypes: tuple[str, ...] = OUT_DTYPES
    engines: tuple[str, ...] = ("gemm", "winograd", "fft", "direct")
    orders: tuple[str, ...] = ORDERS
    calls: tuple[str, ...] = ("conv2d", "layer")
    gradients: bool = False
    traced_taps: int = 2**20  # of a kernel whose convolution is traced or differentiated
    products: int = 2**26  # of one problem
    elements: int = 2**23  # of an image or a result


def draw(seed: int, number: int, scope: Scope = Scope()) -> Problem:  # noqa: B008  immutable
    """The problem of this number, the same wherever it is drawn.

    Parameters
    ----------
    seed, number
        Not negative.
    scope
        What there is to draw from.

    Examples
    --------
    >>> draw(0, 3) == draw(0, 3)
    True
    """
    rng = np.random.default_rng([seed, number])
    while True:
        p = _drawn(_Chance(rng), scope)
        if (p.gradient or p.call == "traced") and math.prod(p.parts[3:]) > scope.traced_taps:
            continue
        # an image grows where a dilated kernel would not fit it
        largest = max(math.prod(p.x_shape) // 2, math.prod(p.out_shape))
        if fits(p) and p.products <= scope.products and largest <= scope.elements:
            return replace(p, seed=number)


class _Chance:
    """Draws from a generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def one_of(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def under(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def between(self, low: int, high: int) -> int:
        """With both ends."""
        return int(self.rng.integers(low, high + 1))

    def log_between(self, low: int, high: int) -> int:
        """Small numbers as often as large ones."""
        return min(high, max(low, round(math.exp(self.rng.uniform(math.log(low), math.log(high + 1))))))

    def pair(self, *values: int) -> tuple[int, int]:
        first, second = int(self.one_of(*values)), int(self.one_of(*values))
        return (first, first) if self.under(0.6) else (first, second)


_TILED = ((3, 3), (3, 3), (3, 3), (5, 5), (1, 3), (3, 1), (1, 5), (5, 1), (1, 7), (7, 1))  # kernels of Winograd's tiles
# Sums of products with a cotangent may overflow where the result does not. Libraries differentiate the engines' own
# steps, zeros times infinity among them, which no result has.
_NOT_DIFFERENTIATED = ("overflow", "nan", "inf")
_LONG = ((1, 9), (9, 1), (1, 21), (21, 1), (2, 13))


def _drawn(chance: _Chance, scope: Scope) -> Problem:
    p = _linear(chance, scope)
    # what is not continuous has no bound for its gradient, and what overflows has none for its activation
    if p.gradient or p.call not in CALLS or p.data == "overflow" or chance.under(0.6):
        return p
    slopes = (("leaky_relu", 0.2), ("leaky_relu", -1.5))
    activation = chance.one_of(*ACTIVATIONS, *slopes) if chance.under(0.75) else None
    residual = str(chance.one_of(*scope.orders)) if activation is None or chance.under(0.4) else ""
    return replace(p, activation=activation, residual=residual)


def _linear(chance: _Chance, scope: Scope) -> Problem:
    one_of, under, _between = chance.one_of, chance.under, chance.between
    engine = "auto" if under(0.4) else one_of(*scope.engines)
    gradient = scope.gradients and under(0.3)
    size_class = one_of(
        *["tiny"] * 6, *["small"] * 9, *["medium"] * (0 if gradient else 4), *["large"] * (not gradient)
    )
    tiled = engine == "winograd" and under(0.9)
    groups, outputs, inputs = _channels(chance, tiled, size_class)
    kernel = one_of(*_TILED) if tiled else _kernel(chance, size_class)
    stride = (1, 1) if tiled or under(0.5) else chance.pair(1, 2, 2, 3, 4, 7)
    dilation = (1, 1) if tiled or under(0.6) else chance.pair(1, 2, 3, 5, 11)
    halo = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    x_shape = _image(chance, groups * inputs, halo, size_class, scope)
    arguments: dict[str, Any] = {"padding": _padding(chance, halo), "padding_mode": one_of("zeros", *MODES)}
    arguments |= {"stride": stride, "dilation": dilation, "groups": groups}
    arguments = {name: value for name, value in arguments.items() if value not in (0, 1, (1, 1), "zeros")}
    if under(0.3):
        arguments["layout"] = "NHWC"
    weight_shape: Shape = (groups, outputs, inputs, *kernel)
    if groups == 1 or under(0.5):
        weight_shape = (groups * outputs, inputs, *kernel)
    total = groups * outputs
    dtypes = [name for name in ("float32", *scope.dtypes) if name in scope.dtypes]
    dtype = one_of(*["float32"] * 4, *dtypes)
    call = one_of(*scope.calls) if under(0.4) else "conv2d"
    photograph = size_class in ("medium", "large") and groups * inputs <= 4 and under(0.5)
    if photograph:
        arguments["layout"] = one_of("NHWC", "NCHW")
    small = [name for name in ("uint8", "uint16") if name in scope.x_dtypes]
    # an infinite weight over zero padding is either: no product, or NaN
    padded = arguments.get("padding", 0) not in (0, "valid") and "padding_mode" not in arguments
    return Problem(
        x_shape,
        weight_shape,
        arguments,
        engine,
        "elementwise" if engine not in ("winograd", "fft") and under(0.25) else "normwise",
        dtype,
        one_of(*small)
        if photograph and small and under(0.7)
        else one_of(*scope.x_dtypes)
        if scope.x_dtypes and under(0.15)
        else one_of(*dtypes)
        if under(0.1)
        else "",
        one_of(*dtypes) if under(0.05) else "",
        one_of(None, (total,), (1, total, 1, 1)),
        "normal" if under(0.5) else one_of(*(v for v in VALUES if not (gradient and v in _NOT_DIFFERENTIATED))),
        "normal" if under(0.5) else one_of(*(k for k in KERNELS if not ((padded or gradient) and k in ("nan", "inf")))),
        (_order(chance, scope, 0.6), _order(chance, scope, 0.3), _order(chance, scope, 0.2)),
        call,
        gradient,
        one_of(0, 1, 2),
        out_dtype=""
        if gradient or call not in CALLS[:2] or not scope.out_dtypes or under(0.7)
        else one_of(*scope.out_dtypes),
    )


def _order(chance: _Chance, scope: Scope, share: float) -> str:
    if chance.under(share):
        return str(chance.one_of(*scope.orders))
    # the same order, where whoever reads beyond the last element is killed
    return "page end" if "page end" in scope.orders and chance.under(0.5) else "C"


def _channels(chance: _Chance, tiled: bool, size_class: str) -> tuple[int, int, int]:
    """Groups, and outputs and inputs of each."""
    one_of = chance.one_of
    if size_class == "large":  # photographs and feature maps of a few channels
        if chance.under(0.3) and not tiled:
            return one_of(2, 3, 4), one_of(1, 1, 2), 1
        return 1, one_of(1, 1, 2, 3, 4), one_of(1, 1, 3, 3, 4, 5)
    if tiled:
        return 1, one_of(1, 3, 8, 16, 17, 40), one_of(1, 4, 5, 16, 33, 64, 100)
    if chance.under(0.25):  # depthwise, with and without a multiplier
        return one_of(2, 3, 8, 16, 17, 24, 32, 40), one_of(1, 1, 1, 2, 3), 1
    groups = 1 if chance.under(0.7) else one_of(2, 3, 4, 8)
    return groups, one_of(1, 2, 3, 4, 8, 16, 17, 32), one_of(1, 2, 3, 4, 7, 16, 32, 48)


def _kernel(chance: _Chance, size_class: str) -> tuple[int, int]:
    if chance.under(0.1):
        return 1, 1
    if chance.under(0.75):
        return chance.pair(1, 2, 3, 3, 3, 4, 5, 7)
    if chance.under(0.3):
        return _LONG[chance.between(0, len(_LONG) - 1)]
    return chance.pair(9, 11, 15, 21, 31) if size_class != "large" else chance.pair(9, 15, 31)


def _padding(chance: _Chance, halo: list[int]) -> Any:
    four = tuple(tuple(chance.between(0, 5) for _ in range(2)) for _ in range(2))
    one_side = tuple(
        (0, chance.between(0, h + 2)) if chance.under(0.5) else (chance.between(0, h + 2), 0) for h in halo
    )
    return chance.one_of(
        0, 0, "same", "valid", chance.between(0, 3), (halo[0] // 2, halo[1] // 2), four, one_side,
        (chance.between(0, halo[0] + 4), chance.between(0, halo[1] + 4)),
    )  # fmt: skip


def _image(chance: _Chance, channels: int, halo: list[int], size_class: str, scope: Scope) -> tuple[int, int, int, int]:
    """(N, C, H, W). Larger images have about a power of two of elements, since engines change their ways there."""
    batch = chance.one_of(1, 1, 1, 1, 2, 3, 5) if chance.under(0.97) else 0
    if size_class == "tiny":
        height, width = (chance.between(max(1, h - 4), h + 6) for h in halo)
        return batch, channels, height, width
    most = min(SIZES[size_class], scope.elements)
    if size_class == "small":
        height, width = (chance.between(max(1, h - 3), h + 34) for h in halo)
        return batch, channels, height, width
    batch = 1 if size_class == "large" else batch
    highest = most.bit_length() - 1
    exponent = chance.between(min(13 if size_class == "medium" else 17, highest), highest)
    elements = min(2**exponent * chance.one_of(1, 1, 1.5), most)
    area = max(elements / (max(batch, 1) * channels), 1)
    width = round(math.sqrt(area) * chance.one_of(0.2, 0.6, 0.9, 1.0, 1.3, 3.0)) + chance.between(-2, 2)
    width = min(max(width, 1), round(area))
    height = max(1, round(area / width) + chance.between(-1, 1))
    return batch, channels, height, width
