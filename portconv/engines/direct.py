"""The direct sum, tap by tap, in strips that stay in cache: for depthwise layers and few channels.

Each term is one shifted window times one weight per channel. A kernel that is the product of a column and a row (a
Gaussian, a box, Sobel's) runs as two passes, with as many terms as it has rows and columns. No copy of the image is
made beyond the strip, and no sum is longer than 32 terms before it is added to others in pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..core.backend import Candidate, EnginePlan, PackedWeight
from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import ranges
from .costs import Costs
from .engine import Engine
from .separable import in_two_passes, may_be_separable, share
from .steps import Block, Steps
from .taps import group_window, halo, met, own_window, phase, phase_window, shared_window, taps

__all__ = ["ENGINE", "NAME", "DirectPlan", "Tiling"]

NAME = "direct"

# 1 MiB of float32. Smaller strips stay in closer caches, but their threads wait for each other more than they work.
STRIP_ELEMENTS = 1 << 18
MAX_STRIP_BYTES = 24 << 20  # of all scratch memory that a strip needs
WORTH_SHARING = 5e5  # operations from which on a second thread is worth its start


class Tiling(NamedTuple):
    """The largest strip."""

    groups: int
    batch: int
    rows: int
    cols: int
    apart: bool = False  # each tap has a window of its own

    def workspace_bytes(self, p: Problem) -> int:
        """Of one strip: its window with the halo, a product, and the partial sums."""
        halo_cols = halo(p)[1]
        inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
        sums = outputs * self.rows * (2 + (inputs * p.kernel[0] * p.kernel[1]).bit_length())
        if self.apart:
            window, halo_cols = inputs * self.rows * self.cols, 0
        else:
            # phases are copies: in the window they are not contiguous
            window = inputs * shared_window(p, self.rows, self.cols) * (1 + (p.stride != (1, 1)))
        return self.groups * self.batch * (window + (self.cols + halo_cols) * sums) * p.itemsize


class Task(NamedTuple):
    """A strip: the groups, and the outputs of these groups."""

    groups: slice
    block: Block


def tiling(p: Problem) -> Tiling:
    """Strips of whole rows where they fit; several groups and images where those are small."""
    oh, ow = p.out_size
    room = max(STRIP_ELEMENTS // (p.out_channels // p.groups), 1)
    cols = min(ow, room)
    rows = min(oh, max(room // cols, 1))
    rows = -(-oh // -(-oh // rows))
    groups = min(p.groups, max(room // (rows * cols), 1)) if rows == oh else 1
    if groups == p.groups > 1 and p.batch <= 1 and p.flops > WORTH_SHARING:
        groups = -(-groups // 2)
    batch = min(max(p.batch, 1), max(room // (groups * rows * cols), 1)) if groups == p.groups else 1
    found = largest = Tiling(groups, batch, rows, cols)
    while found.workspace_bytes(p) > MAX_STRIP_BYTES and max(found.rows, found.cols) > 1:
        # many sums, or the halo of a large dilation
        if found.cols > found.rows:
            found = found._replace(cols=-(-found.cols // 2))
        else:
            found = found._replace(rows=-(-found.rows // 2))
    read = shared_window(p, found.rows, found.cols)
    cut = found != largest or found.workspace_bytes(p) > MAX_STRIP_BYTES
    if cut and read > 2 * p.kernel[0] * p.kernel[1] * found.rows * found.cols:
        return largest._replace(apart=True)
    return found


def candidate(p: Problem, _steps: Steps, costs: Costs) -> Candidate:
    """The estimate for any problem: this engine runs everything."""
    t = tiling(p)
    oh, ow = p.out_size
    terms = (p.in_channels // p.groups) * p.kernel[0] * p.kernel[1]
    tasks = -(-p.groups // t.groups) * -(-p.batch // t.batch) * -(-oh // t.rows) * -(-ow // t.cols)
    threads = min(costs.threads, max(tasks, 1))
    # passes over one image plane, a product and a sum for every tap; at stride 1 a CPU's step does both in one
    passes = (2.0 if p.stride == (1, 1) else 6.0) * terms * p.batch * p.out_channels
    elements = oh * (ow + (0 if t.apart else halo(p)[1]))
    if t.apart:
        passes *= 3.0  # every term is a copy
    seconds = passes * (elements * costs.element + costs.row) + tasks * (costs.task + terms * 2 * costs.call) / threads
    seconds += (threads > 1) * costs.task / 2
    return Candidate(NAME, seconds, costs.threads * t.workspace_bytes(p), if_separable=share(p))


def build(p: Problem, steps: Steps, costs: Costs) -> DirectPlan:
    """Bind the engine to a problem."""
    t = tiling(p)
    oh, ow = p.out_size
    outputs = p.out_channels // p.groups
    tasks = tuple(
        Task(groups, Block(slice(groups.start * outputs, groups.stop * outputs), batch, rows, cols))
        for batch in ranges(p.batch, t.batch)
        for groups in ranges(p.groups, t.groups)
        for rows in ranges(oh, t.rows)
        for cols in ranges(ow, t.cols)
    )
    return DirectPlan(p, NAME, candidate(p, steps, costs).workspace_bytes, steps=steps, tasks=tasks, apart=t.apart)


@dataclass(frozen=True, kw_only=True)
class DirectPlan(EnginePlan):
    """See the module."""

    steps: Steps
    tasks: tuple[Task, ...] = ()
    apart: bool = False

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        return (NAME, self.steps.place, self.problem.weight_shape, self.problem.compute_dtype, self.apart)

    def pack(self, weight: Any, /) -> PackedWeight:
        steps, p = self.steps, self.problem
        g, o, i, kh, kw = p.weight_shape
        if may_be_separable(p) and kh * kw > kh + kw + 1 and not p.traced and not self.apart:
            kernels = steps.xp.reshape(steps.cast(weight, p.compute_dtype), (g * o, kh, kw))
            if (found := steps.factors(kernels)) is not None:
                column, row = found
                column = steps.xp.reshape(column, (g, o, 1, kh, 1))
                return in_two_passes(self.stamp, column, steps.xp.reshape(row, (g, o, 1, 1, kw)), p)
        data = steps.xp.reshape(steps.cast(weight, p.compute_dtype), (g, o, i, kh, kw))
        return PackedWeight(self.stamp, steps.keep(data), p.itemsize * g * o * i * kh * kw)

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, steps = self.problem, self.steps
        x = steps.cbhw(x, p.layout)

        def compute(task: Task) -> Iterator[tuple[Block, Any]]:
            images, rows, cols = (s.stop - s.start for s in task.block[1:])
            if self.apart:
                value = steps.sum_of_products(self._terms_apart(x, weight.data, task), "multiply")
            elif p.stride == (1, 1):
                value = self._correlation(x, weight, task)
            else:
                value = steps.sum_of_products(self._terms(x, weight.data, task), "multiply")
            value = steps.xp.reshape(value, (-1, images, rows, value.shape[-1] // rows))
            yield task.block, value[:, :, :, :cols]

        return steps.assemble(p, bias, self.tasks, compute, residual=residual, out=out, parallel=True)

    def _correlation(self, x: Any, weight: PackedWeight, task: Task) -> Any:
        """A strip at stride 1, (g, o, B, rows * columns); rows end with the halo's columns. Two passes if separable."""
        p, steps, xp = self.problem, self.steps, self.steps.xp
        halo_rows, halo_cols = halo(p)
        images, h, w = (s.stop - s.start for s in task.block[1:])
        w += halo_cols
        # one row more than the taps read: the last tap's run ends `halo_cols` elements into it
        rows, cols = phase_window(p, task.block, h + halo_rows + 1, w)
        size = p.in_channels // p.groups
        window = group_window(x, task.groups, slice(0, size), task.block.batch, rows, cols, p, steps)
        flat = xp.reshape(window, (*window.shape[:2], images, -1))
        (dh, dw), every = p.dilation, (task.groups, ...)
        if not weight.separable:
            return steps.correlation(flat, weight.data[every], (dh, dw), w, h * w)
        column, row = weight.data.column[every], weight.data.row[every]
        value = steps.correlation(flat, column, (dh, 1), w, h * w + halo_cols, "columns")
        g, o = value.shape[:2]
        value = xp.reshape(value, (g * o, 1, *value.shape[2:]))
        value = steps.correlation(value, xp.reshape(row, (g * o, 1, *row.shape[2:])), (1, dw), w, h * w)
        return xp.reshape(value, (g, o, *value.shape[2:]))

    def _terms_apart(self, x: Any, weight: Any, task: Task) -> Iterator[tuple[Any, Any]]:
        """Factors of an array (g, o, B, rows * columns) for every tap of every input, each from a window of its own."""
        p, steps, xp = self.problem, self.steps, self.steps.xp
        size = p.in_channels // p.groups
        images, h, w = (s.stop - s.start for s in task.block[1:])
        kernel_rows, kernel_cols = met(p, task.block)
        for row in range(kernel_rows.start, kernel_rows.stop):
            for col in range(kernel_cols.start, kernel_cols.stop):
                rows, cols = own_window(p, task.block, row, col)
                window = group_window(x, task.groups, slice(0, size), task.block.batch, rows, cols, p, steps)
                flat = xp.reshape(window, (*window.shape[:2], images, h * w))
                for i in range(size):
                    yield flat[:, None, i, ...], weight[task.groups, :, i, row, col, None, None]

    def _terms(self, x: Any, weight: Any, task: Task) -> Iterator[tuple[Any, Any]]:
        """Factors of an array (g, o, B, rows * columns) for every tap of every input; rows end with the halo's columns.

        The window lies flat in memory, so that a shift is an offset and a term one long run, however short the rows.
        """
        p, steps, xp = self.problem, self.steps, self.steps.xp
        size = p.in_channels // p.groups
        halo_rows, halo_cols = halo(p)
        images, h, w = (s.stop - s.start for s in task.block[1:])
        w += halo_cols
        # one row more than the taps read: the last tap's run ends `halo_cols` elements into it
        rows, cols = phase_window(p, task.block, h + halo_rows + 1, w)
        window = group_window(x, task.groups, slice(0, size), task.block.batch, rows, cols, p, steps)
        flat: dict[Pair, Any] = {}
        for tap in taps(p.kernel, p.stride, p.dilation):
            if tap.phase not in flat:
                part = phase(window, p.stride, tap.phase)
                flat[tap.phase] = xp.reshape(part, (*part.shape[:2], images, (h + halo_rows + 1) * w))
            start = tap.row * w + tap.col
            shifted = flat[tap.phase][..., start : start + h * w]
            for i in range(size):
                row, col = divmod(tap.position, p.kernel[1])
                yield shifted[:, None, i, ...], weight[task.groups, :, i, row, col, None, None]


ENGINE = Engine(NAME, candidate, build)
