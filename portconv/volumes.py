"""Convolutions of volumes, `conv3d`: sums of convolutions of planes, one for each plane of the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from .arrays import array_namespace
from .core import hints
from .core.array_types import library_of
from .core.backend import Backend
from .core.dtypes import FLOATING, compute_dtype, promote
from .core.errors import no_array
from .core.integers import Pair, integer, pair, sequence_of_two
from .core.shapes import met_taps, output_size, ranges, same_padding
from .dispatch import path, registry
from .dispatch.arguments import check_channels, chosen
from .engines.accuracy import TERMS, in_pairs, summed
from .functional import conv2d
from .gradient import checked_wrt, conv2d_vjp

if TYPE_CHECKING:
    from .core.words import Accuracy, ConvMode, Layout, Strategy, VolumeLayout
    from .signatures import PaddingLike, Size

__all__ = [
    "HALVES",
    "LAYOUTS",
    "arrays_of",
    "bias_gradient",
    "check_cotangent",
    "conv3d",
    "conv3d_vjp",
    "images_of",
    "operations_of",
    "planes_of",
    "shapes_of",
    "sides_of",
    "triple",
    "wanted_of",
    "widened",
]

Triple = tuple[int, int, int]
Sides = tuple[Pair, Pair, Pair]
LAYOUTS: dict[str, Layout] = {"NCDHW": "NCHW", "NDHWC": "NHWC"}  # of a volume, and of its planes
HALVES = ("float16", "bfloat16")


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
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
    """Three-dimensional convolution (cross-correlation) of an array of any library.

    Each plane of the kernel is a `conv2d` of all planes of the volume that it meets; the sums so far are its residual.
    The order of the arguments is that of ``megengine.functional.conv3d``.

    Parameters
    ----------
    x
        Volume, ``(N, C, D, H, W)``, or ``(N, D, H, W, C)`` with ``layout="NDHWC"``; see `conv2d` for its dtypes.
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
    volume = _Volume.of(x, weight, bias, stride, padding, dilation, groups, layout, backend)
    options: dict[str, Any] = {
        "engine": engine, "accuracy": accuracy, "strategy": strategy, "backend": volume.library,
    }  # fmt: skip
    return volume.result(partial(conv2d, groups=groups, conv_mode=conv_mode, **options))


