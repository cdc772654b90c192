"""The compiled `gemm` for channels last, bound to a problem: the runs of its terms, the strips."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ....core.problem import Problem
from ....core.shapes import ranges
from ....engines.accuracy import TERMS
from ... import threads
from ..base import (
    CACHE_BYTES,
    Array,
    Ints,
    Launch,
    even_width,
    one_array,
    per_thread,
    round_up,
    sources,
)
from ..costs import CompiledCosts
from ..epilogue import RECORD
from ..gemm.kernels import LEVELS
from ..gemm.plan import MANY_WEIGHT_BYTES, WORTH_COLUMNS
from ..vectors import OUTPUT_VECTORS, lanes
from ..weights import PanelsPlan
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledChannelsLastPlan"]

STRIP_BYTES = 2 * CACHE_BYTES  # of the image
MAX_WINDOW_BYTES = 4 << 20  # of a strip that is copied
MIN_COLUMNS = 28  # of a strip
FEW_PIXELS = 56  # of any strip
TASKS = 4  # for each thread, where there are as many
SINGLE = 1.2  # what an output costs in tiles of one vector, which load a pixel for one multiplication


@dataclass(frozen=True, kw_only=True)
class CompiledChannelsLastPlan(PanelsPlan):
    """`gemm` with outputs in the lanes, for layout NHWC: see `kernels.py`."""

    geometry: Geometry
    other: CompiledChannelsLastPlan | None = None  # for images in memory orders that cannot be read in place

    @classmethod
    def make(cls, p: Problem) -> CompiledChannelsLastPlan | None:
        """Choose the tiles and the strips, or say None where this form is not for the problem."""
        return cls._with_copy(p, copied=False) if p.layout == "NHWC" else None

    @classmethod
    def _with_copy(cls, p: Problem, *, copied: bool) -> CompiledChannelsLastPlan | None:
        """What is read in place from an image in C order is `copied`, strip by strip, from others."""
        (oh, ow), (kh, kw), (sh, sw), (dh, dw) = p.out_size, p.kernel, p.stride, p.dilation
        left = p.padding[2]
        channels, size, lane = p.in_channels, p.itemsize, lanes(p.compute_dtype)
        inputs, outputs = channels // p.groups, p.out_channels // p.groups
        in_place = not copied and not any(p.padding) and p.x_dtype == p.compute_dtype
        reach, reach_cols = (kh - 1) * dh + 1, (kw - 1) * dw + 1
        vectors = OUTPUT_VECTORS
        if round_up(outputs, lane) * SINGLE < round_up(outputs, OUTPUT_VECTORS * lane):
            vectors = 1
        tiles = -(-outputs // (vectors * lane))

        # A strip of the image stays in a core's cache. Rows of it that two strips copy both should be few.
        pixel_bytes, few = channels * size, 0 if in_place else 4 * (reach - sh)
        cols = min(ow, max(MIN_COLUMNS, (STRIP_BYTES // (pixel_bytes * (few + reach)) - reach_cols) // sw + 1))
        row_bytes = ((cols - 1) * sw + reach_cols) * pixel_bytes
        rows = max(1, min(oh, (STRIP_BYTES // row_bytes - reach) // sh + 1))
        weight_bytes = inputs * kh * kw * p.out_channels * size
        if weight_bytes > MANY_WEIGHT_BYTES:
            rows = max(rows, min(oh, -(-WORTH_COLUMNS // ow)))
        if not in_place and row_bytes * ((rows - 1) * sh + reach) > MAX_WINDOW_BYTES:
            return None
        parts, output_parts, units = threads.usable_cores(), 1, p.groups * tiles
        strips, col_strips = -(-oh // rows), -(-ow // cols)
        images = p.batch * col_strips
        if images * strips < TASKS * parts:  # so few that a thread without a core would delay the others
            copies = 0 if in_place else reach - sh
            worth = WORTH_COLUMNS if weight_bytes > MANY_WEIGHT_BYTES else FEW_PIXELS
            most = oh // max(1, 2 * copies, -(-worth // cols))
            if images * most >= parts:
                strips = max(strips, min(most, -(-TASKS * parts // images)))
                strips -= strips % parts if strips > parts and most < TASKS * parts else 0
            elif units < 2 * parts:
                strips = min(oh, round_up(strips, parts))
            elif not in_place:
                output_parts = parts  # each of which copies the strip
            if in_place:
                output_parts = min(units, -(-TASKS * parts // (images * strips)))
        rows = -(-oh // strips)
        line = (-(-ow // col_strips) - 1) * sw + reach_cols

        run_on = kh == kw == sh == sw == col_strips == 1 and not any(p.padding)
        columns = oh // strips * ow if run_on else ow // col_strips
        widest = even_width(tuple(n for n in kernels.WIDTHS if n <= columns), columns)
        together = p.groups == 1 and dw == 1  # the taps of a row of the kernel
        taps = (
            [(i * dh, 0) for i in range(kh)] if together else [(i * dh, j * dw) for i in range(kh) for j in range(kw)]
        )
        run = inputs * kw if together else inputs
        # in place they are as far apart as rows of the image
        runs = np.array([(i * (p.width if in_place else line) + j) * pixel_bytes for i, j in taps], np.int64)
        found = _parts(len(taps), run, TERMS[p.accuracy], size)
        window = 0 if in_place else line * channels * ((rows - 1) * sh + reach)
        tile = widest * vectors * lane
        sums = tile * LEVELS if len(found) > 1 else 0
        scratch = round_up(window + sums + tile + 2 * vectors * RECORD * lane, 16)
        geometry = Geometry(
            p.batch, channels, inputs, outputs, tiles, vectors, strips, col_strips, output_parts, p.width, oh, ow, sh,
            sw, reach, reach_cols, line, left, len(taps) * run, int(in_place), int(run_on), widest, scratch, window,
            sums, tile,
        )  # fmt: skip
        tables = one_array(runs, np.array(found, np.int64), *sources(p))
        other = cls._with_copy(p, copied=True) if in_place else None
        if in_place and other is None:
            return None
        workspace = parts * scratch * size
        return cls(
            p, "gemm", max(workspace, 0 if other is None else other.workspace_bytes), tables=(tables,),
            geometry=geometry, parts=min(parts, p.batch * strips * col_strips * output_parts), scratch=scratch,
            other=other,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p = self.problem
        return ("gemm", "jit", p.weight_shape, p.compute_dtype, "channels last", self.geometry.vectors)

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled, channels last, " + (
            "in place" if self.geometry.in_place else f"{self.geometry.strips} strips"
        )

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from what the kernels do with a problem of this geometry."""
        g, p = self.geometry, self.problem
        lane, units = lanes(p.compute_dtype), p.groups * g.tiles
        rows, cols = -(-g.out_rows // g.strips), -(-g.out_cols // g.col_strips)
        pixels = -(-rows * cols // g.widest) if g.run_on else rows * -(-cols // g.widest)
        multiplied = units * pixels * g.widest * g.vectors * g.terms * costs.product
        if g.vectors == 1:
            multiplied *= SINGLE
        filled = ((rows - 1) * g.row_stride + g.reach) * (costs.row + g.line * g.channels * costs.filled)
        copied = 0 if g.in_place else filled
        work = (
            g.strips * g.col_strips
            * (multiplied + g.output_parts * (copied + costs.task) + pixels * units * costs.line)
            + g.out_rows * g.out_cols * p.out_channels / lane * costs.stored
        )  # fmt: skip
        tasks = p.batch * g.strips * g.col_strips * g.output_parts
        return costs.launch + p.batch * work * per_thread(threads.get_num_threads(), tasks)

    @property
    def panel(self) -> tuple[int, int]:
        return self.geometry.vectors * lanes(self.problem.compute_dtype), self.geometry.inputs

    @property
    def adds_residuals(self) -> bool:
        return True

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        usual = self.usual_x
        if self.other is not None and (x_strides[0] != usual[0] or x_strides[3:] != usual[3:]):
            self.other.fill(x, x_strides, y, y_strides, data, epilogue, launch)
            return
        launch(
            kernels.channels_last, self.parts, x, y, data, epilogue, *self.tables,
            self.numbers(x_strides, y_strides, self.geometry), threads.scratch(self.parts * self.scratch, self.dtype),
        )  # fmt: skip


def _parts(runs: int, run: int, chunk: int, size: int) -> list[Ints]:
    """The terms of an output in parts of about `chunk`: the first run, how many, where they begin, terms of each."""
    if run <= chunk:
        return [(some.start, some.stop - some.start, 0, run) for some in ranges(runs, chunk // run)]
    return [(n, 1, some.start * size, some.stop - some.start) for n in range(runs) for some in ranges(run, chunk)]
