"""Transposed convolutions in blocks of registers, all phases of the strides out of one copy of the image.

Each phase is a convolution with some of the taps (see engines/transposed.py), by the register tiles of `gemm`. Those
whose results lie in the same rows are put together before they are stored, so that memory is written in runs, and once.
"""

from __future__ import annotations

from ..epilogue import record
from ..gemm.kernels import LEVELS, code_of_tiles, tile, tile_shape, tile_width
from ..jobs import job_of, take
from ..kernel import address, apart, inner, kernel, table, words
from ..memory import call_numbers, fill_plane, prefetch_channel, put
from ..moves import move_elements, spread_vectors
from ..vectors import VECTOR_BYTES
from .geometry import Geometry

__all__ = ["LEVELS", "code_of_tiles", "tile_shape", "transposed"]

_geometry, _group, _phase = words(len(Geometry._fields)), words(3), words(4)
_spread = spread_vectors()
_move = move_elements()


@apart
def _rows(code, base, table, weight, panel, phases, taps_of, chunk, m0, m1, outputs, tile_rows, widest, columns,
          block, line, cols, col_step, out_cols, epilogue, output, kind, start, y_strides, sums,
          together):  # fmt: skip
    """Some rows of results for the outputs m0 to m1 of one group, from the window at the address `base` on.

    The weights of the group begin with this panel of each phase.

    `phases` of them have terms: each the first of its offsets in `table`, how many terms, the first of its weights, and
    its column, at the address `taps_of`. `columns` of the window are multiplied, `line` of which make a row with `cols`
    columns of every phase. The results go to the address `start`, as numbers of a kind.
    """
    size = sums.itemsize
    lanes = VECTOR_BYTES // size
    if phases < col_step:  # the columns of the others are sums of nothing
        for i in range(tile_rows * widest * lanes * col_step):
            together[i] = 0
    total = (columns + lanes - 1) // lanes
    for v0 in range(0, total, block):
        v1 = min(v0 + block, total)
        for m in range(m0, m1, tile_rows):
            v = v0
            while v < v1:
                width = tile_width(v1 - v, widest, tile_rows)
                first = v * lanes
                last = min(first + width * lanes, columns)
                if width * lanes <= columns:
                    first = last - width * lanes  # whole: some are computed twice
                v += width
                for n in range(phases):
                    first_term, terms, first_weight, col = _phase(taps_of + n * 32)
                    factors = weight + (first_weight + (panel + m // tile_rows) * terms * tile_rows) * size
                    tile(code, (sums, base + first * size, address(table) + first_term * 8, factors,
                                (1, terms, 0, 0), chunk, tile_rows, width, 0, False))  # fmt: skip
                    target, vectors = address(together) + col * size, tile_rows * width
                    if col_step <= 4:
                        _spread(sums, col_step, (target, address(sums), vectors))
                    else:
                        _move(sums, (target, col_step * size, address(sums), size, vectors * lanes))
                for r in range(min(tile_rows, outputs - m)):
                    row, col = divmod(first, line)
                    p = first
                    while p < last:
                        run = min(line - col, last - p)
                        count = min((col + run) * col_step, min(cols * col_step, out_cols)) - col * col_step
                        if count > 0:
                            place = start + (m + r) * y_strides[1] + row * y_strides[2] + col * col_step * y_strides[3]
                            source = (r * width * lanes + p - first) * col_step
                            put(sums, place, y_strides[3], address(together) + source * size, count,
                                record(epilogue, output + m + r), kind)  # fmt: skip
                        p += run
                        row, col = row + 1, 0


@inner
def _transposed(job, part, code, x, x_strides, y, y_strides, weight, epilogue, table, strips, source_rows,
                source_cols, groups_of_rows, phases, geometry, scratch):  # fmt: skip
    """Tasks are (image, group, strip, part of the outputs); each fills its window and multiplies it, phase by phase."""
    (batch, groups, inputs, outputs, tile_rows, widest, output_parts, halo_rows, line, plane, left, width, cols,
     row_step, col_step, out_cols, chunk, block, part_size, window_size, sums_size) = geometry  # fmt: skip
    x_kind, _, xb, xc, xh, xw = x_strides
    y_kind, _, yb, yc, yh, yw = y_strides
    own = scratch[part * part_size : (part + 1) * part_size]
    window, sums = own[:window_size], own[window_size : window_size + sums_size]
    together = own[window_size + sums_size :]
    tiles = (outputs + tile_rows - 1) // tile_rows
    count_strips = len(strips) // 2
    tasks = batch * groups * count_strips * output_parts
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, output_part = divmod(task, output_parts)
        rest, strip = divmod(rest, count_strips)
        b, g = divmod(rest, groups)
        r0, r1 = strips[2 * strip], strips[2 * strip + 1]
        m0 = output_part * tiles // output_parts * tile_rows
        m1 = (output_part + 1) * tiles // output_parts * tile_rows
        first = address(x) + b * xb + g * inputs * xc
        for c in range(inputs):
            prefetch_channel(scratch, c, inputs, first + r0 * xh, xc, (r1 - r0) * xh)
            fill_plane(first + c * xc, x_kind, xh, xw, source_rows, source_cols, r0, 1, r1 - r0 + halo_rows, 0, 1, line,
                       left, width, window, c * plane)  # fmt: skip
        place = address(y) + b * yb + g * outputs * yc + r0 * row_step * yh
        for n in range(row_step):
            row_count, first_phase, count_phases = _group(address(groups_of_rows) + n * 24)
            rows = min(r1, row_count) - r0
            if rows > 0:
                _rows(code, address(window), table, address(weight), g * tiles, count_phases,
                      address(phases) + first_phase * 32, chunk, m0, m1, outputs, tile_rows, widest,
                      (rows - 1) * line + cols, block, line, cols, col_step, out_cols, epilogue, g * outputs, y_kind,
                      place + n * yh, (yb, yc, row_step * yh, yw), sums, together)  # fmt: skip


_share = job_of(_transposed)


@kernel
def transposed(job, parts, patience, x, y, code, weight, epilogue, tables, numbers, scratch):
    """The whole transposed convolution, as a job of the team."""
    x_strides, y_strides, place = call_numbers(numbers)
    return _share(job, parts, patience,
                  (code, x, x_strides, y, y_strides, weight, epilogue, table(tables, 0), table(tables, 1),
                   table(tables, 2), table(tables, 3), table(tables, 4), table(tables, 5), _geometry(place),
                   scratch))  # fmt: skip
