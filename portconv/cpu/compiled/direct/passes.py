"""Patches of `direct`, and the two passes of separable kernels: all columns' sums first, then their rows' sums.

The first pass reads the image where it lies, in its own numbers, if pixels follow each other there; what stands in the
padding is copied, and so are images in other orders.
"""

from __future__ import annotations

from ..conversions import FROM_ROWS
from ..epilogue import record
from ..kernel import address, apart, inner
from ..memory import (
    add_in_pairs,
    bytes_of,
    copy,
    fill_pixels,
    native_kind,
    put,
    put_side_by_side,
)
from ..products import tap_sums
from ..runs import column_sums
from ..vectors import ROWS, VECTOR_BYTES, one_of

__all__ = ["BLOCK", "GROUP", "SHAPES", "patch", "store", "two_passes"]

# Rows and vectors of a patch; their sums fill half of the registers.
SHAPES = ((8, 1), (4, 2), (2, 4)) if VECTOR_BYTES == 32 else ((8, 1), (8, 2), (4, 4))
BLOCK = 8  # rows between the two passes
GROUP = 2  # vectors that the first pass computes side by side
LINES = (8, 4, 1) if ROWS == 8 else (4, 1)  # rows that it computes at once

# By the vectors of the patch.
_masked_taps = one_of({shape[1]: tap_sums(*shape, masked=True) for shape in SHAPES})
_taps = one_of({shape[1]: tap_sums(*shape, masked=False) for shape in SHAPES})
# By `16 * kind + rows`; kind 0 is that of the computation, the others follow FROM_ROWS.
_columns = one_of(
    {16 * n + rows: column_sums(rows, GROUP, kind) for n, kind in enumerate((None, *FROM_ROWS)) for rows in LINES}
)


@inner
def patch(base, row_bytes, channel_bytes, channels, weight, kernel_size, dilation, top, left, height, width, rows,
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
    zeros = address(sums) + len(sums) * size - vectors * VECTOR_BYTES
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
                         address(sums) + depth * tile_bytes)  # fmt: skip
            if masked:
                _masked_taps(sums, vectors, arguments)
            else:
                _taps(sums, vectors, arguments)
            count += 1
            depth = add_in_pairs(sums, depth + 1, count, last, tile_bytes)


@inner
def store(sums, pitch, rows, cols, epilogue, channel, phases, phase, pixel, kind, start, row_step, step):
    """The results of a patch, as numbers of a kind, at the address `start`; steps are bytes.

    They are of one channel, or of pixels of several, from the channel `phase` on; see `gather_phases`.
    """
    size = sums.itemsize
    for r in range(rows):
        source, target = address(sums) + r * pitch * size, start + r * row_step
        if pixel == 1:
            put(sums, target, step, source, cols, record(epilogue, channel), kind)
        else:
            put_side_by_side(sums, target, step, source, cols, address(phases), kind, phase, pixel)


