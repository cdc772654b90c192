"""Pooling and interpolation, row of outputs by row of outputs, with what lies side by side in memory in the lanes.

Cells are what columns are made of: all channels of a pixel in layout NHWC, and one element in NCHW, where each channel
is a plane of its own. Pooling joins the numbers of a window where they lie, if cells fill vectors; else, and where that
takes fewer steps, it joins rows first, into a line. In NCHW that line has its padding, and the join goes from element
to element, of which each stride's first is a result. Interpolation mixes the columns of the two rows that an output row
lies between, each row once, and then these two.
"""

from __future__ import annotations

import numpy as np

from ..epilogue import record
from ..jobs import job_of, take
from ..kernel import address, apart, inner, kernel, table, words
from ..memory import bytes_of, call_numbers, copy, native_kind, put_apart, read
from ..vectors import intrinsic_of, one_of
from .cells import added, channel_means, joined, larger, mixed, plane_means
from .geometry import MeanGeometry, PoolingGeometry, ResizingGeometry

__all__ = ["LARGEST", "LINEAR", "NEAREST", "SUM", "mean", "pool", "resize"]

LARGEST, SUM, MEAN = range(3)
NEAREST, LINEAR = range(2)

_mean = words(len(MeanGeometry._fields))
_pooling, _resizing = words(len(PoolingGeometry._fields)), words(len(ResizingGeometry._fields))

_variants = one_of(
    {
        LARGEST: joined(larger, -np.inf),
        SUM: joined(added, -0.0),
        MEAN: joined(added, -0.0, divided=True),
    }
)
_plane_means, _channel_means = intrinsic_of(plane_means()), intrinsic_of(channel_means())
_mixtures = one_of({NEAREST: mixed(linear=False), LINEAR: mixed(linear=True)})


@apart
def _join(like, kind, target, target_step, source, source_step, outputs, row_step, rows, col_step, cols, count,
          row_count, col_counts):  # fmt: skip
    _variants(like, kind, (target, target_step, source, source_step, outputs, row_step, rows, col_step, cols, count,
                           row_count, col_counts))  # fmt: skip


@apart
def _mix(like, kind, target, target_step, source, source_step, outputs, low, high, share, count):
    _mixtures(like, kind, (target, target_step, source, source_step, outputs, low, high, share, count))


