"""`gemm` for images whose channels lie side by side: a tile is some pixels of a row by some vectors of outputs.

What a row of the kernel meets of a pixel's surroundings is one run in memory, or one for each tap where there are
groups or a dilation. So an output's terms are few runs, each at a fixed distance from the output's first pixel, and a
result is stored as it leaves the registers. Where there is padding, or numbers are to be converted, a strip of the
image is copied with it first.
"""

from __future__ import annotations

from ..epilogue import RECORD, gather_records, record
from ..jobs import job_of, take
from ..kernel import address, apart, inner, kernel, table, words
from ..memory import call_numbers, fill_pixels, native_kind, pairs_due, put
from ..products import pixel_products
from ..vectors import PIXELS, VECTOR_BYTES, one_of
from .geometry import Geometry

__all__ = ["WIDTHS", "channels_last"]

# Pixels of a tile.
WIDTHS = (6, 4, 3, 2, 1) if PIXELS == 6 else (14, 12, 10, 8, 7, 5, 4, 2, 1)
_geometry, _part = words(len(Geometry._fields)), words(4)
# By `16 * vectors + pixels`.
_products = one_of({16 * vectors + n: pixel_products(n, vectors) for vectors in (1, 2) for n in WIDTHS})


@apart
def _tile(sums, number, tile_bytes, base, step, runs, parts, weight, term_bytes, out, out_step, records, zeros, count):
    """The results of a tile: its terms in the parts that `CompiledChannelsLastPlan` cuts, which are added in pairs.

    `weight` is the address of its weights, `term_bytes` those of a term. The `records` are of its outputs, `zeros` are
    for sums that are not complete; `count` of its outputs are stored, at the address `out`.
    """
    top, last = 0, len(parts) // 4 - 1
    for n in range(last + 1):
        run, many, first, terms = _part(address(parts) + n * 32)
        pairs = pairs_due(top, n + 1, n == last)
        top -= pairs
        partial = address(sums) + top * tile_bytes
        place, place_step, of_outputs, lanes = partial, tile_bytes // (number % 16), zeros, 1 << 20
        if n == last:
            place, place_step, of_outputs, lanes = out, out_step, records, count
        _products(sums, number,
                  (base, step, address(runs) + run * 8, many, first, weight, terms, place, place_step, of_outputs,
                   lanes, partial, pairs))  # fmt: skip
        weight += many * terms * term_bytes
        top += 1


@inner
def _width(widest, columns):
    """The width of a tile, where a line may have fewer columns than the plan thought."""
    for n in WIDTHS:
        if n <= min(widest, columns):
            return n
    return 1


@inner
def _channels_last(job, part, x, x_strides, y, y_strides, weight, epilogue, runs, parts, source_rows, source_cols,
                   geometry, scratch):  # fmt: skip
    """Tasks are (image, strip of rows, strip of columns, part of the outputs)."""
    (batch, channels, inputs, outputs, tiles, vectors, strips, col_strips, output_parts, width, out_rows, out_cols,
     row_stride, col_stride, reach, reach_cols, line, left, terms, in_place, run_on, widest, part_size, window_size,
     sums_size, tile_size) = geometry  # fmt: skip
    x_kind, _, xb, xc, xh, xw = x_strides
    y_kind, _, yb, yc, yh, yw = y_strides
    x_first, y_first = address(x), address(y)
    size = scratch.itemsize
    lanes = VECTOR_BYTES // size
    own = scratch[part * part_size : (part + 1) * part_size]
    window, sums = own[:window_size], own[window_size : window_size + sums_size]
    tile = own[window_size + sums_size : window_size + sums_size + tile_size]
    records = own[window_size + sums_size + tile_size :]
    groups = channels // inputs
    for v in range(vectors):  # the last ones, which change nothing
        gather_records(epilogue, groups * outputs, 0, lanes, records[(vectors + v) * RECORD * lanes :])
    of_outputs = address(records)
    zeros = of_outputs + vectors * RECORD * VECTOR_BYTES
    together = yc == size and y_kind == native_kind(scratch)
    pitch, step = line * channels * size, col_stride * channels * size
    if in_place:
        pitch, step = xh, col_stride * xw
    run_on = run_on and yh == out_cols * yw and (not in_place or xh == width * xw)
    pixel_bytes = vectors * VECTOR_BYTES
    tasks = batch * strips * col_strips * output_parts
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, output_part = divmod(task, output_parts)
        rest, col_strip = divmod(rest, col_strips)
        b, strip = divmod(rest, strips)
        r0, r1 = strip * out_rows // strips, (strip + 1) * out_rows // strips
        q0, q1 = col_strip * out_cols // col_strips, (col_strip + 1) * out_cols // col_strips
        base = x_first + b * xb
        if in_place:
            base += r0 * row_stride * xh + q0 * step
        else:
            fill_pixels(base, x_kind, xh, xw, xc, channels, source_rows, source_cols, r0 * row_stride,
                        (r1 - r0 - 1) * row_stride + reach, q0 * col_stride, (q1 - q0 - 1) * col_stride + reach_cols,
                        left, width, window, 0, line * channels)  # fmt: skip
            base = address(window)
        lines, columns = (1, (r1 - r0) * out_cols) if run_on else (r1 - r0, q1 - q0)
        pixels = _width(widest, columns)
        for unit in range(output_part * groups * tiles // output_parts,
                          (output_part + 1) * groups * tiles // output_parts):  # fmt: skip
            g, t = divmod(unit, tiles)
            first = t * vectors * lanes
            channel = g * outputs + first
            count = min(vectors * lanes, outputs - first)
            for v in range(vectors):
                gather_records(epilogue, min(channel + v * lanes, groups * outputs), 1, lanes,
                               records[v * RECORD * lanes :])  # fmt: skip
            factors = address(weight) + unit * terms * pixel_bytes
            for r in range(lines):
                source = base + r * row_stride * pitch + g * inputs * size
                target = y_first + b * yb + (r0 + r) * yh + q0 * yw + channel * yc
                for done in range(0, columns, pixels):
                    q = min(done, columns - pixels)  # whole: some pixels of the last tile are computed twice
                    out, out_step = target + q * yw, yw
                    if not together:
                        out, out_step = address(tile), pixel_bytes
                    _tile(sums, 16 * vectors + pixels, pixels * pixel_bytes, source + q * step, step, runs, parts,
                          factors, pixel_bytes, out, out_step, of_outputs, zeros, count)  # fmt: skip
                    if not together:
                        for n in range(pixels):
                            put(sums, target + (q + n) * yw, yc, out + n * pixel_bytes, count,
                                record(epilogue, groups * outputs), y_kind)  # fmt: skip


_share = job_of(_channels_last)


@kernel
def channels_last(job, parts, patience, x, y, weight, epilogue, tables, numbers, scratch):
    """The whole convolution, as a job of the team."""
    x_strides, y_strides, place = call_numbers(numbers)
    return _share(job, parts, patience,
                  (x, x_strides, y, y_strides, weight, epilogue, table(tables, 0), table(tables, 1), table(tables, 2),
                   table(tables, 3), _geometry(place), scratch))  # fmt: skip
