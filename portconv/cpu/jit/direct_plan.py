"""The compiled `direct` bound to a problem: the patch and the strips."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...backend import PackedWeight
from ...spec import Problem
from .. import separable, threads
from . import direct as kernels
from .base import CACHE_BYTES, CHUNK, Array, Ints, JitPlan, contiguous, per_thread, read_only, round_up, sources
from .costs import JitCosts
from .gemm import LEVELS
from .vectors import VECTOR_BYTES, lanes

__all__ = ["DirectPlan"]

MAX_STRIP_BYTES = 12 << 20


@dataclass(frozen=True)
class DirectPlan(JitPlan):
    """`direct`: see kernels in `direct.py`. Strides are left to the plain engine."""

    passes: Ints = ()  # the geometry for separable kernels
    copied: bool = False

    @classmethod
    def make(cls, p: Problem) -> DirectPlan | None:
        """Choose the patch and the strips."""
        if p.stride != (1, 1):
            return None
        # masks cost where the CPU has no masked loads
        copied = VECTOR_BYTES < 32 or p.layout != "NCHW" or (any(p.padding) and p.padding_mode != "zeros")
        geometry = _direct_geometry(p, copied)
        passes = _direct_geometry(p, True) if p.in_channels == p.groups and p.kernel[0] * p.kernel[1] > 1 else geometry
        if max(geometry[-4], passes[-4]) * p.itemsize > MAX_STRIP_BYTES:
            return None
        tasks = p.batch * p.out_channels * geometry[14] * geometry[15]
        parts, scratch = threads.usable_cores(), max(geometry[-4], passes[-4])
        return cls(
            p, "direct", parts * scratch * p.itemsize, tables=sources(p), geometry=geometry, passes=passes,
            parts=min(parts, max(tasks, 1)), scratch=scratch, copied=copied,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        p = self.problem
        return ("direct", "jit", p.weight_shape, p.compute_dtype, self.splits)

    @property
    def splits(self) -> bool:
        """Whether two passes over a separable kernel would pay."""
        (kh, kw), p = self.problem.kernel, self.problem
        return p.in_channels == p.groups and kh * kw >= 2 * (kh + kw)

    def seconds(self, costs: JitCosts) -> float:
        """As in the base."""
        p = self.problem
        (batch, inputs, outputs, group_outputs, kh, kw, dh, dw, top, _, height, _, oh, ow, strips, col_strips, copied,
         rows, vectors, *_, window_cols) = self.geometry  # fmt: skip
        lane = lanes(p.compute_dtype)
        wide = -(-ow // (vectors * lane))
        patches = batch * outputs * (-(-oh // rows) + strips - 1) * (wide + col_strips - 1)
        # kernel rows that meet the image, on the average
        reached = (min(oh, height + top - i * dh) - max(0, top - i * dh) for i in range(kh))
        met = kh if copied else sum(max(rows_met, 0) for rows_met in reached) / oh
        filled_rows = copied * batch * inputs * (outputs // group_outputs) * (oh + strips * (kh - 1) * dh) * col_strips
        element = costs.filled if p.layout == "NCHW" else costs.strided
        work = (
            patches * (costs.patch + rows * vectors * inputs * met * kw * costs.tap)
            + filled_rows * (costs.row + window_cols * element)
            + batch * outputs * oh * wide * costs.line
            + batch * outputs * oh * ow / lane * costs.stored
        )
        return costs.launch + work * per_thread(self.parts, batch * outputs * strips * col_strips)

    def pack(self, weight: Any, /) -> PackedWeight:
        g, o, _, kh, kw = self.problem.weight_shape
        packed = np.array(weight, self.problem.compute_dtype, order="C")
        if self.splits and (found := separable.factors(packed.reshape(g * o, kh, kw), packed.dtype.name)) is not None:
            packed = np.concatenate([factor.reshape(-1) for factor in found])
        data = read_only(packed.reshape(-1))
        return PackedWeight(self.stamp, data, data.nbytes, separable=data.size != weight.size)

    def fill(self, x: Array, x_steps: Ints, y: Array, y_steps: Ints, data: Any, bias: Array) -> None:
        """As in the base."""
        p = self.problem
        two = data.size != p.out_channels * (p.in_channels // p.groups) * p.kernel[0] * p.kernel[1]
        if not self.copied and not two and x_steps[3] != 1:
            x, x_steps = contiguous(x, x_steps, p)
        threads.launch(
            kernels.direct_alone, kernels.direct_team, self.parts, x, x_steps, y, y_steps, data, bias,
            *self.tables, self.passes if two else self.geometry, two,
            threads.scratch(self.parts * self.scratch, y.dtype),
        )  # fmt: skip


def _direct_geometry(p: Problem, copied: bool) -> Ints:
    oh, ow = p.out_size
    (kh, kw), (dh, dw) = p.kernel, p.dilation
    inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
    size, lane = p.itemsize, lanes(p.compute_dtype)
    top, _, left, _ = p.padding
    parts = threads.usable_cores()
    rows, vectors = next((s for s in kernels.SHAPES if s[1] * lane >= ow), kernels.SHAPES[-1])
    reach_rows, reach_cols = (kh - 1) * dh, (kw - 1) * dw
    # wide windows are cut, so that a strip is high enough to be worth its halo
    col_strips = 1
    if copied and (reach_rows + 4 * rows) * (ow + reach_cols) * inputs * size > CACHE_BYTES:
        col_strips = max(1, ow // max(256, 4 * reach_cols))
    window_cols = -(-ow // col_strips) + reach_cols
    row_bytes = window_cols * inputs * size
    strip = max(rows, min(oh, CACHE_BYTES // row_bytes - reach_rows) // rows * rows)
    strips = -(-oh // strip)
    if p.batch * p.out_channels * strips * col_strips < 4 * parts:
        strips = min(-(-oh // rows), round_up(max(strips, 4 * parts // max(p.batch * p.out_channels, 1)), parts))
    window_rows = -(-oh // strips) + reach_rows
    # the last patch of a strip may have rows too many, and the last of a row columns
    room = (inputs * window_rows + rows) * window_cols + vectors * lane if copied else 0
    sums = rows * vectors * lane * LEVELS + vectors * lane  # and a row of zeros
    scratch = round_up(2 * room + sums, 16)
    return (
        p.batch, inputs, p.out_channels, outputs, kh, kw, dh, dw, top, left, p.height, p.width, oh, ow, strips,
        col_strips, int(copied), rows, vectors, CHUNK[p.accuracy], scratch, room, window_rows, window_cols,
    )  # fmt: skip
