"""`direct` for depthwise layers, with the columns of a row in the lanes: a stencil moves over a padded strip.

A strip of one channel is copied with its padding, so that nothing need be masked where it is read, and its columns are
split by the stride's phases, so that each tap reads columns that lie side by side. A tile of several rows of outputs
stays in registers while the taps pass over it; a vector that is loaded serves every row of the tile that it meets.
"""

from __future__ import annotations

import numpy as np

from ..epilogue import record
from ..jobs import job_of, take
from ..kernel import address, apart, inner, kernel, table, words
from ..memory import call_numbers, fill_plane, native_kind, put, read
from ..moves import pad_rows
from ..products import stencil_sums
from ..vectors import ROWS, VECTOR_BYTES, one_of
from .geometry import Geometry

__all__ = ["TILES", "stencil"]

# Images are read in place by tiles with few rows of taps, if the CPU has loads that leave out what lies outside. More
# rows have more addresses than there are registers, and the products no longer hide it.
MASKED = 3 if VECTOR_BYTES >= 32 else 0
_geometry = words(len(Geometry._fields))
FAR = np.int64(1 << 30)  # rows and columns, of which none lies outside
# (rows of the kernel, stride, rows of outputs): networks have planes of 7, 14, 28 rows and their like
_HIGH = (7, 4) if ROWS == 8 else (4,)
TILES = (
    *((kh, 1, rows) for kh in (3, 5, 7) for rows in _HIGH),
    *((kh, 2, 4) for kh in (3, 5)),
)
# By twice the place in TILES and the vectors less one.
_sums = one_of(
    {
        2 * n + more: stencil_sums(kh, stride, rows, 1 + more, masked=kh <= MASKED)
        for n, (kh, stride, rows) in enumerate(TILES)
        for more in (0, 1)
    }
)
_pad = one_of({phases: pad_rows(phases) for phases in (1, 2)})


@apart
def _convert(image, kind, row_step, col_step, r0, r1, width, out):
    """Rows r0 to r1 of the image in the dtype of the computation, one after the other."""
    size = out.itemsize
    if row_step == width * col_step:
        read(out, address(out), image + r0 * row_step, col_step, (r1 - r0) * width, kind)
        return
    for r in range(r0, r1):
        read(out, address(out) + (r - r0) * width * size, image + r * row_step, col_step, width, kind)


