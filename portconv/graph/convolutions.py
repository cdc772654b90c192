"""Convolutions of a network, by `portconv.Conv2d` where the weight is constant, so that it is packed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import array_namespace
from ..core.epilogue import Activation
from ..core.errors import ModelError
from ..dispatch import registry
from ..engines.activations import activated
from ..functional import conv2d, conv2d_output_shape
from ..module import Conv2d
from ..windows import global_avg_pool2d
from . import host
from .model import Constants, Node, check_size

__all__ = ["Convolution", "Excitation", "Product", "Recurrence", "pads_of"]


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


PIECE = 1 << 15  # elements that are still near the core when they are read again
SINGLE = np.dtype(np.float32)
MAX_RUNS = 64  # sizes of an image that are remembered


class _Runs:
    """A layer's calls without their checks, for NumPy's arrays like those that came before."""

    def __init__(self) -> None:
        self._known: dict[Any, Callable[..., Any]] = {}

    @staticmethod
    def _kind(x: Any, residual: Any) -> Any:
        return registry.resolve(x), x.shape, x.dtype, None if residual is None else (residual.shape, residual.dtype)

    def find(self, x: Any, residual: Any = None) -> Callable[..., Any] | None:
        """A function of arrays like these, if there is one."""
        return self._known.get(self._kind(x, residual))

    def remember(self, layer: Conv2d, x: Any, residual: Any = None) -> None:
        """Have one for the next time."""
        if len(self._known) >= MAX_RUNS:
            self._known.clear()
        self._known[self._kind(x, residual)] = layer._ready(x, residual)


class Convolution:
    """A node `Conv`; images of one axis, ``(N, C, W)``, are those of height 1.

    What `fusing` has added is in the attributes: `activation`, as `portconv.conv2d` takes it, and in a fourth input:
    an array that is added before.
    """

    def __init__(self, node: Node, weight: np.ndarray[Any, Any] | None, bias: np.ndarray[Any, Any] | None) -> None:
        self._node, self._constant = node, weight is not None and (bias is not None or not node.has(2))
        self._layers: dict[Any, Conv2d] = {}  # by padding, which may depend on the size of the image, and activation
        self._weight = weight
        self._bias = bias
        self._ready: Conv2d | None = None  # the layer, where there is but one
        self._runs = _Runs()
        self._affine = node.attributes.get("affine")

    def __call__(self, x: Any, weight: Any, bias: Any = None, residual: Any = None) -> Any:
        """`weight` and `bias` are passed over where they are constant."""
        host = self._constant and type(x) is np.ndarray
        if host:
            run = self._runs.find(x, residual)
            if run is not None:
                return self._finished(run(x) if residual is None else run(x, residual))
        elif self._ready is not None and residual is None and x.ndim == 4:
            return self._finished(self._ready(x))
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
        sizes = conv2d_output_shape(
            x.shape, shape if rank == 2 else (*shape[:2], 1, *shape[2:]), strides, pads, dilations, options["groups"]
        )
        check_size(sizes)
        if residual is not None and tuple(residual.shape) != sizes:  # one of the two is broadcast
            check_size(np.broadcast_shapes(tuple(residual.shape), sizes))
            y = self._convolved(x, weight, bias, None, {**options, "activation": None}) + residual
            if (activation := _activation(options["activation"])) is not None:
                y = activated(array_namespace(y), y, activation)
        else:
            y = self._convolved(x, weight, bias, residual, options)
            if host and rank == 2:
                self._runs.remember(self._layer(options), x, residual)
        return self._finished(y[:, :, 0, :] if rank == 1 else y)

    def _finished(self, y: Any) -> Any:
        """With the factor and the term that follow the activation; of NumPy's result in place, piece by piece."""
        if self._affine is None:
            return y
        factor, term = self._affine
        if type(y) is not np.ndarray or not y.flags.c_contiguous:
            return y * factor + term
        flat = y.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            piece *= factor
            if term:
                piece += term
        return y

    def _convolved(self, x: Any, weight: Any, bias: Any, residual: Any, options: dict[str, Any]) -> Any:
        if not self._constant:
            return conv2d(x, weight, bias, residual=residual, **options)
        layer = self._layer(options)
        return layer(x) if residual is None else layer(x, residual=residual)

    def _layer(self, options: dict[str, Any]) -> Conv2d:
        key = options["padding"], options["activation"]
        if key in self._layers:
            return self._layers[key]
        assert self._weight is not None
        weight: Any = self._weight
        weight = weight[:, :, None, :] if weight.ndim == 3 else weight
        o, per_group, *kernel = weight.shape
        layer = Conv2d(
            per_group * options["groups"], o, kernel, bias=self._bias is not None, dtype=weight.dtype.name, **options
        )
        layer.weight = weight
        if self._bias is not None:
            layer.bias = self._bias
        self._layers[key] = layer
        if self._node.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and (
            weight.ndim == self._weight.ndim and options["activation"] == self._node.attributes.get("activation")
        ):
            self._ready = layer
        return layer


