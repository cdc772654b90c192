"""Windows of the padded image, in the order in which the engines read them."""

from __future__ import annotations

from .conversions import BFLOAT16, BYTES, FLOAT16, FLOAT32, FLOAT64
from .epilogue import RECORD_BYTES, record
from .kernel import address, apart, inner, words
from .moves import add_vectors, copy_elements, prefetch_lines, transpose_block
from .runs import (
    PADDED_STEPS,
    padded_line,
    put_line,
    put_pixels,
    put_square,
    read_line,
    store_line,
    turned_square,
)
from .vectors import VECTOR_BYTES, one_of

__all__ = [
    "add_in_pairs",
    "bytes_of",
    "call_numbers",
    "copy",
    "fill_pixels",
    "fill_plane",
    "native_kind",
    "pairs_due",
    "prefetch_channel",
    "put",
    "put_apart",
    "put_lanes",
    "put_more",
    "put_native",
    "put_side_by_side",
    "put_turned",
    "read",
    "square_number",
    "stage_rows",
    "transpose",
    "turn_square",
]

_add = add_vectors()
copy = copy_elements()
_prefetch = prefetch_lines()
_read = read_line()
_padded = padded_line()
_put = put_line(add=False)
_put_more = put_line(add=True)
_put_pixels = put_pixels()
put_native = store_line(add=False)
_store_more = store_line(add=True)
transpose = transpose_block()
# Of the computation's own numbers, and of half precision: the kinds of networks.
_turned = one_of({0: turned_square(None), 1: turned_square("float16"), 2: turned_square("bfloat16")})
_put_turned = one_of({0: put_square(None), 1: put_square("float16"), 2: put_square("bfloat16")})
_of_an_array = words(6)
AHEAD = 4  # channels: two to eight are as good, as are bytes instead of channels


@inner
def call_numbers(numbers):
    """Of `CompiledPlan.numbers`: those of the image and of the result as tuples, and the address of the geometry."""
    place = address(numbers)
    return _of_an_array(place), _of_an_array(place + 6 * 8), place + 12 * 8


@inner
def read(like, target, source, step, count, kind):
    """`target[:n] = source[:n]`, in the dtype of `like`, for one or more numbers of a kind, `step` bytes apart."""
    if step == like.itemsize and kind == native_kind(like):
        copy(like, (target, source, count))
    else:
        _read_apart(like, target, like.itemsize, source, step, count, kind)


@apart
def _read_apart(like, target, target_step, source, step, count, kind):
    """The same to places that are apart, too."""
    _read(like, (target, target_step, source, step, count, kind))


@inner
def bytes_of(kind):
    """The bytes of a number of a kind."""
    return BYTES[kind & 15]


@inner
def native_kind(like):
    """The kind of the numbers of an array."""
    return FLOAT32 if like.itemsize == 4 else FLOAT64


@inner
def put(like, target, step, source, count, record, kind):
    """`target[:n] = finish(source[:n])` for so many results of a kind, `step` bytes from each other; one at least."""
    if step == like.itemsize and kind == native_kind(like):
        put_native(like, (target, source, count, record))
    else:
        put_apart(like, target, step, source, count, record, kind)


@apart
def put_apart(like, target, step, source, count, record, kind):
    """`put` for results of other kinds than the computation's, or that are apart."""
    _put(like, (target, step, source, count, record, kind))


@apart
def put_side_by_side(like, target, step, source, count, records, kind, phase, channels):
    """`put` for elements of pixels whose channels lie side by side; `phase` is the channel of the first."""
    _put_pixels(like, (target, step, source, count, records, kind, phase, channels))


@inner
def put_more(like, target, step, source, count, record, kind):
    """`target[:n] = finish(target[:n] + source[:n])`, for results in the dtype of the computation."""
    if step == like.itemsize and kind == native_kind(like):
        _store_more(like, (target, source, count, record))
    else:
        _put_more_apart(like, target, step, source, count, record, kind)


@apart
def _put_more_apart(like, target, step, source, count, record, kind):
    _put_more(like, (target, step, source, count, record, kind))


@inner
def pairs_due(depth, count, last):
    """How many of `depth` partial sums are to be added to the sum of part number `count`, which is the last or not.

    As `accumulate` in engines/accuracy.py does.
    """
    pairs = 0
    while pairs < depth and (count % 2 == 0 or last):
        pairs, count = pairs + 1, count // 2
    return pairs


