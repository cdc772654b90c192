"""The innermost loops of pooling and interpolation: vectors joined and mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..runs import first_lanes
from ..vectors import I64, VECTOR_BYTES, Generate, Vectors, loop

__all__ = ["added", "joined", "larger", "mixed"]


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
