"""Gradients of a convolution, on NumPy arrays: of the image by convolutions, of the weight by matrix products.

`engines.transposed` says which convolutions the gradient of the image is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..core.backend import Plan
from ..core.problem import Problem
from ..core.shapes import axis_source, ranges
from ..engines.accuracy import TERMS, accumulate
from ..engines.cropped import CroppedPlan, cropped
from ..engines.transposed import Phase, gradient_size, image_gradient_phases
from .bridge import host_candidates, numpy_plan, numpy_steps

__all__ = ["bias_gradient", "image_gradient", "in_pairs", "weight_gradient"]

Array = np.ndarray[Any, Any]

BLOCK_ELEMENTS = 1 << 19  # of the windows that are multiplied at a time


def image_gradient(p: Problem, weight: Array, dy: Array) -> Array:
    """Of ``sum(dy * conv2d(x, weight))`` with respect to the image, in the problem's layout and dtype.

    Parameters
    ----------
    p
        The convolution.
    weight
        OIHW or (G, O/G, I/G, kh, kw).
    dy
        The cotangent of the result, in the problem's layout.
    """
    folded = p.padding_mode != "zeros" and any(p.padding)  # of copies in the border everything counts, of zeros nothing
    whole = replace(p, layout="NCHW", dtype=p.compute_dtype if folded else p.dtype, out_dtype=None)
    dy = dy if p.layout == "NCHW" else dy.transpose(0, 3, 1, 2)
    weight = weight.reshape(p.weight_shape)
    phases = list(image_gradient_phases(whole, dy.dtype.name, folded))
    if phases and p.stride == (1, 1):
        dx = _of_phase(phases[0], weight, dy)
    else:
        dx = np.zeros((p.batch, p.in_channels, *gradient_size(p, folded)), whole.dtype)
        for phase in phases:
            dx[:, :, phase.rows.target, phase.cols.target] = _of_phase(phase, weight, dy)
    if folded:
        top, bottom, left, right = p.padding
        dx = _fold(_fold(dx, p.height, top, bottom, p.padding_mode, 2), p.width, left, right, p.padding_mode, 3)
        dx = dx.astype(p.dtype, copy=False)
    return dx if p.layout == "NCHW" else dx.transpose(0, 2, 3, 1)


def _of_phase(phase: Phase, weight: Array, dy: Array) -> Array:
    """The part of the image's gradient that a phase fills; all in NCHW."""
    plan = _plan(phase.problem)
    taps = weight[..., phase.rows.taps, phase.cols.taps][..., ::-1, ::-1].swapaxes(1, 2)
    value: Array = plan.execute(dy[:, :, phase.rows.source, phase.cols.source], plan.pack(taps))
    return value


def _fold(dx: Array, size: int, before: int, after: int, mode: str, axis: int) -> Array:
    """Add what copies in the border have gathered to the elements that they are copies of."""
    by_axis = np.moveaxis(dx, axis, 0)
    inner = by_axis[before : before + size]
    source = axis_source(slice(-before, size + after), size, before, after, mode)
    for border, origins in ((by_axis[:before], source.lead), (by_axis[before + size :], source.trail)):
        for row, origin in zip(border, origins, strict=True):
            inner[origin] += row
    return np.moveaxis(inner, 0, axis)


@lru_cache(maxsize=256)
def _plan(problem: Problem) -> Plan:
    if (crop := cropped(problem)) is not None:
        return CroppedPlan.of(problem, crop, _plan(crop.problem))
    best = min(host_candidates(problem), key=lambda c: (c.why_not is not None, c.seconds))
    return numpy_plan(problem, best.engine)


def weight_gradient(p: Problem, x: Array, dy: Array) -> Array:
    """Of ``sum(dy * conv2d(x, weight))`` with respect to the weight, (G, O/G, I/G, kh, kw) in the problem's dtype."""
    if p.batch == 0:
        return np.zeros(p.weight_shape, p.dtype)
    steps, (g, o, i, kh, kw) = numpy_steps(), p.weight_shape
    padded = steps.padded(steps.cbhw(x, p.layout), p)
    cotangent = steps.cast(steps.cbhw(dy, p.layout), p.compute_dtype)
    with steps.quiet():
        value: Array = accumulate(_products(p, padded, cotangent))
        return value.reshape(g, o, kh, kw, i).transpose(0, 1, 4, 2, 3).astype(p.dtype)


def _products(p: Problem, padded: Array, dy: Array) -> Iterator[Array]:
    """Terms (G, O/G, taps * I/G), of so few positions each that their sums keep the bound."""
    (oh, ow), (kh, kw), (sh, sw), (dh, dw) = p.out_size, p.kernel, p.stride, p.dilation
    g, o, i, *_ = p.weight_shape
    terms = TERMS[p.accuracy]
    positions = max(terms, BLOCK_ELEMENTS // (p.in_channels * kh * kw))
    images, rows = max(1, positions // (oh * ow)), min(oh, max(1, positions // ow))
    for some in ranges(p.batch, images):
        for strip in ranges(oh, rows):
            height = strip.stop - strip.start
            windows = np.empty((g, kh, kw, i, some.stop - some.start, height, ow), padded.dtype)
            for r in range(kh):
                top = strip.start * sh + r * dh
                lines = slice(top, top + (height - 1) * sh + 1, sh)
                for c in range(kw):
                    cells = slice(c * dw, c * dw + (ow - 1) * sw + 1, sw)
                    windows[:, r, c] = padded[:, some, lines, cells].reshape(g, i, -1, height, ow)
            factors = dy[:, some, strip].reshape(g, o, -1)
            windows = windows.reshape(g, kh * kw * i, -1)
            for part in ranges(windows.shape[-1], terms):
                yield factors[..., part] @ windows[..., part].swapaxes(1, 2)


def bias_gradient(p: Problem, dy: Array) -> Array:
    """Of ``sum(dy * y)`` with respect to the bias, (O,) in the problem's dtype."""
    axes = (0, 2, 3) if p.layout == "NCHW" else (0, 1, 2)
    if p.dtype != "float64":  # the rounding errors of the wider sum do not show
        return np.asarray(dy.sum(axis=axes, dtype=np.float64).astype(p.dtype))
    if p.batch == 0:
        return np.zeros(p.out_channels, p.dtype)
    images = dy.transpose(0, 2, 3, 1) if p.layout == "NCHW" else dy
    return np.asarray(accumulate(in_pairs(image.reshape(-1, p.out_channels)) for image in images))


def in_pairs(terms: Any) -> Any:
    """Sum along the first axis of an array of any library, in pairs: one after the other, errors would add up."""
    rest: list[Any] = []
    while (half := terms.shape[0] // 2) > 0:
        if terms.shape[0] % 2:
            rest.append(terms[-1])
        terms = terms[:half] + terms[half : 2 * half]
    return sum(reversed(rest), terms[0])