@inner
def add_in_pairs(sums, depth, count, last, nbytes):
    """Adds partial sums of `nbytes` each in pairs, `depth` of them at the start of `sums`; returns how many are left.

    To be called after each part, `count` so far: as `accumulate` in engines/accuracy.py does; and all after the last.
    """
    while depth > 1 and (count % 2 == 0 or last):
        place = address(sums) + (depth - 2) * nbytes
        _add(sums, (place, place + nbytes, nbytes // VECTOR_BYTES))
        depth -= 1
        count //= 2
    return depth


@apart
def fill_plane(image, kind, row_step, col_step, source_rows, source_cols, row0, row_jump, rows, col0, col_jump, cols,
               left, width, out, target):  # fmt: skip
    """One channel: out[target + r * cols + j] = padded[row0 + r * row_jump, col0 + j * col_jump].

    `image` is the address of the channel's first element, whose kind is `kind`; its steps are bytes. `source_rows` and
    `source_cols` say where rows and columns of the padded image come from, -1 being zero; `left` is the padding before
    the `width` columns of the image.
    """
    size = out.itemsize
    base = col0 - left
    low = min((-base + col_jump - 1) // col_jump, cols) if base < 0 else 0
    high = cols
    if base + (cols - 1) * col_jump >= width:
        high = max((width - base + col_jump - 1) // col_jump, low)
    if base == 0 and cols == width and col_jump == row_jump == 1 and row_step == width * col_step:
        row, last = row0, row0 + rows - 1
        if last < len(source_rows) and source_rows[row] >= 0 and source_rows[last] == source_rows[row] + rows - 1:
            read(out, address(out) + target * size, image + source_rows[row] * row_step, col_step, rows * cols,
                 kind)  # fmt: skip
            return
    end = col0 + high * col_jump
    zeros = (low == 0 or source_cols[col0] < 0) and (high == cols or end >= len(source_cols) or source_cols[end] < 0)
    simple = zeros and col_step == size and kind == native_kind(out) and col_jump <= PADDED_STEPS
    for r in range(rows):
        line = target + r * cols
        row = row0 + r * row_jump
        row = source_rows[row] if row < len(source_rows) else -1
        if row < 0:
            for j in range(cols):
                out[line + j] = 0
            continue
        origin = image + row * row_step
        if simple:
            _padded(out, col_jump, (address(out) + line * size, origin + base * size, cols, low, high))
            continue
        if low > 0:
            _fill_edge(origin, kind, col_step, source_cols, col0, col_jump, 0, low, out, line)
        if high > low:
            read(out, address(out) + (line + low) * size, origin + (base + low * col_jump) * col_step,
                 col_jump * col_step, high - low, kind)  # fmt: skip
        if high < cols:
            _fill_edge(origin, kind, col_step, source_cols, col0, col_jump, high, cols, out, line)


@inner
def prefetch_channel(like, channel, channels, first, channel_step, count):
    """Ask for some bytes of a channel that is filled soon after this one, if they lie far from each other.

    `first` is the address of those of channel 0. No processor foresees such a step.
    """
    if channel + AHEAD < channels and count < channel_step:
        _prefetch(like, (first + (channel + AHEAD) * channel_step, count))


@apart
def fill_pixels(image, kind, row_step, col_step, channel_step, channels, source_rows, source_cols, row0, rows, col0,
                cols, left, width, out, target, pitch):  # fmt: skip
    """Channels side by side: out[target + r * pitch + j * channels + c] = padded[c, row0 + r, col0 + j].

    As `fill_plane`; `image` is the address of the first channel's first element.
    """
    size = out.itemsize
    low = min(max(left - col0, 0), cols)
    high = max(min(left + width - col0, cols), low)
    together = channel_step == bytes_of(kind) and col_step == channels * channel_step
    for r in range(rows):
        line = target + r * pitch
        row = source_rows[row0 + r] if row0 + r < len(source_rows) else -1
        if row < 0:
            for j in range(cols * channels):
                out[line + j] = 0
            continue
        origin = image + row * row_step
        _pixel_edge(origin, kind, col_step, channel_step, channels, source_cols, col0, 0, low, out, line)
        if high > low:
            place, start = address(out) + (line + low * channels) * size, origin + (col0 + low - left) * col_step
            if together:
                read(out, place, start, channel_step, (high - low) * channels, kind)
            else:
                for c in range(channels):
                    _read_apart(out, place + c * size, channels * size, start + c * channel_step, col_step, high - low,
                                kind)  # fmt: skip
        _pixel_edge(origin, kind, col_step, channel_step, channels, source_cols, col0, high, cols, out, line)


@inner
def _pixel_edge(origin, kind, col_step, channel_step, channels, source_cols, col0, first, last, out, line):
    """Pixels of the padding, each from where it comes."""
    for j in range(first, last):
        col = source_cols[col0 + j] if col0 + j < len(source_cols) else -1
        place = line + j * channels
        if col >= 0:
            read(out, address(out) + place * out.itemsize, origin + col * col_step, channel_step, channels, kind)
        else:
            for c in range(channels):
                out[place + c] = 0


@inner
def _fill_edge(origin, kind, col_step, source_cols, col0, col_jump, first, last, out, line):
    """Columns of the padding, each from where it comes."""
    for j in range(first, last):
        col = col0 + j * col_jump
        col = source_cols[col] if col < len(source_cols) else -1
        if col >= 0:
            read(out, address(out) + (line + j) * out.itemsize, origin + col * col_step, col_step, 1, kind)
        else:
            out[line + j] = 0


@inner
def _stage_column(origin, kind, channel_step, channels, lanes, stage, target):
    """The channels of one pixel, and zeros for the rest of the lanes."""
    read(stage, address(stage) + target * stage.itemsize, origin, channel_step, channels, kind)
    for lane in range(channels, lanes):
        stage[target + lane] = 0


@inner
def _stage_edge(origin, kind, channel_step, col_step, channels, source_cols, col0, first, last, lanes, stage, target):
    for j in range(first, last):
        col = source_cols[col0 + j] if col0 + j < len(source_cols) else -1
        place = target + j * lanes
        if col >= 0:
            _stage_column(origin + col * col_step, kind, channel_step, channels, lanes, stage, place)
        else:
            for lane in range(lanes):
                stage[place + lane] = 0


@apart
def stage_rows(image, kind, channel_step, row_step, col_step, channels, source_rows, source_cols, row0, rows, col0,
               left, width, cols, stage, square):  # fmt: skip
    """A part of the padded image for up to as many channels as a vector has lanes: stage[row, column, lane].

    `image` is the address of the first channel's first element, whose kind is `kind`; its steps are bytes. The rest of
    the lanes are zero. `stage` has room for a vector of columns more; `square` is lanes x lanes of scratch.
    """
    size = stage.itemsize
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
        origin = image + row * row_step
        if abs(channel_step) < abs(col_step):  # pixels are runs in memory
            for j in range(low, high):
                _stage_column(origin + (col0 + j - left) * col_step, kind, channel_step, channels, lanes, stage,
                              target + j * lanes)  # fmt: skip
        else:
            for j in range(low, high, lanes):
                n = min(lanes, high - j)
                # what the last one writes beyond the image is overwritten: by the edge, by the next row
                turn_square(origin + (col0 + j - left) * col_step, kind, channel_step, col_step, channels, n, square,
                            address(stage) + (target + j * lanes) * size)  # fmt: skip
        _stage_edge(origin, kind, channel_step, col_step, channels, source_cols, col0, 0, low, lanes, stage, target)
        _stage_edge(origin, kind, channel_step, col_step, channels, source_cols, col0, high, cols, lanes, stage, target)


@inner
def square_number(like, kind):
    """The place of a kind among those whose squares are transposed at once, or -1."""
    return 0 if kind == native_kind(like) else 1 if kind == FLOAT16 else 2 if kind == BFLOAT16 else -1


@inner
def put_turned(like, number, place, channel_step, source, records, record_step):
    """A square of results source[column, lane] of a kind of this number, finished by the records of its channels."""
    _put_turned(like, number, (place, channel_step, source, records, record_step, VECTOR_BYTES // like.itemsize))


@inner
def put_lanes(square, place, channel_step, step, source, channels, cols, epilogue, channel, kind):
    """Results source[column, lane], finished, as numbers of a kind; `square` is scratch.

    `channel` is that of the first lane; the steps are bytes.
    """
    size = square.itemsize
    which = square_number(square, kind)
    if which >= 0 and channels == VECTOR_BYTES // size and step == bytes_of(kind):
        _put_turned(square, which, (place, channel_step, source, record(epilogue, channel), RECORD_BYTES, cols))
        return
    transpose(square, (address(square), VECTOR_BYTES, source, VECTOR_BYTES))
    for lane in range(channels):
        put(square, place + lane * channel_step, step, address(square) + lane * VECTOR_BYTES, cols,
            record(epilogue, channel + lane), kind)  # fmt: skip


@inner
def turn_square(place, kind, channel_step, col_step, channels, cols, square, target):
    """Some columns of some channels as (column, lane) at the address `target`.

    It is always as many columns as lanes, of which those beyond `cols` hold anything.
    """
    size = square.itemsize
    lanes = VECTOR_BYTES // size
    which = square_number(square, kind)
    if which >= 0 and channels == lanes and col_step == bytes_of(kind):
        _turned(square, which, (target, place, channel_step, cols))
        return
    for lane in range(channels):
        read(square, address(square) + lane * VECTOR_BYTES, place + lane * channel_step, col_step, cols, kind)
    for i in range(channels * lanes, lanes * lanes):
        square[i] = 0
    transpose(square, (target, VECTOR_BYTES, address(square), VECTOR_BYTES))
