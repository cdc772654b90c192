"""What the convolution layers of other libraries say of themselves, in portconv's terms.

A layer is recognised by the name of its class, or of one that it is derived from, so that no library is imported. The
class tells the layout of its weight. What has no equal is refused, never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.integers import pair

__all__ = ["Kind", "LayerState", "check_methods", "has_layers", "read"]

# Activations that are Keras's functions of these names, as it has them by default.
SAME_IN_KERAS = ("relu", "relu6", "silu", "gelu", "sigmoid", "tanh")


@dataclass(frozen=True)
class LayerState:
    """A convolution layer of any library: the arguments of a `Conv2d` that is its equal, and its parameters."""

    backend: str  # the library of the parameters, where portconv has it, else "numpy"
    arguments: dict[str, Any]  # but the number of channels, which the weight tells
    weight: Any
    weight_layout: str
    bias: Any  # (O,) or (1, O, 1, 1), or None
    dtype: str
    device: str | None
    groups: int


def read(layer: Any, library: str | None = None, params: Any = None) -> LayerState | None:
    """The state of a layer, if its class is that of a convolution in two dimensions.

    Parameters
    ----------
    layer
        Anything.
    library
        Whose layers are wanted (``"torch"``); None for any.
    params
        The parameters of layers that do not hold them themselves, Flax's.

    Raises
    ------
    TypeError
        If the layer's class computes in a way of its own.
    ValueError
        If the layer does what `Conv2d` does not, or has no parameters yet.
    """
    for kind in type(layer).__mro__:
        for known in _KINDS:
            if library in (None, known.library) and known.is_class(kind):
                check_methods(layer, kind, known.methods)
                state: LayerState = known.read(layer) if params is None else known.read(layer, params)
                return state
    return None


def has_layers(layer: Any) -> bool:
    """Whether this is a module of PyTorch or MLX that has others within it, as a whole model has."""
    return any(True for _ in getattr(layer, "children", list)())


# --- each library's ---------------------------------------------------------------------------------------------------


def _torch(layer: Any) -> LayerState:
    if type(layer.weight).__name__ == "UninitializedParameter":
        raise ValueError("`layer` has no weights yet. Call it once, or make a torch.nn.Conv2d.")
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    arguments = {
        "stride": tuple(layer.stride), "padding": padding, "dilation": tuple(layer.dilation),
        "padding_mode": layer.padding_mode, "layout": "NCHW",
    }  # fmt: skip
    weight = layer.weight
    dtype, device = _dtype(weight), str(weight.device)
    return LayerState("torch", arguments, weight, "OIHW", layer.bias, dtype, device, layer.groups)


def _mlx(layer: Any) -> LayerState:
    arguments = {
        "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "layout": "NHWC",
    }  # fmt: skip
    bias = layer.bias if "bias" in layer else None
    return LayerState("mlx", arguments, layer.weight, "OHWI", bias, _dtype(layer.weight), None, layer.groups)


def _megengine(layer: Any) -> LayerState:
    names = ("stride", "padding", "dilation", "conv_mode", "compute_mode", "padding_mode")
    arguments = {name: getattr(layer, name) for name in names} | {"layout": "NCHW"}
    weight, bias = layer.weight.numpy(), None if layer.bias is None else layer.bias.numpy()
    weight_layout = "OIHW" if layer.groups == 1 else "GOIHW"
    return LayerState("numpy", arguments, weight, weight_layout, bias, _dtype(weight), None, layer.groups)


def _keras(layer: Any) -> LayerState:
    depthwise = hasattr(layer, "depth_multiplier")
    if not layer.built:
        raise ValueError(
            f"`layer` {layer.name!r} has no weights yet. Build it first: layer.build((None, height, width, channels)), "
            f"or call it."
        )
    kernel = layer.depthwise_kernel if hasattr(layer, "depthwise_kernel") else layer.kernel  # Keras 2
    weight, bias = kernel.numpy(), layer.bias.numpy() if layer.use_bias else None
    arguments = {
        "stride": tuple(layer.strides), "padding": layer.padding, "dilation": tuple(layer.dilation_rate),
        "layout": "NCHW" if layer.data_format == "channels_first" else "NHWC",
        "activation": _keras_activation(layer),
    }  # fmt: skip
    groups = weight.shape[2] if depthwise else layer.groups
    weight_layout = "HWCM" if depthwise else "HWIO"
    return LayerState("numpy", arguments, weight, weight_layout, bias, _dtype(weight), None, groups)


def _keras_activation(layer: Any) -> str | None:
    function = layer.activation
    name = getattr(function, "__name__", function)
    if name in (None, "linear"):
        return None
    if name in SAME_IN_KERAS and function.__module__.startswith(("keras", "tf_keras")):
        return str(name)
    raise ValueError(
        f"`layer` {layer.name!r} has the activation {name!r}, which `Conv2d` has not. Make the layer with "
        f"activation=None, and apply the activation to the result."
    )


def _flax(layer: Any, params: Any = None) -> LayerState:
    kernel_size = layer.kernel_size
    if isinstance(kernel_size, int) or len(kernel_size) != 2:
        raise ValueError(f"`layer` must convolve in two dimensions, but its kernel_size is {kernel_size!r}.")
    if layer.mask is not None:
        raise ValueError("`layer` has a mask, which `Conv2d` has not. Multiply its kernel by the mask first.")
    if layer.input_dilation not in (None, 1, (1, 1), [1, 1]):
        raise ValueError(f"`layer` has the input_dilation {layer.input_dilation!r}, which `Conv2d` has not.")
    own = getattr(layer, "conv_general_dilated_cls", None) or layer.conv_general_dilated
    if own is not None and getattr(own, "__name__", None) != "conv_general_dilated":
        raise TypeError(f"`layer` convolves by {own!r}, not by jax.lax: what it does, `Conv2d` cannot know.")
    if hasattr(layer, "kernel"):  # flax.nnx
        if params is not None:
            raise TypeError("`params` is for layers of flax.linen. A layer of flax.nnx holds its parameters itself.")
        kernel, bias = layer.kernel[...], getattr(layer, "bias", None)
        bias = bias[...] if layer.use_bias and bias is not None else None
    else:
        kernel, bias = _flax_params(layer, params)
    dilation = _pair(layer.kernel_dilation)
    padding, padding_mode = _flax_padding(layer.padding, kernel_size, dilation)
    arguments = {
        "stride": _pair(layer.strides), "padding": padding, "dilation": dilation, "padding_mode": padding_mode,
        "layout": "NHWC",
    }  # fmt: skip
    return LayerState("jax", arguments, kernel, "HWIO", bias, _dtype(kernel), None, layer.feature_group_count)


def _flax_params(layer: Any, params: Any) -> tuple[Any, Any]:
    found = params.get("params", params) if isinstance(params, Mapping) else None
    wanted = {"kernel", "bias"} if layer.use_bias else {"kernel"}
    if not isinstance(found, Mapping) or set(found) != wanted:
        got = type(params).__name__ if found is None else f"the keys {sorted(map(str, found))}"
        raise ValueError(
            f"`params` must be the parameters of this layer, a mapping with {' and '.join(sorted(wanted))}, as "
            f"flax.linen keeps them apart from it, but got {got}. Of a model they are a part of "
            f"variables['params']."
        )
    return found["kernel"], found.get("bias")


def _flax_padding(padding: Any, kernel_size: Any, dilation: tuple[int, int]) -> tuple[Any, str]:
    modes = {"CIRCULAR": "circular", "REFLECT": "reflect"}
    if isinstance(padding, str) and padding in modes:
        reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
        return tuple(((k - 1) // 2, k // 2) for k in reach), modes[padding]
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"`layer` has the padding {padding!r}, which `Conv2d` has not.")
        return padding.lower(), "zeros"
    if isinstance(padding, int):
        return padding, "zeros"
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding), "zeros"


# --- which classes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """The class of a layer, and how such a layer is read."""

    library: str
    name: str
    modules: tuple[str, ...]  # how the name of its module may begin
    methods: tuple[str, ...]  # what computes the result
    read: Callable[..., Any]

    def is_class(self, kind: type) -> bool:
        return kind.__name__ == self.name and kind.__module__.startswith(self.modules)


_IN_KERAS = tuple(
    f"{package}{inner}.layers.convolutional" for package in ("keras", "tf_keras") for inner in ("", ".src")
)
_KINDS = (
    Kind("torch", "Conv2d", ("torch.nn.modules.conv", "portconv.torch"), ("forward", "_conv_forward"), _torch),
    Kind("mlx", "Conv2d", ("mlx.nn.layers.convolution",), ("__call__",), _mlx),
    Kind("keras", "Conv2D", _IN_KERAS, ("call", "convolution_op"), _keras),
    Kind("keras", "DepthwiseConv2D", _IN_KERAS, ("call",), _keras),
    Kind("flax", "Conv", ("flax.linen.linear", "flax.nnx.nn.linear"), ("__call__",), _flax),
    Kind("megengine", "Conv2d", ("megengine.module.conv",), ("forward", "calc_conv"), _megengine),
)


def check_methods(layer: Any, kind: type, methods: tuple[str, ...]) -> None:
    """A class that is derived from a layer and computes otherwise is another layer."""
    own = type(layer)
    for name in methods if own is not kind else ():
        if getattr(own, name, None) is not getattr(kind, name, None):
            raise TypeError(
                f"`layer` is a {own.__module__}.{own.__qualname__}, which has a `{name}` of its own: what it does "
                f"beyond {kind.__module__}.{kind.__qualname__}, `Conv2d` cannot know. Give its parameters to "
                f"`portconv.weights.from_arrays` if they are all there is to it."
            )


def _dtype(array: Any) -> str:
    return str(array.dtype).rpartition(".")[2]


def _pair(value: Any) -> tuple[int, int]:
    return pair("layer", 1 if value is None else value, 1)
