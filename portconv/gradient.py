"""Derivatives: `conv2d_vjp`, the convolution with the product of any cotangent with its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from .core.backend import Backend, PackedWeight, Plan, Pullback, Wanted
from .core.dtypes import FLOATING
from .core.epilogue import Epilogue
from .dispatch import path, planner
from .dispatch.arguments import normalised
from .engines.finished import FinishedPlan
from .engines.gradients import bias_gradient
from .engines.phases import TransposedPlan

if TYPE_CHECKING:
    from .core.words import Accuracy, ComputeMode, ConvMode, Layout, PaddingMode, Strategy
    from .signatures import ActivationLike, PaddingLike, Size

__all__ = ["checked_wrt", "conv2d_vjp", "value_and_gradients"]

ARGUMENTS = ("x", "weight", "bias", "residual")


def conv2d_vjp(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    padding_mode: PaddingMode = "zeros",
    layout: Layout = "NCHW",
    engine: str = "auto",
    accuracy: Accuracy = "normwise",
    strategy: Strategy = "heuristic",
    backend: Any = None,
    activation: ActivationLike = None,
    residual: Any = None,
    wrt: Sequence[str] | str | None = None,
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """`conv2d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    It works alike for the arrays of every library, NumPy's among them, and is what a framework without automatic
    differentiation trains by. Where a library differentiates by itself, `conv2d` within its own transformations does
    as well.

    The other arguments are those of `conv2d`; the engine is that of the result. There is no `out_dtype`: rounding to
    integers has no derivative.

    Parameters
    ----------
    wrt
        The arguments that gradients are wanted for, with respect to which is differentiated: ``"x"``, ``"weight"``,
        ``"bias"``, ``"residual"``, or several of them. The others cost nothing. None: all that are there and of a
        floating dtype.

    Returns
    -------
    y : array
        What `conv2d` returns.
    vjp : function
        ``vjp(dy) -> (dx, dweight, dbias)``, the gradients of ``sum(dy * y)``; with a `residual` its own comes fourth.
        Where an activation has a kink, its slope is that from the left. `dy` is an array of the shape, dtype,
        library and device of `y`. Each gradient has the shape and the dtype of its argument, and is rounded to it once;
        it is None where it is not wanted. `vjp` may be called any number of times, as long as the arguments have their
        values.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; for a `wrt` that names what is not there, or an image of integers; from `vjp` for a `dy` that does
        not match.

    Examples
    --------
    A step of gradient descent in NumPy, for the squared distance of a result from another one:

    >>> import numpy as np, portconv
    >>> x, weight = np.ones((1, 2, 5, 5), np.float32), np.full((4, 2, 3, 3), 0.1, np.float32)
    >>> y, vjp = portconv.conv2d_vjp(x, weight, padding=1, wrt="weight")
    >>> dx, dweight, dbias = vjp(2 * (y - 1))
    >>> dx is None, dweight.shape, dweight.dtype.name, dbias is None
    (True, (4, 2, 3, 3), 'float32', True)
    >>> after = portconv.conv2d(x, weight - 0.002 * dweight, padding=1)
    >>> bool(np.sum((after - 1) ** 2) < np.sum((y - 1) ** 2))
    True
    """
    spec = normalised(
        stride, padding, dilation, groups, conv_mode, compute_mode,
        padding_mode=padding_mode, layout=layout, engine=engine, accuracy=accuracy, strategy=strategy,
        activation=activation,
    )  # fmt: skip
    names = checked_wrt(wrt)
    library, plan = path.plan_for(spec, x, weight, bias, backend, residual)
    pack = partial(path.packed, library, plan, weight)
    return value_and_gradients(library, plan, (x, weight, bias, residual), names, pack)


def checked_wrt(wrt: Any) -> tuple[str, ...] | None:
    """The names of arguments that gradients are wanted for; None where the arrays decide."""
    if wrt is None:
        return None
    names, allowed = (wrt,) if isinstance(wrt, str) else wrt, "None, 'x', 'weight', 'bias' or 'residual'"
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`wrt` must be {allowed}, or several of these, but got {wrt!r}.")
    if not names or any(name not in ARGUMENTS for name in names):
        raise ValueError(f"`wrt` must be {allowed}, or several of these, but got {wrt!r}.")
    return tuple(names)


def value_and_gradients(
    library: Backend,
    plan: Plan,
    arrays: tuple[Any, Any, Any, Any],
    names: tuple[str, ...] | None,
    pack: Callable[[], PackedWeight],
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """The result of a plan for image, weight, bias and residual, and the function of the cotangent.

    `pack` gives the packed weight. A back end without derivatives of its own has them computed by NumPy.
    """
    x, weight, bias, residual = arrays
    *factors, of_residual = _wanted(plan, bias, residual, names)
    wanted = (factors[0], factors[1], factors[2])
    finished = plan if isinstance(plan, FinishedPlan) else None
    inner = plan if finished is None else finished.inner
    arguments = x, weight, bias, wanted, pack
    if isinstance(inner, TransposedPlan):
        sums, pullback = _transposed_vjp(library, inner, *arguments)
    else:
        sums, pullback = _vjp(library, inner, *arguments)
    y = sums if finished is None else finished.finisher.finished(sums, plan.problem, residual)
    info = library.describe(y)
    known = None if residual is None else library.describe(residual)

    def vjp(dy: Any) -> tuple[Any, ...]:
        (_, given) = path.described(library, [("y", y), ("dy", dy)])
        if given.shape != info.shape:
            raise ValueError(
                f"`dy` must have the shape of the result, {info.shape} {plan.problem.layout}, but got {given.shape}."
            )
        if given.dtype != info.dtype:
            raise TypeError(
                f"`dy` must have the dtype of the result, {info.dtype}, but got {given.dtype}. "
                f"Convert it: `astype({info.dtype!r})`."
            )
        if finished is not None:
            dy = finished.finisher.pulled_back(dy, sums, plan.problem, residual)
        with np.errstate(all="ignore"):  # a gradient need not have room in the dtype of its argument
            found = tuple(pullback(dy)[:3]) if any(wanted) else (None, None, None)
        if finished is None or known is None:
            return found
        cast = replace(plan.problem, epilogue=Epilogue(), out_dtype=known.dtype)
        return *found, finished.finisher.finished(dy, cast) if of_residual else None

    return y, vjp


def _vjp(
    library: Backend, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight]
) -> tuple[Any, Pullback]:
    """See `portconv.extending.Differentiable`: the back end's, or NumPy's."""
    own: Any = getattr(library, "vjp", None)
    if own is None:
        from .cpu.gradient import host_vjp  # not before it is needed: it imports NumPy's engines

        own = partial(host_vjp, library)
    found: tuple[Any, Pullback] = own(plan, x, weight, bias, wanted, pack)
    return found


def _transposed_vjp(
    library: Backend,
    plan: TransposedPlan,
    x: Any,
    weight: Any,
    bias: Any,
    wanted: Wanted,
    pack: Callable[[], PackedWeight],
) -> tuple[Any, Pullback]:
    """The same of a transposed convolution.

    With ``x = F(y, weight)`` the convolution whose gradient it is, the gradient of the image is ``F(dy, weight)``. That
    of the weight is the one that `F` has, with `dy` as its image and `x` as its cotangent.
    """
    p, steps = plan.problem, plan.steps

    def pullback(dy: Any) -> tuple[Any, Any, Any]:
        given = library.describe(dy).dtype
        dx = dweight = dbias = None
        if wanted[0] or wanted[1]:
            dtype = p.dtype if given == p.dtype else p.compute_dtype
            to = p.x_dtype if p.x_dtype in FLOATING else p.dtype
            problem = replace(p.convolution, x_dtype=given, dtype=dtype, out_dtype=None if to == dtype else to)
            back = planner.plan(library, problem)
            packed = partial(path.packed, library, back, weight)
            if wanted[1]:
                dx, of_factors = _vjp(library, back, dy, weight, None, (False, True, False), packed)
                dweight = of_factors(steps.cast(x, to))[1]
            else:
                dx = back.execute(dy, packed())
        if wanted[2]:
            found = steps.xp.reshape(bias_gradient(p, dy, steps), tuple(bias.shape))
            dbias = steps.cast(found, library.describe(bias).dtype)
        return dx if wanted[0] else None, dweight, dbias

    return plan.execute(x, pack(), bias), pullback


def _wanted(plan: Plan, bias: Any, residual: Any, names: tuple[str, ...] | None) -> tuple[bool, bool, bool, bool]:
    """Whether the gradients of image, weight, bias and residual are wanted."""
    p = plan.problem
    floating = p.x_dtype in FLOATING
    if names is None:
        return floating, True, bias is not None, residual is not None
    if "x" in names and not floating:
        raise TypeError(f"`wrt` names 'x', but `x` is of {p.x_dtype}, and only floating dtypes have gradients.")
    for name, array in (("bias", bias), ("residual", residual)):
        if name in names and array is None:
            raise ValueError(f"`wrt` names {name!r}, but there is no `{name}`.")
    return "x" in names, "weight" in names, "bias" in names, "residual" in names
