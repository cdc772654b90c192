"""Numbers of every kind into vectors of the computation, and results out of them.

Images are read in their own dtype, byte order and strides, and results written in theirs, run by run: nothing is
converted as a whole. The kind of a number is an argument and no type, so that one compilation serves all dtypes.
"""

from __future__ import annotations

import platform
from fractions import Fraction
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils

from ...core.dtypes import integer_range
from ..views import BFLOAT16_BITS
from .vectors import I32, I64, Vectors, joined, loop

__all__ = [
    "BFLOAT16",
    "BYTES",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FROM_ROWS",
    "KINDS",
    "SIZES",
    "UNALIGNED",
    "chunks",
    "every",
    "gathered",
    "kind_of",
    "loaded",
    "narrowed",
    "native",
    "stored",
    "switched",
    "vector",
    "widened",
]

KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
         "float64")  # fmt: skip
SIZES = {name: 2 if name == "bfloat16" else np.dtype(name).itemsize for name in KINDS}
FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = map(KINDS.index, ("float16", "bfloat16", "float32", "float64"))
BYTES = tuple(SIZES[name] for name in KINDS)
FROM_ROWS = (KINDS.index("uint8"), KINDS.index("uint16"))  # kinds besides the native one that `column_sums` reads
SWAPPED = 16  # added to the kind of numbers whose bytes are in the other order
UNALIGNED = 32  # and of those that lie at any address

I16 = ir.IntType(16)
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
# Whether the processor converts float16 by itself; LLVM would else call a library that is not there.
HAS_HALF = bool(llvm.get_host_cpu_features().get("f16c")) or platform.machine() in ("aarch64", "arm64")


@lru_cache(maxsize=256)  # NumPy makes the name anew whenever it is asked
def kind_of(dtype: np.dtype[Any]) -> int:
    """The number that the kernels know a dtype by; booleans are bytes."""
    name = "uint8" if dtype.kind == "b" else "bfloat16" if dtype == BFLOAT16_BITS else dtype.name
    return KINDS.index(name) + (0 if dtype.isnative else SWAPPED)


def native(v: Vectors) -> int:
    """The kind of the computation's own numbers."""
    return FLOAT32 if v.size == 4 else FLOAT64


def chunks(b: Any, v: Vectors, count: Any) -> Any:
    """Vectors that hold so many elements."""
    return b.sdiv(b.add(count, I64(v.n - 1)), I64(v.n))


def switched(b: Any, number: Any, cases: dict[int, Any], generate: Any) -> list[tuple[Any, Any]]:
    """Code for each case; returns what each gave, and the block that it ended in. The last case is for all others."""
    blocks = [b.append_basic_block(f"case{n}") for n in cases]
    after = b.append_basic_block("chosen")
    switch = b.switch(number, blocks[-1])
    found = []
    for (n, case), block in zip(cases.items(), blocks, strict=True):
        switch.add_case(I64(n), block)
        b.position_at_end(block)
        found.append((generate(case), b.block))
        b.branch(after)
    b.position_at_end(after)
    return found


def _joined(b: Any, found: list[tuple[Any, Any]]) -> Any:
    return joined(b, *(([value], block) for value, block in found))[0]


def loaded(b: Any, v: Vectors, source: Any, step: Any, left: Any, kind: Any) -> Any:
    """A vector of numbers of a kind, or the first `left` of it, in the dtype of the computation."""
    swapped = b.icmp_signed("!=", b.and_(kind, I64(SWAPPED)), I64(0))
    number = b.and_(kind, I64(SWAPPED - 1))

    def of_size(size: int) -> Any:
        bits = gathered(b, v, source, step, left, size)
        if size > 1:
            kind_of_bits = ir.FunctionType(bits.type, [bits.type])
            name = f"llvm.bswap.v{v.n}i{8 * size}"
            function = cgutils.get_or_insert_function(b.module, kind_of_bits, name)
            bits = b.select(swapped, b.call(function, [bits]), bits)
        names = {n: name for n, name in enumerate(KINDS) if SIZES[name] == size}
        return _joined(b, switched(b, number, names, lambda name: widened(b, v, bits, name)))

    sizes: dict[int, list[int]] = {}
    for n, name in enumerate(KINDS):
        sizes.setdefault(SIZES[name], []).append(n)
    blocks = {size: b.append_basic_block(f"bytes{size}") for size in sizes}
    after = b.append_basic_block("loaded")
    switch = b.switch(number, blocks[1])
    found = []
    for size, block in blocks.items():
        for n in sizes[size]:
            switch.add_case(I64(n), block)
        b.position_at_end(block)
        found.append((of_size(size), b.block))
        b.branch(after)
    b.position_at_end(after)
    return _joined(b, found)


