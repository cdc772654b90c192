"""Gradients of a convolution in the array API: of the image by convolutions, of the weight by products.

`transposed` says which convolutions the gradient of the image is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from ..core.backend import EnginePlan, Plan
from ..core.layout import NCHW_FROM_NHWC, NHWC_FROM_NCHW
from ..core.problem import Problem, TransposedProblem
from ..core.shapes import axis_source, ranges
from .accuracy import TERMS, in_pairs, summed
from .phases import assembled, common_engine, packed, part
from .steps import Steps
from .transposed import Phase, gradient_size, image_gradient_phases, image_gradient_problem

__all__ = ["bias_gradient", "image_gradient", "image_gradient_plans", "weight_gradient"]

BLOCK_ELEMENTS = 1 << 22  # of the products of parts of a sum that are alive at a time
FEW = 8  # copies that are added one after the other


AtOnce: TypeAlias = Callable[[TransposedProblem, str], EnginePlan | None]


def image_gradient(
    p: Problem,
    weight: Any,
    dy: Any,
    steps: Steps,
    plan: Callable[[Problem], Plan],
    dy_dtype: str | None = None,
    at_once: AtOnce | None = None,
) -> Any:
    """Of ``sum(dy * conv2d(x, weight))`` with respect to the image, in the problem's layout and dtype.

    Parameters
    ----------
    p
        The convolution.
    weight
        OIHW or (G, O/G, I/G, kh, kw).
    dy
        The cotangent of the result, in the problem's layout.
    steps
        Those of the library's arrays.
    plan
        Gives the plan of a convolution.
    dy_dtype
        The dtype of the cotangent, by default the problem's.
    at_once
        Gives the plan of all these convolutions together, of an engine that each of them would have, if there is one.
    """
    xp = steps.xp
    whole, folded = _in_planes(p)
    dy = dy if p.layout == "NCHW" else xp.permute_dims(dy, NCHW_FROM_NHWC)
    weight = xp.reshape(weight, p.weight_shape)
    phases, together = _plans(whole, dy_dtype or p.dtype, folded, plan, at_once)
    if together is not None:
        dx = together.execute(dy, together.pack(weight))
    else:
        parts = [
            (phase, chosen.execute(part(phase, dy), packed(phase, chosen, weight, steps))) for phase, chosen in phases
        ]
        shape = (p.batch, p.in_channels, *gradient_size(p, folded))
        dx = assembled(parts, shape, whole.dtype, steps)
    if folded:
        top, bottom, left, right = p.padding
        with steps.quiet():
            dx = _folded(dx, p.height, top, bottom, p.padding_mode, 2, steps)
            dx = _folded(dx, p.width, left, right, p.padding_mode, 3, steps)
        dx = steps.cast(dx, p.dtype)
    return dx if p.layout == "NCHW" else xp.permute_dims(dx, NHWC_FROM_NCHW)


def image_gradient_plans(p: Problem, plan: Callable[[Problem], Plan], at_once: AtOnce | None = None) -> list[Plan]:
    """The plans by which `image_gradient` computes, for a cotangent of the problem's dtype."""
    whole, folded = _in_planes(p)
    phases, together = _plans(whole, p.dtype, folded, plan, at_once)
    return [chosen for _, chosen in phases] if together is None else [together]


def _plans(
    whole: Problem, dy_dtype: str, folded: bool, plan: Callable[[Problem], Plan], at_once: AtOnce | None
) -> tuple[list[tuple[Phase, Plan]], EnginePlan | None]:
    """Those of the phases, and one of all together, if there is."""
    phases = [(phase, plan(phase.problem)) for phase in image_gradient_phases(whole, dy_dtype, folded)]
    engine = common_engine([chosen for _, chosen in phases])
    if at_once is None or engine is None:
        return phases, None
    return phases, at_once(image_gradient_problem(whole, dy_dtype, folded), engine)


def _in_planes(p: Problem) -> tuple[Problem, bool]:
    """The problem whose phases are computed, and whether the gradient of its border is folded into the image's."""
    folded = p.padding_mode != "zeros" and any(p.padding)  # of copies in the border everything counts, of zeros nothing
    return replace(p, layout="NCHW", dtype=p.compute_dtype if folded else p.dtype, out_dtype=None), folded


