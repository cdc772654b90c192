"""`gemm` in blocks of registers: every column of a product is a run of the window, wherever a table says it starts.

No matrix of the window is made, since the table addresses the window itself ("indirect convolution", Dukhan, arXiv
1907.02129). Terms are counted channel by channel, each with all its taps. Sums are cut after `chunk` terms, and the
parts are added in pairs, so that rounding errors grow with the logarithm of the terms.
"""

from __future__ import annotations

from functools import lru_cache

from numba import types

from ..epilogue import record
from ..jobs import job_of, take
from ..kernel import address, apart, code_of, elsewhere, inner, kernel, table, words
from ..memory import (
    call_numbers,
    copy,
    fill_plane,
    native_kind,
    pairs_due,
    prefetch_channel,
    put,
    put_more,
    put_native,
    transpose,
)
from ..moves import fence
from ..products import PAST_CACHES, broadcast_products, finished_products, shifted_products
from ..vectors import MAX_VECTORS, PIXELS, ROWS, VECTOR_BYTES, one_of, one_of_kind
from .geometry import Geometry

__all__ = ["FEW", "LEVELS", "WIDTHS", "code_of_tiles", "gemm", "tile", "tile_shape", "tile_width"]

FEW = ROWS // 2
_geometry, _region = words(len(Geometry._fields)), words(8)
LEVELS = 24  # of the pairwise sum: enough for 2^24 chunks

_fence = fence()
# Columns of a tile that has outputs in its lanes.
WIDTHS = (6, 5, 4, 2, 1) if PIXELS == 6 else (14, 12, 10, 8, 7, 6, 4, 2, 1)
# Kinds of register tiles: of all rows, of few, of one; and of outputs in the lanes. All of them take longer to compile
# than the rest of `gemm`, so each is compiled when a plan needs it.
MANY_ROWS, FEW_ROWS, ONE_ROW, OUTPUTS = range(4)
_sums = one_of_kind({
    MANY_ROWS: {n: shifted_products(ROWS, n) for n in (1, 2, 3)},
    FEW_ROWS: {n: shifted_products(FEW, n) for n in (1, 2, 3, 4, 5, 6)},
    ONE_ROW: {n: shifted_products(1, n) for n in (1, 2, 3, 4, 6, 8)},
    OUTPUTS: {n: broadcast_products(n) for n in WIDTHS},
})  # fmt: skip
_finished = one_of({n: finished_products(ROWS, n) for n in (1, 2, 3)})


def tile_shape(outputs: int) -> tuple[int, int]:
    """Rows and vectors of the register tile for so many outputs per group: few outputs get wide tiles."""
    if outputs == 1:
        return 1, 8
    return (FEW, 2 * MAX_VECTORS) if outputs <= FEW else (ROWS, MAX_VECTORS)


def _tile_arguments(sums):
    """The types of `tile`'s, for that of the array `sums`."""
    return sums, *[types.int64] * 3, types.UniTuple(types.int64, 4), *[types.int64] * 4, types.boolean


@elsewhere(types.UniTuple(types.int64, 2), _tile_arguments)
def tile(kind, sums, base, table, weight, terms, chunk, rows, width, wide, but_last):
    """The products of one tile, at the start of `sums`: (rows, width vectors) or, if `wide`, (width, rows).

    `kind` is one of register tiles. `terms` are as many runs of so many terms, the first term, and how far it is from
    run to run. If `but_last`, the last part of the terms is left to the caller.

    Returns
    -------
    int, int
        The first of the terms that are left, and how many partial sums there are.
    """
    runs, run, first, step = terms
    size = sums.itemsize
    tile_bytes = rows * width * size if wide else rows * width * VECTOR_BYTES
    top, count, k = 0, 0, first
    for n in range(runs):
        for done in range(0, run, chunk):
            k = first + n * step + done
            last = n == runs - 1 and done + chunk >= run
            if last and but_last:
                break
            count += 1
            pairs = pairs_due(top, count, last)
            top -= pairs
            _sums(kind, sums, width, (base, table + k * 8, weight + k * rows * size, min(chunk, run - done),
                                      address(sums) + top * tile_bytes, pairs))  # fmt: skip
            top += 1
    return k, top


