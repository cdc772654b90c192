"""Chunks of the result, and what each of them reads of the image's chunks. Integers only, one axis at a time.

Every output stands at the middle of what it reads. It belongs to the chunk of the result that follows the chunk of the
image in which that pixel lies; in the padding, to the first or the last one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from ...core.shapes import axis_source

__all__ = ["Axis", "AxisWindow", "Piece", "output_chunks", "whole", "windows"]


class Axis(NamedTuple):
    """An axis of a convolution.

    Attributes
    ----------
    chunks
        Sizes of the image's chunks.
    outputs
        Size of the result.
    extent
        Size of the dilated kernel.
    stride, before, after, mode
        Stride and padding.
    """

    chunks: tuple[int, ...]
    outputs: int
    extent: int
    stride: int
    before: int
    after: int
    mode: str


class Piece(NamedTuple):
    """Elements that a window takes from a chunk; a single one fills the target."""

    block: int  # its place among the window's blocks
    source: slice
    target: slice


class AxisWindow(NamedTuple):
    """What a chunk of the result reads along an axis.

    `size` elements, made of the pieces of some chunks of the image, and zeros `before` and `after` them. Where there
    is no piece, all elements are zeros.
    """

    blocks: tuple[int, ...]
    pieces: tuple[Piece, ...]
    size: int
    before: int
    after: int


def output_chunks(axis: Axis) -> tuple[int, ...]:
    """Sizes of the result's chunks.

    Neighbours that are smaller than their halo are gathered until they are as large: else each would read many.
    """
    centre = axis.before - (axis.extent - 1) // 2  # of output 0, counted back from the first pixel
    ends = [min(max(-(-(end + centre) // axis.stride), 0), axis.outputs) for end in accumulate(axis.chunks)]
    least = -(-(axis.extent - 1) // axis.stride)
    found: list[int] = []
    for begin, end in pairwise([0, *ends[:-1], axis.outputs]):
        count = end - begin
        if found and count < least and found[-1] < least:
            found[-1] += count
        elif count:
            found.append(count)
    return tuple(found)


def whole(axis: Axis) -> list[AxisWindow]:
    """The one window of an axis in one chunk, whose padding is left to the inner plan."""
    (size,) = axis.chunks
    every = slice(0, size)
    return [AxisWindow((0,), (Piece(0, every, every),), size, axis.before, axis.after)]


def windows(axis: Axis, outputs: Iterable[int]) -> list[AxisWindow]:
    """What each of the result's chunks reads, of the sizes `outputs`."""
    found, first = [], 0
    for count in outputs:
        begin = first * axis.stride - axis.before
        found.append(_window(axis, slice(begin, begin + (count - 1) * axis.stride + axis.extent)))
        first += count
    return found


def _window(axis: Axis, part: slice) -> AxisWindow:
    starts = [0, *accumulate(axis.chunks)]
    lead, inner, trail = axis_source(part, starts[-1], axis.before, axis.after, axis.mode)
    before, after = (len(lead), len(trail)) if axis.mode == "zeros" else (0, 0)
    size = part.stop - part.start - before - after
    if size == 0:  # all of it lies in the padding
        return AxisWindow((), (), part.stop - part.start, 0, 0)
    runs = [(inner.start, 1, inner.stop - inner.start)] if inner.start < inner.stop else []
    if axis.mode != "zeros":
        runs = [*_runs(lead), *runs, *_runs(trail)]
    found, at = [], 0
    for run in runs:
        for chunk, source, count in _cut(run, starts):
            found.append((chunk, source, slice(at, at + count)))
            at += count
    blocks = tuple(sorted({chunk for chunk, *_ in found}))
    pieces = tuple(Piece(blocks.index(chunk), source, target) for chunk, source, target in found)
    return AxisWindow(blocks, pieces, size, before, after)


def _runs(indices: tuple[int | None, ...]) -> Iterator[tuple[int, int, int]]:
    """Indices as few runs of a start, a step of 1, -1 or 0, and a count."""
    run: list[int] = []
    for index in indices:
        assert index is not None  # only padding of zeros has no source
        step = index - run[-1] if run else 0
        if run and (abs(step) > 1 or (len(run) > 1 and step != run[1] - run[0])):
            yield _as_run(run)
            run = []
        run.append(index)
    if run:
        yield _as_run(run)


def _as_run(run: list[int]) -> tuple[int, int, int]:
    return run[0], run[1] - run[0] if len(run) > 1 else 0, len(run)


def _cut(run: tuple[int, int, int], starts: list[int]) -> Iterator[tuple[int, slice, int]]:
    """The parts of a run that lie in one chunk each: the chunk, the slice of it, and how many elements it fills."""
    start, step, count = run
    while count:
        chunk = bisect_right(starts, start) - 1
        at = start - starts[chunk]
        if step == 0:
            yield chunk, slice(at, at + 1), count
            return
        some = min(count, starts[chunk + 1] - start if step == 1 else at + 1)
        last = at + step * some
        yield chunk, slice(at, None if last < 0 else last, step), some
        start, count = start + step * some, count - some