@inner
def _met(place, kernel_size, dilation, size):
    """The first tap that meets the axis, and how many do; `place` is where the first one of all is."""
    first = (max(-place, 0) + dilation - 1) // dilation
    return first, max(min((size - place + dilation - 1) // dilation, kernel_size) - first, 0)


# --- pooling ----------------------------------------------------------------------------------------------------------


@inner
def _pool_strips(job, part, x, x_numbers, y, y_numbers, counts, neutral, geometry, scratch):
    """Tasks are (image, plane, strip of rows of outputs)."""
    (batch, planes, cell, strips, height, width, out_rows, out_cols, kh, kw, sh, sw, dh, dw, top, left, kind,
     rows_first, whole_first, wholes, part_size, line_size, row_size) = geometry  # fmt: skip
    x_kind, _, xb, xc, xh, xw = x_numbers
    y_kind, _, yb, yc, yh, _ = y_numbers
    size = scratch.itemsize
    native = native_kind(scratch)
    own = part * part_size
    dense, out = own + line_size, own + 2 * line_size
    line = address(scratch) + own * size
    row, results = address(scratch) + dense * size, address(scratch) + out * size  # a row is no longer needed then
    lanes_are_columns = cell == 1
    step = xw if lanes_are_columns else xc  # between elements of a row
    in_place = x_kind == native and step == size
    column = cell * size
    inner = line + left * size if lanes_are_columns else line
    # the padding, which no row overwrites
    _join(scratch, kind, line, 0, line, 0, 1, 0, 0, 0, 1, line_size, 0, 0)
    tasks = batch * planes * strips
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, strip = divmod(task, strips)
        b, plane = divmod(rest, planes)
        image = address(x) + b * xb + plane * xc
        for r in range(strip * out_rows // strips, (strip + 1) * out_rows // strips):
            i0, rows = _met(r * sh - top, kh, dh, height)
            source, row_step = image + (r * sh - top + i0 * dh) * xh, dh * xh
            if in_place and rows_first:
                _join(scratch, kind, inner, 0, source, 0, 1, row_step, rows, 0, 1, row_size, 0, 0)
            elif not in_place:
                _join(scratch, kind, inner, 0, inner, 0, 1, 0, 0, 0, 1, row_size, 0, 0)
                for i in range(rows):
                    read(scratch, row, source + i * row_step, step, row_size, x_kind)
                    _join(scratch, kind, inner, 0, inner, 0, 1, row - inner, 2, 0, 1, row_size, 0, 0)
            if rows_first or not in_place:
                source, row_step, rows = inner, 0, 1
            place = address(y) + b * yb + plane * yc + r * yh
            if lanes_are_columns:
                _join(scratch, kind, row, 0, line, 0, 1, 0, 1, dw * size, kw, (out_cols - 1) * sw + 1, 0, 0)
                for c in range(out_cols):
                    value = scratch[dense + c * sw]
                    scratch[out + c] = value if kind == LARGEST else value / (counts[r] * counts[out_rows + c])
                if y_kind == native:
                    copy(scratch, (place, results, out_cols))
            else:
                target = place if y_kind == native else results
                c = 0
                while c < out_cols:
                    k0, cols = _met(c * sw - left, kw, dw, width)
                    run = wholes if c == whole_first and wholes > 0 else 1
                    _join(scratch, kind if kind == LARGEST else MEAN, target + c * column, column,
                          source + (c * sw - left + k0 * dw) * column, sw * column, run, row_step,
                          rows if cols > 0 else 0, dw * column, cols, cell, address(counts) + r * size,
                          address(counts) + (out_rows + c) * size)  # fmt: skip
                    c += run
            if y_kind != native:
                put_apart(scratch, place, bytes_of(y_kind), results, out_cols * cell, record(neutral, 0), y_kind)


_pool = job_of(_pool_strips)


@kernel
def pool(job, parts, patience, x, y, counts, neutral, numbers, scratch):
    """The whole operation, as a job of the team."""
    x_numbers, y_numbers, place = call_numbers(numbers)
    return _pool(job, parts, patience, (x, x_numbers, y, y_numbers, counts, neutral, _pooling(place), scratch))


# --- averages of whole images, which lie in the order of the layout ---------------------------------------------------


@inner
def _some_means(job, part, x, y, divisor, numbers):
    """Tasks are some planes, or in NHWC some channels of an image."""
    tasks, blocks, planes, some, pixels = _mean(address(numbers))
    size = y.itemsize
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        image, block = divmod(task, max(blocks, 1)) if blocks else (0, task)
        first = block * some
        count = min(some, planes - first)
        target = address(y) + (image * planes + first) * size
        if blocks:
            source = address(x) + (image * pixels * planes + first) * size
            _channel_means(y, (target, source, planes * size, pixels, count, address(divisor)))
        else:
            _plane_means(y, (target, address(x) + first * pixels * size, count, pixels, address(divisor)))


_means = job_of(_some_means)


@kernel
def mean(job, parts, patience, x, y, divisor, numbers):
    """The whole operation, as a job of the team."""
    return _means(job, parts, patience, (x, y, divisor, numbers))


# --- interpolation ----------------------------------------------------------------------------------------------------


@inner
def _resize_strips(job, part, x, x_numbers, y, y_numbers, tables, shares, neutral, geometry, scratch):
    """Tasks are (image, plane, strip of rows of outputs)."""
    batch, planes, cell, strips, width, out_rows, out_cols, row_kind, col_kind, part_size, line_size, row_size = (
        geometry
    )
    x_kind, _, xb, xc, xh, xw = x_numbers
    y_kind, _, yb, yc, yh, _ = y_numbers
    low_rows, high_rows, low, high = table(tables, 0), table(tables, 1), table(tables, 2), table(tables, 3)
    slots = address(table(tables, 4))  # 0 and 1
    size = scratch.itemsize
    native = native_kind(scratch)
    lines = part * part_size
    row = lines + 2 * line_size
    first, results = address(scratch) + lines * size, address(scratch) + (row + row_size) * size
    step = xw if cell == 1 else xc
    in_place = x_kind == native and step == size and cell > 1
    column = cell * size
    col_shares = address(shares) + out_rows * size
    tasks = batch * planes * strips
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, strip = divmod(task, strips)
        b, plane = divmod(rest, planes)
        image = address(x) + b * xb + plane * xc
        made0, made1 = -1, -1  # the rows whose columns are mixed, the even one and the odd one
        for r in range(strip * out_rows // strips, (strip + 1) * out_rows // strips):
            for which in range(1 + row_kind):
                i = high_rows[r] if which else low_rows[r]
                if i == (made1 if i & 1 else made0):
                    continue
                if i & 1:
                    made1 = i
                else:
                    made0 = i
                source = image + i * xh
                if not in_place:
                    read(scratch, address(scratch) + row * size, source, step, row_size, x_kind)
                    source = address(scratch) + row * size
                line = lines + (i & 1) * line_size
                if cell > 1:
                    _mix(scratch, col_kind, address(scratch) + line * size, column, source, column, out_cols,
                         address(low), address(high), col_shares, cell)  # fmt: skip
                else:
                    for c in range(out_cols):
                        value = scratch[row + low[c]]
                        if col_kind == LINEAR:
                            share = shares[out_rows + c]
                            value = value * shares[out_rows + out_cols + c] + scratch[row + high[c]] * share
                        scratch[line + c] = value
            place = address(y) + b * yb + plane * yc + r * yh
            target = place if y_kind == native else results
            _mix(scratch, row_kind, target, 0, first, line_size * size, 1, slots + (low_rows[r] & 1) * 8,
                 slots + (high_rows[r] & 1) * 8, address(shares) + r * size, line_size)  # fmt: skip
            if y_kind != native:
                put_apart(scratch, place, bytes_of(y_kind), target, line_size, record(neutral, 0), y_kind)


_resize = job_of(_resize_strips)


@kernel
def resize(job, parts, patience, x, y, tables, shares, neutral, numbers, scratch):
    """The whole operation, as a job of the team."""
    x_numbers, y_numbers, place = call_numbers(numbers)
    return _resize(job, parts, patience,
                   (x, x_numbers, y, y_numbers, tables, shares, neutral, _resizing(place), scratch))  # fmt: skip
