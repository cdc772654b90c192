"""Convolution as matrix products, block by block, without an im2col matrix of the image.

A block of the result is a sum over the taps of the kernel, `y = sum_t W[t] x[t]`, where `x[t]` is the block's window
shifted by the tap. There are three ways to do it:

* **gather**: shifted windows are copied, those of several taps into one stack where the channels are few, and each
  stack is a product. For few channels, small images and batches.
* **shift**: the window lies flat in memory, so a shift is an offset, and each tap is a product without any copy. Each
  row then has a few columns too many at its end, which are cut off. For many channels and wide rows.
* **banded**: products of small matrices with bands in them, for depthwise layers; see `banded.py`.

1x1 kernels are the gather of one tap: a product of the weight with the image as it lies.

Sources: Chellapilla et al., "High performance convolutional neural networks for document processing" (2006), for the
product; Anderson et al., "Low-memory GEMM-based convolution algorithms for deep neural networks", arXiv 1709.03395, for
the shifted form.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..core.backend import Candidate, EnginePlan, PackedWeight
from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import ranges
from . import banded
from .accuracy import TERMS
from .banded import BandedPlan
from .costs import Costs
from .engine import Engine
from .steps import Block, Steps, Window
from .taps import (
    MAX_KEPT_TAPS,
    Tap,
    cut_phases,
    group_window,
    group_windows,
    halo,
    input_window,
    met,
    own_window,
    phase_window,
    phases,
    regions,
    taps,
)

__all__ = ["ENGINE", "NAME", "GemmPlan", "Tiling", "pack", "values"]

NAME = "gemm"
BANDED = "banded"

MAX_WINDOW_BYTES = 24 << 20
MIN_COLUMNS = 128  # narrower products waste the BLAS kernels


@dataclass(frozen=True)
class Tiling:
    """How a problem is cut: the form, and the largest block."""

    form: str  # "gather" or "shift"
    batch: int
    rows: int
    cols: int
    channels: int  # input channels per group that a window holds at a time
    stacked: int  # taps that one product serves
    workspace_bytes: int
    apart: bool = False  # each tap has a window of its own

    def blocks(self, problem: Problem) -> tuple[Block, ...]:
        """The blocks of the result."""
        everything, (oh, ow) = slice(0, problem.out_channels), problem.out_size
        parts = [(slice(0, oh), slice(0, ow))]
        if self.form == "gather" and self.stacked == 1:
            parts = [(region.rows, region.cols) for region in regions(problem)]
        return tuple(
            Block(everything, batch, rows, cols)
            for batch in ranges(problem.batch, self.batch)
            for part_rows, part_cols in parts
            for rows in ranges(part_rows.stop, self.rows, part_rows.start)
            for cols in ranges(part_cols.stop, self.cols, part_cols.start)
        )


class Stack(NamedTuple):
    """Taps whose windows lie one after the other, and the products that they are factors of.

    `factors` are columns of the packed weight, each with the elements of the stack that they are multiplied with.
    """

    position: Pair  # of the first tap in the kernel
    taps: Sequence[Tap]
    factors: tuple[tuple[slice, slice], ...]


class Chunk(NamedTuple):
    """Some input channels of every group: the window of them, by phases of the stride, and the stacks that read it.

    There is no window where each tap has one of its own.
    """

    channels: slice
    windows: tuple[Window, ...]
    phases: tuple[Pair, ...]
    stacks: Iterable[Stack]


class Task(NamedTuple):
    """A block of the result, and what its sum reads: all that can be known before there are arrays."""

    block: Block
    size: tuple[int, int, int]  # images, rows, columns of the products
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Stacks(Iterable[Stack]):
    """The stacks of a part of the kernel. They are made when they are asked for, where there are many of them."""

    problem: Problem
    tiling: Tiling
    channels: slice
    rows: slice
    cols: slice

    def __iter__(self) -> Iterator[Stack]:
        p, t, first_channel = self.problem, self.tiling, self.channels.start
        inputs, count = p.in_channels // p.groups, self.channels.stop - first_channel
        kernel = self.rows.stop - self.rows.start, self.cols.stop - self.cols.start
        every = taps(kernel, p.stride, p.dilation)
        for some in ranges(len(every), t.stacked):
            i, j = divmod(some.start, kernel[1])
            position = self.rows.start + i, self.cols.start + j
            first = (position[0] * p.kernel[1] + position[1]) * inputs + first_channel
            terms = (some.stop - some.start) * count
            parts = ranges(terms, _even(terms, TERMS[p.accuracy]))
            factors = tuple([(slice(first + part.start, first + part.stop), part) for part in parts])
            yield Stack(position, every[some], factors)


def tasks(problem: Problem, tiling: Tiling) -> tuple[Task, ...]:
    """The blocks of the result, and what they read."""
    known: dict[tuple[int, ...], Iterable[Stack]] = {}  # most blocks meet the same taps
    return tuple([_task(problem, tiling, block, known) for block in tiling.blocks(problem)])


def _task(p: Problem, t: Tiling, block: Block, known: dict[tuple[int, ...], Iterable[Stack]]) -> Task:
    b, h, w = (part.stop - part.start for part in block[1:])
    shift, (halo_rows, halo_cols) = t.form == "shift", halo(p)
    kernel_rows, kernel_cols = slice(0, p.kernel[0]), slice(0, p.kernel[1])
    if shift:
        w += halo_cols
        # one row more than the taps read: the last tap's run ends `halo_cols` elements into it
        rows, cols = phase_window(p, block, h + halo_rows + 1, w)
    else:
        if t.stacked == 1:
            kernel_rows, kernel_cols = met(p, block)
        rows, cols = input_window(p, block, kernel_rows, kernel_cols)
    kernel = kernel_rows.stop - kernel_rows.start, kernel_cols.stop - kernel_cols.start
    read = phases(kernel, p.stride, p.dilation)
    chunks = []
    for channels in ranges(p.in_channels // p.groups, t.channels):
        key = (channels.start, kernel_rows.start, kernel_cols.start, *kernel)
        if key not in known:
            made = Stacks(p, t, channels, kernel_rows, kernel_cols)
            known[key] = tuple(made) if kernel[0] * kernel[1] <= MAX_KEPT_TAPS else made
        windows = () if t.apart else group_windows(slice(0, p.groups), channels, block.batch, rows, cols, p)
        chunks.append(Chunk(channels, windows, read, known[key]))
    return Task(block, (b, h, w), tuple(chunks))


def _even(total: int, limit: int) -> int:
    """The size of the parts when `total` is cut into as few equal parts of at most `limit` as possible."""
    return -(-total // -(-total // max(limit, 1)))


def tiling(problem: Problem, block_bytes: int) -> Tiling:
    """Choose form and block sizes: blocks that fit the cache, windows that fit the workspace."""
    p = problem
    oh, ow = p.out_size
    group_inputs = p.in_channels // p.groups
    n_taps = p.kernel[0] * p.kernel[1]
    halo_rows, halo_cols = halo(p)
    form = "shift" if n_taps > 1 and group_inputs >= 32 and (ow + halo_cols) / ow < 1.2 else "gather"
    stacked = 1 if form == "shift" else min(n_taps, max(1, TERMS[p.accuracy] // group_inputs))

    operand = p.in_channels * stacked  # elements per output column
    columns = max(block_bytes // (p.itemsize * (operand + 2 * p.out_channels)), MIN_COLUMNS)
    cols = _even(ow, columns)
    rows = _even(oh, max(columns // cols, 1)) if cols == ow else 1
    batch = 1
    if form == "gather" and rows == oh and cols == ow:
        batch = _even(max(p.batch, 1), max(columns // (rows * cols), 1))

    # bytes of the window per input channel and row; a stack of taps needs all channels, a single tap some at a time
    row_bytes = batch * (cols + halo_cols) * p.itemsize * p.stride[0] * p.stride[1] * p.groups
    needed = group_inputs if stacked > 1 else min(group_inputs, TERMS[p.accuracy])
    while rows > 1 and (rows + halo_rows + 1) * row_bytes * needed > MAX_WINDOW_BYTES:
        rows = -(-rows // 2)
    window = (rows + halo_rows + 1) * row_bytes
    if window * needed > MAX_WINDOW_BYTES:
        stacked, operand = 1, p.in_channels
    apart = window > MAX_WINDOW_BYTES and n_taps > 1
    if apart:
        form, halo_cols = "gather", 0
        window = batch * rows * cols * p.itemsize * p.groups
    channels = group_inputs if stacked > 1 else _even(group_inputs, max(MAX_WINDOW_BYTES // window, 1))
    results = batch * rows * (cols + halo_cols) * p.itemsize * (operand * (form == "gather") + 2 * p.out_channels)
    return Tiling(form, batch, rows, cols, channels, stacked, window * channels + results, apart)


def candidate(problem: Problem, steps: Steps, costs: Costs) -> Candidate:
    """The estimate for any problem: this engine runs everything."""
    found = _candidate(problem, steps, costs)
    t = banded.tiling(problem, steps, costs)
    if t is None or (seconds := banded.seconds(problem, t, costs)) > found.seconds:
        return found
    return Candidate(NAME, seconds, costs.threads * t.workspace_bytes(problem), note=BANDED)


def _candidate(problem: Problem, steps: Steps, costs: Costs) -> Candidate:
    p, t = problem, tiling(problem, steps.block_bytes)
    oh, ow = p.out_size
    outputs = p.batch * oh * ow
    n_taps, group_inputs = p.kernel[0] * p.kernel[1], p.in_channels // p.groups
    n_tasks = -(-p.batch // t.batch) * -(-oh // t.rows) * -(-ow // t.cols)
    products = -(-n_taps // t.stacked) * -(-group_inputs * t.stacked // TERMS[p.accuracy])
    waste = (ow + halo(p)[1]) / ow if t.form == "shift" else 1.0
    if t.form == "gather" and t.stacked == 1:
        waste = sum(region.taps * region.outputs for region in regions(p)) / (oh * ow * n_taps)
    thin = max(1.0, 12 / (p.out_channels // p.groups))  # a product of few rows is bound by memory, not by arithmetic
    copied = outputs * p.in_channels * n_taps * waste if t.form == "gather" and n_taps > 1 else 0
    seconds = (
        p.flops * waste * thin * costs.gemm_flop
        + (copied + outputs * p.out_channels * (products + 1)) * costs.element
        + copied / ow * costs.row / 2
        + n_tasks * (costs.task + (products + n_taps) * costs.call + products * p.groups * 30 * costs.row)
    )
    return Candidate(NAME, seconds, t.workspace_bytes, note=t.form)


def build(problem: Problem, steps: Steps, costs: Costs) -> EnginePlan:
    """Bind the engine to a problem."""
    t = tiling(problem, steps.block_bytes)
    plan = GemmPlan(problem, NAME, t.workspace_bytes, steps=steps, tiling=t, tasks=tasks(problem, t))
    bands, offer = banded.tiling(problem, steps, costs), candidate(problem, steps, costs)
    if bands is None or offer.note != BANDED:
        return plan
    return BandedPlan(problem, NAME, offer.workspace_bytes, steps=steps, tiling=bands, exact=plan)


def stamp(problem: Problem, steps: Steps) -> Hashable:
    """The packed weight is the weight with its channels last: it depends on nothing but the weight and the dtype."""
    return (NAME, steps.place, problem.weight_shape, problem.compute_dtype)


def pack(weight: Any, problem: Problem, steps: Steps) -> PackedWeight:
    """`(G, O/G, kh kw I/G)`: a row holds the taps one after the other, each with all its channels."""
    g, o, i, kh, kw = problem.weight_shape
    xp, made_for = steps.xp, stamp(problem, steps)
    data = xp.reshape(steps.cast(weight, problem.compute_dtype), (g, o, i, kh * kw))
    data = xp.reshape(xp.permute_dims(data, (0, 1, 3, 2)), (g, o, kh * kw * i))
    return PackedWeight(made_for, steps.keep(data), problem.itemsize * g * o * i * kh * kw)


@dataclass(frozen=True, kw_only=True)
class GemmPlan(EnginePlan):
    """See the module."""

    steps: Steps
    tiling: Tiling
    tasks: tuple[Task, ...] = ()

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        return stamp(self.problem, self.steps)

    def pack(self, weight: Any, /) -> PackedWeight:
        return pack(weight, self.problem, self.steps)

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, steps = self.problem, self.steps
        x = steps.cbhw(x, p.layout)

        def compute(task: Task) -> list[tuple[Block, Any]]:
            return [(task.block, block_value(x, weight.data, task, p, self.tiling, steps))]

        # not in parallel: the products themselves use all threads
        return steps.assemble(p, bias, self.tasks, compute, residual=residual, out=out, parallel=False)

    def values(self, x: Any, weight: PackedWeight, block: Block, /) -> Iterator[tuple[Block, Any]]:
        """The outputs `block`, of any size, where each output has a channel of its own; `x` is (C, B, H, W)."""
        channels, count = block.channels, block.channels.stop - block.channels.start
        alone = replace(self.problem, in_channels=count, out_channels=count, groups=count)
        part = block._replace(channels=slice(0, count))
        for found, value in values(x[channels, ...], weight.data[channels, ...], part, alone, self.steps):
            yield found._replace(channels=channels), value


def values(x: Any, weight: Any, block: Block, problem: Problem, steps: Steps) -> Iterator[tuple[Block, Any]]:
    """The outputs `block`, of any size, for an engine that could not compute them; in blocks of this engine's."""
    t = tiling(problem, steps.block_bytes)
    known: dict[tuple[int, ...], Iterable[Stack]] = {}
    for rows in ranges(block.rows.stop - block.rows.start, t.rows):
        for cols in ranges(block.cols.stop - block.cols.start, t.cols):
            part = Block(
                slice(0, problem.out_channels),
                block.batch,
                slice(block.rows.start + rows.start, block.rows.start + rows.stop),
                slice(block.cols.start + cols.start, block.cols.start + cols.stop),
            )
            for image in range(block.batch.start, block.batch.stop):
                one = part._replace(batch=slice(image, image + 1))
                value = block_value(x, weight, _task(problem, t, one, known), problem, t, steps)
                yield one._replace(channels=block.channels), value[block.channels, ...]


