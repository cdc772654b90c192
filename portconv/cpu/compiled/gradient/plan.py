"""The compiled gradient of the weight, bound to a problem: the stage, the register tiles, the parts of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ....core.problem import Problem
from ....engines.accuracy import TERMS, accumulate
from ... import threads
from ...caches import cache_bytes
from .. import team
from ..base import Array, Launch, compiled_by, memory_of, read_only, round_up, sources, usual_numbers
from ..gemm.kernels import LEVELS
from ..vectors import MAX_VECTORS, VECTOR_BYTES, lanes
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledWeightGradient"]

STAGE_BYTES = 1 << 20  # of a part of the batch, which stays in the cores' caches
WORTH_ADDING = 4  # times the sums of a part, which are added to those of the others, the stage of one may have
MAX_STAGE_BYTES = 24 << 20  # of a part, above which it holds some rows of one image
MAX_WORKSPACE_BYTES = 56 << 20
MAX_SUMS_BYTES = 16 << 20  # of scratch memory for sums
MAX_AXIS = 1 << 20  # elements of a padded axis
FEW_OUTPUTS = 64  # of a task


@dataclass(frozen=True)
class CompiledWeightGradient:
    """See `kernels.py`. It holds no arrays but tables."""

    problem: Problem
    geometry: Geometry
    pieces: tuple[tuple[int, int, int, int], ...]  # first image, images, first row, rows of the result
    stage_size: int  # elements, of the largest piece
    tables: tuple[Array, Array, Array]  # sources of the stage's rows and columns, offsets of the taps

    @classmethod
    @lru_cache(maxsize=256)
    def make(cls, p: Problem) -> CompiledWeightGradient | None:
        """The plan, or None where the sums have no compiled form: for long rows, which the stage has no room for."""
        lane, size = lanes(p.compute_dtype), p.itemsize
        g, o, i, kh, kw = p.weight_shape
        (oh, ow), (sh, sw), (dh, dw) = p.out_size, p.stride, p.dilation
        if max(p.height + sum(p.padding[:2]), p.width + sum(p.padding[2:])) > MAX_AXIS:
            return None
        rows, cols = sources(p)
        # what lies between the outputs of a kernel of one row or column is not staged
        row_step, halo_rows = (sh, (kh - 1) * dh) if kh > 1 else (1, 0)
        rows = rows if kh > 1 else rows[::sh]
        left, width, shift, apart, col_step = p.padding[2], p.width, 0, 1, sw
        # few channels are staged with the pixels of a kernel's row side by side, and fill vectors so
        pixels = dw == 1 and kw * i <= MAX_VECTORS * lane and kw * i * round_up(i, lane) > i * round_up(kw * i, lane)
        if kw == 1 and sw > 1 and not pixels and (p.padding_mode == "zeros" or not any(p.padding[2:])):
            first = -(-left // sw)
            shift, apart, col_step, cols = first * sw - left, sw, 1, cols[::sw]
            left, width = first, max(0, -(-(left + width) // sw) - first)
        stage_cols = (ow - 1) * col_step + (kw - 1) * dw + 1
        cell = i if pixels else lane  # of a pixel
        blocks = 1 if pixels else -(-i // lane)
        line = stage_cols * cell

        def block_size(count: int) -> int:
            """Of so many rows of outputs; a square may be written, or a vector read, beyond the last one."""
            return round_up(((count - 1) * row_step + halo_rows + 1) * line + lane * lane, lane)

        image_bytes = g * blocks * block_size(oh) * size
        weight_bytes = o * g * kh * kw * round_up(i, lane) * size
        room = min(max(STAGE_BYTES, WORTH_ADDING * weight_bytes), MAX_STAGE_BYTES)
        images, count = max(1, min(p.batch, room // image_bytes)), oh
        if image_bytes > MAX_STAGE_BYTES:
            count = max(1, (MAX_STAGE_BYTES // (g * blocks * size * line) - halo_rows) // row_step)
        if g * blocks * block_size(count) * size > MAX_WORKSPACE_BYTES:
            return None
        pieces = tuple(
            (b, min(images, p.batch - b), r, min(count, oh - r))
            for b in range(0, p.batch, images)
            for r in range(0, oh, count)
        )
        block = block_size(count)
        if pixels:
            offsets = [r * dh * line for r in range(kh)]
            vectors, vector_step = -(-kw * i // lane), lane
        else:
            offsets = [r * dh * line + c * dw * cell for r in range(kh) for c in range(kw)]
            vectors, vector_step = blocks, block
        tile_rows = next(n for n in kernels.TILE_ROWS if n <= o)
        tile_vectors = min(range(1, min(vectors, MAX_VECTORS) + 1), key=lambda n: (-(-vectors // n) * (n + 1), -n))
        whole = count == oh and stage_cols == ow and row_step == col_step == 1 and not halo_rows
        tiles = -(-min(o, max(FEW_OUTPUTS, tile_rows)) // tile_rows)
        sums = LEVELS * tiles * tile_rows * tile_vectors * lane
        near = max(lane, min((cache_bytes(1) or 32 << 10) // (tile_vectors * VECTOR_BYTES), TERMS[p.accuracy]))
        geometry = Geometry(
            g, i, o, int(pixels), blocks, block, g * blocks * block, stage_cols, halo_rows, row_step, col_step * cell,
            line, shift, apart, left, width, len(offsets), vectors, vector_step, tile_rows, tile_vectors,
            max(FEW_OUTPUTS, tile_rows), TERMS[p.accuracy], near, ow, int(whole), max(sums, 2 * lane * lane),
        )  # fmt: skip
        tables = (np.ascontiguousarray(rows), np.ascontiguousarray(cols), np.array(offsets, np.int64))
        rows_table, cols_table, taps = map(read_only, tables)
        return cls(p, geometry, pieces, images * g * blocks * block, (rows_table, cols_table, taps))

    def warmup(self) -> tuple[str, ...]:
        """Compile ahead what `compute` runs, or load it; the names of what had to be compiled."""
        p, dtype = self.problem, self.problem.compute_dtype
        x, dy = (np.empty((0, *shape[1:]), dtype) for shape in (p.x_shape, p.out_shape))
        return compiled_by(lambda launch: self.compute(x, dy, launch))

    def compute(self, x: Array, dy: Array, launch: Launch | None = None) -> Array:
        """The sums (G, O/G, I/G, kh, kw), in the dtype of the computation, by kernels that `launch` runs."""
        p, geometry, launch = self.problem, self.geometry, launch or team.launch
        i, (kh, kw) = geometry.inputs, p.kernel
        sums = read_only(accumulate(self._sums(x, dy, launch)))
        width = len(sums) // (p.out_channels * geometry.taps)
        row, step = (width, i) if geometry.pixels else (kw * width, width)
        found = np.empty(p.weight_shape, sums.dtype)
        parts, pitch = threads.usable_cores(), geometry.taps * width
        launch(kernels.arrange, parts, sums, i, kh, kw, row, pitch, step, found.reshape(-1))
        return found

    def _sums(self, x: Array, dy: Array, launch: Launch) -> Iterator[Array]:
        """Those of each part, (G * O/G, taps, vectors * lanes)."""
        p, geometry, dtype = self.problem, self.geometry, np.dtype(self.problem.compute_dtype)
        lane = VECTOR_BYTES // dtype.itemsize
        memory, numbers = memory_of(x, p.layout, dtype, usual_numbers(p.x_shape, p.layout, dtype))
        memory = read_only(memory)
        dy = np.ascontiguousarray(dy, dtype)
        # not those of the array, in which an axis of one element may have any
        strides = usual_numbers(dy.shape, p.layout, dtype)[2:]
        cotangent = read_only(dy.ravel())
        parts = threads.usable_cores()
        staged = threads.scratch(self.stage_size, dtype, "stage")[: self.stage_size]
        scratch = threads.scratch(parts * geometry.part_size, dtype)
        rows, cols, taps = self.tables
        for piece in self.pieces:
            given = read_only(np.array((*numbers, *strides, *piece, *geometry), np.int64))
            size = p.out_channels * geometry.taps * geometry.vectors * lane
            if len(self.pieces) == 1 and size * dtype.itemsize <= MAX_SUMS_BYTES:
                out = threads.scratch(size, dtype, "sums")[:size]  # new memory would take a fifth of the time
            else:
                out = np.empty(size, dtype)
            launch(kernels.stage, parts, memory, given, rows, cols, staged, scratch)
            launch(kernels.gradient, parts, cotangent, given, taps, staged, out, scratch)
            yield out
