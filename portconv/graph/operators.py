"""The operators: what each means, in operations of the array API.

A function takes the namespace of its arrays, its node, and its inputs, None for those that are left out. Inputs that
say sizes, axes or places come as NumPy arrays, whatever the library: `host` names them. Source: the definitions at
https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from ..core.epilogue import Activation
from ..core.errors import ModelError
from ..engines.activations import activated, erf
from ..windows import global_avg_pool2d
from . import recurrent, windows
from .convolutions import Recurrence, pads_of
from .host import one_by_one, side_by_side
from .model import LARGEST, Node, check_size

__all__ = ["OPERATORS", "Operator", "act"]

Array = Any


@dataclass(frozen=True, slots=True)
class Operator:
    """`function`, and the places of those inputs that are always NumPy's: a number less than zero is all of them."""

    function: Callable[..., Any]
    host: frozenset[int] = frozenset()


OPERATORS: dict[str, Operator] = {}


def _operator(*names: str, host: Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS[name] = Operator(function, frozenset(host))
        return function

    return add


def _ints(value: Any) -> list[int]:
    return [int(v) for v in np.reshape(value, -1)]


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < max(ndim, 1):
        raise ModelError(f"axis {axis} is none of an array of {ndim} axes.")
    return axis % max(ndim, 1)


def _given(node: Node, name: str, value: Any) -> list[int] | None:
    """Integers that newer sets of operators have as an input, and older ones as an attribute."""
    if value is not None:
        return _ints(value)
    found = node.attributes.get(name)
    return None if found is None else _ints(found)


# --- elementwise ------------------------------------------------------------------------------------------------------


def _fitting(*arrays: Array) -> None:
    """Whether the arrays can be broadcast, to no more elements than there may be."""
    shapes = [tuple(a.shape) for a in arrays]
    if shapes.count(shapes[0]) < len(shapes) and math.prod(map(math.prod, shapes)) > LARGEST:  # there are not more
        check_size(np.broadcast_shapes(*shapes))


def _binary(function: Callable[[ModuleType, Any, Any], Any]) -> Callable[..., Any]:
    def apply(xp: ModuleType, _node: Node, a: Array, b: Array) -> Array:
        _fitting(a, b)
        return function(xp, a, b)

    return apply


def _folded(function: Callable[[ModuleType, Any, Any], Any]) -> Callable[..., Any]:
    def apply(xp: ModuleType, node: Node, *arrays: Array) -> Array:
        _fitting(*arrays)
        total = arrays[0]
        for array in arrays[1:]:
            total = function(xp, total, array)
        return total / len(arrays) if node.operator == "Mean" else total

    return apply


def _divided(xp: ModuleType, a: Array, b: Array) -> Array:
    if xp.isdtype(a.dtype, "real floating"):
        return a / b
    quotient = abs(a) // abs(b)  # of integers, rounded to zero
    return xp.where((a < 0) != (b < 0), -quotient, quotient) if xp.isdtype(a.dtype, "signed integer") else quotient


for _name, _function in {
    "Add": lambda _xp, a, b: a + b,
    "Sub": lambda _xp, a, b: a - b,
    "Mul": lambda _xp, a, b: a * b,
    "Div": _divided,
    "Equal": lambda _xp, a, b: a == b,
    "Greater": lambda _xp, a, b: a > b,
    "GreaterOrEqual": lambda _xp, a, b: a >= b,
    "Less": lambda _xp, a, b: a < b,
    "LessOrEqual": lambda _xp, a, b: a <= b,
    "And": lambda xp, a, b: xp.logical_and(a, b),
    "Or": lambda xp, a, b: xp.logical_or(a, b),
    "PRelu": lambda xp, a, b: xp.where(a < 0, a * b, a),
}.items():
    _operator(_name)(_binary(_function))

for _name, _function in {
    "Sum": lambda _xp, a, b: a + b,
    "Mean": lambda _xp, a, b: a + b,
    "Max": lambda xp, a, b: xp.maximum(a, b),
    "Min": lambda xp, a, b: xp.minimum(a, b),
}.items():
    _operator(_name)(_folded(_function))


@_operator("Pow")
def _power(xp: ModuleType, _node: Node, x: Array, exponent: Array) -> Array:
    _fitting(x, exponent)
    if exponent.ndim == 0 or math.prod(exponent.shape) == 1:
        value = float(exponent if exponent.ndim == 0 else xp.reshape(exponent, ()))
        if exponent.ndim <= x.ndim and value in (0.5, 1.0, 2.0, 3.0):
            x = xp.reshape(x, np.broadcast_shapes(tuple(x.shape), tuple(exponent.shape)))
            if value == 0.5 and xp.isdtype(x.dtype, "real floating"):
                return xp.sqrt(x)
            if value != 0.5:
                return x if value == 1 else x * x if value == 2 else x * x * x
    return xp.astype(x ** xp.astype(exponent, x.dtype), x.dtype)


@_operator("Where")
def _where(xp: ModuleType, _node: Node, condition: Array, a: Array, b: Array) -> Array:
    _fitting(condition, a, b)
    return xp.where(condition, a, b)


def _unary(function: Callable[[ModuleType, Any], Any]) -> Callable[..., Any]:
    def apply(xp: ModuleType, _node: Node, x: Array) -> Array:
        return function(xp, x)

    return apply


def act(name: str, slope: float = 0.01) -> Callable[[ModuleType, Any], Any]:
    """An activation that convolutions have, too."""
    activation = Activation(name, slope)
    return lambda xp, x: activated(xp, x, activation)


def _logistic(xp: ModuleType, x: Array) -> Array:
    return xp.tanh(x * 0.5) * 0.5 + 0.5  # overflows nowhere


def _clamped(xp: ModuleType, x: Array, low: Any, high: Any) -> Array:
    if low is not None:
        x = xp.maximum(x, _number(xp, low, x))
    return x if high is None else xp.minimum(x, _number(xp, high, x))


def _number(xp: ModuleType, value: Any, like: Array) -> Array:
    return xp.asarray(value, dtype=like.dtype, device=windows.place(like))


for _name, _unary_function in {
    "Abs": lambda xp, x: xp.abs(x),
    "Neg": lambda _xp, x: -x,
    "Exp": lambda xp, x: xp.exp(x),
    "Log": lambda xp, x: xp.log(x),
    "Sqrt": lambda xp, x: xp.sqrt(x),
    "Floor": lambda xp, x: xp.floor(x),
    "Ceil": lambda xp, x: xp.ceil(x),
    "Round": lambda xp, x: xp.round(x),
    "Sign": lambda xp, x: xp.sign(x),
    "Sin": lambda xp, x: xp.sin(x),
    "Cos": lambda xp, x: xp.cos(x),
    "Not": lambda xp, x: xp.logical_not(x),
    "Reciprocal": lambda _xp, x: 1 / x,
    "Erf": erf,
    "Sigmoid": _logistic,
    "Tanh": lambda xp, x: xp.tanh(x),
    "Relu": lambda xp, x: xp.maximum(x, xp.zeros_like(x)) if math.prod(x.shape) < 2 else _clamped(xp, x, 0, None),
    "HardSwish": lambda xp, x: x * (_clamped(xp, x + 3, 0, 6) / 6),
    "Silu": lambda xp, x: x * _logistic(xp, x),
    "Mish": lambda xp, x: x * xp.tanh(_softplus(xp, x)),
    "Softplus": lambda xp, x: _softplus(xp, x),
    "Softsign": lambda xp, x: x / (1 + xp.abs(x)),
    "Identity": lambda _xp, x: x,
}.items():
    _operator(_name)(_unary(_unary_function))


def _softplus(xp: ModuleType, x: Array) -> Array:
    return _clamped(xp, x, 0, None) + xp.log1p(xp.exp(-xp.abs(x)))


@_operator("HardSigmoid")
def _hard_sigmoid(xp: ModuleType, node: Node, x: Array) -> Array:
    return _clamped(xp, x * node.attributes.get("alpha", 0.2) + node.attributes.get("beta", 0.5), 0, 1)


@_operator("LeakyRelu")
def _leaky_relu(xp: ModuleType, node: Node, x: Array) -> Array:
    return xp.where(x < 0, x * node.attributes.get("alpha", 0.01), x)


@_operator("Elu")
def _elu(xp: ModuleType, node: Node, x: Array) -> Array:
    return xp.where(x < 0, node.attributes.get("alpha", 1.0) * xp.expm1(_clamped(xp, x, None, 0)), x)


@_operator("Gelu")
def _gelu(xp: ModuleType, node: Node, x: Array) -> Array:
    if node.attributes.get("approximate", "none") == "tanh":
        return x * 0.5 * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return x * ((erf(xp, x * math.sqrt(0.5)) + 1) / 2)


@_operator("Clip", host=(1, 2))
def _clip(xp: ModuleType, node: Node, x: Array, low: Any = None, high: Any = None) -> Array:
    ends = [node.attributes.get(name) if value is None else value for name, value in (("min", low), ("max", high))]
    numbers = [None if end is None else np.reshape(end, ())[()] for end in ends]
    return _clamped(xp, x, numbers[0], numbers[1])


@_operator("Dropout")
def _dropout(_xp: ModuleType, node: Node, x: Array, _ratio: Any = None, training: Any = None) -> Array:
    if len(node.outputs) > 1 or (training is not None and bool(training)):
        raise ModelError("Dropout is that of inference only.")
    return x


@_operator("Cast")
def _cast(xp: ModuleType, node: Node, x: Array) -> Array:
    dtype = DTYPES.get(node.attributes["to"])
    if dtype is None:
        raise ModelError(f"Cast to the dtype of number {node.attributes['to']} is not supported.")
    if isinstance(x, np.ndarray):
        return x.astype(dtype)
    return xp.astype(x, getattr(xp, "bool" if dtype == "bool" else dtype))


# of TensorProto.DataType
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
          10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}  # fmt: skip

