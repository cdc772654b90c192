"""Transposed convolutions of volumes, `conv_transpose3d`: sums of transposed convolutions of planes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from .core.dtypes import compute_dtype
from .core.integers import integer
from .core.shapes import dilated
from .dispatch.transposed import check_transposed_channels
from .engines.accuracy import summed
from .transposed import conv_transpose2d
from .volumes import (
    HALVES,
    LAYOUTS,
    arrays_of,
    bias_gradient,
    check_cotangent,
    conv3d,
    conv3d_vjp,
    images_of,
    operations_of,
    planes_of,
    shapes_of,
    sides_of,
    triple,
    wanted_of,
    widened,
)

if TYPE_CHECKING:
    from .core.words import Accuracy, ConvMode, Strategy, VolumeLayout
    from .signatures import PaddingLike, Size

__all__ = ["conv_transpose3d", "conv_transpose3d_vjp"]


def conv_transpose3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    *,
    layout: VolumeLayout = "NCDHW",
    engine: str = "auto",
    accuracy: Accuracy = "normwise",
    strategy: Strategy = "heuristic",
    backend: Any = None,
) -> Any:
    """Transposed three-dimensional convolution of an array of any library: what makes volumes larger by a stride.

    Each plane of the kernel is a `conv_transpose2d` of all planes of the volume; their results are added in pairs.

    Parameters
    ----------
    x
        Volume, ``(N, I, D, H, W)``, or ``(N, D, H, W, I)`` with ``layout="NDHWC"``, of a floating dtype.
    weight
        ``(I, O/groups, kd, kh, kw)`` in either layout, or ``(groups, I/groups, O/groups, kd, kh, kw)``. Floating, of
        the same library.
    bias
        ``(1, O, 1, 1, 1)`` or ``(O,)``, or None.
    stride, dilation
        An int, or three of them (depth, height, width).
    padding
        The same, or ``((front, back), (top, bottom), (left, right))``: what is cut off at the sides of the result.
    output_padding
        An int, or three of them, less than `stride`: planes, rows and columns that the result has besides.
    groups
        Groups of channels that are convolved apart; it divides `I` and `O`.
    layout
        ``"NCDHW"`` or ``"NDHWC"``, of `x` and of the result.
    conv_mode, engine, accuracy, strategy, backend
        As in `conv_transpose2d`, for each plane of the kernel.

    Returns
    -------
    array
        ``(N, O, od, oh, ow)``, or ``(N, od, oh, ow, O)``, with
        ``od = (D - 1) * stride - front - back + dilation * (kd - 1) + output_padding + 1``, of the dtype to which those
        of the arguments promote.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x, weight = np.ones((1, 2, 3, 4, 4), np.float32), np.ones((2, 5, 2, 2, 2), np.float32)
    >>> y = portconv.conv_transpose3d(x, weight, stride=2)
    >>> y.shape, float(y[0, 0, 5, 7, 7])
    ((1, 5, 6, 8, 8), 2.0)
    """
    strides, dilations = triple("stride", stride, 1), triple("dilation", dilation, 1)
    (front, back), *sides = sides_of(padding)
    extra = triple("output_padding", output_padding, 0)
    step = strides[0]
    if extra[0] >= step:
        raise ValueError(f"`output_padding` must be less than `stride`, {strides}, but got {extra}.")
    volumes = _Volumes(x, weight, bias, layout, backend)
    check_transposed_channels(*shapes_of(x, weight, bias), integer("groups", groups, 1), layout)
    depth, kd = volumes.size[0], weight.shape[-3]
    od = (depth - 1) * step - front - back + dilated(kd, dilations[0]) + extra[0]
    if od < 1:
        raise ValueError(f"Nothing is left of the result: `padding` {padding} takes all of its planes.")
    of_planes = partial(
        conv_transpose2d, stride=strides[1:], padding=tuple(sides), output_padding=extra[1:], dilation=dilations[1:],
        groups=groups, conv_mode=conv_mode, engine=engine, accuracy=accuracy, strategy=strategy, backend=backend,
    )  # fmt: skip
    # Planes are counted from `front` before the result's first. Those of a phase are `step` apart, and so are the
    # planes that one of the kernel makes: a phase is a sum over every `step`-th one of the kernel, or less than that.
    first, last = front // step, -(-(front + od) // step)

    def terms(phase: int) -> Iterator[Any]:
        for tap in range(kd):
            shift, rest = divmod(tap * dilations[0] - phase, step)
            start, stop = max(first - shift, 0), min(last - shift, depth)
            if rest == 0 and start < stop:
                yield volumes.term(of_planes, tap, slice(start, stop), start + shift - first, last - first)

    with np.errstate(all="ignore"):  # infinities and NaN are part of the contract
        sums = [_sum(terms(phase), volumes.xp.add) for phase in range(step)]
        like = next((total for total in sums if total is not None), None)
        if like is None:
            raise ValueError(f"`padding` {padding} is so large that no plane of the kernel meets the result.")
        xp = volumes.xp
        if step == 1:
            return volumes.result(like)
        whole = xp.stack([xp.zeros_like(like) if total is None else total for total in sums], axis=2)
        whole = xp.reshape(whole, (like.shape[0], step * like.shape[1], *like.shape[2:]))
        skipped = front - first * step
        return volumes.result(whole[:, skipped : skipped + od, ...])


def conv_transpose3d_vjp(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: SupportsIndex = 1,
    conv_mode: ConvMode = "cross_correlation",
    *,
    layout: VolumeLayout = "NCDHW",
    engine: str = "auto",
    accuracy: Accuracy = "normwise",
    strategy: Strategy = "heuristic",
    backend: Any = None,
    wrt: Sequence[str] | str | None = None,
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """`conv_transpose3d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    The gradient of the volume is a `conv3d` of the cotangent, and that of the weight the one that such a `conv3d` has.
    See `portconv.conv2d_vjp` for `wrt` and the results, and `conv_transpose3d` for the other arguments.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x, weight = np.ones((1, 2, 3, 4, 4), np.float32), np.ones((2, 5, 2, 2, 2), np.float32)
    >>> y, vjp = portconv.conv_transpose3d_vjp(x, weight, stride=2)
    >>> dx, dweight, dbias = vjp(np.ones_like(y))
    >>> dx.shape, float(dx[0, 0, 1, 2, 2]), dweight.shape, float(dweight[0, 0, 1, 1, 1]), dbias is None
    ((1, 2, 3, 4, 4), 40.0, (2, 5, 2, 2, 2), 48.0, True)
    """
    library, dtypes, *_ = arrays_of(x, weight, bias, layout, backend)
    wanted = wanted_of(wrt, dtypes[0], bias)
    options: dict[str, Any] = {
        "conv_mode": conv_mode, "layout": layout, "engine": engine, "accuracy": accuracy, "strategy": strategy,
        "backend": backend,
    }  # fmt: skip
    y = conv_transpose3d(x, weight, bias, stride, padding, output_padding, dilation, groups, **options)
    xp, convolution = operations_of(library, x), (stride, padding, dilation, groups)

    def cast(array: Any, like: Any) -> Any:
        return array if array.dtype == like.dtype else xp.astype(array, like.dtype)

    def vjp(dy: Any) -> tuple[Any, ...]:
        halves = check_cotangent(library, y, dy) in HALVES
        dx = dweight = dbias = None
        with np.errstate(all="ignore"):
            if "weight" in wanted:
                dx, pull = conv3d_vjp(dy, weight, None, *convolution, **options, wrt="weight")
                dweight = pull(cast(x, dx))[1]
            elif "x" in wanted:
                dx = conv3d(dy, weight, None, *convolution, **options)
            dx = cast(dx, x) if "x" in wanted else None
            if "bias" in wanted:
                last = dy if layout == "NDHWC" else xp.permute_dims(dy, (0, 2, 3, 4, 1))
                dbias = bias_gradient(xp, xp.astype(last, xp.float32) if halves else last, bias)
        return dx, dweight, dbias

    return y, vjp


class _Volumes:
    """The arrays of a call, checked, and what is done with planes of them: stacks are (N, planes, plane)."""

    def __init__(self, x: Any, weight: Any, bias: Any, layout: Any, backend: Any) -> None:
        library, dtypes, dtype, self.size = arrays_of(x, weight, bias, layout, backend)
        self.layout, wide = layout, compute_dtype(dtype)
        self.out_dtype = self.narrow = None
        if wide != dtype:  # sums of planes are rounded once, at the end, to the dtype of one of the arrays
            self.out_dtype = wide
            self.narrow = next(a for a, name in zip((x, weight, bias), dtypes, strict=False) if name == dtype).dtype
        self.xp, self.weight, self.bias = operations_of(library, x), weight, bias
        x = widened(self.xp, x, dtypes[0], dtype)
        # planes first: a view, whichever the layout
        self.x = x if layout == "NDHWC" else self.xp.permute_dims(x, (0, 2, 1, 3, 4))

    def term(self, of_planes: Callable[..., Any], tap: int, planes: slice, before: int, count: int) -> Any:
        """What one plane of the kernel makes of these of the volume, among `count` planes, zero but for its own."""
        xp, volume = self.xp, self.x[:, planes, ...]
        n, depth = volume.shape[:2]
        images, weight = images_of(volume), self.weight[..., tap, :, :]
        y = planes_of(of_planes(images, weight, layout=LAYOUTS[self.layout], out_dtype=self.out_dtype), n, depth)
        blank = xp.zeros_like(y[:, :1, ...])
        after = count - before - depth
        return xp.concat([*[blank] * before, y, *[blank] * after], axis=1) if before or after else y

    def result(self, total: Any) -> Any:
        """The result of the sums of planes: with the bias, in the layout and the dtype of the call."""
        xp, last = self.xp, self.layout == "NDHWC"
        if self.bias is not None:
            shape = (1, 1, 1, 1, -1) if last else (1, 1, -1, 1, 1)
            total = xp.add(total, xp.astype(xp.reshape(self.bias, shape), total.dtype))
        y = total if last else xp.permute_dims(total, (0, 2, 1, 3, 4))
        return y if self.narrow is None else xp.astype(y, self.narrow)


def _sum(terms: Iterator[Any], add: Callable[[Any, Any], Any]) -> Any:
    """The sum in pairs; None of no terms."""
    first = next(terms, None)
    if first is None:
        return None

    def all_terms() -> Iterator[Any]:
        yield first
        yield from terms

    return summed(all_terms(), add)
