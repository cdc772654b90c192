"""The stencil bound to a problem: the tile, the strips, the channels of a task."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ....core.backend import PackedWeight
from ....core.problem import Problem
from ....engines.accuracy import TERMS
from ....engines.separable import Passes, share
from ... import threads
from ..base import CACHE_BYTES, Array, CompiledPlan, Ints, Launch, one_array, per_thread, read_only, round_up, sources
from ..costs import CompiledCosts
from ..depthwise.plan import CompiledDepthwisePlan
from ..direct.plan import CompiledDirectPlan
from ..vectors import lanes
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledStencilPlan"]

TASK_BYTES = 64 << 10  # of images that are read and results that are written, so that taking a task costs little


@dataclass(frozen=True, kw_only=True)
class CompiledStencilPlan(CompiledPlan):
    """`direct` with columns in the lanes: see `kernels.py`. Kernels of 3, 5 or 7 rows, strides up to 2."""

    geometry: Geometry
    other: CompiledDepthwisePlan | CompiledDirectPlan | None  # for separable kernels, and for channels side by side

    @classmethod
    def make(cls, p: Problem) -> CompiledStencilPlan | None:
        """Choose the tile and the strips, or say None where this form is not for the problem."""
        (oh, ow), (kh, kw), (sh, sw) = p.out_size, p.kernel, p.stride
        if p.in_channels != p.groups or p.layout != "NCHW" or p.dilation != (1, 1) or kh * kw > TERMS[p.accuracy]:
            return None
        heights = [rows for height, stride, rows in kernels.TILES if (height, stride) == (kh, sh) and rows <= oh]
        if not heights or sw > min(kw, 2):
            return None
        size, lane = p.itemsize, lanes(p.compute_dtype)
        tile_rows = min(heights, key=lambda rows: -(-oh // rows) * (rows + 1))
        phases = sw
        # a tile reads beyond its row, into the next one, what it does not use
        pitch = round_up(max(-(-(ow * sw + kw - sw) // sw), 1), lane)
        parts, channels, multiplier = threads.usable_cores(), p.in_channels, p.out_channels // p.groups
        line_bytes = phases * pitch * size
        rows = max(tile_rows, (CACHE_BYTES // line_bytes - kh) // sh)
        strips = -(-oh // rows)
        if p.batch * channels * strips < 4 * parts:
            strips = round_up(max(strips, -(-4 * parts // (p.batch * channels))), parts)
        strips = max(1, min(strips, oh // tile_rows))  # each has a tile
        task_bytes = (p.width * -(-p.height // strips) + multiplier * ow * -(-oh // strips)) * size
        together = max(1, min(TASK_BYTES // task_bytes, p.batch * channels * strips // (8 * parts)))
        strip_rows = (-(-oh // strips) - 1) * sh + kh
        strip = round_up((strip_rows * phases + 1) * pitch + 2 * lane, 16)
        image = round_up(min(strip_rows, p.height) * p.width + lane, 16)
        results = round_up(-(-oh // strips) * ow + 2 * lane, 16)
        scratch = strip + image + results + round_up(2 * lane + kw, 16)  # and a row of zeros
        geometry = Geometry(
            p.batch, channels, multiplier, together, strips, p.height, p.width, oh, ow, kh, kw, sh, sw, p.padding[0],
            p.padding[2], int(p.padding_mode == "zeros" or not any(p.padding)),
            2 * kernels.TILES.index((kh, sh, tile_rows)), tile_rows, phases, pitch, scratch, strip, image,
            results,
        )  # fmt: skip
        columns = np.arange(kw)
        table = (columns % sw * pitch + columns // sw) * size
        other = CompiledDepthwisePlan.make(p) or CompiledDirectPlan.make(p)
        workspace = max(parts * scratch * size, 0 if other is None else other.workspace_bytes)
        return cls(
            p, "direct", workspace, tables=(one_array(table.astype(np.int64), *sources(p)),), geometry=geometry,
            parts=min(parts, p.batch * -(-channels // together) * strips), scratch=scratch, other=other,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        return ("direct", "jit", "stencil", self.problem.weight_shape, self.problem.compute_dtype, self._other_stamp)

    @property
    def _other_stamp(self) -> Hashable:
        return None if self.other is None else self.other.stamp

    @property
    def if_separable(self) -> float | None:
        return share(self.problem)

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled, columns in the lanes"

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from what the kernels do with a problem of this geometry."""
        p, g, lane = self.problem, self.geometry, lanes(self.problem.compute_dtype)
        wide = -(-g.out_cols // lane)
        tiles = -(-g.out_rows // g.strips // g.rows) * g.strips * g.multiplier
        converted = 0 if p.x_dtype == p.result_dtype == p.compute_dtype else -(-g.height * g.width // lane)
        padded_rows = g.out_rows * g.sh + g.strips * (g.kh - g.sh)
        in_place = g.kh <= kernels.MASKED and g.zeros and g.sw == 1
        work = (
            tiles * g.rows * wide * (g.kh * g.kw * costs.product + costs.padded)
            + tiles * -(-wide // 2) * costs.line / 2
            + (0 if in_place else padded_rows * (g.phases * g.pitch // lane) * costs.padded)
            + 2 * converted * costs.padded
            + (1 if g.zeros else padded_rows) * 2 * costs.row
        )
        tasks = g.batch * -(-g.channels // g.together) * g.strips
        return costs.launch + (work * g.batch * g.channels + tasks * costs.task) * per_thread(self.parts, tasks)

    def pack(self, weight: Any, /) -> PackedWeight:
        p, own = self.problem, np.asarray(weight, self.problem.compute_dtype)
        packed = [own.reshape(-1, *p.kernel).transpose(0, 2, 1).reshape(-1)]  # tap by tap down the columns
        if self.other is not None:
            others = self.other.pack(weight)
            if others.separable:
                return replace(others, stamp=self.stamp)
            if isinstance(self.other, CompiledDepthwisePlan):
                packed.append(others.data)
        data = read_only(np.ascontiguousarray(np.concatenate(packed)))
        return PackedWeight(self.stamp, data, data.nbytes)

    def warmup(self) -> tuple[str, ...]:
        return *super().warmup(), *(() if self.other is None else self.other.warmup())

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        p = self.problem
        if self.other is not None and isinstance(data, Passes):
            self.other.fill(x, x_strides, y, y_strides, data, epilogue, launch)
            return
        if abs(x_strides[3]) < abs(x_strides[5]) and isinstance(self.other, CompiledDepthwisePlan):
            own = p.out_channels * p.kernel[0] * p.kernel[1]
            self.other.fill(x, x_strides, y, y_strides, read_only(data[own:]), epilogue, launch)
            return
        launch(
            kernels.stencil, self.parts, x, y, data, epilogue, *self.tables,
            self.numbers(x_strides, y_strides, self.geometry), threads.scratch(self.parts * self.scratch, self.dtype),
        )  # fmt: skip
