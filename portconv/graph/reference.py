"""Operators for the reference evaluator of the package `onnx`, whose own convolutions take seconds for an image."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import array_api_compat.numpy as np_namespace
import numpy as np

from ..functional import conv2d
from ..one_dimensional import conv1d
from ..volumes import conv3d
from .convolutions import pads_of
from .model import Node
from .operators import OPERATORS
from .reading import package

__all__ = ["reference_conv", "reference_conv_transpose"]


@lru_cache(maxsize=1)
def reference_conv() -> Any:
    """The class `portconv.onnx.ReferenceConv`; it is derived from one of the package, which is imported for it."""
    package()
    from onnx.reference.ops.op_conv import Conv

    class ReferenceConv(Conv):  # type: ignore[misc]  # the package has no types
        """`Conv` in the operations of portconv, for `onnx.reference.ReferenceEvaluator`.

        It takes images of one to three axes, with every attribute that the operator has, on NumPy arrays of floating
        dtypes: what the evaluator hands it. Images of more axes are left to the evaluator's own operator.

        Examples
        --------
        >>> import numpy as np, onnx.parser, onnx.reference
        >>> from portconv.onnx import ReferenceConv
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 8, opset_import: ["" : 17]>
        ...     net (float[1, 3, 416, 416] x, float[16, 3, 3, 3] w) => (float[1, 16, 208, 208] y) {
        ...         y = Conv <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w)
        ...     }''')
        >>> evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=[ReferenceConv])
        >>> x, w = np.ones((1, 3, 416, 416), np.float32), np.ones((16, 3, 3, 3), np.float32)
        >>> evaluator.run(None, {"x": x, "w": w})[0][0, 0, :2, :2]
        array([[27., 27.],
               [27., 27.]], dtype=float32)
        """

        def _run(self, x: Any, weight: Any, bias: Any = None, **attributes: Any) -> tuple[Any]:
            rank = weight.ndim - 2
            if not 1 <= rank <= 3 or x.ndim != weight.ndim:
                found: tuple[Any] = super()._run(x, weight, bias, **attributes)
                return found
            # one number is taken for the bias of every channel
            bias = None if bias is None else np.broadcast_to(bias.reshape(-1), weight.shape[:1])
            node = _node("Conv", attributes)
            strides, dilations = (tuple(node.attributes.get(name) or (1,) * rank) for name in ("strides", "dilations"))
            pads = pads_of(node, x.shape[2:], weight.shape[2:], strides, dilations)
            groups = node.attributes.get("group", 1)
            if rank == 1:
                y = conv1d(x, weight, bias, strides[0], pads[0], dilations[0], groups)
            elif rank == 2:
                y = conv2d(x, weight, bias, strides, pads, dilations, groups)
            else:
                y = conv3d(x, weight, bias, strides, pads, dilations, groups)
            return (y.astype(x.dtype, copy=False),)

    ReferenceConv.__name__ = "Conv"  # by which the evaluator finds what it replaces
    ReferenceConv.__module__, ReferenceConv.__qualname__ = "portconv.onnx", "ReferenceConv"  # where users find it
    return ReferenceConv


@lru_cache(maxsize=1)
def reference_conv_transpose() -> Any:
    """The same of `portconv.onnx.ReferenceConvTranspose`."""
    package()
    from onnx.reference.ops.op_conv_transpose import ConvTranspose

    class ReferenceConvTranspose(ConvTranspose):  # type: ignore[misc]  # the package has no types
        """`ConvTranspose` in the operations of portconv, for `onnx.reference.ReferenceEvaluator`.

        It takes images of two axes, ``(N, C, H, W)``, with every attribute that the operator has, as `ReferenceConv`
        does; others are left to the evaluator's own operator.

        Examples
        --------
        >>> import portconv.onnx
        >>> portconv.onnx.ReferenceConvTranspose.__name__  # new_ops=[...] of an evaluator
        'ConvTranspose'
        """

        def _run(self, x: Any, weight: Any, bias: Any = None, **attributes: Any) -> tuple[Any]:
            if x.ndim != 4:
                found: tuple[Any] = super()._run(x, weight, bias, **attributes)
                return found
            y = OPERATORS["ConvTranspose"].function(np_namespace, _node("ConvTranspose", attributes), x, weight, bias)
            return (y.astype(x.dtype, copy=False),)

    ReferenceConvTranspose.__name__ = "ConvTranspose"
    ReferenceConvTranspose.__module__, ReferenceConvTranspose.__qualname__ = "portconv.onnx", "ReferenceConvTranspose"
    return ReferenceConvTranspose


def _node(operator: str, attributes: dict[str, Any]) -> Node:
    return Node(operator, (), (), {name: value for name, value in attributes.items() if value is not None})
