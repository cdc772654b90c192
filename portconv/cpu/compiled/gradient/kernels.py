"""The gradient of the weight: sums over positions, in register tiles of outputs by vectors of what their taps read.

A cotangent and a window meet at each position: the tile adds their outer product. So the image is turned once, with the
channels of a pixel side by side (`stage`), and every tap's windows lie in it as they are, at an offset: none is copied.
"""

from __future__ import annotations

from ..jobs import job_of, take
from ..kernel import address, inner, kernel, words
from ..memory import add_in_pairs, copy, fill_pixels, stage_rows
from ..vectors import MAX_VECTORS, ROWS, VECTOR_BYTES, one_of
from .geometry import Geometry
from .products import position_products

__all__ = ["TILE_ROWS", "arrange", "gradient", "stage"]

_geometry, _part, _strides, _image = words(len(Geometry._fields)), words(4), words(4), words(6)
# Register tiles, by `16 * rows + vectors`.
TILE_ROWS = tuple(n for n in (8, 4, 2, 1) if n <= ROWS)
_products = one_of({16 * r + n: position_products(r, n) for r in TILE_ROWS for n in range(1, MAX_VECTORS + 1)})


@inner
def _stage(job, part, x, numbers, source_rows, source_cols, staged, scratch):
    """The padded image of a part of the batch or of its rows. Tasks are (image, group, block of channels)."""
    place = address(numbers)
    kind, _, xb, xc, xh, xw = _image(place)
    first_image, images, first_row, rows = _part(place + 80)
    (groups, inputs, _, pixels, blocks, block_size, image_size, cols, halo_rows, row_step, _, _, shift, apart, left,
     width, _, _, _, _, _, _, _, _, _, _, part_size) = _geometry(place + 112)  # fmt: skip
    lanes = VECTOR_BYTES // staged.itemsize
    square = scratch[part * part_size : (part + 1) * part_size]
    count = (rows - 1) * row_step + halo_rows + 1
    tasks = images * groups * blocks
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, block = divmod(task, blocks)
        b, g = divmod(rest, groups)
        c = g * inputs + block * lanes
        image = address(x) + (first_image + b) * xb + c * xc + shift * xw
        start = b * image_size + (g * blocks + block) * block_size
        if pixels:
            fill_pixels(image, kind, xh, xw, xc, inputs, source_rows, source_cols, first_row * row_step, count, 0,
                        cols, left, width, staged, start, cols * inputs)  # fmt: skip
        else:
            stage_rows(image, kind, xc, xh, apart * xw, min(lanes, inputs - block * lanes), source_rows, source_cols,
                       first_row * row_step, count, 0, left, width, cols, staged[start : start + block_size],
                       square)  # fmt: skip


