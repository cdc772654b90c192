"""A problem that fails, made as small and as plain as it can be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np

from .problems import Problem, Shape, _default, fits

__all__ = ["shrink"]


def shrink(p: Problem, fails: Callable[[Problem], bool], seconds: float = 60.0) -> Problem:
    """A problem that still fails and has as little in it as was found in so many seconds.

    Parameters
    ----------
    p
        A problem that fails.
    fails
        Whether another one does.
    seconds
        After which the search ends.

    Examples
    --------
    >>> start = Problem((3, 8, 40, 50), (4, 8, 3, 3), {"padding": 1}, data="nan", orders=("F", "C", "C"))
    >>> shrink(start, lambda p: p.x_shape[3] >= 7)
    Problem((1, 1, 1, 7), (1, 1, 1, 1))
    """
    end = time.monotonic() + seconds
    again = True
    while again:
        again = False
        for simpler in _simpler(p):
            if time.monotonic() > end:
                return p
            if fits(simpler) and simpler != p and fails(simpler):
                p, again = simpler, True
                break
    return p


def _simpler(p: Problem) -> Iterator[Problem]:
    """Problems with one thing less in them, the large steps first."""
    for name in (
        "call",
        "gradient",
        "threads",
        "accuracy",
        "bias_dtype",
        "x_dtype",
        "out_dtype",
        "activation",
        "residual",
        "dtype",
        "data",
        "kernel",
    ):
        yield replace(p, **{name: _default(next(f for f in fields(p) if f.name == name))})
    yield replace(p, bias_shape=None, bias_dtype="")
    for place in range(3):
        yield replace(p, orders=tuple("C" if n == place else order for n, order in enumerate(p.orders)))  # type: ignore[arg-type]
    for name in p.arguments:
        if name != "groups":
            yield replace(p, arguments={key: value for key, value in p.arguments.items() if key != name})
    yield from _smaller(p)


def _smaller(p: Problem) -> Iterator[Problem]:
    n, _, *size = p.x_shape
    parts = p.parts
    for new in (1, n // 2, n - 1):
        if 0 < new < n:
            yield replace(p, x_shape=(new, *p.x_shape[1:]))
    for place, value in enumerate(parts[:3]):  # groups, outputs and inputs of each
        for new in (1, value // 2, value - 1):
            if 0 < new < value:
                yield _with(p, (*parts[:place], new, *parts[place + 1 :]), size)
    for axis in range(2):
        for less in (size[axis] // 2, size[axis] // 8, 1):
            if 0 < less < size[axis]:
                yield _with(p, parts, [s - less * (a == axis) for a, s in enumerate(size)])
        taps = parts[3 + axis]
        for fewer in (1, taps // 2, taps - 1):
            if 0 < fewer < taps:
                yield _with(p, (*parts[: 3 + axis], fewer, *parts[4 + axis :]), size)
    yield from _plainer(p)


def _plainer(p: Problem) -> Iterator[Problem]:
    """Smaller strides, dilations and paddings."""
    for name in ("stride", "dilation", "padding"):
        value = p.arguments.get(name)
        if isinstance(value, tuple) and not np.ndim(value[0]):
            for axis in range(2):
                for new in (name != "padding", value[axis] // 2, value[axis] - 1):
                    if (name != "padding") <= new < value[axis]:
                        pair = tuple(int(new) if a == axis else v for a, v in enumerate(value))
                        yield replace(p, arguments={**p.arguments, name: pair})
        elif isinstance(value, tuple):
            for place in range(4):
                flat = [side for sides in value for side in sides]
                for less in (0, flat[place] // 2, flat[place] - 1):
                    if 0 <= less < flat[place]:
                        a, b, c, d = (less if n == place else side for n, side in enumerate(flat))
                        yield replace(p, arguments={**p.arguments, name: ((a, b), (c, d))})


def _with(p: Problem, parts: tuple[int, ...], size: list[int]) -> Problem:
    """The problem with other sizes of the weight, and of the image."""
    groups, outputs, inputs, kh, kw = parts
    weight: Shape = (groups, outputs, inputs, kh, kw)
    if groups == 1 or len(p.weight_shape) == 4:
        weight = (groups * outputs, inputs, kh, kw)
    arguments = {name: value for name, value in p.arguments.items() if name != "groups"}
    if groups > 1:
        arguments["groups"] = groups
    total = groups * outputs
    bias = None if p.bias_shape is None else (total,) if len(p.bias_shape) == 1 else (1, total, 1, 1)
    return replace(
        p, x_shape=(p.x_shape[0], groups * inputs, *size), weight_shape=weight, bias_shape=bias, arguments=arguments
    )
