"""The innermost loops: sums of products in tiles of vector registers.

Sources: Goto, van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008), for the register
tile; Dukhan, "The indirect convolution algorithm", arXiv 1907.02129, for operands addressed by a table.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .epilogue import RECORD, RECORD_BYTES, Finish, prefetch_residual
from .vectors import I32, I64, OUTPUT_VECTORS, VECTOR_BYTES, Generate, Vectors, loop

__all__ = [
    "ASKED_AHEAD",
    "AS_USUAL",
    "PAST_CACHES",
    "broadcast_products",
    "channel_sums",
    "finished_products",
    "pixel_products",
    "row_products",
    "shifted_products",
    "stencil_sums",
    "tap_sums",
]

# How results are stored whose rows lie far from each other, where no processor foresees what is written next: where
# they come from a cache, asking for them ahead costs two percent, and where they come from memory, it saves ten.
AS_USUAL, PAST_CACHES, ASKED_AHEAD = range(3)


def shifted_products(rows: int, vectors: int) -> Generate:
    """`out[r, :] = sum over k of weight[k, r] * memory[base + table[k] + (0, 1, 2, ...)]`, ROWS by vectors x lanes.

    Arguments: base, table, weight, terms, out, partial sums. Weight is (terms, rows), out (rows, vectors x lanes). So
    many partial sums of terms before these, which lie at `out` one after the other, are added first, the last one of
    them before the others.
    """

    def generate(b: Any, v: Vectors, base: Any, table: Any, weight: Any, terms: Any, out: Any, count: Any) -> None:
        sums = _with_partial_sums(b, v, v.products(base, table, weight, terms, rows, vectors), out, count)
        for i, total in enumerate(sums):
            v.store(total, v.at(out, i * v.n * v.size))

    return generate


def finished_products(rows: int, vectors: int) -> Generate:
    """`shifted_products` that writes results, `out[r, :] = finish(sum)`.

    Arguments: base, table, weight, terms, out, bytes between its rows, address of the first row's record, address of
    partial sums of terms before these, how many there are, and how to store: `AS_USUAL`, `PAST_CACHES`, or
    `ASKED_AHEAD`. The last partial sum is added first. Results that go past the caches must be aligned to vectors.
    """

    def generate(
        b: Any, v: Vectors, base: Any, table: Any, weight: Any, terms: Any, out: Any, out_row: Any, records: Any,
        partial: Any, count: Any, stores: Any,
    ) -> None:  # fmt: skip
        lines = [v.at(out, b.mul(out_row, I64(r))) for r in range(rows)]
        places = [v.at(line, j * VECTOR_BYTES) for line in lines for j in range(vectors)]
        of_rows = [v.at(records, r * RECORD_BYTES) for r in range(rows)]
        with b.if_then(b.icmp_signed("==", stores, I64(ASKED_AHEAD))):
            for place in places:
                v.prefetch(place, write=True)
            prefetch_residual(v, records, places)
        sums = _with_partial_sums(b, v, v.products(base, table, weight, terms, rows, vectors), partial, count)
        results = Finish(v, [of_rows[i // vectors] for i in range(rows * vectors)], splat=True)(sums, places)
        with b.if_else(b.icmp_signed("==", stores, I64(PAST_CACHES))) as (past_caches, otherwise):
            with past_caches:
                for value, place in zip(results, places, strict=True):
                    v.stream(value, place)
            with otherwise:
                for value, place in zip(results, places, strict=True):
                    v.store(value, place)

    return generate


def _with_partial_sums(b: Any, v: Vectors, sums: list[Any], partial: Any, count: Any) -> list[Any]:
    """The sums of a tile, with so many partial ones from an address on; the last is added first."""

    def add(n: Any, sums: list[Any]) -> list[Any]:
        place = v.at(partial, b.mul(b.sub(b.sub(count, n), I64(1)), I64(len(sums) * VECTOR_BYTES)))
        return [b.fadd(v.load(v.at(place, i * VECTOR_BYTES)), total) for i, total in enumerate(sums)]

    return loop(b, count, sums, add, may_be_none=True)


def broadcast_products(pixels: int) -> Generate:
    """`out[n, :] = sum over k of weight[k, :] * memory[base + table[k] + n]`: the same with outputs in the lanes.

    Arguments as in `shifted_products`. Weight is (terms, OUTPUT_VECTORS x lanes), out (pixels, OUTPUT_VECTORS x lanes).
    """

    def generate(b: Any, v: Vectors, base: Any, table: Any, weight: Any, terms: Any, out: Any, count: Any) -> None:

        def body(k: Any, sums: list[Any]) -> list[Any]:
            offset = b.load(b.inttoptr(v.at(table, b.mul(k, I64(8))), I64.as_pointer()))
            line = v.at(weight, b.mul(k, I64(OUTPUT_VECTORS * VECTOR_BYTES)))
            factors = [v.load(v.at(line, j * VECTOR_BYTES)) for j in range(OUTPUT_VECTORS)]
            added = []
            for n in range(pixels):
                value = v.load_splat(v.at(base, offset, n * v.size))
                added += [v.fma(factor, value, sums[n * OUTPUT_VECTORS + j]) for j, factor in enumerate(factors)]
            return added

        sums = loop(b, terms, [v.zero] * (pixels * OUTPUT_VECTORS), body)
        for i, total in enumerate(_with_partial_sums(b, v, sums, out, count)):
            v.store(total, v.at(out, i * VECTOR_BYTES))

    return generate


def pixel_products(pixels: int, vectors: int) -> Generate:
    """`out[n, :] = finish(sum over r, k of weight[r, k, :] * memory[base + table[r] + first + n * step + k])`.

    Pixels by vectors of outputs. Arguments: base, bytes between pixels; address of a table of where runs of terms
    begin, in bytes, how many runs there are, bytes from there to the first term; weight (runs, terms, vectors x lanes),
    terms of each run; out, bytes between its pixels, address of the outputs' records, how many outputs are stored at
    most; address of partial sums of terms before these, how many there are, of which the last is added first.
    """
    stride = 3  # pixels that are addressed from one place, so that few registers hold addresses

    def generate(
        b: Any, v: Vectors, base: Any, step: Any, table: Any, runs: Any, first: Any, weight: Any, terms: Any, out: Any,
        out_step: Any, records: Any, count: Any, partial: Any, depth: Any,
    ) -> None:  # fmt: skip
        def run(r: Any, sums: list[Any]) -> list[Any]:
            offset = b.load(b.inttoptr(v.at(table, b.mul(r, I64(8))), I64.as_pointer()))
            start = v.at(base, offset, first)
            places = [v.at(start, b.mul(step, I64(n))) for n in range(0, pixels, stride)]
            factors = v.at(weight, b.mul(b.mul(r, terms), I64(vectors * VECTOR_BYTES)))

            def term(k: Any, sums: list[Any]) -> list[Any]:
                line = v.at(factors, b.mul(k, I64(vectors * VECTOR_BYTES)))
                loaded = [v.load(v.at(line, j * VECTOR_BYTES)) for j in range(vectors)]
                here = b.mul(k, I64(v.size))
                added = []
                for n in range(pixels):
                    value = v.load_splat(v.at(places[n // stride], b.mul(step, I64(n % stride)), here))
                    added += [v.fma(factor, value, sums[n * vectors + j]) for j, factor in enumerate(loaded)]
                return added

            return loop(b, terms, sums, term)

        sums = loop(b, runs, [v.zero] * (pixels * vectors), run)
        sums = _with_partial_sums(b, v, sums, partial, depth)
        finish = Finish(v, [v.at(records, j * RECORD * VECTOR_BYTES) for j in range(vectors)], splat=False)
        places = [v.at(out, b.mul(out_step, I64(n)), j * VECTOR_BYTES) for n in range(pixels) for j in range(vectors)]
        numbers = ir.VectorType(I32, v.n)
        limit = v.splat(b.trunc(count, I32), numbers)
        steps = [ir.Constant(numbers, [j * v.n + lane for lane in range(v.n)]) for j in range(vectors)]
        masks = [b.icmp_signed("<", one, limit) for one in steps]
        results = finish(sums, places, masks)
        with b.if_else(b.icmp_signed(">=", count, I64(vectors * v.n))) as (whole, part):
            with whole:
                for value, place in zip(results, places, strict=True):
                    v.store(value, place)
            with part:
                for i, (value, place) in enumerate(zip(results, places, strict=True)):
                    v.masked_store(value, place, masks[i % vectors])

    return generate


def row_products(rows: int, vectors: int) -> Generate:
    """`out[r, :] (+)= sum over k of a[r, k] * panel[k, :]`: a tile of an ordinary matrix product.

    Arguments: a, bytes between its rows, panel (terms, vectors x lanes), terms, out, bytes between its
    rows, and whether to add to what is there.
    """

    def generate(
        b: Any, v: Vectors, a: Any, a_stride: Any, panel: Any, terms: Any, out: Any, out_stride: Any, add: Any
    ) -> None:
        starts = [v.at(a, b.mul(a_stride, I64(r))) for r in range(rows)]

        def body(k: Any, sums: list[Any]) -> list[Any]:
            line = v.at(panel, b.mul(k, I64(vectors * v.n * v.size)))
            values = [v.load(v.at(line, j * v.n * v.size)) for j in range(vectors)]
            offset = b.mul(k, I64(v.size))
            added = []
            for r in range(rows):
                factor = v.load_splat(v.at(starts[r], offset))
                added += [v.fma(value, factor, sums[r * vectors + j]) for j, value in enumerate(values)]
            return added

        sums = loop(b, terms, [v.zero] * (rows * vectors), body)
        places = [v.at(out, b.mul(out_stride, I64(r)), j * v.n * v.size) for r in range(rows) for j in range(vectors)]
        with b.if_else(b.icmp_signed("!=", add, I64(0))) as (then, otherwise):
            with then:
                for total, place in zip(sums, places, strict=True):
                    v.store(b.fadd(v.load(place), total), place)
            with otherwise:
                for total, place in zip(sums, places, strict=True):
                    v.store(total, place)

    return generate


def channel_sums(width: int, step: int) -> Generate:
    """`out[n] = sum over (i, j) of one[i, j] * other[i, j + n * step]`, all of them vectors of channels.

    Arguments: address of one[0, 0], bytes between its rows, between its columns; the same of other;
    how many rows, columns; out (width vectors).
    """

    def generate(
        b: Any, v: Vectors, one: Any, one_row: Any, one_col: Any, other: Any, other_row: Any, other_col: Any,
        rows: Any, cols: Any, out: Any,
    ) -> None:  # fmt: skip

        def row(i: Any, sums: list[Any]) -> list[Any]:
            ones, others = v.at(one, b.mul(i, one_row)), v.at(other, b.mul(i, other_row))

            def col(j: Any, sums: list[Any]) -> list[Any]:
                factor = v.load(v.at(ones, b.mul(j, one_col)))
                place = v.at(others, b.mul(j, other_col))
                return [
                    v.fma(factor, v.load(v.at(place, n * step * VECTOR_BYTES)), total) for n, total in enumerate(sums)
                ]

            return loop(b, cols, sums, col)

        for n, total in enumerate(loop(b, rows, [v.zero] * width, row)):
            v.store(total, v.at(out, n * VECTOR_BYTES))

    return generate


def tap_sums(rows: int, vectors: int, *, masked: bool) -> Generate:
    """Sums over channels and taps for a patch: `rows` lines of `vectors` vectors each.

    `out[r, n] = sum over (c, i, j) of weight[c, i, j] * image[c, top + r + i * dh, left + n + j * dw]`. If `masked`,
    what lies outside `height` rows and `width` columns counts as zero and is not touched; otherwise nothing is checked.

    Arguments: channels, bytes between them in the image, in the weight; address of
    image[0, top, left], bytes between rows; dh, dw; address of the weight, bytes between its rows, its height, its
    width; top, height, left, width; address of a row of zeros as long as a patch's; out (rows, vectors x lanes).
    """

    def generate(
        b: Any, v: Vectors, channels: Any, channel_bytes: Any, weight_channel: Any, start: Any, row_bytes: Any,
        dh: Any, dw: Any, weight: Any, weight_row: Any, kh: Any, kw: Any, top: Any, height: Any, left: Any, width: Any,
        zeros: Any, out: Any,
    ) -> None:  # fmt: skip
        numbers = ir.VectorType(I32, v.n)  # half as wide as 64 bits, and enough for a row
        steps = [ir.Constant(numbers, [j * v.n + lane for lane in range(v.n)]) for j in range(vectors)]
        limit = v.splat(b.trunc(width, I32), numbers)
        lines = [b.mul(row_bytes, I64(r)) for r in range(rows)]
        kernel_row = b.mul(dh, row_bytes)

        def channel(c: Any, sums: list[Any]) -> list[Any]:
            plane = v.at(start, b.mul(c, channel_bytes))
            factors = v.at(weight, b.mul(c, weight_channel))

            def column(j: Any, sums: list[Any]) -> list[Any]:
                shift = b.mul(j, dw)
                inside: list[Any] = []
                if masked:
                    first = v.splat(b.trunc(b.add(left, shift), I32), numbers)
                    inside = [b.icmp_unsigned("<", b.add(first, step), limit) for step in steps]
                here = v.at(plane, b.mul(shift, I64(v.size)))
                weights = v.at(factors, b.mul(j, I64(v.size)))

                def tap(i: Any, sums: list[Any]) -> list[Any]:
                    factor = v.load_splat(v.at(weights, b.mul(i, weight_row)))
                    line = v.at(here, b.mul(i, kernel_row))
                    row = b.add(top, b.mul(i, dh))
                    added = []
                    for r in range(rows):
                        # selected by address: selected masks would spill
                        address = v.at(line, lines[r])
                        if masked:
                            inside_rows = b.icmp_unsigned("<", b.add(row, I64(r)), height)
                            address = b.select(inside_rows, address, zeros)
                        for n in range(vectors):
                            place = v.at(address, n * v.n * v.size)
                            value = v.masked_load(place, inside[n]) if masked else v.load(place)
                            added.append(v.fma(value, factor, sums[r * vectors + n]))
                    return added

                return loop(b, kh, sums, tap)

            return loop(b, kw, sums, column)

        sums = loop(b, channels, [v.zero] * (rows * vectors), channel)
        for i, total in enumerate(sums):
            v.store(total, v.at(out, i * v.n * v.size))

    return generate


def stencil_sums(kernel_rows: int, stride: int, rows: int, vectors: int, *, masked: bool) -> Generate:
    """Results of a stencil: `out[r, n] = finish(sum over (i, j) of weight[j, i] * image[r * stride + i, n + j])`.

    If `masked`, what lies outside `height` rows and `width` columns counts as zero and is not touched; otherwise
    nothing is checked.

    Arguments: address of image[0, 0], bytes between its rows; which row of the image that is, height, which column,
    width; address of a row of zeros; address of a table of where the columns of taps begin, in bytes; address of the
    weight, columns of taps; out, bytes between its rows, address of the record, how many columns are results.
    """

    def generate(
        b: Any, v: Vectors, start: Any, row_bytes: Any, top: Any, height: Any, left: Any, width: Any, zeros: Any,
        table: Any, weight: Any, kernel_cols: Any, out: Any, out_row: Any, record: Any, count: Any,
    ) -> None:  # fmt: skip
        numbers = ir.VectorType(I32, v.n)
        steps = [ir.Constant(numbers, [n * v.n + lane for lane in range(v.n)]) for n in range(vectors)]
        limit = v.splat(b.trunc(width, I32), numbers)
        lines = []
        for t in range((rows - 1) * stride + kernel_rows):
            line = v.at(start, b.mul(row_bytes, I64(t)))
            if masked:
                line = b.select(b.icmp_unsigned("<", b.add(top, I64(t)), height), line, zeros)
            lines.append(line)

        def column(j: Any, sums: list[Any]) -> list[Any]:
            sums = list(sums)
            offset = b.load(b.inttoptr(v.at(table, b.mul(j, I64(8))), I64.as_pointer()))
            first = v.splat(b.trunc(b.add(left, j), I32), numbers)
            inside = [b.icmp_unsigned("<", b.add(first, step), limit) for step in steps]
            taps = v.at(weight, b.mul(j, I64(kernel_rows * v.size)))
            factors = [v.load_splat(v.at(taps, i * v.size)) for i in range(kernel_rows)]
            for t, line in enumerate(lines):
                places = [v.at(line, offset, n * VECTOR_BYTES) for n in range(vectors)]
                values = [
                    v.masked_load(place, mask) if masked else v.load(place)
                    for place, mask in zip(places, inside, strict=True)
                ]
                for r in range(rows):
                    if 0 <= t - r * stride < kernel_rows:
                        for n, value in enumerate(values):
                            place = r * vectors + n
                            sums[place] = v.fma(value, factors[t - r * stride], sums[place])
            return sums

        sums = loop(b, kernel_cols, [v.zero] * (rows * vectors), column)
        results = [v.at(out, b.mul(out_row, I64(r))) for r in range(rows)]
        places = [v.at(line, n * VECTOR_BYTES) for line in results for n in range(vectors)]
        limit = v.splat(b.trunc(count, I32), numbers)
        masks = [b.icmp_signed("<", step, limit) for step in steps]
        sums = Finish(v, [record], splat=True)(sums, places, masks)
        with b.if_else(b.icmp_signed(">=", count, I64(vectors * v.n))) as (whole, partial):
            with whole:
                for r, line in enumerate(results):
                    for n in range(vectors):
                        v.store(sums[r * vectors + n], v.at(line, n * VECTOR_BYTES))
            with partial:
                for n, mask in enumerate(masks):
                    for r, line in enumerate(results):
                        v.masked_store(sums[r * vectors + n], v.at(line, n * VECTOR_BYTES), mask)

    return generate