def _activation(given: Any) -> Activation | None:
    return None if given is None else Activation(*given) if isinstance(given, tuple) else Activation(given)


class Excitation:
    """A node `Excitation`, which `fusing` makes: an image times the gates that two convolutions make of its averages.

    On NumPy it is compiled as one; elsewhere it is what it was before.

    Parameters
    ----------
    node
        Its inputs are the image, and weight and bias of each convolution; `first` and `second` are the attributes of
        these.
    constants
        The inputs that are constant: all but the image.
    spare
        Whether nobody else sees the image's memory, then or later.
    """

    def __init__(self, node: Node, constants: Constants, spare: bool) -> None:
        self._spare, self._operands, self._layers = spare, list[tuple[Any, Any, Any, Any]](), list[Convolution]()
        for place, name in ((1, "first"), (3, "second")):
            weight, bias = (constants.get(of) if of else None for of in node.inputs[place : place + 2])
            assert weight is not None
            options = node.attributes[name]
            convolution = Node("Conv", ("x", *node.inputs[place : place + 2]), ("y",), options, node.opset)
            self._layers.append(Convolution(convolution, weight, bias))
            activation, affine = _activation(options.get("activation")), options.get("affine", (1.0, 0.0))
            self._operands.append((weight.reshape(weight.shape[:2]), bias, activation, affine))
        self._channels = self._operands[0][0].shape[1]

    @cached_property
    def _compiled(self) -> Any:
        return host.compiled_excitation(*self._operands)

    def __call__(self, x: Any) -> Any:
        """The result, on NumPy in the memory of an image that is spare."""
        if type(x) is np.ndarray and self._compiled is not None and self._usual(x):
            return self._compiled(x, global_avg_pool2d, x if self._spare else None)
        first, second = self._layers
        if x.ndim != 4:
            raise ModelError(f"an image of {x.ndim - 2} axes with kernels of 2 is not supported.")
        return x * second(first(global_avg_pool2d(x), None), None)

    def _usual(self, x: np.ndarray[Any, Any]) -> bool:
        """Whether there is a compiled form for this image."""
        flags = x.flags
        suits = flags.c_contiguous and flags.aligned and x.dtype == SINGLE
        return bool(suits and x.ndim == 4 and x.shape[1] == self._channels and x.size)


