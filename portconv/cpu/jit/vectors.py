"""The innermost loops, in vectors: what a compiler does not find by itself in loops over arrays.

Each function below makes a Numba intrinsic: straight-line LLVM code on vector registers, the same for every CPU. LLVM
fits it to the instructions at hand. Addresses and strides are integers, in bytes; nothing is checked here.

Sources: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008), for the register
tile; Dukhan, "The indirect convolution algorithm", arXiv 1907.02129, for operands addressed by a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "MAX_VECTORS",
    "OUTPUT_VECTORS",
    "PIXELS",
    "ROWS",
    "VECTOR_BYTES",
    "add_vectors",
    "add_to_vectors",
    "broadcast_products",
    "channel_sums",
    "copy_elements",
    "fence",
    "finished_products",
    "lanes",
    "move_vectors",
    "row_products",
    "scatter_transposed",
    "shifted_products",
    "tap_sums",
    "tile_transform",
    "transpose_block",
]

_features = llvm.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
# The sums of a register tile, ROWS x MAX_VECTORS vectors, take most of the 32 or 16 registers.
ROWS = 4 if VECTOR_BYTES == 32 else 8
MAX_VECTORS = 3
# Columns of a register tile that has outputs in its lanes, OUTPUT_VECTORS vectors of them.
PIXELS = 6 if VECTOR_BYTES == 32 else 14
OUTPUT_VECTORS = 2

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_FLOATS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
_SIZES = {"float32": 4, "float64": 8}


def lanes(dtype: str) -> int:
    """Elements of a vector register."""
    return VECTOR_BYTES // _SIZES[dtype]


class _Vectors:
    """The few vector operations that the intrinsics are made of."""

    def __init__(self, builder: Any, dtype: str) -> None:
        self.b, self.n, self.size = builder, lanes(dtype), _SIZES[dtype]
        self.element = _FLOATS[dtype]
        self.type = ir.VectorType(self.element, self.n)
        self.zero = ir.Constant(self.type, [0.0] * self.n)
        self.suffix = f"v{self.n}f{8 * self.size}"

    def at(self, base: Any, *offsets: Any) -> Any:
        """An address plus offsets, which are numbers or values."""
        for offset in offsets:
            base = self.b.add(base, _I64(offset) if isinstance(offset, int) else offset)
        return base

    def load(self, address: Any) -> Any:
        value = self.b.load(self.b.inttoptr(address, self.type.as_pointer()))
        value.align = self.size
        return value

    def store(self, value: Any, address: Any) -> None:
        self.b.store(value, self.b.inttoptr(address, self.type.as_pointer())).align = self.size

    def stream(self, value: Any, address: Any) -> None:
        """A store past the caches, to an aligned address."""
        store = self.b.store(value, self.b.inttoptr(address, self.type.as_pointer()))
        store.align = VECTOR_BYTES
        store.set_metadata("nontemporal", self.b.module.add_metadata([_I32(1)]))

    def masked_load(self, address: Any, mask: Any) -> Any:
        """Lanes outside the mask are zero, and their memory is not touched."""
        masks = ir.VectorType(_I1, self.n)
        pointer = self.type.as_pointer()
        kind = ir.FunctionType(self.type, [pointer, _I32, masks, self.type])
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.masked.load.{self.suffix}.p0")
        return self.b.call(function, [self.b.inttoptr(address, pointer), _I32(self.size), mask, self.zero])

    def masked_store(self, value: Any, address: Any, mask: Any) -> None:
        """Lanes outside the mask are not touched."""
        pointer = self.type.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [self.type, pointer, _I32, mask.type])
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.masked.store.{self.suffix}.p0")
        self.b.call(function, [value, self.b.inttoptr(address, pointer), _I32(self.size), mask])

    def splat(self, scalar: Any, kind: Any = None) -> Any:
        kind = kind or self.type
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, _I32(0))
        order = ir.Constant(ir.VectorType(_I32, self.n), [0] * self.n)
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), order)

    def load_splat(self, address: Any) -> Any:
        return self.splat(self.b.load(self.b.inttoptr(address, self.element.as_pointer())))

    def constant(self, value: Fraction) -> Any:
        return ir.Constant(self.type, [float(value)] * self.n)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        kind = ir.FunctionType(self.type, [self.type] * 3)
        function = cgutils.get_or_insert_function(self.b.module, kind, f"llvm.fma.{self.suffix}")
        return self.b.call(function, [a, b, c])

    def products(self, base: Any, table: Any, weight: Any, terms: Any, rows: int, vectors: int) -> list[Any]:
        """See `shifted_products`."""
        b = self.b

        def body(k: Any, sums: list[Any]) -> list[Any]:
            offset = b.load(b.inttoptr(self.at(table, b.mul(k, _I64(8))), _I64.as_pointer()))
            values = [self.load(self.at(base, offset, j * VECTOR_BYTES)) for j in range(vectors)]
            factors = self.at(weight, b.mul(k, _I64(rows * self.size)))
            added = []
            for r in range(rows):
                factor = self.load_splat(self.at(factors, r * self.size))
                added += [self.fma(value, factor, sums[r * vectors + j]) for j, value in enumerate(values)]
            return added

        return _loop(b, terms, [self.zero] * (rows * vectors), body)

    def transposed(self, rows: list[Any]) -> list[Any]:
        """As many vectors as a vector has lanes, transposed."""
        order, half = ir.VectorType(_I32, self.n), self.n // 2
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


def _loop(b: Any, count: Any, state: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]) -> list[Any]:
    """`for i in range(count): state = body(i, state)`, for a count of one or more; the final state."""
    before, loop, after = b.block, b.append_basic_block("loop"), b.append_basic_block("after")
    b.branch(loop)
    b.position_at_end(loop)
    index = b.phi(_I64)
    index.add_incoming(_I64(0), before)
    phis = []
    for value in state:
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        phis.append(phi)
    results = list(body(index, list(phis)))
    following = b.add(index, _I64(1))
    for phi, value in zip([index, *phis], [following, *results], strict=True):
        phi.add_incoming(value, b.block)
    b.cbranch(b.icmp_signed("<", following, count), loop, after)
    b.position_at_end(after)
    return results


def _intrinsic(generate: Callable[..., None]) -> Any:
    """A Numba intrinsic `(like, integers)` without a result. The array `like` has the dtype; the rest are integers."""

    def typed(_context: Any, like: Any, integers: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            v = _Vectors(builder, str(signature.args[0].dtype))
            generate(builder, v, *cgutils.unpack_tuple(builder, args[1]))
            return context.get_dummy_value()

        return types.void(like, types.UniTuple(types.intp, len(integers))), lower

    return intrinsic(typed)


def shifted_products(rows: int, vectors: int) -> Any:
    """`out[r, :] = sum over k of weight[k, r] * memory[base + table[k] + (0, 1, 2, ...)]`, ROWS by vectors x lanes.

    Arguments of the intrinsic: base, table, weight, terms, out. Weight is (terms, rows), out (rows, vectors x lanes).
    """

    def generate(_b: Any, v: _Vectors, base: Any, table: Any, weight: Any, terms: Any, out: Any) -> None:
        for i, total in enumerate(v.products(base, table, weight, terms, rows, vectors)):
            v.store(total, v.at(out, i * v.n * v.size))

    return _intrinsic(generate)


def finished_products(rows: int, vectors: int, *, streamed: bool) -> Any:
    """`shifted_products` that writes results: `out[r, :] = sum + bias[r]`; past the caches if `streamed`.

    Arguments of the intrinsic: base, table, weight, terms, out, bytes between its rows, address of the bias. Streamed
    results must be aligned to vectors.
    """

    def generate(
        b: Any, v: _Vectors, base: Any, table: Any, weight: Any, terms: Any, out: Any, out_row: Any, bias: Any
    ) -> None:
        sums = v.products(base, table, weight, terms, rows, vectors)
        for r in range(rows):
            shift, line = v.load_splat(v.at(bias, r * v.size)), v.at(out, b.mul(out_row, _I64(r)))
            for j in range(vectors):
                place, value = v.at(line, j * VECTOR_BYTES), b.fadd(sums[r * vectors + j], shift)
                (v.stream if streamed else v.store)(value, place)

    return _intrinsic(generate)


def broadcast_products(pixels: int) -> Any:
    """`out[n, :] = sum over k of weight[k, :] * memory[base + table[k] + n]`: the same with outputs in the lanes.

    Arguments as in `shifted_products`. Weight is (terms, OUTPUT_VECTORS x lanes), out (pixels, OUTPUT_VECTORS x lanes).
    """

    def generate(b: Any, v: _Vectors, base: Any, table: Any, weight: Any, terms: Any, out: Any) -> None:

        def body(k: Any, sums: list[Any]) -> list[Any]:
            offset = b.load(b.inttoptr(v.at(table, b.mul(k, _I64(8))), _I64.as_pointer()))
            line = v.at(weight, b.mul(k, _I64(OUTPUT_VECTORS * VECTOR_BYTES)))
            factors = [v.load(v.at(line, j * VECTOR_BYTES)) for j in range(OUTPUT_VECTORS)]
            added = []
            for n in range(pixels):
                value = v.load_splat(v.at(base, offset, n * v.size))
                added += [v.fma(factor, value, sums[n * OUTPUT_VECTORS + j]) for j, factor in enumerate(factors)]
            return added

        sums = _loop(b, terms, [v.zero] * (pixels * OUTPUT_VECTORS), body)
        for i, total in enumerate(sums):
            v.store(total, v.at(out, i * VECTOR_BYTES))

    return _intrinsic(generate)


def add_vectors() -> Any:
    """`target[:n] += source[:n]` for a whole number of vectors. Arguments: target, source, how many vectors."""

    def generate(b: Any, v: _Vectors, target: Any, source: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            offset = b.mul(i, _I64(v.n * v.size))
            place = v.at(target, offset)
            v.store(b.fadd(v.load(place), v.load(v.at(source, offset))), place)
            return []

        _loop(b, count, [], body)

    return _intrinsic(generate)


def put_line(*, add: bool) -> Any:
    """`target[:n] = source[:n] + shift`, or `target[:n] += source[:n]` if `add`.

    Arguments: target, source, how many elements, address of the shift. Up to a vector beyond the source is read.
    """

    def generate(b: Any, v: _Vectors, target: Any, source: Any, count: Any, shift: Any) -> None:
        shifts = v.load_splat(shift)
        lane_numbers = ir.Constant(ir.VectorType(_I64, v.n), list(range(v.n)))

        def body(i: Any, _state: list[Any]) -> list[Any]:
            done = b.mul(i, _I64(v.n))
            offset = b.mul(done, _I64(v.size))
            place = v.at(target, offset)
            inside = b.icmp_signed("<", lane_numbers, v.splat(b.sub(count, done), lane_numbers.type))
            value = v.load(v.at(source, offset))
            with b.if_else(b.icmp_signed(">=", b.sub(count, done), _I64(v.n))) as (whole, partial):
                with whole:
                    v.store(b.fadd(value, v.load(place) if add else shifts), place)
                with partial:
                    v.masked_store(b.fadd(value, v.masked_load(place, inside) if add else shifts), place, inside)
            return []

        _loop(b, b.sdiv(b.add(count, _I64(v.n - 1)), _I64(v.n)), [], body)

    return _intrinsic(generate)


def mark_nonfinite() -> Any:
    """`mark += x - x` for all vectors x: NaN where one is not finite. Arguments: mark, source, how many vectors."""

    def generate(b: Any, v: _Vectors, mark: Any, source: Any, count: Any) -> None:
        def body(i: Any, state: list[Any]) -> list[Any]:
            value = v.load(v.at(source, b.mul(i, _I64(v.n * v.size))))
            return [b.fadd(state[0], b.fsub(value, value))]

        v.store(_loop(b, count, [v.load(mark)], body)[0], mark)

    return _intrinsic(generate)


def fence() -> Any:
    """Orders streamed stores before what follows. No arguments."""

    def generate(b: Any, _v: _Vectors) -> None:
        b.fence("seq_cst")

    return _intrinsic(generate)


def copy_elements() -> Any:
    """Copies memory. Arguments: target, source, how many elements."""

    def generate(b: Any, v: _Vectors, target: Any, source: Any, count: Any) -> None:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, _I64, _I1])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.memcpy.p0.p0.i64")
        length = b.mul(count, _I64(v.size))
        b.call(function, [b.inttoptr(target, pointer), b.inttoptr(source, pointer), length, _I1(0)])

    return _intrinsic(generate)


def row_products(rows: int, vectors: int) -> Any:
    """`out[r, :] (+)= sum over k of a[r, k] * panel[k, :]`: a tile of an ordinary matrix product.

    Arguments of the intrinsic: a, bytes between its rows, panel (terms, vectors x lanes), terms, out, bytes between its
    rows, and whether to add to what is there.
    """

    def generate(
        b: Any, v: _Vectors, a: Any, a_stride: Any, panel: Any, terms: Any, out: Any, out_stride: Any, add: Any
    ) -> None:
        starts = [v.at(a, b.mul(a_stride, _I64(r))) for r in range(rows)]

        def body(k: Any, sums: list[Any]) -> list[Any]:
            line = v.at(panel, b.mul(k, _I64(vectors * v.n * v.size)))
            values = [v.load(v.at(line, j * v.n * v.size)) for j in range(vectors)]
            offset = b.mul(k, _I64(v.size))
            added = []
            for r in range(rows):
                factor = v.load_splat(v.at(starts[r], offset))
                added += [v.fma(value, factor, sums[r * vectors + j]) for j, value in enumerate(values)]
            return added

        sums = _loop(b, terms, [v.zero] * (rows * vectors), body)
        places = [v.at(out, b.mul(out_stride, _I64(r)), j * v.n * v.size) for r in range(rows) for j in range(vectors)]
        with b.if_else(b.icmp_signed("!=", add, _I64(0))) as (then, otherwise):
            with then:
                for total, place in zip(sums, places, strict=True):
                    v.store(b.fadd(v.load(place), total), place)
            with otherwise:
                for total, place in zip(sums, places, strict=True):
                    v.store(total, place)

    return _intrinsic(generate)


def transpose_block() -> Any:
    """Transposes a square of lanes x lanes elements. Arguments: target, bytes between its rows; source, the same."""

    def generate(b: Any, v: _Vectors, target: Any, target_row: Any, source: Any, source_row: Any) -> None:
        rows = [v.load(v.at(source, b.mul(source_row, _I64(i)))) for i in range(v.n)]
        for i, row in enumerate(v.transposed(rows)):
            v.store(row, v.at(target, b.mul(target_row, _I64(i))))

    return _intrinsic(generate)


def tile_transform(left: Sequence[Sequence[Fraction]], right: Sequence[Sequence[Fraction]]) -> Any:
    """`L d R^T` for a tile d of vectors, its elements at strides of their own; as many lanes as channels at a time.

    Arguments of the intrinsic: source, bytes between its rows, between its columns; target, the same two; scratch for
    as many vectors as L has rows and R columns.
    """

    def generate(
        b: Any, v: _Vectors, source: Any, row: Any, col: Any, target: Any, target_row: Any, target_col: Any,
        between: Any,
    ) -> None:  # fmt: skip
        height, pitch = len(left), len(left) * VECTOR_BYTES

        def column(j: Any, _state: list[Any]) -> list[Any]:
            start = v.at(source, b.mul(col, j))
            tile = [v.load(v.at(start, b.mul(row, _I64(i)))) for i in range(len(left[0]))]
            place = v.at(between, b.mul(j, _I64(pitch)))
            for i, factors in enumerate(left):
                v.store(v.combination(factors, tile), v.at(place, i * VECTOR_BYTES))
            return []

        def line(i: Any, _state: list[Any]) -> list[Any]:
            start = v.at(between, b.mul(i, _I64(VECTOR_BYTES)))
            tile = [v.load(v.at(start, j * pitch)) for j in range(len(right[0]))]
            place = v.at(target, b.mul(target_row, i))
            for j, factors in enumerate(right):
                v.store(v.combination(factors, tile), v.at(place, b.mul(target_col, _I64(j))))
            return []

        _loop(b, _I64(len(right[0])), [], column)
        _loop(b, _I64(height), [], line)

    return _intrinsic(generate)


def scatter_transposed() -> Any:
    """As `transpose_block`, with rows of the target where a table of offsets in bytes says.

    Arguments: target, address of the table; source, bytes between its rows.
    """

    def generate(b: Any, v: _Vectors, target: Any, table: Any, source: Any, source_row: Any) -> None:
        rows = [v.load(v.at(source, b.mul(source_row, _I64(i)))) for i in range(v.n)]
        for i, row in enumerate(v.transposed(rows)):
            offset = b.load(b.inttoptr(v.at(table, 8 * i), _I64.as_pointer()))
            v.store(row, v.at(target, offset))

    return _intrinsic(generate)


def move_vectors() -> Any:
    """Copies vectors. Arguments: target, bytes between vectors; source, the same; how many vectors."""

    def generate(b: Any, v: _Vectors, target: Any, target_step: Any, source: Any, source_step: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            v.store(v.load(v.at(source, b.mul(i, source_step))), v.at(target, b.mul(i, target_step)))
            return []

        _loop(b, count, [], body)

    return _intrinsic(generate)


def add_to_vectors() -> Any:
    """`target[n] = source[n] + shift` for vectors. Arguments: target, source, how many, address of the shift."""

    def generate(b: Any, v: _Vectors, target: Any, source: Any, count: Any, shift: Any) -> None:
        shifts = v.load(shift)

        def body(i: Any, _state: list[Any]) -> list[Any]:
            offset = b.mul(i, _I64(VECTOR_BYTES))
            v.store(b.fadd(v.load(v.at(source, offset)), shifts), v.at(target, offset))
            return []

        _loop(b, count, [], body)

    return _intrinsic(generate)


def channel_sums(width: int, step: int) -> Any:
    """`out[n] = shift + sum over (i, j) of one[i, j] * other[i, j + n * step]`, all of them vectors of channels.

    Arguments of the intrinsic: address of one[0, 0], bytes between its rows, between its columns; the same of other;
    how many rows, columns; address of the shift; out (width vectors).
    """

    def generate(
        b: Any, v: _Vectors, one: Any, one_row: Any, one_col: Any, other: Any, other_row: Any, other_col: Any,
        rows: Any, cols: Any, shift: Any, out: Any,
    ) -> None:  # fmt: skip

        def row(i: Any, sums: list[Any]) -> list[Any]:
            ones, others = v.at(one, b.mul(i, one_row)), v.at(other, b.mul(i, other_row))

            def col(j: Any, sums: list[Any]) -> list[Any]:
                factor = v.load(v.at(ones, b.mul(j, one_col)))
                place = v.at(others, b.mul(j, other_col))
                return [
                    v.fma(factor, v.load(v.at(place, n * step * VECTOR_BYTES)), total) for n, total in enumerate(sums)
                ]

            return _loop(b, cols, sums, col)

        sums = _loop(b, rows, [v.zero] * width, row)
        shifts = v.load(shift)
        for n, total in enumerate(sums):
            v.store(b.fadd(total, shifts), v.at(out, n * VECTOR_BYTES))

    return _intrinsic(generate)


def tap_sums(rows: int, vectors: int, *, masked: bool) -> Any:
    """Sums over channels and taps for a patch: `rows` lines of `vectors` vectors each.

    `out[r, n] = sum over (c, i, j) of weight[c, i, j] * image[c, top + r + i * dh, left + n + j * dw]`. If `masked`,
    what lies outside `height` rows and `width` columns counts as zero and is not touched; otherwise nothing is checked.

    Arguments of the intrinsic: channels, bytes between them in the image, in the weight; address of
    image[0, top, left], bytes between rows; dh, dw; address of the weight, bytes between its rows, its height, its
    width; top, height, left, width; address of a row of zeros as long as a patch's; out (rows, vectors x lanes).
    """

    def generate(
        b: Any, v: _Vectors, channels: Any, channel_bytes: Any, weight_channel: Any, start: Any, row_bytes: Any,
        dh: Any, dw: Any, weight: Any, weight_row: Any, kh: Any, kw: Any, top: Any, height: Any, left: Any, width: Any,
        zeros: Any, out: Any,
    ) -> None:  # fmt: skip
        numbers = ir.VectorType(_I32, v.n)  # half as wide as 64 bits, and enough for a row
        steps = [ir.Constant(numbers, [j * v.n + lane for lane in range(v.n)]) for j in range(vectors)]
        limit = v.splat(b.trunc(width, _I32), numbers)
        lines = [b.mul(row_bytes, _I64(r)) for r in range(rows)]
        kernel_row = b.mul(dh, row_bytes)

        def channel(c: Any, sums: list[Any]) -> list[Any]:
            plane = v.at(start, b.mul(c, channel_bytes))
            factors = v.at(weight, b.mul(c, weight_channel))

            def column(j: Any, sums: list[Any]) -> list[Any]:
                shift = b.mul(j, dw)
                inside: list[Any] = []
                if masked:
                    first = v.splat(b.trunc(b.add(left, shift), _I32), numbers)
                    inside = [b.icmp_unsigned("<", b.add(first, step), limit) for step in steps]
                here = v.at(plane, b.mul(shift, _I64(v.size)))
                weights = v.at(factors, b.mul(j, _I64(v.size)))

                def tap(i: Any, sums: list[Any]) -> list[Any]:
                    factor = v.load_splat(v.at(weights, b.mul(i, weight_row)))
                    line = v.at(here, b.mul(i, kernel_row))
                    row = b.add(top, b.mul(i, dh))
                    added = []
                    for r in range(rows):
                        # selected by address: selected masks would spill
                        address = v.at(line, lines[r])
                        if masked:
                            inside_rows = b.icmp_unsigned("<", b.add(row, _I64(r)), height)
                            address = b.select(inside_rows, address, zeros)
                        for n in range(vectors):
                            place = v.at(address, n * v.n * v.size)
                            value = v.masked_load(place, inside[n]) if masked else v.load(place)
                            added.append(v.fma(value, factor, sums[r * vectors + n]))
                    return added

                return _loop(b, kh, sums, tap)

            return _loop(b, kw, sums, column)

        sums = _loop(b, channels, [v.zero] * (rows * vectors), channel)
        for i, total in enumerate(sums):
            v.store(total, v.at(out, i * v.n * v.size))

    return _intrinsic(generate)
