"""Weights put in the order in which register tiles read them, straight from wherever they lie, on all threads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...core.backend import PackedWeight
from ...core.problem import Problem
from .. import threads
from . import team
from .base import Array, CompiledPlan, Ints, Launch, compiled_by, first_of, read_only
from .jobs import job_of, take
from .kernel import address, inner, kernel, words
from .moves import move_elements

__all__ = ["PanelsPlan", "in_panels", "panels", "weight_runs"]

SOME_TERMS = 128  # of a task: what it writes stays in the first cache
_numbers = words(13)
_move = move_elements()


@inner
def _panels(job, part, weight, numbers, packed):
    """packed[group, panel, term, output of the panel]; see `in_panels`. Tasks are (group, panel, some channels)."""
    (groups, outputs, inputs, kernel_rows, kernel_cols, rows, by_tap, some, group_step, output_step, input_step,
     row_step, col_step) = _numbers(address(numbers))  # fmt: skip
    taps = kernel_rows * kernel_cols
    size = packed.itemsize
    first, target = address(weight), address(packed)
    count_panels, blocks = -(-outputs // rows), -(-inputs // some)
    tasks = groups * count_panels * blocks
    term = rows * size  # bytes from term to term of a panel
    across, down = (taps * term, term) if by_tap == 0 else (term, by_tap * term)  # from input to input, tap to tap
    runs_of_outputs = abs(output_step) < abs(input_step)  # they lie closer to each other than inputs
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        if runs_of_outputs:  # all panels of some inputs, which lie side by side, and then the next ones
            block, panel = divmod(task, groups * count_panels)
        else:
            panel, block = divmod(task, blocks)
        g, n = divmod(panel, count_panels)
        i0 = block * some
        count = min(some, inputs - i0)
        o0 = n * rows
        high = min(rows, outputs - o0)
        source = first + g * group_step + o0 * output_step + i0 * input_step
        place = target + panel * inputs * taps * term + i0 * taps * term
        if runs_of_outputs:
            for i in range(count):
                for t in range(taps):
                    tap = t // kernel_cols * row_step + t % kernel_cols * col_step
                    run, out = source + i * input_step + tap, place + i * across + t * down
                    _move(packed, (out, size, run, output_step, high))
        elif by_tap == 0 and input_step == taps * col_step and row_step == kernel_cols * col_step:
            for r in range(high):
                _move(packed, (place + r * size, term, source + r * output_step, col_step, count * taps))
        else:
            for r in range(high):
                for t in range(taps):
                    tap = t // kernel_cols * row_step + t % kernel_cols * col_step
                    run = source + r * output_step + tap
                    _move(packed, (place + r * size + t * down, across, run, input_step, count))


_in_panels = job_of(_panels)


@kernel
def panels(job, parts, patience, weight, numbers, packed):
    """A weight in panels, as a job of the team."""
    return _in_panels(job, parts, patience, (weight, numbers, packed))


def weight_memory(weight: Array, p: Problem, dtype: np.dtype[Any]) -> tuple[Array, Ints]:
    """A weight as the kernels see it: its axes in any order, and in any steps. Other dtypes are copied.

    Returns
    -------
    weight : array
        (G, O/G, I/G, kh, kw), to be kept alive while its memory is read.
    steps : tuple of int
        Bytes from group to group, output to output, input to input, row to row and column to column of the kernel.
    """
    found = np.asarray(weight, dtype).reshape(p.weight_shape)
    if not found.flags.aligned:
        found = found.copy()
    # NumPy allows an axis of one element any stride; one that is the next axis' makes one run of both
    *steps, row, col = found.strides
    kh, kw = p.kernel
    col = col if kw > 1 else row if kh > 1 else dtype.itemsize
    return found, (*steps, row if kh > 1 else kw * col, col)


def weight_runs(weight: Array, p: Problem, dtype: np.dtype[Any]) -> tuple[Array, Ints]:
    """The same with all taps of a channel side by side, turned around or not; what lies otherwise is copied.

    The bytes from tap to tap come last, in the place of those from row to row and from column to column.
    """
    found, (*steps, row, col) = weight_memory(weight, p, dtype)
    if abs(col) != dtype.itemsize or row != p.kernel[1] * col:
        found, (*steps, row, col) = weight_memory(np.ascontiguousarray(found), p, dtype)
    return found, (*steps, col)


def in_panels(
    weight: Array, p: Problem, dtype: np.dtype[Any], rows: int, by_tap: int, launch: Launch, into: Array | None = None
) -> Array:
    """The weight in panels of so many outputs, flat: (group, panel, term, output of the panel).

    Terms come channel by channel, each with all its taps; or, where `by_tap` is not zero, so many channels at a time,
    and of these tap by tap. Where a group's last panel has outputs that the group has not, they are zero.
    They are written `into` an array that is given for it.
    """
    g, outputs, inputs, kh, kw = p.weight_shape
    packed = np.empty(g * -(-outputs // rows) * rows * inputs * kh * kw, dtype) if into is None else into
    if outputs % rows:
        packed[:] = 0
    memory, steps = weight_memory(weight, p, dtype)
    some = by_tap or max(1, SOME_TERMS // (kh * kw))
    numbers = read_only(np.array((g, outputs, inputs, kh, kw, rows, by_tap, some, *steps), np.int64))
    launch(panels, threads.usable_cores(), first_of(memory, dtype), numbers, packed)
    return read_only(packed)


@dataclass(frozen=True)
class PanelsPlan(CompiledPlan):
    """A plan whose register tiles read the weight in panels."""

    @property
    def panel(self) -> tuple[int, int]:
        """`rows` and `by_tap` of `in_panels`."""
        raise NotImplementedError  # abstract: every form has its own

    def pack(self, weight: Any, /) -> PackedWeight:
        data = self._panels(weight, team.launch)
        return PackedWeight(self.stamp, data, data.nbytes)

    def _panels(self, weight: Array, launch: Launch) -> Array:
        return in_panels(weight, self.problem, self.dtype, *self.panel, launch)

    def warmup(self) -> tuple[str, ...]:
        weight = np.empty(self.problem.weight_shape, self.dtype)
        return *compiled_by(partial(self._panels, weight)), *super().warmup()