class Recurrence:
    """A node `LSTM` with constant weights: what enters all steps is a `Product` on NumPy, and the steps are compiled.

    It is called as `function` is, that of the operator, which is given this object besides.

    Parameters
    ----------
    weights, recurrences, biases
        Those of the node; None where they are not constant or not there.
    """

    def __init__(self, function: Callable[..., Any], node: Node, *constants: np.ndarray[Any, Any] | None) -> None:
        self._function = function
        self._weights, self._recurrences, self._biases = constants
        self._compiles = self._constant(node)

    @staticmethod
    def suits(node: Node, weights: np.ndarray[Any, Any]) -> bool:
        """Whether it is such a node."""
        known = weights.ndim == 3 and weights.size > 0 and str(weights.dtype) == "float32"
        return node.operator == "LSTM" and known

    def _constant(self, node: Node) -> bool:
        """Whether all weights are known, and fit each other; what does not fit is refused where it is computed."""
        w, r, b = self._weights, self._recurrences, self._biases
        if w is None or r is None or (b is None and node.has(3)) or node.has(7) or not r.size:
            return False
        ways, size = r.shape[0], r.shape[-1]
        both = node.attributes.get("direction", "forward") == "bidirectional"
        fits = r.shape == (ways, 4 * size, size) and w.shape[:2] == r.shape[:2] and ways == 1 + both
        return bool(fits and r.dtype == w.dtype and (b is None or (b.shape == (ways, 8 * size) and b.dtype == w.dtype)))

    def __call__(self, xp: Any, node: Node, *inputs: Any) -> Any:
        return self._function(xp, node, *inputs, own=self)

    @cached_property
    def _products(self) -> list[Product]:
        assert self._weights is not None
        return [Product(Node("MatMul", (), ()), of_way.T, None) for of_way in self._weights]

    def product(self, rows: Any, way: int) -> Any:
        """Rows times the transposed weights of a direction."""
        return self._products[way](rows)

    @cached_property
    def _compiled(self) -> tuple[Product, Any] | None:
        """What enters the gates of all directions, and the steps of these; None where these are not compiled."""
        steps = host.compiled_lstm(self._recurrences) if self._compiles else None
        if steps is None:
            return None
        assert self._weights is not None
        weights, bias = steps.padded(self._weights), None
        if self._biases is not None:
            entering, recurring = np.split(self._biases, 2, axis=1)
            bias = steps.padded(entering + recurring).reshape(-1)
        return Product(Node("Gemm", (), ()), weights.reshape(-1, weights.shape[2]).T, bias), steps

    def steps(self, x: Any, h: Any, c: Any, backward: bool) -> tuple[Any, Any, Any] | None:
        """The results of `recurrent.lstm` for NumPy's arrays; None where they are not compiled."""
        if self._compiled is None or not x.size or str(x.dtype) != "float32":
            return None
        entering, steps = self._compiled
        if any(state is not None and state.shape != (steps.ways, x.shape[1], steps.size) for state in (h, c)):
            return None
        found: tuple[Any, Any, Any] = steps(entering(x), h, c, backward)
        return found


class Product:
    """A node `MatMul` or `Gemm` with a constant matrix: on a CPU a convolution with a kernel of one pixel.

    So the matrix is packed once, for compiled code.
    """

    def __init__(self, node: Node, matrix: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None) -> None:
        matrix = matrix.T if node.attributes.get("transB", 0) else matrix
        alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
        self._matrix = np.asarray(matrix * alpha if alpha != 1 else matrix, matrix.dtype)
        self._bias = None if bias is None else np.asarray(bias.reshape(-1) * beta, matrix.dtype)
        self._turned = bool(node.attributes.get("transA", 0))
        inputs, outputs = matrix.shape
        self._layer = Conv2d(
            inputs, outputs, 1, bias=bias is not None, dtype=matrix.dtype.name, layout="NHWC",
            activation=node.attributes.get("activation"),
        )  # fmt: skip
        self._layer.weight = np.ascontiguousarray(self._matrix.T)[:, :, None, None]
        if self._bias is not None:
            self._layer.bias = self._bias
        self._runs = _Runs()

    @staticmethod
    def suits(node: Node, matrix: Any, bias: Any) -> bool:
        """Whether there is such a matrix, and a bias for each of its columns or none."""
        if (
            node.operator not in ("MatMul", "Gemm")
            or matrix is None
            or matrix.ndim != 2
            or str(matrix.dtype) != "float32"
        ):
            return False
        columns = matrix.shape[0 if node.attributes.get("transB", 0) else 1]
        fits = bias is not None and bias.size == columns and bias.ndim and bias.shape[-1] == columns
        return matrix.size > 0 and (not node.has(2) or bool(fits))

    def __call__(self, x: Any, _matrix: Any = None, _bias: Any = None) -> Any:
        """`x` times the matrix, and the bias; these two are constant."""
        xp = array_namespace(x)
        x = xp.matrix_transpose(x) if self._turned else x
        *lead, inputs = x.shape
        if inputs != self._matrix.shape[0] or not lead:
            raise ModelError(f"an array of shape {tuple(x.shape)} and a matrix of {self._matrix.shape} do not fit.")
        rows = math.prod(lead)
        check_size((rows, self._matrix.shape[1]))
        if rows == 0:
            return xp.zeros((*lead, self._matrix.shape[1]), dtype=x.dtype)
        image = xp.reshape(x, (1, 1, rows, inputs))
        run = self._runs.find(image) if type(image) is np.ndarray else self._layer
        if run is None:
            run = self._layer
            self._runs.remember(run, image)
        y = run(image)
        return xp.reshape(y, (*lead, self._matrix.shape[1]))
