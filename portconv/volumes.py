"""Convolutions of volumes, `conv3d` and `conv_transpose3d`: sums of those of planes, one for each of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from .arrays import array_namespace
from .core.array_types import library_of
from .core.dtypes import compute_dtype, promote
from .core.integers import Pair, integer, pair, sequence_of_two
from .core.shapes import dilated, met_taps, output_size, same_padding
from .dispatch import path, registry
from .dispatch.arguments import chosen
from .engines.accuracy import accumulate
from .functional import conv2d
from .transposed import conv_transpose2d

__all__ = ["conv3d", "conv_transpose3d"]

Triple = tuple[int, int, int]
Sides = tuple[Pair, Pair, Pair]

LAYOUTS = {"NCDHW": "NCHW", "NDHWC": "NHWC"}  # of a volume, and of its planes


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
    layout: str = "NCDHW",
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
        Volume, ``(N, C, D, H, W)``, or ``(N, D, H, W, C)`` with ``layout="NDHWC"``, of a floating dtype.
    weight
        ``(O, C/groups, kd, kh, kw)`` in either layout, or ``(groups, O/groups, C/groups, kd, kh, kw)``. Floating, of
        the same library.
    bias
        ``(1, O, 1, 1, 1)`` or ``(O,)``, or None.
    stride, dilation
        An int, or three of them (depth, height, width).
    padding
        The same, or ``((front, back), (top, bottom), (left, right))``, ``"valid"`` or ``"same"`` as in `conv2d`. It is
        of zeros.
    groups
        Groups of channels that are convolved apart; it divides `C` and `O`.
    layout
        ``"NCDHW"`` or ``"NDHWC"``, of `x` and of the result.
    conv_mode, engine, accuracy, strategy, backend
        As in `conv2d`, for each plane of the kernel.

    Returns
    -------
    array
        ``(N, O, od, oh, ow)``, or ``(N, od, oh, ow, O)``, of the dtype to which those of the arguments promote.

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
    strides, dilations = _triple("stride", stride, 1), _triple("dilation", dilation, 1)
    same = isinstance(padding, str) and padding == "same"
    given = None if same else _sides(padding, "'same'")
    volumes = _Volumes(x, weight, bias, layout, backend)
    depth, kd = volumes.size[0], weight.shape[-3]
    axes = zip(volumes.size, weight.shape[-3:], strides, dilations, strict=True)
    front, *sides = given or [same_padding(*axis) for axis in axes]
    od = output_size(depth, kd, strides[0], *front, dilations[0])
    if od < 1:
        raise ValueError(
            f"The kernel does not fit: with `dilation` {dilations} it is deeper than the volume with its `padding`. "
            f"x.shape = {tuple(x.shape)}, weight.shape = {tuple(weight.shape)}."
        )
    if next(met_taps(od, depth, kd, strides[0], dilations[0], front[0]), None) is None:
        raise ValueError(f"`padding` {padding} is so large that no plane of the kernel meets the volume.")
    of_planes = partial(
        conv2d, stride=strides[1:], padding=tuple(sides), dilation=dilations[1:], groups=groups, conv_mode=conv_mode,
        engine=engine, accuracy=accuracy, strategy=strategy, backend=backend,
    )  # fmt: skip

    def terms() -> Iterator[Any]:
        for tap, first, last in met_taps(od, depth, kd, strides[0], dilations[0], front[0]):
            before = (first + front[0] - tap * dilations[0]) // strides[0]
            yield volumes.term(of_planes, tap, slice(first, last + 1, strides[0]), before, od)

    return volumes.result(_sum(terms()))


def conv_transpose3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    conv_mode: str = "cross_correlation",
    *,
    layout: str = "NCDHW",
    engine: str = "auto",
    accuracy: str = "normwise",
    strategy: str = "heuristic",
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
    strides, dilations = _triple("stride", stride, 1), _triple("dilation", dilation, 1)
    (front, back), *sides = _sides(padding)
    extra = _triple("output_padding", output_padding, 0)
    step = strides[0]
    if extra[0] >= step:
        raise ValueError(f"`output_padding` must be less than `stride`, {strides}, but got {extra}.")
    volumes = _Volumes(x, weight, bias, layout, backend)
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

    sums = [_sum(terms(phase)) for phase in range(step)]
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


class _Volumes:
    """The arrays of a call, checked, and what is done with planes of them: stacks are (N, planes, plane)."""

    def __init__(self, x: Any, weight: Any, bias: Any, layout: Any, backend: Any) -> None:
        self.layout = chosen("layout", layout, tuple(LAYOUTS))
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
        self.out_dtype = None if wide == dtype else wide  # sums of planes are rounded once, at the end
        self.dtype = next(array for (_, array), name in zip(arguments, dtypes, strict=True) if name == dtype).dtype
        self.xp, self.weight, self.bias = array_namespace(x), weight, bias
        # planes first: a view, whichever the layout
        self.x = x if layout == "NDHWC" else self.xp.permute_dims(x, (0, 2, 1, 3, 4))
        sizes = tuple(x.shape)
        self.size: Triple = sizes[1:4] if layout == "NDHWC" else sizes[2:]
        if min(self.size[0], weight.shape[-3]) < 1:
            raise ValueError(
                f"`x` and `weight` must have a depth of at least 1, but got {self.size[0]} and {weight.shape[-3]}."
            )

    def term(self, of_planes: Callable[..., Any], tap: int, planes: slice, before: int, count: int) -> Any:
        """What one plane of the kernel makes of these of the volume, among `count` planes, zero but for its own."""
        xp, volume = self.xp, self.x[:, planes, ...]
        n, depth, *plane = volume.shape
        images = xp.reshape(volume, (n * depth, *plane))
        y = of_planes(images, self.weight[..., tap, :, :], layout=LAYOUTS[self.layout], out_dtype=self.out_dtype)
        y = xp.reshape(y, (n, depth, *y.shape[1:]))
        blank = xp.zeros_like(y[:, :1, ...])
        after = count - before - depth
        return xp.concat([*[blank] * before, y, *[blank] * after], axis=1) if before or after else y

    def result(self, total: Any) -> Any:
        """The result of the sums of planes: with the bias, in the layout and the dtype of the call."""
        xp, last = self.xp, self.layout == "NDHWC"
        if self.bias is not None:
            shape = (1, 1, 1, 1, -1) if last else (1, 1, -1, 1, 1)
            total = total + xp.astype(xp.reshape(self.bias, shape), total.dtype)
        y = total if last else xp.permute_dims(total, (0, 2, 1, 3, 4))
        return y if self.out_dtype is None else xp.astype(y, self.dtype)


def _sum(terms: Iterator[Any]) -> Any:
    """The sum in pairs; None of no terms."""
    first = next(terms, None)
    if first is None:
        return None

    def all_terms() -> Iterator[Any]:
        yield first
        yield from terms

    return accumulate(all_terms(), lambda sums, term: term if sums is None else sums + term)


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


def _sides(padding: Any, *words: str) -> Sides:
    """Padding with six sides, of an int, three of them, or three pairs; "valid" is none. `words` are allowed, too."""
    if isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"`padding` as a string must be {' or '.join([*words, repr('valid')])}, not {padding!r}.")
        padding = 0
    items = sequence_of_two(padding)
    if items is None or not any(sequence_of_two(item) is not None for item in items):
        depth, height, width = _triple("padding", padding, 0)
        return (depth, depth), (height, height), (width, width)
    if len(items) != 3:
        raise ValueError(f"`padding` with six sides must be three pairs (depth, height, width), but got {padding!r}.")
    depths, heights, widths = (pair(f"padding[{axis}]", item, 0) for axis, item in enumerate(items))
    return depths, heights, widths
