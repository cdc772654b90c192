"""The activations of the compiled tier, vector by vector, where sums are still in a core's registers and first cache.

What is the same for all channels of a call lies in some words: the numbers of its activation, the address of its
function, and where its residual is. Activations of straight lines need no function: they are one formula, of a line
with some slope to the left of zero, y = x to its right, and two limits. Those with an exponential function, and
hard_swish, have one, which is compiled when it is needed first; whoever stores sums calls it by its address.

All of these functions but one are a power of two and one division; the constants were fitted for them. Source of the
error function in float64: Cody, see `portconv.engines.activations`.
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
from .vectors import I32, I64, VECTOR_BYTES, Vectors, in_groups, joined

__all__ = ["CALL_WORDS", "RESIDUAL", "activated", "call_words", "sigmoid", "tanh"]

# The words of a call.
FUNCTION, RESIDUAL, SLOPE, LOW, HIGH, CURVE = range(6)
CALL_WORDS = 6
TOGETHER = 2 if VECTOR_BYTES == 32 else 4  # vectors whose curve is computed side by side, in 16 or 32 registers
LINES = ("relu", "relu6", "leaky_relu")

_ESTIMATES = VECTOR_BYTES == 64  # of reciprocals, by AVX-512
_LOG2_E = 1 / math.log(2)
# By the bytes of a dtype: the bits of its fraction and the bias of its exponent; from where on tanh rounds to 1; from
# where on sigmoid(-x) is taken as 0; and the coefficients of ``(2 ** r - 1) / r`` for r from -1/2 to 1/2, the highest
# power first, which are in float32 those of the least relative error, 1.1e-8.
_BITS = {4: (23, 127), 8: (52, 1023)}
_TANH_IS_ONE = {4: 9.5, 8: 20.0}
_SIGMOID_IS_ZERO = {4: 87.0, 8: 708.0}
_POWER = {
    4: (1.5403512573598976e-4, 1.3390735477502177e-3, 9.61823749431474e-3, 5.5503574336366296e-2,
        2.4022649794962908e-1, 6.9314718792669e-1),
    8: tuple(math.log(2) ** k / math.factorial(k) for k in range(13, 0, -1)),
}  # fmt: skip
# ``1 / (1 + 2 ** (x * P(x ** 2)))`` is the share of the normal distribution below x, but for 3e-8; from the limit on
# the rest is nothing beside 1.
_NORMAL_IS_ZERO = 7.0
_NORMAL = tuple(
    -_LOG2_E * coefficient
    for coefficient in (
        3.5123426335183737e-9, -2.64526717055952e-7, 7.929489278549547e-6, -1.1061238967022471e-4,
        -6.518994607083599e-5, 7.266616914335691e-2, 1.5957698829217943,
    )
)  # fmt: skip


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
    function = _word(b, call, FUNCTION)
    with b.if_else(b.icmp_signed("==", function, I64(0))) as (of_lines, otherwise):
        with of_lines:
            slope, low, high = (v.splat(_number(v, call, word)) for word in (SLOPE, LOW, HIGH))
            found = []
            for value in values:
                # comparisons with NaN are false, and leave it as it is
                value = b.select(b.fcmp_ordered("<", value, v.zero), b.fmul(value, slope), value)
                value = b.select(b.fcmp_ordered("<", value, low), low, value)
                found.append(b.select(b.fcmp_ordered(">", value, high), high, value))
            one = found, b.block
        with otherwise:
            first = b.ptrtoint(cgutils.alloca_once(b, v.type, len(values)), I64)
            for i, value in enumerate(values):
                v.store(value, v.at(first, i * VECTOR_BYTES))
            kind = ir.FunctionType(I64, [I64] * 3).as_pointer()
            b.call(b.inttoptr(function, kind), [first, I64(len(values)), _word(b, call, CURVE)])
            other = [v.load(v.at(first, i * VECTOR_BYTES)) for i in range(len(values))], b.block
    return joined(b, one, other)


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


def _between(v: Vectors, x: Any, low: float, high: float) -> Any:
    """The nearest number from `low` to `high`. NaN, which comparisons are false of, stays NaN."""
    b, least, most = v.b, _constant(v, low), _constant(v, high)
    x = b.select(b.fcmp_ordered("<", x, least), least, x)
    return b.select(b.fcmp_ordered(">", x, most), most, x)


def _power_parts(v: Vectors, x: Any, factor: Any) -> tuple[Any, Any, Any]:
    """A power of two p, r and q with ``2 ** (x * factor) = p + p * r * q``, where that is a normal number."""
    b, (bits, bias) = v.b, _BITS[v.size]
    # a float that is so large has no digits behind the point, so that its last bits are those of the exponent
    shift = _constant(v, 1.5 * 2**bits + bias)
    raised = v.fma(x, factor, shift)
    r = v.fma(x, factor, b.fsub(shift, raised))
    integers = ir.VectorType(ir.IntType(8 * v.size), v.n)
    exponent = b.shl(b.bitcast(raised, integers), ir.Constant(integers, [bits] * v.n))
    return b.bitcast(exponent, v.type), r, _polynomial(v, _POWER[v.size], r)


def _logistic(v: Vectors, x: Any, limit: float, factor: Callable[[Any], Any]) -> Any:
    """``1 / (1 + 2 ** (x * factor(x)))``, which is 0 below minus the limit, and for larger x that of the limit.

    Between the two, the exponents are those of normal numbers.
    """
    b, one, most = v.b, _constant(v, 1.0), _constant(v, limit)
    far = b.fcmp_ordered("<", x, _constant(v, -limit))
    x = b.select(b.fcmp_ordered(">", x, most), most, x)
    p, r, q = _power_parts(v, x, factor(x))
    whole = v.fma(p, v.fma(r, q, one), one)
    if _ESTIMATES and v.size == 4:
        near = _estimate(v, whole)  # to 14 bits, and by a step of Newton's to all
        near = v.fma(near, v.fma(b.fneg(whole), near, one), near)
    else:
        near = b.fdiv(one, whole)
    return b.select(far, v.zero, near)


def _estimate(v: Vectors, x: Any) -> Any:
    """The processor's estimate of 1 / x, which takes a fifth of the time of a division."""
    b, lane = v.b, VECTOR_BYTES // v.size
    one = ir.VectorType(v.element, lane)
    kind = ir.FunctionType(one, [one, one, ir.IntType(16)])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.rcp14.ps.512")
    found = []
    for first in range(0, v.n, lane):
        part = b.shuffle_vector(x, x, _order(first, lane))
        found.append(b.call(function, [part, part, ir.IntType(16)(-1)]))
    while len(found) > 1:
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [b.shuffle_vector(a, c, _order(0, 2 * a.type.count)) for a, c in pairs]
    return found[0]


