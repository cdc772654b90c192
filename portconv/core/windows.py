"""Pooling and interpolation as integers: what each output of an axis reads of the image. No arrays here.

Both work along one axis after the other. A part of the outputs needs a part of the image, and is the same operation
there: so strips that fit a cache, and the chunks of larger images, need no rules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from .layout import shape_of, sizes
from .shapes import dilated

__all__ = ["Pooling", "Resizing", "Samples", "Taps", "WindowOperation", "axes_of"]


def axes_of(layout: str) -> tuple[int, int]:
    """The axes of rows and columns of an image in this layout."""
    return (2, 3) if layout == "NCHW" else (1, 2)


class Taps(NamedTuple):
    """One axis of pooling: output `i` reads the elements `i * stride - before + tap * dilation`, for all its taps.

    `after` is the padding behind the image that was asked for. The last window may reach farther.
    """

    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def behind(self) -> int:
        """How far the last window reaches beyond the image; below zero if it ends inside."""
        reach = (self.outputs - 1) * self.stride + dilated(self.kernel, self.dilation)
        return reach - self.before - self.size

    @property
    def whole(self) -> bool:
        """Whether there is one window, which is the image."""
        return self.outputs == 1 and self.kernel == self.size and self.before == self.after == 0 and self.dilation == 1

    def counts(self, padding: bool) -> list[int]:
        """How many elements of the image each output reads, or 1 for none; or with its padding, which has an end."""
        low, high = (-self.before, self.size + self.after) if padding else (0, self.size)
        found = []
        for i in range(self.outputs):
            start = i * self.stride - self.before
            first, last = (-((start - end) // self.dilation) for end in (low, high))  # taps at an end or beyond it
            found.append(max(min(last, self.kernel) - max(first, 0), 1))
        return found

    def part(self, first: int, last: int) -> tuple[slice, Taps]:
        """What the outputs from `first` to before `last` read of the axis, and how they read it there."""
        start = first * self.stride - self.before
        low = min(max(start, 0), self.size)
        end = (last - 1) * self.stride - self.before + dilated(self.kernel, self.dilation)
        high = max(min(end, self.size), low)
        before, after = low - start, self.size + self.after - high
        return slice(low, high), self._replace(size=high - low, outputs=last - first, before=before, after=after)


class Samples(NamedTuple):
    """One axis of interpolation: output `i` is between the elements `low[i]` and `high[i]`, at `share[i]` of the way.

    These are two that follow each other, or the same one. Without `high` the output is the element `low[i]`.
    """

    size: int
    low: tuple[int, ...]
    high: tuple[int, ...] = ()
    share: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """How many there are."""
        return len(self.low)

    def part(self, first: int, last: int) -> tuple[slice, Samples]:
        """What the outputs from `first` to before `last` read of the axis, and how they read it there."""
        low, high = self.low[first:last], self.high[first:last]
        start, stop = min(low), max(high or low) + 1
        low, high = tuple(i - start for i in low), tuple(i - start for i in high)
        return slice(start, stop), Samples(stop - start, low, high, self.share[first:last])


@dataclass(frozen=True)
class Pooling:
    """Pooling of an image.

    Attributes
    ----------
    kind
        ``"max"`` or ``"average"``.
    rows, cols
        What is read along the axes.
    layout
        Of the image.
    count_padding
        Whether an average counts the padding, too.
    """

    kind: str
    rows: Taps
    cols: Taps
    layout: str
    count_padding: bool = False

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the result for an image of `shape`."""
        n, c, _, _ = sizes(shape, self.layout)
        return shape_of(n, c, self.rows.outputs, self.cols.outputs, self.layout)

    def part(self, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[tuple[slice, ...], Pooling]:
        """What these outputs read of the image, as an index of it, and the operation that makes them of that."""
        (across, up), (along, left) = self.rows.part(*rows), self.cols.part(*cols)
        every = slice(None)
        return shape_of(every, every, across, along, self.layout), replace(self, rows=up, cols=left)


@dataclass(frozen=True)
class Resizing:
    """Interpolation of an image; the attributes and methods are those of `Pooling`."""

    rows: Samples
    cols: Samples
    layout: str

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the result for an image of `shape`."""
        n, c, _, _ = sizes(shape, self.layout)
        return shape_of(n, c, self.rows.outputs, self.cols.outputs, self.layout)

    def part(self, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[tuple[slice, ...], Resizing]:
        """What these outputs read of the image, as an index of it, and the operation that makes them of that."""
        (across, up), (along, left) = self.rows.part(*rows), self.cols.part(*cols)
        every = slice(None)
        return shape_of(every, every, across, along, self.layout), replace(self, rows=up, cols=left)


WindowOperation: TypeAlias = "Pooling | Resizing"
