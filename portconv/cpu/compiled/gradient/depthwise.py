"""The gradient of a depthwise layer's weight, compiled: sums over a channel's positions, with these in the lanes.

A channel of the padded image is copied for each column of the kernel, and for each of its rows that a stride sets
apart. In such a copy the window of a tap is one run, as long as the rows of the cotangent that it meets, which are one
run, too. The vectors of several taps meet one of the cotangent at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ....core.problem import Problem
from ....engines.accuracy import TERMS
from ... import threads
from .. import team
from ..base import (
    CACHE_BYTES,
    Array,
    Launch,
    compiled_by,
    memory_of,
    one_array,
    read_only,
    round_up,
    sources,
    usual_numbers,
)
from ..gemm.kernels import LEVELS
from ..jobs import job_of, take
from ..kernel import address, inner, kernel, table, words
from ..memory import add_in_pairs, copy, fill_plane, native_kind
from ..vectors import VECTOR_BYTES, lanes, one_of
from .products import tap_products

__all__ = ["CompiledDepthwiseGradient"]

MAX_SCRATCH_BYTES = 4 << 20  # of a thread, above which a strip of one row is too long
MAX_OUTPUTS = 2  # of a group, each of which copies the channel anew
TAPS = 10  # at a time: as many sums as fill the time that one of them takes

_products = one_of({n: tap_products(n) for n in range(1, TAPS + 1)})


class Geometry(NamedTuple):
    """All sizes are in elements. The kernel gets it as a plain tuple."""

    batch: int
    channels: int  # of the result
    multiplier: int  # of these for a channel of the image
    copies: int
    taps: int
    strip: int  # rows of the result at a time
    out_rows: int
    out_cols: int
    halo_rows: int  # of a copy, besides those of outputs
    row_step: int  # rows of the padded image from output to output
    col_step: int
    top: int  # rows of padding before the image
    left: int  # columns of it
    height: int  # of the image
    width: int
    even: int  # whether a row of outputs is as wide as the image, without a stride, and the padding is zero
    chunk: int  # vectors that are added one after the other
    part_size: int  # elements of a thread's scratch memory
    copies_size: int  # of these for the copies


_geometry, _strides, _image = words(len(Geometry._fields)), words(4), words(6)


@inner
def _shifted(plane, rows, first, shift, height, width, out, target):
    """out[target + r * width + j] = image[first + r, j + shift], zero outside of the image of height by width.

    `plane` is its address. Its elements are in C order and of the dtype of `out`. So rows that are as long as its own
    are copied in one, and what came from the row before or behind is made zero.
    """
    size = out.itemsize
    low, high = min(max(-first, 0), rows), max(min(height - first, rows), 0)
    before, behind = min(max(-shift, 0), width), min(max(shift, 0), width)
    for i in range(target, target + low * width):
        out[i] = 0
    start, count = low * width + before, (high - low) * width - before - behind
    if count > 0 and before < width and behind < width:  # else no column is inside, and the run may begin far outside
        copy(out, (out.ctypes.data + (target + start) * size, plane + (first * width + start + shift) * size, count))
    inside = range(target + low * width, target + high * width, width)
    for i in range(before):  # columns are few, and runs so short would each be a call
        for line in inside:
            out[line + i] = 0
    for i in range(width - behind, width):
        for line in inside:
            out[line + i] = 0
    for i in range(target + max(high, low) * width, target + rows * width):
        out[i] = 0


@inner
def _sums(job, part, x, dy, numbers, tables, out, scratch):
    """out[channel, tap]. Tasks are channels of the result."""
    place = address(numbers)
    kind, _, xb, xc, xh, xw = _image(place)
    yb, yc, yh, _ = _strides(place + 48)
    (batch, channels, multiplier, copies, taps, strip, out_rows, out_cols, halo_rows, row_step, col_step, pad_top, left,
     height, width, even, chunk, part_size, copies_size) = _geometry(place + 80)  # fmt: skip
    offsets, firsts, source_rows, source_cols = table(tables, 0), table(tables, 1), table(tables, 2), table(tables, 3)
    copied = scratch[part * part_size : part * part_size + copies_size]
    sums = scratch[part * part_size + copies_size : (part + 1) * part_size]
    lanes = VECTOR_BYTES // out.itemsize
    set_bytes = taps * VECTOR_BYTES
    size = out.itemsize
    as_one = even and kind == native_kind(out) and xw == size and xh == width * size
    blocks = -(-taps // TAPS)
    for _ in range(channels):
        channel = take(job, part, channels)
        if channel >= channels:
            break
        depth, count, used = 0, 0, chunk
        for b in range(batch):
            image = address(x) + b * xb + channel // multiplier * xc
            for top in range(0, out_rows, strip):
                rows = min(strip, out_rows - top)
                for n in range(copies):
                    row, col = firsts[2 * n] + top * row_step, firsts[2 * n + 1]
                    target = n * (strip + halo_rows) * out_cols
                    if as_one:
                        _shifted(image, rows + halo_rows, row - pad_top, col - left, height, width, copied, target)
                        continue
                    fill_plane(image, kind, xh, xw, source_rows, source_cols, row, row_step, rows + halo_rows, col,
                               col_step, out_cols, left, width, copied, target)  # fmt: skip
                begin = address(dy) + b * yb + channel * yc + top * yh
                positions = rows * out_cols
                done = 0
                while done < positions:
                    if used == chunk:
                        depth = add_in_pairs(sums, depth, count, False, set_bytes)
                        for i in range(depth * taps * lanes, (depth + 1) * taps * lanes):
                            sums[i] = 0
                        depth, count, used = depth + 1, count + 1, 0
                    vectors = min((positions - done) // lanes, chunk - used)
                    rest = 0
                    if vectors < chunk - used:
                        rest = positions - done - vectors * lanes
                    for block in range(blocks):
                        first, last = block * taps // blocks, (block + 1) * taps // blocks
                        _products(sums, last - first,
                                  (begin + done * size, copied.ctypes.data + done * size,
                                   offsets.ctypes.data + first * 8, vectors, rest,
                                   sums.ctypes.data + (depth - 1) * set_bytes + first * VECTOR_BYTES))  # fmt: skip
                    done += vectors * lanes + rest
                    used += vectors + (1 if rest > 0 else 0)
        add_in_pairs(sums, depth, count, True, set_bytes)
        for tap in range(taps):
            half = lanes // 2
            while half > 0:  # the lanes, in pairs
                for lane in range(half):
                    sums[tap * lanes + lane] += sums[tap * lanes + lane + half]
                half //= 2
            out[channel * taps + tap] = sums[tap * lanes]


_summed = job_of(_sums)


@kernel
def gradient(job, parts, patience, x, dy, numbers, tables, out, scratch):
    """The sums, as a job of the team."""
    return _summed(job, parts, patience, (x, dy, numbers, tables, out, scratch))


@dataclass(frozen=True)
class CompiledDepthwiseGradient:
    """It holds no arrays but tables."""

    problem: Problem
    geometry: Geometry
    tables: Array  # offsets of the taps in bytes, first row and column of each copy, sources of rows and columns

    @classmethod
    @lru_cache(maxsize=256)
    def make(cls, p: Problem) -> CompiledDepthwiseGradient | None:
        """The plan, or None for other layers, layout NHWC, and rows so long that a thread has no room for copies."""
        g, o, i, kh, kw = p.weight_shape
        if i > 1 or o > MAX_OUTPUTS or g < 2 * threads.usable_cores() or p.layout != "NCHW":
            return None
        lane, size = lanes(p.compute_dtype), p.itemsize
        (oh, ow), (sh, sw), (dh, dw) = p.out_size, p.stride, p.dilation
        phases = sorted({r * dh % sh for r in range(kh)})
        halo_rows, copies = (kh - 1) * dh // sh, len(phases) * kw
        strip = min(oh, max(1, CACHE_BYTES // (copies * ow * size) - halo_rows))
        copy_size = (strip + halo_rows) * ow
        copies_size = round_up(copies * copy_size, lane)
        part_size = copies_size + (LEVELS + 1) * kh * kw * lane
        if part_size * size > MAX_SCRATCH_BYTES:
            return None
        offsets = [
            (phases.index(r * dh % sh) * kw + c) * copy_size + r * dh // sh * ow for r in range(kh) for c in range(kw)
        ]
        firsts = [(phase, c * dw) for phase in phases for c in range(kw)]
        even = p.stride == (1, 1) and ow == p.width and (p.padding_mode == "zeros" or not any(p.padding))
        tables = one_array(np.array(offsets, np.int64) * size, np.array(firsts, np.int64), *sources(p))
        geometry = Geometry(
            p.batch, p.out_channels, o, copies, kh * kw, strip, oh, ow, halo_rows, sh, sw, p.padding[0],
            p.padding[2], p.height, p.width, int(even), TERMS[p.accuracy], part_size, copies_size,
        )  # fmt: skip
        return cls(p, geometry, tables)

    def warmup(self) -> tuple[str, ...]:
        """Compile ahead what `compute` runs, or load it; the names of what had to be compiled."""
        p, dtype = self.problem, self.problem.compute_dtype
        x, dy = (np.empty((0, *shape[1:]), dtype) for shape in (p.x_shape, p.out_shape))
        return compiled_by(lambda launch: self.compute(x, dy, launch))

    def compute(self, x: Array, dy: Array, launch: Launch | None = None) -> Array:
        """The sums (G, O/G, 1, kh, kw), in the dtype of the computation, by kernels that `launch` runs."""
        p, dtype = self.problem, np.dtype(self.problem.compute_dtype)
        memory, numbers = memory_of(x, p.layout, dtype, usual_numbers(p.x_shape, p.layout, dtype))
        dy = np.ascontiguousarray(dy, dtype)
        strides = usual_numbers(dy.shape, "NCHW", dtype)[2:]  # an axis of one element may have any in the array
        given = read_only(np.array((*numbers, *strides, *self.geometry), np.int64))
        parts = threads.usable_cores()
        scratch = threads.scratch(parts * self.geometry.part_size, dtype)
        found = np.empty(p.weight_shape, dtype)
        (launch or team.launch)(
            gradient, parts, read_only(memory), read_only(dy.ravel()), given, self.tables, found.reshape(-1), scratch
        )
        return found
