"""`direct` on registers: a patch of one output channel stays in them while all taps pass over it.

The image is read where it lies if its rows are runs in memory and its padding is zero: rows outside are left out, and
columns outside are masked. Otherwise a strip is copied with its padding; so it is for separable kernels, whose two
passes then run in cache.
"""

from __future__ import annotations

import numpy as np

from ..epilogue import RECORD, gather_phases
from ..jobs import job_of, take
from ..kernel import address, inner, kernel, words
from ..memory import call_numbers, fill_pixels, fill_plane
from ..vectors import VECTOR_BYTES
from .geometry import Geometry
from .passes import BLOCK, patch, store, two_passes

__all__ = ["direct"]

_geometry = words(len(Geometry._fields))


@inner
def _direct(job, part, x, x_strides, y, y_strides, weight, row_weights, epilogue, source_rows, source_cols, geometry,
            separable, scratch):  # fmt: skip
    """Tasks are (image, group, strip of rows, strip of columns, output of the group).

    `weight` are whole kernels, or the columns of separable ones, whose rows are `row_weights`.
    """
    (batch, inputs, outputs, group_outputs, kh, kw, dh, dw, top, left, height, width, out_rows, out_cols, strips,
     col_strips, copied, rows, vectors, chunk, part_size, window_size, window_rows, window_cols, pixel, line,
     between_size, table_size, together) = geometry  # fmt: skip
    x_kind, _, xb, xc, xh, xw = x_strides
    kind, _, yb, yc, yh, yw = y_strides
    x_first, y_first = address(x), address(y)
    size = scratch.itemsize
    lanes = VECTOR_BYTES // size
    own = scratch[part * part_size : (part + 1) * part_size]
    window, rest = own[:window_size], own[window_size:]
    between, rest = rest[:between_size], rest[between_size:]
    table, rest = rest[:table_size].view(np.int64), rest[table_size:]
    phases, sums = rest[: pixel * RECORD * lanes], rest[pixel * RECORD * lanes :]
    zeros = between[(BLOCK + 1) * line :]  # a row of them, which stands for rows of the padding in two passes
    if pixel > 1:
        gather_phases(epilogue, pixel, lanes, phases)
    for i in range(len(zeros)):
        zeros[i] = 0
    for i in range(len(sums) - vectors * lanes, len(sums)):  # the row of zeros that stands for rows outside
        sums[i] = 0
    reach_rows, reach_cols = (kh - 1) * dh, (kw - 1) * dw
    tasks = batch * outputs * strips * col_strips
    filled = -1
    units = (tasks + together - 1) // together
    for turn in range(units * together):
        if turn % together == 0:
            unit = take(job, part, units)
            if unit >= units:
                break
        task = unit * together + turn % together
        if task >= tasks:
            continue
        # the outputs of a group come one after the other, and share the window
        place, o_in = task // group_outputs, task % group_outputs
        rest, col_strip = place // col_strips, place % col_strips
        rest, strip = rest // strips, rest % strips
        b, g = rest // (outputs // group_outputs), rest % (outputs // group_outputs)
        o = g * group_outputs + o_in
        r0, r1 = strip * out_rows // strips, (strip + 1) * out_rows // strips
        c0, c1 = col_strip * out_cols // col_strips, (col_strip + 1) * out_cols // col_strips
        first = x_first + b * xb + g * inputs * xc
        element = yc if pixel > 1 else yw
        start = y_first + b * yb + o * yc + r0 * yh + c0 * yw
        if separable:
            two_passes(first, x_kind, (xc, xh, xw), pixel, source_rows, source_cols, left, width,
                       address(weight) + o * kh * size, address(row_weights) + o * kw * size, (kh, kw), (dh, dw),
                       r0, r1 - r0, c0, c1 - c0, rows, vectors, chunk, line, window, between, zeros, table, sums,
                       epilogue, o, phases, kind, start, yh, element)  # fmt: skip
            continue
        if copied and place != filled:
            filled = place
            if pixel > 1:
                fill_pixels(first, x_kind, xh, xw, xc, pixel, source_rows, source_cols, r0, r1 - r0 + reach_rows, c0,
                            window_cols, left, width, window, 0, line)  # fmt: skip
            for c in range(inputs if pixel == 1 else 0):
                fill_plane(first + c * xc, x_kind, xh, xw, source_rows, source_cols, r0, 1, r1 - r0 + reach_rows, c0, 1,
                           window_cols, left, width, window, c * window_rows * window_cols)  # fmt: skip
        factors = address(weight) + o * inputs * kh * kw * size
        for r in range(r0, r1, rows):
            for col in range(0, (c1 - c0) * pixel, vectors * lanes):
                if copied:
                    patch(address(window), line * size, window_rows * line * size, inputs, factors, (kh, kw),
                          (dh, dw * pixel), r - r0, col, 0, 0, rows, vectors, False, chunk, sums)  # fmt: skip
                else:
                    row, column = r - top, c0 + col - left
                    inside = row >= 0 and column >= 0 and row + rows + reach_rows <= height
                    inside = inside and column + vectors * lanes + reach_cols <= width
                    patch(first, xh, xc, inputs, factors, (kh, kw), (dh, dw), row, column, height, width, rows,
                          vectors, not inside, chunk, sums)  # fmt: skip
                store(sums, vectors * lanes, min(rows, r1 - r), min(vectors * lanes, (c1 - c0) * pixel - col),
                      epilogue, o, phases, col % pixel, pixel, kind, start + (r - r0) * yh + col * element, yh,
                      element)  # fmt: skip


_share = job_of(_direct)


@kernel
def direct(job, parts, patience, x, y, weight, row_weights, epilogue, source_rows, source_cols, numbers, separable,
           scratch):  # fmt: skip
    """The whole convolution, as a job of the team."""
    x_strides, y_strides, place = call_numbers(numbers)
    return _share(job, parts, patience,
                  (x, x_strides, y, y_strides, weight, row_weights, epilogue, source_rows, source_cols,
                   _geometry(place), separable, scratch))  # fmt: skip
