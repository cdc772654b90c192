"""Windows of the padded image, in the order in which the engines read them."""

from __future__ import annotations

from .kernel import kernel
from .moves import add_vectors, copy_elements, put_line, transpose_block
from .vectors import VECTOR_BYTES

__all__ = ["add_in_pairs", "copy", "fill_plane", "put", "put_more", "stage_rows", "transpose"]

_add = add_vectors()
copy = copy_elements()
put = put_line(add=False)
put_more = put_line(add=True)
transpose = transpose_block()


@kernel
def add_in_pairs(sums, depth, count, last, nbytes):
    """Adds partial sums of `nbytes` each in pairs, `depth` of them at the start of `sums`; returns how many are left.

    To be called after each part, `count` so far: as `accumulate` in engines/accuracy.py does; and all after the last.
    """
    while depth > 1 and (count % 2 == 0 or last):
        place = sums.ctypes.data + (depth - 2) * nbytes
        _add(sums, (place, place + nbytes, nbytes // VECTOR_BYTES))
        depth -= 1
        count //= 2
    return depth


@kernel
def fill_plane(x, start, row_step, col_step, source_rows, source_cols, row0, row_jump, rows, col0, col_jump, cols, left,
               width, out, target):  # fmt: skip
    """One channel: out[target + r * cols + j] = padded[row0 + r * row_jump, col0 + j * col_jump].

    `source_rows` and `source_cols` say where rows and columns of the padded image come from, -1 being zero; `left` is
    the padding before the `width` columns of the image.
    """
    base = col0 - left
    low = min((-base + col_jump - 1) // col_jump, cols) if base < 0 else 0
    high = cols
    if base + (cols - 1) * col_jump >= width:
        high = max((width - base + col_jump - 1) // col_jump, low)
    for r in range(rows):
        line = target + r * cols
        row = row0 + r * row_jump
        row = source_rows[row] if row < len(source_rows) else -1
        if row < 0:
            for j in range(cols):
                out[line + j] = 0
            continue
        origin = start + row * row_step
        for j in range(cols):
            if j == low:
                break
            col = col0 + j * col_jump
            col = source_cols[col] if col < len(source_cols) else -1
            out[line + j] = x[origin + col * col_step] if col >= 0 else 0
        place = origin + base * col_step
        step = col_jump * col_step
        if step == 1:
            copy(out, (out.ctypes.data + (line + low) * out.itemsize, x.ctypes.data + (place + low) * out.itemsize,
                       high - low))  # fmt: skip
        else:
            for j in range(low, high):
                out[line + j] = x[place + j * step]
        for j in range(high, cols):
            col = col0 + j * col_jump
            col = source_cols[col] if col < len(source_cols) else -1
            out[line + j] = x[origin + col * col_step] if col >= 0 else 0


@kernel
def _stage_edge(x, origin, channel_step, col_step, channels, source_cols, col0, first, last, lanes, stage, target):
    for j in range(first, last):
        col = source_cols[col0 + j] if col0 + j < len(source_cols) else -1
        for lane in range(lanes):
            inside = col >= 0 and lane < channels
            stage[target + j * lanes + lane] = x[origin + col * col_step + lane * channel_step] if inside else 0


@kernel
def stage_rows(x, start, channel_step, row_step, col_step, channels, source_rows, source_cols, row0, rows, col0, left,
               width, cols, stage, square):  # fmt: skip
    """A part of the padded image for up to as many channels as a vector has lanes: stage[row, column, lane].

    The rest of the lanes are zero. `stage` has room for a vector of columns more; `square` is lanes x lanes of scratch.
    """
    size = x.itemsize
    lanes = VECTOR_BYTES // size
    low = min(max(left - col0, 0), cols)
    high = max(min(left + width - col0, cols), low)
    for r in range(rows):
        target = r * cols * lanes
        row = source_rows[row0 + r] if row0 + r < len(source_rows) else -1
        if row < 0:
            for j in range(cols * lanes):
                stage[target + j] = 0
            continue
        origin = start + row * row_step
        if col_step == 1:
            for j in range(low, high, lanes):
                n = min(lanes, high - j)
                place = x.ctypes.data + (origin + col0 + j - left) * size
                pitch = channel_step * size
                if n < lanes or channels < lanes:
                    for lane in range(lanes):
                        if lane < channels:
                            copy(x, (square.ctypes.data + lane * lanes * size, place + lane * pitch, n))
                        else:
                            for i in range(n):
                                square[lane * lanes + i] = 0
                    place, pitch = square.ctypes.data, lanes * size
                # what the last one writes beyond the image is overwritten: by the edge, by the next row
                transpose(x, (stage.ctypes.data + (target + j * lanes) * size, lanes * size, place, pitch))
        else:
            for j in range(low, high):
                place = origin + (col0 + j - left) * col_step
                for lane in range(lanes):
                    stage[target + j * lanes + lane] = x[place + lane * channel_step] if lane < channels else 0
        _stage_edge(x, origin, channel_step, col_step, channels, source_cols, col0, 0, low, lanes, stage, target)
        _stage_edge(x, origin, channel_step, col_step, channels, source_cols, col0, high, cols, lanes, stage, target)