@apart
def _column(table, kind, count, overlapped, weight, kh, rows, together, chunk, line, between, target, sums):
    """The first pass over a run of `count` elements, for a block of rows: between[r, target:].

    `table` is the address of the addresses where the run begins in each row; `kind` is 0 for the dtype of the
    computation, or the place in FROM_ROWS and one more. It has those of `together` rows and of the kernel's. If
    `overlapped`, nothing beyond the run is read.
    """
    size = between.itemsize
    width = GROUP * VECTOR_BYTES // size
    apart = size if kind == 0 else bytes_of(FROM_ROWS[kind - 1])
    lines = 1
    for some in LINES:
        if lines == 1 and some <= together and some <= kh <= chunk:
            lines = some
    for r in range(0, rows, lines):
        for place in range(0, count, width):
            e = min(place, count - width) if overlapped else place
            out = address(between) + (r * line + target + e) * size
            if kh <= chunk:
                _columns(sums, 16 * kind + lines, (table + r * 8, e * apart, weight, kh, out, line * size))
                continue
            depth = 0
            for k in range(0, kh, chunk):
                partial = address(sums) + depth * width * size
                _columns(sums, 16 * kind + 1, (table + (r + k) * 8, e * apart, weight + k * size, min(chunk, kh - k),
                                               partial, line * size))  # fmt: skip
                depth = add_in_pairs(sums, depth + 1, k // chunk + 1, k + chunk >= kh, width * size)
            copy(sums, (out, address(sums), width))


@apart
def two_passes(image, kind, x_strides, pixel, source_rows, source_cols, left, image_width, column, row, kernel_size,
               dilation, r0, rows, c0, cols, patch_rows, vectors, chunk, line, window, between, zeros, table, sums,
               epilogue, channel, phases, y_kind, start, y_row, y_step):  # fmt: skip
    """A strip of the result of a separable kernel, whose factors are at the addresses `column` and `row`.

    `pixel` channels lie side by side, and have the same kernel. `table` has room for the addresses of a block's rows.
    """
    xc, xh, xw = x_strides
    kh, kw = kernel_size
    dh, dw = dilation
    size = between.itemsize
    width = GROUP * VECTOR_BYTES // size
    reach_rows, all_cols = (kh - 1) * dh, cols + (kw - 1) * dw
    # columns first to last of the strip are the image's own
    first = min(max(left - c0, 0), all_cols)
    last = max(min(left + image_width - c0, all_cols), first)
    apart = bytes_of(kind)
    read_as = -1
    if kind == native_kind(between):
        read_as = 0
    for n in range(len(FROM_ROWS)):
        if kind == FROM_ROWS[n]:
            read_as = n + 1
    if read_as < 0 or xw != pixel * apart or (pixel > 1 and xc != apart) or (last - first) * pixel < width:
        first, last = all_cols, all_cols
    copied = first + all_cols - last
    if copied > 0:
        height = rows + reach_rows
        fill_pixels(image, kind, xh, xw, xc, pixel, source_rows, source_cols, r0, height, c0, first, left,
                    image_width, window, 0, line)  # fmt: skip
        fill_pixels(image, kind, xh, xw, xc, pixel, source_rows, source_cols, r0, height, c0 + last,
                    all_cols - last, left, image_width, window, first * pixel, line)  # fmt: skip
    begin = image + (c0 + first - left) * xw
    # rows of a dilated kernel are not neighbours: then each row of the result has a table of its own
    together = BLOCK if dh == 1 else 1
    for block in range(0, rows, BLOCK):
        some = min(BLOCK, rows - block)
        for r in range(0, some, together):
            if copied > 0:
                for t in range(together + kh - 1):
                    table[t] = address(window) + min(block + r + t * dh, rows + reach_rows - 1) * line * size
                _column(address(table), 0, first * pixel, False, column, kh, min(together, some), together, chunk,
                        line, between, r * line, sums)  # fmt: skip
            if last > first:
                for t in range(together + kh - 1):
                    source = r0 + block + r + t * dh
                    source = source_rows[source] if source < len(source_rows) else -1
                    table[t] = begin + source * xh if source >= 0 else address(zeros)
                _column(address(table), read_as, (last - first) * pixel, True, column, kh, min(together, some),
                        together, chunk, line, between, r * line + first * pixel, sums)  # fmt: skip
            if all_cols > last:
                for t in range(together + kh - 1):
                    place = min(block + r + t * dh, rows + reach_rows - 1) * line + first * pixel
                    table[t] = address(window) + place * size
                _column(address(table), 0, (all_cols - last) * pixel, False, column, kh, min(together, some),
                        together, chunk, line, between, r * line + last * pixel, sums)  # fmt: skip
        for r in range(0, some, patch_rows):
            for col in range(0, cols * pixel, vectors * VECTOR_BYTES // size):
                patch(address(between), line * size, 0, 1, row, (1, kw), (1, dw * pixel), r, col, 0, 0, patch_rows,
                      vectors, False, chunk, sums)  # fmt: skip
                count = min(vectors * VECTOR_BYTES // size, cols * pixel - col)
                store(sums, vectors * VECTOR_BYTES // size, min(patch_rows, some - r), count, epilogue, channel,
                      phases, col % pixel, pixel, y_kind, start + (block + r) * y_row + col * y_step, y_row,
                      y_step)  # fmt: skip
