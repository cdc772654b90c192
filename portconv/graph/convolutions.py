"""Convolutions of a network, by `portconv.Conv2d` where the weight is constant, so that it is packed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.errors import ModelError
from ..functional import conv2d
from ..module import Conv2d
from .model import Node

__all__ = ["Convolution", "pads_of"]


def pads_of(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The padding before and after each axis of an image of these sizes."""
    rank = len(kernel)
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return tuple(pads)
    given = node.attributes.get("pads") if auto == "NOTSET" else None
    flat = [0] * (2 * rank) if given is None else [int(p) for p in given]
    if len(flat) != 2 * rank:
        raise ModelError(f"`pads` must have {2 * rank} numbers, but has {len(flat)}.")
    return tuple(zip(flat[:rank], flat[rank:], strict=True))


class Convolution:
    """A node `Conv`; images of one axis, ``(N, C, W)``, are those of height 1.

    What `fusing` has added is in the attributes: `activation`, as `portconv.conv2d` takes it, and in a fourth input:
    an array that is added before.
    """

    def __init__(self, node: Node, weight: np.ndarray[Any, Any] | None, bias: np.ndarray[Any, Any] | None) -> None:
        self._node, self._constant = node, weight is not None and (bias is not None or not node.has(2))
        self._layers: dict[Any, Conv2d] = {}  # by padding, which "same" leaves to the size of the image
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Any, weight: Any, bias: Any = None, residual: Any = None) -> Any:
        """`weight` and `bias` are passed over where they are constant."""
        node = self._node
        shape = weight.shape if self._weight is None else self._weight.shape
        rank = len(shape) - 2
        if rank not in (1, 2) or x.ndim != rank + 2:
            raise ModelError(f"images of {x.ndim - 2} axes with kernels of {rank} are not supported.")
        strides, dilations = (tuple(node.attributes.get(name) or (1,) * rank) for name in ("strides", "dilations"))
        pads = pads_of(node, x.shape[2:], shape[2:], strides, dilations)
        if rank == 1:
            strides, dilations, pads = (1, *strides), (1, *dilations), ((0, 0), *pads)
            x = x[:, :, None, :]
            weight = None if weight is None else weight[:, :, None, :]
            residual = None if residual is None else residual[:, :, None, :]
        options: dict[str, Any] = {
            "stride": strides, "padding": pads, "dilation": dilations, "groups": node.attributes.get("group", 1),
            "activation": node.attributes.get("activation"),
        }  # fmt: skip
        if self._constant:
            layer = self._layers.get(pads) or self._layer(pads, options)
            y = layer(x) if residual is None else layer(x, residual=residual)
        else:
            y = conv2d(x, weight, bias, residual=residual, **options)
        return y[:, :, 0, :] if rank == 1 else y

    def _layer(self, pads: Any, options: dict[str, Any]) -> Conv2d:
        weight: Any = self._weight
        weight = weight[:, :, None, :] if weight.ndim == 3 else weight
        o, per_group, *kernel = weight.shape
        layer = Conv2d(
            per_group * options["groups"], o, kernel, bias=self._bias is not None, dtype=weight.dtype.name, **options
        )
        layer.weight = weight
        if self._bias is not None:
            layer.bias = self._bias
        self._layers[pads] = layer
        return layer
