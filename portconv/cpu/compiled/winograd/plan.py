"""The compiled `winograd` bound to a problem: the tile and the blocks."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ....core.backend import PackedWeight
from ....core.problem import Problem
from ....engines import winograd
from ....engines.accuracy import TILE_TERMS
from ....engines.cropped import met_mask
from ....engines.steps import LARGEST_TRANSFORMED, SMALLEST_TRANSFORMED
from ... import threads
from ...steps import NumpySteps
from .. import team
from ..base import Array, CompiledPlan, Ints, Launch, compiled_by, first_of, per_thread, read_only, round_up, sources
from ..channels_last.plan import CompiledChannelsLastPlan
from ..costs import COMPILED, CompiledCosts
from ..gemm.plan import CompiledGemmPlan
from ..vectors import MAX_VECTORS, ROWS, VECTOR_BYTES, lanes
from ..weights import weight_runs
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledWinogradPlan"]

BLOCK_BYTES = 1280 << 10  # transformed inputs and outputs of a thread's block
JOINED_BYTES = 24 << 20  # of a block that all threads share
JOINED_WEIGHT_BYTES = 4 << 20  # transformed weights from which on reading them once is worth the waiting


class _Data(NamedTuple):
    """A packed weight."""

    products: Array | None  # of the tiles; None where the transform loses digits of the weight
    exact: Array | None  # for gemm; None where that is packed when a call needs it,
    weight: Array | None = None  # of this


@dataclass(frozen=True, kw_only=True)
class CompiledWinogradPlan(CompiledPlan):
    """`winograd`: see `kernels.py`."""

    geometry: Geometry
    tile: winograd.Tile
    sizes: Ints = ()
    together: bool = False
    lines: int = 0
    block_lines: int = 0
    exact: CompiledGemmPlan | CompiledChannelsLastPlan

    @classmethod
    def make(cls, p: Problem) -> CompiledWinogradPlan | None:
        """Choose the tile and the blocks."""
        if winograd.why_not(p) is not None:
            return None
        exact = CompiledChannelsLastPlan.make(p) or CompiledGemmPlan.make(p)
        plans = [cls.with_tile(p, tile, exact) for tile in winograd.tiles_for(p)]
        return min(plans, key=lambda plan: plan.estimate(COMPILED))

    @classmethod
    def with_tile(
        cls, p: Problem, tile: winograd.Tile, exact: CompiledGemmPlan | CompiledChannelsLastPlan
    ) -> CompiledWinogradPlan:
        """Bind a tile to a problem."""
        oh, ow = p.out_size
        (mh, mw), (nh, nw) = tile.outputs, tile.size
        size, lane = p.itemsize, lanes(p.compute_dtype)
        parts = threads.usable_cores()
        down, row_tiles = -(-oh // mh), -(-ow // mw)
        c_pad, o_pad = round_up(p.in_channels, lane), round_up(p.out_channels, lane)
        tile_bytes = nh * nw * (c_pad + o_pad) * size
        together = joined(p, tile)
        # a line's tiles fill register tiles, and no more of them than the cache holds
        room = max((JOINED_BYTES if together else BLOCK_BYTES) // tile_bytes, 2 * ROWS)
        segments = -(-row_tiles // room)
        across = -(-row_tiles // segments)
        lines = p.batch * down * segments
        block_lines = max(1, min(lines, room // across))
        if not together:
            block_lines = max(1, min(-(-lines // parts), block_lines))
            block_lines = -(-lines // round_up(-(-lines // block_lines), parts)) if lines >= parts else 1
        padded = round_up(block_lines * across, ROWS)
        v, m = nh * nw * padded * c_pad, nh * nw * padded * o_pad
        stage = (max(nh * ((across - 1) * mw + nw), mh * across * mw) + lane) * lane
        own = stage + max(lane, nh * nw) * lane + (0 if together else v + m)
        scratch = parts * own + (v + m if together else 0)
        number = winograd.TILES.index(tile)
        geometry = Geometry(
            p.in_channels, c_pad, p.out_channels, o_pad, down, row_tiles, segments, across, mh, mw, nh, nw, oh, ow,
            p.padding[2], p.width, TILE_TERMS["compiled"], number,
        )  # fmt: skip
        return cls(
            p, "winograd", scratch * size, tile=tile, tables=sources(p), geometry=geometry, sizes=(own, v, m, stage),
            together=together, lines=lines, block_lines=block_lines, parts=parts, scratch=scratch,
            exact=exact,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p = self.problem
        # the weight for gemm is in it, too, in the form of its plan, which depends on the image's size
        return ("winograd", "jit", p.weight_shape, p.compute_dtype, self.tile, self.exact.stamp, met_mask(p))

    @property
    def adds_residuals(self) -> bool:
        return self.exact.adds_residuals  # which has the last word

    @property
    def note(self) -> str:
        """For `explain`."""
        return f"compiled, {winograd.note(self.tile)}"

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from what the kernels do with a problem of this geometry."""
        p = self.problem
        g = self.geometry
        lane = lanes(p.compute_dtype)
        tiles = self.lines * g.across
        blocks = -(-self.lines // self.block_lines)
        padded = blocks * round_up(-(-self.lines // blocks) * g.across, ROWS)
        work = (
            g.nh * g.nw * padded * g.channels * g.o_pad / lane * costs.product
            + g.nh * g.nw * tiles * (g.c_pad + g.o_pad) / lane * costs.transform
            + self.lines * g.c_pad / lane * g.nh * ((g.across - 1) * g.mw + g.nw) * costs.stage
            + p.batch * g.outputs * g.out_rows * -(-g.row_cols // lane) * (costs.line + costs.stored)
            + blocks * costs.task
            + blocks * g.nh * g.nw * g.channels * g.o_pad * p.itemsize * costs.weight
        )
        share = 1 / self.parts if self.together else per_thread(self.parts, blocks)
        return costs.launch * (1 + 0.3 * self.together * blocks) + work * share

    @property
    def packed_size(self) -> int:
        return self.geometry.nh * self.geometry.nw * self.geometry.channels * self.geometry.o_pad

    def pack(self, weight: Any, /) -> PackedWeight:
        weight = winograd.without_unmet(weight, self.problem, NumpySteps())
        products, marks = self._transformed(weight, team.launch)
        if marks.any():  # no transform can be trusted with the weight
            exact = self.exact.pack(weight)
            return PackedWeight(self.stamp, _Data(None, exact.data), exact.nbytes)
        if self.problem.packed_once:  # few calls need it, and the weight does not change meanwhile
            return PackedWeight(self.stamp, _Data(products, None, weight), products.nbytes)
        exact = self.exact.pack(weight)
        return PackedWeight(self.stamp, _Data(products, exact.data), products.nbytes + exact.nbytes)

    def _transformed(self, weight: Array, launch: Launch) -> tuple[Array, Array]:
        """The weights of all tiles, transformed in float64, and marks where one would lose digits.

        They come in panels as wide as a register tile, each with all its channels.
        """
        p, g, lane = self.problem, self.geometry, lanes(self.problem.compute_dtype)
        vectors = g.o_pad // lane
        panels = -(-vectors // MAX_VECTORS)
        edges = [i * vectors // panels for i in range(panels + 1)]
        places = [
            (first * lane * g.channels + (n - first) * lane, (last - first) * lane)
            for first, last in pairwise(edges)
            for n in range(first, last)
        ]
        limits = np.array([SMALLEST_TRANSFORMED[p.compute_dtype], LARGEST_TRANSFORMED], self.dtype)
        parts, taps, products = threads.usable_cores(), p.kernel[0] * p.kernel[1], g.nh * g.nw
        data = np.empty(products * g.channels * g.o_pad, self.dtype)
        marks = np.zeros(parts * lane, self.dtype)
        own = np.empty(parts * (kernels.CHANNELS * taps + 2 * lane) * lane, self.dtype)
        wide = np.empty(parts * (taps + 2 * products) * lane)
        weight, (_, *steps) = weight_runs(weight, p, self.dtype)
        launch(
            kernels.pack, parts, first_of(weight, self.dtype), tuple(steps), g.outputs, g.channels, taps,
            (g.form, products, p.kernel[1], g.nw),
            read_only(np.array(places, np.int64).reshape(-1)), read_only(limits), data, marks, own, wide,
        )  # fmt: skip
        return read_only(data), marks

    def warmup(self) -> tuple[str, ...]:
        packed = compiled_by(partial(self._transformed, np.empty(self.problem.weight_shape, self.dtype)))
        return *packed, *super().warmup(), *self.exact.warmup()

    def packed_like(self, memory: Array) -> Any:
        return _Data(memory, memory)

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        if data.products is None:
            self.exact.fill(x, x_strides, y, y_strides, data.exact, epilogue, launch)
            return
        marks = np.zeros(self.parts * VECTOR_BYTES // self.dtype.itemsize, self.dtype)
        scratch, geometry = threads.scratch(self.scratch, self.dtype), tuple(self.geometry)
        steps, stretch = ((1, 2, 3), self.block_lines) if self.together else ((0,), self.lines)
        for first, step in itertools.product(range(0, self.lines, stretch), steps):
            launch(
                kernels.winograd, self.parts, step, first, min(first + stretch, self.lines), self.block_lines,
                x, x_strides, y, y_strides, data.products, epilogue, *self.tables, geometry, scratch, self.sizes, marks,
            )  # fmt: skip
        # an input that is not finite reaches every output of its tile, and an overflow in the transforms some
        if marks.any():
            exact = self.exact.pack(data.weight).data if data.exact is None else data.exact
            self.exact.fill(x, x_strides, y, y_strides, exact, epilogue, launch)


def joined(p: Problem, tile: winograd.Tile) -> bool:
    """Whether the threads do one step after the other together."""
    weight_bytes = tile.size[0] * tile.size[1] * p.in_channels * p.out_channels * p.itemsize
    return weight_bytes > JOINED_WEIGHT_BYTES