@lru_cache
def code_of_tiles(rows: int, wide: bool, dtype: str) -> int:
    """Where `tile` lies for tiles of so many rows, with columns in their lanes or, if `wide`, outputs."""
    kind = OUTPUTS if wide else {ROWS: MANY_ROWS, FEW: FEW_ROWS, 1: ONE_ROW}[rows]
    return code_of(tile, kind, types.Array(getattr(types, dtype), 1, "C"))


@inner
def _turn(sums, rows, width, pitch):
    """The sums of a wide tile, (width, rows), as (rows, pitch); returns where they are in `sums`."""
    lanes = VECTOR_BYTES // sums.itemsize
    target = pitch * rows
    for j in range(0, rows, lanes):
        for n in range(0, width, lanes):
            place = address(sums) + (target + j * pitch + n) * sums.itemsize
            source = address(sums) + (n * rows + j) * sums.itemsize
            transpose(sums, (place, pitch * sums.itemsize, source, rows * sums.itemsize))
    return target


@apart
def _store(sums, source, pitch, rows, first, last, line, cols, epilogue, channel, kind, start, o_step, row_step,
           col_step, add):  # fmt: skip
    """Columns `first` to `last` of the flat window, from `sums[source]` on, as numbers of a kind.

    `line` of them make a row, of which `cols` are results. `start` is the address of the first, and steps are bytes.
    """
    size = sums.itemsize
    first_row, first_col = divmod(first, line)
    side_by_side = first_col + last - first <= cols or (line == cols and row_step == cols * size)
    if side_by_side and not add and col_step == size and kind == native_kind(sums):
        place = start + first_row * row_step + first_col * col_step
        for r in range(rows):
            value = address(sums) + (source + r * pitch) * size
            put_native(sums, (place + r * o_step, value, last - first, record(epilogue, channel + r)))
        return
    for r in range(rows):
        own = record(epilogue, channel + r)
        target = start + r * o_step
        row, col = first_row, first_col
        p = first
        while p < last:
            run = min(line - col, last - p)
            count = min(run, cols - col)
            if count > 0:
                place = target + row * row_step + col * col_step
                value = address(sums) + (source + r * pitch + p - first) * size
                if add:
                    put_more(sums, place, col_step, value, count, own, kind)
                else:
                    put(sums, place, col_step, value, count, own, kind)
            p += run
            row, col = row + 1, 0


@inner
def tile_width(left, widest, rows):
    """Vectors of the next tile, so that the tiles that are left are about as wide as each other."""
    if left > 4 * widest:
        return widest
    tiles = (left + widest - 1) // widest
    width = (left + tiles - 1) // tiles
    return width - 1 if rows == 1 and (width == 5 or width == 7) else width