# --- reductions -------------------------------------------------------------------------------------------------------


def _reduction(function: Callable[[ModuleType, Any, tuple[int, ...], bool], Any]) -> Callable[..., Any]:
    def reduce(xp: ModuleType, node: Node, x: Array, axes: Any = None) -> Array:
        given = _given(node, "axes", axes)
        if not given and node.attributes.get("noop_with_empty_axes", 0):
            return x
        places = tuple(_axis(a, x.ndim) for a in given) if given else tuple(range(x.ndim))
        return xp.astype(function(xp, x, places, bool(node.attributes.get("keepdims", 1))), x.dtype, copy=False)

    return reduce


for _name, _reducing in {
    "ReduceMean": lambda xp, x, axes, keep: xp.mean(x, axis=axes, keepdims=keep),
    "ReduceSum": lambda xp, x, axes, keep: xp.sum(x, axis=axes, keepdims=keep),
    "ReduceMax": lambda xp, x, axes, keep: xp.max(x, axis=axes, keepdims=keep),
    "ReduceMin": lambda xp, x, axes, keep: xp.min(x, axis=axes, keepdims=keep),
    "ReduceProd": lambda xp, x, axes, keep: xp.prod(x, axis=axes, keepdims=keep),
    "ReduceL1": lambda xp, x, axes, keep: xp.sum(xp.abs(x), axis=axes, keepdims=keep),
    "ReduceL2": lambda xp, x, axes, keep: xp.sqrt(xp.sum(x * x, axis=axes, keepdims=keep)),
    "ReduceSumSquare": lambda xp, x, axes, keep: xp.sum(x * x, axis=axes, keepdims=keep),
}.items():
    _operator(_name, host=(1,))(_reduction(_reducing))


