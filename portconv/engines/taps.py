"""Strides and dilation, reduced to windows of unit stride.

A window cut at a stride s has s phases along each axis: the rows 0, s, 2s, ..., the rows 1, s + 1, and so on. Every tap
of the kernel reads one phase, shifted by whole elements. So the engines know shifts only, and read memory in runs
whatever the stride.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from ..shapes import dilated
from ..spec import Pair, Problem
from ..steps import Block, Steps

__all__ = ["Tap", "group_window", "halo", "input_block", "phase", "phase_window", "taps"]


class Tap(NamedTuple):
    """One kernel position: output (r, c) reads element (r + row, c + col) of the phase."""

    position: int  # i * kw + j
    phase: Pair
    row: int
    col: int


@lru_cache(maxsize=512)
def taps(kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Tap, ...]:
    """The taps of a kernel in the order of its elements."""
    found = []
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            (row, a), (col, b) = divmod(i * dilation[0], stride[0]), divmod(j * dilation[1], stride[1])
            found.append(Tap(i * kernel[1] + j, (a, b), row, col))
    return tuple(found)


def phase(window: Any, stride: Pair, which: Pair) -> Any:
    """The elements of a window (..., H, W) that one phase of the stride meets."""
    if stride == (1, 1):
        return window
    return window[..., which[0] :: stride[0], which[1] :: stride[1]]


def halo(problem: Problem) -> Pair:
    """Rows and columns of a phase that the taps reach beyond a block."""
    every = taps(problem.kernel, problem.stride, problem.dilation)
    return max(tap.row for tap in every), max(tap.col for tap in every)


def phase_window(problem: Problem, block: Block, rows: int, cols: int) -> tuple[slice, slice]:
    """The part of the padded image whose phases have `rows` x `cols` elements, from a block's first output on."""
    (sh, sw), (top, _, left, _) = problem.stride, problem.padding
    row, col = block.rows.start * sh - top, block.cols.start * sw - left
    return slice(row, row + rows * sh), slice(col, col + cols * sw)


def input_block(problem: Problem, block: Block, channels: slice) -> Block:
    """The window of the image that the outputs `block` read, with its halo."""
    top, _, left, _ = problem.padding
    (sh, sw), (dh, dw), (kh, kw) = problem.stride, problem.dilation, problem.kernel
    rows = slice(block.rows.start * sh - top, (block.rows.stop - 1) * sh - top + dilated(kh, dh))
    cols = slice(block.cols.start * sw - left, (block.cols.stop - 1) * sw - left + dilated(kw, dw))
    return Block(channels, block.batch, rows, cols)


def group_window(
    x: Any, groups: slice, inputs: slice, batch: slice, rows: slice, cols: slice, problem: Problem, steps: Steps
) -> Any:
    """The window of some inputs of some groups, (g, i, B, H, W); `inputs` counts within a group."""
    xp, size = steps.xp, problem.in_channels // problem.groups
    count = groups.stop - groups.start
    if count == 1 or inputs.stop - inputs.start == size:
        first = groups.start * size + inputs.start
        channels = slice(first, first + (count - 1) * size + inputs.stop - inputs.start)
        window = steps.window(x, Block(channels, batch, rows, cols), problem)
        return xp.reshape(window, (count, inputs.stop - inputs.start, *window.shape[1:]))
    each = [slice(group, group + 1) for group in range(groups.start, groups.stop)]
    return xp.concat([group_window(x, group, inputs, batch, rows, cols, problem, steps) for group in each], axis=0)
