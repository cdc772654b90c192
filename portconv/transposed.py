"""Transposed convolutions, the functional form: docstrings, validation, dispatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

from .core.backend import executed
from .dispatch import path
from .dispatch.transposed import normalised_transposed
from .gradient import checked_wrt, value_and_gradients

if TYPE_CHECKING:
    from .core.words import Accuracy, ComputeMode, ConvMode, Layout, Strategy
    from .signatures import ActivationLike, PaddingLike, Size

__all__ = ["conv_transpose2d", "conv_transpose2d_vjp"]


def conv_transpose2d(
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
    layout: Layout = "NCHW",
    engine: str = "auto",
    accuracy: Accuracy = "normwise",
    strategy: Strategy = "heuristic",
    backend: Any = None,
    out_dtype: Any = None,
    out: Any = None,
    activation: ActivationLike = None,
    residual: Any = None,
) -> Any:
    """Transposed two-dimensional convolution of an array of any library: what makes an image larger by a stride.

    It takes `x` to the gradient of the image of a convolution, ``conv2d(y, weight, stride=stride, padding=padding,
    dilation=dilation, groups=groups)``, whose result is like `x`. Each phase of the strides is a convolution of its
    own, planned like any other, with some of the taps [1]_; no zeros are put between the pixels.

    The semantics and the order of the arguments are those of ``megengine.functional.conv_transpose2d``.

    Parameters
    ----------
    x
        Image, ``(N, I, H, W)``, or ``(N, H, W, I)`` with ``layout="NHWC"``. Floating, integer or boolean; integers and
        booleans are converted to the weight's dtype.
    weight
        ``(I, O/groups, kh, kw)`` in either layout, or ``(groups, I/groups, O/groups, kh, kw)``. Floating, of the same
        library as `x`.
    bias
        ``(1, O, 1, 1)`` or ``(O,)``, or None.
    stride, dilation
        An int, or a pair (height, width), in pixels of the result.
    padding
        An int, a pair (height, width), or ``((top, bottom), (left, right))``: what is cut off at the sides of the
        result, which is the padding of the convolution.
    output_padding
        An int, or a pair (height, width), less than `stride`: rows and columns that the result has besides, at the
        bottom and right. They are sums like all others.
    groups
        Groups of channels that are convolved apart; it divides `I` and `O`.
    conv_mode, compute_mode, layout, engine, accuracy, strategy, backend, out_dtype, out, activation, residual
        As in `portconv.conv2d`. `engine` is that of every phase. The bounds of the errors are the same, too, with
        the sums that these are.

    Returns
    -------
    array
        ``(N, O, oh, ow)``, or ``(N, oh, ow, O)`` with ``layout="NHWC"``, with
        ``oh = (H - 1) * stride - top - bottom + dilation * (kh - 1) + output_padding + 1``. Its dtype is as in
        `portconv.conv2d`.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As `portconv.conv2d`; a `ValueError` also for an `output_padding` that is not less than `stride`.

    References
    ----------
    .. [1] V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", arXiv 1603.07285.

    Examples
    --------
    Each pixel becomes a square of four:

    >>> import numpy as np, portconv
    >>> x = np.array([[[[1, 2], [3, 4]]]], np.float32)
    >>> portconv.conv_transpose2d(x, np.ones((1, 1, 2, 2), np.float32), stride=2)[0, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.],
           [3., 3., 4., 4.],
           [3., 3., 4., 4.]], dtype=float32)

    A layer of a decoder:

    >>> x, weight = np.ones((1, 64, 16, 16), np.float32), np.ones((64, 32, 3, 3), np.float32)
    >>> portconv.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1, activation="relu").shape
    (1, 32, 32, 32)
    """
    spec = normalised_transposed(
        stride, padding, output_padding, dilation, groups, conv_mode, compute_mode,
        layout=layout, engine=engine, accuracy=accuracy, strategy=strategy, out_dtype=out_dtype, activation=activation,
    )  # fmt: skip
    plan, packed = path.prepared(spec, x, weight, bias, backend, out, residual)
    return executed(plan, x, packed, bias, residual, out)


def conv_transpose2d_vjp(
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
    layout: Layout = "NCHW",
    engine: str = "auto",
    accuracy: Accuracy = "normwise",
    strategy: Strategy = "heuristic",
    backend: Any = None,
    activation: ActivationLike = None,
    residual: Any = None,
    wrt: Sequence[str] | str | None = None,
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """`conv_transpose2d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    The gradient of the image is a convolution of the cotangent. See `portconv.conv2d_vjp` for `wrt` and the results,
    and `conv_transpose2d` for the other arguments; the errors are theirs, too.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((2, 4, 3, 3), np.float32)
    >>> y, vjp = portconv.conv_transpose2d_vjp(x, weight, stride=2)
    >>> dx, dweight, dbias = vjp(np.ones_like(y))
    >>> y.shape, dx.shape, float(dx[0, 0, 0, 0]), dweight.shape, dbias is None
    ((1, 4, 11, 11), (1, 2, 5, 5), 36.0, (2, 4, 3, 3), True)
    """
    spec = normalised_transposed(
        stride, padding, output_padding, dilation, groups, conv_mode, compute_mode,
        layout=layout, engine=engine, accuracy=accuracy, strategy=strategy, activation=activation,
    )  # fmt: skip
    names = checked_wrt(wrt)
    library, plan = path.plan_for(spec, x, weight, bias, backend, residual)
    return value_and_gradients(
        library, plan, (x, weight, bias, residual), names, partial(path.packed, library, plan, weight)
    )