@_operator("ArgMax", "ArgMin")
def _extreme(xp: ModuleType, node: Node, x: Array) -> Array:
    axis = _axis(node.attributes.get("axis", 0), x.ndim)
    if node.attributes.get("select_last_index", 0):
        raise ModelError(f"{node.operator} with select_last_index is not supported.")
    function = xp.argmax if node.operator == "ArgMax" else xp.argmin
    return function(x, axis=axis, keepdims=bool(node.attributes.get("keepdims", 1)))


@_operator("Softmax", "LogSoftmax")
def _softmax(xp: ModuleType, node: Node, x: Array) -> Array:
    axis = _axis(node.attributes.get("axis", -1 if node.opset >= 13 else 1), x.ndim)
    # before opset 13 all axes from this one on are one
    axes = (axis,) if node.opset >= 13 else tuple(range(axis, x.ndim))
    x = x - xp.max(x, axis=axes, keepdims=True)
    e = xp.exp(x)
    total = xp.sum(e, axis=axes, keepdims=True)
    return e / total if node.operator == "Softmax" else x - xp.log(total)


# --- shapes -----------------------------------------------------------------------------------------------------------


@_operator("Constant", host=(-1,))
def _constant(_xp: ModuleType, node: Node) -> Array:
    for name, value in node.attributes.items():
        if name == "value":
            return value
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise ModelError("a Constant must have a value that is an array, a number, or numbers.")


