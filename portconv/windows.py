"""What stands beside convolutions in a network: pooling and interpolation, docstrings and dispatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .core.backend import ArrayInfo
from .core.windows import WindowOperation
from .core.words import AVERAGES
from .dispatch import registry
from .dispatch import windows as arguments
from .dispatch.path import info_of

if TYPE_CHECKING:
    from .core.words import Average, Interpolation, Layout
    from .signatures import ArrayT, PaddingLike, Size

__all__ = ["applied", "avg_pool2d", "global_avg_pool2d", "interpolate2d", "max_pool2d"]


def max_pool2d(
    x: ArrayT,
    kernel_size: Size,
    stride: Size | None = None,
    padding: PaddingLike = 0,
    *,
    dilation: Size = 1,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
) -> ArrayT:
    """The largest number in each window, for an array of any library.

    It is differentiable where the library is; of equal numbers the first in the window has the gradient, as in PyTorch.

    Parameters
    ----------
    x
        Image, ``(N, C, H, W)``, or ``(N, H, W, C)`` with ``layout="NHWC"``. Floating or integer.
    kernel_size
        Size of the window: an int, or a pair (height, width), in pixels.
    stride
        As in `portconv.conv2d`; None is `kernel_size`.
    padding
        As in `portconv.conv2d`: an int, a pair, ``((top, bottom), (left, right))``, ``"valid"`` or ``"same"``; less
        than the window covers. In it stands -inf, or the smallest integer.
    dilation
        As in `portconv.conv2d`.
    ceil_mode
        Whether a rest of the image, too small for a window, has one, too: if that begins in the image or the padding
        before it.
    layout
        ``"NCHW"`` or ``"NHWC"``, of `x` and of the result.

    Returns
    -------
    array
        ``(N, C, oh, ow)`` or ``(N, oh, ow, C)``, of the dtype, the library and the device of `x`, with
        ``oh = floor((H + top + bottom - dilation * (kh - 1) - 1) / stride) + 1``. NaN where the window has one.

    Raises
    ------
    TypeError
        For the wrong kind of argument, no array, or a dtype that is not supported.
    ValueError
        For sizes that do not fit, and values that are not allowed.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> portconv.max_pool2d(x, 2)[0, 0]
    array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    >>> portconv.max_pool2d(x, 3, stride=2, padding=1).shape
    (1, 1, 2, 2)
    """
    mode = AVERAGES[0]
    return applied(
        x,
        lambda info: arguments.pooling(
            "max", info.shape, info.dtype, kernel_size, stride, padding, dilation, mode, ceil_mode, layout
        ),
    )


def avg_pool2d(
    x: ArrayT,
    kernel_size: Size,
    stride: Size | None = None,
    padding: PaddingLike = 0,
    mode: Average = "average_count_exclude_padding",
    *,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
) -> ArrayT:
    """The mean of each window, for an array of any library; differentiable where the library is.

    The names, their order and the modes are those of ``megengine.functional.avg_pool2d``.

    Parameters
    ----------
    x
        Image, ``(N, C, H, W)``, or ``(N, H, W, C)`` with ``layout="NHWC"``. Floating.
    kernel_size, stride, padding, ceil_mode, layout
        As in `max_pool2d`. What stands in the padding is zero.
    mode
        ``"average_count_exclude_padding"`` divides by the pixels of the image that are in the window, ``"average"`` by
        those of the padding, too.

    Returns
    -------
    array
        As in `max_pool2d`. float16 and bfloat16 are summed in float32, and rounded once.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x = np.ones((1, 1, 4, 4), np.float32)
    >>> portconv.avg_pool2d(x, 3, stride=2, padding=1)[0, 0]
    array([[1., 1.],
           [1., 1.]], dtype=float32)
    >>> portconv.avg_pool2d(x, 2, padding=1, mode="average")[0, 0, 0]
    array([0.25, 0.5 , 0.25], dtype=float32)
    """
    return applied(
        x,
        lambda info: arguments.pooling(
            "average", info.shape, info.dtype, kernel_size, stride, padding, 1, mode, ceil_mode, layout
        ),
    )


def global_avg_pool2d(x: ArrayT, *, layout: Layout = "NCHW") -> ArrayT:
    """The mean of each channel of each image, for an array of any library; differentiable where the library is.

    Parameters
    ----------
    x
        Image, ``(N, C, H, W)``, or ``(N, H, W, C)`` with ``layout="NHWC"``. Floating.
    layout
        ``"NCHW"`` or ``"NHWC"``, of `x` and of the result.

    Returns
    -------
    array
        ``(N, C, 1, 1)`` or ``(N, 1, 1, C)``, as in `avg_pool2d`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.global_avg_pool2d(np.ones((2, 5, 7, 7), np.float32)).shape
    (2, 5, 1, 1)
    """
    return applied(x, lambda info: arguments.whole(info.shape, info.dtype, layout))


def interpolate2d(
    x: ArrayT,
    size: Any = None,
    scale_factor: Any = None,
    mode: Interpolation = "bilinear",
    *,
    align_corners: bool = False,
    layout: Layout = "NCHW",
) -> ArrayT:
    """The image in another size, for an array of any library; differentiable where the library is.

    Positions are those of ``torch.nn.functional.interpolate``, as exact fractions. There is no smoothing before an
    image is made smaller.

    Parameters
    ----------
    x
        Image, ``(N, C, H, W)``, or ``(N, H, W, C)`` with ``layout="NHWC"``. Floating; with ``mode="nearest"`` integers,
        too.
    size
        Height and width of the result: an int or a pair.
    scale_factor
        Instead of `size`: a number or a pair (height, width) that the sizes are multiplied by, and rounded down.
    mode
        ``"bilinear"``, or ``"nearest"``: output `i` is the pixel ``floor(i * H / oh)``.
    align_corners
        Whether the centres of the corner pixels lie on each other. If not, the edges of the images do: output `i` is at
        ``(i + 0.5) * H / oh - 0.5``.
    layout
        ``"NCHW"`` or ``"NHWC"``, of `x` and of the result.

    Returns
    -------
    array
        ``(N, C, oh, ow)`` or ``(N, oh, ow, C)``, of the dtype, the library and the device of `x`. float16 and bfloat16
        are computed in float32, and rounded once.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; also where `size` and `scale_factor` are given both, or neither.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x = np.array([[0, 1], [2, 3]], np.float32).reshape(1, 1, 2, 2)
    >>> portconv.interpolate2d(x, scale_factor=2)[0, 0, 0]
    array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    >>> portconv.interpolate2d(x, 3, align_corners=True)[0, 0, 1]
    array([1. , 1.5, 2. ], dtype=float32)
    >>> portconv.interpolate2d(x, (2, 4), mode="nearest")[0, 0, 1]
    array([2., 2., 3., 3.], dtype=float32)
    """
    return applied(
        x, lambda info: arguments.resizing(info.shape, info.dtype, size, scale_factor, mode, align_corners, layout)
    )


def applied(x: ArrayT, operation: Callable[[ArrayInfo], WindowOperation]) -> ArrayT:
    """What the operation for an array of this description makes of it."""
    library = registry.resolve(x)
    info = info_of(library, "x", x)
    from .cpu.windows import applied_by  # the engines, which no import of portconv waits for

    result: ArrayT = applied_by(library, x, info, operation(info))
    return result
