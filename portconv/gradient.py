"""Derivatives: `conv2d_vjp`, the convolution with the product of any cotangent with its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .core.backend import Backend, PackedWeight, Plan, Pullback, Wanted
from .core.dtypes import FLOATING
from .dispatch import path
from .dispatch.arguments import normalised

__all__ = ["checked_wrt", "conv2d_vjp", "value_and_gradients"]

ARGUMENTS = ("x", "weight", "bias")


def conv2d_vjp(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    conv_mode: str = "cross_correlation",
    compute_mode: str = "default",
    *,
    padding_mode: str = "zeros",
    layout: str = "NCHW",
    engine: str = "auto",
    accuracy: str = "normwise",
    strategy: str = "heuristic",
    backend: Any = None,
    wrt: Sequence[str] | str | None = None,
) -> tuple[Any, Pullback]:
    """`conv2d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    It works alike for the arrays of every library, NumPy's among them, and is what a framework without automatic
    differentiation trains by. Where a library differentiates by itself, `conv2d` within its own transformations does
    as well.

    Parameters
    ----------
    wrt
        The arguments that gradients are wanted for, with respect to which is differentiated: ``"x"``, ``"weight"``,
        ``"bias"``, or several of them. The others cost nothing. None: all that are there and of a floating dtype.

    The other arguments are those of `conv2d`; the engine is that of the result. There is no `out_dtype`: rounding to
    integers has no derivative.

    Returns
    -------
    y : array
        What `conv2d` returns.
    vjp : function
        ``vjp(dy) -> (dx, dweight, dbias)``, the gradients of ``sum(dy * y)``. `dy` is an array of the shape, dtype,
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
    )  # fmt: skip
    names = checked_wrt(wrt)
    library, plan = path.plan_for(spec, x, weight, bias, backend)
    return value_and_gradients(library, plan, x, weight, bias, names, partial(path.packed, library, plan, weight))


def checked_wrt(wrt: Any) -> tuple[str, ...] | None:
    """The names of arguments that gradients are wanted for; None where the arrays decide."""
    if wrt is None:
        return None
    names = (wrt,) if isinstance(wrt, str) else wrt
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`wrt` must be None, 'x', 'weight' or 'bias', or several of these, but got {wrt!r}.")
    if not names or any(name not in ARGUMENTS for name in names):
        raise ValueError(f"`wrt` must be None, 'x', 'weight' or 'bias', or several of these, but got {wrt!r}.")
    return tuple(names)


def value_and_gradients(
    library: Backend,
    plan: Plan,
    x: Any,
    weight: Any,
    bias: Any,
    names: tuple[str, ...] | None,
    pack: Callable[[], PackedWeight],
) -> tuple[Any, Pullback]:
    """The result of a plan, and the function of the cotangent; `pack` gives the packed weight.

    A back end without derivatives of its own has them computed by NumPy.
    """
    wanted = _wanted(plan, bias, names)
    differentiate: Any = getattr(library, "vjp", None)
    if differentiate is None:
        from .cpu.gradient import host_vjp  # not before it is needed: it imports NumPy's engines

        differentiate = partial(host_vjp, library)
    y, pullback = differentiate(plan, x, weight, bias, wanted, pack)
    info = library.describe(y)

    def vjp(dy: Any) -> tuple[Any, Any, Any]:
        (_, given) = path.described(library, [("y", y), ("dy", dy)])
        if given.shape != info.shape:
            raise ValueError(
                f"`dy` must have the shape of the result, {info.shape} {plan.problem.layout}, but got {given.shape}."
            )
        if given.dtype != info.dtype:
            raise TypeError(f"`dy` must have the dtype of the result, {info.dtype}, but got {given.dtype}.")
        found = pullback(dy)
        return found[0], found[1], found[2]

    return y, vjp


def _wanted(plan: Plan, bias: Any, names: tuple[str, ...] | None) -> Wanted:
    """Whether the gradients of image, weight and bias are wanted."""
    p = plan.problem
    floating = p.x_dtype in FLOATING
    if names is None:
        return floating, True, bias is not None
    if "x" in names and not floating:
        raise TypeError(f"`wrt` names 'x', but `x` is of {p.x_dtype}, and only floating dtypes have gradients.")
    if "bias" in names and bias is None:
        raise ValueError("`wrt` names 'bias', but there is no `bias`.")
    return "x" in names, "weight" in names, "bias" in names