@apart
def _products(code, base, end, beyond, table, tail_table, weight, weight_pitch, terms, chunk, m0, m1, outputs,
              rows, wide, widest, lines, columns, block, line, cols, epilogue, output, unfinished, kind, start,
              y_strides, add, stores, sums, tail):  # fmt: skip
    """Outputs m0 to m1 of one group on a window, which starts at the address `base`.

    Tiles are made of the first `columns` of each of `lines` lines; all of it is one line if rows run into each other.
    The tiles of a block, or of all lines if a block is more than one, follow each other with the weights of one tile.

    `beyond` is the largest offset in the table: where a tile would reach over the end of the memory, at the address
    `end`, its columns are copied. Tiles that are whole, and whose terms follow each other, write results at once.
    `output` is the group's first output; `unfinished` is the record for sums that further terms will be added to, and
    -1 where these are the last terms. The results go to the address `start`, as numbers of a kind.
    """
    size = sums.itemsize
    lanes = VECTOR_BYTES // size
    unit = 1 if wide else lanes  # what widths are counted in: columns or vectors of them
    pitch = widest * unit
    total = (columns + unit - 1) // unit
    at_once = not (wide or add) and rows == ROWS and terms[0] == 1 and y_strides[3] == size
    at_once = at_once and kind == native_kind(sums)
    run_on = line == cols and y_strides[2] == cols * size  # rows of results follow each other in memory
    together = lines if block > total else 1
    for turn in range(0, lines, together):
        for v0 in range(0, total, block):
            v1 = min(v0 + block, total)
            for m in range(m0, m1, rows):
                factors = weight + m // rows * weight_pitch * size
                channel = output + m if unfinished < 0 else unfinished
                for start_column in range(turn * line, (turn + together) * line, line):
                    v = v0
                    while v < v1:
                        width = widest if wide else tile_width(v1 - v, widest, rows)
                        first = start_column + v * unit
                        last = min(first + width * unit, start_column + columns)
                        if width * unit <= columns and not add:
                            first = last - width * unit  # whole, and within the memory: some are computed twice
                        place = base + first * size
                        fits = place + beyond + width * unit * size <= end
                        whole = last - first == width * unit and m + rows <= outputs
                        v += width
                        if at_once and fits and whole and (run_on or first % line + last - first <= cols):
                            target = start + m * y_strides[1] + first * size
                            if not run_on:
                                target += first // line * (y_strides[2] - line * size)
                            k, depth = terms[2], 0
                            if terms[1] > chunk:
                                k, depth = tile(code, (sums, place, address(table), factors, terms, chunk, rows, width,
                                                       wide, True))  # fmt: skip
                            arguments = (place, address(table) + k * 8, factors + k * rows * size,
                                         terms[2] + terms[1] - k, target, y_strides[1], record(epilogue, channel),
                                         address(sums), depth, stores)  # fmt: skip
                            _finished(sums, width, arguments)
                            continue
                        if fits:
                            tile(code, (sums, place, address(table), factors, terms, chunk, rows, width, wide,
                                        False))  # fmt: skip
                        else:
                            for k in range(terms[1]):
                                copy(sums, (address(tail) + k * pitch * size, place + table[k], last - first))
                            tail_base, tail_offsets = address(tail), address(tail_table)
                            tile(code, (sums, tail_base, tail_offsets, factors, terms, chunk, rows, width, wide,
                                        False))  # fmt: skip
                        source, step = 0, width * lanes
                        if wide:
                            step = (width + lanes - 1) // lanes * lanes
                            source = _turn(sums, rows, width, step)
                        _store(sums, source, step, min(rows, outputs - m), first, last, line, cols, epilogue, channel,
                               kind, start + m * y_strides[1], y_strides[1], y_strides[2], y_strides[3],
                               add)  # fmt: skip


