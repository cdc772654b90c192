"""A graph made simpler: what follows a convolution becomes part of it.

Each rewriting replaces a node, and those before it that nothing else needs, by one that computes the same: constant
factors and terms of each channel go into weight and bias, an activation and a residual to where sums are stored.
Squeeze and excitation becomes one node: with arrays so small, the calls take longer than the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..formats.following import BatchNorm
from .model import Graph, Node

__all__ = ["fused"]

ACTIVATIONS = {
    "Relu": "relu", "Silu": "silu", "HardSwish": "hard_swish", "Sigmoid": "sigmoid", "Tanh": "tanh", "Gelu": "gelu",
    "Relu6": "relu6", "LeakyRelu": "leaky_relu",
}  # fmt: skip


def fused(graph: Graph) -> Graph:
    """The same network with fewer nodes."""
    return _Fusing(graph).graph()


class _Fusing:
    """The graph while it changes: nodes by what they make, and how often each name is read."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._constants = graph, dict(graph.constants)
        self._nodes: list[Node | None] = []
        self._maker: dict[str, int] = {}
        self._readers: dict[str, int] = dict.fromkeys(graph.outputs, 2)  # an output has to stay
        for node in graph.nodes:
            for name in node.inputs:
                self._readers[name] = self._readers.get(name, 0) + 1

    def graph(self) -> Graph:
        """All nodes in their order, each as simple as it gets."""
        for node in self._graph.nodes:
            self._add(node)
        nodes = tuple(node for node in self._nodes if node is not None)
        used = {name for node in nodes for name in node.inputs} | set(self._graph.outputs)
        constants = {name: value for name, value in self._constants.items() if name in used}
        return Graph(self._graph.inputs, self._graph.outputs, constants, nodes)

    def _add(self, node: Node) -> None:
        for rewriting in (
            self._silu,
            self._hard_swish,
            self._relu6,
            self._hard_sigmoid,
            self._linear,
            self._affine,
            self._activation,
            self._residual,
            self._excitation,
            self._shifted_product,
        ):
            node = rewriting(node) or node
        self._maker |= dict.fromkeys(node.outputs, len(self._nodes))
        self._nodes.append(node)

    # --- what nodes are ---------------------------------------------------------------------------------------------

    def _made(self, name: str, *operators: str, readers: int = 1) -> Node | None:
        """The node that makes a value, if it is one of these operators and so many nodes read the value."""
        place = self._maker.get(name)
        node = None if place is None else self._nodes[place]
        if node is None or node.operator not in operators or self._readers.get(name, 0) != readers:
            return None
        return node if len(node.outputs) == 1 else None

    def _drop(self, *nodes: Node) -> None:
        for node in nodes:
            self._nodes[self._maker.pop(node.outputs[0])] = None

    def _number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        value = self._constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 and value.ndim <= 1 else None

    def _with_number(self, node: Node | None, operator: str) -> tuple[str, float] | None:
        """The two inputs of a node of two, if one of them is a number."""
        if node is not None and node.operator == operator and len(node.inputs) == 2:
            for k in (1, 0) if operator in ("Add", "Mul") else (1,):
                number = self._number(node.inputs[k])
                if number is not None:
                    return node.inputs[1 - k], number
        return None

    def _replaced(self, old: Node, node: Node, **more: Any) -> Node:
        """`old` with the outputs of `node`, which comes after it, and with more attributes."""
        self._drop(old)
        return Node(old.operator, old.inputs, node.outputs, {**old.attributes, **more}, old.opset)

    # --- activations --------------------------------------------------------------------------------------------------

    def _silu(self, node: Node) -> Node | None:
        """``x * sigmoid(x)``."""
        if node.operator != "Mul":
            return None
        for x, gate in (node.inputs, node.inputs[::-1]):
            made = self._made(gate, "Sigmoid")
            if made is not None and made.inputs[0] == x:
                self._drop(made)
                self._readers[x] -= 1
                return Node("Silu", (x,), node.outputs, {}, node.opset)
        return None

    def _hard_swish(self, node: Node) -> Node | None:
        """``x * clip(x + 3, 0, 6) / 6`` in its orders, and ``x * hard_sigmoid(x)``."""
        if node.operator == "Mul":
            for x, gate in (node.inputs, node.inputs[::-1]):
                made = self._made(gate, "HardSigmoid")
                if made is not None and made.inputs[0] == x and _is_sixth(made):
                    self._drop(made)
                    self._readers[x] -= 1
                    return Node("HardSwish", (x,), node.outputs, {}, node.opset)
            scaled = self._with_number(node, "Mul")
            factor = None if scaled is None else scaled[1]
        else:
            scaled = self._with_number(node, "Div")
            factor = None if scaled is None or scaled[1] == 0 else 1 / scaled[1]
        if scaled is None or factor is None or abs(factor - 1 / 6) > 1e-6:
            return None
        product = self._made(scaled[0], "Mul")
        for x, gate in (product.inputs, product.inputs[::-1]) if product is not None else ():
            clip = self._made(gate, "Clip")
            shifted = None if clip is None or self._ends(clip) != (0, 6) else self._made(clip.inputs[0], "Add")
            if product is not None and clip is not None and shifted is not None:
                if self._with_number(shifted, "Add") != (x, 3.0):
                    continue
                self._drop(product, clip, shifted)
                self._readers[x] -= 1
                return Node("HardSwish", (x,), node.outputs, {}, node.opset)
        return None

    def _relu6(self, node: Node) -> Node | None:
        if node.operator != "Clip" or self._ends(node) != (0, 6):
            return None
        convolution = self._made(node.inputs[0], "Conv")
        if convolution is None or "activation" in convolution.attributes:
            return None
        return self._replaced(convolution, node, activation="relu6")

    def _hard_sigmoid(self, node: Node) -> Node | None:
        """``clip(a x + b, 0, 1)``: a sixth of the relu6 of ``6 a x + 6 b``."""
        convolution = self._made(node.inputs[0], "Conv") if node.operator == "HardSigmoid" else None
        if convolution is None:
            return None
        alpha, beta = (6 * float(node.attributes.get(name, usual)) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
        scaled = self._scaled(convolution, node, lambda channels: (np.full(channels, alpha), np.full(channels, beta)))
        if scaled is None:
            return None
        more = {"activation": "relu6", "affine": (1 / 6, 0.0)}
        return Node(scaled.operator, scaled.inputs, scaled.outputs, {**scaled.attributes, **more}, scaled.opset)

    def _ends(self, clip: Node) -> tuple[float | None, float | None]:
        """The numbers of a Clip between which it keeps its input."""
        ends = [
            self._number(clip.inputs[k]) if clip.has(k) else clip.attributes.get(name)
            for k, name in ((1, "min"), (2, "max"))
        ]
        return ends[0], ends[1]

    def _activation(self, node: Node) -> Node | None:
        if node.operator not in ACTIVATIONS or node.attributes.get("approximate", "none") != "none":
            return None
        convolution = self._made(node.inputs[0], "Conv")
        if convolution is None or "activation" in convolution.attributes:
            return None
        activation: Any = ACTIVATIONS[node.operator]
        if node.operator == "LeakyRelu":
            activation = (activation, float(node.attributes.get("alpha", 0.01)))
        return self._replaced(convolution, node, activation=activation)

    # --- what is linear -----------------------------------------------------------------------------------------------

    def _linear(self, node: Node) -> Node | None:
        """A constant factor or term of each channel, and batch normalization, after a convolution."""
        if node.operator not in ("Add", "Sub", "Mul", "Div", "BatchNormalization"):
            return None
        for x in node.inputs[: 2 if node.operator in ("Add", "Mul") else 1]:
            convolution = self._made(x, "Conv", "ConvTranspose")
            if convolution is not None:
                found = self._scaled(convolution, node, partial(self._factor_and_term, node, x))
                if found is not None:
                    return found
        return None

    def _affine(self, node: Node) -> Node | None:
        """A factor or term that is a number, after the activation of a convolution: applied where the result is."""
        scaled = self._with_number(node, "Mul") or self._with_number(node, "Add")
        convolution = None if scaled is None else self._made(scaled[0], "Conv")
        if scaled is None or convolution is None or "activation" not in convolution.attributes:
            return None
        factor, term = convolution.attributes.get("affine", (1.0, 0.0))
        number = scaled[1]
        affine = (factor * number, term * number) if node.operator == "Mul" else (factor, term + number)
        return self._replaced(convolution, node, affine=affine)

    def _factor_and_term(self, node: Node, x: str, channels: int) -> tuple[Any, Any] | None:
        """A factor and a term for each channel, in float64."""
        values = [self._constants.get(name) for name in node.inputs if name != x]
        if any(value is None for value in values) or len(values) != len(node.inputs) - 1:
            return None
        numbers = [np.asarray(value, np.float64) for value in values]
        one, zero = np.ones(channels), np.zeros(channels)
        if node.operator == "BatchNormalization":
            if len(node.outputs) != 1 or node.attributes.get("training_mode", 0):
                return None
            scale, shift, mean, variance = numbers
            return BatchNorm(scale, shift, mean, variance, node.attributes.get("epsilon", 1e-5)).factor_and_term()
        number = numbers[0]
        if number.ndim > 4 or number.size not in (1, channels):
            return None
        if number.size > 1 and (number.ndim < 3 or number.shape[-3] != channels):  # of rows or columns, or of images
            return None
        number = np.broadcast_to(number.reshape(-1), (channels,))
        match node.operator:
            case "Add":
                return one, number
            case "Sub":
                return one, -number
            case "Mul":
                return number, zero
        return None if np.any(number == 0) else (1 / number, zero)

    def _scaled(
        self, convolution: Node, node: Node, factor_and_term: Callable[[int], tuple[Any, Any] | None]
    ) -> Node | None:
        """The convolution with a factor and a term for each of so many channels; None where it cannot have them."""
        if "activation" in convolution.attributes or convolution.has(3):
            return None
        weight = self._constants.get(convolution.inputs[1])
        bias = self._constants.get(convolution.inputs[2]) if convolution.has(2) else None
        if weight is None or (bias is None and convolution.has(2)) or weight.dtype.kind != "f" or weight.ndim != 4:
            return None
        groups = convolution.attributes.get("group", 1)
        turned = convolution.operator == "ConvTranspose"
        found = factor_and_term(weight.shape[1] * groups if turned else weight.shape[0])
        if found is None:
            return None
        factor, term = found
        by_channel = factor.reshape((groups, 1, -1, 1, 1) if turned else (-1, 1, 1, 1))
        whole = weight.reshape(groups, -1, *weight.shape[1:]) if turned else weight
        names = f"{node.outputs[0]} weight", f"{node.outputs[0]} bias"
        self._constants[names[0]] = np.asarray((whole * by_channel).reshape(weight.shape), weight.dtype)
        self._constants[names[1]] = np.asarray((0.0 if bias is None else bias * factor) + term, weight.dtype)
        self._readers |= dict.fromkeys(names, 1)
        self._drop(convolution)
        inputs = (convolution.inputs[0], *names)
        return Node(convolution.operator, inputs, node.outputs, convolution.attributes, convolution.opset)

    # --- residuals ----------------------------------------------------------------------------------------------------

    def _residual(self, node: Node) -> Node | None:
        """The sum of a convolution and an array: it takes the place of the sum, where both are there.

        Whether the array is as large as the result shows when the network runs; if not, the two are added apart.
        """
        if node.operator != "Add" or len(node.inputs) != 2:
            return None
        for x, other in (node.inputs, node.inputs[::-1]):
            convolution = self._made(x, "Conv")
            if convolution is None or other in self._constants or other == x:
                continue
            if "activation" in convolution.attributes or convolution.has(3):
                continue
            self._drop(convolution)
            inputs = (*convolution.inputs, "", "")[:3]
            return Node("Conv", (*inputs, other), node.outputs, convolution.attributes, convolution.opset)
        return None

    # --- products -----------------------------------------------------------------------------------------------------

    def _shifted_product(self, node: Node) -> Node | None:
        """The product with a constant matrix of float32, and a number for each of its columns: its third input."""
        for x, other in (node.inputs, node.inputs[::-1]) if node.operator == "Add" else ():
            product, shift = self._made(x, "MatMul"), self._constants.get(other)
            matrix = None if product is None else self._constants.get(product.inputs[1])
            if product is None or shift is None or matrix is None or product.has(2):
                continue
            fits = matrix.ndim == 2 and matrix.size and shift.shape == matrix.shape[1:]
            if fits and matrix.dtype == shift.dtype == np.float32:
                self._drop(product)
                return Node("MatMul", (*product.inputs, other), node.outputs, product.attributes, product.opset)
        return None

    # --- squeeze and excitation ---------------------------------------------------------------------------------------

    def _excitation(self, node: Node) -> Node | None:
        """An image times what two convolutions of one pixel make of its averages: small arrays, so one step pays."""
        for x, gate in (node.inputs, node.inputs[::-1]) if node.operator == "Mul" else ():
            second = self._dense(gate)
            first = None if second is None else self._dense(second.inputs[0])
            means = None if first is None else self._made(first.inputs[0], "GlobalAveragePool")
            if first is None or second is None or means is None or means.inputs[0] != x:
                continue
            if self._constants[first.inputs[1]].shape[1] != self._constants[second.inputs[1]].shape[0]:
                continue  # gates that are broadcast, or the image is
            self._drop(means, first, second)
            self._readers[x] -= 1
            inputs = (x, *((*convolution.inputs[1:], "")[n] for convolution in (first, second) for n in range(2)))
            attributes = {"first": first.attributes, "second": second.attributes}
            return Node("Excitation", inputs, node.outputs, attributes, node.opset)
        return None

    def _dense(self, name: str) -> Node | None:
        """The convolution that makes a value of one pixel, if it is a product with a constant matrix of float32."""
        node = self._made(name, "Conv")
        if node is None or node.has(3) or node.attributes.get("group", 1) != 1:
            return None
        weight = self._constants.get(node.inputs[1])
        bias = self._constants.get(node.inputs[2]) if node.has(2) else None
        known = bias is not None or not node.has(2)
        moved = any(node.attributes.get("pads") or ()) or set(node.attributes.get("strides") or (1,)) != {1}
        if weight is None or not known or moved or node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
        fits = weight.shape[2:] == (1, 1) and weight.size and (bias is None or bias.shape == weight.shape[:1])
        return node if fits and all(a is None or a.dtype == np.float32 for a in (weight, bias)) else None


def _is_sixth(node: Node) -> bool:
    options: Mapping[str, Any] = node.attributes
    return bool(abs(options.get("alpha", 0.2) - 1 / 6) < 1e-6 and options.get("beta", 0.5) == 0.5)
