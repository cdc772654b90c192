"""`winograd` in channels-last tiles: as many channels at a time as a vector has lanes, whatever the size of the image.

A line is a row of tiles, or a part of it in wide images. Blocks of lines go through the three steps in the cache of one
thread; where there are too many weights for that, all threads do one step after the other on a larger block, so that
the weights are read once.
"""

from __future__ import annotations

from ....engines.winograd import TILES, Tile, matrices
from ..epilogue import gather_records
from ..jobs import job_of, take
from ..kernel import address, apart, inner, kernel
from ..memory import native_kind, put_lanes, stage_rows, turn_square
from ..moves import finish_vectors, mark_nonfinite, round_vectors, tile_transform, widen_weights
from ..products import row_products
from ..vectors import MAX_VECTORS, ROWS, VECTOR_BYTES, Generate, one_of

__all__ = ["CHANNELS", "pack", "winograd"]

CHANNELS = 32  # of a task that packs weights

_mark = mark_nonfinite()
_finish = finish_vectors()
_products_of = one_of({n: row_products(ROWS, n) for n in (1, 2, 3)})


def _forward(size: tuple[int, int]) -> Generate:
    """`B^T d B`. The matrix depends on nothing but its size: on how many points there are."""
    return tile_transform(matrices(1, size[0])[2], matrices(1, size[1])[2])


def _back(tile: Tile) -> Generate:
    """`A^T M A` of a tile."""
    left, right = (matrices(m, r)[0] for m, r in zip(tile.outputs, tile.kernel, strict=True))
    return tile_transform(left, right)


# By `16 * nh + nw`, and by the place in TILES.
_transform_inputs = one_of({16 * nh + nw: _forward((nh, nw)) for nh, nw in dict.fromkeys(tile.size for tile in TILES)})
_transform_products = one_of({number: _back(tile) for number, tile in enumerate(TILES)})


def _of_weights(tile: Tile) -> Generate:
    """`G g G^T` of a kernel."""
    left, right = (matrices(m, r)[1] for m, r in zip(tile.outputs, tile.kernel, strict=True))
    return tile_transform(left, right)


_transform_weights = one_of({number: _of_weights(tile) for number, tile in enumerate(TILES)})
_widen, _round = widen_weights(), round_vectors()


@inner
def _place(line, down, segments, across, row_tiles):
    """Image, row of tiles and first tile of a line. The last line of a row overlaps the one before it."""
    rest, segment = line // segments, line % segments
    return rest // down, rest % down, min(segment * across, row_tiles - across)


@apart
def _inputs(l0, l1, padded, x, x_strides, source_rows, source_cols, geometry, v, at, stage, square):
    """Lines l0 to l1, transformed: v[product, tile, channel], from the element `at` on."""
    (channels, c_pad, outputs, o_pad, down, row_tiles, segments, across, mh, mw, nh, nw, out_rows, row_cols, left,
     width, chunk, form) = geometry  # fmt: skip
    kind, _, xb, xc, xh, xw = x_strides
    x_first = address(x)
    size = v.itemsize
    lanes = VECTOR_BYTES // size
    cols = (across - 1) * mw + nw
    for line in range(l0, l1):
        b, row, first = _place(line, down, segments, across, row_tiles)
        row *= mh
        for c in range(0, channels, lanes):
            stage_rows(x_first + b * xb + c * xc, kind, xc, xh, xw, min(lanes, channels - c), source_rows, source_cols,
                       row, nh, first * mw, left, width, cols, stage, square)  # fmt: skip
            for i in range(across):
                tile = (line - l0) * across + i
                source = address(stage) + i * mw * VECTOR_BYTES
                target = address(v) + (at + tile * c_pad + c) * size
                step = padded * c_pad * size
                arguments = (source, cols * VECTOR_BYTES, VECTOR_BYTES, target, nw * step, step, address(square))
                _transform_inputs(v, 16 * nh + nw, arguments)


