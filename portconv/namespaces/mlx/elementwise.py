"""Elementwise functions. Two arguments promote as the standard says; either may be a Python number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .dtypes import COMPLEX, INTEGERS, REALS, SIGNED, convert, iinfo, operands, result_type

__all__ = [
    "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_and", "bitwise_invert",
    "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "ceil", "clip", "conj", "copysign",
    "cos", "cosh", "divide", "equal", "exp", "expm1", "floor", "floor_divide", "greater", "greater_equal", "hypot",
    "imag", "isfinite", "isinf", "isnan", "less", "less_equal", "log", "log10", "log1p", "log2", "logaddexp",
    "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "negative",
    "nextafter", "not_equal", "positive", "pow", "real", "reciprocal", "remainder", "round", "sign", "signbit", "sin",
    "sinh", "sqrt", "square", "subtract", "tan", "tanh", "trunc", "where",
]  # fmt: skip


def _unary(name: str) -> Callable[[Any], Any]:
    native = getattr(mx, name)

    def function(x: Any, /) -> Any:
        return native(x)

    function.__name__ = function.__qualname__ = name
    return function


def _binary(name: str, native_name: str = "") -> Callable[[Any, Any], Any]:
    native = getattr(mx, native_name or name)

    def function(x1: Any, x2: Any, /) -> Any:
        return native(*operands(x1, x2))

    function.__name__ = function.__qualname__ = name
    return function


def _whole(name: str) -> Callable[[Any], Any]:
    """A function that leaves integers as they are."""
    native = getattr(mx, name)

    def function(x: Any, /) -> Any:
        return mx.positive(x) if x.dtype in INTEGERS else native(x)

    function.__name__ = function.__qualname__ = name
    return function


abs, acos, acosh, asin, asinh = (_unary(name) for name in ("abs", "acos", "acosh", "asin", "asinh"))
atan, atanh, conj, cosh, log = (_unary(name) for name in ("atan", "atanh", "conj", "cosh", "log"))
log10, log1p, log2, sinh, sqrt = (_unary(name) for name in ("log10", "log1p", "log2", "sinh", "sqrt"))
bitwise_invert, imag, isfinite, isinf = (_unary(name) for name in ("bitwise_invert", "imag", "isfinite", "isinf"))
isnan, logical_not, negative, positive = (_unary(name) for name in ("isnan", "logical_not", "negative", "positive"))
real, reciprocal, tan = (_unary(name) for name in ("real", "reciprocal", "tan"))
ceil, floor, trunc, round = (_whole(name) for name in ("ceil", "floor", "trunc", "round"))
add, subtract, multiply, divide = (_binary(name) for name in ("add", "subtract", "multiply", "divide"))
equal, not_equal, less = (_binary(name) for name in ("equal", "not_equal", "less"))
less_equal, greater, greater_equal = (_binary(name) for name in ("less_equal", "greater", "greater_equal"))
logical_and, logical_or, maximum, minimum = (
    _binary(name) for name in ("logical_and", "logical_or", "maximum", "minimum")
)
bitwise_and, bitwise_or, bitwise_xor = (_binary(name) for name in ("bitwise_and", "bitwise_or", "bitwise_xor"))
logical_xor, atan2, pow = _binary("logical_xor", "not_equal"), _binary("atan2", "arctan2"), _binary("pow", "power")


# --- what MLX computes in float32 even for float64 --------------------------------------------------------------------


def exp(x: Any, /) -> Any:
    if x.dtype != mx.float64:
        return mx.exp(x)
    growth = mx.expm1(mx.abs(x)) + 1  # expm1 is exact to float64
    return mx.where(x < 0, 1 / growth, growth)


def sin(x: Any, /) -> Any:
    if x.dtype != mx.float64:
        return mx.sin(x)
    half = mx.tan(x / 2)
    return 2 * half / (1 + half * half)


def cos(x: Any, /) -> Any:
    if x.dtype != mx.float64:
        return mx.cos(x)
    half = mx.tan(x / 2)
    return (1 - half) * (1 + half) / (1 + half * half)


def logaddexp(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    if x1.dtype != mx.float64:
        return mx.logaddexp(x1, x2)
    high, low = mx.maximum(x1, x2), mx.minimum(x1, x2)
    return mx.where(mx.isinf(high), high, high + mx.log1p(exp(low - high)))


# --- what MLX computes otherwise --------------------------------------------------------------------------------------


def square(x: Any, /) -> Any:
    return mx.multiply(x, x) if x.dtype in COMPLEX else mx.square(x)


def sign(x: Any, /) -> Any:
    signs = mx.sign(x)
    if x.dtype in COMPLEX:
        signs = mx.where(x == 0, mx.zeros_like(x), signs)
    return mx.where(mx.isnan(x), x, signs) if x.dtype in REALS + COMPLEX else signs


def expm1(x: Any, /) -> Any:
    if x.dtype not in COMPLEX:
        return mx.expm1(x)
    a, b = mx.real(x), mx.imag(x)
    growth, half = mx.expm1(a), mx.sin(b / 2)
    # without cancellation near zero: e^a cos b - 1 = expm1(a) cos b - 2 sin(b/2)^2
    real, imag = growth * mx.cos(b) - 2 * half * half, mx.exp(a) * mx.sin(b)
    # the standard's special cases: a real number, and infinity at a direction that is none
    vague = mx.isinf(a) & ~mx.isfinite(b)
    real = mx.where((b == 0) | vague, growth + 0.0, real)  # of -0, too, 0
    imag = mx.where(b == 0, b, mx.where(vague & (a < 0), mx.array(0.0), imag))
    return _complex(real, imag)


def tanh(x: Any, /) -> Any:
    if x.dtype not in COMPLEX:
        return mx.tanh(x)
    a, b = mx.real(x), mx.imag(x)
    far = (mx.abs(a) == math.inf) & mx.isfinite(b)  # 1 + 0j and -1 + 0j, whatever b
    return mx.where(far, _complex(mx.sign(a), mx.zeros_like(b)), mx.tanh(x))


def _complex(a: Any, b: Any) -> Any:
    return mx.view(mx.stack([a, b], axis=-1), mx.complex64).squeeze(-1)


def signbit(x: Any, /) -> Any:
    if x.dtype not in REALS:
        return x < 0
    bits = {2: mx.int16, 4: mx.int32, 8: mx.int64}[x.dtype.size]
    return mx.stop_gradient(x).view(bits) < 0


def copysign(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    return mx.where(signbit(x1) == signbit(x2), x1, -x1)


def hypot(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    a, b = mx.abs(x1), mx.abs(x2)
    large, small = mx.maximum(a, b), mx.minimum(a, b)
    ratio = small / mx.where(large == 0, mx.array(1, large.dtype), large)  # squares of it cannot overflow
    length = large * mx.sqrt(1 + ratio * ratio)
    return mx.where(mx.isinf(a) | mx.isinf(b), mx.array(math.inf, length.dtype), length)


def nextafter(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    integer = {2: mx.int16, 4: mx.int32, 8: mx.int64}[x1.dtype.size]
    bits = x1.view(integer)
    away = (x2 > x1) == (x1 > 0)  # away from zero, where neighbours have larger bit patterns
    moved = mx.where(away, bits + 1, bits - 1).view(x1.dtype)
    smallest = mx.array(1, integer).view(x1.dtype)
    moved = mx.where(x1 == 0, mx.where(x2 > 0, smallest, -smallest), moved)
    moved = mx.where(x1 == x2, x2, moved)
    return mx.where(mx.isnan(x1) | mx.isnan(x2), x1 + x2, moved)


def floor_divide(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    if x1.dtype not in SIGNED:
        return mx.floor_divide(x1, x2)
    # the processor traps on the smallest integer divided by -1, and ends the process
    minus = x2 == -1
    return mx.where(minus, -x1, mx.floor_divide(x1, mx.where(minus, mx.array(1, x2.dtype), x2)))


def remainder(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    if x1.dtype in REALS:
        rest = mx.remainder(x1, x2)
        return mx.where(rest == 0, copysign(mx.zeros_like(rest), x2), rest)  # zero, too, has the sign of the divisor
    if x1.dtype not in SIGNED:
        return mx.remainder(x1, x2)
    return mx.remainder(x1, mx.where(x2 == -1, mx.array(1, x2.dtype), x2))


def bitwise_left_shift(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    width = iinfo(x1).bits
    return mx.where(x2 < width, mx.left_shift(x1, mx.minimum(x2, width - 1)), mx.array(0, x1.dtype))


def bitwise_right_shift(x1: Any, x2: Any, /) -> Any:
    x1, x2 = operands(x1, x2)
    width = iinfo(x1).bits
    shifted = mx.right_shift(x1, mx.minimum(x2, width - 1))  # of a negative number -1 remains
    return shifted if x1.dtype in SIGNED else mx.where(x2 < width, shifted, mx.array(0, x1.dtype))


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    bounds = [_bound(x, name, value) for name, value in (("min", min), ("max", max))]
    shape = mx.broadcast_shapes(x.shape, *(b.shape for b in bounds if b is not None))
    result = mx.broadcast_to(x, shape)
    if bounds[0] is not None:
        result = mx.maximum(result, bounds[0])
    return result if bounds[1] is None else mx.minimum(result, bounds[1])


def _bound(x: Any, name: str, value: Any) -> Any:
    if value is None:
        return None
    if result_type(x, value) != x.dtype:
        raise TypeError(f"`{name}` must promote to the dtype of `x`, but x.dtype is {x.dtype} and it is {value.dtype}.")
    return convert(value, x.dtype)


def where(condition: Any, x1: Any, x2: Any, /) -> Any:
    if condition.dtype != mx.bool_:
        raise TypeError(f"`condition` must be an array of bool, but its dtype is {condition.dtype}.")
    return mx.where(condition, *operands(x1, x2))
