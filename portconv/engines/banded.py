"""Depthwise layers as products of small matrices with bands in them, a form of `gemm`.

Moving a column of a kernel down the rows of an image is a product with a banded matrix: `V[r, s r + d i] = w[i]` for
output row r, tap i, stride s and dilation d. So is moving a row of the kernel across the columns, from the right. There
is a form for each, in which all columns, or rows, of a kernel stand side by side in one matrix of a channel:

* **down**: `[V_0 V_1 V_2] [x shifted by 0; x shifted by 1; x shifted by 2]`, some rows of outputs at a time: with eight
  of them a 3x3 kernel fills 3 of 10 rows of a band, a 7x7 kernel 7 of 14. For wide planes.
* **across**: `[x; x a row further down; ...] [T_0; T_1; ...]`, each T as wide as the plane. Zero padding to the sides
  is left out of it. For narrow planes, which a wide kernel fills.

Most of a band is zeros. A BLAS multiplies so much faster than elementwise steps add one tap after the other that a few
times fewer products would do. Zeros lose no digits, so that a sum has as many terms as it has taps.

A product with zero is no zero where the image is not finite, which would spread over the rows, or columns, of a
product. Such blocks are computed anew by another plan.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

from ..core.backend import EnginePlan, PackedWeight
from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import dilated, ranges
from .accuracy import TERMS
from .costs import Costs
from .steps import Block, Steps

__all__ = ["BandedPlan", "Exact", "Tiling", "seconds", "tiling"]

ROWS = 8  # of outputs in a product down, at stride 1
MAX_ROWS = 16  # of planes that one such product computes
MAX_WIDTH = 64  # of planes for products across
# Of the copies that a strip's products read. Smaller ones stay in closer caches, but every strip is some ten calls of
# the library's functions, and threads wait for each other between them.
MAX_STRIP_BYTES = 4 << 20
MAX_WORKSPACE_BYTES = 24 << 20
MAX_BANDS = 1 << 17  # elements of a channel's bands
WORTH_SHARING = 1.2e-4  # seconds on all threads, from which on another thread is worth its start
PRODUCT = 6e3  # operations that a product costs beyond its own
RUN = 40  # elements that clearing a few elements of a row costs


class Tiling(NamedTuple):
    """How a problem is cut: what a product is, and how many of them are one strip."""

    form: str  # "down" or "across"
    rows: int  # of outputs in a product
    first: int  # row of its window that it reads first: those before lie in the padding
    reach: int  # rows of its window that it reads
    lines: int  # products one below the other in a strip
    cols: int  # of outputs in a strip
    channels: int
    batch: int
    terms: int  # columns of the kernel, down, or rows of it, across, that one sum may have

    def depth(self, p: Problem) -> int:
        """Terms of a product, zeros included."""
        return self.reach * p.kernel[1] if self.form == "down" else p.kernel[0] * p.width

    def bands(self, p: Problem) -> Pair:
        """The shape of a channel's matrix with bands."""
        return (self.rows, self.depth(p)) if self.form == "down" else (self.depth(p), self.cols)

    def copied(self, p: Problem) -> int:
        """Elements of a product's factor that is a copy of the image."""
        return self.depth(p) * (self.cols if self.form == "down" else self.rows)

    def workspace_bytes(self, p: Problem) -> int:
        """Of a strip: its window, the copies of it, and the sums."""
        line = self.cols * p.stride[1] + dilated(p.kernel[1], p.dilation[1])
        window = (self.lines * self.rows * p.stride[0] + self.reach) * line
        sums = self.lines * (self.copied(p) + 2 * self.rows * self.cols)
        return self.channels * self.batch * (window + sums) * p.itemsize


def tiling(p: Problem, steps: Steps, costs: Costs) -> Tiling | None:
    """The form that costs less, and strips of as many products as stay in cache; None where neither is for a problem.

    The library must multiply many small matrices fast, each output have a channel of its own, and no row or column of
    the kernel have more terms than one sum may have. While tracing nobody sees, and keeps in its place, an input that
    is not finite.
    """
    one_channel_each = p.groups == p.in_channels == p.out_channels
    if not steps.banded or p.traced or not one_channel_each or max(p.kernel) > TERMS[p.accuracy] or 0 in p.out_shape:
        return None
    return _tiling(p, costs)


@lru_cache(maxsize=1024)
def _tiling(p: Problem, costs: Costs) -> Tiling | None:
    found = [_down(p, costs)]
    if p.padding_mode == "zeros" and p.width <= MAX_WIDTH:
        found.append(_across(p, costs))
    # a large dilation leaves many rows between the taps
    found = [t for t in found if t.workspace_bytes(p) <= MAX_WORKSPACE_BYTES and math.prod(t.bands(p)) <= MAX_BANDS]
    return min(found, key=lambda t: seconds(p, t, costs), default=None)


