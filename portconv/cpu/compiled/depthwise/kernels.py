"""`direct` for depthwise layers, with channels in the lanes: a tap is one vector of weights for as many channels.

Blocks of channels are transposed into `stage`, with zeros at the left and right; the kernel's rows that lie outside the
image are left out. Where the kernel is so large that every output meets every pixel, the parts are exchanged: the sums
run over the pixels, which have no padding, and the kernel slides.
"""

from __future__ import annotations

from ..epilogue import RECORD, RECORD_BYTES, gather_records, record
from ..jobs import job_of, take
from ..kernel import address, inner, kernel, words
from ..memory import (
    add_in_pairs,
    bytes_of,
    call_numbers,
    native_kind,
    put,
    put_turned,
    read,
    square_number,
    turn_square,
)
from ..moves import finish_vectors, move_vectors
from ..products import channel_sums
from ..runs import scattered_square
from ..vectors import VECTOR_BYTES, one_of
from .geometry import Geometry

__all__ = ["WIDTHS", "depthwise"]

# Outputs of a row that are computed together: their sums, a weight and an image vector are in registers.
WIDTHS = tuple(n for n in (14, 12, 10, 8, 7, 6, 4, 2, 1) if n < 13 or VECTOR_BYTES != 32)

_geometry = words(len(Geometry._fields))
_finish = finish_vectors()
_move = move_vectors()
_scatter = one_of({0: scattered_square(None), 1: scattered_square("float16"), 2: scattered_square("bfloat16")})
# By `16 * step + width`.
_sums = one_of({16 * step + n: channel_sums(n, step) for step in (1, 2) for n in WIDTHS})