def _folded(dx: Any, size: int, before: int, after: int, mode: str, axis: int, steps: Steps) -> Any:
    """What copies in the border have gathered, added to the elements that they are copies of."""
    xp = steps.xp
    source = axis_source(slice(-before, size + after), size, before, after, mode)
    copies: dict[int, list[int]] = {}  # of an element, in the border
    for start, origins in ((0, source.lead), (before + size, source.trail)):
        for n, origin in enumerate(origins):
            assert origin is not None  # zeros have no gradient, and are not folded
            copies.setdefault(origin, []).append(start + n)
    dx = xp.moveaxis(dx, axis, 0)
    inner = dx[before : before + size, ...]
    sums = {n: _gathered(dx, [before + n, *places], steps) for n, places in copies.items()}
    if steps.writable:
        for n, total in sums.items():
            inner[n, ...] = total
    elif sums:
        pieces, done = [], 0
        for n in [*sorted(sums), size]:
            if n > done:
                pieces.append(inner[done:n, ...])
            if n < size:
                pieces.append(sums[n][None, ...])
            done = n + 1
        inner = steps.contiguous(xp.concat(pieces, axis=0))
    return xp.moveaxis(inner, 0, axis)


def _gathered(dx: Any, places: list[int], steps: Steps) -> Any:
    """The sum of elements of the first axis: one that is replicated has as many copies as there is padding."""
    if len(places) <= FEW:
        first, *rest = places
        return sum((dx[n, ...] for n in rest), dx[first, ...])
    return in_pairs(steps.xp.take(dx, steps.xp.asarray(places, **steps.device), axis=0))


def weight_gradient(p: Problem, x: Any, dy: Any, steps: Steps) -> Any:
    """Of ``sum(dy * conv2d(x, weight))`` with respect to the weight, (G, O/G, I/G, kh, kw) in the problem's dtype."""
    xp, (g, o, i, kh, kw), terms = steps.xp, p.weight_shape, TERMS[p.accuracy]
    if p.batch == 0:
        return steps.zeros(p.weight_shape, steps.dtype(p.dtype))
    (oh, ow), (sh, sw), (dh, dw) = p.out_size, p.stride, p.dilation
    positions = p.batch * oh * ow
    parts = -(-positions // terms)

    def in_parts(values: Any, channels: int) -> Any:
        """(parts, G, channels, terms), the last part with zeros at its end."""
        flat = xp.reshape(steps.contiguous(values), (g, channels, positions))
        if rest := parts * terms - positions:
            flat = xp.concat([flat, steps.zeros((g, channels, rest), flat.dtype)], axis=2)
        return xp.permute_dims(xp.reshape(steps.contiguous(flat), (g, channels, parts, terms)), (2, 0, 1, 3))

    padded = steps.padded(steps.cbhw(x, p.layout), p)
    factors = in_parts(steps.cast(steps.cbhw(dy, p.layout), p.compute_dtype), o)
    some = max(1, BLOCK_ELEMENTS // (g * o * i))

    def of_tap(r: int, c: int) -> Any:
        rows = slice(r * dh, r * dh + (oh - 1) * sh + 1, sh)
        cols = slice(c * dw, c * dw + (ow - 1) * sw + 1, sw)
        windows = xp.permute_dims(in_parts(padded[:, :, rows, cols], i), (0, 1, 3, 2))
        products: Iterator[Any] = (
            in_pairs(xp.matmul(factors[part, ...], windows[part, ...])) for part in ranges(parts, some)
        )
        return summed(products)

    with steps.quiet():
        taps = xp.stack([of_tap(r, c) for r in range(kh) for c in range(kw)], axis=3)
    return steps.cast(xp.reshape(steps.contiguous(taps), p.weight_shape), p.dtype)


def bias_gradient(p: Problem, dy: Any, steps: Steps) -> Any:
    """Of ``sum(dy * y)`` with respect to the bias, (O,) in the problem's dtype."""
    if p.batch == 0:
        return steps.zeros((p.out_channels,), steps.dtype(p.dtype))
    by_channel = steps.contiguous(steps.cast(steps.cbhw(dy, p.layout), p.compute_dtype))
    with steps.quiet():
        flat = steps.xp.reshape(by_channel, (p.out_channels, -1))
        total = in_pairs(steps.contiguous(steps.xp.permute_dims(flat, (1, 0))), steps.xp.add)
    return steps.cast(total, p.dtype)
