"""What the layers that follow a convolution in other libraries say of themselves: batch norms, activations.

Layers are recognised as those of `layers` are, by the names of their classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.epilogue import Activation
from .layers import Kind, check_methods

__all__ = ["BatchNorm", "read_activation", "read_batch_norm", "read_chain"]


@dataclass(frozen=True)
class BatchNorm:
    """``(y - mean) / sqrt(var + eps) * weight + bias`` for each channel; `weight` and `bias` may be None."""

    weight: Any
    bias: Any
    mean: Any
    var: Any
    eps: float

    def factor_and_term(self) -> tuple[Any, Any]:
        """What each channel is multiplied by, and what is added then; of parameters that are NumPy's, in float64."""
        weight, bias = 1.0 if self.weight is None else self.weight, 0.0 if self.bias is None else self.bias
        factor = np.asarray(weight, np.float64) / np.sqrt(np.asarray(self.var, np.float64) + self.eps)
        return factor, bias - self.mean * factor


def read_batch_norm(layer: Any) -> BatchNorm | None:
    """The batch norm that a layer is, or None for another layer; `ValueError` if it depends on the batch at hand."""
    found: BatchNorm | None = _read(layer, _BATCH_NORMS)
    return found


def read_activation(layer: Any) -> Activation | None:
    """The activation that a layer is, or None for another layer; `ValueError` if it is one that there is not."""
    found: Activation | None = _read(layer, _ACTIVATIONS)
    return found


def read_chain(layer: Any) -> list[Any] | None:
    """The layers of a ``Sequential``, or None for another layer."""
    found: list[Any] | None = _read(layer, _CHAINS)
    return found


def _read(layer: Any, kinds: tuple[Kind, ...]) -> Any:
    for kind in type(layer).__mro__:
        for known in kinds:
            if known.is_class(kind):
                check_methods(layer, kind, known.methods)
                return known.read(layer)
    return None


def _torch_norm(layer: Any) -> BatchNorm:
    if layer.training or layer.running_mean is None:
        raise ValueError(_DEPENDS.format("layer.eval()", "track_running_stats"))
    return BatchNorm(layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps)


def _mlx_norm(layer: Any) -> BatchNorm:
    if layer.training or not layer.track_running_stats:
        raise ValueError(_DEPENDS.format("layer.eval()", "track_running_stats"))
    weight, bias = (layer.get(name) for name in ("weight", "bias"))
    return BatchNorm(weight, bias, layer.running_mean, layer.running_var, layer.eps)


_DEPENDS = (
    "a BatchNorm computes with the mean and the variance of each batch while it is training, or without running "
    "statistics, which no convolution can. Call `{}` first; it needs `{}`, too."
)


def _gelu(layer: Any) -> Activation:
    how = layer.approximate if hasattr(layer, "approximate") else layer._approx
    if how != "none":
        raise ValueError(f"a GELU approximated by {how!r} is another function than 'gelu', which is exact.")
    return Activation("gelu")


def _leaky(layer: Any) -> Activation:
    slope = layer.negative_slope if hasattr(layer, "negative_slope") else layer._negative_slope
    return Activation("leaky_relu", float(slope))


def _named(library: str, module: str, method: str, kind: str, name: str) -> Kind:
    return Kind(library, kind, (module,), (method,), lambda _: Activation(name))


_HOMES = (("torch", "torch.nn.modules.activation", "forward"), ("mlx", "mlx.nn.layers.activations", "__call__"))
_SIMPLE = {
    "ReLU": "relu", "ReLU6": "relu6", "SiLU": "silu", "Hardswish": "hard_swish", "Sigmoid": "sigmoid", "Tanh": "tanh",
}  # fmt: skip
_ACTIVATIONS = (
    *(_named(*home, kind, name) for home in _HOMES for kind, name in _SIMPLE.items()),
    *(Kind(library, "GELU", (module,), (method,), _gelu) for library, module, method in _HOMES),
    *(Kind(library, "LeakyReLU", (module,), (method,), _leaky) for library, module, method in _HOMES),
)
_BATCH_NORMS = (
    Kind("torch", "BatchNorm2d", ("torch.nn.modules.batchnorm",), ("forward",), _torch_norm),
    Kind("mlx", "BatchNorm", ("mlx.nn.layers.normalization",), ("__call__", "_calc_stats"), _mlx_norm),
)
_CHAINS = (
    Kind("torch", "Sequential", ("torch.nn.modules.container",), ("forward",), list),
    Kind("mlx", "Sequential", ("mlx.nn.layers.containers",), ("__call__",), lambda layer: list(layer.layers)),
)
