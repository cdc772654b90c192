"""The compiled `gemm` bound to a problem: the lanes, the form, the strips."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ....core.problem import Problem
from ....engines import taps
from ....engines.accuracy import TERMS
from ... import threads
from ...caches import cache_bytes
from ..base import (
    CACHE_BYTES,
    Array,
    Ints,
    Launch,
    even_width,
    may_stream,
    one_array,
    per_thread,
    round_up,
    sources,
)
from ..costs import COMPILED, CompiledCosts
from ..products import AS_USUAL, ASKED_AHEAD, PAST_CACHES
from ..runs import PADDED_STEPS
from ..vectors import OUTPUT_VECTORS, PIXELS, lanes
from ..weights import PanelsPlan
from . import kernels
from .geometry import Geometry

__all__ = ["MANY_WEIGHT_BYTES", "WORTH_COLUMNS", "CompiledGemmPlan"]

# Of a core's first cache, for the window of a block of tiles: three quarters, and no more where it is larger.
FIRST_CACHE_BYTES = min(24 << 10, cache_bytes(1) * 3 // 4 or 24 << 10)
MAX_WINDOW_BYTES = 2 << 20  # of a strip, above which it holds some channels at a time
MANY_WEIGHT_BYTES = 4 << 20
MANY_PIXELS = 512  # of an image whose channels lie far apart
SMALL_IMAGE = 512  # columns of a whole image that is one strip
WORTH_COLUMNS = 384  # columns of a strip that read many weights
# Results from so large on are not found in a cache by whoever reads them. Of a larger third cache, which many cores
# share, results up to a quarter are found.
STREAMED_BYTES = 24 << 20
AHEAD_BYTES = 8 << 20  # of results from which on most are in no cache near the core that writes them
MAX_RESULT_BYTES = 4 << 20  # of a strip whose partial sums are put together apart from the result
MIN_CHANNELS = 8  # at a time, where terms come tap by tap


@dataclass(frozen=True, kw_only=True)
class CompiledGemmPlan(PanelsPlan):
    """`gemm`: see `kernels.py`. The window of a strip fits a core's cache, channel by channel if need be."""

    geometry: Geometry
    regions: tuple[Ints, ...]  # of the result: rows and columns, and the rows and columns of the kernel that they need
    planes: int  # of a window
    in_place: bool = False  # the image itself is the window
    wide: bool = False  # register tiles have outputs in their lanes
    by_tap: int = 0  # channels at a time whose terms come tap by tap; 0 where they come channel by channel
    other: CompiledGemmPlan | None = None  # for images in memory orders that cannot be read in place

    @classmethod
    def make(cls, p: Problem) -> CompiledGemmPlan:
        """Choose the lanes of the register tiles: columns, or outputs where columns would leave lanes empty."""
        # A single column, as squeeze-and-excitation has, would leave all lanes but one to whatever lies beside it, and
        # that takes many times as long where it is no normal number.
        plans = [cls.with_lanes(p, wide) for wide in ((True,) if p.out_size == (1, 1) else (False, True))]
        return min(plans, key=lambda plan: plan.seconds(COMPILED))

    @classmethod
    def with_lanes(cls, p: Problem, wide: bool, copied: bool = False) -> CompiledGemmPlan:
        """Choose the form and the sizes of strips; `wide` tiles have outputs in their lanes.

        What is read in place from an image in C order is `copied`, strip by strip, from others.
        """
        oh, ow = p.out_size
        inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
        size, lane = p.itemsize, lanes(p.compute_dtype)
        every = taps.taps(p.kernel, p.stride, p.dilation)
        tile_rows, widest = (OUTPUT_VECTORS * lane, PIXELS) if wide else kernels.tile_shape(outputs)
        halo_rows, halo_cols = taps.halo(p)
        in_place = not copied and len(every) == 1 and p.stride == (1, 1) and not any(p.padding) and p.layout == "NCHW"
        # rows of the image that start off a vector's boundary are read slowly, each many times: better copied once
        in_place = in_place and p.x_dtype == p.compute_dtype and (wide or p.height * p.width % lane == 0)
        # many outputs read it so often that it pays to copy it to where its channels lie near each other
        in_place = in_place and not (outputs >= 64 and inputs >= 32 and p.height * p.width >= MANY_PIXELS)
        # "shift": taps are offsets into the phases of the window, and the halo's columns are computed for nothing;
        # "gather": every tap has its own copy
        phases = taps.phases(p.kernel, p.stride, p.dilation)
        shift = _shifting_pays(p, len(phases), halo_cols, wide)
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
        weight_bytes = inputs * len(every) * outputs * size
        parts_of_result = () if shift or in_place else taps.regions(p)
        output_parts, at_a_time = 1, inputs
        if by_tap := len(parts_of_result) > 1:
            regions = _strips(parts_of_result)
            plane = round_up(int(max((r1 - r0) * (q1 - q0) for r0, r1, q0, q1, *_ in regions)), lane)
            read = max((r1 - r0) * (q1 - q0) * (i1 - i0) * (j1 - j0) for r0, r1, q0, q1, i0, i1, j0, j1 in regions)
            at_a_time = _divisor(inputs, MAX_WINDOW_BYTES // (read * size))
            by_tap = at_a_time >= min(inputs, MIN_CHANNELS)
        if not by_tap:
            # A strip's window fits the cache. Where the weights are so many that short strips would read them too
            # often, the strip is as long as to be worth it, and holds some channels at a time.
            rows, at_a_time = max(1, min(oh, CACHE_BYTES // (row_bytes * inputs) - halo_rows)), inputs
            if wide and halo_rows * 4 > rows:  # longer strips copy less, and wide tiles read little of the window
                rows = max(1, min(oh, 2 * CACHE_BYTES // (row_bytes * inputs) - halo_rows))
            if oh * line <= SMALL_IMAGE and row_bytes * inputs * (oh + halo_rows) <= MAX_WINDOW_BYTES:
                rows = oh  # cutting it would leave register tiles half empty
            if weight_bytes > MANY_WEIGHT_BYTES:
                rows = max(rows, min(oh, -(-WORTH_COLUMNS // line)))
            if not in_place and row_bytes * inputs * (rows + halo_rows) > MAX_WINDOW_BYTES:
                at_a_time = max(1, 2 * CACHE_BYTES // (row_bytes * (rows + halo_rows)))
            if at_a_time < inputs and p.result_dtype != p.compute_dtype:
                rows = max(1, min(rows, MAX_RESULT_BYTES // (ow * outputs * size)))
            strips = -(-oh // rows)
            if p.batch * p.groups * strips < 4 * parts:  # too few for an even share: more, or share the outputs
                if oh // (strips * parts) >= 4 and not (outputs >= 64 * parts and halo_rows * 4 > rows):
                    strips = round_up(strips, parts)
                elif strips >= parts and not in_place:
                    strips = min(oh, round_up(strips, parts))  # threads that share outputs fill the same windows
                elif outputs >= 2 * parts * tile_rows:
                    output_parts = parts
                else:
                    strips = min(oh, round_up(strips, parts))
            kernel = (0, p.kernel[0], 0, p.kernel[1])
            regions = [(i * oh // strips, (i + 1) * oh // strips, 0, ow, *kernel) for i in range(strips)]
            plane = round_up((-(-oh // strips) + halo_rows) * line, lane)
        if in_place:
            plane = p.height * p.width
        r0, r1, q0, q1, *_ = regions[0]
        columns = (r1 - r0 - 1) * (q1 - q0 + line - ow) + q1 - q0
        if wide:
            widest = even_width(kernels.WIDTHS, ow if line > ow else columns)  # row by row, or all in one
        reach = widest if wide else widest * lane  # columns of a tile
        offsets = np.array([n * plane + at for n, at in where], np.int64)
        starts = np.arange(at_a_time if by_tap else inputs, dtype=np.int64) * (plane if in_place else count * plane)
        table = (offsets[:, None] + starts if by_tap else starts[:, None] + offsets).reshape(-1) * size
        window = 0 if in_place else at_a_time * count * plane + reach
        sums = tile_rows * max(reach, lane) * kernels.LEVELS
        terms = at_a_time * len(every)
        tail = terms * reach
        results = 0
        if at_a_time < inputs and (by_tap or p.result_dtype != p.compute_dtype):
            area = max((r1 - r0) * (q1 - q0) for r0, r1, q0, q1, *_ in regions)
            results = area * -(-outputs // tile_rows // output_parts) * tile_rows + area * tile_rows + lane
        tail_table = np.arange(terms, dtype=np.int64) * (reach * size)
        small = (columns * inputs if in_place else window) * size <= 2 * CACHE_BYTES
        # Which of the two is read again and again from the second cache: the window by each tile's outputs, or the
        # weights by each block. Wide tiles read little of a window with halo, and many weights.
        small = (small and (in_place or weight_bytes > CACHE_BYTES)) or (wide and len(every) > 1)
        # A block whose window stays in the first cache may be longer than a tile, so that results are written in runs.
        tiles = 1 if wide else FIRST_CACHE_BYTES // (terms * widest * lane * size)
        block = 1 << 40 if small else widest * max(tiles, 1)
        # narrow tiles: where rows make whole ones, or nearly so
        row_by_row = wide or (2 * lane <= ow and round_up(ow, lane) <= line and weight_bytes <= CACHE_BYTES)
        row_by_row = row_by_row and line > ow
        if row_by_row and not wide:
            block = -(-ow // lane)  # so that few lines of results are written at a time
        result_bytes = p.batch * p.out_channels * oh * ow * size
        streamed = result_bytes >= max(STREAMED_BYTES, cache_bytes(3) // 4) and ow % lane == 0
        streamed = streamed and p.result_dtype == p.compute_dtype
        streamed = streamed and (row_by_row or line == ow) and not by_tap  # every tile begins at a vector's boundary
        stores = PAST_CACHES if streamed else ASKED_AHEAD if result_bytes >= AHEAD_BYTES else AS_USUAL
        scratch = round_up(window + sums + results + tail, 16)
        geometry = Geometry(
            p.batch, p.groups, inputs, outputs, tile_rows, int(wide), widest, output_parts, halo_rows, line - ow,
            plane, *p.stride, p.padding[2], p.width, len(every), p.kernel[1], int(table[:terms].max()), at_a_time,
            int(by_tap), TERMS[p.accuracy], block, int(in_place), int(row_by_row), stores, scratch, window, sums,
            results,
        )  # fmt: skip
        tables = one_array(table, tail_table, np.array(planes, np.int64), np.array(regions, np.int64), *sources(p))
        tasks = p.batch * p.groups * len(regions) * output_parts
        other = cls.with_lanes(p, wide, copied=True) if in_place else None
        workspace = max(parts * scratch * size, 0 if other is None else other.workspace_bytes)
        return cls(
            p, "gemm", workspace, tables=(tables,), geometry=geometry, regions=tuple(regions),
            planes=len(planes), parts=min(parts, max(tasks, 1)), scratch=scratch, in_place=in_place, wide=wide,
            by_tap=at_a_time if by_tap else 0, other=other,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p = self.problem
        return ("gemm", "jit", p.weight_shape, p.compute_dtype, self.wide, self.by_tap)

    @property
    def note(self) -> str:
        """For `explain`."""
        where = "in place" if self.in_place else f"{len(self.regions)} strips"
        return f"compiled, {where}" + (", outputs in the lanes" if self.wide else "")

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from what the kernels do with a problem of this geometry."""
        g = self.geometry
        p, lane, images = self.problem, lanes(self.problem.compute_dtype), self.problem.batch * self.problem.groups
        product = costs.single if g.tile_rows == 1 else costs.product
        by_vectors = p.layout == "NCHW" and p.stride[1] <= PADDED_STEPS
        element = costs.filled * p.stride[1] if by_vectors else costs.strided
        passes = -(-g.inputs // g.at_a_time)
        work = 0.0
        for r0, r1, q0, q1, i0, i1, j0, j1 in self.regions:
            rows, line = r1 - r0, q1 - q0 + g.halo_cols
            columns, lines = rows * line - g.halo_cols, 1
            if g.row_by_row:
                columns, lines = q1 - q0, rows
            vectors = lines * (-(-columns // g.widest) * g.widest / lane if g.wide else -(-columns // lane))
            columns *= lines
            used = (i1 - i0) * (j1 - j0)
            filled_rows = 0 if self.in_place else g.output_parts * g.inputs * (rows + g.halo_rows)
            filled_rows *= used if self.planes == g.taps else self.planes
            runs = passes * g.outputs * (columns / g.widest if g.wide else vectors / 3)
            runs += passes * g.outputs * (rows if g.halo_cols else 1)
            work += (
                vectors * round_up(g.outputs, g.tile_rows) * g.inputs * used * product
                + filled_rows * (costs.row + line * element)
                + runs * costs.line
                + passes * g.outputs * rows * (q1 - q0) / lane * costs.stored
                + g.output_parts * costs.task
            )
        tasks = images * len(self.regions) * g.output_parts
        return costs.launch + images * work * per_thread(threads.get_num_threads(), tasks)

    @property
    def panel(self) -> tuple[int, int]:
        return self.geometry.tile_rows, self.by_tap

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        usual = self.usual_x
        if self.other is not None and (x_strides[0] != usual[0] or x_strides[3:] != usual[3:]):
            self.other.fill(x, x_strides, y, y_strides, data, epilogue, launch)
            return
        geometry = self.geometry
        if geometry.stores == PAST_CACHES and not may_stream(y, y_strides, self.problem):
            geometry = geometry._replace(stores=ASKED_AHEAD)
        scratch = threads.scratch(self.parts * self.scratch, self.dtype)
        code = kernels.code_of_tiles(geometry.tile_rows, self.wide, self.problem.compute_dtype)
        launch(
            kernels.gemm, self.parts,
            x, y, code, data, epilogue, *self.tables, self.numbers(x_strides, y_strides, geometry), scratch,
        )  # fmt: skip


def _shifting_pays(p: Problem, phases: int, halo_cols: int, wide: bool) -> bool:
    """Whether the columns that are computed too many cost less than a copy of the window for every tap.

    These are the halo's columns, or the last ones of a row's last tile if they are fewer.
    """
    ow, n_taps = p.out_size[1], p.kernel[0] * p.kernel[1]
    outputs = p.out_channels // p.groups
    if wide:
        halo_cols = round_up(ow, even_width(kernels.WIDTHS, ow)) - ow
    wasted = halo_cols / ow * n_taps * outputs / 16  # vector operations per input element
    copied = (n_taps - phases) * 0.4
    return n_taps == 1 or wasted < copied


def _strips(regions: tuple[taps.Region, ...]) -> list[Ints]:
    """Regions cut into strips that are worth reading all weights, those with the most work first."""
    found = []
    for rows, *others in regions:
        q0, q1, *kernel = (edge for part in others for edge in (part.start, part.stop))
        height = rows.stop - rows.start
        strips = -(-height // max(1, WORTH_COLUMNS // (q1 - q0)))
        for i in range(strips):
            r0, r1 = (rows.start + n * height // strips for n in (i, i + 1))
            found.append((r0, r1, q0, q1, *kernel))
    return sorted(found, key=lambda s: -(s[1] - s[0]) * (s[3] - s[2]) * (s[5] - s[4]) * (s[7] - s[6]))


def _divisor(value: int, limit: int) -> int:
    """The largest divisor up to a limit."""
    return max(n for n in range(1, max(min(value, limit), 1) + 1) if value % n == 0)