@apart
def _products(q0, q1, tiles, padded, weight, geometry, v, m):
    """m[product, tile, output] of pairs q0 to q1 of a product and a panel of outputs."""
    (channels, c_pad, outputs, o_pad, down, row_tiles, segments, across, mh, mw, nh, nw, out_rows, row_cols, left,
     width, chunk, form) = geometry  # fmt: skip
    size = v.itemsize
    lanes = VECTOR_BYTES // size
    vectors_all = o_pad // lanes
    panels = (vectors_all + MAX_VECTORS - 1) // MAX_VECTORS
    for q in range(q0, q1):
        f, panel = q // panels, q % panels
        o = panel * vectors_all // panels * lanes
        vectors = (panel + 1) * vectors_all // panels - panel * vectors_all // panels
        for c in range(0, channels, chunk):
            n = min(chunk, channels - c)
            factors = address(weight) + ((f * o_pad + o) * channels + c * vectors * lanes) * size
            for t in range(0, tiles, ROWS):
                rows = address(v) + ((f * padded + t) * c_pad + c) * size
                out = address(m) + ((f * padded + t) * o_pad + o) * size
                arguments = (rows, c_pad * size, factors, n, out, o_pad * size, c)
                _products_of(v, vectors, arguments)


@apart
def _outputs(l0, l1, padded, y, y_strides, epilogue, geometry, m, at, stage, square, mark):
    """Lines l0 to l1 of the result, from m[product, tile, output]; `mark` becomes NaN if some of it is not finite."""
    (channels, c_pad, outputs, o_pad, down, row_tiles, segments, across, mh, mw, nh, nw, out_rows, row_cols, left,
     width, chunk, form) = geometry  # fmt: skip
    kind, _, yb, yc, yh, yw = y_strides
    y_first = address(y)
    size = m.itemsize
    lanes = VECTOR_BYTES // size
    cols = across * mw
    channels_last = yc == size and kind == native_kind(m)
    for line in range(l0, l1):
        b, row, first = _place(line, down, segments, across, row_tiles)
        row *= mh
        out_cols = min(cols, row_cols - first * mw)
        for o in range(0, outputs, lanes):
            for i in range(across):
                tile = (line - l0) * across + i
                step = padded * o_pad * size
                source = address(m) + (at + tile * o_pad + o) * size
                target = address(stage) + i * mw * VECTOR_BYTES
                _transform_products(
                    m, form, (source, nw * step, step, target, cols * VECTOR_BYTES, VECTOR_BYTES, address(square))
                )
            _mark(m, (mark, address(stage), mh * cols))
            count = min(lanes, outputs - o)
            if channels_last:
                gather_records(epilogue, o, 1, lanes, square)
            for r in range(min(mh, out_rows - row)):
                place = y_first + b * yb + o * yc + (row + r) * yh + first * mw * yw
                line_start = r * cols * lanes
                if channels_last:
                    source = address(stage) + line_start * size
                    _finish(m, (place, yw, source, out_cols, address(square), count))
                    continue
                for j in range(0, out_cols, lanes):
                    n = min(lanes, out_cols - j)
                    source = address(stage) + (line_start + j * lanes) * size
                    put_lanes(square, place + j * yw, yc, yw, source, count, n, epilogue, o, kind)


