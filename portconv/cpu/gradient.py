"""Gradients of a convolution on NumPy's memory: of the image by NumPy's engines, of the weight by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..core.backend import Backend, PackedWeight, Plan, Pullback, Wanted
from ..core.epilogue import Epilogue
from ..core.problem import Problem, TransposedProblem
from ..core.shapes import ranges
from ..engines import gradients
from ..engines.accuracy import TERMS, accumulate, in_pairs
from ..engines.cropped import planned
from .bridge import bridged, host_candidates, jit_enabled, numpy_plan, numpy_steps, phases_at_once

__all__ = [
    "bias_gradient",
    "host_pullback",
    "host_vjp",
    "image_gradient",
    "in_pairs",
    "warmup_gradients",
    "weight_gradient",
]

Array = np.ndarray[Any, Any]

BLOCK_ELEMENTS = 1 << 19  # of the windows that are multiplied at a time


def host_vjp(
    library: Backend,
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    wanted: Wanted,
    pack: Callable[[], PackedWeight],
    *,
    take: Callable[..., Any] | None = None,
) -> tuple[Any, Pullback]:
    """The member `vjp` of a back end whose arrays NumPy can see.

    Parameters
    ----------
    library
        The back end itself.
    plan, x, weight, bias, wanted, pack
        As `vjp` gets them; see `portconv.extending.Backend`.
    take
        Makes the library's array of NumPy's, on the device of the plan's problem, of the dtype named by ``dtype=``. By
        default it is ``library.from_numpy``.
    """
    return plan.execute(x, pack(), bias), host_pullback(library, plan, x, weight, bias, wanted, take=take)


def host_pullback(
    library: Backend,
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    wanted: Wanted,
    *,
    take: Callable[..., Any] | None = None,
) -> Pullback:
    """The function of the cotangent alone, for those who have the result or need none; see `host_vjp`."""
    p = bridged(plan.problem)
    taken = take or partial(library.from_numpy, device=plan.problem.device or None)
    likes = [None if a is None else library.describe(a) for a in (x, weight, bias)]
    # what a gradient that is not wanted is made of is not kept alive
    seen_x: Any = library.to_numpy(x) if wanted[1] else None
    seen_weight: Any = library.to_numpy(weight) if wanted[0] else None

    def vjp(dy: Any) -> tuple[Any, Any, Any]:
        seen_dy = library.to_numpy(dy)
        dx = image_gradient(p, seen_weight, seen_dy) if wanted[0] else None
        dweight = weight_gradient(p, seen_x, seen_dy) if wanted[1] else None
        dbias = bias_gradient(p, seen_dy) if wanted[2] else None
        with numpy_steps().quiet():  # a gradient of another dtype than the result's may not have room in it
            found = [
                None if value is None or like is None else taken(value.reshape(like.shape), dtype=like.dtype)
                for value, like in zip((dx, dweight, dbias), likes, strict=True)
            ]
        return found[0], found[1], found[2]

    return vjp


def warmup_gradients(plan: Plan) -> tuple[str, ...]:
    """Compile ahead what the gradients of a plan's arguments need, or load it; the names of what had to be compiled.

    Nothing is computed. Plans of libraries that have no compiled engines have nothing to compile. A weight whose
    gradient is recorded is packed once, and may have another engine for that, which is compiled as well.

    Examples
    --------
    >>> import portconv
    >>> from portconv.extending import warmup_gradients
    >>> plan = portconv.plan_conv2d((0, 3, 9, 9), (8, 3, 3, 3))  # no image: nothing is needed
    >>> warmup_gradients(plan)
    ()
    """
    if not any(candidate.tier == "compiled" for candidate in plan.candidates):
        return ()
    p = plan.problem
    # the gradients of a transposed convolution are those of the one that it is the gradient of
    whole = bridged(
        p.convolution if isinstance(p, TransposedProblem) else replace(p, epilogue=Epilogue(), out_dtype=None)
    )
    plans = [_plan(whole), *gradients.image_gradient_plans(whole, _plan, phases_at_once)]
    if whole.batch and (compiled := _compiled(whole)) is not None:
        plans.append(compiled)
    return tuple(dict.fromkeys(name for some in plans for name in some.warmup()))


def image_gradient(p: Problem, weight: Array, dy: Array) -> Array:
    """As `engines.gradients.image_gradient`, by NumPy's engines."""
    found: Array = gradients.image_gradient(p, weight, dy, numpy_steps(), _plan, dy.dtype.name, phases_at_once)
    return found


@lru_cache(maxsize=256)
def _plan(problem: Problem) -> Plan:
    return planned(replace(problem, packed_once=True), host_candidates, numpy_plan)


def weight_gradient(p: Problem, x: Array, dy: Array) -> Array:
    """Of ``sum(dy * conv2d(x, weight))`` with respect to the weight, (G, O/G, I/G, kh, kw) in the problem's dtype."""
    if p.batch == 0:
        return np.zeros(p.weight_shape, p.dtype)
    steps, (g, o, i, kh, kw) = numpy_steps(), p.weight_shape
    if (compiled := _compiled(p)) is not None:
        with steps.quiet():
            found: Array = compiled.compute(x, dy)
            return found.astype(p.dtype, copy=False)
    padded = steps.padded(steps.cbhw(x, p.layout), p)
    cotangent = steps.cast(steps.cbhw(dy, p.layout), p.compute_dtype)
    with steps.quiet():
        value: Array = accumulate(_products(p, padded, cotangent))
        return value.reshape(g, o, kh, kw, i).transpose(0, 1, 4, 2, 3).astype(p.dtype)


def _compiled(p: Problem) -> Any:
    """The compiled form of the sums, if there is one."""
    if not jit_enabled():
        return None
    from .compiled.gradient.depthwise import CompiledDepthwiseGradient
    from .compiled.gradient.plan import CompiledWeightGradient

    return CompiledDepthwiseGradient.make(p) or CompiledWeightGradient.make(p)


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
    if p.batch == 0:
        return np.zeros(p.out_channels, p.dtype)
    with numpy_steps().quiet():
        if p.dtype != "float64":  # the rounding errors of the wider sum do not show
            return np.asarray(dy.sum(axis=axes, dtype=np.float64).astype(p.dtype))
        images = dy.transpose(0, 2, 3, 1) if p.layout == "NCHW" else dy
        return np.asarray(accumulate(in_pairs(image.reshape(-1, p.out_channels)) for image in images))