def _order(first: int, count: int) -> Any:
    return ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))


def sigmoid(v: Vectors, x: Any) -> Any:
    """``1 / (1 + exp(-x))`` of each lane."""
    return _logistic(v, x, _SIGMOID_IS_ZERO[v.size], lambda _: _constant(v, -_LOG2_E))


def _silu(v: Vectors, x: Any) -> Any:
    return v.b.fmul(x, sigmoid(v, x))


def tanh(v: Vectors, x: Any) -> Any:
    """That of each lane."""
    b, limit = v.b, _TANH_IS_ONE[v.size]
    p, r, q = _power_parts(v, _between(v, x, -limit, limit), _constant(v, 2 * _LOG2_E))
    less = v.fma(p, b.fmul(r, q), b.fsub(p, _constant(v, 1.0)))  # exp(2 x) - 1, with all its digits near zero
    return b.fdiv(less, b.fadd(less, _constant(v, 2.0)))


def _hard_swish(v: Vectors, x: Any) -> Any:
    b, six = v.b, _constant(v, 6.0)
    inner = b.select(b.fcmp_ordered("<=", x, _constant(v, -3.0)), v.zero, x)
    raised = b.fadd(inner, _constant(v, 3.0))
    raised = b.select(b.fcmp_ordered(">", raised, six), six, raised)
    return b.fmul(inner, b.fmul(raised, _constant(v, 1 / 6)))


def _erf(v: Vectors, x: Any) -> Any:
    """The error function in float64, to some units of rounding of 1."""
    b, one, size = v.b, _constant(v, 1.0), _size(v, x)
    near = b.fcmp_ordered("<=", size, _constant(v, exact.NEAR))
    inside = b.select(near, x, v.zero)
    square = b.fmul(inside, inside)
    inner = b.fdiv(b.fmul(inside, _polynomial(v, exact.NEAR_TOP, square)), _polynomial(v, exact.NEAR_BOTTOM, square))
    far = b.fcmp_ordered(">=", size, _constant(v, exact.ONE))
    middle = b.select(far, one, size)
    tail = b.fdiv(_polynomial(v, exact.MIDDLE_TOP, middle), _polynomial(v, exact.MIDDLE_BOTTOM, middle))
    p, r, q = _power_parts(v, b.fmul(middle, middle), _constant(v, -_LOG2_E))
    tail = b.fmul(v.fma(p, b.fmul(r, q), p), tail)
    outer = b.select(far, one, b.fsub(one, tail))
    outer = b.select(b.fcmp_ordered("<", x, v.zero), b.fneg(outer), outer)
    return b.select(near, inner, outer)


def _gelu(v: Vectors, x: Any) -> Any:
    b, half = v.b, _constant(v, 0.5)
    if v.size == 4:
        return b.fmul(x, _logistic(v, x, _NORMAL_IS_ZERO, lambda x: _polynomial(v, _NORMAL, b.fmul(x, x))))
    return b.fmul(x, v.fma(_erf(v, b.fmul(x, _constant(v, math.sqrt(0.5)))), half, half))


_CURVES: dict[str, Callable[[Vectors, Any], Any]] = {
    "hard_swish": _hard_swish,
    "sigmoid": sigmoid,
    "silu": _silu,
    "tanh": tanh,
    "gelu": _gelu,
}


def _all_curves(dtype: str) -> Any:
    """An intrinsic `(first, count, curve)` that applies the curve of this number to so many vectors."""

    def typed(_context: Any, first: Any, count: Any, curve: Any) -> Any:
        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            blocks = [b.append_basic_block(name) for name in _CURVES]
            after = b.append_basic_block("done")
            switch = b.switch(args[2], blocks[-1])
            for number, (curve, block) in enumerate(zip(_CURVES.values(), blocks, strict=True)):
                switch.add_case(I64(number), block)
                b.position_at_end(block)

                def some(first: Any, many: int, curve: Any = curve) -> None:
                    v = Vectors(b, dtype, many)
                    place = v.at(args[0], b.mul(first, I64(VECTOR_BYTES)))
                    v.store(curve(v, v.load(place)), place)

                in_groups(b, args[1], (TOGETHER, 1), some)
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