@_operator("ConstantOfShape", host=(-1,))
def _constant_of_shape(_xp: ModuleType, node: Node, shape: Any) -> Array:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    return np.full(check_size(_ints(shape)), np.reshape(value, ())[()], value.dtype)


@_operator("Range", host=(-1,))
def _range(_xp: ModuleType, _node: Node, start: Any, limit: Any, delta: Any) -> Array:
    first, last, step = (np.reshape(v, ()).item() for v in (start, limit, delta))
    if step == 0 or not all(np.isfinite(v) for v in (first, last, step)):
        raise ModelError("Range needs finite numbers, and a step that is not 0.")
    check_size((max(0, math.ceil((last - first) / step)),))
    return np.arange(first, last, step, dtype=np.asarray(start).dtype)


@_operator("Shape")
def _shape(_xp: ModuleType, node: Node, x: Array) -> Array:
    some = slice(node.attributes.get("start", 0), node.attributes.get("end"))
    return np.array(tuple(x.shape)[some], np.int64)


@_operator("Size")
def _size(_xp: ModuleType, _node: Node, x: Array) -> Array:
    return np.array(math.prod(x.shape), np.int64)


@_operator("Reshape", host=(1,))
def _reshape(xp: ModuleType, node: Node, x: Array, shape: Any) -> Array:
    sizes = _ints(shape)
    if not node.attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 and i < x.ndim else size for i, size in enumerate(sizes)]
    return xp.reshape(x, tuple(sizes))


@_operator("Flatten")
def _flatten(xp: ModuleType, node: Node, x: Array) -> Array:
    axis = node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return xp.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@_operator("Transpose")
def _transpose(xp: ModuleType, node: Node, x: Array) -> Array:
    return xp.permute_dims(x, tuple(node.attributes.get("perm") or range(x.ndim)[::-1]))


@_operator("Concat")
def _concat(xp: ModuleType, node: Node, *arrays: Array) -> Array:
    axis = _axis(node.attributes["axis"], arrays[0].ndim)
    check_size((*arrays[0].shape[:axis], sum(a.shape[axis] for a in arrays), *arrays[0].shape[axis + 1 :]))
    return xp.concat(arrays, axis=axis)


