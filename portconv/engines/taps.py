"""Strides and dilation, reduced to windows of unit stride.

A window cut at a stride s has s phases along each axis: the rows 0, s, 2s, ..., the rows 1, s + 1, and so on. Every tap
of the kernel reads one phase, shifted by whole elements. So the engines know shifts only, and read memory in runs
whatever the stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, overload

from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import dilated
from .steps import Block, Steps, Window, window_of

__all__ = [
    "MAX_KEPT_TAPS",
    "Region",
    "Tap",
    "axis_phases",
    "cut_phases",
    "group_window",
    "group_windows",
    "halo",
    "input_window",
    "met",
    "own_window",
    "phase",
    "phase_window",
    "phases",
    "regions",
    "shared_window",
    "taps",
]

MIN_REGION = 6  # rows or columns
MIN_SAVING = 0.1  # of the products
MAX_KEPT_TAPS = 512  # of a kernel whose taps are kept for the next call


class Tap(NamedTuple):
    """One kernel position: output (r, c) reads element (r + row, c + col) of the phase."""

    position: int  # i * kw + j
    phase: Pair
    row: int
    col: int


def _length(part: slice) -> int:
    return int(part.stop - part.start)


class Region(NamedTuple):
    """A part of the result, and the kernel's rows and columns that meet the image there: the rest meets only zeros."""

    rows: slice
    cols: slice
    kernel_rows: slice
    kernel_cols: slice

    @property
    def outputs(self) -> int:
        """How many outputs of a plane of the result lie in the region."""
        return _length(self.rows) * _length(self.cols)

    @property
    def taps(self) -> int:
        """How many taps of the kernel meet the image in the region."""
        return _length(self.kernel_rows) * _length(self.kernel_cols)


@lru_cache(maxsize=512)
def regions(problem: Problem) -> tuple[Region, ...]:
    """The result in parts that need not all taps; in one part unless that saves a tenth.

    A large dilation moves most of a kernel's taps over the edge: 3x3 with rate 36 on an image of 65x65 spends three
    fifths of its products on padding.
    """
    p = problem
    (top, _, left, _), (oh, ow) = p.padding, p.out_size
    whole = Region(slice(0, oh), slice(0, ow), slice(0, p.kernel[0]), slice(0, p.kernel[1]))
    if p.padding_mode != "zeros" or not any(p.padding):
        return (whole,)
    rows = _axis_regions(p.height, oh, p.kernel[0], p.stride[0], p.dilation[0], top)
    cols = _axis_regions(p.width, ow, p.kernel[1], p.stride[1], p.dilation[1], left)
    found = tuple(Region(r, c, i, j) for r, i in rows for c, j in cols)
    needed = sum(region.outputs * region.taps for region in found)
    return found if needed < (1 - MIN_SAVING) * whole.outputs * whole.taps else (whole,)


