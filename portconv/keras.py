"""Keras's convolutions and pooling on NumPy arrays, which its NumPy back end takes from JAX, by portconv.

`install` puts them into Keras, whose models then run on its NumPy back end without a call of JAX. The functions have
the names and the signatures of ``keras.src.backend.numpy.nn``; where `data_format` is given and the arrays are NumPy's,
they need no Keras. A kernel of one or two axes that is used again is kept as a copy and packed, until it is gone; one
that changes in place is seen.

Examples
--------
>>> import os
>>> os.environ["KERAS_BACKEND"] = "numpy"  # doctest: +SKIP
>>> import keras, portconv.keras  # doctest: +SKIP
>>> portconv.keras.install()  # doctest: +SKIP
>>> model = keras.applications.MobileNet(weights=None)  # doctest: +SKIP
>>> model.predict(images)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from .core.integers import Pair, integer, pair, sequence_of_two
from .core.shapes import dilated
from .dispatch.arguments import chosen
from .functional import conv2d
from .transposed import conv_transpose2d
from .volumes import conv3d
from .volumes_transposed import conv_transpose3d
from .windows import avg_pool2d, max_pool2d

__all__ = [
    "average_pool",
    "conv",
    "conv_transpose",
    "depthwise_conv",
    "install",
    "max_pool",
    "separable_conv",
    "uninstall",
]

Array = np.ndarray[Any, Any]

BACKEND = "keras.src.backend.numpy"
LAYOUTS = {"channels_first": ("NCHW", "NCDHW"), "channels_last": ("NHWC", "NDHWC")}  # of images, and of volumes


def conv(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    """Convolution along one, two or three axes, as ``keras.ops.conv``.

    Parameters
    ----------
    inputs
        Image, ``(N, *sizes, C)`` with one to three sizes, or ``(N, C, *sizes)`` with
        ``data_format="channels_first"``. An array of NumPy, or what Keras makes one of.
    kernel
        ``(*kernel_sizes, C/groups, O)``, floating: as many groups of channels as its inputs ask for.
    strides, dilation_rate
        An int, or one for each axis.
    padding
        ``"valid"`` or ``"same"``, in any case, or a pair (before, after) for each axis.
    data_format
        ``"channels_last"`` or ``"channels_first"``; None is Keras's ``image_data_format``.

    Returns
    -------
    array
        ``(N, *out_sizes, O)``, or ``(N, O, *out_sizes)``, of the dtype to which those of the arguments promote: float64
        stays float64. See `portconv.conv2d` for its error.

    Raises
    ------
    TypeError, ValueError
        As `portconv.conv2d`; a `ValueError` also where nothing would be left of the image.
    ImportError
        If Keras is asked, and is not installed.

    Examples
    --------
    >>> import numpy as np, portconv.keras
    >>> image, kernel = np.ones((1, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
    >>> y = portconv.keras.conv(image, kernel, strides=2, padding="same", data_format="channels_last")
    >>> y.shape, float(y[0, 0, 0, 0])
    ((1, 4, 4, 4), 27.0)
    """
    call = _Call(inputs, kernel, data_format)
    call.check_channels(-2, groups=True)
    return call.convolved(call.kernel.shape[-2:], strides, padding, dilation_rate)


def depthwise_conv(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    """Convolution of each channel by itself, as ``keras.ops.depthwise_conv``.

    Parameters
    ----------
    inputs, strides, padding, data_format, dilation_rate
        As in `conv`.
    kernel
        ``(*kernel_sizes, C, M)``, floating: `M` results for each channel.

    Returns
    -------
    array
        As of `conv`, with ``C * M`` channels, those of one channel of the image side by side.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `conv`.

    Examples
    --------
    >>> import numpy as np, portconv.keras
    >>> image, kernel = np.ones((1, 8, 8, 3), np.float32), np.ones((3, 3, 3, 2), np.float32)
    >>> portconv.keras.depthwise_conv(image, kernel, data_format="channels_last").shape
    (1, 6, 6, 6)
    """
    call = _Call(inputs, kernel, data_format)
    call.check_channels(-2)
    return call.convolved((1, call.channels * call.kernel.shape[-1]), strides, padding, dilation_rate)


def separable_conv(
    inputs: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: Any = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    """`depthwise_conv`, and a `conv` with a kernel of one pixel of its result, as ``keras.ops.separable_conv``.

    Parameters
    ----------
    inputs, strides, padding, data_format, dilation_rate
        As in `conv`.
    depthwise_kernel
        ``(*kernel_sizes, C, M)``, floating.
    pointwise_kernel
        ``(1, ..., C * M, O)``, floating.

    Returns
    -------
    array
        As of `conv`.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `conv`.

    Examples
    --------
    >>> import numpy as np, portconv.keras
    >>> image, depthwise = np.ones((1, 8, 8, 3), np.float32), np.ones((3, 3, 3, 2), np.float32)
    >>> pointwise = np.ones((1, 1, 6, 5), np.float32)
    >>> y = portconv.keras.separable_conv(image, depthwise, pointwise, data_format="channels_last")
    >>> y.shape, float(y[0, 0, 0, 0])
    ((1, 6, 6, 5), 54.0)
    """
    y = depthwise_conv(inputs, depthwise_kernel, strides, padding, data_format, dilation_rate)
    return conv(y, pointwise_kernel, data_format=data_format)


def conv_transpose(
    inputs: Any,
    kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    output_padding: Any = None,
    data_format: str | None = None,
    dilation_rate: Any = 1,
) -> Any:
    """Transposed convolution along one, two or three axes, as ``keras.ops.conv_transpose``.

    Parameters
    ----------
    inputs, data_format, strides, dilation_rate
        As in `conv`.
    kernel
        ``(*kernel_sizes, O, C)``, floating.
    padding
        ``"valid"`` or ``"same"``, in any case. With `n` pixels, a stride `s` and a dilated kernel of `k`, the result
        has ``(n - 1) * s + max(k, s)`` pixels with ``"valid"`` and ``n * s`` with ``"same"``.
    output_padding
        None, or an int, or one for each axis: the result has ``(n - 1) * s + k`` pixels, or ``(n - 1) * s + k % 2``
        with ``"same"``, and so many more.

    Returns
    -------
    array
        As of `conv`.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `conv`.

    Examples
    --------
    >>> import numpy as np, portconv.keras
    >>> image, kernel = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 5, 3), np.float32)
    >>> y = portconv.keras.conv_transpose(image, kernel, strides=2, padding="same", data_format="channels_last")
    >>> y.shape
    (1, 8, 8, 5)
    """
    call = _Call(inputs, kernel, data_format)
    call.check_channels(-1)
    stride, dilation = call.numbers("strides", strides, 1), call.numbers("dilation_rate", dilation_rate, 1)
    added: Sequence[int | None] = [None] * len(stride)
    if output_padding is not None:
        added = call.numbers("output_padding", output_padding, 0, of_height=0)
    same = _word(padding) == "same"
    extents = map(dilated, call.kernel_sizes, dilation)
    cuts = [_cut(extent, s, same, more) for extent, s, more in zip(extents, stride, added, strict=True)]
    transposed: Any = conv_transpose3d if call.axes == 3 else conv_transpose2d
    y = transposed(
        call.x, call.weight(call.kernel.shape[-2:]), stride=stride, dilation=dilation,
        padding=[(before, max(after, 0)) for before, after in cuts], layout=call.layout,
    )  # fmt: skip
    if any(after < 0 for _, after in cuts):  # no tap meets what lies beyond
        beyond = [(0, max(-after, 0)) for _, after in cuts]
        y = np.pad(y, [(0, 0), *beyond, (0, 0)] if call.last else [(0, 0), (0, 0), *beyond])
    return call.result(y)


def max_pool(
    inputs: Any,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Any:
    """The largest number in each window of one to three axes, as ``keras.ops.max_pool``.

    Parameters
    ----------
    inputs, data_format
        As in `conv`; integers, too.
    pool_size
        Size of the window: an int, or one for each axis.
    strides
        The same; None is `pool_size`.
    padding
        ``"valid"`` or ``"same"``, in any case.

    Returns
    -------
    array
        ``(N, *out_sizes, C)``, or ``(N, C, *out_sizes)``, of the dtype of `inputs`.

    Raises
    ------
    TypeError, ValueError
        As `portconv.max_pool2d`.
    ImportError
        As `conv`.

    Examples
    --------
    >>> import numpy as np, portconv.keras
    >>> portconv.keras.max_pool(np.array([[[1], [4], [2]]]), 2, 1, data_format="channels_last").tolist()
    [[[4], [4]]]
    """
    return _pooled(max_pool2d, inputs, pool_size, strides, padding, data_format)


def average_pool(
    inputs: Any,
    pool_size: Any,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Any:
    """The mean of each window of one to three axes, without the padding, as ``keras.ops.average_pool``.

    Parameters
    ----------
    inputs, pool_size, strides, padding, data_format
        As in `max_pool`; floating.

    Returns
    -------
    array
        As of `max_pool`.

    Raises
    ------
    TypeError, ValueError, ImportError
        As `max_pool`.

    Examples
    --------
    >>> import numpy as np, portconv.keras
    >>> x = np.array([[[1], [3], [8]]], np.float32)
    >>> portconv.keras.average_pool(x, 2, padding="same", data_format="channels_last").tolist()
    [[[2.0], [8.0]]]
    """
    return _pooled(avg_pool2d, inputs, pool_size, strides, padding, data_format)


FUNCTIONS = (average_pool, conv, conv_transpose, depthwise_conv, max_pool, separable_conv)
_replaced: list[tuple[Any, str, Any]] = []  # module, name, and the function of Keras's that stood there


def install() -> None:
    """Put the functions of this module into Keras, in the place of its NumPy back end's own; twice is as good as once.

    Layers, models and ``keras.ops`` call them from then on, models that are already there, too. Keras itself still
    imports JAX, which must be installed, and calls it for what is no convolution and no pooling: Fourier transforms,
    and in versions before 3.15 the resizing of images.

    Raises
    ------
    RuntimeError
        If Keras's back end is another one. It is chosen before Keras is imported, by the environment variable
        ``KERAS_BACKEND`` or the file ``~/.keras/keras.json``.
    ImportError
        If Keras cannot be imported.

    Examples
    --------
    >>> import keras, portconv.keras  # doctest: +SKIP
    >>> portconv.keras.install()  # doctest: +SKIP
    >>> keras.layers.Conv2D(8, 3)(image)  # doctest: +SKIP
    """
    name = _keras().config.backend()
    if name != "numpy":
        raise RuntimeError(
            f"portconv.keras is for Keras's back end 'numpy', but Keras was imported with {name!r}. Set the "
            f"environment variable KERAS_BACKEND to 'numpy' before anything imports Keras."
        )
    importlib.import_module(f"{BACKEND}.nn")
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] == "keras"]:
        for function in FUNCTIONS:
            found = getattr(module, "__dict__", {}).get(function.__name__)
            # wherever one of Keras's has been imported to
            if isinstance(found, FunctionType) and found.__module__.startswith(f"{BACKEND}."):
                _replaced.append((module, function.__name__, found))
                setattr(module, function.__name__, function)


def uninstall() -> None:
    """Put Keras's own functions back; without `install` before nothing changes.

    Examples
    --------
    >>> import portconv.keras
    >>> portconv.keras.uninstall()
    """
    while _replaced:
        module, name, function = _replaced.pop()
        setattr(module, name, function)


class _Call:
    """The arrays of a call as NumPy's, and what their shapes and `data_format` say.

    What has one axis of pixels is an image one pixel high from here on.
    """

    def __init__(self, inputs: Any, kernel: Any, data_format: str | None) -> None:
        x, self.format = _array(inputs), _data_format(data_format)
        self.axes, self.last = x.ndim - 2, self.format == "channels_last"
        if self.axes not in (1, 2, 3):
            raise ValueError(
                f"`inputs` must have a batch, channels, and one to three axes of pixels, but got shape {x.shape}."
            )
        self.channels = x.shape[-1 if self.last else 1]
        self.layout = LAYOUTS[self.format][self.axes == 3]
        self.kernel = np.empty(0) if kernel is None else _array(kernel)
        self._inputs_shape = x.shape
        if kernel is not None and (self.kernel.ndim != x.ndim or 0 in self.kernel.shape):
            raise ValueError(
                f"`kernel` must have as many axes as `inputs`, two of them of channels, and none of size 0, but got "
                f"{self._shapes()}"
            )
        self._height = 1 if self.last else 2
        self.x = np.expand_dims(x, self._height) if self.axes == 1 else x
        self.kernel_sizes = (1,) * (self.axes == 1) + self.kernel.shape[:-2]

    def _shapes(self) -> str:
        return f"kernel.shape = {self.kernel.shape}, inputs.shape = {self._inputs_shape} with {self.format!r}."

    def check_channels(self, axis: int, groups: bool = False) -> None:
        """Whether this axis of the kernel has the channels of the image, or of a group of them."""
        found = self.kernel.shape[axis]
        if self.channels % found if groups else self.channels != found:
            raise ValueError(
                f"`kernel` is for {found} input channels{' a group' if groups else ''}, but `inputs` has "
                f"{self.channels} channels. {self._shapes()}"
            )

    def numbers(self, name: str, value: Any, minimum: int, of_height: int = 1) -> tuple[int, ...]:
        """One number for each axis of pixels, of an argument that may be a single one."""
        items = sequence_of_two(value)
        if items is None:
            items = [integer(name, value, minimum)] * self.axes
        elif len(items) != self.axes:
            raise ValueError(f"`{name}` must be an int, or {self.axes} of them, one for each axis, but got {value!r}.")
        found = [integer(f"{name}[{axis}]", item, minimum) for axis, item in enumerate(items)]
        return (of_height, *found) if self.axes == 1 else tuple(found)

    def sides(self, padding: Any) -> Any:
        """A word, or a pair for each axis of pixels."""
        if isinstance(padding, str):
            return _word(padding)
        items = sequence_of_two(padding) or ()
        if len(items) != self.axes:
            raise ValueError(
                f"`padding` must be 'valid', 'same', or {self.axes} pairs (before, after), one for each axis, but got "
                f"{padding!r}."
            )
        found = [pair(f"padding[{axis}]", item, 0) for axis, item in enumerate(items)]
        return [(0, 0), *found] if self.axes == 1 else found

    def weight(self, channels: tuple[int, ...]) -> Array:
        """The kernel as (O, I, *kernel_sizes), where it is seen as (*kernel_sizes, I, O) with these channels."""
        shape = (*self.kernel_sizes, *channels)
        # of three axes each plane is a weight of its own
        return _outputs_first(self.kernel.reshape(shape)) if self.axes == 3 else _kept(self.kernel, shape)

    def convolved(self, channels: tuple[int, ...], strides: Any, padding: Any, dilation_rate: Any) -> Any:
        """The convolution with the kernel, where its last axes are these (C/groups, O)."""
        options: dict[str, Any] = {
            "stride": self.numbers("strides", strides, 1), "padding": self.sides(padding),
            "dilation": self.numbers("dilation_rate", dilation_rate, 1),
        }  # fmt: skip
        convolution: Any = conv3d if self.axes == 3 else conv2d
        groups = self.channels // channels[0]
        return self.result(convolution(self.x, self.weight(channels), **options, groups=groups, layout=self.layout))

    def result(self, y: Any) -> Any:
        """An image with the axes of `inputs`."""
        return np.squeeze(y, self._height) if self.axes == 1 else y


class _Kernel:
    """A kernel that was used before."""

    def __init__(self, kernel: Array, key: Hashable) -> None:
        self.source = weakref.ref(kernel, lambda _: _kernels.pop(key, None))
        self.kept: tuple[Array, Array] | None = None  # a copy, and the weight that is a view of it


_kernels: dict[Hashable, _Kernel] = {}


def _kept(kernel: Array, shape: tuple[int, ...]) -> Array:
    """`_outputs_first` of a kernel in this shape; from the second time on an array that keeps what it is packed to.

    Packing takes many times as long as the convolution where images are small. What can change may not be kept packed;
    a copy in bytes cannot, and to compare it with the kernel, which may have changed in place, takes little.
    """
    key = id(kernel), shape
    known = _kernels.get(key)
    if known is None or known.source() is not kernel:
        _kernels[key] = _Kernel(kernel, key)  # nothing but this: it may have been cast for this call alone
        return _outputs_first(kernel.reshape(shape))
    bits, kept = np.dtype(f"u{kernel.dtype.itemsize}"), known.kept
    if kept is None or not np.array_equal(kept[0].view(bits), kernel.view(bits)):
        copy = np.frombuffer(kernel.tobytes(), kernel.dtype).reshape(kernel.shape)
        known.kept = kept = copy, _outputs_first(copy.reshape(shape))
    return kept[1]


def _cut(kernel: int, stride: int, same: bool, added: int | None) -> Pair:
    """What is cut off before and after a transposed convolution along an axis; what is negative is missing.

    Of `n` pixels it makes ``(n - 1) * stride + kernel``, and Keras wants ``(n - 1) * stride + beyond`` of these.
    """
    if not same:
        beyond, before = max(kernel, stride) if added is None else kernel + added, 0
    else:
        beyond = stride if added is None else kernel % 2 + added
        before = max((kernel - beyond) // 2, 0)
    return before, kernel - beyond - before


def _pooled(
    pooling: Callable[..., Any], inputs: Any, pool_size: Any, strides: Any, padding: Any, data_format: str | None
) -> Any:
    call = _Call(inputs, None, data_format)
    size = call.numbers("pool_size", pool_size, 1)
    stride = size if strides is None else call.numbers("strides", strides, 1)
    pooling = partial(pooling, padding=_word(padding), layout=LAYOUTS[call.format][0])
    x = call.x
    if call.axes < 3:
        return call.result(pooling(x, size, stride))
    # A window is the product of its axes: first all planes are pooled, then the lines of pixels along the depth.
    height = 1 if call.last else 2
    n, depth, c = x.shape[0], x.shape[height], call.channels
    shape = (n * depth, *x.shape[2:]) if call.last else (n, c * depth, *x.shape[3:])
    planes = pooling(x.reshape(shape), size[1:], stride[1:])
    oh, ow = planes.shape[height : height + 2]
    lines = planes.reshape((n, depth, oh * ow, c) if call.last else (n, c, depth, oh * ow))
    y = pooling(lines, (size[0], 1), (stride[0], 1))
    od = y.shape[height]
    return y.reshape((n, od, oh, ow, c) if call.last else (n, c, od, oh, ow))


def _keras() -> Any:
    try:
        import keras
    except ImportError as error:
        if error.name == "tensorflow":  # which Keras takes where none is named
            mend = "Set the environment variable KERAS_BACKEND to 'numpy' before anything imports Keras."
        else:
            mend = "Install it with: pip install 'portconv[keras]'"
        raise ImportError(f"portconv.keras needs Keras here, which cannot be imported ({error}). {mend}") from error
    return keras


def _array(value: Any) -> Array:
    """An array of NumPy: a variable of Keras's has one, and of lists and numbers Keras makes one."""
    found: Array = value if isinstance(value, np.ndarray) else _keras().ops.convert_to_tensor(value)
    return found


def _data_format(value: Any) -> str:
    return chosen("data_format", _keras().config.image_data_format() if value is None else value, tuple(LAYOUTS))


def _word(padding: Any) -> str:
    return chosen("padding", padding.lower() if isinstance(padding, str) else padding, ("valid", "same"))


def _outputs_first(kernel: Array) -> Array:
    """(*kernel_sizes, I, O) as (O, I, *kernel_sizes): a view."""
    return kernel.transpose(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
