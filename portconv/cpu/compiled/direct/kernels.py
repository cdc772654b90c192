"""`direct` on registers: a patch of one output channel stays in them while all taps pass over it.

The image is read where it lies if its rows are runs in memory and its padding is zero: rows outside are left out, and
columns outside are masked. Otherwise a strip is copied with its padding; so it is for separable kernels, whose two
passes then run in cache.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ..epilogue import record
from ..memory import add_in_pairs, fill_plane, native_kind, put
from ..products import tap_sums
from ..team import driver, kernel
from ..vectors import VECTOR_BYTES, one_of

__all__ = ["SHAPES", "direct_alone", "direct_team"]

# Rows and vectors of a patch; their sums fill half of the registers.
SHAPES = ((8, 1), (4, 2), (2, 4)) if VECTOR_BYTES == 32 else ((8, 1), (8, 2), (4, 4))

# By the vectors of the patch.
_masked_taps = one_of({shape[1]: tap_sums(*shape, masked=True) for shape in SHAPES})
_taps = one_of({shape[1]: tap_sums(*shape, masked=False) for shape in SHAPES})


@kernel
def _patch(base, row_bytes, channel_bytes, channels, weight, kernel_size, dilation, top, left, height, width, rows,
           vectors, masked, chunk, sums):  # fmt: skip
    """The sums of one patch, at the start of `sums`: all taps of the channels, in parts of about `chunk` terms.

    `base` is the address of the image's first element, of which the patch's first tap reads [top, left].
    """
    kh, kw = kernel_size
    dh, dw = dilation
    size = sums.itemsize
    # the kernel rows that meet the image for any row of the patch
    i0, i1 = 0, kh
    if masked:
        i0 = min(max((dh - top - rows) // dh, 0), kh)
        i1 = max(min((height - top + dh - 1) // dh, kh), i0)
    tile_bytes = rows * vectors * VECTOR_BYTES
    zeros = sums.ctypes.data + len(sums) * size - vectors * VECTOR_BYTES
    if i1 == i0:
        for i in range(tile_bytes // size):
            sums[i] = 0
        return
    # whole channels at a time, or some columns of the kernel
    cols = min(max(1, chunk // (i1 - i0)), kw)
    together = max(1, chunk // ((i1 - i0) * kw)) if cols == kw else 1
    depth, count = 0, 0
    for c in range(0, channels, together):
        for j in range(0, kw, cols):
            last = c + together >= channels and j + cols >= kw
            place = base + c * channel_bytes + (top + i0 * dh) * row_bytes + (left + j * dw) * size
            factors = weight + ((c * kh + i0) * kw + j) * size
            arguments = (min(together, channels - c), channel_bytes, kh * kw * size, place, row_bytes, dh, dw, factors,
                         kw * size, i1 - i0, min(cols, kw - j), top + i0 * dh, height, left + j * dw, width, zeros,
                         sums.ctypes.data + depth * tile_bytes)  # fmt: skip
            if masked:
                _masked_taps(sums, vectors, arguments)
            else:
                _taps(sums, vectors, arguments)
            count += 1
            depth = add_in_pairs(sums, depth + 1, count, last, tile_bytes)


@kernel
def _store(sums, pitch, rows, cols, epilogue, channel, kind, start, row_step, col_step):
    """The results of a patch, as numbers of a kind, at the address `start`; steps are bytes."""
    size = sums.itemsize
    own = record(epilogue, channel)
    for r in range(rows):
        put(sums, start + r * row_step, col_step, sums.ctypes.data + r * pitch * size, cols, own, kind)


@kernel
def _two_passes(window, line, columns, row_weights, o, outputs, kernel_size, dilation, rows, cols, patch_rows, vectors,
                chunk, between, sums, epilogue, kind, start, row_step, col_step):  # fmt: skip
    """A separable kernel on a padded window: all columns' sums first, `between`, then their rows' sums.

    `columns` and `row_weights` are the factors of the kernels, of all outputs.
    """
    kh, kw = kernel_size
    dh, dw = dilation
    size = sums.itemsize
    lanes = VECTOR_BYTES // size
    width = vectors * lanes
    unfinished = record(epilogue, outputs)
    column = columns.ctypes.data + o * kh * size
    row = row_weights.ctypes.data + o * kw * size
    for r in range(0, rows, patch_rows):
        for col in range(0, cols + (kw - 1) * dw, width):
            _patch(window.ctypes.data, line * size, 0, 1, column, (kh, 1), (dh, 1), r, col, 0, 0, patch_rows, vectors,
                   False, chunk, sums)  # fmt: skip
            for i in range(min(patch_rows, rows - r)):
                target = between.ctypes.data + ((r + i) * line + col) * size
                count = min(width, line - col)
                put(sums, target, size, sums.ctypes.data + i * width * size, count, unfinished, native_kind(sums))
    for r in range(0, rows, patch_rows):
        for col in range(0, cols, width):
            _patch(between.ctypes.data, line * size, 0, 1, row, (1, kw), (1, dw), r, col, 0, 0, patch_rows, vectors,
                   False, chunk, sums)  # fmt: skip
            _store(sums, width, min(patch_rows, rows - r), min(width, cols - col), epilogue, o, kind,
                   start + r * row_step + col * col_step, row_step, col_step)  # fmt: skip


@kernel
def _direct(part, parts, x, x_strides, y, y_strides, weight, row_weights, epilogue, source_rows, source_cols, geometry,
            separable, scratch):  # fmt: skip
    """Tasks are (image, group, strip of rows, strip of columns, output of the group).

    `weight` are whole kernels, or the columns of separable ones, whose rows are `row_weights`.
    """
    (batch, inputs, outputs, group_outputs, kh, kw, dh, dw, top, left, height, width, out_rows, out_cols, strips,
     col_strips, copied, rows, vectors, chunk, part_size, window_size, window_rows, window_cols) = geometry  # fmt: skip
    x_first, _, x_kind = x
    xb, xc, xh, xw = x_strides
    y_first, _, kind = y
    yb, yc, yh, yw = y_strides
    size = scratch.itemsize
    lanes = VECTOR_BYTES // size
    own = scratch[part * part_size : (part + 1) * part_size]
    window, between, sums = own[:window_size], own[window_size : 2 * window_size], own[2 * window_size :]
    for i in range(len(sums) - vectors * lanes, len(sums)):  # the row of zeros that stands for rows outside
        sums[i] = 0
    reach_rows, reach_cols = (kh - 1) * dh, (kw - 1) * dw
    tasks = batch * outputs * strips * col_strips
    filled = -1
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        # the outputs of a group come one after the other, and share the window
        place, o_in = task // group_outputs, task % group_outputs
        rest, col_strip = place // col_strips, place % col_strips
        rest, strip = rest // strips, rest % strips
        b, g = rest // (outputs // group_outputs), rest % (outputs // group_outputs)
        o = g * group_outputs + o_in
        r0, r1 = strip * out_rows // strips, (strip + 1) * out_rows // strips
        c0, c1 = col_strip * out_cols // col_strips, (col_strip + 1) * out_cols // col_strips
        first = x_first + b * xb + g * inputs * xc
        if copied and place != filled:
            filled = place
            for c in range(inputs):
                fill_plane(first + c * xc, x_kind, xh, xw, source_rows, source_cols, r0, 1, r1 - r0 + reach_rows, c0, 1,
                           window_cols, left, width, window, c * window_rows * window_cols)  # fmt: skip
        start = y_first + b * yb + o * yc + r0 * yh + c0 * yw
        if separable:
            _two_passes(window, window_cols, weight, row_weights, o, outputs, (kh, kw), (dh, dw), r1 - r0, c1 - c0,
                        rows, vectors, chunk, between, sums, epilogue, kind, start, yh, yw)  # fmt: skip
            continue
        factors = weight.ctypes.data + o * inputs * kh * kw * size
        for r in range(r0, r1, rows):
            for col in range(c0, c1, vectors * lanes):
                if copied:
                    _patch(window.ctypes.data, window_cols * size, window_rows * window_cols * size, inputs, factors,
                           (kh, kw), (dh, dw), r - r0, col - c0, 0, 0, rows, vectors, False, chunk, sums)  # fmt: skip
                else:
                    row, column = r - top, col - left
                    inside = row >= 0 and column >= 0 and row + rows + reach_rows <= height
                    inside = inside and column + vectors * lanes + reach_cols <= width
                    _patch(first, xh, xc, inputs, factors, (kh, kw), (dh, dw), row,
                           column, height, width, rows, vectors, not inside, chunk, sums)  # fmt: skip
                _store(sums, vectors * lanes, min(rows, r1 - r), min(vectors * lanes, c1 - col), epilogue, o, kind,
                       start + (r - r0) * yh + (col - c0) * yw, yh, yw)  # fmt: skip


@kernel
def direct_alone(*arguments):
    """The whole convolution on the calling thread."""
    _direct(0, 1, *arguments)


@driver
def direct_team(parts, x, x_strides, y, y_strides, weight, row_weights, epilogue, source_rows, source_cols, geometry,
                separable, scratch):  # fmt: skip
    """The whole convolution on `parts` threads."""
    for part in prange(parts):
        _direct(np.int64(part), parts, x, x_strides, y, y_strides, weight, row_weights, epilogue, source_rows,
                source_cols, geometry, separable, scratch)  # fmt: skip
