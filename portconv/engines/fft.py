"""Convolution by fast Fourier transforms, overlap-save in blocks.

The image is cut into overlapping tiles. A tile's transform times the conjugate of the kernel's is the transform of
their circular cross-correlation, of which the part that does not wrap around is a block of the result. Transforms are
real (`rfftn`), so float32 stays float32 and nothing is computed twice. A stride makes the phases of the image into
channels (`taps.py`); a dilation is a kernel stuffed with zeros.

The error follows the largest pixels and weights of a tile, also where these meet no large weight or pixel: it keeps the
normwise bound, not the elementwise one. What takes no part in the sum must not be in a tile, however large it is: taps
that meet only padding are cut away before (`cropped.py`), and pixels that no output reads, between the taps of a
dilated kernel or behind the last stride, are multiplied by zero.

Sources: Stockham, "High-speed convolution and correlation", AFIPS 1966 (overlap-save); Mathieu, Henaff, LeCun, "Fast
training of convolutional networks through FFTs", arXiv 1312.5851 (channels summed in the transform domain).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..core.backend import Candidate, EnginePlan, PackedWeight
from ..core.problem import Problem
from ..core.shapes import dilated, ranges
from . import gemm
from .accuracy import FREQUENCY_TERMS
from .costs import Costs
from .engine import Engine
from .overlap_save import Task, Tiling, seconds_of, tiling
from .steps import Block, Steps
from .taps import axis_phases, group_window, phase, phase_window

__all__ = ["ENGINE", "FftPlan", "NAME"]

NAME = "fft"
MAX_WORKSPACE_BYTES = 1 << 30  # beyond which the engine is not offered, unless the arrays are large themselves


def candidate(problem: Problem, steps: Steps, costs: Costs) -> Candidate:
    """The estimate, or why transforms cannot be trusted with the problem."""
    if not hasattr(steps.xp, "fft"):
        return Candidate(NAME, why_not="the library's namespace has no `fft` extension")
    if problem.accuracy == "elementwise":
        return Candidate(
            NAME, why_not="its error depends on the largest values of a tile; accuracy='elementwise' excludes that"
        )
    if problem.traced:
        return Candidate(
            NAME, why_not="while tracing it cannot see, and keep in its place, an input that is not finite"
        )
    t = tiling(problem, costs, steps.workspace_bytes)
    if (needed := _needed_bytes(problem, t)) > _budget(problem):
        return Candidate(NAME, why_not=f"its transforms would take {needed >> 20} MiB of scratch memory")
    return Candidate(NAME, seconds_of(problem, t, costs), t.workspace_bytes, note=f"tiles {t.size[0]}x{t.size[1]}")


def _needed_bytes(p: Problem, t: Tiling) -> int:
    """The workspace, with the copies that a stride and a dilation take: a window of all phases, a kernel with zeros."""
    (bh, bw), (sh, sw) = t.size, p.stride
    window = bh * bw * sh * sw * t.groups * t.inputs * t.batch * t.tiles
    (kh, kw), (dh, dw) = p.kernel, p.dilation
    weights = p.out_channels * (p.in_channels // p.groups) if t.transformed else t.groups * t.outputs * t.inputs
    stuffed = weights * (dilated(kh, dh) + sh) * (dilated(kw, dw) + sw)
    strided, apart = p.stride != (1, 1), p.dilation != (1, 1)
    return t.workspace_bytes + p.itemsize * (window * strided + stuffed * (strided or apart))


def _budget(p: Problem) -> int:
    """What may be used: a gigabyte, or many times what the arrays themselves take where these are large."""
    weight = p.out_channels * (p.in_channels // p.groups) * p.kernel[0] * p.kernel[1]
    arrays = p.batch * p.in_channels * p.height * p.width + weight + math.prod(p.out_shape)
    return max(MAX_WORKSPACE_BYTES, 16 * p.itemsize * arrays)


def build(problem: Problem, steps: Steps, costs: Costs) -> FftPlan:
    """Bind the engine to a problem."""
    t = tiling(problem, costs, steps.workspace_bytes)
    return FftPlan(problem, NAME, t.workspace_bytes, steps=steps, tiling=t, tasks=tuple(_tasks(problem, t)))


def _tasks(p: Problem, t: Tiling) -> Iterator[Task]:
    oh, ow = p.out_size
    rows, cols = range(0, oh, t.valid[0]), range(0, ow, t.valid[1])
    for groups in ranges(p.groups, t.groups):
        for outputs in ranges(p.out_channels // p.groups, t.outputs):
            for batch in ranges(p.batch, t.batch):
                for row in rows:
                    for some in ranges(len(cols), t.tiles):
                        yield Task(groups, outputs, batch, row, tuple(cols[some]))


class _Data(NamedTuple):
    # The spectrum; the weight itself, (G, O/G, I/G, kh, kw), where the spectrum is made in parts; None where no
    # transform can be trusted with the weight, and gemm does all the work.
    spectrum: Any
    exact: PackedWeight  # gemm's, for the tiles with values that are not finite


@dataclass(frozen=True, kw_only=True)
class FftPlan(EnginePlan):
    """See the module."""

    steps: Steps
    tiling: Tiling
    tasks: tuple[Task, ...] = ()

    @property
    def stamp(self) -> Hashable:
        t, p = self.tiling, self.problem
        return (
            NAME,
            self.steps.place,
            p.weight_shape,
            p.compute_dtype,
            p.stride,
            p.dilation,
            t.size,
            t.pointwise,
            t.transformed,
        )

    def pack(self, weight: Any, /) -> PackedWeight:
        steps, p, t = self.steps, self.problem, self.tiling
        exact = gemm.pack(weight, p, steps)
        weight = steps.xp.reshape(steps.cast(weight, p.compute_dtype), p.weight_shape)
        spectrum, nbytes = None, exact.nbytes
        if steps.transformable(weight, p.compute_dtype):
            spectrum = self._spectrum(weight) if t.transformed else steps.keep(weight)
            nbytes += t.spectrum_bytes if t.transformed else exact.nbytes
            if not steps.all_finite(spectrum):
                spectrum = None
        return PackedWeight(self.stamp, _Data(spectrum, exact), nbytes)

    def _spectrum(self, weight: Any) -> Any:
        """Conjugate transform of (g, o, i, kh, kw): (g, o, i * phases, Fh, Fw), or frequencies first for products."""
        steps, p, t = self.steps, self.problem, self.tiling
        xp = steps.xp
        g, o, i = weight.shape[:3]
        parts = steps.contiguous(_phase_kernels(weight, p, t, steps))
        spectrum = xp.conj(xp.fft.rfftn(parts, s=t.size, axes=(-2, -1)))
        spectrum = xp.reshape(spectrum, (g, o, i * len(t.phases), *spectrum.shape[-2:]))
        return spectrum if t.pointwise else steps.contiguous(xp.permute_dims(spectrum, (3, 4, 0, 1, 2)))

    def _weight_spectrum(self, data: _Data, task: Task, inputs: slice) -> Any:
        depth = len(self.tiling.phases)
        if not self.tiling.transformed:
            return self._spectrum(data.spectrum[task.groups, task.outputs, inputs, :, :])
        terms = slice(inputs.start * depth, inputs.stop * depth)
        if self.tiling.pointwise:
            return data.spectrum[task.groups, task.outputs, terms, :, :]
        return data.spectrum[:, :, task.groups, task.outputs, terms]

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, steps, t = self.problem, self.steps, self.tiling
        x = steps.cbhw(x, p.layout)
        data: _Data = weight.data

        def compute(task: Task) -> Iterator[tuple[Block, Any]]:
            images = task.batch.stop - task.batch.start
            value = None if data.spectrum is None else self._tiles(x, data, task)
            for n, col in enumerate(task.cols):
                block = _block(p, t, task, col)
                part = None if value is None else value[:, n * images : (n + 1) * images, ...]
                # An input that is not finite reaches every output of the tile; an overflow within the transforms, some
                # of them.
                if part is None or not steps.all_finite(part):
                    yield from gemm.values(x, data.exact.data, block, p, steps)
                else:
                    yield block, part[:, :, : block.rows.stop - block.rows.start, : block.cols.stop - block.cols.start]

        return steps.assemble(p, bias, self.tasks, compute, residual=residual, out=out, parallel=t.parallel)

    def _tiles(self, x: Any, data: _Data, task: Task) -> Any:
        """The circular correlations of a task's tiles, (O, tiles * B, valid rows, valid columns)."""
        p, steps, t, xp = self.problem, self.steps, self.tiling, self.steps.xp
        group_inputs = p.in_channels // p.groups

        def terms() -> Iterator[tuple[Any, Any]]:
            for inputs in ranges(group_inputs, t.inputs):
                weight = self._weight_spectrum(data, task, inputs)
                image = self._image_spectrum(x, task, inputs)
                count = image.shape[1]
                if t.pointwise:
                    for k in range(count):
                        yield image[:, None, k, ...], weight[:, :, k, None, ...]
                else:
                    image = steps.contiguous(xp.permute_dims(image, (3, 4, 0, 1, 2)))
                    for part in ranges(count, -(-count // -(-count // FREQUENCY_TERMS))):
                        yield weight[..., part], image[..., part, :]

        spectrum = steps.sum_of_products(terms(), "multiply" if t.pointwise else "matmul")
        if not t.pointwise:
            spectrum = steps.contiguous(xp.permute_dims(spectrum, (2, 3, 4, 0, 1)))
        spectrum = xp.reshape(spectrum, (-1, *spectrum.shape[2:]))
        return xp.fft.irfftn(spectrum, s=t.size, axes=(-2, -1))[:, :, : t.valid[0], : t.valid[1]]

    def _image_spectrum(self, x: Any, task: Task, inputs: slice) -> Any:
        """Transforms of a task's tiles, (g, i * phases, tiles * B, Fh, Fw)."""
        p, steps, t, xp = self.problem, self.steps, self.tiling, self.steps.xp
        bh, bw = t.size
        windows = []
        for col in task.cols:
            rows, cols = phase_window(p, _block(p, t, task, col), bh, bw)
            window = group_window(x, task.groups, inputs, task.batch, rows, cols, p, steps)
            for axis, part in enumerate((rows, cols)):
                if (mask := _mask(p, axis, part.start, part.stop)) is not None:
                    factors = xp.asarray(mask, dtype=window.dtype, **steps.device)
                    window = window * (factors[:, None] if axis == 0 else factors)
            windows.append(window)
        window = windows[0] if len(windows) == 1 else xp.concat(windows, axis=2)
        views = [phase(window, p.stride, which) for which in t.phases]
        stack = views[0] if len(views) == 1 else xp.stack(views, axis=2)
        stack = xp.reshape(stack, (window.shape[0], window.shape[1] * len(views), window.shape[2], bh, bw))
        return xp.fft.rfftn(stack, s=t.size, axes=(-2, -1))


@lru_cache(maxsize=512)
def _mask(p: Problem, axis: int, start: int, stop: int) -> tuple[float, ...] | None:
    """Factors for a window's rows or columns: 0 where no output reads them; None if all ones would do.

    Rows and columns count from the first pixel, as those of `Steps.window`.
    """
    stride, dilation, kernel = p.stride[axis], p.dilation[axis], p.kernel[axis]
    if stride == dilation == 1:
        return None
    size, before, after = (p.height, p.width)[axis], p.padding[2 * axis], p.padding[2 * axis + 1]
    outputs = p.out_size[axis]
    read = bytearray(max((outputs - 1) * stride + dilated(kernel, dilation), size + before + after))
    for tap in range(kernel):
        first = tap * dilation
        read[first : first + (outputs - 1) * stride + 1 : stride] = b"\1" * outputs
    used = set(axis_phases(kernel, stride, dilation))
    mask, needed = [], False
    for u in range(start + before, stop + before):
        inside = min(u, size + before + after - 1)  # beyond it a window repeats its last element, or has zeros
        mask.append(float(read[inside]))
        if not read[inside] and (u - start - before) % stride in used:
            needed = needed or p.padding_mode != "zeros" or before <= u < before + size
    return tuple(mask) if needed else None


def _block(p: Problem, t: Tiling, task: Task, col: int) -> Block:
    oh, ow = p.out_size
    group_outputs = p.out_channels // p.groups
    first = task.groups.start * group_outputs + task.outputs.start
    count = (task.groups.stop - task.groups.start) * (task.outputs.stop - task.outputs.start)
    rows, cols = slice(task.row, min(task.row + t.valid[0], oh)), slice(col, min(col + t.valid[1], ow))
    return Block(slice(first, first + count), task.batch, rows, cols)


def _phase_kernels(weight: Any, p: Problem, t: Tiling, steps: Steps) -> Any:
    """The kernel as its phases see it: (g, o, i, phases, rows, cols), zeros between dilated taps."""
    xp = steps.xp
    for axis, (dilation, stride) in enumerate(zip(p.dilation, p.stride, strict=True), start=3):
        weight = _stuff(weight, axis, dilation, steps)
        short = -weight.shape[axis] % stride
        weight = _append_zeros(weight, axis, short, steps)
    g, o, i, height, width = weight.shape
    (sh, sw), (rows, cols) = p.stride, (height // p.stride[0], width // p.stride[1])
    split = xp.permute_dims(xp.reshape(weight, (g, o, i, rows, sh, cols, sw)), (0, 1, 2, 4, 6, 3, 5))
    return xp.stack([split[:, :, :, a, b, :, :] for a, b in t.phases], axis=3)


def _stuff(weight: Any, axis: int, dilation: int, steps: Steps) -> Any:
    """`dilation - 1` zeros after every tap but the last."""
    if dilation == 1:
        return weight
    shape = weight.shape
    apart = steps.xp.reshape(weight, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    apart = _append_zeros(apart, axis + 1, dilation - 1, steps)
    stuffed = steps.xp.reshape(apart, (*shape[:axis], shape[axis] * dilation, *shape[axis + 1 :]))
    keep = dilation * (shape[axis] - 1) + 1
    return stuffed[..., :keep, :] if axis == 3 else stuffed[..., :keep]


def _append_zeros(weight: Any, axis: int, count: int, steps: Steps) -> Any:
    if count == 0:
        return weight
    shape = [count if a == axis else size for a, size in enumerate(weight.shape)]
    return steps.xp.concat([weight, steps.zeros(tuple(shape), weight.dtype)], axis=axis)


ENGINE = Engine(NAME, candidate, build)
