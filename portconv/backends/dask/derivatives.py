"""Gradients of Dask's arrays: a task for each chunk of the batch, by the library of the chunks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import dask.array
from dask import delayed

from ...core.backend import PackedWeight, Plan, Pullback, Wanted
from ...core.problem import Problem
from ...engines.accuracy import summed
from . import operations
from .tasks import Inner

__all__ = ["value_and_pullback"]

Gradients = tuple[Any, Any, Any]


def value_and_pullback(
    inner: Inner, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, packed: PackedWeight
) -> tuple[Any, Pullback]:
    """The result, and the function of its cotangent; all of them are lazy.

    An image is whole in a task, since every weight meets all of it. The gradients of weight and bias are sums over the
    batch, of parts in the dtype of the computation.
    """
    p = plan.problem
    images = x.rechunk(dict.fromkeys((1, 2, 3), -1))
    one_weight, one_bias = weight.rechunk(-1), None if bias is None else bias.rechunk(-1)

    def pullback(dy: Any) -> Gradients:
        cotangents = dy.rechunk((images.chunks[0], -1, -1, -1))
        parts: list[list[Any]] = [[], [], []]
        for n, batch in enumerate(images.chunks[0]):
            x_part = images.blocks[n]
            task = delayed(_gradients, pure=True, nout=3)(
                inner, replace(p, batch=batch), wanted, x_part, one_weight, one_bias, cotangents.blocks[n]
            )
            for i, argument in enumerate((x_part, weight, bias)):
                if wanted[i]:
                    lazy = partial(dask.array.from_delayed, task[i], meta=argument._meta)
                    parts[i].append(lazy(argument.shape, dtype=p.compute_dtype))
        dx = operations.astype(dask.array.concatenate(parts[0]), x.dtype) if wanted[0] else None
        dweight = _total(parts[1], weight.dtype) if wanted[1] else None
        return dx, dweight, _total(parts[2], bias.dtype) if wanted[2] else None

    return plan.execute(x, packed, bias), pullback


def _total(parts: list[Any], dtype: Any) -> Any:
    """The sum of a gradient's parts, rounded once."""
    return operations.astype(summed(parts, operations.add), dtype)


def _gradients(inner: Inner, problem: Problem, wanted: Wanted, x: Any, weight: Any, bias: Any, dy: Any) -> Gradients:
    """Those of some images, in the dtype of the computation; None for those that are not wanted."""
    library: Any = inner.backend_of(x)
    x, weight, bias, dy = (None if a is None else a.astype(problem.compute_dtype) for a in (x, weight, bias, dy))
    wide = replace(
        problem, x_dtype=problem.compute_dtype, dtype=problem.compute_dtype, out_dtype=None,
        device=library.describe(x).device,
    )  # fmt: skip
    plan = inner.plan(library, wide, "auto")
    _, pullback = library.vjp(plan, x, weight, bias, wanted, partial(plan.pack, weight))
    dx, dweight, dbias = pullback(dy)
    return dx, dweight, dbias