def _axis_regions(
    size: int, outputs: int, kernel: int, stride: int, dilation: int, before: int
) -> list[tuple[slice, slice]]:
    """Stretches of outputs, each with the taps that meet the image somewhere in it."""
    edges = {-(-(edge - k * dilation) // stride) for k in range(kernel) for edge in (before, before + size)}
    cuts = [0]
    for cut in sorted(edges):
        if cut - cuts[-1] >= MIN_REGION and outputs - cut >= MIN_REGION:
            cuts.append(cut)
    parts = [slice(a, b) for a, b in pairwise([*cuts, outputs])]
    return [(part, _met(part, size, kernel, stride, dilation, before)) for part in parts]


def _met(outputs: slice, size: int, kernel: int, stride: int, dilation: int, before: int) -> slice:
    """The taps of an axis that meet the image for some of the outputs; one at least."""
    first, last = outputs.start * stride - before, (outputs.stop - 1) * stride - before
    start = min(max(-(last // dilation), 0), kernel - 1)
    stop = min(max(-((first - size) // dilation), start + 1), kernel)
    return slice(start, stop)


def met(problem: Problem, block: Block) -> tuple[slice, slice]:
    """The kernel's rows and columns that read more than zero padding for the outputs `block`."""
    p = problem
    if p.padding_mode != "zeros":
        return slice(0, p.kernel[0]), slice(0, p.kernel[1])
    return (
        _met(block.rows, p.height, p.kernel[0], p.stride[0], p.dilation[0], p.padding[0]),
        _met(block.cols, p.width, p.kernel[1], p.stride[1], p.dilation[1], p.padding[2]),
    )


def taps(kernel: Pair, stride: Pair, dilation: Pair) -> Sequence[Tap]:
    """The taps of a kernel in the order of its elements.

    Those of a large kernel are made when they are asked for: one as large as an image has a million, some 200 MiB.
    """
    made = Taps(kernel, stride, dilation)
    return _kept(made) if len(made) <= MAX_KEPT_TAPS else made


@dataclass(frozen=True)
class Taps(Sequence[Tap]):
    """See `taps`."""

    kernel: Pair
    stride: Pair
    dilation: Pair

    def __len__(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @overload
    def __getitem__(self, which: int) -> Tap: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Tap, ...]: ...
    def __getitem__(self, which: int | slice) -> Tap | tuple[Tap, ...]:
        where = range(len(self))[which]
        return self._at(where) if isinstance(where, int) else tuple(map(self._at, where))

    def __iter__(self) -> Iterator[Tap]:
        return map(self._at, range(len(self)))

    def _at(self, position: int) -> Tap:
        i, j = divmod(position, self.kernel[1])
        (row, a), (col, b) = divmod(i * self.dilation[0], self.stride[0]), divmod(j * self.dilation[1], self.stride[1])
        return Tap(position, (a, b), row, col)


@lru_cache(maxsize=128)
def _kept(made: Taps) -> tuple[Tap, ...]:
    return tuple(made)


def phase(window: Any, stride: Pair, which: Pair) -> Any:
    """The elements of a window (..., H, W) that one phase of the stride meets."""
    if stride == (1, 1):
        return window
    return window[..., which[0] :: stride[0], which[1] :: stride[1]]


def halo(problem: Problem) -> Pair:
    """Rows and columns of a phase that the taps reach beyond a block."""
    (kh, kw), (sh, sw), (dh, dw) = problem.kernel, problem.stride, problem.dilation
    return (kh - 1) * dh // sh, (kw - 1) * dw // sw


def phases(kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, ...]:
    """The phases of the stride that taps read, in order."""
    found = _phases if kernel[0] * kernel[1] <= MAX_KEPT_TAPS else _phases.__wrapped__
    return found(kernel, stride, dilation)


@lru_cache(maxsize=128)
def _phases(kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, ...]:
    rows, cols = (axis_phases(*axis) for axis in zip(kernel, stride, dilation, strict=True))
    return tuple((a, b) for a in rows for b in cols)


def axis_phases(kernel: int, stride: int, dilation: int) -> list[int]:
    """The phases of an axis that its taps read, in order."""
    apart = math.gcd(stride, dilation)  # of the phases
    if kernel >= stride // apart:
        return list(range(0, stride, apart))
    return sorted(k * dilation % stride for k in range(kernel))


def shared_window(problem: Problem, rows: int, cols: int) -> int:
    """Elements per channel and image of one window for all taps: `rows` x `cols` of every phase, with the halo."""
    halo_rows, halo_cols = halo(problem)
    return (rows + halo_rows + 1) * (cols + halo_cols) * problem.stride[0] * problem.stride[1]


def own_window(problem: Problem, block: Block, row: int, col: int) -> tuple[slice, slice]:
    """The rows and columns of the padded image that one tap (kernel row, kernel column) reads for the outputs `block`.

    They are as many as the outputs. The window that all taps share has what lies between them, too: for a stride or a
    dilation far beyond the kernel that is nearly everything, and terabytes for a million.
    """
    parts = []
    for part, tap, s, d, before in zip(
        block[2:], (row, col), problem.stride, problem.dilation, problem.padding[::2], strict=True
    ):
        first = part.start * s + tap * d - before
        parts.append(slice(first, first + (part.stop - part.start - 1) * s + 1, s))
    return parts[0], parts[1]


def phase_window(problem: Problem, block: Block, rows: int, cols: int) -> tuple[slice, slice]:
    """The part of the padded image whose phases have `rows` x `cols` elements, from a block's first output on."""
    (sh, sw), (top, _, left, _) = problem.stride, problem.padding
    row, col = block.rows.start * sh - top, block.cols.start * sw - left
    return slice(row, row + rows * sh), slice(col, col + cols * sw)


def input_window(problem: Problem, block: Block, kernel_rows: slice, kernel_cols: slice) -> tuple[slice, slice]:
    """What some rows and columns of the kernel read for the outputs `block`: rows and columns of the padded image."""
    top, _, left, _ = problem.padding
    (sh, sw), (dh, dw), i, j = problem.stride, problem.dilation, kernel_rows, kernel_cols
    row, col = i.start * dh - top, j.start * dw - left
    rows = slice(block.rows.start * sh + row, (block.rows.stop - 1) * sh + row + dilated(i.stop - i.start, dh))
    cols = slice(block.cols.start * sw + col, (block.cols.stop - 1) * sw + col + dilated(j.stop - j.start, dw))
    return rows, cols


def group_windows(
    groups: slice, inputs: slice, batch: slice, rows: slice, cols: slice, problem: Problem
) -> tuple[Window, ...]:
    """The window of some inputs of some groups; one for each group unless the channels follow each other.

    `inputs` counts within a group.
    """
    size, count = problem.in_channels // problem.groups, groups.stop - groups.start
    together = count == 1 or inputs.stop - inputs.start == size
    runs = [groups] if together else [slice(group, group + 1) for group in range(groups.start, groups.stop)]
    found = []
    for run in runs:
        channels = slice(run.start * size + inputs.start, (run.stop - 1) * size + inputs.stop)
        found.append(window_of(problem, Block(channels, batch, rows, cols)))
    return tuple(found)


def cut_groups(x: Any, windows: tuple[Window, ...], groups: int, problem: Problem, steps: Steps) -> Any:
    """The windows of so many groups as one array (g, i, B, H, W)."""
    mode, dtype = problem.padding_mode, problem.compute_dtype
    parts = [steps.cut(x, window, mode, dtype) for window in windows]
    whole = parts[0] if len(parts) == 1 else steps.xp.concat(parts, axis=0)
    return steps.xp.reshape(whole, (groups, whole.shape[0] // groups, *whole.shape[1:]))


def group_window(
    x: Any, groups: slice, inputs: slice, batch: slice, rows: slice, cols: slice, problem: Problem, steps: Steps
) -> Any:
    """The window of some inputs of some groups, (g, i, B, H, W); `inputs` counts within a group."""
    windows = group_windows(groups, inputs, batch, rows, cols, problem)
    return cut_groups(x, windows, groups.stop - groups.start, problem, steps)


def cut_phases(
    x: Any, windows: tuple[Window, ...], which: tuple[Pair, ...], problem: Problem, steps: Steps
) -> dict[Pair, Any]:
    """The window of all groups, (G, i, B, H, W), as the phases of the stride that taps read."""
    window = cut_groups(x, windows, problem.groups, problem, steps)
    if problem.stride == (1, 1):
        return {(0, 0): window}
    return {one: phase(window, problem.stride, one) for one in which}
