"""The gradient of the image as convolutions of the cotangent, one for each phase of the strides. No arrays here.

With ``y = conv2d(x, w)`` and the cotangent ``dy``, the gradient of the image is a convolution of `dy` with the weight,
whose taps are turned around and whose channels change places (Dumoulin & Visin, "A guide to convolution arithmetic for
deep learning", arXiv 1603.07285). A stride leaves out results: row ``u`` of the padded image met only those taps whose
distance from ``u`` it divides, so each phase of the stride is a convolution of its own with some of the taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from ..core.epilogue import Epilogue
from ..core.integers import Pair
from ..core.problem import Problem, TransposedProblem

__all__ = ["AxisPhase", "Phase", "gradient_size", "image_gradient_phases", "image_gradient_problem"]


class AxisPhase(NamedTuple):
    """Every `stride`-th row of the image's gradient: some rows of the cotangent convolved with some rows of the kernel.

    The slices say which: `target` of the gradient, `source` of the cotangent, `taps` of the kernel before it is turned
    around. `dilation` is the distance of those taps in rows of the cotangent, which is padded by `before` and `after`.
    """

    target: slice
    source: slice
    taps: slice
    dilation: int
    before: int
    after: int


class Phase(NamedTuple):
    """A phase of the strides along both axes, and the convolution whose result is this part of the gradient.

    The image of that convolution is what the two `source` cut from the cotangent. Its weight, (G, I/G, O/G, ...), is
    what the two `taps` cut from the weight (G, O/G, I/G, kh, kw), turned around along both axes of the kernel.
    """

    problem: Problem
    rows: AxisPhase
    cols: AxisPhase


def gradient_size(p: Problem, folded: bool = False) -> Pair:
    """Height and width of what the phases of `image_gradient_phases` fill."""
    top, bottom, left, right = p.padding
    return (p.height + top + bottom, p.width + left + right) if folded else (p.height, p.width)


def image_gradient_phases(p: Problem, dy_dtype: str, folded: bool = False) -> Iterator[Phase]:
    """The convolutions that the gradient of the image is made of; what none of them fills is zero.

    Without a stride it is one of them that fills everything, or none where no tap meets the image.

    Parameters
    ----------
    p
        The convolution. Its layout, dtype, accuracy and device are those of the convolutions that are found.
    dy_dtype
        The dtype of the cotangent.
    folded
        Whether the gradient of the border is wanted, too, to be added to that of the elements that were copied there.
    """
    size = gradient_size(p, folded)
    start = (0, 0) if folded else p.padding[::2]
    rows, cols = (_axis(*axis) for axis in zip(size, p.kernel, p.stride, p.dilation, start, p.out_size, strict=True))
    for row in rows:
        for col in cols:
            problem = replace(
                p, in_channels=p.out_channels, height=_length(row.source), width=_length(col.source),
                out_channels=p.in_channels, kernel=(_length(row.taps), _length(col.taps)), stride=(1, 1),
                padding=(row.before, row.after, col.before, col.after), dilation=(row.dilation, col.dilation),
                padding_mode="zeros", epilogue=Epilogue(), x_dtype=dy_dtype,
            )  # fmt: skip
            yield Phase(problem, row, col)


def image_gradient_problem(p: Problem, dy_dtype: str, folded: bool = False) -> TransposedProblem:
    """The transposed convolution whose phases they are; arguments as in `image_gradient_phases`."""
    size, padding = gradient_size(p, folded), (0, 0, 0, 0) if folded else p.padding
    problem = TransposedProblem(
        p.batch, p.out_channels, *p.out_size, p.in_channels, p.kernel, p.stride, padding, p.dilation, p.groups,
        "zeros", Epilogue(), dy_dtype, p.dtype, p.layout, p.accuracy, p.device, p.traced,
    )  # fmt: skip
    missing = size[0] - problem.out_size[0], size[1] - problem.out_size[1]
    return replace(problem, output_padding=missing)


def _length(part: slice) -> int:
    return len(range(part.start, part.stop, part.step or 1))


@lru_cache(maxsize=1024)
def _axis(size: int, kernel: int, stride: int, dilation: int, before: int, out: int) -> tuple[AxisPhase, ...]:
    """Of one axis; `size` elements from the one `before` on, counted in the padded image, are wanted."""
    found = []
    step = stride // math.gcd(stride, dilation)  # from one tap of a phase to the next one
    for tap in range(min(kernel, step)):
        phase, taps = tap * dilation % stride, range(tap, kernel, step)
        first, last = -(-(before - phase) // stride), -(-(before + size - phase) // stride)
        if first >= last:
            continue
        apart = step * dilation // stride if len(taps) > 1 else 1
        reach = apart * (len(taps) - 1)
        lead = tap * dilation // stride + reach - first
        trail = last - first - out - lead + reach
        source = slice(max(0, -lead), out - max(0, -trail))
        if source.start < source.stop:
            target = slice(phase + first * stride - before, size, stride)
            some = slice(tap, taps[-1] + 1, step)
            found.append(AxisPhase(target, source, some, apart, max(0, lead), max(0, trail)))
    return tuple(found)
