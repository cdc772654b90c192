"""The innermost loops of pooling and interpolation: vectors joined and mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..runs import first_lanes
from ..vectors import I32, I64, VECTOR_BYTES, Generate, Vectors, in_groups, loop

__all__ = ["added", "channel_means", "joined", "larger", "mixed", "plane_means"]

ABREAST = 4  # vectors that are added at a time, none of which waits for another
RUN = 64  # numbers that are added one after the other


def larger(v: Vectors, a: Any, c: Any) -> Any:
    """The later one only where it is larger, or NaN."""
    larger = v.b.select(v.b.fcmp_ordered(">", c, a), c, a)
    return v.b.select(v.b.fcmp_unordered("uno", c, c), c, larger)


def added(v: Vectors, a: Any, c: Any) -> Any:
    """The sum."""
    return v.b.fadd(a, c)


def _elements(b: Any, v: Vectors, count: Any, block: Callable[[Any, Any], None]) -> None:
    """Code for so many elements: `block(offset, inside)`, with a mask for a vector that is not full."""

    def body(i: Any, _state: list[Any]) -> list[Any]:
        block(b.mul(i, I64(VECTOR_BYTES)), None)
        return []

    loop(b, b.sdiv(count, I64(v.n)), [], body, may_be_none=True)
    rest = b.srem(count, I64(v.n))
    with b.if_then(b.icmp_signed(">", rest, I64(0))):
        block(b.mul(b.sub(count, rest), I64(v.size)), first_lanes(b, v, rest))


def _loaded(v: Vectors, place: Any, inside: Any) -> Any:
    return v.load(place) if inside is None else v.masked_load(place, inside)


def _store(v: Vectors, value: Any, place: Any, inside: Any) -> None:
    if inside is None:
        v.store(value, place)
    else:
        v.masked_store(value, place, inside)


def joined(join: Callable[[Vectors, Any, Any], Any], neutral: float, *, divided: bool = False) -> Generate:
    """`target[o, :] = join of source[o, i, k, :] over all i and k`, for so many outputs.

    Arguments: target, bytes between its outputs; source, the same; how many outputs; bytes between the rows of a
    window, how many; bytes between its columns, how many; elements of each; addresses of the counts of the row and of
    the first column, whose products sums are `divided` by.
    """

    def generate(
        b: Any, v: Vectors, target: Any, target_step: Any, source: Any, source_step: Any, outputs: Any, row_step: Any,
        rows: Any, col_step: Any, cols: Any, count: Any, row_count: Any, col_counts: Any,
    ) -> None:  # fmt: skip
        nothing = ir.Constant(v.type, [neutral] * v.n)

        def output(o: Any, _state: list[Any]) -> list[Any]:
            window, place = v.at(source, b.mul(o, source_step)), v.at(target, b.mul(o, target_step))
            divisor = None
            if divided:
                both = (v.load_splat(row_count), v.load_splat(v.at(col_counts, b.mul(o, I64(v.size)))))
                divisor = b.fmul(*both)

            def block(offset: Any, inside: Any) -> None:
                def row(i: Any, state: list[Any]) -> list[Any]:
                    first = v.at(window, b.mul(i, row_step), offset)

                    def col(k: Any, state: list[Any]) -> list[Any]:
                        return [join(v, state[0], _loaded(v, v.at(first, b.mul(k, col_step)), inside))]

                    return loop(b, cols, state, col)

                (value,) = loop(b, rows, [nothing], row, may_be_none=True)
                _store(v, value if divisor is None else b.fdiv(value, divisor), v.at(place, offset), inside)

            _elements(b, v, count, block)
            return []

        loop(b, outputs, [], output)

    return generate


def plane_means() -> Generate:
    """`target[p] = sum of source[p, :] / divisor`, planes that follow each other in memory.

    Arguments: target, source, how many planes, elements of each, address of the divisor. As many numbers are added one
    after the other as a plane has for each lane of `ABREAST` vectors; what the lanes have, is added in pairs.
    """

    def generate(b: Any, v: Vectors, target: Any, source: Any, planes: Any, count: Any, divisor: Any) -> None:
        number = b.load(b.inttoptr(divisor, v.element.as_pointer()))

        def plane(p: Any, _state: list[Any]) -> list[Any]:
            first = v.at(source, b.mul(b.mul(p, count), I64(v.size)))

            def several(i: Any, sums: list[Any]) -> list[Any]:
                place = v.at(first, b.mul(i, I64(ABREAST * VECTOR_BYTES)))
                return [b.fadd(total, v.load(v.at(place, k * VECTOR_BYTES))) for k, total in enumerate(sums)]

            def one(i: Any, sums: list[Any]) -> list[Any]:
                return [b.fadd(sums[0], v.load(v.at(first, b.mul(i, I64(VECTOR_BYTES)))))]

            groups, whole = b.sdiv(count, I64(ABREAST * v.n)), b.sdiv(count, I64(v.n))
            sums = loop(b, groups, [v.zero] * ABREAST, several, may_be_none=True)
            done = b.mul(groups, I64(ABREAST))
            (sums[0],) = loop(b, b.sub(whole, done), sums[:1], lambda i, s: one(b.add(i, done), s), may_be_none=True)
            at_end = b.mul(whole, I64(v.n))
            rest = v.masked_load(v.at(first, b.mul(at_end, I64(v.size))), first_lanes(b, v, b.sub(count, at_end)))
            sums[1] = b.fadd(sums[1], rest)
            total, lanes = b.fadd(b.fadd(sums[0], sums[1]), b.fadd(sums[2], sums[3])), v.n
            while lanes > 1:
                lanes //= 2
                order = ir.Constant(ir.VectorType(I32, v.n), [(k + lanes) % v.n for k in range(v.n)])
                total = b.fadd(total, b.shuffle_vector(total, total, order))
            value = b.fdiv(b.extract_element(total, I32(0)), number)
            b.store(value, b.inttoptr(v.at(target, b.mul(p, I64(v.size))), v.element.as_pointer()))
            return []

        loop(b, planes, [], plane)

    return generate


def channel_means() -> Generate:
    """`target[c] = sum of source[:, c] / divisor`, of pixels whose channels lie side by side.

    Arguments: target, source, bytes between pixels, how many of them, how many channels, address of the divisor. `RUN`
    pixels are added one after the other, and then their sums.
    """

    def generate(
        b: Any, v: Vectors, target: Any, source: Any, step: Any, pixels: Any, count: Any, divisor: Any
    ) -> None:
        number, runs = v.load_splat(divisor), b.sdiv(b.add(pixels, I64(RUN - 1)), I64(RUN))

        def means(first: Any, many: int, inside: Any) -> None:
            offset = b.mul(first, I64(VECTOR_BYTES))

            def run(i: Any, sums: list[Any]) -> list[Any]:
                start = b.mul(i, I64(RUN))
                left = b.sub(pixels, start)
                length = b.select(b.icmp_signed("<", left, I64(RUN)), left, I64(RUN))

                def pixel(k: Any, sums: list[Any]) -> list[Any]:
                    place = v.at(source, b.mul(b.add(start, k), step), offset)
                    values = [_loaded(v, v.at(place, n * VECTOR_BYTES), inside) for n in range(many)]
                    return [b.fadd(total, value) for total, value in zip(sums, values, strict=True)]

                found = loop(b, length, [v.zero] * many, pixel)
                return [b.fadd(total, value) for total, value in zip(sums, found, strict=True)]

            for n, total in enumerate(loop(b, runs, [v.zero] * many, run)):
                _store(v, b.fdiv(total, number), v.at(target, offset, n * VECTOR_BYTES), inside)

        whole = b.sdiv(count, I64(v.n))
        in_groups(b, whole, (ABREAST, 1), lambda first, many: means(first, many, None))
        rest = b.srem(count, I64(v.n))
        with b.if_then(b.icmp_signed(">", rest, I64(0))):
            means(whole, 1, first_lanes(b, v, rest))

    return generate


def mixed(*, linear: bool) -> Generate:
    """`target[o, :] = source[low[o], :] * (1 - share[o]) + source[high[o], :] * share[o]`, or `source[low[o], :]`.

    Arguments: target, bytes between its outputs; source, bytes between its cells; how many outputs; addresses of the
    three tables; elements of each.
    """

    def generate(
        b: Any, v: Vectors, target: Any, target_step: Any, source: Any, source_step: Any, outputs: Any, low: Any,
        high: Any, share: Any, count: Any,
    ) -> None:  # fmt: skip
        def output(o: Any, _state: list[Any]) -> list[Any]:
            def cell(indices: Any) -> Any:
                index = b.load(b.inttoptr(v.at(indices, b.mul(o, I64(8))), I64.as_pointer()))
                return v.at(source, b.mul(index, source_step))

            place, ends = v.at(target, b.mul(o, target_step)), [cell(low)]
            if linear:
                ends.append(cell(high))
                after = v.load_splat(v.at(share, b.mul(o, I64(v.size))))
                before = b.fsub(ir.Constant(v.type, [1.0] * v.n), after)

            def block(offset: Any, inside: Any) -> None:
                value, *others = (_loaded(v, v.at(end, offset), inside) for end in ends)
                if linear:
                    value = b.fadd(b.fmul(value, before), b.fmul(others[0], after))
                _store(v, value, v.at(place, offset), inside)

            _elements(b, v, count, block)
            return []

        loop(b, outputs, [], output)

    return generate