def _down(p: Problem, costs: Costs) -> Tiling:
    (oh, ow), (kh, kw) = p.out_size, p.kernel
    # the same for planes of many sizes, so that one packed weight serves them all
    rows = oh if oh <= MAX_ROWS else max(ROWS // p.stride[0], ROWS // 2)
    first, count = 0, (rows - 1) * p.stride[0] + dilated(kh, p.dilation[0])
    if rows >= oh and p.padding_mode == "zeros":
        inside = range(max(0, p.padding[0]), min(count, p.padding[0] + p.height))
        if inside:
            first, count = inside.start, len(inside)
    room = max(MAX_STRIP_BYTES // (p.itemsize * kw * count), 1)  # columns of a strip's products, all together
    cols = _even(ow, max(room, 64))
    lines = _even(-(-oh // rows), max(room // cols, 1))
    terms = _even(kw, max(TERMS[p.accuracy] // kh, 1))
    return _shared(p, Tiling("down", rows, first, count, lines, cols, 1, 1, terms), costs)


def _across(p: Problem, costs: Costs) -> Tiling:
    (oh, ow), (kh, kw) = p.out_size, p.kernel
    rows = _even(oh, max(MAX_STRIP_BYTES // (p.itemsize * kh * p.width), 1))
    terms = _even(kh, max(TERMS[p.accuracy] // kw, 1))
    count = (rows - 1) * p.stride[0] + dilated(kh, p.dilation[0])
    return _shared(p, Tiling("across", rows, 0, count, 1, ow, 1, 1, terms), costs)


def _shared(p: Problem, t: Tiling, costs: Costs) -> Tiling:
    """Strips of several channels and images, where whole planes are small."""
    if t.rows * t.lines < p.out_size[0] or t.cols < p.out_size[1]:
        return t
    room = max(MAX_STRIP_BYTES // (p.itemsize * t.lines * t.copied(p)), 1)
    channels = _even(p.in_channels, room)
    if p.batch <= 1 and channels == p.in_channels and _computing(p, t, costs) > WORTH_SHARING:
        channels = -(-channels // 2)
    return t._replace(channels=channels, batch=_even(max(p.batch, 1), max(room // channels, 1)))


def _even(total: int, limit: int) -> int:
    """The size of the parts when `total` is cut into as few equal parts of at most `limit` as possible."""
    return -(-total // -(-total // limit))


def _computing(p: Problem, t: Tiling, costs: Costs) -> float:
    """Seconds of all threads, but for what every strip costs."""
    (oh, ow), (kh, kw) = p.out_size, p.kernel
    products = -(-oh // t.rows) * -(-ow // t.cols) * p.batch * p.in_channels
    sums = -(-(kw if t.form == "down" else kh) // t.terms)
    flops = 2.0 * t.rows * t.depth(p) * t.cols + PRODUCT * sums
    moved = 2 * t.copied(p) + (2 + 2 * sums) * t.rows * t.cols
    if t.form == "down":
        moved += RUN * t.depth(p)
    return products * (flops * costs.gemm_flop + moved * costs.element)


def seconds(p: Problem, t: Tiling, costs: Costs) -> float:
    """The estimate."""
    oh, ow = p.out_size
    strips = -(-oh // (t.lines * t.rows)) * -(-ow // t.cols) * -(-p.in_channels // t.channels) * -(-p.batch // t.batch)
    threads = min(costs.threads, max(strips, 1))
    each = costs.task / 4 + 20 * costs.call
    return (_computing(p, t, costs) * costs.threads + strips * each) / threads + (threads > 1) * costs.task / 2


class Exact(Protocol):
    """Another plan of the problem, for blocks with values that are not finite."""

    def pack(self, weight: Any, /) -> PackedWeight:
        """As in `Plan`."""

    def values(self, x: Any, weight: PackedWeight, block: Block, /) -> Iterator[tuple[Block, Any]]:
        """The sums of a block of any size, in blocks of its own; `x` is (C, B, H, W)."""


class _Data(NamedTuple):
    bands: Any  # (C, rows, terms) or (C, terms, columns); None where a weight is not finite: the other plan does it all
    exact: PackedWeight


@dataclass(frozen=True, kw_only=True)
class BandedPlan(EnginePlan):
    """See the module."""

    steps: Steps
    tiling: Tiling
    exact: Exact

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p, t = self.problem, self.tiling
        if t.form == "down":
            bands: tuple[int, ...] = (t.rows, t.first, t.reach, p.stride[0], p.dilation[0])
        else:
            bands = (p.width, t.cols, p.stride[1], p.dilation[1], p.padding[2])
        return (self.engine, t.form, self.steps.place, p.weight_shape, p.compute_dtype, bands)

    def pack(self, weight: Any, /) -> PackedWeight:
        p, steps, xp = self.problem, self.steps, self.steps.xp
        exact, channels, shape = self.exact.pack(weight), p.out_channels, self.tiling.bands(p)
        flat = xp.reshape(steps.cast(weight, p.compute_dtype), (channels, p.kernel[0] * p.kernel[1]))
        if not steps.all_finite(flat):
            return PackedWeight(self.stamp, _Data(None, exact), exact.nbytes)
        flat = xp.concat([flat, steps.zeros((channels, 1), flat.dtype)], axis=1)
        sources = xp.asarray(_down_sources(p, self.tiling) if self.tiling.form == "down" else _across_sources(p))
        bands = xp.reshape(xp.take(flat, sources, axis=1), (channels, *shape))
        nbytes = exact.nbytes + p.itemsize * channels * math.prod(shape)
        return PackedWeight(self.stamp, _Data(steps.keep(bands), exact), nbytes)

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, t, steps = self.problem, self.tiling, self.steps
        x = steps.cbhw(x, p.layout)
        data: _Data = weight.data
        oh, ow = p.out_size
        blocks = [
            Block(channels, batch, rows, cols)
            for batch in ranges(p.batch, t.batch)
            for channels in ranges(p.out_channels, t.channels)
            for rows in ranges(oh, t.lines * t.rows)
            for cols in ranges(ow, t.cols)
        ]
        strip = self._down if t.form == "down" else self._across

        def compute(block: Block) -> Iterator[tuple[Block, Any]]:
            value = None if data.bands is None else strip(x, data.bands[block.channels, ...], block)
            if value is None or not steps.all_finite(value):
                yield from self.exact.values(x, data.exact, block)
            else:
                yield block, value[:, :, : block.rows.stop - block.rows.start, :]

        return steps.assemble(p, bias, blocks, compute, residual=residual, out=out, parallel=True, products=True)

    def _down(self, x: Any, bands: Any, block: Block) -> Any:
        """The sums of a strip, (C, B, rows, columns); the last rows may be beyond the block's."""
        p, t, steps, xp = self.problem, self.tiling, self.steps, self.steps.xp
        channels, images, h, w = (part.stop - part.start for part in block)
        lines, depth, sh = -(-h // t.rows), t.depth(p), p.stride[0]
        row = block.rows.start * sh - p.padding[0] + t.first
        shifted = steps.shifted(x, block, p, row, t.reach, t.rows * sh, lines)
        shifted = xp.reshape(shifted, (channels, images, lines, depth, w))
        bands = xp.reshape(bands, (channels, 1, 1, t.rows, depth))
        parts = [slice(some.start * t.reach, some.stop * t.reach) for some in ranges(p.kernel[1], t.terms)]
        pairs = ((bands[..., part], shifted[..., part, :]) for part in parts)
        value = steps.sum_of_products(pairs, "matmul")
        return xp.reshape(value, (channels, images, lines * t.rows, w))

    def _across(self, x: Any, bands: Any, block: Block) -> Any:
        """As `_down`."""
        p, t, steps, xp = self.problem, self.tiling, self.steps, self.steps.xp
        channels, images, h, _ = (part.stop - part.start for part in block)
        lines = steps.xp.reshape(steps.lines(x, block, p), (channels, images, h, t.depth(p)))
        bands = xp.reshape(bands, (channels, 1, *t.bands(p)))
        parts = [slice(some.start * p.width, some.stop * p.width) for some in ranges(p.kernel[0], t.terms)]
        return steps.sum_of_products(((lines[..., part], bands[..., part, :]) for part in parts), "matmul")


# Which weight of a channel's stands where in its bands. The one after the last weight is zero.


@lru_cache(maxsize=64)
def _down_sources(p: Problem, t: Tiling) -> tuple[int, ...]:
    """Those of a matrix (rows, kw, reach)."""
    (kh, kw), rows = p.kernel, range(t.first, t.first + t.reach)
    taps = [_band(rows, kh, row * p.stride[0], p.dilation[0]) for row in range(t.rows)]
    return tuple(kh * kw if i < 0 else i * kw + j for row in taps for j in range(kw) for i in row)


@lru_cache(maxsize=64)
def _across_sources(p: Problem) -> tuple[int, ...]:
    """Those of a matrix (kh, width, columns)."""
    (kh, kw), left = p.kernel, p.padding[2]
    taps = [_band(range(p.width), kw, col * p.stride[1] - left, p.dilation[1]) for col in range(p.out_size[1])]
    return tuple(kh * kw if col[n] < 0 else i * kw + col[n] for i in range(kh) for n in range(p.width) for col in taps)


def _band(elements: range, kernel: int, start: int, dilation: int) -> list[int]:
    """The tap that meets each of the elements of an axis, where the first one meets the element `start`; -1 if none."""
    found = []
    for element in elements:
        tap, between = divmod(element - start, dilation)
        found.append(tap if between == 0 and 0 <= tap < kernel else -1)
    return found
