"""Vectors moved, added, transposed and transformed between the products."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from llvmlite import ir

from .epilogue import Finish
from .runs import first_lanes
from .vectors import I1, I32, I64, ROWS, VECTOR_BYTES, Generate, Vectors, in_groups, intrinsic_of, loop, one_of

__all__ = [
    "add_vectors",
    "copy_elements",
    "fence",
    "finish_vectors",
    "move_elements",
    "move_vectors",
    "pad_rows",
    "prefetch_lines",
    "round_vectors",
    "spread_vectors",
    "tile_transform",
    "transpose_block",
    "widen_weights",
]

LINE_BYTES = 64  # of a cache; where lines are longer, each is asked for twice


def add_vectors() -> Any:
    """`target[:n] += source[:n]` for a whole number of vectors. Arguments: target, source, how many vectors."""

    def generate(b: Any, v: Vectors, target: Any, source: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            offset = b.mul(i, I64(v.n * v.size))
            place = v.at(target, offset)
            v.store(b.fadd(v.load(place), v.load(v.at(source, offset))), place)
            return []

        loop(b, count, [], body)

    return intrinsic_of(generate)


def mark_nonfinite() -> Any:
    """`mark += x - x` for all vectors x: NaN where one is not finite. Arguments: mark, source, how many vectors."""

    def generate(b: Any, v: Vectors, mark: Any, source: Any, count: Any) -> None:
        def body(i: Any, state: list[Any]) -> list[Any]:
            value = v.load(v.at(source, b.mul(i, I64(v.n * v.size))))
            return [b.fadd(state[0], b.fsub(value, value))]

        v.store(loop(b, count, [v.load(mark)], body)[0], mark)

    return intrinsic_of(generate)


def fence() -> Any:
    """Orders streamed stores before what follows. No arguments."""

    def generate(b: Any, _v: Vectors) -> None:
        b.fence("seq_cst")

    return intrinsic_of(generate)


def prefetch_lines() -> Any:
    """Asks for memory that is read soon, wherever it lies. Arguments: the address, how many bytes (none below 1)."""

    def generate(b: Any, v: Vectors, start: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            v.prefetch(v.at(start, b.mul(i, I64(LINE_BYTES))))
            return []

        loop(b, b.sdiv(b.add(count, I64(LINE_BYTES - 1)), I64(LINE_BYTES)), [], body, may_be_none=True)

    return intrinsic_of(generate)


def copy_elements() -> Any:
    """Copies memory. Arguments: target, source, how many elements."""

    def generate(_b: Any, v: Vectors, target: Any, source: Any, count: Any) -> None:
        v.copy(target, source, count)

    return intrinsic_of(generate)


def transpose_block() -> Any:
    """Transposes a square of lanes x lanes elements. Arguments: target, bytes between its rows; source, the same."""

    def generate(b: Any, v: Vectors, target: Any, target_row: Any, source: Any, source_row: Any) -> None:
        rows = [v.load(v.at(source, b.mul(source_row, I64(i)))) for i in range(v.n)]
        for i, row in enumerate(v.transposed(rows)):
            v.store(row, v.at(target, b.mul(target_row, I64(i))))

    return intrinsic_of(generate)


def tile_transform(left: Sequence[Sequence[Fraction]], right: Sequence[Sequence[Fraction]]) -> Generate:
    """`L d R^T` for a tile d of vectors, its elements at strides of their own; as many lanes as channels at a time.

    Arguments: source, bytes between its rows, between its columns; target, the same two; scratch for
    as many vectors as L has rows and R columns.
    """

    def generate(
        b: Any, v: Vectors, source: Any, row: Any, col: Any, target: Any, target_row: Any, target_col: Any,
        between: Any,
    ) -> None:  # fmt: skip
        height, pitch = len(left), len(left) * VECTOR_BYTES

        def column(j: Any, _state: list[Any]) -> list[Any]:
            start = v.at(source, b.mul(col, j))
            tile = [v.load(v.at(start, b.mul(row, I64(i)))) for i in range(len(left[0]))]
            place = v.at(between, b.mul(j, I64(pitch)))
            for i, factors in enumerate(left):
                v.store(v.combination(factors, tile), v.at(place, i * VECTOR_BYTES))
            return []

        def line(i: Any, _state: list[Any]) -> list[Any]:
            start = v.at(between, b.mul(i, I64(VECTOR_BYTES)))
            tile = [v.load(v.at(start, j * pitch)) for j in range(len(right[0]))]
            place = v.at(target, b.mul(target_row, i))
            for j, factors in enumerate(right):
                v.store(v.combination(factors, tile), v.at(place, b.mul(target_col, I64(j))))
            return []

        loop(b, I64(len(right[0])), [], column)
        loop(b, I64(height), [], line)

    return generate


def move_vectors() -> Any:
    """Copies vectors. Arguments: target, bytes between vectors; source, the same; how many vectors."""

    def generate(b: Any, v: Vectors, target: Any, target_step: Any, source: Any, source_step: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            v.store(v.load(v.at(source, b.mul(i, source_step))), v.at(target, b.mul(i, target_step)))
            return []

        loop(b, count, [], body)

    return intrinsic_of(generate)


def spread_vectors() -> Any:
    """Copies vectors to where their elements lie apart; which of the variants is how far, up to 4 elements.

    Arguments: target, source, how many vectors. What lies between the elements of the target stays as it is.
    """
    return one_of({step: _spread(step) for step in (1, 2, 3, 4)})


def _spread(step: int) -> Generate:
    def generate(b: Any, v: Vectors, target: Any, source: Any, count: Any) -> None:
        numbers = ir.VectorType(I32, v.n)

        def body(i: Any, _state: list[Any]) -> list[Any]:
            value = v.load(v.at(source, b.mul(i, I64(VECTOR_BYTES))))
            place = v.at(target, b.mul(i, I64(step * VECTOR_BYTES)))
            for n in range(step):
                lanes = range(n * v.n, (n + 1) * v.n)
                found = b.shuffle_vector(value, value, ir.Constant(numbers, [lane // step for lane in lanes]))
                mask = ir.Constant(ir.VectorType(I1, v.n), [int(lane % step == 0) for lane in lanes])
                v.masked_store(found, v.at(place, n * VECTOR_BYTES), mask)
            return []

        loop(b, count, [], body)

    return generate


def move_elements() -> Any:
    """Copies elements. Arguments: target, bytes between elements; source, the same; how many, one at least."""

    def generate(b: Any, v: Vectors, target: Any, target_step: Any, source: Any, source_step: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            value = b.load(b.inttoptr(v.at(source, b.mul(i, source_step)), v.type.element.as_pointer()))
            b.store(value, b.inttoptr(v.at(target, b.mul(i, target_step)), v.type.element.as_pointer()))
            return []

        loop(b, count, [], body)

    return intrinsic_of(generate)


def finish_vectors() -> Any:
    """`target[n] = finish(source[n])` for vectors of channels.

    Arguments: target, bytes between its vectors, source, how many vectors, address of the channels' records, how many
    channels there are. Nothing beyond them is touched.
    """

    def generate(
        b: Any, v: Vectors, target: Any, target_step: Any, source: Any, count: Any, records: Any, channels: Any
    ) -> None:
        finish = Finish(v, [records], splat=False)
        inside = first_lanes(b, v, channels)

        def some(first: Any, many: int) -> None:
            values = [v.load(v.at(source, b.mul(b.add(first, I64(n)), I64(VECTOR_BYTES)))) for n in range(many)]
            places = [v.at(target, b.mul(b.add(first, I64(n)), target_step)) for n in range(many)]
            values = finish(values, places, [inside])
            with b.if_else(b.icmp_signed(">=", channels, I64(v.n))) as (whole, part):
                with whole:
                    for value, place in zip(values, places, strict=True):
                        v.store(value, place)
                with part:
                    for value, place in zip(values, places, strict=True):
                        v.masked_store(value, place, inside)

        in_groups(b, count, (ROWS, 1), some)

    return intrinsic_of(generate)


def pad_rows(phases: int) -> Generate:
    """Rows with zeros at both sides, their columns split by phase: `target[r, p, n] = row[r, phases * n + p - left]`.

    Arguments: target, bytes between its rows, between the phases of one; source, bytes between its rows; how many rows,
    how many zeros come before each, how many elements one has; how many vectors a phase has. Memory outside the rows is
    not touched.
    """

    def generate(
        b: Any, v: Vectors, target: Any, target_row: Any, phase_bytes: Any, source: Any, source_row: Any, rows: Any,
        left: Any, width: Any, count: Any,
    ) -> None:  # fmt: skip
        numbers = ir.VectorType(I32, v.n)
        steps = ir.Constant(numbers, list(range(v.n)))
        limit = v.splat(b.trunc(width, I32), numbers)

        def column(i: Any, _state: list[Any]) -> list[Any]:
            firsts = [b.sub(b.mul(b.add(b.mul(i, I64(phases)), I64(n)), I64(v.n)), left) for n in range(phases)]
            inside = [
                b.icmp_unsigned("<", b.add(v.splat(b.trunc(first, I32), numbers), steps), limit) for first in firsts
            ]
            starts = [v.at(source, b.mul(first, I64(v.size))) for first in firsts]
            out = v.at(target, b.mul(i, I64(VECTOR_BYTES)))

            def row(r: Any, _state: list[Any]) -> list[Any]:
                offset = b.mul(source_row, r)
                found = [v.masked_load(v.at(start, offset), mask) for start, mask in zip(starts, inside, strict=True)]
                for n in range(phases):
                    value = found[0]
                    if phases > 1:
                        order = ir.Constant(numbers, [phases * lane + n for lane in range(v.n)])
                        value = b.shuffle_vector(*found, order)
                    v.store(value, v.at(out, b.mul(target_row, r), b.mul(phase_bytes, I64(n))))
                return []

            return loop(b, rows, [], row)

        loop(b, count, [], column)

    return generate


def widen_weights() -> Any:
    """The taps of as many kernels as lanes in float64: `target[n] = source[n]` for so many vectors.

    Lanes of `mark` become 1 where a transform would lose digits of the kernel: see `Steps.transformable`. Arguments:
    target, source, how many vectors, mark, address of the smallest and the largest weight that keep all digits.
    """

    def generate(b: Any, v: Vectors, target: Any, source: Any, count: Any, mark: Any, limits: Any) -> None:
        def body(i: Any, state: list[Any]) -> list[Any]:
            largest, finite = state
            value = v.load(v.at(source, b.mul(i, I64(VECTOR_BYTES))))
            _store_wide(b, v, value, v.at(target, b.mul(i, I64(v.n * 8))))
            size = v.call("fabs", value)
            largest = b.select(b.fcmp_ordered(">", size, largest), size, largest)
            return [largest, b.fadd(finite, b.fsub(value, value))]  # NaN if one is not finite

        largest, finite = loop(b, count, [v.zero, v.zero], body)
        low, high = v.load_splat(limits), v.load_splat(v.at(limits, v.size))
        kept = b.and_(b.fcmp_ordered(">=", largest, low), b.fcmp_ordered("<=", largest, high))
        kept = b.or_(kept, b.fcmp_ordered("==", largest, v.zero))
        kept = b.and_(kept, b.fcmp_ordered("==", finite, v.zero))
        v.store(b.select(kept, v.load(mark), v.constant(Fraction(1))), mark)

    return intrinsic_of(generate)


def _wide(v: Vectors) -> Any:
    """float64 for as many lanes."""
    return ir.VectorType(ir.DoubleType(), v.n)


def _store_wide(b: Any, v: Vectors, value: Any, place: Any) -> None:
    wide = value if v.size == 8 else b.fpext(value, _wide(v))
    b.store(wide, b.inttoptr(place, wide.type.as_pointer())).align = 8


def round_vectors() -> Any:
    """`target[n] = source[n]` for vectors of float64 with as many lanes, rounded to the dtype of the computation.

    Arguments: target, bytes between its vectors; source; how many vectors.
    """

    def generate(b: Any, v: Vectors, target: Any, target_step: Any, source: Any, count: Any) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            value = b.load(b.inttoptr(v.at(source, b.mul(i, I64(v.n * 8))), _wide(v).as_pointer()))
            value.align = 8
            v.store(value if v.size == 8 else b.fptrunc(value, v.type), v.at(target, b.mul(i, target_step)))
            return []

        loop(b, count, [], body)

    return intrinsic_of(generate)