def block_value(x: Any, weight: Any, task: Task, problem: Problem, tiling: Tiling, steps: Steps) -> Any:
    """The outputs of a task's block, (O, B, H, W), without the bias."""
    terms = _shifted if tiling.form == "shift" else _gathered
    total = steps.sum_of_products(terms(x, weight, task, problem, tiling, steps), "matmul")
    value = steps.xp.reshape(total, (problem.out_channels, *task.size))
    cols = task.block.cols.stop - task.block.cols.start
    return value if task.size[2] == cols else value[:, :, :, :cols]


def _gathered(x: Any, weight: Any, task: Task, p: Problem, t: Tiling, steps: Steps) -> Iterator[tuple[Any, Any]]:
    """Factors over stacks of shifted windows; a stack of several taps holds all channels of each."""
    b, h, w = task.size
    for chunk in task.chunks:
        parts = {} if t.apart else cut_phases(x, chunk.windows, chunk.phases, p, steps)
        if p.stride != (1, 1) and t.stacked > 1:  # a strided run is copied once here, not once for every tap
            parts = {which: steps.contiguous(part) for which, part in parts.items()}
        for stack in chunk.stacks:
            views = []
            if t.apart:
                own = own_window(p, task.block, *stack.position)
                views.append(group_window(x, slice(0, p.groups), chunk.channels, task.block.batch, *own, p, steps))
            else:
                for tap in stack.taps:
                    view = parts[tap.phase][..., tap.row : tap.row + h, tap.col : tap.col + w]
                    views.append(view)
            values = views[0] if len(views) == 1 else steps.stack(views)
            values = steps.xp.reshape(values, (p.groups, -1, b * h * w))
            for columns, elements in stack.factors:
                yield weight[:, :, columns], values[:, elements, :]
            del values  # before the next stack is made


def _shifted(x: Any, weight: Any, task: Task, p: Problem, _t: Tiling, steps: Steps) -> Iterator[tuple[Any, Any]]:
    """Factors: each tap, and the flat window at the tap's offset."""
    _, h, w = task.size
    for chunk in task.chunks:
        parts = cut_phases(x, chunk.windows, chunk.phases, p, steps)
        count = chunk.channels.stop - chunk.channels.start
        flat = {which: steps.xp.reshape(part, (p.groups, count, -1)) for which, part in parts.items()}
        for stack in chunk.stacks:
            (tap,) = stack.taps
            offset = tap.row * w + tap.col
            for columns, elements in stack.factors:
                yield weight[:, :, columns], flat[tap.phase][:, elements, offset : offset + h * w]


ENGINE = Engine(NAME, candidate, build)
