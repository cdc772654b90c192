"""LLVM's vectors as Numba intrinsics: what the loops of all engines are made of.

An intrinsic is straight-line LLVM code on vector registers, the same for every CPU, which a compiler does not find by
itself in loops over arrays; LLVM fits it to the instructions at hand. Addresses and strides are integers, in bytes;
nothing is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "I1",
    "I32",
    "I64",
    "MAX_VECTORS",
    "OUTPUT_VECTORS",
    "PIXELS",
    "ROWS",
    "VECTOR_BYTES",
    "Generate",
    "Vectors",
    "in_groups",
    "intrinsic_of",
    "joined",
    "lanes",
    "loop",
    "one_of",
]

# What writes the code of an intrinsic: of the builder, the vector operations, and the integers that it gets.
Generate: TypeAlias = Callable[..., None]

_features = llvm.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
# The sums of a register tile, ROWS x MAX_VECTORS vectors, take most of the 32 or 16 registers.
ROWS = 4 if VECTOR_BYTES == 32 else 8
MAX_VECTORS = 3
# Columns of a register tile that has outputs in its lanes, OUTPUT_VECTORS vectors of them.
PIXELS = 6 if VECTOR_BYTES == 32 else 14
OUTPUT_VECTORS = 2

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_FLOATS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
_SIZES = {"float32": 4, "float64": 8}


def lanes(dtype: str) -> int:
    """Elements of a vector register."""
    return VECTOR_BYTES // _SIZES[dtype]


def _suffix(kind: Any) -> str:
    """What LLVM calls a type of vectors in the names of its functions."""
    element = kind.element
    name = f"i{element.width}" if isinstance(element, ir.IntType) else "f64" if element == ir.DoubleType() else "f32"
    return f"v{kind.count}{name}"


class Vectors:
    """The few vector operations that the intrinsics are made of.

    Each is on as many registers `together` as its caller says, side by side: none of them waits for another one.
    """

    def __init__(self, builder: Any, dtype: str, together: int = 1) -> None:
        self.b, self.n, self.size = builder, together * lanes(dtype), _SIZES[dtype]
        self.element = _FLOATS[dtype]
        self.type = ir.VectorType(self.element, self.n)
        self.zero = ir.Constant(self.type, [0.0] * self.n)
        self.suffix = _suffix(self.type)

    def at(self, base: Any, *offsets: Any) -> Any:
        """An address plus offsets, which are numbers or values."""
        for offset in offsets:
            base = self.b.add(base, I64(offset) if isinstance(offset, int) else offset)
        return base

    def load(self, address: Any) -> Any:
        value = self.b.load(self.b.inttoptr(address, self.type.as_pointer()))
        value.align = self.size
        return value

    def store(self, value: Any, address: Any) -> None:
        self.b.store(value, self.b.inttoptr(address, self.type.as_pointer())).align = self.size

    def prefetch(self, address: Any, write: bool = False) -> None:
        """Ask for the line of memory at an address, which is read, or written, soon. No address is wrong."""
        b, pointer = self.b, ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = b.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        to_first_cache, of_data = I32(3), I32(1)
        b.call(function, [b.inttoptr(address, pointer), I32(int(write)), to_first_cache, of_data])

    def stream(self, value: Any, address: Any) -> None:
        """A store past the caches, to an aligned address."""
        store = self.b.store(value, self.b.inttoptr(address, self.type.as_pointer()))
        store.align = VECTOR_BYTES
        store.set_metadata("nontemporal", self.b.module.add_metadata([I32(1)]))

    def masked_load(self, address: Any, mask: Any, kind: Any = None) -> Any:
        """Lanes outside the mask are zero, and their memory is not touched; `kind` is another type of vector."""
        kind = kind or self.type
        masks, pointer = ir.VectorType(I1, self.n), kind.as_pointer()
        function = cgutils.get_or_insert_function(
            self.b.module, ir.FunctionType(kind, [pointer, I32, masks, kind]), f"llvm.masked.load.{_suffix(kind)}.p0"
        )
        nothing = ir.Constant(kind, [0] * self.n)
        return self.b.call(function, [self.b.inttoptr(address, pointer), I32(1), mask, nothing])

    def masked_store(self, value: Any, address: Any, mask: Any) -> None:
        """Lanes outside the mask are not touched."""
        pointer = value.type.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [value.type, pointer, I32, mask.type])
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.masked.store.{_suffix(value.type)}.p0")
        self.b.call(function, [value, self.b.inttoptr(address, pointer), I32(1), mask])

    def copy(self, target: Any, source: Any, count: Any) -> None:
        """So many elements, from address to address."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, I64, I1])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.memcpy.p0.p0.i64")
        length = self.b.mul(count, I64(self.size))
        self.b.call(function, [self.b.inttoptr(target, pointer), self.b.inttoptr(source, pointer), length, I1(0)])

    def splat(self, scalar: Any, kind: Any = None) -> Any:
        kind = kind or self.type
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        order = ir.Constant(ir.VectorType(I32, self.n), [0] * self.n)
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), order)

    def load_splat(self, address: Any) -> Any:
        return self.splat(self.b.load(self.b.inttoptr(address, self.element.as_pointer())))

    def constant(self, value: Fraction) -> Any:
        return ir.Constant(self.type, [float(value)] * self.n)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        kind = ir.FunctionType(self.type, [self.type] * 3)
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.fma.{self.suffix}")
        return self.b.call(function, [a, b, c])

    def call(self, name: str, value: Any) -> Any:
        """LLVM's function of this name, of a vector."""
        kind = ir.FunctionType(self.type, [self.type])
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.{name}.{self.suffix}")
        return self.b.call(function, [value])

    def products(self, base: Any, table: Any, weight: Any, terms: Any, rows: int, vectors: int) -> list[Any]:
        """See `shifted_products`."""
        b = self.b

        def body(k: Any, sums: list[Any]) -> list[Any]:
            offset = b.load(b.inttoptr(self.at(table, b.mul(k, I64(8))), I64.as_pointer()))
            values = [self.load(self.at(base, offset, j * VECTOR_BYTES)) for j in range(vectors)]
            factors = self.at(weight, b.mul(k, I64(rows * self.size)))
            added = []
            for r in range(rows):
                factor = self.load_splat(self.at(factors, r * self.size))
                added += [self.fma(value, factor, sums[r * vectors + j]) for j, value in enumerate(values)]
            return added

        return loop(b, terms, [self.zero] * (rows * vectors), body)

    def transposed(self, rows: list[Any]) -> list[Any]:
        """As many vectors as a vector has lanes, transposed."""
        order, half = ir.VectorType(I32, self.n), self.n // 2
        # Each round interleaves the rows of the first half with those of the second, log2(lanes) times.
        low = ir.Constant(order, [i // 2 + (i % 2) * self.n for i in range(self.n)])
        high = ir.Constant(order, [half + i // 2 + (i % 2) * self.n for i in range(self.n)])
        for _ in range(self.n.bit_length() - 1):
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [self.b.shuffle_vector(one, two, part) for one, two in pairs for part in (low, high)]
        return rows

    def combination(self, coefficients: Sequence[Fraction], values: Sequence[Any]) -> Any:
        """The sum of `coefficients[i] * values[i]`; zeros and ones cost no multiplication."""
        total = None
        for factor, value in sorted(zip(coefficients, values, strict=True), key=lambda pair: abs(pair[0]) != 1):
            if factor == 0:
                continue
            if total is None:
                total = value if factor == 1 else self.b.fmul(self.constant(factor), value)
            elif abs(factor) == 1:
                total = self.b.fadd(total, value) if factor == 1 else self.b.fsub(total, value)
            else:
                total = self.fma(self.constant(factor), value, total)
        return self.zero if total is None else total


def joined(b: Any, *ends: tuple[Sequence[Any], Any]) -> list[Any]:
    """Each value from whichever block was left last; of each block come its values, and it itself."""
    found = []
    for values in zip(*(values for values, _ in ends), strict=True):
        phi = b.phi(values[0].type)
        for value, (_, block) in zip(values, ends, strict=True):
            phi.add_incoming(value, block)
        found.append(phi)
    return found


def loop(
    b: Any,
    count: Any,
    state: Sequence[Any],
    body: Callable[[Any, list[Any]], Sequence[Any]],
    *,
    may_be_none: bool = False,
) -> list[Any]:
    """`for i in range(count): state = body(i, state)`; the final state.

    The count is one or more, unless there `may_be_none`.
    """
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    if may_be_none:
        b.cbranch(b.icmp_signed(">", count, I64(0)), loop, after)
    else:
        b.branch(loop)
    b.position_at_end(loop)
    index = b.phi(I64)
    index.add_incoming(I64(0), before)
    phis = []
    for value in state:
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        phis.append(phi)
    results = list(body(index, list(phis)))
    following = b.add(index, I64(1))
    for phi, value in zip([index, *phis], [following, *results], strict=True):
        phi.add_incoming(value, b.block)
    end = b.block
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    b.position_at_end(after)
    if not may_be_none:
        return results
    return joined(b, (state, before), (results, end))


def in_groups(b: Any, count: Any, sizes: Sequence[int], some: Callable[[Any, int], None]) -> None:
    """Code for `count` things, as many at a time as the first size says, and what is left by the next; the last is 1.

    `some(first, many)` is that for so many of them.
    """
    done: Any = I64(0)
    for many in sizes:
        groups = b.sdiv(b.sub(count, done), I64(many))

        def body(i: Any, _state: list[Any], many: int = many, done: Any = done) -> list[Any]:
            some(b.add(done, b.mul(i, I64(many))), many)
            return []

        loop(b, groups, [], body, may_be_none=True)
        done = b.add(done, b.mul(groups, I64(many)))


def intrinsic_of(generate: Generate) -> Any:
    """A Numba intrinsic `(like, integers)` without a result. The array `like` has the dtype; the rest are integers."""

    def typed(_context: Any, like: Any, integers: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v = Vectors(builder, str(signature.args[0].dtype))
            generate(builder, v, *cgutils.unpack_tuple(builder, args[1]))
            return context.get_dummy_value()

        return types.void(like, types.UniTuple(types.intp, len(integers))), lower

    return intrinsic(typed)


def one_of(variants: Mapping[int, Generate]) -> Any:
    """A Numba intrinsic `(like, which, integers)` that is the variant of this number, one of those given.

    Each variant is straight-line code for sizes of its own, such as those of a register tile.
    """
    return intrinsic(_switch(variants))


def one_of_kind(kinds: Mapping[int, Mapping[int, Generate]]) -> Any:
    """The same of several kinds, `(kind, like, which, integers)`: code is made for the one that `kind` is the type of.

    That is a literal, an argument of a kernel which is compiled for each kind by itself; see `elsewhere`.
    """

    def typed(context: Any, kind: Any, like: Any, which: Any, integers: Any) -> Any:
        signature, choose = _switch(kinds[kind.literal_value])(context, like, which, integers)

        def lower(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return choose(context, builder, signature, args[1:])

        return signature.return_type(kind, *signature.args), lower

    return intrinsic(prefer_literal=True)(typed)


def _switch(variants: Mapping[int, Generate]) -> Callable[..., Any]:
    def typed(_context: Any, like: Any, _which: Any, integers: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v = Vectors(builder, str(signature.args[0].dtype))
            arguments = cgutils.unpack_tuple(builder, args[2])
            blocks = [builder.append_basic_block(f"variant{number}") for number in variants]
            after = builder.append_basic_block("chosen")
            switch = builder.switch(args[1], blocks[-1])
            for (number, generate), block in zip(variants.items(), blocks, strict=True):
                switch.add_case(I64(number), block)
                builder.position_at_end(block)
                generate(builder, v, *arguments)
                builder.branch(after)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.void(like, types.intp, types.UniTuple(types.intp, len(integers))), lower

    return typed