def conv3d_vjp(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: PaddingLike = 0,
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
    """`conv3d`, and a function that gives the gradients of its arguments: a vector-Jacobian product.

    See `portconv.conv2d_vjp` for `wrt` and the results, and `conv3d` for the other arguments.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x, weight = np.ones((1, 2, 4, 5, 5), np.float32), np.ones((4, 2, 2, 3, 3), np.float32)
    >>> y, vjp = portconv.conv3d_vjp(x, weight)
    >>> dx, dweight, dbias = vjp(np.ones_like(y))
    >>> y.shape, dx.shape, float(dx[0, 0, 1, 2, 2]), dweight.shape, dbias is None
    ((1, 4, 3, 3, 3), (1, 2, 4, 5, 5), 72.0, (4, 2, 2, 3, 3), True)
    """
    volume = _Volume.of(x, weight, bias, stride, padding, dilation, groups, layout, backend)
    wanted = wanted_of(wrt, volume.dtypes[0], bias)
    factors = tuple(name for name in wanted if name != "bias")
    options = {"engine": engine, "accuracy": accuracy, "strategy": strategy, "backend": volume.library}
    pullbacks: list[Callable[[Any], tuple[Any, ...]]] = []  # of the planes of the kernel, as `volume.taps`

    def convolve(*arrays: Any, out_dtype: Any, **given: Any) -> Any:
        given |= options | {"groups": groups, "conv_mode": conv_mode}
        if not factors:
            return conv2d(*arrays, out_dtype=out_dtype, **given)
        y, pull = conv2d_vjp(*arrays, **given, wrt=factors)
        pullbacks.append(pull)
        return y

    y = volume.result(convolve)

    def vjp(dy: Any) -> tuple[Any, ...]:
        check_cotangent(volume.library, y, dy)
        return volume.gradients(dy, pullbacks, wanted)

    return y, vjp


def wanted_of(wrt: Sequence[str] | str | None, x_dtype: str, bias: Any) -> tuple[str, ...]:
    """The arguments whose gradients are wanted: those named, or all that have one."""
    names = checked_wrt(wrt)
    for name in names or ():
        if name == "residual" or (name == "bias" and bias is None):
            raise ValueError(f"`wrt` names {name!r}, but there is no `{name}`.")
    floating = () if names or x_dtype not in FLOATING else ("x",)
    return tuple(names or (*floating, "weight", *(() if bias is None else ("bias",))))


def check_cotangent(library: Backend, y: Any, dy: Any) -> str:
    """Refuse one that is not like the result; its dtype."""
    made, info = path.described(library, [("y", y), ("dy", dy)])
    if info.shape != tuple(y.shape):
        raise ValueError(f"`dy` must have the shape of the result, {tuple(y.shape)}, but got {info.shape}.")
    if info.dtype != made.dtype:
        raise TypeError(
            f"`dy` must have the dtype of the result, {made.dtype}, but got {info.dtype}. "
            f"Convert it: `astype({made.dtype!r})`."
        )
    return info.dtype


def operations_of(library: Backend, x: Any) -> Any:
    """The namespace of a library's arrays, whose `add` and `astype` do not warn; results are computed with no others.

    Dask's own do, where they are computed later.
    """
    return getattr(library, "operations", None) or array_namespace(x)


def widened(xp: Any, array: Any, name: str, dtype: str) -> Any:
    """An array of the dtype of this name in that of the sums, if it is floating, for a result of another dtype.

    It is cast as a whole: the gradients of the planes of the kernel are added in the dtype that it has.
    """
    wide = compute_dtype(dtype)
    return xp.astype(array, getattr(xp, wide)) if name in FLOATING and name != wide else array


def bias_gradient(xp: Any, dy: Any, bias: Any) -> Any:
    """The sums of a cotangent whose channels come last, in pairs, in the shape and the dtype of the bias."""
    if dy.shape[0]:
        total = in_pairs(xp.reshape(dy, (math.prod(dy.shape[:4]), dy.shape[4])), xp.add)
    else:
        total = xp.sum(dy, axis=(0, 1, 2, 3))
    return xp.reshape(xp.astype(total, bias.dtype), tuple(bias.shape))


@dataclass(frozen=True)
class _Tap:
    """A plane of the kernel, the planes of the volume that it meets, and those of the result that it adds to."""

    tap: int
    read: slice
    made: slice


@dataclass(frozen=True)
class _Volume:
    """The arguments of a call, after the checks that those of its planes do not have."""

    library: Backend
    layout: str  # of the volume and of the result
    x: Any  # (N, D, C, H, W) or (N, D, H, W, C), of the dtype of the sums unless it is of integers
    bias: Any  # (O,), likewise
    given: tuple[Any, Any, Any]  # image, weight and bias as the user has them
    depth: int  # of the result
    taps: list[_Tap]
    planes: dict[str, Any]  # stride, padding, dilation and layout of the planes
    dtypes: list[str]  # of `given`
    dtype: str  # of the result

    @classmethod
    def of(
        cls, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, layout: Any,
        backend: Any,
    ) -> _Volume:  # fmt: skip
        strides, dilations = triple("stride", stride, 1), triple("dilation", dilation, 1)
        same = isinstance(padding, str) and padding == "same"
        given = None if same else sides_of(padding, "'same'")
        library, dtypes, dtype, size = arrays_of(x, weight, bias, layout, backend)
        check_channels(*shapes_of(x, weight, bias), integer("groups", groups, 1), layout)
        depth, kd = size[0], weight.shape[-3]
        axes = zip(size, weight.shape[-3:], strides, dilations, strict=True)
        front, *sides = given or [same_padding(*axis) for axis in axes]
        od = output_size(depth, kd, strides[0], *front, dilations[0])
        if od < 1:
            raise ValueError(
                f"The kernel does not fit: with `dilation` {dilations} it is deeper than the volume with its "
                f"`padding`. x.shape = {tuple(x.shape)}, weight.shape = {tuple(weight.shape)}."
            )
        taps = []
        for tap, first, last in met_taps(od, depth, kd, strides[0], dilations[0], front[0]):
            before = (first + front[0] - tap * dilations[0]) // strides[0]
            made = slice(before, before + (last - first) // strides[0] + 1)
            taps.append(_Tap(tap, slice(first, last + 1, strides[0]), made))
        if not taps:
            raise ValueError(f"`padding` {padding} is so large that no plane of the kernel meets the volume.")
        taps.sort(key=lambda tap: tap.made.stop - tap.made.start)  # the last one stores the whole result, as a rule
        xp, arrays = array_namespace(x), (x, weight, bias)
        x = widened(xp, x, dtypes[0], dtype)
        if bias is not None:
            bias = xp.reshape(widened(xp, bias, dtypes[2], dtype), (-1,))
        planes = {
            "stride": strides[1:], "padding": tuple(sides), "dilation": dilations[1:], "layout": LAYOUTS[layout],
        }  # fmt: skip
        planes_first = x if layout == "NDHWC" else xp.permute_dims(x, (0, 2, 1, 3, 4))
        return cls(library, layout, planes_first, bias, arrays, od, taps, planes, dtypes, dtype)

    @property
    def _xp(self) -> Any:
        return operations_of(self.library, self.x)

    @property
    def _narrow(self) -> bool:
        """Whether the result is rounded to another dtype than that of the sums."""
        return compute_dtype(self.dtype) != self.dtype

    def result(self, convolve: Callable[..., Any]) -> Any:
        """The result by `conv2d`, or by what does the same."""
        xp = self._xp
        runs = ranges(len(self.taps), TERMS["elementwise"])  # of planes that are added one after the other
        with np.errstate(all="ignore"):
            total = summed((self._sum(run, convolve, len(runs) == 1) for run in runs), xp.add)
            if self._narrow:
                narrow = next(a.dtype for a, name in zip(self.given, self.dtypes, strict=False) if name == self.dtype)
                total = total if total.dtype == narrow else xp.astype(total, narrow)
        return self._turned(total)

    @property
    def _channels(self) -> int:
        """The axis of the channels among planes."""
        return 4 if self.layout == "NDHWC" else 2

    def _turned(self, volume: Any) -> Any:
        """From the layout of the call to planes first, or back."""
        return volume if self.layout == "NDHWC" else array_namespace(volume).permute_dims(volume, (0, 2, 1, 3, 4))

    def _sum(self, run: slice, convolve: Callable[..., Any], alone: bool) -> Any:
        """The sums of some planes of the kernel, (N, planes, plane); with the bias if they are the first."""
        xp, total, weight = self._xp, None, self.given[1]
        bias = None if run.start else self.bias
        for tap in self.taps[run]:
            images, whole = self.x[:, tap.read, ...], tap.made == slice(0, self.depth)
            y = convolve(
                images_of(images), weight[..., tap.tap, :, :], bias if total is None else None, **self.planes,
                residual=None if total is None else images_of(total[:, tap.made, ...]),
                out_dtype=self.dtype if self._narrow and alone and whole and tap is self.taps[-1] else None,
            )  # fmt: skip
            y = planes_of(y, *images.shape[:2])
            if not whole:
                rest = total
                if rest is None:  # planes that this one of the kernel does not meet
                    blank = xp.zeros_like(y[:, :1, ...])
                    if bias is not None:
                        shape = tuple(1 if axis != self._channels else -1 for axis in range(5))
                        blank = blank + xp.reshape(xp.astype(bias, y.dtype), shape)
                    rest = xp.concat([blank] * self.depth, axis=1)
                y = xp.concat([rest[:, : tap.made.start, ...], y, rest[:, tap.made.stop :, ...]], axis=1)
            total = y
        return total

    def gradients(
        self, dy: Any, pullbacks: Sequence[Callable[[Any], tuple[Any, ...]]], wanted: Sequence[str]
    ) -> tuple[Any, ...]:
        """Of image, weight and bias, from the functions that the planes of the kernel gave; None if not wanted."""
        xp, (x, weight, bias) = self._xp, self.given
        dy = self._turned(dy if not self._narrow else xp.astype(dy, xp.float32))
        of_planes: list[list[Any]] = [[] for _ in range(self.x.shape[1])]
        of_taps: list[Any] = [None] * weight.shape[-3]
        with np.errstate(all="ignore"):
            for tap, pull in zip(self.taps, pullbacks, strict=False):
                part = dy[:, tap.made, ...]
                of_images, of_taps[tap.tap], _ = pull(images_of(part))[:3]
                if of_images is not None:
                    found = planes_of(of_images, *part.shape[:2])
                    for n, plane in enumerate(range(self.x.shape[1])[tap.read]):
                        of_planes[plane].append(found[:, n, ...])
            dx = dweight = dbias = None
            if "x" in wanted:
                blank = xp.zeros_like(self.x[:, 0, ...])
                dx = xp.stack([reduce(xp.add, parts) if parts else blank for parts in of_planes], axis=1)
                dx = self._turned(dx)
                dx = dx if dx.dtype == x.dtype else xp.astype(dx, x.dtype)
            if "weight" in wanted:
                blank = xp.zeros_like(next(found for found in of_taps if found is not None))
                dweight = xp.stack([blank if found is None else found for found in of_taps], axis=-3)
            if "bias" in wanted:
                dbias = bias_gradient(xp, dy if self.layout == "NDHWC" else xp.permute_dims(dy, (0, 1, 3, 4, 2)), bias)
        return dx, dweight, dbias


def images_of(planes: Any) -> Any:
    """(N, planes, plane) as images."""
    n, count, *rest = planes.shape
    if n == 0:  # which Dask cannot reshape
        return planes[:, 0, ...]
    return array_namespace(planes).reshape(planes, (n * count, *rest))


def planes_of(images: Any, n: int, count: int) -> Any:
    """The images as (N, planes, plane)."""
    xp = array_namespace(images)
    if n == 0:
        return xp.concat([images[:, None, ...]] * count, axis=1)
    return xp.reshape(images, (n, count, *images.shape[1:]))


def arrays_of(x: Any, weight: Any, bias: Any, layout: Any, backend: Any) -> tuple[Backend, list[str], str, Triple]:
    """The library of a call's arrays, their dtypes, that of the result, and the size of the volume.

    The checks are those that the arrays of its planes do not have.
    """
    last = LAYOUTS[chosen("layout", layout, tuple(LAYOUTS))] == "NHWC"
    for name, array, axes in (("x", x, (5,)), ("weight", weight, (5, 6)), ("bias", bias, (1, 5))):
        if array is None and name == "bias":
            continue
        if library_of(array) is None:
            raise no_array(name, array)
        if len(array.shape) not in axes:
            allowed = " or ".join(str(n) for n in axes)
            mend = hints.unbatched(tuple(array.shape), 5) if name == "x" else ""
            if name == "weight" and len(array.shape) == 4:
                mend = " A kernel of one plane gets its depth by weight[..., None, :, :]."
            raise ValueError(f"`{name}` must have {allowed} axes, but got shape {tuple(array.shape)}.{mend}")
    library = registry.resolve(x, backend)
    arguments = [("x", x), ("weight", weight)] + ([] if bias is None else [("bias", bias)])
    dtypes = [info.dtype for info in path.described(library, arguments)]
    dtype = promote(dtypes[0], dtypes[1], None if bias is None else dtypes[2])
    size: Triple = tuple(x.shape)[1:4] if last else tuple(x.shape)[2:]
    if min(size[0], weight.shape[-3]) < 1:
        raise ValueError(f"`x` and `weight` must have a depth of at least 1, but got {size[0]} and {weight.shape[-3]}.")
    return library, dtypes, dtype, size


def shapes_of(x: Any, weight: Any, bias: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
    """Those of a call's arrays, for what checks them against each other before their planes are taken."""
    return tuple(x.shape), tuple(weight.shape), None if bias is None else tuple(bias.shape)


def triple(name: str, value: Any, minimum: int) -> Triple:
    """An int, or three of them as (depth, height, width)."""
    items = sequence_of_two(value)
    if items is None:
        single = integer(name, value, minimum)
        return single, single, single
    if len(items) != 3:
        raise ValueError(f"`{name}` must be an int or three of them (depth, height, width), but got {value!r}.")
    depth, height, width = (integer(f"{name}[{axis}]", item, minimum) for axis, item in enumerate(items))
    return depth, height, width


def sides_of(padding: Any, *words: str) -> Sides:
    """Padding with six sides, of an int, three of them, or three pairs; "valid" is none. `words` are allowed, too."""
    if isinstance(padding, str):
        if padding != "valid":
            why = "" if words else " The result of a transposed convolution has no size of its own: give numbers."
            allowed = " or ".join([*words, repr("valid")])
            raise ValueError(f"`padding` as a string must be {allowed}, not {padding!r}.{why}")
        padding = 0
    items = sequence_of_two(padding)
    if items is None or not any(sequence_of_two(item) is not None for item in items):
        depth, height, width = triple("padding", padding, 0)
        return (depth, depth), (height, height), (width, width)
    if len(items) != 3:
        raise ValueError(f"`padding` with six sides must be three pairs (depth, height, width), but got {padding!r}.")
    depths, heights, widths = (pair(f"padding[{axis}]", item, 0) for axis, item in enumerate(items))
    return depths, heights, widths