def gathered(b: Any, v: Vectors, source: Any, step: Any, left: Any, size: int) -> Any:
    """The bits of a vector of elements of `size` bytes, `step` bytes from each other, or of the first `left`."""
    element = ir.IntType(8 * size)
    kind = ir.VectorType(element, v.n)
    whole = b.icmp_signed(">=", left, I64(v.n))
    one, other, after = (b.append_basic_block(name) for name in ("run", "apart", "gathered"))
    found = []

    def is_step(count: int) -> Any:
        return b.icmp_signed("==", step, I64(count * size))

    b.cbranch(b.and_(whole, is_step(1)), one, other)
    b.position_at_end(one)
    found.append((vector(b, kind, source), b.block))
    b.branch(after)
    b.position_at_end(other)
    if size <= 4:  # pixels of 2 to 4 channels
        more = b.icmp_signed(">", left, I64(v.n))  # then all of as many vectors are the image's
        for channels in (2, 3, 4):
            one, other = b.append_basic_block("pixels"), b.append_basic_block("apart")
            b.cbranch(b.and_(more, is_step(channels)), one, other)
            b.position_at_end(one)
            parts = [vector(b, kind, v.at(source, i * size * v.n)) for i in range(channels)]
            found.append((every(b, parts, v.n), b.block))
            b.branch(after)
            b.position_at_end(other)
    room = cgutils.alloca_once(b, kind)
    places = b.ptrtoint(room, I64)

    def body(i: Any, _state: list[Any]) -> list[Any]:
        value = b.load(b.inttoptr(v.at(source, b.mul(i, step)), element.as_pointer()))
        value.align = 1
        b.store(value, b.inttoptr(v.at(places, b.mul(i, I64(size))), element.as_pointer()))
        return []

    loop(b, b.select(whole, I64(v.n), left), [], body)
    found.append((b.load(room), b.block))
    b.branch(after)
    b.position_at_end(after)
    return _joined(b, found)


def vector(b: Any, kind: Any, address: Any) -> Any:
    """A vector of this LLVM type at an address."""
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def every(b: Any, parts: list[Any], n: int) -> Any:
    """The first element of every pixel of vectors that follow each other, as many as a pixel has channels."""
    channels = len(parts)
    wanted = [i * channels for i in range(n)]
    total = parts[0]
    for number, part in enumerate(parts[1:], 1):
        order = []
        for lane, place in enumerate(wanted):
            here = place - number * n
            order.append(n + here if 0 <= here < n else place if number == 1 and place < n else lane)
        total = b.shuffle_vector(total, part, ir.Constant(ir.VectorType(I32, n), order))
    return total


def stored(b: Any, v: Vectors, value: Any, place: Any, step: Any, left: Any, size: int) -> None:
    """Store a vector, or the first `left` elements of it, `step` bytes from each other."""
    whole = b.icmp_signed(">=", left, I64(v.n))
    run = b.icmp_signed("==", step, I64(size))
    masked = value.type == v.type  # of other kinds few processors have such stores
    with b.if_else(run if masked else b.and_(run, whole), likely=True) as (side_by_side, apart):
        with side_by_side:
            if masked:
                with b.if_else(whole) as (all_of_it, part):
                    with all_of_it:
                        b.store(value, b.inttoptr(place, value.type.as_pointer())).align = 1
                    with part:
                        lane_numbers = ir.Constant(ir.VectorType(I64, v.n), list(range(v.n)))
                        inside = b.icmp_signed("<", lane_numbers, v.splat(left, lane_numbers.type))
                        v.masked_store(value, place, inside)
            else:
                b.store(value, b.inttoptr(place, value.type.as_pointer())).align = 1
        with apart:
            element = value.type.element
            room = cgutils.alloca_once(b, value.type)
            b.store(value, room)
            places = b.ptrtoint(room, I64)

            def body(i: Any, _state: list[Any]) -> list[Any]:
                one = b.load(b.inttoptr(v.at(places, b.mul(i, I64(size))), element.as_pointer()))
                b.store(one, b.inttoptr(v.at(place, b.mul(i, step)), element.as_pointer())).align = 1
                return []

            loop(b, b.select(whole, I64(v.n), left), [], body)


def widened(b: Any, v: Vectors, bits: Any, name: str) -> Any:
    """Numbers of this dtype, given as their bits, in the dtype of the computation."""
    floats = ir.VectorType(F32, v.n)
    if "float" not in name:
        return (b.uitofp if name[0] == "u" else b.sitofp)(bits, v.type)
    if name == "float64":
        value = b.bitcast(bits, ir.VectorType(F64, v.n))
        return value if v.size == 8 else b.fptrunc(value, v.type)
    if name == "float32":
        value = b.bitcast(bits, floats)
    elif name == "float16" and HAS_HALF:
        value = b.fpext(b.bitcast(bits, ir.VectorType(F16, v.n)), floats)
    else:
        wide = ir.VectorType(I32, v.n)
        bits = b.zext(bits, wide)
        if name == "bfloat16":
            value = b.bitcast(b.shl(bits, _all(wide, 16)), floats)
        else:
            value = _of_half(b, bits, wide, floats)
    return b.fpext(value, v.type) if v.size == 8 else value


