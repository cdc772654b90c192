"""Runs of numbers: read into the dtype of the computation, and results written as numbers of any kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from .conversions import (
    KINDS,
    SIZES,
    chunks,
    every,
    gathered,
    loaded,
    narrowed,
    native,
    stored,
    switched,
    vector,
    widened,
)
from .epilogue import RECORD, Finish
from .vectors import I1, I32, I64, VECTOR_BYTES, Generate, Vectors, intrinsic_of, joined, loop, one_of

__all__ = [
    "PADDED_STEPS",
    "column_sums",
    "first_lanes",
    "padded_line",
    "put_line",
    "put_pixels",
    "put_square",
    "read_line",
    "scattered_square",
    "store_line",
    "turned_square",
]

# Dtypes of photographs and of networks.
IN_MILLIONS = ("uint8", "uint16", "float16", "bfloat16")
PADDED_STEPS = 4  # the longest steps of `padded_line`


def _apart(b: Any) -> None:
    """Have the function that is being written called and not copied into its callers: it is long."""
    b.function.attributes.add("noinline")


def read_line() -> Any:
    """`target[:n] = source[:n]`, in the dtype of the computation.

    Arguments: target, bytes between its elements; source, the same (of any sign); how many elements, the kind of the
    source. Nothing beyond the elements is touched.
    """

    def generate(
        b: Any, v: Vectors, target: Any, target_step: Any, source: Any, step: Any, count: Any, kind: Any
    ) -> None:  # fmt: skip
        def known(name: str, done: Any, inside: Any) -> None:
            of_name, place = ir.VectorType(ir.IntType(8 * SIZES[name]), v.n), v.at(source, b.mul(done, step))
            out = v.at(target, b.mul(done, target_step))
            if inside is None:
                v.store(widened(b, v, vector(b, of_name, place), name), out)
            else:
                v.masked_store(widened(b, v, v.masked_load(place, inside, of_name), name), out, inside)

        def any_chunk(done: Any) -> None:
            left = b.sub(count, done)
            value = loaded(b, v, v.at(source, b.mul(done, step)), step, left, kind)
            stored(b, v, value, v.at(target, b.mul(done, target_step)), target_step, left, v.size)

        _apart(b)
        as_it_is_now = b.and_(b.icmp_signed("==", kind, I64(native(v))), b.icmp_signed("==", step, I64(v.size)))
        as_it_is_now = b.and_(as_it_is_now, b.icmp_signed("==", target_step, I64(v.size)))
        with b.if_else(as_it_is_now) as (as_it_is, converted):
            with as_it_is:
                v.copy(target, source, count)
            with converted:
                as_runs = b.icmp_signed("==", target_step, I64(v.size))
                _chunk_by_chunk(b, v, count, kind, step, as_runs, known, any_chunk)

    return intrinsic_of(generate)


def _chunk_by_chunk(
    b: Any, v: Vectors, count: Any, kind: Any, step: Any, as_runs: Any, known: Callable[[str, Any, Any], None],
    any_chunk: Callable[[Any], None],
) -> None:  # fmt: skip
    """Code for all vectors of a run of numbers of a kind, `step` bytes from each other.

    `any_chunk(first)` is that for any vector. If `as_runs`, kinds that come in millions have code of their own where
    they lie side by side, which does not look at the kind for each vector: `known(name, first, inside)`, where `inside`
    is the mask of a vector that is not full, and None for the others.
    """

    def many(name: str) -> None:
        def body(i: Any, _state: list[Any]) -> list[Any]:
            known(name, b.mul(i, I64(v.n)), None)
            return []

        full = b.sdiv(count, I64(v.n))
        loop(b, full, [], body, may_be_none=True)
        done = b.mul(full, I64(v.n))
        with b.if_then(b.icmp_signed("<", done, count)):
            known(name, done, first_lanes(b, v, b.sub(count, done)))

    def each(i: Any, _state: list[Any]) -> list[Any]:
        any_chunk(b.mul(i, I64(v.n)))
        return []

    number: Any = I64(-1)
    for name in IN_MILLIONS:
        this = b.and_(b.icmp_signed("==", kind, I64(KINDS.index(name))), b.icmp_signed("==", step, I64(SIZES[name])))
        number = b.select(b.and_(this, as_runs), kind, number)
    names: dict[int, str | None] = {KINDS.index(name): name for name in IN_MILLIONS}
    others: Any = partial(loop, b, chunks(b, v, count), [], each)
    switched(b, number, {**names, -1: None}, lambda name: others() if name is None else many(name))


def padded_line() -> Any:
    """`target[j] = source[j * step]` where `low <= j < high`, and zero elsewhere, for all j below `count`.

    For numbers in the dtype of the computation; which of the variants is the step, up to `PADDED_STEPS`. Arguments:
    target, source (where element 0 would be, were it there), count, low, high. Nothing beyond these is touched.
    """
    return one_of({step: _padded(step) for step in range(1, PADDED_STEPS + 1)})


def _padded(step: int) -> Generate:
    def generate(b: Any, v: Vectors, target: Any, source: Any, count: Any, low: Any, high: Any) -> None:
        numbers = ir.VectorType(I32, v.n)  # half as wide as 64 bits, and enough for a row
        first = b.mul(low, I64(step))
        length = b.select(b.icmp_signed(">", high, low), b.sub(b.mul(b.sub(high, I64(1)), I64(step)), first), I64(-1))
        length = v.splat(b.trunc(b.add(length, I64(1)), I32), numbers)

        def body(i: Any, _state: list[Any]) -> list[Any]:
            done = b.mul(i, I64(v.n))
            here = b.mul(done, I64(step))
            places = [v.at(source, b.mul(here, I64(v.size)), n * VECTOR_BYTES) for n in range(step)]
            # the last of several vectors may reach beyond the element that is wanted last
            end = b.add(done, I64(v.n - 1 if step == 1 else v.n))
            whole = b.and_(b.icmp_signed(">=", done, low), b.icmp_signed("<", end, high))
            with b.if_else(whole) as (inside, edge):
                with inside:
                    read = every(b, [v.load(place) for place in places], v.n)
                    read_block = b.block
                with edge:
                    start = v.splat(b.trunc(b.sub(here, first), I32), numbers)
                    parts = []
                    for n, place in enumerate(places):
                        lane_numbers = ir.Constant(numbers, [n * v.n + lane for lane in range(v.n)])
                        mask = b.icmp_unsigned("<", b.add(start, lane_numbers), length)
                        parts.append(v.masked_load(place, mask))
                    masked = every(b, parts, v.n)
                    masked_block = b.block
            (value,) = joined(b, ([read], read_block), ([masked], masked_block))
            left = b.sub(count, done)
            place = v.at(target, b.mul(done, I64(v.size)))
            with b.if_else(b.icmp_signed(">=", left, I64(v.n))) as (all_of_it, part):
                with all_of_it:
                    v.store(value, place)
                with part:
                    lane_numbers = ir.Constant(numbers, list(range(v.n)))
                    v.masked_store(value, place, b.icmp_signed("<", lane_numbers, v.splat(b.trunc(left, I32), numbers)))
            return []

        loop(b, chunks(b, v, count), [], body)

    return generate


def put_line(*, add: bool) -> Any:
    """`target[:n] = finish(source[:n])`, or `finish(target[:n] + source[:n])` if `add`, for sums of one channel.

    Arguments: target, bytes between its elements, source, how many elements, address of the record, kind
    of the target, which must be the dtype of the computation if `add`. Up to a vector beyond the source is read.
    """

    def generate(
        b: Any, v: Vectors, target: Any, step: Any, source: Any, count: Any, record: Any, kind: Any
    ) -> None:  # fmt: skip
        _apart(b)
        finish = Finish(v, [record], splat=True)

        def known(name: str, done: Any, inside: Any) -> None:
            value = narrowed(b, v, finish([v.load(v.at(source, b.mul(done, I64(v.size))))])[0], name)
            place = v.at(target, b.mul(done, step))
            if inside is None:
                b.store(value, b.inttoptr(place, value.type.as_pointer())).align = 1
            else:
                v.masked_store(value, place, inside)

        def any_chunk(done: Any) -> None:
            left = b.sub(count, done)
            place = v.at(target, b.mul(done, step))
            value = v.load(v.at(source, b.mul(done, I64(v.size))))
            if add:
                bits = gathered(b, v, place, step, left, v.size)
                value = b.fadd(b.bitcast(bits, v.type), value)
            put(b, v, finish([value])[0], place, step, left, kind)

        _chunk_by_chunk(b, v, count, kind, step, I1(not add), known, any_chunk)

    return intrinsic_of(generate)


def store_line(*, add: bool) -> Any:
    """`put_line` for results in the dtype of the computation that lie side by side, as most do.

    Arguments: target, source, how many elements, address of the record. Up to a vector beyond the source is read.
    """

    def generate(b: Any, v: Vectors, target: Any, source: Any, count: Any, record: Any) -> None:
        finish = Finish(v, [record], splat=True)

        def body(i: Any, _state: list[Any]) -> list[Any]:
            done = b.mul(i, I64(v.n))
            offset = b.mul(done, I64(v.size))
            place = v.at(target, offset)
            inside = first_lanes(b, v, b.sub(count, done))
            value = v.load(v.at(source, offset))
            if add:
                value = b.fadd(v.masked_load(place, inside), value)
            (value,) = finish([value], [place], [inside])
            with b.if_else(b.icmp_signed(">=", b.sub(count, done), I64(v.n))) as (whole, part):
                with whole:
                    v.store(value, place)
                with part:
                    v.masked_store(value, place, inside)
            return []

        loop(b, chunks(b, v, count), [], body)

    return intrinsic_of(generate)


def put_pixels() -> Any:
    """`target[:n] = finish(source[:n])` for sums of pixels, whose channels lie side by side in both.

    Arguments: target, bytes between its elements, source, how many elements, address of the records (see
    `gather_phases`), kind of the target, channel of the first element, channels.
    """

    def generate(
        b: Any, v: Vectors, target: Any, step: Any, source: Any, count: Any, records: Any, kind: Any, phase: Any,
        channels: Any,
    ) -> None:  # fmt: skip
        _apart(b)

        def body(i: Any, state: list[Any]) -> list[Any]:
            done = b.mul(i, I64(v.n))
            finish = Finish(v, [v.at(records, b.mul(state[0], I64(RECORD * v.n * v.size)))], splat=False)
            (value,) = finish([v.load(v.at(source, b.mul(done, I64(v.size))))])
            put(b, v, value, v.at(target, b.mul(done, step)), step, b.sub(count, done), kind)
            return [b.srem(b.add(state[0], I64(v.n)), channels)]

        loop(b, chunks(b, v, count), [phase], body)

    return intrinsic_of(generate)


def column_sums(rows: int, vectors: int, kind: int | None) -> Generate:
    """`out[r, :] = sum over k of weight[k] * image[r + k, :]` for `rows` lines; at least as many terms as lines.

    Every line of the image is read once, in numbers of a kind, or of the computation's for None.

    Arguments: address of a table of the lines' addresses, offset in bytes from there, address of the weight, terms,
    out, bytes between its lines.
    """

    def generate(
        b: Any, v: Vectors, table: Any, offset: Any, weight: Any, terms: Any, out: Any, out_line: Any
    ) -> None:  # fmt: skip
        name = KINDS[native(v) if kind is None else kind]
        bits = ir.VectorType(ir.IntType(8 * SIZES[name]), v.n)

        def line(t: Any) -> list[Any]:
            place = b.load(b.inttoptr(v.at(table, b.mul(t, I64(8))), I64.as_pointer()))
            return [
                widened(b, v, vector(b, bits, v.at(place, offset, n * v.n * SIZES[name])), name) for n in range(vectors)
            ]

        def added(t: Any, sums: list[Any], which: range) -> list[Any]:
            values, sums = line(t), list(sums)
            for r in which:
                factor = v.load_splat(v.at(weight, b.mul(b.sub(t, I64(r)), I64(v.size))))
                for n, value in enumerate(values):
                    sums[r * vectors + n] = v.fma(value, factor, sums[r * vectors + n])
            return sums

        sums = [v.zero] * (rows * vectors)
        for t in range(rows - 1):
            sums = added(I64(t), sums, range(t + 1))
        whole = b.sub(terms, I64(rows - 1))
        sums = loop(b, whole, sums, lambda k, state: added(b.add(k, I64(rows - 1)), state, range(rows)))
        for t in range(rows - 1):
            sums = added(b.add(terms, I64(t)), sums, range(t + 1, rows))
        for r in range(rows):
            for n in range(vectors):
                v.store(sums[r * vectors + n], v.at(out, b.mul(out_line, I64(r)), n * VECTOR_BYTES))

    return generate


def put(b: Any, v: Vectors, value: Any, place: Any, step: Any, left: Any, kind: Any) -> None:
    """Store a vector of results, or the first `left` of it, as numbers of a kind, `step` bytes from each other."""

    def converted(name: str) -> None:
        stored(b, v, narrowed(b, v, value, name), place, step, left, SIZES[name])

    with b.if_else(b.icmp_signed("==", kind, I64(native(v))), likely=True) as (same, other):
        with same:
            stored(b, v, value, place, step, left, v.size)
        with other:
            switched(b, kind, {n: name for n, name in enumerate(KINDS) if n != native(v)}, converted)


def turned_square(name: str | None) -> Generate:
    """`target[j, :] = source[:, j]` for as many rows as lanes, of this dtype or, for None, the computation's.

    Arguments: target; source, bytes between its rows; how many columns there are, others becoming zero. Nothing beyond
    them is touched.
    """

    def generate(b: Any, v: Vectors, target: Any, source: Any, source_row: Any, count: Any) -> None:
        name_of = name or KINDS[native(v)]
        bits = ir.VectorType(ir.IntType(8 * SIZES[name_of]), v.n)
        inside = first_lanes(b, v, count)
        with b.if_else(b.icmp_signed(">=", count, I64(v.n))) as (whole, part):
            found = []
            for block, masked in ((whole, False), (part, True)):
                with block:
                    places = [v.at(source, b.mul(source_row, I64(i))) for i in range(v.n)]
                    rows = [v.masked_load(p, inside, bits) if masked else vector(b, bits, p) for p in places]
                    found.append((rows, b.block))
        for j, column in enumerate(v.transposed([widened(b, v, row, name_of) for row in joined(b, *found)])):
            v.store(column, v.at(target, j * VECTOR_BYTES))

    return generate


def scattered_square(name: str | None) -> Generate:
    """As `turned_square` for full rows, which go to where a table of offsets in bytes says.

    Arguments: target, address of the table; source, bytes between its rows.
    """

    def generate(b: Any, v: Vectors, target: Any, table: Any, source: Any, source_row: Any) -> None:
        name_of = name or KINDS[native(v)]
        bits = ir.VectorType(ir.IntType(8 * SIZES[name_of]), v.n)
        rows = [widened(b, v, vector(b, bits, v.at(source, b.mul(source_row, I64(i)))), name_of) for i in range(v.n)]
        for i, row in enumerate(v.transposed(rows)):
            offset = b.load(b.inttoptr(v.at(table, 8 * i), I64.as_pointer()))
            v.store(row, v.at(target, offset))

    return generate


def put_square(name: str | None) -> Generate:
    """`target[i, j] = finish(source[j, i])` for as many rows as lanes, as numbers of this dtype, or the computation's.

    Arguments: target, bytes between its rows, source, address of the first row's record, bytes between the records of
    rows, how many columns there are. Nothing beyond them is touched.
    """

    def generate(
        b: Any, v: Vectors, target: Any, target_row: Any, source: Any, records: Any, record_step: Any, count: Any
    ) -> None:
        rows = v.transposed([v.load(v.at(source, j * VECTOR_BYTES)) for j in range(v.n)])
        places = [v.at(target, b.mul(target_row, I64(i))) for i in range(v.n)]
        inside = first_lanes(b, v, count)
        finish = Finish(v, [v.at(records, b.mul(record_step, I64(i))) for i in range(v.n)], splat=True)
        # the residual is in the dtype of the computation, or added elsewhere
        values = finish(rows, places if name is None else (), [inside])
        if name is not None:
            values = [narrowed(b, v, value, name) for value in values]
        with b.if_else(b.icmp_signed(">=", count, I64(v.n))) as (whole, part):
            with whole:
                for value, place in zip(values, places, strict=True):
                    b.store(value, b.inttoptr(place, value.type.as_pointer())).align = 1
            with part:
                for value, place in zip(values, places, strict=True):
                    v.masked_store(value, place, inside)

    return generate


def first_lanes(b: Any, v: Vectors, count: Any) -> Any:
    """The mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(I64, v.n), list(range(v.n)))
    return b.icmp_signed("<", numbers, v.splat(count, numbers.type))
