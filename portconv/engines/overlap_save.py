"""How a result is cut into tiles of transforms that overlap, and these into tasks."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import fft_operations, smooth_sizes
from .costs import Costs
from .taps import halo, phases

__all__ = ["Task", "Tiling", "seconds_of", "tiling"]

MAX_TILE = 512
# A packed weight beyond this is kept as it is, and transformed part by part in every call.
MAX_SPECTRUM_BYTES = 128 << 20
TASK_BYTES = 4 << 20
LIBRARY_BYTES = 1 << 20  # what a thread keeps from call to call, and what transforms need for themselves


class Tiling(NamedTuple):
    """How a problem is cut; all counts are per task. `size` is the transform's, `valid` the outputs of a tile."""

    size: Pair
    valid: Pair
    phases: tuple[Pair, ...]
    groups: int
    outputs: int  # per group
    inputs: int  # per group, summed up within the task
    batch: int
    tiles: int  # side by side
    pointwise: bool  # few channels: products element by element; else a matrix product for every frequency
    transformed: bool  # the packed weight is its spectrum
    spectrum_bytes: int  # of the whole weight's spectrum
    parallel: bool  # whether the workspace suffices for two tasks at a time
    workspace_bytes: int
    operations: float  # of transforms
    products: float  # complex multiplications
    moved: float  # elements copied or combined


class Task(NamedTuple):
    """A row of tiles of some images, for some groups and outputs."""

    groups: slice
    outputs: slice
    batch: slice
    row: int
    cols: tuple[int, ...]


def kernel_phases(p: Problem) -> tuple[tuple[Pair, ...], Pair]:
    """The phases of the stride that taps read, and the extent of the kernel within a phase."""
    rows, cols = halo(p)
    return phases(p.kernel, p.stride, p.dilation), (rows + 1, cols + 1)


def _sizes(kernel: int, outputs: int) -> list[int]:
    """Transform lengths worth a try along one axis, at most ten."""
    whole = kernel + outputs - 1
    sizes = smooth_sizes(kernel, min(whole, max(MAX_TILE, 2 * kernel)))
    if len(sizes) > 10:
        step = (len(sizes) - 1) / 9
        sizes = tuple([sizes[round(i * step)] for i in range(10)])
    return [n for n in sizes if n >= kernel]