@inner
def _run(one, one_row, one_col, other, other_row, other_col, rows, cols, chunk, width, step, out, partial):
    """The sums of a run of outputs: all terms at once, or in parts of about `chunk` that are added in pairs."""
    if rows * cols <= chunk:
        _sums(partial, 16 * step + width,
              (one, one_row, one_col, other, other_row, other_col, rows, cols, out))  # fmt: skip
        return
    rows_at_once = max(1, chunk // cols)
    cols_at_once = cols if cols <= chunk else chunk
    run_bytes = width * VECTOR_BYTES
    depth, count = 0, 0
    for i in range(0, rows, rows_at_once):
        for j in range(0, cols, cols_at_once):
            last = i + rows_at_once >= rows and j + cols_at_once >= cols
            _sums(partial, 16 * step + width,
                  (one + i * one_row + j * one_col, one_row, one_col, other + i * other_row + j * other_col, other_row,
                   other_col, min(rows_at_once, rows - i), min(cols_at_once, cols - j),
                   address(partial) + depth * run_bytes))  # fmt: skip
            count += 1
            depth = add_in_pairs(partial, depth + 1, count, last, run_bytes)
    _move(partial, (out, VECTOR_BYTES, address(partial), VECTOR_BYTES, width))


@inner
def _stage(image, kind, x_strides, row0, rows, width, table, stage, line, left, square):
    """A block of channels of the image's rows: stage[row, left + column, lane]; `image` is the address of the first."""
    size = stage.itemsize
    lanes = VECTOR_BYTES // size
    channel_step, row_step, col_step = x_strides
    source = image + row0 * row_step
    native = kind == native_kind(stage)
    number = square_number(stage, kind)
    if number >= 0 and col_step == bytes_of(kind) and row_step == width * col_step and rows * width >= lanes:
        count = rows * width
        for n in range(0, count, lanes):
            n = min(n, count - lanes)  # the last square overlaps the one before
            _scatter(stage, number, (address(stage), address(table) + n * 8, source + n * col_step, channel_step))
        return
    for row in range(rows):
        target = address(stage) + (row * line + left) * VECTOR_BYTES
        place = source + row * row_step
        if native and channel_step == size:  # channels last
            _move(stage, (target, VECTOR_BYTES, place, col_step, width))
        elif abs(channel_step) < abs(col_step):
            for col in range(width):
                read(stage, target + col * VECTOR_BYTES, place + col * col_step, channel_step, lanes, kind)
        else:
            for col in range(0, width, lanes):
                cols = min(lanes, width - col)
                turn_square(place + col * col_step, kind, channel_step, col_step, lanes, cols, square,
                            address(square) + lanes * VECTOR_BYTES)  # fmt: skip
                _move(stage, (target + col * VECTOR_BYTES, VECTOR_BYTES,
                              address(square) + lanes * VECTOR_BYTES, VECTOR_BYTES, cols))  # fmt: skip


@inner
def _put(out, count, cols, kind, place, channel_step, row_step, pixel_step, own, gathered, own_step, neutral):
    """Sums out[pixel, lane] of rows of `cols` pixels, finished, as numbers of a kind, at the address `place`.

    Steps are bytes. `own` is the address of the first lane's record, with `own_step` to the next, `gathered` that of
    them all as vectors have them, `neutral` that of one that changes nothing.
    """
    size = out.itemsize
    lanes = VECTOR_BYTES // size
    if row_step == cols * pixel_step:
        if channel_step == size and kind == native_kind(out):  # channels last
            _finish(out, (place, pixel_step, address(out), count, gathered, lanes))
            return
        if pixel_step == bytes_of(kind) and count >= lanes and square_number(out, kind) >= 0:
            for n in range(0, count, lanes):
                n = min(n, count - lanes)
                put_turned(out, square_number(out, kind), place + n * pixel_step, channel_step,
                           address(out) + n * VECTOR_BYTES, own, own_step)  # fmt: skip
            return
    # no residual comes here
    _finish(out, (address(out), VECTOR_BYTES, address(out), count, gathered, lanes))
    for n in range(count):
        target = place + n // cols * row_step + n % cols * pixel_step
        put(out, target, channel_step, address(out) + n * VECTOR_BYTES, lanes, neutral, kind)


@inner
def _depthwise(job, part, x, x_strides, y, y_strides, weight, epilogue, table, geometry, scratch):
    """Tasks are (image, block of channels, strip of rows)."""
    (batch, channels, multiplier, blocks, strips, height, width, out_rows, out_cols, kh, kw, sh, sw, dh, dw, top, left,
     line, lead, exchanged, run, chunk, least_rows, part_size, stage_size, out_size) = geometry  # fmt: skip
    x_kind, _, xb, xc, xh, xw = x_strides
    y_kind, _, yb, yc, yh, yw = y_strides
    x_first, y_first = address(x), address(y)
    size = scratch.itemsize
    lanes = VECTOR_BYTES // size
    own = scratch[part * part_size : (part + 1) * part_size]
    stage, out = own[:stage_size], own[stage_size : stage_size + out_size]
    rest = own[stage_size + out_size :]
    records, zeros, partial = rest[: RECORD * lanes], rest[RECORD * lanes :], rest[2 * RECORD * lanes :]
    gather_records(epilogue, channels * multiplier, 0, lanes, zeros)
    for row in range(stage_size // (line * lanes)):  # the padding, which no block overwrites
        for col in range(line):
            if col < lead or col >= lead + width:
                _move(zeros, (address(stage) + (row * line + col) * VECTOR_BYTES, 0, address(zeros), 0, 1))
    tasks = batch * blocks * strips
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, strip = divmod(task, strips)
        b, block = divmod(rest, blocks)
        c0 = min(block * lanes, channels - lanes)  # the last block overlaps the one before
        r0, r1 = strip * out_rows // strips, (strip + 1) * out_rows // strips
        first = min(max(r0 * sh - top, 0), height)
        after = max(min((r1 - 1) * sh - top + (kh - 1) * dh + 1, height), first)
        if after > first:
            first = max(min(first, after - least_rows), 0)  # not less than a square
            after = max(after, first + least_rows)
            _stage(x_first + b * xb + c0 * xc, x_kind, (xc, xh, xw), first, after - first, width,
                   table, stage, line, lead, partial)  # fmt: skip
        for m in range(multiplier):
            gather_records(epilogue, c0 * multiplier + m, multiplier, lanes, records)
            factors = address(weight) + (block * multiplier + m) * kh * kw * VECTOR_BYTES
            for r in range(r0, r1):
                row = r * sh - top
                i0 = (max(-row, 0) + dh - 1) // dh  # kernel rows i0 to i1 meet the image
                i1 = min((height - row + dh - 1) // dh, kh)
                for c in range(0, out_cols, run):
                    place = address(out) + ((r - r0) * out_cols + c) * VECTOR_BYTES
                    if i1 <= i0:
                        _move(out, (place, VECTOR_BYTES, address(zeros), 0, min(run, out_cols - c)))
                        continue
                    kernel_row = factors + i0 * kw * VECTOR_BYTES
                    image_row = address(stage) + (row + i0 * dh - first) * line * VECTOR_BYTES
                    if exchanged:
                        _run(image_row, line * VECTOR_BYTES, VECTOR_BYTES,
                             kernel_row + (kw - 1 - left + c) * VECTOR_BYTES, kw * VECTOR_BYTES, -VECTOR_BYTES,
                             i1 - i0, width, chunk, run, sw, place, partial)  # fmt: skip
                    else:
                        _run(kernel_row, kw * VECTOR_BYTES, VECTOR_BYTES, image_row + c * sw * VECTOR_BYTES,
                             dh * line * VECTOR_BYTES, dw * VECTOR_BYTES, i1 - i0, kw, chunk, run, sw, place,
                             partial)  # fmt: skip
            place = y_first + b * yb + (c0 * multiplier + m) * yc + r0 * yh
            _put(out, (r1 - r0) * out_cols, out_cols, y_kind, place, multiplier * yc, yh, yw,
                 record(epilogue, c0 * multiplier + m), address(records), multiplier * RECORD_BYTES,
                 record(epilogue, channels * multiplier))  # fmt: skip


_share = job_of(_depthwise)


@kernel
def depthwise(job, parts, patience, x, y, weight, epilogue, table, numbers, scratch):
    """The whole convolution, as a job of the team."""
    x_strides, y_strides, place = call_numbers(numbers)
    return _share(job, parts, patience,
                  (x, x_strides, y, y_strides, weight, epilogue, table, _geometry(place), scratch))  # fmt: skip
