"""The compiled `direct` bound to a problem: the patch and the strips."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ....core.backend import PackedWeight
from ....core.problem import Problem
from ....engines.accuracy import TERMS
from ....engines.separable import Passes, in_two_passes, may_be_separable, share
from ... import separable, threads
from ..base import CACHE_BYTES, Array, CompiledPlan, Ints, Launch, per_thread, read_only, round_up, sources
from ..conversions import kind_of
from ..costs import CompiledCosts
from ..epilogue import RECORD
from ..gemm.kernels import LEVELS
from ..vectors import VECTOR_BYTES, lanes
from . import kernels
from .geometry import Geometry
from .passes import BLOCK, GROUP, SHAPES

__all__ = ["CompiledDirectPlan"]

MAX_STRIP_BYTES = 12 << 20
MAX_PIXEL = 64  # channels that lie side by side
PASS_ELEMENTS = 2048  # of a row between two passes, and bytes of what they copy, if they do, and rows of that at least
PASS_BYTES = 512 << 10
MIN_PASS_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class CompiledDirectPlan(CompiledPlan):
    """`direct`: see `kernels.py`. Strides are left to the plain engine."""

    geometry: Geometry
    window: Geometry  # for images in memory orders that cannot be read in place
    passes: Geometry  # for separable kernels
    pixels: tuple[Geometry, Geometry] | None = None  # whole and separable ones that all channels of a pixel share
    copied: bool = False

    @classmethod
    def make(cls, p: Problem) -> CompiledDirectPlan | None:
        """Choose the patch and the strips."""
        if p.stride != (1, 1):
            return None
        # masks cost where the CPU has no masked loads
        copied = VECTOR_BYTES < 32 or p.layout != "NCHW" or (any(p.padding) and p.padding_mode != "zeros")
        copied = copied or p.x_dtype != p.compute_dtype
        geometry, window = _direct_geometry(p, copied), _direct_geometry(p, True)
        depthwise = p.in_channels == p.groups and p.kernel[0] * p.kernel[1] > 1
        passes = _passes_geometry(p) if depthwise else geometry
        pixels = None
        if depthwise and p.layout == "NHWC" and 1 < p.in_channels == p.out_channels <= MAX_PIXEL:
            pixels = _direct_geometry(p, True, p.in_channels), _passes_geometry(p, p.in_channels)
        every = [geometry, window, passes, *(pixels or ())]
        scratch = max(g.part_size for g in every)
        if scratch * p.itemsize > MAX_STRIP_BYTES:
            return None
        tasks = max(g.batch * g.outputs * g.strips * g.col_strips for g in every)
        parts = threads.usable_cores()
        return cls(
            p, "direct", parts * scratch * p.itemsize, tables=sources(p), geometry=geometry, window=window,
            passes=passes, pixels=pixels, parts=min(parts, max(tasks, 1)), scratch=scratch, copied=copied,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p = self.problem
        return ("direct", "jit", p.weight_shape, p.compute_dtype, self.splits, self.pixels is not None)

    @property
    def if_separable(self) -> float | None:
        return share(self.problem)

    @property
    def splits(self) -> bool:
        """Whether two passes over a separable kernel would pay."""
        kh, kw = self.problem.kernel
        return may_be_separable(self.problem) and kh * kw >= 2 * (kh + kw)

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from what the kernels do with a problem of this geometry."""
        p = self.problem
        # a planner sees no weights: most filters of photographs are the same for all channels
        g = self.geometry if self.pixels is None else self.pixels[0]
        lane = lanes(p.compute_dtype)
        wide = -(-g.out_cols * g.pixel // (g.vectors * lane))
        patches = g.batch * g.outputs * (-(-g.out_rows // g.rows) + g.strips - 1) * (wide + g.col_strips - 1)
        # kernel rows that meet the image, on the average
        reached = (min(g.out_rows, g.height + g.top - i * g.dh) - max(0, g.top - i * g.dh) for i in range(g.kh))
        met = g.kh if g.copied else sum(max(rows_met, 0) for rows_met in reached) / g.out_rows
        filled_rows = (
            g.copied
            * g.batch
            * g.inputs
            * (g.outputs // g.group_outputs)
            * (g.out_rows + g.strips * (g.kh - 1) * g.dh)
            * g.col_strips
        )
        element = costs.filled if p.layout == "NCHW" or self.pixels is not None else costs.strided
        work = (
            patches * (costs.patch + g.rows * g.vectors * g.inputs * met * g.kw * costs.tap)
            + filled_rows * (costs.row + g.window_cols * g.pixel * element)
            + g.batch * g.outputs * g.out_rows * wide * costs.line
            + g.batch * g.outputs * g.out_rows * g.out_cols * g.pixel / lane * costs.stored
        )
        return costs.launch + work * per_thread(self.parts, g.batch * g.outputs * g.strips * g.col_strips)

    def pack(self, weight: Any, /) -> PackedWeight:
        g, o, _, kh, kw = self.problem.weight_shape
        packed = np.array(weight, self.problem.compute_dtype, order="C")
        if self.pixels is not None and _all_alike(packed.reshape(g, kh * kw)):
            packed = packed.reshape(g, kh, kw)[:1]
        if self.splits and (found := separable.factors(packed.reshape(-1, kh, kw), packed.dtype.name)) is not None:
            column, row = (read_only(np.ascontiguousarray(factor).reshape(-1)) for factor in found)
            return in_two_passes(self.stamp, column, row, self.problem)
        data = read_only(packed.reshape(-1))
        return PackedWeight(self.stamp, data, data.nbytes)

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        p, two = self.problem, isinstance(data, Passes)
        taps, rows = data if two else (data, data)  # a whole kernel has no rows of its own
        geometry = self.passes if two else self.geometry
        if self.pixels is not None and len(taps) == p.kernel[0] * (1 if two else p.kernel[1]):  # one for all channels
            if y_strides[5] == p.out_channels * y_strides[3] == p.out_channels * self.result_dtype.itemsize:
                geometry = self.pixels[two]
            else:
                taps, rows = (read_only(np.tile(factors, p.out_channels)) for factors in (taps, rows))
        elif not geometry.copied and not (x_strides[5] == self.dtype.itemsize and x_strides[0] == kind_of(self.dtype)):
            geometry = self.window
        launch(
            kernels.direct, self.parts, x, y, taps, rows, epilogue, *self.tables,
            self.numbers(x_strides, y_strides, geometry), two, threads.scratch(self.parts * self.scratch, self.dtype),
        )  # fmt: skip


def _all_alike(kernels: Array) -> bool:
    """Whether all kernels (channels, taps) have the same bits."""
    bits = kernels.view(np.dtype(f"u{kernels.itemsize}"))
    return bool((bits == bits[0]).all())


def _direct_geometry(p: Problem, copied: bool, pixel: int = 1) -> Geometry:
    """For whole kernels; `pixel` channels that lie side by side are one image with rows as much longer."""
    oh, ow = p.out_size
    (kh, kw), (dh, dw) = p.kernel, p.dilation
    inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
    planes = p.out_channels if pixel == 1 else 1
    size, lane = p.itemsize, lanes(p.compute_dtype)
    top, _, left, _ = p.padding
    parts = threads.usable_cores()
    rows, vectors = next((s for s in SHAPES if s[1] * lane >= ow * pixel), SHAPES[-1])
    reach_rows, reach_cols = (kh - 1) * dh, (kw - 1) * dw
    # wide windows are cut, so that a strip is high enough to be worth its halo
    col_strips = 1
    if copied and (reach_rows + 4 * rows) * (ow + reach_cols) * inputs * pixel * size > CACHE_BYTES:
        col_strips = max(1, ow // max(256 // pixel, 4 * reach_cols))
    window_cols = -(-ow // col_strips) + reach_cols
    row_bytes = window_cols * inputs * pixel * size
    strip = max(rows, min(oh, CACHE_BYTES // row_bytes - reach_rows) // rows * rows)
    strips = -(-oh // strip)
    if p.batch * planes * strips * col_strips < 4 * parts:
        strips = min(-(-oh // rows), round_up(max(strips, 4 * parts // max(p.batch * planes, 1)), parts))
    window_rows = -(-oh // strips) + reach_rows
    windows = p.batch * p.groups * strips * col_strips
    sharing = outputs if pixel == 1 else 1
    together = sharing if windows >= 4 * parts else -(-sharing * windows // (4 * parts))
    # the last patch of a strip may have rows too many, and the last of a row columns
    line = window_cols * pixel
    room = round_up((inputs * window_rows + rows) * line + vectors * lane, 16) if copied else 0
    scratch = round_up(room + pixel * RECORD * lane + _sums(rows, vectors, lane), 16)
    return Geometry(
        p.batch, inputs, planes, outputs if pixel == 1 else 1, kh, kw, dh, dw, top, left, p.height, p.width, oh, ow,
        strips, col_strips, int(copied), rows, vectors, TERMS[p.accuracy], scratch, room, window_rows, window_cols,
        pixel, line, 0, 0, together,
    )  # fmt: skip


def _passes_geometry(p: Problem, pixel: int = 1) -> Geometry:
    """For the two passes of separable kernels."""
    oh, ow = p.out_size
    (kh, kw), (dh, dw) = p.kernel, p.dilation
    planes, multiplier = p.out_channels if pixel == 1 else 1, p.out_channels // p.groups
    size, lane = p.itemsize, lanes(p.compute_dtype)
    top, _, left, _ = p.padding
    parts = threads.usable_cores()
    rows, vectors = next((s for s in SHAPES if s[1] * lane >= ow * pixel), SHAPES[-1])
    reach_rows, reach_cols = (kh - 1) * dh, (kw - 1) * dw
    beyond = max(vectors, GROUP) * lane  # elements that the last vectors of a row may have too many
    col_strips = max(1, ow * pixel // max(PASS_ELEMENTS, 8 * reach_cols * pixel))
    window_cols = -(-ow // col_strips) + reach_cols
    line = round_up(window_cols * pixel + beyond, lane)
    strip = max(MIN_PASS_ROWS, (PASS_BYTES // (line * size) - reach_rows) // BLOCK * BLOCK)
    strips = -(-oh // strip)
    if p.batch * planes * strips * col_strips < 4 * parts:
        strips = min(-(-oh // BLOCK), round_up(max(strips, 4 * parts // max(p.batch * planes, 1)), parts))
    window_rows = -(-oh // strips) + reach_rows
    room, between = round_up((window_rows + 1) * line, 16), round_up((BLOCK + 2) * line, 16)
    table = (BLOCK + kh) * 8 // size
    scratch = round_up(room + between + table + pixel * RECORD * lane + _sums(rows, max(vectors, GROUP), lane), 16)
    return Geometry(
        p.batch, 1, planes, multiplier if pixel == 1 else 1, kh, kw, dh, dw, top, left, p.height, p.width, oh, ow,
        strips, col_strips, 1, rows, vectors, TERMS[p.accuracy], scratch, room, window_rows, window_cols, pixel, line,
        between, table, 1,
    )  # fmt: skip


def _sums(rows: int, vectors: int, lane: int) -> int:
    """Elements of the partial sums of a patch, and of a row of zeros."""
    return rows * vectors * lane * LEVELS + vectors * lane