@apart
def _fill(image, kind, row_step, col_step, source_rows, source_cols, first, rows, height, width, top, left, zeros, sw,
          phases, pitch, strip):  # fmt: skip
    """Rows of the padded image from `first` on: strip[row, phase, column].

    `image` is the address of the channel's first element; the strides are bytes. With zeros in the padding, the
    image has the numbers of the computation, side by side.
    """
    size = strip.itemsize
    line = phases * pitch * size
    if not zeros:
        for phase in range(phases):
            for r in range(rows):
                fill_plane(image, kind, row_step, col_step, source_rows, source_cols, first + r, 1, 1, phase, sw,
                           pitch, left, width, strip, (r * phases + phase) * pitch)  # fmt: skip
        return
    # rows above the image, of the image, below it
    begin = min(max(top - first, 0), rows)
    end = max(min(height + top - first, rows), begin)
    image += max(min(first + begin - top, height - 1), 0) * row_step
    for start, stop, columns in ((0, begin, 0), (begin, end, width), (end, rows, 0)):
        if stop > start:
            _pad(strip, phases, (address(strip) + start * line, line, pitch * size, image,
                                 row_step if columns else 0, stop - start, left, columns,
                                 pitch * size // VECTOR_BYTES))  # fmt: skip


@inner
def _stencil(job, part, x, x_strides, y, y_strides, weight, epilogue, taps, source_rows, source_cols, geometry,
             scratch):  # fmt: skip
    """Tasks are (image, some channels, strip of rows)."""
    (batch, channels, multiplier, together, strips, height, width, out_rows, out_cols, kh, kw, sh, sw, top, left, zeros,
     tile, rows, phases, pitch, part_size, strip_size, image_size,
     results_size) = geometry  # fmt: skip
    x_kind, _, xb, xc, xh, xw = x_strides
    y_kind, _, yb, yc, yh, yw = y_strides
    x_first, y_first = address(x), address(y)
    size = scratch.itemsize
    lanes = VECTOR_BYTES // size
    own = scratch[part * part_size : (part + 1) * part_size]
    strip, converted = own[:strip_size], own[strip_size : strip_size + image_size]
    results = own[strip_size + image_size : strip_size + image_size + results_size]
    zero_row = own[strip_size + image_size + results_size :]
    for i in range(len(zero_row)):
        zero_row[i] = 0
    at_once = y_kind == native_kind(scratch) and yw == size
    as_it_is = x_kind == native_kind(scratch) and xw == size
    in_place = kh <= MASKED and zeros and sw == 1
    image_row = xh if as_it_is or not zeros else width * size
    line = image_row if in_place else phases * pitch * size
    blocks = (channels + together - 1) // together
    tasks = batch * blocks * strips
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, which = divmod(task, strips)
        b, block = divmod(rest, blocks)
        r0, r1 = which * out_rows // strips, (which + 1) * out_rows // strips
        for c in range(block * together, min((block + 1) * together, channels)):
            image = x_first + b * xb + c * xc
            if zeros and not as_it_is:
                first_row = min(max(r0 * sh - top, 0), height - 1)
                end_row = max(min((r1 - 1) * sh + kh - top, height), first_row + 1)
                _convert(image, x_kind, xh, xw, first_row, end_row, width, converted)
                image = address(converted) - first_row * image_row
            row0, rows_inside, col0, cols_inside = np.int64(0), FAR, np.int64(0), FAR
            first = address(strip)
            if in_place:
                row0, rows_inside, col0, cols_inside = r0 * sh - top, height, -left, width
                first = image + row0 * image_row + col0 * size
            else:
                _fill(image, x_kind, image_row, xw, source_rows, source_cols, r0 * sh, (r1 - r0 - 1) * sh + kh, height,
                      width, top, left, zeros, sw, phases, pitch, strip)  # fmt: skip
            for o in range(c * multiplier, (c + 1) * multiplier):
                target = y_first + b * yb + o * yc + r0 * yh
                place, row_step = target, yh
                if not at_once:
                    place, row_step = address(results), out_cols * size
                factors = address(weight) + o * kh * kw * size
                for tile_row in range(0, r1 - r0, rows):
                    r = min(tile_row, r1 - r0 - rows)  # the last tile overlaps the one before
                    for col in range(0, out_cols, 2 * lanes):
                        more = out_cols - col
                        _sums(scratch, tile + (more > lanes),
                              (first + r * sh * line + col * size, line, row0 + r * sh, rows_inside, col0 + col,
                               cols_inside, address(zero_row), address(taps), factors, kw,
                               place + r * row_step + col * size, row_step, record(epilogue, o), more))  # fmt: skip
                if not at_once:
                    neutral = record(epilogue, channels * multiplier)
                    if yh == out_cols * yw:
                        put(results, target, yw, place, (r1 - r0) * out_cols, neutral, y_kind)
                    else:
                        for r in range(r1 - r0):
                            put(results, target + r * yh, yw, place + r * row_step, out_cols, neutral, y_kind)


_share = job_of(_stencil)


@kernel
def stencil(job, parts, patience, x, y, weight, epilogue, tables, numbers, scratch):
    """The whole convolution, as a job of the team."""
    x_strides, y_strides, place = call_numbers(numbers)
    return _share(job, parts, patience,
                  (x, x_strides, y, y_strides, weight, epilogue, table(tables, 0), table(tables, 1), table(tables, 2),
                   _geometry(place), scratch))  # fmt: skip
