"""The innermost loops of the weight's gradient: sums over positions, in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..vectors import I32, I64, VECTOR_BYTES, Generate, Vectors, joined, loop

__all__ = ["position_products", "tap_products"]


def position_products(rows: int, vectors: int) -> Generate:
    """`out[r, :] = sum over (i, j) of one[r, i, j] * other[i, j, :]`: the outer products of two things at positions.

    Arguments: address of one[0, 0, 0], bytes between its rows, its columns j, its lines i; address of other[0, 0, 0],
    bytes between its vectors, its columns, its lines; how many lines, columns; out (rows, vectors x lanes), and whether
    to go on from the sums that are there.
    """

    def generate(
        b: Any, v: Vectors, one: Any, one_row: Any, one_col: Any, one_line: Any, other: Any, other_vector: Any,
        other_col: Any, other_line: Any, lines: Any, cols: Any, out: Any, go_on: Any,
    ) -> None:  # fmt: skip
        across = [b.mul(one_row, I64(r)) for r in range(rows)]
        along = [b.mul(other_vector, I64(n)) for n in range(vectors)]

        def line(i: Any, sums: list[Any]) -> list[Any]:
            begin, panel = v.at(one, b.mul(i, one_line)), v.at(other, b.mul(i, other_line))
            starts, panels = [v.at(begin, offset) for offset in across], [v.at(panel, offset) for offset in along]

            def position(j: Any, sums: list[Any]) -> list[Any]:
                here, there = b.mul(j, one_col), b.mul(j, other_col)
                values = [v.load(v.at(place, there)) for place in panels]
                added = []
                for r, place in enumerate(starts):
                    factor = v.load_splat(v.at(place, here))
                    added += [v.fma(value, factor, sums[r * vectors + n]) for n, value in enumerate(values)]
                return added

            return loop(b, cols, sums, position)

        places, before = [v.at(out, n * VECTOR_BYTES) for n in range(rows * vectors)], b.block
        with b.if_then(b.icmp_signed("!=", go_on, I64(0))):
            found = [v.load(place) for place in places]
            after = b.block
        sums = joined(b, ([v.zero] * len(places), before), (found, after))
        for total, place in zip(loop(b, lines, sums, line), places, strict=True):
            v.store(total, place)

    return generate


def tap_products(width: int) -> Generate:
    """`out[n, lane] += sum over i of one[i, lane] * other[n, i, lane]`, with positions in the lanes, for some taps.

    Arguments: address of one, of other; a table of where each tap's begins, in bytes; how many vectors; how many
    positions come after these, less than a vector has, beyond which nothing is read; out (width vectors).
    """

    def generate(b: Any, v: Vectors, one: Any, other: Any, table: Any, count: Any, rest: Any, out: Any) -> None:
        places = [v.at(other, b.load(b.inttoptr(v.at(table, n * 8), I64.as_pointer()))) for n in range(width)]
        targets = [v.at(out, n * VECTOR_BYTES) for n in range(width)]

        def vector(i: Any, sums: list[Any]) -> list[Any]:
            here = b.mul(i, I64(VECTOR_BYTES))
            factor = v.load(v.at(one, here))
            return [v.fma(factor, v.load(v.at(place, here)), total) for place, total in zip(places, sums, strict=True)]

        sums = loop(b, count, [v.load(target) for target in targets], vector, may_be_none=True)
        for total, target in zip(sums, targets, strict=True):
            v.store(total, target)
        with b.if_then(b.icmp_signed(">", rest, I64(0))):
            numbers = ir.VectorType(I32, v.n)
            limit = v.splat(b.trunc(rest, I32), numbers)
            inside = b.icmp_signed("<", ir.Constant(numbers, list(range(v.n))), limit)
            here = b.mul(count, I64(VECTOR_BYTES))
            factor = v.masked_load(v.at(one, here), inside)
            for place, target in zip(places, targets, strict=True):
                value = v.masked_load(v.at(place, here), inside)
                v.store(v.fma(factor, value, v.load(target)), target)

    return generate