@inner
def _gemm(job, part, code, x, x_strides, y, y_strides, weight, epilogue, table, tail_table, planes, regions,
          source_rows, source_cols, geometry, scratch):  # fmt: skip
    """Tasks are (image, group, region of the result, part of the outputs); each fills its window and multiplies it.

    If `by_tap`, the terms of `at_a_time` channels come tap by tap, and a region has the taps that it needs. Where the
    channels come in parts, the partial sums of such a region are added in `results`, in which its short rows follow
    each other; and so are those of results of another kind, which they cannot be.
    """
    (batch, groups, inputs, outputs, tile_rows, wide, widest, output_parts, halo_rows, halo_cols, plane, row_stride,
     col_stride, left, width, taps, kernel_cols, beyond, at_a_time, by_tap, chunk, block, in_place, row_by_row,
     stores, part_size, window_size, sums_size, results_size) = geometry  # fmt: skip
    x_kind, x_bytes, xb, xc, xh, xw = x_strides
    y_kind, _, yb, yc, yh, yw = y_strides
    x_first, y_first = address(x), address(y)
    size = scratch.itemsize
    native = native_kind(scratch)
    own = scratch[part * part_size : (part + 1) * part_size]
    window, sums = own[:window_size], own[window_size : window_size + sums_size]
    results = own[window_size + sums_size : window_size + sums_size + results_size]
    tail = own[window_size + sums_size + results_size :]
    apart = at_a_time < inputs and (by_tap or y_kind != native)
    tiles = (outputs + tile_rows - 1) // tile_rows
    weight_pitch = inputs * taps * tile_rows
    count_regions, count_planes = len(regions) // 8, len(planes) // 4
    tasks = batch * groups * count_regions * output_parts
    for _ in range(tasks):
        task = take(job, part, tasks)  # regions with fewer taps take less time, and come last
        if task >= tasks:
            break
        rest, output_part = divmod(task, output_parts)
        rest, region = divmod(rest, count_regions)
        b, g = divmod(rest, groups)
        r0, r1, q0, q1, i0, i1, j0, j1 = _region(address(regions) + region * 64)
        cols = q1 - q0
        line = cols + halo_cols
        m0 = output_part * tiles // output_parts * tile_rows
        m1 = (output_part + 1) * tiles // output_parts * tile_rows
        place = y_first + b * yb + g * outputs * yc + r0 * yh + q0 * yw
        kind, strides = y_kind, (yb, yc, yh, yw)
        if apart:
            plane_bytes = (r1 - r0) * cols * size
            kind, strides = native, (0, plane_bytes, cols * size, size)
            place = address(results) - m0 * plane_bytes
        for c0 in range(0, inputs, at_a_time):
            count = min(at_a_time, inputs - c0)
            terms = (1, count * taps, 0, 0)
            if by_tap:
                terms = (i1 - i0, (j1 - j0) * count, (i0 * kernel_cols + j0) * count, kernel_cols * count)
            first = x_first + b * xb + (g * inputs + c0) * xc
            if in_place:
                base = first + r0 * xh
                end = x_first + x_bytes
            else:
                for c in range(count):
                    prefetch_channel(scratch, c, count, first + r0 * row_stride * xh, xc, (r1 - r0) * row_stride * xh)
                    for p in range(count_planes):
                        i, j = p // kernel_cols, p % kernel_cols
                        if by_tap and (i < i0 or i >= i1 or j < j0 or j >= j1):
                            continue
                        fill_plane(first + c * xc, x_kind, xh, xw, source_rows, source_cols,
                                   r0 * row_stride + planes[4 * p], planes[4 * p + 1], r1 - r0 + halo_rows,
                                   q0 * col_stride + planes[4 * p + 2], planes[4 * p + 3], line, left, width, window,
                                   (c * count_planes + p) * plane)  # fmt: skip
                base = address(window)
                end = base + window_size * size
            factors = address(weight) + (g * tiles * weight_pitch + c0 * taps * tile_rows) * size
            columns = cols if row_by_row else (r1 - r0 - 1) * line + cols
            unfinished = groups * outputs if apart or c0 + at_a_time < inputs else -1
            lines = r1 - r0 if row_by_row else 1
            _products(code, base, end, beyond, table, tail_table, factors, weight_pitch, terms, chunk, m0, m1,
                      outputs, tile_rows, wide, widest, lines, columns, block, line, cols, epilogue, g * outputs,
                      unfinished, kind, place, strides, c0 > 0, stores, sums, tail)  # fmt: skip
        if apart:
            for m in range(m0, min(m1, outputs)):
                for r in range(r1 - r0):
                    target = y_first + b * yb + (g * outputs + m) * yc + (r0 + r) * yh + q0 * yw
                    put(sums, target, yw, place + m * plane_bytes + r * cols * size, cols,
                        record(epilogue, g * outputs + m), y_kind)  # fmt: skip
    if stores == PAST_CACHES:
        _fence(sums, ())


_share = job_of(_gemm)


@kernel
def gemm(job, parts, patience, x, y, code, weight, epilogue, tables, numbers, scratch):
    """The whole convolution, as a job of the team."""
    x_strides, y_strides, place = call_numbers(numbers)
    return _share(job, parts, patience,
                  (code, x, x_strides, y, y_strides, weight, epilogue, table(tables, 0), table(tables, 1),
                   table(tables, 2), table(tables, 3), table(tables, 4), table(tables, 5), _geometry(place),
                   scratch))  # fmt: skip
