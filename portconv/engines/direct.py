"""The direct sum, tap by tap, in strips that stay in cache: for depthwise layers and few channels.

Each term is one shifted window times one weight per channel. No copy of the image is made beyond the strip, and no sum
is longer than eight terms before it is added to others in pairs, so this is also the most accurate engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..backend import Candidate, PackedWeight, Plan
from ..shapes import ranges
from ..spec import Pair, Problem
from ..steps import Block, Steps, accumulate
from .costs import Costs
from .taps import group_window, input_block, phase, taps

__all__ = ["NAME", "DirectPlan", "Tiling", "candidate", "plan"]

NAME = "direct"

STRIP_ELEMENTS = 1 << 15  # 128 KiB of float32: strip, product and sum fit the second-level cache together


class Tiling(NamedTuple):
    """The largest strip."""

    groups: int
    batch: int
    rows: int
    cols: int

    def elements(self, problem: Problem) -> int:
        """Outputs of a strip."""
        return self.groups * (problem.out_channels // problem.groups) * self.batch * self.rows * self.cols


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
    batch = min(max(p.batch, 1), max(room // (groups * rows * cols), 1)) if groups == p.groups else 1
    return Tiling(groups, batch, rows, cols)


def candidate(p: Problem, costs: Costs) -> Candidate:
    """The estimate for any problem: this engine runs everything."""
    t = tiling(p)
    oh, ow = p.out_size
    terms = (p.in_channels // p.groups) * p.kernel[0] * p.kernel[1]
    tasks = -(-p.groups // t.groups) * -(-p.batch // t.batch) * -(-oh // t.rows) * -(-ow // t.cols)
    threads = min(costs.threads, max(tasks, 1))
    outputs = p.batch * p.out_channels * oh * ow
    seconds = (outputs * terms * 2 * costs.element + tasks * (costs.task + terms * 3 * costs.call)) / threads
    window = t.elements(p) * p.itemsize * (2 + p.in_channels * p.stride[0] * p.stride[1] // p.out_channels)
    partial_sums = t.elements(p) * p.itemsize * (2 + terms.bit_length())
    return Candidate(NAME, seconds, costs.threads * (window + partial_sums))


def plan(p: Problem, steps: Steps, costs: Costs) -> DirectPlan:
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
    return DirectPlan(p, NAME, candidate(p, costs).workspace_bytes, steps=steps, tasks=tasks)


@dataclass(frozen=True)
class DirectPlan(Plan):
    """See the module."""

    steps: Steps = None  # type: ignore[assignment]
    tasks: tuple[Task, ...] = ()

    @property
    def stamp(self) -> Hashable:
        return (NAME, self.problem.weight_shape, self.problem.compute_dtype)

    def pack(self, weight: Any, /) -> PackedWeight:
        steps, p = self.steps, self.problem
        g, o, i, kh, kw = p.weight_shape
        data = steps.xp.reshape(steps.cast(weight, p.compute_dtype), (g, o, i, kh * kw, 1, 1, 1))
        return PackedWeight(self.stamp, data, p.itemsize * g * o * i * kh * kw)

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        p, steps = self.problem, self.steps
        x = steps.cbhw(x, p.layout)

        def compute(task: Task) -> Iterator[tuple[Block, Any]]:
            value = accumulate(self._terms(x, weight.data, task))
            yield task.block, steps.xp.reshape(value, (-1, *value.shape[2:]))

        return steps.assemble(p, bias, self.tasks, compute, parallel=True)

    def _terms(self, x: Any, weight: Any, task: Task) -> Iterator[Any]:
        """One array (g, o, B, rows, columns) for every tap of every input."""
        p, steps = self.problem, self.steps
        size = p.in_channels // p.groups
        h, w = task.block.rows.stop - task.block.rows.start, task.block.cols.stop - task.block.cols.start
        needed = input_block(p, task.block, slice(0, size))
        window = group_window(x, task.groups, needed.channels, needed.batch, needed.rows, needed.cols, p, steps)
        parts: dict[Pair, Any] = {}
        for tap in taps(p.kernel, p.stride, p.dilation):
            if tap.phase not in parts:
                parts[tap.phase] = steps.contiguous(phase(window, p.stride, tap.phase))
            shifted = parts[tap.phase][..., tap.row : tap.row + h, tap.col : tap.col + w]
            for i in range(size):
                yield shifted[:, None, i, ...] * weight[task.groups, :, i, tap.position, ...]