@inner
def _gradient(job, part, dy, numbers, taps, staged, out, scratch):
    """The sums of a part, out[group, output, tap, lane]. Tasks are (group, vectors, tap, some outputs)."""
    place = address(numbers)
    yb, yc, yh, yw = _strides(place + 48)
    first_image, images, first_row, rows = _part(place + 80)
    (groups, _, outputs, _, blocks, block_size, image_size, _, _, row_step, col_step, line, _, _, _, _, count_taps,
     vectors, vector_step, tile_rows, tile_vectors, at_a_time, chunk, near, cols, images_as_lines,
     part_size) = _geometry(place + 112)  # fmt: skip
    size = staged.itemsize
    sums = scratch[part * part_size : (part + 1) * part_size]
    tile_bytes = tile_rows * tile_vectors * VECTOR_BYTES
    pitch = vectors * (VECTOR_BYTES // size)
    batches, lines, one_line, other_line = images, rows, yh, row_step * line * size
    if images_as_lines:
        batches, lines, cols, one_line, other_line = 1, images, rows * cols, yb, image_size * size
    lines_at_once = max(1, min(lines, near // cols))
    lines_at_once = -(-lines // -(-lines // lines_at_once))
    cols_at_once = -(-cols // -(-cols // near))
    of_vectors, of_outputs = -(-vectors // tile_vectors), -(-outputs // at_a_time)
    tasks = groups * of_vectors * count_taps * of_outputs
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        rest, some = divmod(task, of_outputs)
        rest, tap = divmod(rest, count_taps)
        g, n = divmod(rest, of_vectors)
        v = min(n * tile_vectors, vectors - tile_vectors)  # the last tiles overlap those before
        panel = address(staged) + (g * blocks * block_size + taps[tap] + v * vector_step) * size
        m0, m1 = some * at_a_time, min((some + 1) * at_a_time, outputs)
        level = -(-(m1 - m0) // tile_rows) * tile_bytes  # of the pairwise sums of all tiles
        depth, count, terms = 0, 0, 0
        for b in range(batches):
            for i in range(0, lines, lines_at_once):
                for j in range(0, cols, cols_at_once):
                    some_lines, some_cols = min(lines_at_once, lines - i), min(cols_at_once, cols - j)
                    if terms > 0 and terms + some_lines * some_cols > chunk:
                        count += 1
                        depth, terms = add_in_pairs(sums, depth + 1, count, False, level), 0
                    # all tiles read these positions while they are in the first cache
                    place, window = b * yb + i * one_line + j * yw, b * image_size + j * col_step
                    place += address(dy) + first_image * yb + first_row * yh
                    target = address(sums) + depth * level
                    for m in range(m0, m1, tile_rows):
                        o = g * outputs + min(m, outputs - tile_rows)
                        _products(sums, 16 * tile_rows + tile_vectors,
                                  (place + o * yc, yc, yw, one_line, panel + window * size + i * other_line,
                                   vector_step * size, col_step * size, other_line, some_lines, some_cols, target,
                                   terms))  # fmt: skip
                        target += tile_bytes
                    terms += some_lines * some_cols
        add_in_pairs(sums, depth + 1, count + 1, True, level)
        source = address(sums)
        for m in range(m0, m1, tile_rows):
            o = g * outputs + min(m, outputs - tile_rows)
            for r in range(tile_rows):
                target = ((o + r) * count_taps + tap) * pitch + v * (VECTOR_BYTES // size)
                copy(out, (address(out) + target * size, source + r * tile_vectors * VECTOR_BYTES,
                           tile_vectors * (VECTOR_BYTES // size)))  # fmt: skip
            source += tile_bytes


@inner
def _arrange(job, part, sums, inputs, kernel_rows, kernel_cols, row, pitch, step, out):
    """out[output, channel, kernel row, kernel column] of sums[output, kernel row, kernel column, channel].

    `row` and `step` are the elements of the sums from kernel row to kernel row, from column to column; `pitch` those
    from output to output. Tasks are outputs.
    """
    taps = kernel_rows * kernel_cols
    tasks = len(sums) // pitch
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        for r in range(kernel_rows):
            for c in range(kernel_cols):
                source = task * pitch + r * row + c * step
                target = task * inputs * taps + r * kernel_cols + c
                for i in range(inputs):
                    out[target + i * taps] = sums[source + i]


_staged = job_of(_stage)
_summed = job_of(_gradient)
_arranged = job_of(_arrange)


@kernel
def stage(job, parts, patience, x, numbers, source_rows, source_cols, staged, scratch):
    """The padded image, turned, as a job of the team."""
    return _staged(job, parts, patience, (x, numbers, source_rows, source_cols, staged, scratch))


@kernel
def gradient(job, parts, patience, dy, numbers, taps, staged, out, scratch):
    """The sums, as a job of the team."""
    return _summed(job, parts, patience, (dy, numbers, taps, staged, out, scratch))


@kernel
def arrange(job, parts, patience, sums, inputs, kernel_rows, kernel_cols, row, pitch, step, out):
    """The sums in the order of a weight, as a job of the team."""
    return _arranged(job, parts, patience, (sums, inputs, kernel_rows, kernel_cols, row, pitch, step, out))
