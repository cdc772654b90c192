"""What a convolution and its gradients are, to far more digits than any engine has: direct sums, tap by tap.

It shares no code with the engines, not even that which reads the padding. Data up to float32 are summed in float64. For
float64 data every product is made without an error and the errors of the additions are summed apart, so that the result
is exact to two units of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .sums import Array, Sum, dot

__all__ = ["Reference", "reference_at", "reference_conv2d", "reference_gradients"]

_NUMPY_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_CHUNK = 1 << 20  # products that are held at a time


# The largest slope of each activation, and the function in float64.
_ACTIVATIONS: dict[str, tuple[float, Callable[[Array], Any]]] = {
    "relu": (1.0, lambda z: np.maximum(z, 0)),
    "relu6": (1.0, lambda z: np.clip(z, 0, 6)),
    "leaky_relu": (1.0, lambda z: z),
    "silu": (1.1, lambda z: z / (1 + np.exp(-z))),
    "hard_swish": (1.5, lambda z: np.where(z > -3, z, 0) * (np.clip(z + 3, 0, 6) / 6)),
    "gelu": (1.13, lambda z: z * np.vectorize(math.erfc, otypes=[np.float64])(z * -math.sqrt(0.5)) / 2),
    "sigmoid": (0.25, lambda z: 1 / (1 + np.exp(-z))),
    "tanh": (1.0, np.tanh),
}


class Reference(NamedTuple):
    """An exact result, and the sums of magnitudes that its bound is made of; all in the layout of the result.

    `c` is ``sum |x| |w|`` over the receptive field of each output, plus ``|bias|``. `largest` is what `c` would be if
    every weight met the largest pixel of its channel: ``sum over channels of max |x| * sum |w|``, plus ``|bias|``,
    for each image and output channel; pixels that no output reads, and weights that meet only padding, do not count.
    `terms` is the length of the longest sum.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv.testing import reference_conv2d
    >>> exact = reference_conv2d(-np.ones((1, 2, 5, 5)), np.ones((1, 2, 3, 3)))
    >>> exact.y.shape, float(exact.y[0, 0, 0, 0]), float(exact.c[0, 0, 0, 0]), exact.terms
    ((1, 1, 3, 3), -18.0, 18.0, 18)
    """

    y: Array
    c: Array
    largest: Array
    terms: int

    def at(self, part: Any) -> Reference:
        """Of some outputs alone; `part` is an index."""
        return self.each(lambda a: np.broadcast_to(a, self.y.shape)[part])

    def finished(self, activation: Any = None, residual: Any = None) -> Reference:
        """With a residual and an activation, as `portconv.conv2d` takes them; their bound becomes that of the result.

        ``c`` and ``C`` grow with the largest slope of the activation, and ``c`` with the rounding of the function.
        """
        y, c, largest, terms = self
        with np.errstate(all="ignore"):
            if residual is not None:
                wide = np.asarray(residual).astype(np.float64)
                y, c, largest = y + wide, c + np.abs(wide), largest + np.abs(wide)
            if activation is not None:
                name, slope = (activation, 0.01) if isinstance(activation, str) else activation
                steepest, function = _ACTIVATIONS[name]
                z, y = y, np.asarray(function(y) if name != "leaky_relu" else np.where(y > 0, y, y * slope))
                steepest = max(1.0, abs(slope)) if name == "leaky_relu" else steepest
                # 4 eps of the larger one, of which the bound has 8 eps c
                c, largest = steepest * c + np.maximum(np.abs(z), np.abs(y)) / 2, steepest * largest
        return Reference(y, c, largest, terms)

    def each(self, change: Callable[[Array], Array]) -> Reference:
        """With the same done to each array."""
        return Reference(change(self.y), change(self.c), change(self.largest), self.terms)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if np.ndim(value) == 0 else (int(value[0]), int(value[1]))


class _Axis:
    """One axis: for each tap and output the pixel that they read, -1 for a zero of the padding."""

    def __init__(self, size: int, kernel: int, stride: int, dilation: int, sides: tuple[int, int], mode: str) -> None:
        extent = (kernel - 1) * dilation + 1
        self.outputs = (size + sum(sides) - extent) // stride + 1
        fill: dict[str, Any] = {"constant_values": -1} if mode == "zeros" else {}
        self.sources: Array = np.pad(np.arange(size), sides, mode=_NUMPY_PAD[mode], **fill)  # type: ignore[call-overload]
        self.taps = [
            slice(tap * dilation, tap * dilation + (self.outputs - 1) * stride + 1, stride) for tap in range(kernel)
        ]
        self.starts = np.arange(self.outputs) * stride
        self.offsets = np.arange(kernel) * dilation
        self.met = np.array([bool((self.sources[tap] >= 0).any()) for tap in self.taps])
        self.read = np.zeros(size, bool)
        for tap in self.taps:
            found = self.sources[tap]
            self.read[found[found >= 0]] = True


class _Call:
    """The arrays of a call in float64, x as NCHW and the weight as (G, O/G, I/G, kh, kw), and both axes."""

    def __init__(
        self, x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str, layout: str
    ) -> None:
        self.exact = any(np.asarray(a).dtype.char in "dg" for a in (x, weight))  # float64 and wider
        self.layout, self.padding_mode = layout, padding_mode
        self.x: Array = self.nchw(np.asarray(x).astype(np.float64))
        w = np.asarray(weight).astype(np.float64)
        self.weight: Array = w.reshape(groups, -1, *w.shape[-3:])
        kernel, strides, dilations = self.weight.shape[3:], _pair(stride), _pair(dilation)
        if isinstance(padding, str) and padding == "same":
            sides = []
            for size, k, s, d in zip(self.x.shape[2:], kernel, strides, dilations, strict=True):
                total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
                sides.append((total // 2, total - total // 2))
        elif isinstance(padding, str):
            sides = [(0, 0), (0, 0)]
        elif np.ndim(padding) == 2:
            sides = [_pair(padding[0]), _pair(padding[1])]
        else:
            sides = [(side, side) for side in _pair(padding)]
        self.sides = sides
        self.rows, self.cols = (
            _Axis(size, k, s, d, side, padding_mode)
            for size, k, s, d, side in zip(self.x.shape[2:], kernel, strides, dilations, sides, strict=True)
        )

    def nchw(self, a: Array) -> Array:
        return a.transpose(0, 3, 1, 2) if self.layout == "NHWC" else a

    def back(self, a: Array) -> Array:
        return a.transpose(0, 2, 3, 1) if self.layout == "NHWC" else a

    @property
    def terms(self) -> int:
        return int(np.prod(self.weight.shape[2:]))

    def padded(self, x: Array) -> Array:
        sides = ((0, 0), (0, 0), *self.sides)
        return np.asarray(np.pad(x, sides, mode=_NUMPY_PAD[self.padding_mode]))  # type: ignore[call-overload]

    def grouped(self, a: Array) -> Array:
        """(N, C, H, W) as (N, G, C/G, H, W)."""
        return a.reshape(a.shape[0], self.weight.shape[0], a.shape[1] // self.weight.shape[0], *a.shape[2:])

    def largest(self, bias: Array | None) -> Array:
        """(N, O, 1, 1)."""
        g, o, inputs, _, _ = self.weight.shape
        x = _magnitudes(self.x[:, :, self.rows.read][:, :, :, self.cols.read]).max(axis=(2, 3), initial=0.0)
        met = self.rows.met[:, None] & self.cols.met
        w = (_magnitudes(self.weight) * met).sum(axis=(3, 4))
        found = np.einsum("ngi,goi->ngo", x.reshape(len(x), g, inputs), w).reshape(len(x), g * o, 1, 1)
        return np.asarray(found if bias is None else found + _magnitudes(bias).reshape(1, -1, 1, 1))


def _magnitudes(a: Array) -> Array:
    """Absolute values; 0 where there is none, since engines compute what meets those anew."""
    return np.where(np.isfinite(a), np.abs(a), 0)


def _parts(count: int, size: int) -> list[slice]:
    """`count` channels, as many at a time as make `_CHUNK` products of arrays of this size."""
    step = max(_CHUNK // max(size, 1), 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def reference_conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> Reference:
    """The convolution as a direct sum in float64, exact to two units of rounding if `x` or `weight` is float64.

    Parameters
    ----------
    x, weight, bias, stride, padding, dilation, groups, padding_mode, layout
        As in `portconv.conv2d`; the arrays are NumPy's. They are not checked.

    Returns
    -------
    Reference
        The result and the magnitudes that its bound is made of.

    Examples
    --------
    >>> import numpy as np
    >>> y, c, largest, terms = reference_conv2d(-np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))
    >>> float(y[0, 0, 0, 0]), float(c[0, 0, 0, 0]), float(largest[0, 0, 0, 0]), terms
    (-9.0, 9.0, 9.0, 9)
    """
    call = _Call(x, weight, stride, padding, dilation, groups, padding_mode, layout)
    b64 = None if bias is None else np.asarray(bias).astype(np.float64).reshape(1, -1, 1, 1)
    g, o, inputs, kh, kw = call.weight.shape
    shape = (len(call.x), g, o, call.rows.outputs, call.cols.outputs)
    padded = call.grouped(call.padded(call.x))
    y, c = Sum(shape, call.exact), np.zeros(shape)
    with np.errstate(all="ignore"):
        for i in range(kh):
            for j in range(kw):
                part, factors = padded[..., call.rows.taps[i], call.cols.taps[j]], call.weight[..., i, j]
                if call.exact:
                    for k in _parts(inputs, math.prod(shape)):
                        some = np.moveaxis(part[:, :, k], 2, -1)[:, :, None]
                        y.add_products(some, factors[None, :, :, None, None, k])
                else:
                    y.add(np.einsum("ngihw,goi->ngohw", part, factors, optimize=False))
                c += np.einsum("ngihw,goi->ngohw", np.abs(part), np.abs(factors), optimize=False)
        flat = (shape[0], g * o, *shape[3:])
        if b64 is not None:
            y.add(b64.reshape(1, g, o, 1, 1))
            c = c + np.abs(b64).reshape(1, g, o, 1, 1)
        found = y.value.reshape(flat), c.reshape(flat), call.largest(b64)
    return Reference(*found, call.terms + (bias is not None)).each(call.back)


def reference_at(
    outputs: Sequence[Any],
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> Reference:
    """The convolution at some outputs alone, for images on which the whole sum would take too long.

    Parameters
    ----------
    outputs
        Four arrays of the same length: image, output channel, row and column of each output.
    x, weight, bias, stride, padding, dilation, groups, padding_mode, layout
        As in `reference_conv2d`.

    Returns
    -------
    Reference
        Of arrays (outputs,).

    Examples
    --------
    >>> import numpy as np
    >>> corner = reference_at(([0], [0], [0], [0]), np.ones((1, 1, 9, 9)), np.ones((1, 1, 3, 3)), padding=1)
    >>> float(corner.y[0])
    4.0
    """
    call = _Call(x, weight, stride, padding, dilation, groups, padding_mode, layout)
    _g, o, inputs, _, _ = call.weight.shape
    image, channel, row, col = (np.asarray(index, np.int64) for index in outputs)
    group = channel // o
    y, c = np.empty(len(image)), np.empty(len(image))
    at_once = max(1, _CHUNK // call.terms)
    with np.errstate(all="ignore"):
        for first in range(0, len(image), at_once):
            some = slice(first, first + at_once)
            r = call.rows.sources[call.rows.starts[row[some], None] + call.rows.offsets][:, None, :, None]
            q = call.cols.sources[call.cols.starts[col[some], None] + call.cols.offsets][:, None, None, :]
            channels = (group[some, None] * inputs + np.arange(inputs))[:, :, None, None]
            pixels = call.x[image[some, None, None, None], channels, np.maximum(r, 0), np.maximum(q, 0)]
            pixels = np.where((r >= 0) & (q >= 0), pixels, 0.0).reshape(len(r), -1)
            factors = call.weight[group[some], channel[some] % o].reshape(len(r), -1)
            y[some] = dot(pixels, factors, call.exact)
            c[some] = np.einsum("sk,sk->s", np.abs(pixels), np.abs(factors))
        b64 = None if bias is None else np.asarray(bias).astype(np.float64).reshape(-1)
        if b64 is not None:
            y, c = y + b64[channel], c + np.abs(b64[channel])
        largest = call.largest(b64)[image, channel, 0, 0]
    return Reference(y, c, largest, call.terms + (bias is not None))


def reference_gradients(
    x: Any,
    weight: Any,
    dy: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
) -> tuple[Reference, Reference, Reference]:
    """Gradients of ``sum(dy * conv2d(x, weight, bias, ...))``: of the image, the weight and the bias.

    Parameters
    ----------
    x, weight, stride, padding, dilation, groups, padding_mode, layout
        As in `reference_conv2d`.
    dy
        The cotangent of the result, in `layout`.

    Returns
    -------
    tuple of Reference
        The gradient of the image in `layout`, that of the weight in its shape, and that of the bias as (O,).

    Examples
    --------
    >>> import numpy as np
    >>> of_x, of_weight, of_bias = reference_gradients(
    ...     np.ones((1, 1, 3, 3)), -np.ones((1, 1, 3, 3)), np.full((1, 1, 1, 1), 2.0)
    ... )
    >>> float(of_x.y[0, 0, 0, 0]), float(of_weight.y[0, 0, 0, 0]), float(of_bias.y[0])
    (-2.0, 2.0, 2.0)
    """
    call = _Call(x, weight, stride, padding, dilation, groups, padding_mode, layout)
    dy64 = call.nchw(np.asarray(dy).astype(np.float64))
    with np.errstate(all="ignore"):
        of_x, of_weight = _image_gradient(call, dy64), _weight_gradient(call, dy64)
        total, c = (
            dot(dy64.swapaxes(0, 1).reshape(dy64.shape[1], dy64[:, 0].size), np.ones(1), call.exact),
            np.abs(dy64),
        )
        c = c.sum(axis=(0, 2, 3))
    shape = np.shape(weight)
    return (
        of_x.each(call.back),
        of_weight.each(lambda a: a.reshape(shape)),
        Reference(total, c, c, max(dy64[:, 0].size, 1)),
    )


def _image_gradient(call: _Call, dy: Array) -> Reference:
    g, o, inputs, kh, kw = call.weight.shape
    n, channels, height, width = call.x.shape
    padded = (n, g, inputs, len(call.rows.sources), len(call.cols.sources))
    high, c = Sum(padded, call.exact), np.zeros(padded)
    by_group = call.grouped(dy)
    for i in range(kh):
        for j in range(kw):
            where, factors = (..., call.rows.taps[i], call.cols.taps[j]), call.weight[..., i, j]
            if call.exact:
                for k in _parts(o, math.prod(high.high[where].shape)):
                    some = np.moveaxis(by_group[:, :, k], 2, -1)[:, :, None]
                    high.add_products(some, factors[:, k].swapaxes(1, 2)[None, :, :, None, None], where)
            else:
                high.add(np.einsum("ngohw,goi->ngihw", by_group, factors, optimize=False), where)
            c[where] += np.einsum("ngohw,goi->ngihw", np.abs(by_group), np.abs(factors), optimize=False)
    flat = (n, channels, *padded[3:])
    y = Sum((n, channels, height, width), call.exact)
    magnitudes, copies = np.zeros(y.high.shape), np.zeros((height, width))
    value, low = high.high.reshape(flat), high.low.reshape(flat) if call.exact else None
    ones = np.ones(padded[3:])
    # what copies in the border have gathered belongs to the pixels that they are copies of: rows first, then columns
    for of_row, row in enumerate(call.rows.sources):
        if row < 0:
            continue
        for of_col, col in enumerate(call.cols.sources):
            if col >= 0:
                y.add(value[:, :, of_row, of_col], (..., row, col))
                if low is not None:
                    y.low[..., row, col] += low[:, :, of_row, of_col]
                magnitudes[..., row, col] += c.reshape(flat)[:, :, of_row, of_col]
                copies[row, col] += ones[of_row, of_col]
    w = np.abs(call.weight).sum(axis=(3, 4))
    largest = np.einsum("ngo,goi->ngi", _channel_maxima(by_group), w).reshape(n, channels, 1, 1) * copies
    return Reference(y.value, magnitudes, largest, o * kh * kw * int(copies.max()))


def _channel_maxima(dy: Array) -> Array:
    """(N, G, O/G): the largest magnitude of each channel."""
    return np.asarray(_magnitudes(dy).max(axis=(3, 4), initial=0.0))


def _weight_gradient(call: _Call, dy: Array) -> Reference:
    g, o, inputs, kh, kw = call.weight.shape
    padded, by_group = call.grouped(call.padded(call.x)), call.grouped(dy)
    y, c = np.zeros(call.weight.shape), np.zeros(call.weight.shape)
    factors = by_group.transpose(1, 2, 0, 3, 4).reshape(g, o, dy[:, 0].size)
    for i in range(kh):
        for j in range(kw):
            part = padded[..., call.rows.taps[i], call.cols.taps[j]]
            part = part.transpose(1, 2, 0, 3, 4).reshape(g, inputs, dy[:, 0].size)
            if call.exact:
                for k in range(o):
                    y[:, k, :, i, j] = dot(part, factors[:, k, None, :], True)
            else:
                y[..., i, j] = np.einsum("gik,gok->goi", part, factors, optimize=False)
            c[..., i, j] = np.einsum("gik,gok->goi", np.abs(part), np.abs(factors), optimize=False)
    x = _magnitudes(call.grouped(call.x)).max(axis=(3, 4), initial=0.0)
    largest = np.einsum("ngi,ngo->goi", x, _magnitudes(by_group).sum(axis=(3, 4)))[..., None, None]
    return Reference(y, c, np.broadcast_to(largest, y.shape), max(factors.shape[-1], 1))