def narrowed(b: Any, v: Vectors, value: Any, name: str) -> Any:
    """Numbers of the computation in this dtype, as bits where LLVM has no such type.

    Integers are rounded, half to even, and the nearest that there is where they are too large; NaN is 0.
    """
    if "float" not in name and SIZES[name] < 4:
        low, high = (v.constant(Fraction(limit)) for limit in integer_range(name) or ())
        if name[0] != "u":
            value = b.select(b.fcmp_ordered("ord", value, value), value, v.zero)
        value = b.select(b.fcmp_ordered(">", value, low), value, low)  # which makes 0 of NaN, too
        value = b.select(b.fcmp_ordered("<", value, high), value, high)
        wide = ir.VectorType(I32, v.n)
        return b.trunc(b.fptosi(v.call("rint", value), wide), ir.VectorType(ir.IntType(8 * SIZES[name]), v.n))
    if "float" not in name:
        rounded = v.call("rint", value)
        kind = ir.VectorType(ir.IntType(8 * SIZES[name]), v.n)
        which = "ui" if name[0] == "u" else "si"
        suffix = f"v{v.n}i{8 * SIZES[name]}.{v.suffix}"
        function = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(kind, [v.type]), f"llvm.fpto{which}.sat.{suffix}"
        )
        return b.call(function, [rounded])
    if name == "float64":
        return value if v.size == 8 else b.fpext(value, ir.VectorType(F64, v.n))
    floats, wide = ir.VectorType(F32, v.n), ir.VectorType(I32, v.n)
    if v.size == 8:
        value = b.fptrunc(value, floats) if name == "float32" else _to_odd(b, v, value, floats, wide)
    if name == "float32":
        return value
    if name == "float16" and HAS_HALF:
        return b.bitcast(b.fptrunc(value, ir.VectorType(F16, v.n)), ir.VectorType(I16, v.n))
    bits = b.bitcast(value, wide)
    narrow = _bits_of_half(b, value, bits, wide) if name == "float16" else _bits_of_bfloat(b, value, bits, wide)
    return b.trunc(narrow, ir.VectorType(I16, v.n))


def _all(kind: Any, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _of_half(b: Any, bits: Any, wide: Any, floats: Any) -> Any:
    """float16 as float32, by integers, where the processor has no instruction for it."""
    rest = b.shl(b.and_(bits, _all(wide, 0x7FFF)), _all(wide, 13))
    # with the exponent's bias of float32; subnormal numbers become normal ones
    value = b.bitcast(b.fmul(b.bitcast(rest, floats), _all(floats, 2.0**112)), wide)
    special = b.icmp_unsigned(">=", rest, _all(wide, 0x7C00 << 13))
    value = b.select(special, b.or_(rest, _all(wide, 0x7F800000)), value)
    sign = b.shl(b.and_(bits, _all(wide, 0x8000)), _all(wide, 16))
    return b.bitcast(b.or_(value, sign), floats)


def _bits_of_half(b: Any, value: Any, bits: Any, wide: Any) -> Any:
    """float32 as float16, rounded half to even."""
    floats = value.type
    sign = b.lshr(b.and_(bits, _all(wide, 0x80000000)), _all(wide, 16))
    rest = b.and_(bits, _all(wide, 0x7FFFFFFF))
    odd = b.and_(b.lshr(rest, _all(wide, 13)), _all(wide, 1))
    normal = b.lshr(b.add(b.add(rest, _all(wide, 0xFFF)), odd), _all(wide, 13))
    normal = b.sub(normal, _all(wide, (127 - 15) << 10))
    # adding a half puts the last bit of a subnormal float16 into the last place
    small = b.bitcast(b.fadd(b.bitcast(rest, floats), _all(floats, 0.5)), wide)
    small = b.sub(small, _all(wide, 0x3F000000))
    found = b.select(b.icmp_unsigned("<", rest, _all(wide, 113 << 23)), small, normal)
    found = b.select(b.icmp_unsigned(">=", rest, _all(wide, 0x477FF000)), _all(wide, 0x7C00), found)  # 65520 and more
    found = b.select(b.icmp_unsigned(">", rest, _all(wide, 0x7F800000)), _all(wide, 0x7E00), found)
    return b.or_(found, sign)


def _bits_of_bfloat(b: Any, value: Any, bits: Any, wide: Any) -> Any:
    """float32 as bfloat16, rounded half to even."""
    odd = b.and_(b.lshr(bits, _all(wide, 16)), _all(wide, 1))
    rounded = b.lshr(b.add(b.add(bits, _all(wide, 0x7FFF)), odd), _all(wide, 16))
    quiet = b.or_(b.lshr(bits, _all(wide, 16)), _all(wide, 0x40))
    return b.select(b.fcmp_unordered("uno", value, value), quiet, rounded)


def _to_odd(b: Any, v: Vectors, value: Any, floats: Any, wide: Any) -> Any:
    """float64 as float32 that can be rounded once more: what is not exact gets an odd last bit, next to zero."""
    near = b.fptrunc(value, floats)
    bits = b.bitcast(near, wide)
    back, whole = (v.call("fabs", x) for x in (b.fpext(near, v.type), value))
    above = b.zext(b.fcmp_ordered(">", back, whole), wide)
    inexact = b.zext(b.fcmp_ordered("!=", back, whole), wide)
    return b.bitcast(b.or_(b.sub(bits, above), inexact), floats)