@lru_cache(maxsize=1024)
def tiling(problem: Problem, costs: Costs, workspace_bytes: int) -> Tiling:
    """The cheapest tile size, and how much of the problem one task takes on."""
    read, (kh, kw) = kernel_phases(problem)
    oh, ow = problem.out_size
    rows = [(size, -(-oh // (size - kh + 1)), math.log2(size)) for size in _sizes(kh, oh)]
    cols = [(size, -(-ow // (size - kw + 1)), math.log2(size)) for size in _sizes(kw, ow)]
    # The work of one channel's transforms is a first sieve: the full estimate takes its time, which each new problem
    # pays for.
    work = [
        (down * across * (2.5 * bh * bw * (log_h + log_w) + 200.0), (bh, bw))
        for bh, down, log_h in rows
        for bw, across, log_w in cols
    ]
    tried = [*[size for _, size in sorted(work)[:6]], (rows[0][0], cols[0][0])]
    tilings = [_cut(problem, size, read, (kh, kw), workspace_bytes) for size in tried]
    estimates = [(t.workspace_bytes > workspace_bytes, seconds_of(problem, t, costs)) for t in tilings]
    return tilings[estimates.index(min(estimates))]


def _cut(p: Problem, size: Pair, read: tuple[Pair, ...], kernel: Pair, workspace_bytes: int) -> Tiling:
    oh, ow = p.out_size
    valid = (min(size[0] - kernel[0] + 1, oh), min(size[1] - kernel[1] + 1, ow))
    group_inputs, group_outputs = p.in_channels // p.groups, p.out_channels // p.groups
    tiles_down, tiles_across = -(-oh // valid[0]), -(-ow // valid[1])
    frequencies = size[0] * (size[1] // 2 + 1)
    spectrum = 2 * p.itemsize * frequencies  # bytes of one channel's
    depth = len(read)
    spectrum_bytes = spectrum * p.out_channels * group_inputs * depth
    transformed = spectrum_bytes <= MAX_SPECTRUM_BYTES

    def few(inputs: int, outputs: int) -> bool:
        return inputs * depth <= 4 or inputs * depth * outputs <= 64

    def task_bytes(inputs: int, outputs: int, images: int) -> int:
        """Window, spectrum and one on the way to it; product, sum, its inverse and one on the way; the weight's."""
        kept = 0 if transformed else (1 if few(inputs, outputs) else 4) * inputs * depth * outputs
        return int(spectrum * ((2.75 * inputs * depth + 4 * outputs) * images + kept))

    inputs, outputs = group_inputs, group_outputs
    while task_bytes(inputs, outputs, 1) > workspace_bytes // 2 and max(inputs, outputs) > 1:
        if inputs >= outputs:
            inputs = -(-inputs // 2)
        else:
            outputs = -(-outputs // 2)
    pointwise = few(inputs, outputs)
    one = task_bytes(inputs, outputs, 1)
    images = max(1, min(TASK_BYTES // one, tiles_across * max(p.batch, 1)))
    tiles = min(images, tiles_across)
    batch = max(1, min(images // tiles, p.batch)) if tiles == tiles_across else 1
    groups = max(1, min(TASK_BYTES // task_bytes(inputs, outputs, tiles * batch), p.groups))
    if outputs < group_outputs or inputs < group_inputs:
        groups = 1

    n_tiles = max(p.batch, 1) * tiles_down * tiles_across
    repeats = -(-group_outputs // outputs)  # every part of the outputs transforms the image anew
    operations = n_tiles * (p.in_channels * depth * repeats + p.out_channels) * fft_operations(*size)
    products = float(n_tiles * p.out_channels * group_inputs * depth * frequencies)
    moved = n_tiles * (p.in_channels * depth * repeats + p.out_channels) * frequencies * (2.0 if pointwise else 6.0)
    if not transformed:
        operations += -(-n_tiles // (tiles * batch)) * p.out_channels * group_inputs * depth * fft_operations(*size)
    needed = groups * task_bytes(inputs, outputs, tiles * batch) + LIBRARY_BYTES
    parallel = needed <= workspace_bytes
    return Tiling(
        size, valid, read, groups, outputs, inputs, batch, tiles, pointwise, transformed, spectrum_bytes, parallel,
        (1 + parallel) * needed, operations, products, moved,
    )  # fmt: skip


def seconds_of(p: Problem, t: Tiling, costs: Costs) -> float:
    """The estimate of a problem that is cut so."""
    oh, ow = p.out_size
    tasks = (-(-oh // t.valid[0]) * -(-ow // t.valid[1]) * max(p.batch, 1) / (t.tiles * t.batch)) * (
        p.groups / t.groups
    )
    tasks *= -(-(p.out_channels // p.groups) // t.outputs)
    threads = min(costs.threads, max(tasks, 1)) if t.parallel else 1
    terms = t.inputs * len(t.phases)
    if t.pointwise:
        product = t.products * 8 * costs.element / threads
        calls = terms * 2
    else:
        # the weight's spectrum is read once for every task: with few tiles that, not the arithmetic, takes the time
        reads = t.products / (t.tiles * t.batch) * 4 * costs.element
        product = t.products * 8 * costs.gemm_flop * 2 + reads
        calls = 10
    idle = costs.threads / threads
    return (
        t.operations * costs.fft_flop * idle
        + t.moved * costs.element * 2 / threads
        + product
        + tasks * (costs.task * 2 + (calls + 4 * t.tiles) * costs.call)
    )
