"""Convolutions along one axis, `conv1d` and `conv_transpose1d`: those of images that are one pixel high."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

from .core import hints
from .core.array_types import library_of
from .core.errors import choices, no_array
from .core.integers import integer, pair, sequence_of_two
from .dispatch.arguments import check_channels
from .dispatch.transposed import check_transposed_channels
from .functional import conv2d
from .gradient import conv2d_vjp
from .transposed import conv_transpose2d, conv_transpose2d_vjp

if TYPE_CHECKING:
    from .core.words import ComputeMode, ConvMode, Layout, SignalLayout
    from .signatures import PaddingLike, Size

__all__ = [
    "LAYOUTS", "conv1d", "conv1d_vjp", "conv_transpose1d", "conv_transpose1d_vjp", "image_layout", "narrowed",
    "padding_of", "pulled_back", "widened",
]  # fmt: skip

LAYOUTS: dict[str, Layout] = {"NCW": "NCHW", "NWC": "NHWC"}


def conv1d(
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
    layout: SignalLayout = "NCW",
    out: Any = None,
    residual: Any = None,
    **options: Any,
) -> Any:
    """One-dimensional convolution (cross-correlation) of an array of any library: `conv2d` with a height of 1.

    The order of the arguments is that of ``megengine.functional.conv1d``.

    Parameters
    ----------
    x
        ``(N, C, W)``, or ``(N, W, C)`` with ``layout="NWC"``; see `conv2d` for its dtypes.
    weight
        ``(O, C/groups, k)`` in either layout, or ``(groups, O/groups, C/groups, k)``.
    bias
        ``(1, O, 1)`` or ``(O,)``, or None.
    stride, dilation, groups
        Ints.
    padding
        An int, a pair (left, right), ``"valid"`` or ``"same"``.
    layout
        ``"NCW"`` or ``"NWC"``, of `x` and of the result.
    out, residual
        As in `conv2d`, of the shape of the result.
    conv_mode, compute_mode, options
        As in `conv2d`: `padding_mode`, `engine`, `accuracy`, `strategy`, `backend`, `out_dtype`, `activation`.

    Returns
    -------
    array
        ``(N, O, ow)``, or ``(N, ow, O)`` with ``layout="NWC"``.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x = np.array([[[1, 2, 4, 8, 16]]], np.float32)
    >>> portconv.conv1d(x, np.array([[[-1, 0, 1]]], np.float32), padding=1)
    array([[[  2.,   3.,   6.,  12.,  -8.]]], dtype=float32)
    """
    image, kernel, shift, added, target = widened(x, weight, bias, residual, out, layout)
    _check(check_channels, x, weight, bias, groups, layout)
    y = conv2d(
        image, kernel, shift, (1, integer("stride", stride, 1)), padding_of(padding),
        (1, integer("dilation", dilation, 1)), groups, conv_mode, compute_mode, layout=LAYOUTS[layout],
        residual=added, out=target, **options,
    )  # fmt: skip
    return narrowed(y, layout) if out is None else out


def conv1d_vjp(
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
    layout: SignalLayout = "NCW",
    residual: Any = None,
    **options: Any,
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """`conv1d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    See `portconv.conv2d_vjp` for `wrt`, the other options and the results, and `conv1d` for the other arguments.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> y, vjp = portconv.conv1d_vjp(np.ones((1, 2, 9), np.float32), np.ones((4, 2, 3), np.float32), stride=2)
    >>> dx, dweight, dbias = vjp(np.ones_like(y))
    >>> dx[0, 0], dweight.shape
    (array([4., 4., 8., 4., 8., 4., 8., 4., 4.], dtype=float32), (4, 2, 3))
    """
    image, kernel, shift, added, _ = widened(x, weight, bias, residual, None, layout)
    _check(check_channels, x, weight, bias, groups, layout)
    y, pull = conv2d_vjp(
        image, kernel, shift, (1, integer("stride", stride, 1)), padding_of(padding),
        (1, integer("dilation", dilation, 1)), groups, conv_mode, compute_mode, layout=LAYOUTS[layout],
        residual=added, **options,
    )  # fmt: skip
    y = narrowed(y, layout)
    return y, partial(pulled_back, pull, layout, tuple(y.shape))


def conv_transpose1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    layout: SignalLayout = "NCW",
    out: Any = None,
    residual: Any = None,
    **options: Any,
) -> Any:
    """Transposed one-dimensional convolution of an array of any library: `conv_transpose2d` with a height of 1.

    Parameters
    ----------
    x
        ``(N, I, W)``, or ``(N, W, I)`` with ``layout="NWC"``.
    weight
        ``(I, O/groups, k)`` in either layout, or ``(groups, I/groups, O/groups, k)``.
    bias
        ``(1, O, 1)`` or ``(O,)``, or None.
    stride, output_padding, dilation, groups
        Ints.
    padding
        An int, or a pair (left, right): what is cut off at the sides of the result.
    layout
        ``"NCW"`` or ``"NWC"``, of `x` and of the result.
    out, residual
        As in `conv2d`, of the shape of the result.
    conv_mode, compute_mode, options
        As in `conv_transpose2d`: `engine`, `accuracy`, `strategy`, `backend`, `out_dtype`, `activation`.

    Returns
    -------
    array
        ``(N, O, ow)``, or ``(N, ow, O)`` with ``layout="NWC"``.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.conv_transpose1d(np.array([[[1, 2]]], np.float32), np.ones((1, 1, 3), np.float32), stride=3)
    array([[[1., 1., 1., 2., 2., 2.]]], dtype=float32)
    """
    image, kernel, shift, added, target = widened(x, weight, bias, residual, out, layout)
    _check(check_transposed_channels, x, weight, bias, groups, layout)
    y = conv_transpose2d(
        image, kernel, shift, (1, integer("stride", stride, 1)), padding_of(padding),
        (0, integer("output_padding", output_padding, 0)), (1, integer("dilation", dilation, 1)), groups, conv_mode,
        compute_mode, layout=LAYOUTS[layout], residual=added, out=target, **options,
    )  # fmt: skip
    return narrowed(y, layout) if out is None else out


def conv_transpose1d_vjp(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    compute_mode: ComputeMode = "default",
    *,
    layout: SignalLayout = "NCW",
    residual: Any = None,
    **options: Any,
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """`conv_transpose1d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    See `portconv.conv2d_vjp` for `wrt`, the other options and the results, and `conv_transpose1d` for the other
    arguments.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> y, vjp = portconv.conv_transpose1d_vjp(np.ones((1, 2, 3), np.float32), np.ones((2, 4, 3), np.float32), stride=3)
    >>> dx, dweight, dbias = vjp(np.ones_like(y))
    >>> dx[0, 0], dweight.shape
    (array([12., 12., 12.], dtype=float32), (2, 4, 3))
    """
    image, kernel, shift, added, _ = widened(x, weight, bias, residual, None, layout)
    _check(check_transposed_channels, x, weight, bias, groups, layout)
    y, pull = conv_transpose2d_vjp(
        image, kernel, shift, (1, integer("stride", stride, 1)), padding_of(padding),
        (0, integer("output_padding", output_padding, 0)), (1, integer("dilation", dilation, 1)), groups, conv_mode,
        compute_mode, layout=LAYOUTS[layout], residual=added, **options,
    )  # fmt: skip
    y = narrowed(y, layout)
    return y, partial(pulled_back, pull, layout, tuple(y.shape))


def pulled_back(
    pull: Callable[[Any], tuple[Any, ...]], layout: str, shape: tuple[int, ...], dy: Any
) -> tuple[Any, ...]:
    """The gradients for a cotangent, from the function that has them for images one pixel high."""
    if library_of(dy) is None:
        raise TypeError(f"`dy` must be an array, but got {type(dy).__name__}.")
    if tuple(dy.shape) != shape:
        raise ValueError(f"`dy` must have the shape of the result, {shape} {layout}, but got {tuple(dy.shape)}.")
    dx, dweight, dbias, *of_residual = pull(dy[image_index(layout)])
    return (
        None if dx is None else narrowed(dx, layout),
        None if dweight is None else dweight[..., 0, :],
        dbias if dbias is None or len(dbias.shape) == 1 else dbias[..., 0],
        *(None if found is None else narrowed(found, layout) for found in of_residual),
    )


def padding_of(padding: Any) -> Any:
    """As that of an image."""
    if isinstance(padding, str):
        return padding
    if sequence_of_two(padding) is None:
        return 0, integer("padding", padding, 0)
    return (0, 0), pair("padding", padding, 0)


def widened(x: Any, weight: Any, bias: Any, residual: Any, out: Any, layout: str) -> tuple[Any, ...]:
    """The arrays of a call as those of images one pixel high: views, without a copy."""
    image_layout(layout)
    every, image = slice(None), image_index(layout)
    forms: tuple[tuple[str, Any, tuple[int, ...], str, tuple[Any, ...]], ...] = (
        ("x", x, (3,), layout, image),
        ("weight", weight, (3, 4), "kernels of one axis, or grouped", (..., None, every)),
        ("bias", bias, (1, 3), "(O,) or (1, O, 1)", (..., None)),
        ("residual", residual, (3,), layout, image),
        ("out", out, (3,), layout, image),
    )
    found: list[Any] = []
    for name, array, axes, form, index in forms:
        if array is None:
            found.append(None)
            continue
        if library_of(array) is None:
            raise no_array(name, array)
        if len(array.shape) not in axes:
            allowed = " or ".join(str(n) for n in axes)
            mend = hints.unbatched(tuple(array.shape), 3) if name == "x" else ""
            raise ValueError(f"`{name}` must have {allowed} axes, {form}, but got shape {tuple(array.shape)}.{mend}")
        found.append(array if len(array.shape) == 1 else array[index])
    return tuple(found)


def _check(check: Callable[..., None], x: Any, weight: Any, bias: Any, groups: Any, layout: str) -> None:
    """Whether channels fit, in the words of signals: the functions of images would speak of theirs."""
    if x is not None and weight is not None:
        shift = None if bias is None else tuple(bias.shape)
        check(tuple(x.shape), tuple(weight.shape), shift, integer("groups", groups, 1), layout)


def image_layout(layout: Any) -> str:
    """The layout of images that are one pixel high."""
    if not isinstance(layout, str) or layout not in LAYOUTS:
        kind = ValueError if isinstance(layout, str) else TypeError
        raise kind(f"`layout` must be {choices(tuple(LAYOUTS))}, but got {layout!r}.")
    return LAYOUTS[layout]


def image_index(layout: str) -> tuple[Any, ...]:
    """The index that makes an image of an array."""
    every = slice(None)
    return (every, every, None, every) if layout == "NCW" else (every, None, every, every)


def narrowed(y: Any, layout: str) -> Any:
    """An image that is one pixel high, without its height."""
    return y[:, :, 0, :] if layout == "NCW" else y[:, 0, :, :]
