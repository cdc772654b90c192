"""The path of a call: which library, what its arrays are, the plan, and the packed weight."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

from ..core import hints
from ..core.array_types import library_of
from ..core.backend import ArrayInfo, Backend, PackedWeight, Plan
from ..core.errors import no_array
from ..core.problem import Problem
from . import packing, planner, registry
from .arguments import Conv2dSpec, make_problem
from .transposed import ConvTranspose2dSpec, make_transposed_problem

__all__ = [
    "check_out",
    "described",
    "forget_plans",
    "info_of",
    "packed",
    "plan_for",
    "plan_of",
    "prepared",
    "result_like",
]


def prepared(
    spec: Conv2dSpec, x: Any, weight: Any, bias: Any, backend: Any = None, out: Any = None, residual: Any = None
) -> tuple[Plan, PackedWeight]:
    """How these arrays are convolved, after every check, and the weight packed for it: from the cache if it may be."""
    library, plan = plan_for(spec, x, weight, bias, backend, residual)
    if out is not None:
        check_out(library, plan, out, x, weight, bias, residual)
    return plan, packed(library, plan, weight)


def packed(library: Backend, plan: Plan, weight: Any) -> PackedWeight:
    """The weight packed for a plan: from the cache if it may be."""
    if plan.problem.traced:  # what is made from, or among, traced values belongs to the trace and must not outlive it
        return plan.pack(weight)
    token: Hashable | packing.Values | None = library.cache_token(weight)
    if token is None:
        shown: Any = getattr(library, "shown", None)
        memory = None if shown is None else shown(weight)
        token = None if memory is None else packing.Values.of(memory)
    return plan.pack(weight) if token is None else packing.packs.get(weight, token, plan)


def plan_for(
    spec: Conv2dSpec, x: Any, weight: Any, bias: Any, backend: Any = None, residual: Any = None
) -> tuple[Backend, Plan]:
    """The backend that convolves these arrays, and how, after every check."""
    library = registry.resolve(x, backend)
    arguments = [("x", x), ("weight", weight)] + ([] if bias is None else [("bias", bias)])
    if residual is None:
        return library, plan_of(spec, library, *described(library, arguments))
    *infos, last = described(library, [*arguments, ("residual", residual)])
    return library, plan_of(spec, library, *infos, residual=last)


def described(library: Backend, arguments: Sequence[tuple[str, Any]]) -> list[ArrayInfo]:
    """What the library says of named arguments, which must all be its arrays, on one device.

    A complaint of the library's gets the argument's name.
    """
    infos: list[ArrayInfo] = []
    for name, array in arguments:
        first, sample = arguments[0]
        if type(array) is not type(sample):
            _check_library(first, sample, name, array)
        try:
            info = library.describe(array)
        except (TypeError, ValueError) as error:
            raise _named(error, name) from None
        infos.append(info)
        if info.device != infos[0].device and not (info.traced or infos[0].traced):
            raise ValueError(
                f"`{first}` is on the device {infos[0].device}, but `{name}` is on {info.device}. Move one of them."
            )
    return infos


def info_of(library: Backend, name: str, array: Any) -> ArrayInfo:
    """What the library says of a single one."""
    try:
        return library.describe(array)
    except (TypeError, ValueError) as error:
        raise _named(error, name) from None


def _named(error: Exception, name: str) -> Exception:
    return type(error)(f"`{name}`: {error}")


def _check_library(first: str, sample: Any, name: str, array: Any) -> None:
    mine, other = library_of(sample), library_of(array)
    if other is None:
        raise no_array(name, array)
    if mine != other:
        raise TypeError(
            f"`{first}` is an array of {mine}, but `{name}` is one of {other}. portconv moves no data unasked: "
            f"convert one of them, as by {hints.conversion(first, mine, name, other)}."
        )


@lru_cache(maxsize=4096)
def plan_of(
    spec: Conv2dSpec,
    library: Backend,
    x: ArrayInfo,
    weight: ArrayInfo,
    bias: ArrayInfo | None = None,
    residual: ArrayInfo | None = None,
) -> Plan:
    """The plan for arrays like these, by the engine or the strategy that the user asked for, after every check."""
    dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
    traced = any(info is not None and info.traced for info in (x, weight, bias, residual))
    sizes = x.shape, weight.shape, None if bias is None else bias.shape
    added = None if residual is None else (residual.shape, residual.dtype)
    problem = _problem(spec, *sizes, dtypes, x.device, traced, added)
    if spec.strategy == "measure":
        from . import measurement  # only who measures needs it

        return planner.plan(library, problem, spec.engine, measurement.fastest)
    return planner.plan(library, problem, spec.engine)


def _problem(spec: Conv2dSpec, *sizes: Any) -> Problem:
    """`make_problem`, or that of transposed convolutions."""
    if isinstance(spec, ConvTranspose2dSpec):
        return make_transposed_problem(spec, *sizes)
    return make_problem(spec, *sizes)


def result_like(spec: Conv2dSpec, x: ArrayInfo, weight: ArrayInfo) -> ArrayInfo:
    """What an array like the result would be, of the dtype of the weight."""
    problem = _problem(spec, x.shape, weight.shape, None, (x.dtype, weight.dtype, None), x.device)
    return ArrayInfo(problem.out_shape, weight.dtype, x.device)


def check_out(
    library: Backend, plan: Plan, out: Any, x: Any, weight: Any, bias: Any = None, residual: Any = None
) -> None:
    """Whether `out` can become the result: an array of the library's, like the result, that shares no memory."""
    check = getattr(library, "check_out", None)
    if check is None:
        raise TypeError(
            f"`out` is for arrays of NumPy and PyTorch. The backend {library.name!r} gives new results only."
        )
    described(library, [("x", x), ("out", out)])
    check(out, plan.problem, {"x": x, "weight": weight, "bias": bias, "residual": residual})


def forget_plans() -> None:
    """Plan anew, and measure anew, from the next call on: where what plans depend on has changed."""
    from . import measurement

    plan_of.cache_clear()
    measurement.fastest.cache_clear()