@inner
def _step(job, part, step, b0, b1, block_lines, x, x_strides, y, y_strides, weight, epilogue, source_rows,
          source_cols, geometry, scratch, sizes, marks):  # fmt: skip
    """Step 0 is everything, block by block in the thread's own scratch memory; 1 to 3 are inputs, products, outputs.

    A task is a block, some lines, or some panels of a product.
    """
    own_size, v_size, m_size, stage_size = sizes
    (channels, c_pad, outputs, o_pad, down, row_tiles, segments, across, mh, mw, nh, nw, out_rows, row_cols, left,
     width, chunk, form) = geometry  # fmt: skip
    lanes = VECTOR_BYTES // scratch.itemsize
    pairs = nh * nw * ((o_pad // lanes + MAX_VECTORS - 1) // MAX_VECTORS)
    lines = b1 - b0
    mark = address(marks) + part * VECTOR_BYTES
    padded = (block_lines * across + ROWS - 1) // ROWS * ROWS
    if step == 0:
        own = scratch[part * own_size : (part + 1) * own_size]
        v, m = own[:v_size], own[v_size : v_size + m_size]
        own = own[v_size + m_size :]
        stage, square = own[:stage_size], own[stage_size:]
        blocks = (lines + block_lines - 1) // block_lines
        for _ in range(blocks):
            i = take(job, part, blocks)
            if i >= blocks:
                break
            l0, l1 = b0 + i * lines // blocks, b0 + (i + 1) * lines // blocks
            _inputs(l0, l1, padded, x, x_strides, source_rows, source_cols, geometry, v, 0, stage, square)
            _products(0, pairs, (l1 - l0) * across, padded, weight, geometry, v, m)
            _outputs(l0, l1, padded, y, y_strides, epilogue, geometry, m, 0, stage, square, mark)
        return
    v, m = scratch[:v_size], scratch[v_size : v_size + m_size]
    own = scratch[v_size + m_size + part * own_size : v_size + m_size + (part + 1) * own_size]
    stage, square = own[:stage_size], own[stage_size:]
    tasks = pairs if step == 2 else lines
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        line, tile = b0 + task, task * across
        if step == 1:
            _inputs(line, line + 1, padded, x, x_strides, source_rows, source_cols, geometry, v, tile * c_pad, stage,
                    square)  # fmt: skip
        elif step == 2:
            _products(task, task + 1, lines * across, padded, weight, geometry, v, m)
        else:
            _outputs(line, line + 1, padded, y, y_strides, epilogue, geometry, m, tile * o_pad, stage, square, mark)


_share = job_of(_step)


@kernel
def winograd(job, parts, patience, *arguments):
    """A step of the convolution, or the whole of it, as a job of the team."""
    return _share(job, parts, patience, arguments)


@inner
def _pack(job, part, weight, steps, outputs, channels, taps, form, places, limits, packed, marks, own, wide):
    """Weights of tiles: packed[product, place of the outputs, channel, lane].

    `steps` are those of the weight, in bytes: from output to output, channel to channel, tap to tap.

    Tasks are (as many outputs as lanes, some channels). `places` says where the former begin, and how wide the panel
    is that they belong to. `marks` are as many as lanes for each thread, `own` its scratch memory, `wide` that in
    float64.
    """
    size = packed.itemsize
    lanes = VECTOR_BYTES // size
    products, kernel_cols, tile_cols = form[1], form[2], form[3]
    own_size, wide_size = (CHANNELS * taps + 2 * lanes) * lanes, (taps + 2 * products) * lanes
    mine, square = own[part * own_size :], own[part * own_size + (CHANNELS * taps + lanes) * lanes :]
    turned, limit = address(mine), address(limits)
    mark = address(marks) + part * VECTOR_BYTES
    tile = address(wide) + part * wide_size * 8
    found, between = tile + taps * lanes * 8, tile + (taps + products) * lanes * 8
    step = packed.size // products * size
    output_step, channel_step, tap_step = steps
    # taps are read as they lie in memory, those of several channels at once where these follow each other
    first = address(weight) + min(0, (taps - 1) * tap_step)
    start, row_step, col_step = tile, kernel_cols * lanes * 8, lanes * 8
    if tap_step < 0:
        start, row_step, col_step = tile + (taps - 1) * lanes * 8, -row_step, -col_step
    some = -(-channels // CHANNELS)
    tasks = len(places) // 2 * some
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        if output_step < channel_step:  # all outputs of some channels, which lie side by side, and then the next ones
            group, block = divmod(task, tasks // some)
        else:
            block, group = divmod(task, some)
        o, i0 = block * lanes, group * CHANNELS
        count = min(CHANNELS, channels - i0)
        runs, run = (1, count * taps) if channel_step == taps * size else (count, taps)
        for i in range(runs):
            source = first + o * output_step + (i0 + i) * channel_step
            for n in range(0, run, lanes):
                turn_square(source + n * size, native_kind(packed), output_step, size, min(lanes, outputs - o),
                            min(lanes, run - n), square, turned + (i * taps + n) * VECTOR_BYTES)  # fmt: skip
        for i in range(count):
            _widen(packed, (tile, turned + i * taps * VECTOR_BYTES, taps, mark, limit))
            for half in range(0, lanes * 8, VECTOR_BYTES):
                _transform_weights(wide, form[0],
                                   (start + half, row_step, col_step, found + half,
                                    tile_cols * lanes * 8, lanes * 8, between))  # fmt: skip
            target = address(packed) + (places[2 * block] + (i0 + i) * places[2 * block + 1]) * size
            _round(packed, (target, step, found, products))


_packed = job_of(_pack)


@kernel
def pack(job, parts, patience, weight, steps, outputs, channels, taps, form, places, limits, packed, marks, own, wide):
    """The weights of tiles, as a job of the team."""
    arguments = weight, steps, outputs, channels, taps, form, places, limits, packed, marks, own, wide
    return _packed(job, parts, patience, arguments)
