"""Batch norms and activations, taken into the convolution before them: one layer in the place of three.

A batch norm that is not training multiplies each channel by a number and adds another one, which a convolution can do
by its weight and its bias. An activation is applied where a `portconv.Conv2d` stores its results.

Examples
--------
>>> import numpy as np, portconv
>>> from portconv import fusion
>>> conv = portconv.Conv2d(3, 8, 3, bias=False, rng=0)
>>> mean, var = np.full(8, 0.5), np.full(8, 4.0)
>>> fused = fusion.fuse(fusion.fold_batch_norm(conv, None, None, mean, var), "relu")
>>> fused
Conv2d(3, 8, kernel_size=(3, 3), activation='relu')
>>> x = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
>>> bool(np.abs(fused(x) - np.maximum((conv(x) - 0.5) / 2, 0)).max() < 1e-4)
True
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .core.array_types import library_of
from .core.epilogue import Activation
from .dispatch.arguments import activation_of
from .dispatch.registry import get_backend
from .formats import following, layers
from .module import Conv2d
from .weights import from_mlx, from_torch

__all__ = ["fold_batch_norm", "fuse"]


def fold_batch_norm(conv: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float = 1e-5) -> Conv2d:
    """A `Conv2d` that computes ``(conv(x) - mean) / sqrt(var + eps) * weight + bias``.

    Parameters
    ----------
    conv
        A `portconv.Conv2d` without activation, or a layer that `portconv.weights.from_torch` or `from_mlx` takes. It is
        left as it is.
    weight, bias
        One number for each output channel, ``(O,)`` or ``(1, O, 1, 1)``, of any library; None is 1 and 0.
    mean, var
        The same, the running statistics of the batch norm.
    eps
        What is added to the variance.

    Returns
    -------
    Conv2d
        With a bias, and all else as `conv` has it. Its parameters are computed in float64, and rounded once.

    Raises
    ------
    TypeError
        For the wrong kind of argument.
    ValueError
        For shapes that do not fit, a variance that is not positive with `eps`, and a `conv` with an activation.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> from portconv.fusion import fold_batch_norm
    >>> conv = portconv.Conv2d(2, 3, 1, rng=0)
    >>> folded = fold_batch_norm(conv, np.full(3, 2.0), np.ones(3), np.zeros(3), np.ones(3), eps=0)
    >>> bool(np.allclose(folded.weight, conv.weight * 2)), folded.bias[0, :, 0, 0]
    (True, array([1., 1., 1.], dtype=float32))
    """
    conv = _convolution("conv", conv)
    if conv.activation is not None:
        raise ValueError(f"`conv` has the activation {conv.activation!r}, after which no batch norm can be folded in.")
    if isinstance(eps, (str, bool)) or not hasattr(eps, "__float__"):
        raise TypeError(f"`eps` must be a number, but got {eps!r}.")
    if not (math.isfinite(float(eps)) and float(eps) >= 0):
        raise ValueError(f"`eps` must be finite and at least 0, but got {eps!r}.")
    channels = conv.out_channels
    means, variances = _channels("mean", mean, channels), _channels("var", var, channels)
    factors = None if weight is None else _channels("weight", weight, channels)
    shifts = None if bias is None else _channels("bias", bias, channels)
    if not (variances + float(eps) > 0).all():
        raise ValueError("`var` must be positive with `eps` in all channels: it is divided by its root.")
    factor, term = following.BatchNorm(factors, shifts, means, variances, float(eps)).factor_and_term()
    state = conv.state_dict()
    kernels = state["weight"].astype(np.float64)
    before = state["bias"].astype(np.float64).reshape(-1) if "bias" in state else 0.0
    scaled = (kernels.reshape(channels, -1) * factor[:, None]).reshape(kernels.shape)
    return _layer(conv, scaled, before * factor + term, None)


def fuse(*chain: Any) -> Conv2d:
    """One `Conv2d` that computes what a chain of layers does: a convolution, batch norms, an activation.

    Parameters
    ----------
    chain
        The layers in their order, or one ``Sequential`` of PyTorch or MLX. First a convolution: a `portconv.Conv2d`, or
        a layer that `portconv.weights.from_torch` or `from_mlx` takes. Then any number of batch norms
        (`torch.nn.BatchNorm2d`, `mlx.nn.BatchNorm`), which must not be training. Last, if at all, an activation: a
        layer of these libraries (ReLU, ReLU6, LeakyReLU, SiLU, Hardswish, GELU, Sigmoid, Tanh), or what
        `portconv.conv2d` takes, such as ``"relu"``. All are left as they are.

    Returns
    -------
    Conv2d
        A new layer, with parameters in the library and on the device of the convolution's, and its layout.

    Raises
    ------
    TypeError
        For a layer of another kind, which is named.
    ValueError
        If a layer stands where it cannot be fused, or computes what `Conv2d` does not.

    Examples
    --------
    >>> import torch
    >>> from portconv.fusion import fuse
    >>> block = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    ... ).eval()
    >>> conv = fuse(block)
    >>> conv
    Conv2d(3, 8, kernel_size=(3, 3), activation='relu')
    >>> x = torch.rand(1, 3, 16, 16)
    >>> bool((conv(x) - block(x)).abs().max() < 1e-4)
    True
    """
    if len(chain) == 1 and (inner := following.read_chain(chain[0])) is not None:
        chain = tuple(inner)
    if not chain:
        raise ValueError("`fuse` needs layers: a convolution first.")
    first, *rest = chain
    conv = _convolution("chain[0]", first)
    activation = activation_of(conv.activation)
    for place, layer in enumerate(rest, 1):
        name = f"chain[{place}]"
        if activation is not None:
            raise ValueError(
                f"`{name}`, {_kind(layer)}, stands after the activation {str(activation)!r}, which must be last."
            )
        norm = _understood(name, following.read_batch_norm, layer)
        if norm is not None:
            conv = fold_batch_norm(conv, norm.weight, norm.bias, norm.mean, norm.var, norm.eps)
            continue
        activation = _activation(name, layer)
    state = conv.state_dict()
    return _layer(conv, state["weight"], state.get("bias"), activation)


def _activation(name: str, layer: Any) -> Activation:
    if isinstance(layer, (str, tuple)) and (named := activation_of(layer)) is not None:
        return named
    found: Activation | None = _understood(name, following.read_activation, layer)
    if found is None:
        raise TypeError(f"`{name}` must be a batch norm or an activation that `Conv2d` has, but got {_kind(layer)}.")
    return found


def _understood(name: str, read: Any, layer: Any) -> Any:
    """What a layer says of itself; a complaint gets its place in the chain."""
    try:
        return read(layer)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{name}`: {error}") from None


def _convolution(name: str, layer: Any) -> Conv2d:
    if isinstance(layer, Conv2d):
        return layer
    for library, convert in (("torch", from_torch), ("mlx", from_mlx)):
        if _understood(name, lambda one, library=library: layers.read(one, library), layer) is not None:
            return convert(layer)
    mend = " A chain is one Sequential, or layers in their order." if layers.has_layers(layer) else ""
    raise TypeError(f"`{name}` must be a Conv2d of portconv, PyTorch or MLX, but got {_kind(layer)}.{mend}")


def _kind(layer: Any) -> str:
    kind = type(layer)
    return repr(layer) if isinstance(layer, (str, tuple)) else f"{kind.__module__}.{kind.__qualname__}"


def _channels(name: str, value: Any, channels: int) -> np.ndarray[Any, Any]:
    """A number for each channel, in float64."""
    if library_of(value) is None:
        raise TypeError(f"`{name}` must be an array, but got {type(value).__name__}.")
    shape = tuple(value.shape)
    if shape not in ((channels,), (1, channels, 1, 1)):
        raise ValueError(f"`{name}` must have shape ({channels},) or (1, {channels}, 1, 1), but got {shape}.")
    return np.asarray(get_backend(value).to_numpy(value)).astype(np.float64).reshape(-1)


def _layer(conv: Conv2d, weight: Any, bias: Any, activation: Activation | None) -> Conv2d:
    """A layer like another one, with these parameters and this activation."""
    modes: dict[str, Any] = {
        name: getattr(conv, name)
        for name in ("conv_mode", "compute_mode", "padding_mode", "layout", "engine", "accuracy", "strategy")
    }
    made = Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        bias is not None, name=conv.name, **modes, **{**conv._place(), "activation": activation},
    )  # fmt: skip
    made._take(weight, bias)
    return made
