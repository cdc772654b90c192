"""Problems without what takes no part in them: taps that meet only zero padding, whatever the output.

A 3x3 kernel over an image of one pixel is one tap: the other eight meet zeros. No engine may let them into its
arithmetic: a product with infinity is no zero, and a transform mixes large weights with those that matter. So what is
left after cutting them away is the problem that is planned; the weight is cut when it is packed, and the image when it
comes. An engine that was named and has no form for what is left, as `winograd` has tiles for whole kernels alone, packs
zeros in the place of those taps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from ..core.backend import Candidate, PackedWeight, Plan
from ..core.problem import Problem
from ..core.shapes import dilated, met_taps

__all__ = ["Crop", "CroppedPlan", "cropped", "met_mask", "planned"]


class _Axis(NamedTuple):
    """One axis: the taps that meet the image, the part of it that they read, and the problem that is left."""

    taps: slice
    image: slice
    dilation: int
    before: int
    after: int


class Crop(NamedTuple):
    """The problem that is left, and which parts of the kernel and of the image are its own."""

    problem: Problem
    kernel_rows: slice
    kernel_cols: slice
    rows: slice
    cols: slice


@lru_cache(maxsize=1024)
def cropped(p: Problem) -> Crop | None:
    """What is left of a problem, or None where every tap takes part (or none does, and the result is the bias)."""
    top, _bottom, left, _right = p.padding
    if p.padding_mode != "zeros" or not any(p.padding):
        return None
    (oh, ow), (kh, kw), (sh, sw), (dh, dw) = p.out_size, p.kernel, p.stride, p.dilation
    rows, cols = _axis(p.height, oh, kh, sh, dh, top), _axis(p.width, ow, kw, sw, dw, left)
    if rows is None or cols is None:
        return None
    height, width = (part.image.stop - part.image.start for part in (rows, cols))
    kernel = (len(range(*rows.taps.indices(kh))), len(range(*cols.taps.indices(kw))))
    if kernel == p.kernel:
        return None
    problem = replace(
        p, height=height, width=width, kernel=kernel, dilation=(rows.dilation, cols.dilation),
        padding=(rows.before, rows.after, cols.before, cols.after),
    )  # fmt: skip
    return Crop(problem, rows.taps, cols.taps, rows.image, cols.image)


@lru_cache(maxsize=1024)
def met_mask(p: Problem) -> tuple[tuple[bool, ...], ...] | None:
    """Which taps (kh, kw) meet the image for some output; None where all of them do, or none."""
    if p.padding_mode != "zeros" or not any(p.padding):
        return None
    axes = zip(p.out_size, (p.height, p.width), p.kernel, p.stride, p.dilation, p.padding[::2], strict=True)
    rows, cols = ({tap for tap, *_ in met_taps(*axis)} for axis in axes)
    if not rows or not cols or (len(rows), len(cols)) == p.kernel:
        return None
    return tuple(tuple(i in rows and j in cols for j in range(p.kernel[1])) for i in range(p.kernel[0]))


def _axis(size: int, outputs: int, kernel: int, stride: int, dilation: int, before: int) -> _Axis | None:
    """See `Crop`; None if no tap meets the image, all taps as they are if those that do are not evenly spaced."""
    reads = list(met_taps(outputs, size, kernel, stride, dilation, before))
    if not reads:
        return None
    met, first, last = [tap for tap, *_ in reads], min(read[1] for read in reads), max(read[2] for read in reads)
    step = met[1] - met[0] if len(met) > 1 else 1
    if met != list(range(met[0], met[-1] + 1, step)) or len(met) == kernel:
        met, step, first, last = list(range(kernel)), 1, 0, size - 1
    apart = dilation * step
    # the first output's first tap reads a row of the padding, or the first row of the part
    lead = max(before - met[0] * dilation + first, 0)
    needed = (outputs - 1) * stride + dilated(len(met), apart)
    trail = max(needed - lead - (last - first + 1), 0)
    return _Axis(slice(met[0], met[-1] + 1, step), slice(first, last + 1), apart, lead, trail)


@dataclass(frozen=True, kw_only=True)
class CroppedPlan(Plan):
    """The plan of what is left, between cutting and nothing: its result is the whole result."""

    crop: Crop
    inner: Plan

    @classmethod
    def of(cls, problem: Problem, crop: Crop, inner: Plan, others: Sequence[Candidate] = ()) -> CroppedPlan:
        """The plan of a problem, from that of its crop.

        What cannot run the crop is named as in `others`: it may run the whole problem, or the reason is about the
        kernel that the caller knows.
        """
        whole = {c.engine: c for c in others}
        shown = tuple(c if c.why_not is None else whole.get(c.engine, c) for c in inner.candidates)
        return cls(problem, inner.engine, inner.workspace_bytes, shown, inner.chosen_by, crop=crop, inner=inner)

    @property
    def stamp(self) -> Hashable:
        rows, cols = self.crop.kernel_rows, self.crop.kernel_cols
        return ("cropped", str(rows), str(cols), self.problem.weight_shape, self.inner.stamp)

    def warmup(self) -> tuple[str, ...]:
        return self.inner.warmup()

    def pack(self, weight: Any, /) -> PackedWeight:
        packed = self.inner.pack(self.inner.cut(weight, (..., self.crop.kernel_rows, self.crop.kernel_cols)))
        return replace(packed, stamp=self.stamp, data=packed)

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        return self.inner.fuses(x, weight.data, bias, residual)

    def rebuilt(self, change: Callable[[Problem], Problem], build: Callable[[Problem, str], Plan]) -> Plan:
        crop = self.crop._replace(problem=change(self.crop.problem))
        return replace(self, problem=change(self.problem), crop=crop, inner=self.inner.rebuilt(change, build))

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /, **options: Any) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        return self.inner.execute(self.inner.cut(x, self._index), weight.data, bias, **options)

    def ready(self, weight: PackedWeight, bias: Any = None, /) -> Callable[..., Any]:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        run, cut, index = self.inner.ready(weight.data, bias), self.inner.cut, self._index
        return lambda x, residual=None: run(cut(x, index), residual)

    @property
    def _index(self) -> tuple[slice, ...]:
        """What of an image is left."""
        rows, cols, every = self.crop.rows, self.crop.cols, slice(None)
        return (every, rows, cols, every) if self.problem.layout == "NHWC" else (every, every, rows, cols)


def planned(
    p: Problem, candidates: Callable[[Problem], Sequence[Candidate]], build: Callable[[Problem, str], Plan]
) -> Plan:
    """The plan of the cheapest engine for what is left of a problem that no user has put, such as a gradient's."""
    if (crop := cropped(p)) is not None:
        return CroppedPlan.of(p, crop, planned(crop.problem, candidates, build))
    return build(p, min(candidates(p), key=lambda c: (c.why_not is not None, c.seconds)).engine)
