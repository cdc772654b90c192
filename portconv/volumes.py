"""Convolutions of volumes, `conv3d`: sums of convolutions of planes, one for each plane of the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .arrays import array_namespace
from .core.array_types import library_of
from .core.dtypes import compute_dtype, promote
from .core.integers import integer, sequence_of_two
from .core.shapes import met_taps, output_size
from .dispatch import path, registry
from .engines.accuracy import accumulate
from .functional import conv2d

__all__ = ["conv3d"]

Triple = tuple[int, int, int]


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    conv_mode: str = "cross_correlation",
    *,
    engine: str = "auto",
    accuracy: str = "normwise",
    strategy: str = "heuristic",
    backend: Any = None,
) -> Any:
    """Three-dimensional convolution (cross-correlation) of an array of any library.

    Each plane of the kernel is a `conv2d` of all planes of the volume that it meets; their results are added in pairs.
    The order of the arguments is that of ``megengine.functional.conv3d``.

    Parameters
    ----------
    x
        Volume, ``(N, C, D, H, W)``, of a floating dtype.
    weight
        ``(O, C/groups, kd, kh, kw)`` or ``(groups, O/groups, C/groups, kd, kh, kw)``. Floating, of the same library.
    bias
        ``(1, O, 1, 1, 1)`` or ``(O,)``, or None.
    stride, padding, dilation
        An int, or three of them (depth, height, width). The padding is of zeros.
    groups
        Groups of channels that are convolved apart; it divides `C` and `O`.
    conv_mode, engine, accuracy, strategy, backend
        As in `conv2d`, for each plane of the kernel.

    Returns
    -------
    array
        ``(N, O, od, oh, ow)``, of the dtype to which those of the arguments promote.

    Raises
    ------
    TypeError, ValueError, UnsupportedError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> y = portconv.conv3d(np.ones((1, 2, 5, 8, 8), np.float32), np.ones((4, 2, 3, 3, 3), np.float32), padding=1)
    >>> y.shape, float(y[0, 0, 0, 0, 0]), float(y[0, 0, 2, 4, 4])
    ((1, 4, 5, 8, 8), 16.0, 54.0)
    """
    strides, sides, dilations = (
        _triple("stride", stride, 1),
        _triple("padding", padding, 0),
        _triple("dilation", dilation, 1),
    )
    for name, array, axes in (("x", x, (5,)), ("weight", weight, (5, 6)), ("bias", bias, (1, 5))):
        if array is None and name == "bias":
            continue
        if library_of(array) is None:
            raise TypeError(f"`{name}` must be an array, but got {type(array).__name__}.")
        if len(array.shape) not in axes:
            allowed = " or ".join(str(n) for n in axes)
            raise ValueError(f"`{name}` must have {allowed} axes, but got shape {tuple(array.shape)}.")
    library = registry.resolve(x, backend)
    arguments = [("x", x), ("weight", weight)] + ([] if bias is None else [("bias", bias)])
    dtypes = [info.dtype for info in path.described(library, arguments)]
    dtype = promote(dtypes[0], dtypes[1], None if bias is None else dtypes[2])
    wide = compute_dtype(dtype)
    (n, channels, depth, height, width), kd = tuple(x.shape), weight.shape[-3]
    if min(depth, kd) < 1:
        raise ValueError(f"`x` and `weight` must have a depth of at least 1, but got {depth} and {kd}.")
    od = output_size(depth, kd, strides[0], sides[0], sides[0], dilations[0])
    if od < 1:
        raise ValueError(
            f"The kernel does not fit: with `dilation` {dilations} it is deeper than the volume with its `padding`. "
            f"x.shape = {tuple(x.shape)}, weight.shape = {tuple(weight.shape)}."
        )
    xp = array_namespace(x)
    options: dict[str, Any] = {
        "engine": engine, "accuracy": accuracy, "strategy": strategy, "backend": backend,
        "out_dtype": None if wide == dtype else wide,
    }  # fmt: skip

    def of_planes(volume: Any, tap: int) -> Any:
        """The sums of one plane of the kernel over some planes, (N, planes, O, oh, ow)."""
        planes = volume.shape[2]
        images = xp.reshape(xp.permute_dims(volume, (0, 2, 1, 3, 4)), (n * planes, channels, height, width))
        y = conv2d(
            images, weight[..., tap, :, :], None, strides[1:], sides[1:], dilations[1:], groups, conv_mode, **options
        )
        return xp.reshape(y, (n, planes, *y.shape[1:]))

    def terms() -> Iterator[Any]:
        for tap, first, last in met_taps(od, depth, kd, strides[0], dilations[0], sides[0]):
            y = of_planes(x[:, :, first : last + 1 : strides[0], :, :], tap)
            before = (first + sides[0] - tap * dilations[0]) // strides[0]
            after = od - before - y.shape[1]
            # planes that this one of the kernel does not meet
            like = y[:, :1, ...]
            around = [xp.zeros_like(like)] * before, [xp.zeros_like(like)] * after
            yield xp.concat([*around[0], y, *around[1]], axis=1) if before or after else y

    if next(met_taps(od, depth, kd, strides[0], dilations[0], sides[0]), None) is None:
        raise ValueError(f"`padding` {sides} is so large that no plane of the kernel meets the volume.")
    total = accumulate(terms(), lambda sums, term: term if sums is None else sums + term)
    if bias is not None:
        total = total + xp.astype(xp.reshape(bias, (1, 1, -1, 1, 1)), total.dtype)
    result = xp.permute_dims(total, (0, 2, 1, 3, 4))
    if wide == dtype:
        return result
    narrow = next(array for (_, array), name in zip(arguments, dtypes, strict=True) if name == dtype)
    return xp.astype(result, narrow.dtype)


def _triple(name: str, value: Any, minimum: int) -> Triple:
    """An int, or three of them as (depth, height, width)."""
    items = sequence_of_two(value)
    if items is None:
        single = integer(name, value, minimum)
        return single, single, single
    if len(items) != 3:
        raise ValueError(f"`{name}` must be an int or three of them (depth, height, width), but got {value!r}.")
    depth, height, width = (integer(f"{name}[{axis}]", item, minimum) for axis, item in enumerate(items))
    return depth, height, width
