"""The compiled transposed convolution bound to a problem: the window that its phases share, the strips."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np

from ....core.backend import PackedWeight, Plan
from ....core.problem import Problem, TransposedProblem
from ....engines.accuracy import TERMS
from ....engines.phases import turned
from ....engines.transposed import Phase, image_gradient_phases
from ... import threads
from .. import team
from ..base import (
    CACHE_BYTES,
    Array,
    CompiledPlan,
    Ints,
    Launch,
    compiled_by,
    one_array,
    read_only,
    round_up,
    sources,
)
from ..costs import CompiledCosts
from ..gemm.plan import FIRST_CACHE_BYTES, MANY_WEIGHT_BYTES, MAX_WINDOW_BYTES, SMALL_IMAGE, WORTH_COLUMNS
from ..vectors import lanes
from ..weights import in_panels
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledTransposedPlan"]

SOME_WEIGHT_BYTES = 1 << 20  # so many that the products take longer than what a phase of its own costs
FULL = 0.8  # of the elements of the vectors in which an image's columns are multiplied, those that are results


@dataclass(frozen=True, kw_only=True)
class CompiledTransposedPlan(CompiledPlan):
    """All phases of the strides together: see `kernels.py`."""

    problem: TransposedProblem
    geometry: Geometry
    phases: tuple[Phase, ...]

    @classmethod
    def make(cls, p: Problem) -> CompiledTransposedPlan | None:
        """The plan, or None where phases are better one by one.

        That is without strides, channels last, and for huge windows. And where there are many weights: for a single
        phase, and for small images, of which register tiles with outputs in the lanes, that phases may have, leave less
        empty.
        """
        if not isinstance(p, TransposedProblem) or p.layout != "NCHW" or p.batch == 0 or p.stride == (1, 1):
            return None
        phases = tuple(image_gradient_phases(p.convolution, p.x_dtype))
        if not phases:
            return None
        # The window is the image with as much padding as all phases need, each of which begins somewhere in it.
        top, firsts = _firsts([phase.rows for phase in phases])
        left, first_cols = _firsts([phase.cols for phase in phases])
        kernel_sizes = [phase.problem.kernel for phase in phases]
        halo_rows = max(a + (k[0] - 1) * f.rows.dilation for a, k, f in zip(firsts, kernel_sizes, phases, strict=True))
        halo_cols = max(
            a + (k[1] - 1) * f.cols.dilation for a, k, f in zip(first_cols, kernel_sizes, phases, strict=True)
        )
        (out_rows, out_cols), (row_step, col_step) = p.out_size, p.stride
        rows, cols = -(-out_rows // row_step), -(-out_cols // col_step)  # of the phases that have most of them
        inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
        size, lane, line = p.itemsize, lanes(p.compute_dtype), cols + halo_cols
        tile_rows, widest = kernels.tile_shape(outputs)
        counts = [kh * kw for kh, kw in kernel_sizes]
        weight_bytes = inputs * sum(counts) * outputs * size
        full = rows * cols >= FULL * round_up((rows - 1) * line + cols, lane)
        if weight_bytes > SOME_WEIGHT_BYTES and not (full and len(phases) > 1):
            return None

        parts = threads.usable_cores()
        row_bytes = line * inputs * size
        strip = max(1, CACHE_BYTES // row_bytes - halo_rows)
        if weight_bytes > MANY_WEIGHT_BYTES:
            strip = max(strip, -(-WORTH_COLUMNS // line))
        strip = rows if rows * line <= SMALL_IMAGE else min(rows, strip)
        if row_bytes * (strip + halo_rows) > MAX_WINDOW_BYTES:
            return None
        strips, output_parts = -(-rows // strip), 1
        if p.batch * p.groups * strips < 4 * parts:  # too few for an even share: more, or share the outputs
            if strips == 1 and outputs >= 2 * parts * tile_rows:
                output_parts = parts
            else:
                strips = min(rows, round_up(strips, parts))
        ends = [i * rows // strips for i in range(strips + 1)]
        plane = round_up((-(-rows // strips) + halo_rows) * line, lane)

        starts = np.arange(inputs, dtype=np.int64) * plane
        tables, numbers, term, weights = [], list[Ints](), 0, 0
        for phase, row, col, (kh, kw) in zip(phases, firsts, first_cols, kernel_sizes, strict=True):
            dh, dw = phase.rows.dilation, phase.cols.dilation
            where = [(row + i * dh) * line + col + j * dw for i in range(kh) for j in range(kw)]
            tables.append((starts[:, None] + np.array(where, np.int64)).reshape(-1) * size)
            numbers.append((term, inputs * kh * kw, weights, phase.cols.target.start))
            term += inputs * kh * kw
            weights += p.groups * round_up(outputs, tile_rows) * inputs * kh * kw
        groups_of_rows = []
        for start in range(row_step):
            of_it = [n for n, phase in enumerate(phases) if phase.rows.target.start == start]
            groups_of_rows.append((-(-(out_rows - start) // row_step), min(of_it, default=0), len(of_it)))
        reach, terms = widest * lane, inputs * max(counts)
        window, sums = inputs * plane + reach, tile_rows * reach * kernels.LEVELS
        scratch = round_up(window + sums + tile_rows * reach * col_step + lane, 16)
        small = window * size <= 2 * CACHE_BYTES and weight_bytes > CACHE_BYTES
        tiles = max(FIRST_CACHE_BYTES // (terms * reach * size), 1)
        padding = (top, max(0, rows + halo_rows - top - p.height), left, max(0, line - left - p.width))
        padded = replace(phases[0].problem, height=p.height, width=p.width, padding=padding)
        geometry = Geometry(
            p.batch, p.groups, inputs, outputs, tile_rows, widest, output_parts, halo_rows, line, plane, left, p.width,
            cols, row_step, col_step, out_cols, TERMS[p.accuracy], 1 << 40 if small else widest * tiles, scratch,
            window, sums,
        )  # fmt: skip
        every = one_array(
            np.concatenate(tables), np.array([*pairwise(ends)], np.int64), *sources(padded),
            np.array(groups_of_rows, np.int64), np.array(numbers, np.int64),
        )  # fmt: skip
        return cls(
            problem=p, engine="gemm", workspace_bytes=parts * scratch * size, tables=(every,), geometry=geometry,
            phases=phases, parts=min(parts, p.batch * p.groups * strips * output_parts), scratch=scratch,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p, taps = self.problem, [(str(phase.rows.taps), str(phase.cols.taps)) for phase in self.phases]
        return ("gemm", "jit", "transposed", p.weight_shape, p.compute_dtype, *taps)

    @property
    def note(self) -> str:
        """For `explain`."""
        return f"compiled, {len(self.phases)} phases at once"

    @property
    def adds_residuals(self) -> bool:
        """See `CompiledPlan`: what is stored has been put together elsewhere."""
        return False

    def rebuilt(self, change: Callable[[Problem], Problem], _build: Callable[[Problem, str], Plan]) -> Plan:
        """The plan of a problem with another epilogue or result, on which nothing in it depends."""
        changed: Any = change(self.problem)
        return replace(self, problem=changed)

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from the arithmetic alone."""
        return costs.launch + self.problem.flops / 2 / lanes(self.problem.compute_dtype) * costs.product

    def pack(self, weight: Any, /) -> PackedWeight:
        data = self._panels(weight, team.launch)
        return PackedWeight(self.stamp, data, data.nbytes)

    def _panels(self, weight: Array, launch: Launch) -> Array:
        """The panels of one phase after the other."""
        weight, g = np.reshape(weight, self.problem.weight_shape), self.geometry
        sizes = [phase.problem.kernel[0] * phase.problem.kernel[1] for phase in self.phases]
        panel = self.problem.groups * round_up(g.outputs, g.tile_rows) * g.inputs
        packed, done = np.empty(panel * sum(sizes), self.dtype), 0
        for phase, size in zip(self.phases, sizes, strict=True):
            into = packed[done : done + panel * size]
            in_panels(turned(phase, weight, np), phase.problem, self.dtype, g.tile_rows, 0, launch, into)
            done += panel * size
        return read_only(packed)

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        scratch = threads.scratch(self.parts * self.scratch, self.dtype)
        code = kernels.code_of_tiles(self.geometry.tile_rows, False, self.problem.compute_dtype)
        launch(
            kernels.transposed, self.parts,
            x, y, code, data, epilogue, *self.tables, self.numbers(x_strides, y_strides, self.geometry), scratch,
        )  # fmt: skip

    def warmup(self) -> tuple[str, ...]:
        weight = np.empty(self.problem.weight_shape, self.dtype)
        return *compiled_by(partial(self._panels, weight)), *super().warmup()


def _firsts(axis: list[Any]) -> tuple[int, list[int]]:
    """The padding before the image along an axis, and where in it, or in the image, each phase reads first."""
    before = max(0, *(a.before - a.source.start for a in axis))
    return before, [before + a.source.start - a.before for a in axis]