@_operator("Slice", host=(1, 2, 3, 4))
def _slice(
    xp: ModuleType, node: Node, x: Array, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Array:
    first, last = _given(node, "starts", starts) or [], _given(node, "ends", ends) or []
    places = _given(node, "axes", axes)
    places = list(range(len(first))) if places is None else places
    strides = _ints(steps) if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(places) == len(strides):
        raise ModelError("Slice needs as many ends, axes and steps as it has starts.")
    for start, end, place, step in zip(first, last, places, strides, strict=True):
        if step == 0:
            raise ModelError("a step of Slice is 0.")
        axis = _axis(place, x.ndim)
        size = x.shape[axis]
        start = start + size if start < 0 else start
        end = end + size if end < 0 else end
        if step > 0:
            some = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:
            start, end = min(max(start, -1), size - 1), min(max(end, -1), size - 1)
            # in the order of memory, since not all libraries have negative steps, and turned then
            count = max(0, -(-(start - end) // -step))
            some = slice(start + (count - 1) * step, start + 1, -step) if count else slice(0, 0)
        x = x[(slice(None),) * axis + (some, ...)]
        if step < 0:
            x = xp.flip(x, axis=axis)
    return x


@_operator("Gather")
def _gather(xp: ModuleType, node: Node, x: Array, indices: Array) -> Array:
    axis = _axis(node.attributes.get("axis", 0), x.ndim)
    size = x.shape[axis]
    check_size((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    if isinstance(indices, np.ndarray) and indices.size and not (-size <= indices.min() and indices.max() < size):
        raise ModelError(f"an index of Gather is none of an axis of {size}.")
    places = xp.reshape(xp.where(indices < 0, indices + size, indices), (-1,))
    return xp.reshape(xp.take(x, places, axis=axis), (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@_operator("Split", host=(1,))
def _split(_xp: ModuleType, node: Node, x: Array, split: Any = None) -> tuple[Array, ...]:
    axis, count = _axis(node.attributes.get("axis", 0), x.ndim), len(node.outputs)
    sizes = _given(node, "split", split)
    if sizes is None:
        part = -(-x.shape[axis] // count)
        sizes = [max(0, min(part, x.shape[axis] - k * part)) for k in range(count)]
    if len(sizes) != count or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ModelError(f"Split cannot make parts of {sizes} of an axis of {x.shape[axis]}, for {count} outputs.")
    ends = [0, *np.cumsum(sizes).tolist()]
    return tuple(x[(slice(None),) * axis + (slice(start, end), ...)] for start, end in pairwise(ends))


@_operator("Pad", host=(1, 2, 3))
def _pad(xp: ModuleType, node: Node, x: Array, pads: Any = None, value: Any = None, axes: Any = None) -> Array:
    amounts = _given(node, "pads", pads) or []
    places = list(range(x.ndim)) if axes is None else [_axis(a, x.ndim) for a in _ints(axes)]
    if len(amounts) != 2 * len(places):
        raise ModelError(f"`pads` must have {2 * len(places)} numbers, but has {len(amounts)}.")
    around = [(0, 0)] * x.ndim
    for k, axis in enumerate(places):
        around[axis] = amounts[k], amounts[k + len(places)]
    check_size(size + sum(pair) for size, pair in zip(x.shape, around, strict=True))
    mode = node.attributes.get("mode", "constant")
    if mode == "constant":
        number: Any = node.attributes.get("value", 0) if value is None else np.reshape(value, ()).item()
        return windows.padded(xp, x, around, number)
    numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}.get(mode)
    if numpy_mode is None or min(min(pair) for pair in around) < 0:
        raise ModelError(f"Pad with mode {mode!r} and pads {amounts} is not supported.")
    for axis, pair in enumerate(around):
        if pair != (0, 0):
            places_of = np.pad(np.arange(x.shape[axis]), pair, mode=numpy_mode)  # type: ignore[call-overload]  # a word of its table
            x = windows.resampled(xp, x, axis, [(places_of, None)])
    return x


@_operator("Squeeze", host=(1,))
def _squeeze(xp: ModuleType, node: Node, x: Array, axes: Any = None) -> Array:
    given = _given(node, "axes", axes)
    places = [i for i, size in enumerate(x.shape) if size == 1] if given is None else [_axis(a, x.ndim) for a in given]
    if any(x.shape[a] != 1 for a in places):
        raise ModelError(f"Squeeze cannot drop the axes {places} of an array of shape {tuple(x.shape)}.")
    return xp.reshape(x, tuple(size for i, size in enumerate(x.shape) if i not in places))


@_operator("Unsqueeze", host=(1,))
def _unsqueeze(xp: ModuleType, node: Node, x: Array, axes: Any = None) -> Array:
    given = _given(node, "axes", axes) or []
    ndim = x.ndim + len(given)
    places = {_axis(a, ndim) for a in given}
    sizes = iter(x.shape)
    if len(places) != len(given):
        raise ModelError(f"Unsqueeze names an axis twice: {given}.")
    return xp.reshape(x, tuple(1 if i in places else next(sizes) for i in range(ndim)))


@_operator("Expand", host=(1,))
def _expand(xp: ModuleType, _node: Node, x: Array, shape: Any) -> Array:
    return xp.broadcast_to(x, check_size(np.broadcast_shapes(tuple(x.shape), check_size(_ints(shape)))))


@_operator("Tile", host=(1,))
def _tile(xp: ModuleType, _node: Node, x: Array, repeats: Any) -> Array:
    times = _ints(repeats)
    if len(times) != x.ndim:
        raise ModelError(f"Tile needs {x.ndim} numbers, but got {times}.")
    check_size(size * n for size, n in zip(x.shape, times, strict=True))
    return xp.tile(x, tuple(times))


@_operator("DepthToSpace")
def _depth_to_space(xp: ModuleType, node: Node, x: Array) -> Array:
    n, c, h, w = x.shape
    b = node.attributes["blocksize"]
    columns_first = node.attributes.get("mode", "DCR") == "CRD"
    shape = (n, c // (b * b), b, b, h, w) if columns_first else (n, b, b, c // (b * b), h, w)
    order = (0, 1, 4, 2, 5, 3) if columns_first else (0, 3, 4, 1, 5, 2)
    return xp.reshape(xp.permute_dims(xp.reshape(x, shape), order), (n, c // (b * b), h * b, w * b))


@_operator("SpaceToDepth")
def _space_to_depth(xp: ModuleType, node: Node, x: Array) -> Array:
    n, c, h, w = x.shape
    b = node.attributes["blocksize"]
    blocks = xp.permute_dims(xp.reshape(x, (n, c, h // b, b, w // b, b)), (0, 3, 5, 1, 2, 4))
    return xp.reshape(blocks, (n, c * b * b, h // b, w // b))


# --- images -----------------------------------------------------------------------------------------------------------


@_operator("ConvTranspose", host=())
def _conv_transpose(xp: ModuleType, node: Node, x: Array, weight: Array, bias: Array = None) -> Array:
    rank = x.ndim - 2
    if rank != 2:
        raise ModelError(f"ConvTranspose of images of {rank} axes is not supported.")
    kernel = tuple(weight.shape[2:])
    strides, dilations = (tuple(node.attributes.get(name) or (1, 1)) for name in ("strides", "dilations"))
    extra = tuple(node.attributes.get("output_padding") or (0, 0))
    auto, sizes = node.attributes.get("auto_pad", "NOTSET"), node.attributes.get("output_shape")
    if sizes is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = sizes[-2:] if sizes is not None else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        pads = []
        for k, n in enumerate(x.shape[2:]):
            total = strides[k] * (n - 1) + extra[k] + (kernel[k] - 1) * dilations[k] + 1 - wanted[k]
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        around: windows.Pads = tuple(pads)
    else:
        around = pads_of(node, x.shape[2:], kernel, strides, dilations)
    groups = node.attributes.get("group", 1)
    check_size((x.shape[0], weight.shape[1] * groups, *(
        (n - 1) * s + more + (k - 1) * d + 1 - sum(pair)
        for n, s, more, k, d, pair in zip(x.shape[2:], strides, extra, kernel, dilations, around, strict=True)
    )))  # fmt: skip
    return windows.conv_transpose2d(xp, x, weight, bias, strides, around, dilations, groups, extra)


def _pooled(xp: ModuleType, node: Node, x: Array, kind: str) -> Array:
    kernel = tuple(node.attributes["kernel_shape"])
    rank = len(kernel)
    if x.ndim != rank + 2 or not rank:
        raise ModelError(f"windows of {rank} axes do not fit an image of shape {tuple(x.shape)}.")
    strides, dilations = (tuple(node.attributes.get(name) or (1,) * rank) for name in ("strides", "dilations"))
    if min(*kernel, *strides, *dilations) < 1:
        raise ModelError(f"a window of {kernel} with strides {strides} and dilations {dilations} makes no sense.")
    pads = pads_of(node, x.shape[2:], kernel, strides, dilations)
    up, counted = (bool(node.attributes.get(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    return windows.pooled(xp, x, kind, kernel, strides, pads, dilations, up=up, counted=counted)


@_operator("MaxPool")
def _max_pool(xp: ModuleType, node: Node, x: Array) -> Array:
    if len(node.outputs) > 1 or node.attributes.get("storage_order", 0):
        raise ModelError("MaxPool with indices is not supported.")
    return _pooled(xp, node, x, "max")


@_operator("AveragePool")
def _average_pool(xp: ModuleType, node: Node, x: Array) -> Array:
    return _pooled(xp, node, x, "average")


@_operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(xp: ModuleType, node: Node, x: Array) -> Array:
    if x.ndim == 4 and node.operator == "GlobalAveragePool":
        return global_avg_pool2d(x)
    sizes, still = tuple(x.shape[2:]), (1,) * (x.ndim - 2)
    kind = "average" if node.operator == "GlobalAveragePool" else "max"
    return windows.pooled(xp, x, kind, sizes, still, ((0, 0),) * len(sizes), still)


def _by_channel(xp: ModuleType, x: Array, numbers: Array) -> Array:
    return xp.reshape(numbers, (-1,) + (1,) * (x.ndim - 2))


@_operator("BatchNormalization")
def _batch_normalization(
    xp: ModuleType, node: Node, x: Array, scale: Array, shift: Array, mean: Array, variance: Array
) -> Array:
    if node.attributes.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        raise ModelError("BatchNormalization is that of inference only.")
    factor = scale / xp.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return x * _by_channel(xp, x, factor) + _by_channel(xp, x, shift - mean * factor)


@_operator("InstanceNormalization")
def _instance_normalization(xp: ModuleType, node: Node, x: Array, scale: Array, shift: Array) -> Array:
    y = _standardised(xp, x, tuple(range(2, x.ndim)), node.attributes.get("epsilon", 1e-5))
    return y * _by_channel(xp, x, scale) + _by_channel(xp, x, shift)


@_operator("LayerNormalization")
def _layer_normalization(xp: ModuleType, node: Node, x: Array, scale: Array, shift: Array = None) -> Array:
    if len([name for name in node.outputs if name]) > 1:
        raise ModelError("LayerNormalization gives the result only.")
    axes = tuple(range(_axis(node.attributes.get("axis", -1), x.ndim), x.ndim))
    y = _standardised(xp, x, axes, node.attributes.get("epsilon", 1e-5)) * scale
    return y if shift is None else y + shift


def _standardised(xp: ModuleType, x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    x = x - xp.mean(x, axis=axes, keepdims=True)
    return x / xp.sqrt(xp.mean(x * x, axis=axes, keepdims=True) + epsilon)


@_operator("Upsample", host=(1,))
def _upsample(xp: ModuleType, node: Node, x: Array, scales: Any = None) -> Array:
    factors = scales if scales is not None else node.attributes.get("scales")
    asymmetric = {**node.attributes, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(xp, Node("Resize", node.inputs, node.outputs, asymmetric, 13), x, None, factors)


@_operator("Resize", host=(1, 2, 3))
def _resize(xp: ModuleType, node: Node, x: Array, roi: Any = None, scales: Any = None, sizes: Any = None) -> Array:
    options = node.attributes
    if node.opset < 11:  # of two inputs
        return _upsample(xp, Node("Upsample", node.inputs, node.outputs, options, 9), x, roi)
    scales = None if scales is None or not np.size(scales) else np.reshape(np.asarray(scales, np.float64), -1)
    axes = [_axis(a, x.ndim) for a in options.get("axes") or range(x.ndim)]
    policy = options.get("keep_aspect_ratio_policy", "stretch")
    mode, transform = options.get("mode", "nearest"), options.get("coordinate_transformation_mode", "half_pixel")
    if policy != "stretch" or options.get("antialias", 0) or transform == "tf_crop_and_resize":
        raise ModelError("Resize with antialias, keep_aspect_ratio_policy or tf_crop_and_resize is not supported.")
    if (scales is None) == (sizes is None):
        raise ModelError("Resize needs either scales or sizes.")
    if scales is not None:
        if len(scales) != len(axes) or not np.all(np.isfinite(scales)) or np.any(scales <= 0):
            raise ModelError(f"Resize needs {len(axes)} positive scales, but has {scales.tolist()}.")
        counts = [math.floor(min(x.shape[a] * s, LARGEST + 1)) for a, s in zip(axes, scales, strict=True)]
    else:
        counts = _ints(sizes)
        scales = np.array([n / max(x.shape[a], 1) for a, n in zip(axes, counts, strict=True)])
    shape = list(x.shape)
    for axis, count in zip(axes, counts, strict=True):
        shape[axis] = count
    check_size(shape)
    changes = {
        axis: _taps(x.shape[axis], count, float(scale), mode, transform, options)
        for axis, count, scale in zip(axes, counts, scales, strict=True)
        if count != x.shape[axis] or scale != 1
    }
    return windows.resized(xp, x, changes)


def _taps(size: int, count: int, scale: float, mode: str, transform: str, options: Any) -> list[tuple[Any, Any]]:
    """Which elements of an axis each of the new ones is made of, and their weights."""
    i = np.arange(count, dtype=np.float64)
    match transform:
        case "asymmetric":
            place = i / scale
        case "half_pixel":
            place = (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            place = (i + 0.5) / scale - 0.5 if count > 1 else np.zeros(count)
        case "align_corners":
            place = i * (size - 1) / (count - 1) if count > 1 else np.zeros(count)
        case "half_pixel_symmetric":
            place = size / 2 * (1 - count / (scale * size)) + (i + 0.5) / scale - 0.5
        case _:
            raise ModelError(f"Resize with {transform!r} is not supported.")
    if mode == "nearest":
        rounding = options.get("nearest_mode", "round_prefer_floor")
        roundings: dict[str, Callable[[Any], Any]] = {
            "round_prefer_floor": lambda p: np.ceil(p - 0.5), "round_prefer_ceil": lambda p: np.floor(p + 0.5),
            "floor": np.floor, "ceil": np.ceil,
        }  # fmt: skip
        near = roundings[rounding](place)
        return [(np.clip(near, 0, size - 1).astype(np.int64), None)]
    if mode == "linear":
        place = np.clip(place, 0, size - 1)
        low = np.minimum(np.floor(place), max(size - 2, 0)).astype(np.int64)
        share = place - low
        return [(low, 1 - share), (np.minimum(low + 1, size - 1), share)]
    if mode != "cubic" or options.get("exclude_outside", 0):
        raise ModelError(f"Resize with mode {mode!r} and these options is not supported.")
    a, low = options.get("cubic_coeff_a", -0.75), np.floor(place)
    taps = []
    for k in (-1, 0, 1, 2):
        d = np.abs(place - (low + k))
        inner = ((a + 2) * d - (a + 3)) * d * d + 1
        outer = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        taps.append((np.clip(low + k, 0, size - 1).astype(np.int64), np.where(d <= 1, inner, outer)))
    return taps


# --- products ---------------------------------------------------------------------------------------------------------


@_operator("MatMul")
def _matmul(xp: ModuleType, _node: Node, a: Array, b: Array) -> Array:
    if a.ndim > 1 and b.ndim > 1:
        batch = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
        check_size((*batch, a.shape[-2], b.shape[-1]))
    return xp.matmul(a, b)


@_operator("Gemm")
def _gemm(xp: ModuleType, node: Node, a: Array, b: Array, c: Array = None) -> Array:
    a = xp.matrix_transpose(a) if node.attributes.get("transA", 0) else a
    b = xp.matrix_transpose(b) if node.attributes.get("transB", 0) else b
    check_size((a.shape[0], b.shape[1]))
    y = xp.matmul(a, b)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    y = y if alpha == 1 else y * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


@_operator("LSTM", host=(4,))
def _lstm(
    xp: ModuleType, node: Node, x: Array, w: Array, r: Array, b: Array = None, lengths: Any = None, h: Array = None,
    c: Array = None, p: Array = None, *, own: Recurrence | None = None,
) -> tuple[Array, ...]:  # fmt: skip
    options = node.attributes
    direction = options.get("direction", "forward")
    usual = ["Sigmoid", "Tanh", "Tanh"] * (2 if direction == "bidirectional" else 1)
    if list(options.get("activations") or usual) != usual or options.get("clip") or options.get("input_forget"):
        raise ModelError("LSTM with other activations, clip or input_forget is not supported.")
    swapped = options.get("layout", 0)
    if swapped:
        x = xp.permute_dims(x, (1, 0, 2))
        h, c = (None if state is None else xp.permute_dims(state, (1, 0, 2)) for state in (h, c))
    check_size((x.shape[0], x.shape[1], *w.shape[:2]))  # gates
    if lengths is not None and any(length != x.shape[0] for length in _ints(lengths)):
        raise ModelError("LSTM with sequences of several lengths is not supported.")

    on_host = isinstance(x, np.ndarray)
    found = own.steps(x, h, c, direction == "reverse") if on_host and own is not None else None
    if found is None:
        each = partial(side_by_side, nbytes=r[0].nbytes) if on_host else one_by_one
        entering = own.product if on_host and own is not None else None
        found = recurrent.lstm(xp, x, w, r, b, h, c, p, direction, lambda a: _logistic(xp, a), each, entering)
    y, last, cell = found
    if swapped:
        y = xp.permute_dims(y, (2, 0, 1, 3))
        last, cell = xp.permute_dims(last, (1, 0, 2)), xp.permute_dims(cell, (1, 0, 2))
    return (y, last, cell)[: len(node.outputs)]
