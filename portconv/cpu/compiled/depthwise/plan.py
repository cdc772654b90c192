"""The compiled `direct` for depthwise layers, bound to a problem: which part slides, the strips."""

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
from ..base import Array, CompiledPlan, Ints, Launch, even_width, per_thread, read_only, round_up
from ..costs import CompiledCosts
from ..direct.plan import CompiledDirectPlan
from ..epilogue import RECORD
from ..gemm.kernels import LEVELS
from ..vectors import VECTOR_BYTES, lanes
from . import kernels
from .geometry import Geometry

__all__ = ["CompiledDepthwisePlan"]

STRIP_BYTES = 512 << 10  # of one core's second cache, for a block of channels and its results


@dataclass(frozen=True, kw_only=True)
class CompiledDepthwisePlan(CompiledPlan):
    """`direct` with channels in the lanes: see `kernels.py`. Zero padding, as many channels as lanes."""

    geometry: Geometry
    other: CompiledDirectPlan | None = None  # for separable kernels

    @classmethod
    def make(cls, p: Problem) -> CompiledDepthwisePlan | None:
        """Choose the strips, or say None where this form is not for the problem."""
        lane = lanes(p.compute_dtype)
        channels, multiplier = p.in_channels, p.out_channels // p.groups
        (oh, ow), (kh, kw), (sh, sw), (dh, dw) = p.out_size, p.kernel, p.stride, p.dilation
        top, _, left, _ = p.padding
        if channels != p.groups or channels < lane or sw > 2 or (any(p.padding) and p.padding_mode != "zeros"):
            return None
        if min(p.height * p.width, oh * ow) < lane:
            return None
        # every output of a row meets every column of the image
        exchanged = p.stride == p.dilation == (1, 1) and left >= ow - 1 and kw >= p.width + left
        lead = 0 if exchanged else left
        line = p.width if exchanged else max(left + p.width, (ow - 1) * sw + (kw - 1) * dw + 1)
        run = even_width(kernels.WIDTHS, ow)

        parts, blocks = threads.usable_cores(), -(-channels // lane)
        reach = min((kh - 1) * dh + 1, p.height)
        rows = max(1, (STRIP_BYTES // VECTOR_BYTES - reach * line) // (sh * line + ow))
        strips = -(-oh // min(rows, oh))
        if p.batch * blocks * strips % parts and p.batch * blocks * strips < 4 * parts:
            strips = round_up(strips, parts)
        # each strip, the smallest too, has a square of outputs: `_put` writes no less
        strips = max(1, min(strips, oh // -(-lane // ow)))
        rows = -(-oh // strips)
        least_rows = -(-lane // p.width)
        stage_rows = max(min((rows - 1) * sh + reach, p.height), least_rows)
        stage = (stage_rows * line + (run + 1) * sw) * lane
        out = (rows * ow + run) * lane
        partial = max(run * lane * LEVELS, 2 * lane * lane)  # or two squares, to stage images by
        scratch = round_up(stage + out + 2 * RECORD * lane + partial, 16)
        pixels = np.arange(stage_rows * p.width + lane)
        table = np.array((pixels // p.width * line + lead + pixels % p.width) * VECTOR_BYTES, np.int64)
        geometry = Geometry(
            p.batch, channels, multiplier, blocks, strips, p.height, p.width, oh, ow, kh, kw, sh, sw, dh, dw, top,
            left, line, lead, int(exchanged), run, TERMS[p.accuracy], least_rows, scratch, stage, out,
        )  # fmt: skip
        tasks = p.batch * blocks * strips
        other = CompiledDirectPlan.make(p)
        other = other if other is not None and other.splits else None
        workspace = parts * scratch * p.itemsize
        return cls(
            p, "direct", workspace if other is None else max(workspace, other.workspace_bytes), geometry=geometry,
            tables=(read_only(table),), parts=min(parts, tasks), scratch=scratch, other=other,
        )  # fmt: skip

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p = self.problem
        return ("direct", "jit", p.weight_shape, p.compute_dtype, "channels", self.exchanged, self.geometry.run)

    @property
    def if_separable(self) -> float | None:
        return share(self.problem)

    @property
    def exchanged(self) -> bool:
        """Whether the kernel slides over the image's pixels, and not they over the kernel."""
        return bool(self.geometry.exchanged)

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled, channels in the lanes"

    def seconds(self, costs: CompiledCosts) -> float:
        """The estimate, from what the kernels do with a problem of this geometry."""
        g = self.geometry
        ends = ((-(-(g.top - i * g.dh) // g.sh), -(-(g.height + g.top - i * g.dh) // g.sh)) for i in range(g.kh))
        met = sum(max(0, min(g.out_rows, end) - max(0, begin)) for begin, end in ends)  # kernel rows, of all outputs
        runs = -(-g.out_cols // g.run)
        stage_rows = min(g.height, (-(-g.out_rows // g.strips) - 1) * g.sh + (g.kh - 1) * g.dh + 1)
        p = self.problem
        turned = costs.turned if p.layout == "NCHW" else costs.turned / 2
        if not {p.x_dtype, p.result_dtype} <= {p.compute_dtype, "float16", "bfloat16"}:
            turned = 2 * costs.row  # each vector is converted by a call
        work = (
            met * runs * (g.run + 1) * (g.width if g.exchanged else g.kw) * g.multiplier * costs.product
            + g.out_rows * runs * g.multiplier * costs.line
            + (g.strips * stage_rows * g.width + g.multiplier * g.out_rows * g.out_cols) * turned
            + g.strips * costs.task
        )
        return costs.launch + work * g.batch * g.blocks * per_thread(self.parts, g.batch * g.blocks * g.strips)

    def pack(self, weight: Any, /) -> PackedWeight:
        if self.other is not None and (two := self.other.pack(weight)).separable:
            return replace(two, stamp=self.stamp)
        p, lane = self.problem, lanes(self.problem.compute_dtype)
        channels, multiplier = p.in_channels, p.out_channels // p.groups
        whole = np.asarray(weight, p.compute_dtype).reshape(channels, multiplier, *p.kernel)
        if self.exchanged:
            whole = whole[..., ::-1]
        starts = [min(first, channels - lane) for first in range(0, channels, lane)]
        blocks = [whole[c : c + lane].transpose(1, 2, 3, 0).reshape(-1) for c in starts]
        beyond = np.zeros(self.geometry.run * lane, p.compute_dtype)  # which a run may read beyond the last row
        data = read_only(np.ascontiguousarray(np.concatenate([*blocks, beyond])))
        return PackedWeight(self.stamp, data, data.nbytes)

    def warmup(self) -> tuple[str, ...]:
        return *super().warmup(), *(() if self.other is None else self.other.warmup())

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        if residual is not None and self.other is not None and isinstance(weight.data, Passes):
            return self.other.fuses(x, weight, bias, residual)
        return super().fuses(x, weight, bias, residual)

    @property
    def adds_residuals(self) -> bool:
        p = self.problem
        return p.layout == "NCHW" or p.out_channels == p.groups  # channels of a block lie side by side

    def fill(
        self, x: Array, x_strides: Ints, y: Array, y_strides: Ints, data: Any, epilogue: Array, launch: Launch
    ) -> None:
        """Hand the memory and the geometry to the kernels, on all threads of the plan."""
        if self.other is not None and isinstance(data, Passes):
            self.other.fill(x, x_strides, y, y_strides, data, epilogue, launch)
            return
        launch(
            kernels.depthwise, self.parts, x, y, data, epilogue, *self.tables,
            self.numbers(x_strides, y_strides, self.geometry), threads.scratch(self.parts * self.scratch, self.dtype),
        )  # fmt: skip
