"""The compiled `gemm` bound to a problem: the lanes, the form, the strips."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backend import PackedWeight
from ...engines import taps
from ...spec import Problem
from .. import threads
from . import gemm as kernels
from .base import CACHE_BYTES, CHUNK, Array, Ints, JitPlan, contiguous, per_thread, read_only, round_up, sources
from .costs import JIT, JitCosts
from .vectors import OUTPUT_VECTORS, PIXELS, lanes

__all__ = ["GemmPlan"]

MAX_WINDOW_BYTES = 2 << 20  # of a strip, above which it holds some channels at a time
MANY_WEIGHT_BYTES = 4 << 20
SMALL_IMAGE = 512  # columns of a whole image that is one strip
WORTH_COLUMNS = 384  # columns of a strip that read many weights


@dataclass(frozen=True)
class GemmPlan(JitPlan):
    """`gemm`: see kernels in `gemm.py`. The window of a strip fits a core's cache, channel by channel if need be."""

    in_place: bool = False  # the image itself is the window
    wide: bool = False  # register tiles have outputs in their lanes

    @classmethod
    def make(cls, p: Problem) -> GemmPlan:
        """Choose the lanes of the register tiles: columns, or outputs where columns would leave lanes empty."""
        plans = [cls.with_lanes(p, wide) for wide in (False, True)]
        return min(plans, key=lambda plan: plan.seconds(JIT))

    @classmethod
    def with_lanes(cls, p: Problem, wide: bool) -> GemmPlan:
        """Choose the form and the sizes of strips; `wide` tiles have outputs in their lanes."""
        oh, ow = p.out_size
        inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
        size, lane = p.itemsize, lanes(p.compute_dtype)
        every = taps.taps(p.kernel, p.stride, p.dilation)
        tile_rows, widest = (OUTPUT_VECTORS * lane, PIXELS) if wide else kernels.tile_shape(outputs)
        halo_rows, halo_cols = taps.halo(p)
        in_place = len(every) == 1 and p.stride == (1, 1) and not any(p.padding) and p.layout == "NCHW"
        # rows of the image that start off a vector's boundary are read slowly, each many times: better copied once
        in_place = in_place and p.x_dtype == p.compute_dtype and (wide or p.height * p.width % lane == 0)
        # "shift": taps are offsets into the phases of the window, and the halo's columns are computed for nothing;
        # "gather": every tap has its own copy
        phases = sorted({tap.phase for tap in every})
        shift = _shifting_pays(p, len(phases), halo_cols)
        line = ow + halo_cols if shift else ow
        if shift:
            planes = [(a, p.stride[0], b, p.stride[1]) for a, b in phases]
            where = [(phases.index(tap.phase), tap.row * line + tap.col) for tap in every]
        else:
            (sh, sw), (dh, dw) = p.stride, p.dilation
            planes = [(i * dh, sh, j * dw, sw) for i in range(p.kernel[0]) for j in range(p.kernel[1])]
            where, halo_rows = [(n, 0) for n in range(len(every))], 0
        if in_place:
            planes = []

        parts = threads.usable_cores()
        count = max(len(planes), 1)
        row_bytes = line * count * size
        # A strip's window fits the cache. Where the weights are so many that short strips would read them too often,
        # the strip is as long as to be worth it, and holds some channels at a time.
        rows, at_a_time = max(1, min(oh, CACHE_BYTES // (row_bytes * inputs) - halo_rows)), inputs
        weight_bytes = inputs * len(every) * outputs * size
        if oh * line <= SMALL_IMAGE and row_bytes * inputs * (oh + halo_rows) <= MAX_WINDOW_BYTES:
            rows = oh  # cutting it would leave register tiles half empty
        if weight_bytes > MANY_WEIGHT_BYTES:
            rows = max(rows, min(oh, -(-WORTH_COLUMNS // line)))
        if not in_place and row_bytes * inputs * (rows + halo_rows) > MAX_WINDOW_BYTES:
            at_a_time = max(1, 2 * CACHE_BYTES // (row_bytes * (rows + halo_rows)))
        strips = -(-oh // rows)
        output_parts = 1
        if p.batch * p.groups * strips < 4 * parts:  # too few for an even share: more strips, or share the outputs
            if oh // (strips * parts) >= 4 and not (outputs >= 64 * parts and halo_rows * 4 > rows):
                strips = round_up(strips, parts)
            elif outputs >= 2 * parts * tile_rows:
                output_parts = parts
            else:
                strips = min(oh, round_up(strips, parts))
        rows = -(-oh // strips)
        if wide:
            widest = _even_width((rows - 1) * line + ow)
        reach = widest if wide else widest * lane  # columns of a tile
        plane = p.height * p.width if in_place else round_up((rows + halo_rows) * line, lane)
        channel_step = p.height * p.width if in_place else count * plane
        offsets = np.array([n * plane + at for n, at in where], np.int64)
        table = (np.arange(inputs, dtype=np.int64)[:, None] * channel_step + offsets).reshape(-1) * size
        window = 0 if in_place else at_a_time * count * plane + reach
        sums = tile_rows * max(reach, lane) * kernels.LEVELS
        terms = at_a_time * len(every)
        tail = terms * reach
        tail_table = np.arange(terms, dtype=np.int64) * (reach * size)
        block = widest if window * size > 2 * CACHE_BYTES or weight_bytes <= CACHE_BYTES else 1 << 40
        if in_place and rows * line * inputs * size > 2 * CACHE_BYTES:
            block = widest
        scratch = round_up(window + sums + tail, 16)
        geometry = (
            p.batch, p.groups, inputs, outputs, tile_rows, int(wide), widest, strips, output_parts, oh, ow, halo_rows,
            line, plane, p.stride[0], p.padding[2], p.width, len(every), int(table[: terms].max()), at_a_time,
            CHUNK[p.accuracy], block, int(in_place), scratch, window, sums,
        )  # fmt: skip
        every_table = (
            read_only(table), read_only(tail_table), read_only(np.array(planes, np.int64).reshape(-1, 4)),
            *sources(p),
        )  # fmt: skip
        tasks = p.batch * p.groups * strips * output_parts
        return cls(
            p, "gemm", parts * scratch * size, tables=every_table, geometry=geometry, parts=min(parts, max(tasks, 1)),
            scratch=scratch, in_place=in_place, wide=wide,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        p = self.problem
        return ("gemm", "jit", p.weight_shape, p.compute_dtype, self.wide)

    @property
    def note(self) -> str:
        """For `explain`."""
        where = "in place" if self.in_place else f"{self.geometry[7]} strips"
        return f"compiled, {where}" + (", outputs in the lanes" if self.wide else "")

    def seconds(self, costs: JitCosts) -> float:
        """As in the base."""
        (batch, groups, inputs, outputs, tile_rows, wide, widest, strips, output_parts, oh, ow, halo_rows, line, _,
         _, _, _, n_taps, *_) = self.geometry  # fmt: skip
        planes, lane = self.tables[2], lanes(self.problem.compute_dtype)
        rows = -(-oh // strips)
        columns = (rows - 1) * line + ow
        vectors = -(-columns // widest) * widest / lane if wide else -(-columns // lane)
        tiles = -(-outputs // tile_rows)
        images = batch * groups * strips
        product = costs.single if tile_rows == 1 else costs.product
        filled_rows = images * output_parts * inputs * len(planes) * (rows + halo_rows)
        element = costs.filled if self.problem.stride[1] == 1 and self.problem.layout == "NCHW" else costs.strided
        tile_runs = images * outputs * (columns / widest * 2 if wide else vectors / 3)
        runs = batch * groups * outputs * (oh if line != ow else strips) + tile_runs
        work = (
            images * vectors * tiles * tile_rows * inputs * n_taps * product
            + filled_rows * (costs.row + line * element)
            + runs * costs.line
            + batch * groups * outputs * oh * ow / lane * costs.stored
            + images * output_parts * costs.task
        )
        return costs.launch + work * per_thread(threads.get_num_threads(), images * output_parts)

    def pack(self, weight: Any, /) -> PackedWeight:
        data = pack_gemm(weight, self.problem, self.geometry[4])
        return PackedWeight(self.stamp, data, data.nbytes)

    def fill(self, x: Array, x_steps: Ints, y: Array, y_steps: Ints, data: Any, bias: Array) -> None:
        """As in the base."""
        p, g, tables = self.problem, self.geometry, self.tables
        if self.in_place and x_steps[1:] != (p.height * p.width, p.width, 1):
            x, x_steps = contiguous(x, x_steps, p)
        scratch = threads.scratch(self.parts * self.scratch, y.dtype)
        threads.launch(
            kernels.gemm_alone, kernels.gemm_team, self.parts,
            x, x_steps, y, y_steps, data, bias, *tables, g, scratch,
        )  # fmt: skip


def _shifting_pays(p: Problem, phases: int, halo_cols: int) -> bool:
    """Whether computing the halo's columns costs less than a copy of the window for every tap."""
    ow, n_taps = p.out_size[1], p.kernel[0] * p.kernel[1]
    outputs = p.out_channels // p.groups
    wasted = halo_cols / ow * n_taps * outputs / 16  # vector operations per input element
    copied = (n_taps - phases) * 0.4
    return n_taps == 1 or wasted < copied


def _even_width(columns: int) -> int:
    """The width of wide tiles that computes the fewest columns too many; a tile costs about a column in itself."""
    return min(kernels.WIDTHS, key=lambda width: -(-columns // width) * (width + 1))


def pack_gemm(weight: Array, p: Problem, tile: int) -> Array:
    """(G, tiles, I/G x kh x kw, outputs of a tile): what a register tile reads, in its order."""
    g, o, i, kh, kw = p.weight_shape
    tiles = -(-o // tile)
    padded = np.zeros((g, tiles * tile, i * kh * kw), p.compute_dtype)
    padded[:, :o] = weight.reshape(g, o, i * kh * kw)
    packed = np.ascontiguousarray(padded.reshape(g, tiles, tile, i * kh * kw).transpose(0, 1, 3, 2))
    return read_only(packed.reshape(-1))
