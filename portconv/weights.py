"""Weights of other libraries' layers, and files of weights, without guessing how their axes are ordered.

A shape does not tell the layout of a weight: ``(8, 3, 3, 3)`` is OIHW and OHWI. So the layout is that of the layer's
class (`from_torch`, `from_mlx`, `from_keras`, `from_flax`, `from_megengine`), or is named (`from_arrays`,
`convert_layout`). `save` writes it into the file, and `load` checks it. What does not say its layout is refused.

============ ========================================================== ===========================================
layout       axes                                                       who has it
============ ========================================================== ===========================================
``"OIHW"``   ``(O, I/G, kh, kw)``                                       PyTorch, ONNX, MegEngine without groups
``"OHWI"``   ``(O, kh, kw, I/G)``                                       MLX
``"HWIO"``   ``(kh, kw, I/G, O)``                                       Keras, Flax
``"HWCM"``   ``(kh, kw, channels, multiplier)``                         Keras's ``DepthwiseConv2D``
``"GOIHW"``  ``(G, O/G, I/G, kh, kw)``                                  MegEngine and `portconv.Conv2d` with groups
============ ========================================================== ===========================================

Examples
--------
>>> import tempfile, numpy as np, portconv
>>> from portconv import weights
>>> conv = portconv.Conv2d(3, 8, 3, rng=0)
>>> with tempfile.TemporaryDirectory() as folder:
...     weights.save(f"{folder}/net.npz", {"conv1": conv, "linear.weight": np.ones((10, 8))})
...     loaded = weights.load(f"{folder}/net.npz", into={"conv1": portconv.Conv2d(3, 8, 3)})
>>> loaded.layouts, sorted(loaded)
({'conv1.weight': 'OIHW'}, ['conv1.bias', 'conv1.weight', 'linear.weight'])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .core.array_types import library_of
from .core.errors import WeightsError, choices
from .dispatch.registry import get_backend
from .formats import layers
from .formats.files import Weights, load, save
from .formats.layers import LayerState
from .formats.layouts import check_axes, checked_layout, convert_layout
from .module import Conv2d

if TYPE_CHECKING:
    from .core.words import PaddingMode

__all__ = [
    "Weights",
    "WeightsError",
    "convert_layout",
    "from_arrays",
    "from_flax",
    "from_keras",
    "from_megengine",
    "from_mlx",
    "from_torch",
    "load",
    "save",
]

OPTIONS = (
    "layout",
    "name",
    "engine",
    "accuracy",
    "strategy",
    "activation",
)  # of `Conv2d`, which no other library's layer has


def from_torch(layer: Any, *, backend: Any = None, device: str | None = None, **options: Any) -> Conv2d:
    """A `portconv.Conv2d` that computes what a `torch.nn.Conv2d` does.

    Parameters
    ----------
    layer
        A `torch.nn.Conv2d` (or `portconv.torch.Conv2d`), or a layer derived from it that does not compute otherwise.
    backend, device
        Where the parameters of the result are; by default, in the library and on the device of the layer's.
    options
        `layout`, `name`, `engine`, `accuracy`, `strategy` and `activation` of the result, as in `portconv.Conv2d`. By
        default the layout of images is the layer's: ``"NCHW"``.

    Returns
    -------
    Conv2d
        With the layer's stride, padding, dilation, groups, padding mode and dtype, and copies of its parameters.

    Raises
    ------
    TypeError
        If `layer` is another thing, or of a class that computes in a way of its own.
    ValueError
        If the layer does what `Conv2d` does not, or has no parameters yet.

    Examples
    --------
    >>> import torch, portconv
    >>> from portconv import weights
    >>> layer = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    >>> conv = weights.from_torch(layer)
    >>> conv
    Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2)
    >>> x = torch.rand(1, 4, 16, 16)
    >>> bool((conv(x) - layer(x)).abs().max() < 1e-5)
    True
    """
    return _converted(layer, "torch", "a torch.nn.Conv2d", backend, device, options)


def from_mlx(layer: Any, *, backend: Any = None, device: str | None = None, **options: Any) -> Conv2d:
    """A `portconv.Conv2d` that computes what an `mlx.nn.Conv2d` does.

    `portconv.mlx.Conv2d.from_mlx` makes a layer of `mlx.nn` of it.

    Parameters
    ----------
    layer
        An `mlx.nn.Conv2d`.
    backend, device, options
        As in `from_torch`. By default the layout of images is the layer's: ``"NHWC"``.

    Raises
    ------
    TypeError, ValueError
        As `from_torch`.

    Examples
    --------
    >>> import mlx.core as mx, mlx.nn as nn
    >>> from portconv import weights
    >>> layer = nn.Conv2d(3, 8, 3)
    >>> conv = weights.from_mlx(layer)
    >>> x = mx.random.uniform(shape=(1, 16, 16, 3))
    >>> bool(mx.abs(conv(x) - layer(x)).max() < 1e-5)
    True
    """
    return _converted(layer, "mlx", "an mlx.nn.Conv2d", backend, device, options)


def from_keras(layer: Any, *, backend: Any = "numpy", device: str | None = None, **options: Any) -> Conv2d:
    """A `portconv.Conv2d` that computes what a Keras ``Conv2D`` or ``DepthwiseConv2D`` does.

    Parameters
    ----------
    layer
        A built layer of Keras 2 or 3, on any of its back ends.
    backend, device, options
        As in `from_torch`; by default the parameters are NumPy arrays. By default the layout of images is the layer's:
        ``"NHWC"`` for ``data_format="channels_last"``, ``"NCHW"`` for ``"channels_first"``.

    Raises
    ------
    TypeError, ValueError
        As `from_torch`; an activation that `Conv2d` has not is refused.

    Examples
    --------
    >>> from portconv import weights
    >>> import keras  # doctest: +SKIP
    >>> layer = keras.layers.Conv2D(8, 3, strides=2, padding="same")  # doctest: +SKIP
    >>> layer.build((None, 32, 32, 3))  # doctest: +SKIP
    >>> weights.from_keras(layer)  # doctest: +SKIP
    Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding='same')
    """
    return _converted(layer, "keras", "a Keras layer Conv2D or DepthwiseConv2D", backend, device, options)


def from_flax(
    layer: Any, params: Any = None, *, backend: Any = None, device: str | None = None, **options: Any
) -> Conv2d:
    """A `portconv.Conv2d` that computes what a `flax.linen.Conv` or `flax.nnx.Conv` in two dimensions does.

    Parameters
    ----------
    layer
        The layer.
    params
        The parameters of a `flax.linen.Conv`, which does not hold them: a mapping with ``kernel`` and ``bias``, or
        ``{"params": mapping}``, as its ``init`` returns it.
    backend, device, options
        As in `from_torch`; by default the parameters are JAX arrays. By default the layout of images is the layer's:
        ``"NHWC"``.

    Raises
    ------
    TypeError, ValueError
        As `from_torch`; masks, input dilation and other paddings than ``"SAME"``, ``"VALID"``, ``"CIRCULAR"``,
        ``"REFLECT"`` and numbers are refused.

    Examples
    --------
    >>> from portconv import weights
    >>> import flax, jax  # doctest: +SKIP
    >>> layer = flax.linen.Conv(8, (3, 3), padding="SAME")  # doctest: +SKIP
    >>> variables = layer.init(jax.random.key(0), jax.numpy.ones((1, 32, 32, 3)))  # doctest: +SKIP
    >>> weights.from_flax(layer, variables)  # doctest: +SKIP
    Conv2d(3, 8, kernel_size=(3, 3), padding='same')
    """
    return _converted(layer, "flax", "a flax.linen.Conv or flax.nnx.Conv", backend, device, options, params)


def from_megengine(layer: Any, *, backend: Any = "numpy", device: str | None = None, **options: Any) -> Conv2d:
    """A `portconv.Conv2d` that computes what a `megengine.module.Conv2d` does.

    Parameters
    ----------
    layer
        A `megengine.module.Conv2d`.
    backend, device, options
        As in `from_torch`; by default the parameters are NumPy arrays. By default the layout of images is the layer's:
        ``"NCHW"``.

    Raises
    ------
    TypeError, ValueError
        As `from_torch`.

    Examples
    --------
    >>> from portconv import weights
    >>> import megengine  # doctest: +SKIP
    >>> weights.from_megengine(megengine.module.Conv2d(4, 8, 3, groups=2))  # doctest: +SKIP
    Conv2d(4, 8, kernel_size=(3, 3), groups=2)
    """
    return _converted(layer, "megengine", "a megengine.module.Conv2d", backend, device, options)


def from_arrays(
    weight: Any,
    bias: Any = None,
    *,
    weight_layout: str,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    backend: Any = None,
    device: str | None = None,
    **options: Any,
) -> Conv2d:
    """A `portconv.Conv2d` with these parameters, whose layout is named.

    Parameters
    ----------
    weight
        An array of any library, of four or five axes.
    bias
        ``(O,)``, ``(1, O, 1, 1)`` or None.
    weight_layout
        As in `convert_layout`.
    stride, padding, dilation, groups, padding_mode
        As in `portconv.conv2d`.
    backend, device
        Where the parameters of the result are; by default, in the weight's library.
    options
        `layout`, `name`, `engine`, `accuracy`, `strategy` and `activation`, as in `portconv.Conv2d`; `layout` is that
        of images.

    Raises
    ------
    TypeError, ValueError
        As `convert_layout` and `portconv.Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from portconv import weights
    >>> weights.from_arrays(np.ones((3, 3, 16, 32), np.float32), weight_layout="HWIO", padding="same")
    Conv2d(16, 32, kernel_size=(3, 3), padding='same', bias=False)
    """
    if library_of(weight) is None:
        raise TypeError(f"`weight` must be an array, but got {type(weight).__name__}.")
    own = get_backend(weight)
    info = own.describe(weight)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    checked = checked_layout("weight_layout", weight_layout)
    state = LayerState(own.name, arguments, weight, checked, bias, info.dtype, info.device, groups)
    return _module(state, backend, device, options)


def _converted(
    layer: Any, library: str, kinds: str, backend: Any, device: str | None, options: dict[str, Any], params: Any = None
) -> Conv2d:
    state = layers.read(layer, library, params)
    if state is None:
        kind = type(layer)
        whole = library == "torch" and layers.has_layers(layer)
        mend = " In a whole model `portconv.torch.replace_convolutions` exchanges them." if whole else ""
        raise TypeError(f"`layer` must be {kinds}, but got {kind.__module__}.{kind.__qualname__}.{mend}")
    return _module(state, backend, device, options)


def _module(state: LayerState, backend: Any, device: str | None, options: dict[str, Any]) -> Conv2d:
    """The `Conv2d` that is the equal of a layer."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"there is no argument `{name}`; `Conv2d` takes {choices(OPTIONS)} here.")
    home = get_backend(state.backend if backend is None else backend)
    if device is None and home.name == state.backend:
        device = state.device
    weight = _numpy(state.weight)
    check_axes("weight", weight.shape, state.weight_layout)
    weight = convert_layout(weight, state.weight_layout, "OIHW")
    o, i, *kernel_size = weight.shape
    conv = Conv2d(
        i * state.groups, o, kernel_size, groups=state.groups, bias=state.bias is not None, dtype=state.dtype,
        backend=home, device=device, **{**state.arguments, **options},
    )  # fmt: skip
    conv._take(weight, None if state.bias is None else _numpy(state.bias))
    return conv


def _numpy(array: Any) -> np.ndarray[Any, Any]:
    """A copy by NumPy's means; bfloat16 as float32."""
    if library_of(array) is None or not hasattr(array, "dtype"):
        raise TypeError(f"an array was expected, but got {type(array).__name__}.")
    return np.array(get_backend(array).to_numpy(array))
