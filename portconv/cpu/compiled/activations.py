"""The activations of the compiled tier, vector by vector, where sums are still in a core's registers and first cache.

What is the same for all channels of a call lies in some words: the numbers of its activation, the address of its
function, and where its residual is. Activations of straight lines need no function: they are one formula, of a line
with some slope to the left of zero, y = x to its right, and two limits. Those with an exponential function, and
hard_swish, have one, which is compiled when it is needed first; whoever stores sums calls it by its address.

Sources: Cody and Waite, "Software manual for the elementary functions" (1980), for `exp`; Abramowitz and Stegun,
"Handbook of mathematical functions" (1964), 7.1.26, for the error function in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...core.epilogue import Activation
from ...engines import activations as exact
from .kernel import address_of, called_by_address
from .vectors import I64, VECTOR_BYTES, Vectors, loop

__all__ = ["CALL_WORDS", "RESIDUAL", "activated", "call_words"]

# The words of a call.
FUNCTION, RESIDUAL, SLOPE, LOW, HIGH, CURVE = range(6)
CALL_WORDS = 6
_LOWEST = {4: -87.0, 8: -708.0}  # whose exponential is a normal number, by the bytes of a dtype
LINES = ("relu", "relu6", "leaky_relu")


def call_words(activation: Activation | None, dtype: str) -> np.ndarray[Any, Any]:
    """The words of a call without a residual, whose sums are of this dtype."""
    words = np.zeros(CALL_WORDS, np.int64)
    name = "" if activation is None else activation.name
    numbers = words.view(np.float64)
    numbers[SLOPE] = activation.slope if activation is not None and name == "leaky_relu" else 1.0
    numbers[LOW] = 0.0 if name in ("relu", "relu6") else -math.inf
    numbers[HIGH] = 6.0 if name == "relu6" else math.inf
    if name and name not in LINES:
        words[FUNCTION], words[CURVE] = _address(dtype), list(_CURVES).index(name)
    return words


def activated(v: Vectors, values: list[Any], call: Any) -> list[Any]:
    """The vectors with the activation of the call at this address."""
    b = v.b
    slope, low, high = (v.splat(_number(v, call, word)) for word in (SLOPE, LOW, HIGH))
    found = []
    for value in values:
        # comparisons with NaN are false, and leave it as it is
        value = b.select(b.fcmp_ordered("<", value, v.zero), b.fmul(value, slope), value)
        value = b.select(b.fcmp_ordered("<", value, low), low, value)
        found.append(b.select(b.fcmp_ordered(">", value, high), high, value))
    function = _word(b, call, FUNCTION)
    before = b.block
    with b.if_then(b.icmp_signed("!=", function, I64(0))):
        first = b.ptrtoint(cgutils.alloca_once(b, v.type, len(values)), I64)
        for i, value in enumerate(found):
            v.store(value, v.at(first, i * VECTOR_BYTES))
        kind = ir.FunctionType(I64, [I64] * 3).as_pointer()
        b.call(b.inttoptr(function, kind), [first, I64(len(values)), _word(b, call, CURVE)])
        curved = [v.load(v.at(first, i * VECTOR_BYTES)) for i in range(len(values))]
        after = b.block
    results = []
    for one, other in zip(found, curved, strict=True):
        phi = b.phi(v.type)
        phi.add_incoming(one, before)
        phi.add_incoming(other, after)
        results.append(phi)
    return results


def _word(b: Any, call: Any, word: int) -> Any:
    return b.load(b.inttoptr(b.add(call, I64(word * 8)), I64.as_pointer()))


def _number(v: Vectors, call: Any, word: int) -> Any:
    value = v.b.load(v.b.inttoptr(v.b.add(call, I64(word * 8)), ir.DoubleType().as_pointer()))
    return value if v.size == 8 else v.b.fptrunc(value, v.element)


# --- curves -----------------------------------------------------------------------------------------------------------


def _constant(v: Vectors, value: float) -> Any:
    return ir.Constant(v.type, [value] * v.n)


def _polynomial(v: Vectors, coefficients: Any, x: Any) -> Any:
    first, *rest = (_constant(v, value) for value in coefficients)
    total = first
    for coefficient in rest:
        total = v.fma(total, x, coefficient)
    return total


def _size(v: Vectors, x: Any) -> Any:
    return v.call("fabs", x)


def _exp_parts(v: Vectors, x: Any) -> tuple[Any, Any]:
    """A power of two p and a number q, with ``exp(x) = p + p * q``, for x that are not positive."""
    b, low = v.b, _constant(v, _LOWEST[v.size])
    terms, bits, bias = (7, 23, 127) if v.size == 4 else (13, 52, 1023)
    x = b.select(b.fcmp_ordered(">", x, low), x, low)
    n = v.call("rint", b.fmul(x, _constant(v, 1 / math.log(2))))
    # log(2) in two parts, of which the first has so few digits that products with n are exact
    digits = 11 if v.size == 4 else 32
    high = math.floor(math.ldexp(math.log(2), digits)) / 2**digits
    r = v.fma(n, _constant(v, -high), x)
    r = v.fma(n, _constant(v, high - math.log(2)), r)
    # (exp(r) - 1) / r
    q = b.fmul(r, _polynomial(v, [1 / math.factorial(k) for k in range(terms, 0, -1)], r))
    integers = ir.VectorType(ir.IntType(8 * v.size), v.n)
    whole = b.fptosi(n, integers)
    raised = b.add(whole, ir.Constant(integers, [bias] * v.n))
    return b.bitcast(b.shl(raised, ir.Constant(integers, [bits] * v.n)), v.type), q


def _exp(v: Vectors, x: Any) -> Any:
    power, q = _exp_parts(v, x)
    return v.b.select(v.b.fcmp_ordered("<", x, _constant(v, _LOWEST[v.size])), v.zero, v.fma(power, q, power))


def _unless_nan(v: Vectors, x: Any, value: Any) -> Any:
    return v.b.select(v.b.fcmp_unordered("uno", x, x), x, value)


def _sigmoid(v: Vectors, x: Any) -> Any:
    b, one = v.b, _constant(v, 1.0)
    small = _exp(v, b.fneg(_size(v, x)))
    top = b.select(b.fcmp_ordered("<", x, v.zero), small, one)
    return _unless_nan(v, x, b.fdiv(top, b.fadd(one, small)))


def _silu(v: Vectors, x: Any) -> Any:
    return v.b.fmul(x, _sigmoid(v, x))


def _tanh(v: Vectors, x: Any) -> Any:
    b = v.b
    power, q = _exp_parts(v, b.fmul(_size(v, x), _constant(v, -2.0)))
    less = v.fma(power, q, b.fsub(power, _constant(v, 1.0)))  # exp(-2 |x|) - 1, with all its digits near zero
    size = b.fdiv(b.fneg(less), b.fadd(less, _constant(v, 2.0)))
    return _unless_nan(v, x, b.select(b.fcmp_ordered("<", x, v.zero), b.fneg(size), size))


def _hard_swish(v: Vectors, x: Any) -> Any:
    b, six = v.b, _constant(v, 6.0)
    inner = b.select(b.fcmp_ordered("<=", x, _constant(v, -3.0)), v.zero, x)
    raised = b.fadd(inner, _constant(v, 3.0))
    raised = b.select(b.fcmp_ordered(">", raised, six), six, raised)
    return b.fmul(inner, b.fmul(raised, _constant(v, 1 / 6)))


def _erf(v: Vectors, x: Any) -> Any:
    """The error function, to some units of rounding of 1."""
    b, one, size = v.b, _constant(v, 1.0), _size(v, x)
    if v.size == 4:
        t = b.fdiv(one, v.fma(size, _constant(v, 0.3275911), one))
        series = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0)
        tail = b.fmul(_exp(v, b.fneg(b.fmul(size, size))), _polynomial(v, series, t))
        outer = b.fsub(one, tail)
        return b.select(b.fcmp_ordered("<", x, v.zero), b.fneg(outer), outer)
    near = b.fcmp_ordered("<=", size, _constant(v, exact.NEAR))
    inside = b.select(near, x, v.zero)
    square = b.fmul(inside, inside)
    inner = b.fdiv(b.fmul(inside, _polynomial(v, exact.NEAR_TOP, square)), _polynomial(v, exact.NEAR_BOTTOM, square))
    far = b.fcmp_ordered(">=", size, _constant(v, exact.ONE))
    middle = b.select(far, one, size)
    tail = b.fdiv(_polynomial(v, exact.MIDDLE_TOP, middle), _polynomial(v, exact.MIDDLE_BOTTOM, middle))
    tail = b.fmul(_exp(v, b.fneg(b.fmul(middle, middle))), tail)
    outer = b.select(far, one, b.fsub(one, tail))
    outer = b.select(b.fcmp_ordered("<", x, v.zero), b.fneg(outer), outer)
    return b.select(near, inner, outer)


def _gelu(v: Vectors, x: Any) -> Any:
    b, half = v.b, _constant(v, 0.5)
    return b.fmul(x, v.fma(_erf(v, b.fmul(x, _constant(v, math.sqrt(0.5)))), half, half))


_CURVES: dict[str, Callable[[Vectors, Any], Any]] = {
    "hard_swish": _hard_swish,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "tanh": _tanh,
    "gelu": _gelu,
}


def _all_curves(dtype: str) -> Any:
    """An intrinsic `(first, count, curve)` that applies the curve of this number to so many vectors."""

    def typed(_context: Any, first: Any, count: Any, curve: Any) -> Any:
        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            v = Vectors(b, dtype)
            blocks = [b.append_basic_block(name) for name in _CURVES]
            after = b.append_basic_block("done")
            switch = b.switch(args[2], blocks[-1])
            for number, (function, block) in enumerate(zip(_CURVES.values(), blocks, strict=True)):
                switch.add_case(I64(number), block)
                b.position_at_end(block)

                def body(i: Any, _state: list[Any], function: Any = function) -> list[Any]:
                    place = v.at(args[0], b.mul(i, I64(VECTOR_BYTES)))
                    v.store(function(v, v.load(place)), place)
                    return []

                loop(b, args[1], [], body)
                b.branch(after)
            b.position_at_end(after)
            return context.get_dummy_value()

        return types.void(first, count, curve), lower

    return intrinsic(typed)


_single, _double = _all_curves("float32"), _all_curves("float64")


@called_by_address
def curves_of_single(first, count, curve):
    """The curve of this number of so many vectors of float32 from an address on."""
    _single(first, count, curve)
    return count


@called_by_address
def curves_of_double(first, count, curve):
    """The same of float64."""
    _double(first, count, curve)
    return count


@lru_cache(maxsize=2)
def _address(dtype: str) -> int:
    """Where the compiled function lies, as C calls it."""
    function = curves_of_double if dtype == "float64" else curves_of_single
    return address_of(function, (types.int64,) * 3)
